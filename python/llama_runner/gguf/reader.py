"""Read the header of a GGUF file, and say what is wrong with it before llama.cpp opens it.

Checked here is what ``ggml/src/gguf.cpp`` checks, and more; each fault is a typed error with numbers in
it. The file is read, not mapped: a file that shrinks under a mapping kills the process with SIGBUS.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NoReturn

import numpy as np

from llama_runner.errors import ModelFormatError, UnsupportedModelError
from llama_runner.gguf.files import not_gguf, require_file, storage_error
from llama_runner.gguf.header import GGUFArray, GGUFHeader, TensorInfo, Value
from llama_runner.gguf.tables import (
    GGML_MAX_DIMS,
    GGML_MAX_NAME,
    GGML_TYPES,
    GGUF_VERSIONS,
    VALUE_TYPES,
    tensor_bytes,
)

__all__ = ["GGUFArray", "GGUFHeader", "TensorInfo", "Value", "read_gguf_header"]

_CHUNK = 1 << 20
_MAX_BLOB = 1 << 26  # one string, or one kept array: far above anything real, far below a machine's memory
_MAX_STRINGS = 1 << 24  # strings in one array: each has to be visited
_MAX_NUMBERS = 1 << 30  # GGUF_MAX_ARRAY_ELEMENTS
_MAX_KEY = (1 << 16) - 1
_SMALL_ARRAY = 1024  # arrays up to this length are always kept
_STRING, _ARRAY, _BOOL = 8, 9, 7
_MIN_KV, _MIN_TENSOR = 14, 24  # bytes: a one-letter key with a one-byte value; a scalar without a name
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CODES = {
    "u8": "<B", "i8": "<b", "u16": "<H", "i16": "<h", "u32": "<I", "i32": "<i",
    "f32": "<f", "bool": "<B", "u64": "<Q", "i64": "<q", "f64": "<d",
}  # fmt: skip


def read_gguf_header(
    path: str | os.PathLike[str], *, keep_arrays: bool = False, later_part: bool = False
) -> GGUFHeader:
    """Read and check the header at ``path``; the time taken does not depend on the size of the weights.

    Arrays of more than 1024 elements (a tokenizer's) are stepped over unless ``keep_arrays``: of those
    only the type and the length are known. Of a split model, ``path`` has to be the first file, unless
    ``later_part``: another one has tensors and hardly any metadata, not even an architecture.

    Raises ModelNotFoundError (nothing there, or a directory), ModelFormatError (no GGUF file, or a
    damaged or truncated one), UnsupportedModelError (sound, but nothing the pinned llama.cpp can read),
    StorageError (the file cannot be read).
    """
    path = Path(path)
    size = require_file(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return _Reader(path, file, size, keep_arrays).header(later_part)
    except OSError as error:
        raise storage_error(f"cannot read {str(path)!r}", error) from error


class _Reader:
    """A window of bytes that slides over the file; ``pos`` counts within it and may lie beyond its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int, keep_arrays: bool) -> None:
        self.path, self.file, self.size, self.keep_arrays = path, file, size, keep_arrays
        self.base, self.pos, self.buffer = 0, 0, b""
        self.types: dict[str, str] = {}

    # -- errors ------------------------------------------------------------------------------------

    def bad(self, message: str) -> NoReturn:
        raise ModelFormatError(f"{str(self.path)!r} is a damaged GGUF file: {message}")

    def unsupported(self, message: str) -> NoReturn:
        raise UnsupportedModelError(f"{str(self.path)!r} cannot be read by the bundled llama.cpp: {message}")

    def truncated(self, needed: int, what: str) -> NoReturn:
        raise ModelFormatError(
            f"{str(self.path)!r} is truncated: it has {self.size} bytes, but {what} needs at least {needed}; "
            "download or copy it again"
        )

    # -- bytes -------------------------------------------------------------------------------------

    def tell(self) -> int:
        return self.base + self.pos

    def left(self) -> int:
        return self.size - self.tell()

    def need(self, n: int, what: str) -> None:
        """Have ``n`` bytes from ``pos`` on in the buffer. ``n`` is at most ``_MAX_BLOB``."""
        if self.pos + n <= len(self.buffer):
            return
        start = self.tell()
        if start + n > self.size:
            self.truncated(start + n, what)
        parts = [self.buffer[self.pos :]]
        have = len(parts[0])
        self.file.seek(start + have)
        want = max(n, min(_CHUNK, self.size - start))
        while have < want:
            part = self.file.read(want - have)
            if not part:
                break
            parts.append(part)
            have += len(part)
        self.base, self.pos, self.buffer = start, 0, b"".join(parts)
        if have < n:  # it shrank since its size was taken
            self.size = start + have
            self.truncated(start + n, what)

    def take(self, n: int, what: str) -> bytes:
        self.need(n, what)
        start = self.pos
        self.pos += n
        return self.buffer[start : self.pos]

    def skip(self, n: int, what: str) -> None:
        if n > self.left():
            self.truncated(self.tell() + n, what)
        self.pos += n

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, what: str, limit: int = _MAX_BLOB) -> str:
        length = self.u64(what)
        if length > limit:
            self.bad(f"{what} claims a length of {length} bytes, the limit is {limit}")
        # Not strict: llama.cpp takes any bytes here, and distinct bytes must stay distinct.
        return self.take(length, what).decode("utf-8", "backslashreplace")

    def skip_strings(self, count: int, what: str) -> None:
        unpack = _U64.unpack_from
        while count:
            self.need(8, what)
            buffer, pos, last = self.buffer, self.pos, len(self.buffer) - 8
            while pos <= last and count:
                pos += 8 + unpack(buffer, pos)[0]
                count -= 1
            self.pos = pos
            if self.tell() > self.size:
                self.truncated(self.tell(), what)

    # -- values ------------------------------------------------------------------------------------

    def value_type(self, key: str) -> int:
        kind = self.u32(f"the type of key {key!r}")
        if kind >= len(VALUE_TYPES):
            self.bad(f"key {key!r} has value type {kind}, which does not exist")
        return kind

    def value(self, key: str) -> Value:
        kind = self.value_type(key)
        self.types[key] = VALUE_TYPES[kind][0]
        what = f"the value of key {key!r}"
        if kind == _ARRAY:
            return self.array(key, what)
        if kind == _STRING:
            return self.string(what)
        code = _CODES[VALUE_TYPES[kind][0]]
        value: int | float = struct.unpack(code, self.take(struct.calcsize(code), what))[0]
        return bool(value) if kind == _BOOL else value

    def array(self, key: str, what: str) -> GGUFArray:
        kind = self.value_type(key)
        if kind == _ARRAY:
            self.unsupported(f"key {key!r} is an array of arrays")
        length = self.u64(what)
        name, code = VALUE_TYPES[kind]
        width = 8 if kind == _STRING else int(code[2])
        limit = _MAX_STRINGS if kind == _STRING else _MAX_NUMBERS
        if length * width > self.left():
            self.truncated(self.tell() + length * width, f"{what}, an array of {length} {name},")
        if length > limit:
            self.bad(f"{what} claims {length} elements, the limit is {limit}")
        keep = self.keep_arrays or length <= _SMALL_ARRAY
        if kind == _STRING:
            if not keep:
                self.skip_strings(length, what)
                return GGUFArray(name, length)
            return GGUFArray(name, length, tuple(self.string(what) for _ in range(length)))
        if not keep:
            self.skip(length * width, what)
            return GGUFArray(name, length)
        if length * width > _MAX_BLOB:
            self.bad(f"{what} is {length * width} bytes long, more than the {_MAX_BLOB} that can be kept")
        values = np.frombuffer(self.take(length * width, what), dtype=code)
        return GGUFArray(name, length, values != 0 if kind == _BOOL else values)

    # -- header ------------------------------------------------------------------------------------

    def header(self, later_part: bool) -> GGUFHeader:
        version, n_tensors, n_kv = self.preamble()
        kv = self.pairs(n_kv)
        alignment = self.alignment(kv)
        if not later_part:
            self.check_architecture(kv)
        infos = list(self.tensor_infos(n_tensors))
        end = self.tell()
        data_offset = -(-end // alignment) * alignment if infos else end
        required = self.check_layout(infos, alignment, data_offset)
        if required > self.size:
            self.truncated(required, f"the data of its {n_tensors} tensors" if infos else "its header")
        return GGUFHeader(
            path=self.path,
            version=version,
            file_size=self.size,
            kv=MappingProxyType(kv),
            kv_types=MappingProxyType(self.types),
            tensors=tuple(infos),
            alignment=alignment,
            data_offset=data_offset,
            required_size=required,
        )

    def preamble(self) -> tuple[int, int, int]:
        if self.size == 0:
            raise ModelFormatError(
                f"{str(self.path)!r} is empty (0 bytes): a download that was not finished?"
            )
        head = min(self.size, 64)
        self.need(head, "the header")
        if self.buffer[:4] != b"GGUF":
            raise not_gguf(self.path, self.buffer[:head])
        if self.size < 24:
            self.truncated(24, "the header")
        self.pos = 4
        version = self.u32("the version")
        if version & 0xFFFF == 0 and version:
            self.unsupported(
                f"it is big-endian (its version reads as {version:#010x}); "
                "convert it with gguf-py's gguf_convert_endian.py"
            )
        if version == 0:
            self.bad("its version is 0")
        if version not in GGUF_VERSIONS:
            self.unsupported(
                f"it is of GGUF version {version}, supported are {GGUF_VERSIONS[0]} and {GGUF_VERSIONS[1]}"
            )
        n_tensors, n_kv = self.u64("the header"), self.u64("the header")
        for count, least, noun in ((n_kv, _MIN_KV, "keys"), (n_tensors, _MIN_TENSOR, "tensors")):
            if count >= 1 << 31:
                self.bad(f"it claims {count} {noun}")
            if count * least > self.left():
                self.truncated(self.tell() + count * least, f"a header with {count} {noun}")
        return version, n_tensors, n_kv

    def pairs(self, count: int) -> dict[str, Value]:
        kv: dict[str, Value] = {}
        for index in range(count):
            key = self.string(f"the name of key {index}", _MAX_KEY)
            if not key:
                self.bad(f"key {index} has an empty name")
            if key in kv:
                self.bad(f"key {key!r} occurs twice")
            kv[key] = self.value(key)
        return kv

    def alignment(self, kv: dict[str, Value]) -> int:
        value = kv.get("general.alignment", 32)
        if not isinstance(value, int) or self.types.get("general.alignment", "u32") != "u32":
            self.bad(f"general.alignment is {value!r}, not a u32")
        if value <= 0 or value & (value - 1):
            self.bad(f"general.alignment is {value}, not a power of two")
        return value

    def check_architecture(self, kv: dict[str, Value]) -> None:
        part, parts = kv.get("split.no"), kv.get("split.count")
        if isinstance(part, int) and isinstance(parts, int) and 0 < part < parts:
            raise ModelFormatError(
                f"{str(self.path)!r} is part {part + 1} of {parts} of a split model: open part 1, "
                "the others are found beside it"
            )
        architecture = kv.get("general.architecture")
        if architecture is None:
            self.bad("it has no general.architecture, so nothing says what kind of model it is")
        if not isinstance(architecture, str) or not architecture:
            self.bad(f"general.architecture is {architecture!r}, not a name")

    def tensor_infos(self, count: int) -> Iterator[TensorInfo]:
        seen: set[str] = set()
        for index in range(count):
            name = self.string(f"the name of tensor {index}", GGML_MAX_NAME - 1)
            if name in seen:
                self.bad(f"tensor {name!r} occurs twice")
            seen.add(name)
            yield self.tensor_info(name, f"the description of tensor {name!r}")

    def tensor_info(self, name: str, what: str) -> TensorInfo:
        n_dims = self.u32(what)
        if n_dims > GGML_MAX_DIMS:
            self.bad(f"tensor {name!r} has {n_dims} dimensions, the limit is {GGML_MAX_DIMS}")
        shape = struct.unpack(f"<{n_dims}q", self.take(8 * n_dims, what))
        if min(shape, default=1) <= 0:
            self.bad(f"tensor {name!r} has the shape {shape}; every dimension must be at least 1")
        if math.prod(shape) >= 1 << 63:
            self.bad(f"tensor {name!r} has the shape {shape}: its number of elements overflows 64 bits")
        type_id = self.u32(what)
        if type_id not in GGML_TYPES:
            self.unsupported(
                f"tensor {name!r} has type {type_id}, which was removed, or is newer than this package"
            )
        type_name, block, _ = GGML_TYPES[type_id]
        row = shape[0] if shape else 1
        if row % block:
            self.bad(f"tensor {name!r} of type {type_name} has rows of {row}, not a multiple of {block}")
        return TensorInfo(name, shape, type_name, self.u64(what), tensor_bytes(shape, type_id))

    def check_layout(self, infos: list[TensorInfo], alignment: int, data_offset: int) -> int:
        """The file size that the tensors need. llama.cpp wants them back to back, each one aligned."""
        expected, end = 0, data_offset
        for info in infos:
            if info.offset % alignment:
                self.bad(f"tensor {info.name!r} has offset {info.offset}, not a multiple of {alignment}")
            if info.offset < expected:
                self.bad(
                    f"tensor {info.name!r} at offset {info.offset} overlaps the one that ends at {expected}"
                )
            if info.offset > expected:
                self.bad(f"tensor {info.name!r} has offset {info.offset}, but {expected} is where it must be")
            end = data_offset + info.offset + info.n_bytes
            expected = -(-(info.offset + info.n_bytes) // alignment) * alignment
        return end
