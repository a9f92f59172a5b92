"""A model as it lies on disk: one GGUF file, or the parts of a split one, checked against each other."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llama_runner.errors import ModelFormatError, ModelNotFoundError
from llama_runner.gguf.header import GGUFHeader, TensorInfo
from llama_runner.gguf.reader import read_gguf_header
from llama_runner.gguf.sample import sample_digest

__all__ = ["ModelFile", "read_model_file"]

_ENDING = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.gguf", re.DOTALL)


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The headers of a model's files, in order; ``header`` is the first, which has the metadata."""

    paths: tuple[str, ...]
    headers: tuple[GGUFHeader, ...]

    @property
    def header(self) -> GGUFHeader:
        return self.headers[0]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all parts."""
        return tuple(tensor for header in self.headers for tensor in header.tensors)

    @property
    def file_size(self) -> int:
        return sum(header.file_size for header in self.headers)

    def digest(self) -> str:
        """``sample_digest`` over all parts."""
        digests = [sample_digest(path) for path in self.paths]
        if len(digests) == 1:
            return digests[0]
        return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def read_model_file(paths: Sequence[str]) -> ModelFile:
    """Read and check the headers of a model: of the file at the one path, of the parts it names, or of those given.

    Raises ModelNotFoundError and ModelFormatError for a part that is missing, out of order, or of another model, and
    what ``read_gguf_header`` raises.
    """
    header = read_gguf_header(paths[0])
    count = header.split_count
    if count == 1:
        if len(paths) > 1:
            raise ModelFormatError(
                f"{len(paths)} files are given, and {paths[0]!r} is a whole model, not a part"
            )
        return ModelFile((paths[0],), (header,))
    if len(paths) == 1:
        paths = _names_of_parts(paths[0], count)
    elif len(paths) != count:
        raise ModelFormatError(f"{len(paths)} files are given, and {paths[0]!r} is part 1 of {count}")
    _check_number(paths[0], header, 0, count)
    headers = [header]
    for index in range(1, count):
        headers.append(_read_part(paths[index], index, count))
    _check_tensors(paths, headers)
    return ModelFile(tuple(paths), tuple(headers))


def _names_of_parts(path: str, count: int) -> list[str]:
    match = _ENDING.fullmatch(path)
    if match is None or (int(match[2]), int(match[3])) != (1, count):
        raise ModelFormatError(
            f"{path!r} is part 1 of {count} of a split model, and its name does not end in "
            f"-00001-of-{count:05d}.gguf, by which the others are found: rename it, or give the list of all parts"
        )
    return [f"{match[1]}-{index + 1:05d}-of-{count:05d}.gguf" for index in range(count)]


def _read_part(path: str, index: int, count: int) -> GGUFHeader:
    try:
        header = read_gguf_header(path, later_part=True)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"part {index + 1} of {count} of the model is missing: {error}") from None
    _check_number(path, header, index, count)
    return header


def _check_number(path: str, header: GGUFHeader, index: int, count: int) -> None:
    for key, expected in (("split.no", index), ("split.count", count)):
        found = header.kv.get(key)
        # llama.cpp reads both as u16 without asking
        if header.kv_types.get(key) != "u16" or found != expected:
            given = f"is {found!r}" if key in header.kv else "is missing"
            raise ModelFormatError(
                f"{path!r} is not part {index + 1} of {count} of this model: its {key} {given}, not {expected} (u16)"
            )


def _check_tensors(paths: Sequence[str], headers: Sequence[GGUFHeader]) -> None:
    seen: dict[str, str] = {}
    for path, header in zip(paths, headers, strict=True):
        for tensor in header.tensors:
            other = seen.setdefault(tensor.name, path)
            if other is not path:
                raise ModelFormatError(
                    f"tensor {tensor.name!r} is in {other!r} and in {os.path.basename(path)!r}: "
                    "parts of different models?"
                )
    expected = headers[0].kv.get("split.tensors.count")
    if expected != len(seen):
        raise ModelFormatError(
            f"{paths[0]!r} says that the model has {expected} tensors, and its {len(paths)} parts have {len(seen)}: "
            "parts of different models?"
        )
