"""The GGUF header reader: real files, files made by the gguf package, and damaged ones."""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES

from gguf_images import (
    ARCHITECTURE,
    SMALL_VOCAB,
    VENDOR,
    VOCABS,
    image,
    make_model,
    pair,
    tensor,
)
from llama_runner.errors import (
    ModelFormatError,
    ModelNotFoundError,
    StorageError,
)
from llama_runner.gguf import GGUFArray, GGUFHeader, read_gguf_header, tables
from llama_runner.models import resolve_model

needs_vendor = pytest.mark.skipif(not VOCABS, reason="vendor/llama.cpp is not there")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def inner(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return inner


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_model(tmp_path / "made.gguf")


# --- sound files -------------------------------------------------------------------------------------


def test_made_file(made: Path) -> None:
    header = read_gguf_header(made)
    assert (header.version, header.architecture, header.name) == (3, "llama", "tiny")
    assert (header.quantization, header.file_type, header.context_length) == ("Q8_0", 7, 512)
    assert (header.vocab_only, header.split_count, header.n_params) == (False, 1, 15 + 7 + 256)
    assert header.kv["t.uint64"] == 2**64 - 1
    assert header.kv["t.int64"] == -(2**63)
    assert header.kv["t.bool"] is True
    assert header.kv["t.string"] == "naïve"
    assert header.kv["t.float64"] == 0.1
    assert header.kv_types["t.int8"] == "i8"
    reader = gguf.GGUFReader(made)
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.shape == tuple(int(n) for n in theirs.shape)
        assert (ours.n_elements, ours.n_bytes) == (theirs.n_elements, theirs.n_bytes)
        assert header.data_offset + ours.offset == theirs.data_offset
        assert ours.type == theirs.tensor_type.name
    assert header.data_offset == reader.data_offset
    assert header.required_size <= header.file_size == made.stat().st_size


def array(header: GGUFHeader, key: str) -> GGUFArray:
    value = header.kv[key]
    assert isinstance(value, GGUFArray)
    return value


def values(header: GGUFHeader, key: str) -> Any:
    return array(header, key).values


def test_arrays_are_kept_or_skipped(made: Path) -> None:
    skipped, kept = read_gguf_header(made), read_gguf_header(made, keep_arrays=True)
    for header in (skipped, kept):
        assert list(values(header, "a.short")) == [1, 2, 3]
        assert list(values(header, "a.flags")) == [True, False, True]
        assert len(array(header, "a.long")) == 5000
        assert (array(header, "a.words").type, len(array(header, "a.words"))) == ("str", 3000)
    assert values(skipped, "a.long") is None
    assert values(skipped, "a.words") is None
    assert np.array_equal(values(kept, "a.long"), np.arange(5000))
    assert values(kept, "a.words") == tuple(f"w{i}" for i in range(3000))


@needs_vendor
@pytest.mark.parametrize("path", VOCABS, ids=lambda path: path.stem.removeprefix("ggml-vocab-"))
def test_vendored_vocabularies(path: Path) -> None:
    header = read_gguf_header(path)
    assert header.vocab_only
    assert header.tensors == ()
    assert header.required_size == header.file_size == path.stat().st_size
    assert header.context_length is not None
    assert len(array(header, "tokenizer.ggml.tokens")) > 1000


@needs_vendor
def test_agrees_with_the_gguf_package() -> None:
    reader, header = gguf.GGUFReader(SMALL_VOCAB), read_gguf_header(SMALL_VOCAB, keep_arrays=True)
    theirs = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert set(theirs) == set(header.kv)
    for key, value in theirs.items():
        ours = header.kv[key]
        assert (list(values(header, key)) if isinstance(ours, GGUFArray) else ours) == value, key


@pytest.mark.real_model
def test_real_model_is_read_fast() -> None:
    path = resolve_model("smollm2-135m")
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        header = read_gguf_header(path)
        best = min(best, time.perf_counter() - start)
    assert best < 0.06
    assert (header.architecture, header.quantization, header.context_length) == ("llama", "Q4_1", 8192)
    assert header.n_params == 134_515_008
    assert header.required_size == header.file_size == 98_362_432
    assert not header.vocab_only


def test_version_2_scalars_and_guessed_quantization(write: Callable[[bytes], Path]) -> None:
    header = read_gguf_header(
        write(image([ARCHITECTURE], (tensor("s", ()), tensor("w", (32, 2), 8, 32)), 100, 2))
    )
    assert header.version == 2
    assert header.tensors[0].shape == ()
    assert header.quantization == "Q8_0"
    assert header.name is None
    assert header.context_length is None


def test_bytes_that_are_not_utf8_are_taken(write: Callable[[bytes], Path]) -> None:
    bad = pair("general.name", 8, struct.pack("<Q", 2) + b"\xff\xfe")
    assert read_gguf_header(write(image([ARCHITECTURE, bad]))).name == "\\xff\\xfe"


def test_first_part_of_a_split_model_without_tensors_is_no_vocabulary(write: Callable[[bytes], Path]) -> None:
    split = [pair("split.count", 2, struct.pack("<H", 3)), pair("split.no", 2, struct.pack("<H", 0))]
    header = read_gguf_header(write(image([ARCHITECTURE, *split])))
    assert (header.split_count, header.vocab_only) == (3, False)


# --- tables against the vendored source --------------------------------------------------------------


def test_type_sizes_agree_with_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    for number in theirs.keys() & tables.GGML_TYPES.keys():
        name, block, size = tables.GGML_TYPES[number]
        if name != "Q8_1":  # llama.cpp has two halves there, older gguf packages two floats
            assert theirs[number] == (name, block, size)


@needs_vendor
def test_tables_agree_with_the_vendored_headers() -> None:
    ggml = (VENDOR / "ggml" / "include" / "ggml.h").read_text()
    kinds = {
        int(n): name for name, n in re.findall(r"^ +GGML_TYPE_(\w+) += (\d+),", ggml, re.M) if name != "COUNT"
    }
    assert kinds.keys() == tables.GGML_TYPES.keys()
    assert {n: name.upper() for n, name in kinds.items()} == {n: t[0] for n, t in tables.GGML_TYPES.items()}
    llama = (VENDOR / "include" / "llama.h").read_text()
    files = re.findall(r"^ +LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+) += (\d+),", llama, re.M)
    assert {int(n): name for name, n in files} == tables.FILE_TYPES
    assert f"LLAMA_FTYPE_GUESSED = {tables.FILE_TYPE_GUESSED}," in llama
    header = (VENDOR / "ggml" / "include" / "gguf.h").read_text()
    values = re.findall(r"^ +GGUF_TYPE_(\w+) += (\d+),", header, re.M)
    assert len([name for name, _ in values if name != "COUNT"]) == len(tables.VALUE_TYPES)
    assert f"#define GGUF_VERSION {max(tables.GGUF_VERSIONS)}" in header


# --- what is not there or not GGUF -------------------------------------------------------------------


def test_absent(tmp_path: Path, made: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"beside it: made\.gguf"):
        read_gguf_header(tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        read_gguf_header(tmp_path / "no" / "other.gguf")
    with pytest.raises(ModelNotFoundError):
        read_gguf_header(made / "below.gguf")


def test_directory(tmp_path: Path, made: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"directory.*made\.gguf"):
        read_gguf_header(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        read_gguf_header(tmp_path / "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFormatError, match="no regular file"):
        read_gguf_header(tmp_path / "pipe")


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A file that this process may not read; where it is root, it becomes another user for the while."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "model.gguf")
        path.write_bytes(image([ARCHITECTURE]))
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_unreadable(unreadable: Path) -> None:
    with pytest.raises(StorageError, match="Permission denied") as caught:
        read_gguf_header(unreadable)
    assert caught.value.errno == 13


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "empty"),
        (b"GG", "starts with"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{}}', "safetensors"),
        (b"PK\x03\x04" + b"\0" * 30, "zip archive"),
        (b"\x1f\x8b\x08" + b"\0" * 30, "compressed"),
        (b"FUGG" + b"\0" * 30, "big-endian"),
        (b"tjgg" + b"\0" * 30, "older than GGUF"),
        (b'{"name": 1}', "JSON"),
        (b"\0" * 64, "zeros"),
        (b"something else entirely", "b'somethin'"),
    ],
)
def test_not_gguf(write: Callable[[bytes], Path], content: bytes, hint: str) -> None:
    with pytest.raises(ModelFormatError, match=re.escape(hint)):
        read_gguf_header(write(content))
