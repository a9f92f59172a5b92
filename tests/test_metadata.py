"""Metadata files: what they may say, and how they are compared with a header."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotFoundError,
    UnknownParameterError,
)
from llama_runner.gguf import read_gguf_header
from llama_runner.models import Metadata, resolve_model

GOOD = {
    "name": "tiny",
    "path": "tiny.gguf",
    "architecture": "llama",
    "quantization": "f32",
    "context_length": 512,
}


def write_json(folder: Path, data: object, name: str = "model.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(512)
    writer.add_tensor("w", np.zeros((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_load_and_check(model: Path) -> None:
    metadata = Metadata.load(write_json(model.parent, GOOD))
    assert metadata == Metadata(**GOOD)  # type: ignore[arg-type]
    assert metadata.source == model
    metadata.check(read_gguf_header(model))
    with pytest.raises(AttributeError):
        metadata.name = "other"  # type: ignore[misc]


def test_resolving_follows_and_checks(model: Path, tmp_path: Path) -> None:
    assert resolve_model(write_json(tmp_path, GOOD)) == model
    assert resolve_model(str(write_json(tmp_path, GOOD | {"path": str(model)}))) == model
    (tmp_path / "sub").mkdir()
    assert resolve_model(write_json(tmp_path / "sub", GOOD | {"path": "../tiny.gguf"})).samefile(model)
    with pytest.raises(ModelMismatchError):
        resolve_model(write_json(tmp_path, GOOD | {"context_length": 1}))
    with pytest.raises(ModelNotFoundError, match=r"other\.gguf"):
        resolve_model(write_json(tmp_path, GOOD | {"path": "other.gguf"}))
    with pytest.raises(InvalidArgumentError, match="another metadata file"):
        resolve_model(write_json(tmp_path, GOOD | {"path": "model.json"}))


def test_mismatch_lists_every_field(model: Path) -> None:
    metadata = Metadata("tiny", "tiny.gguf", "gpt2", "Q4_0", 1024)
    with pytest.raises(ModelMismatchError) as caught:
        metadata.check(read_gguf_header(model))
    assert caught.value.differences == {
        "architecture": ("gpt2", "llama"),
        "quantization": ("Q4_0", "F32"),
        "context_length": (1024, 512),
    }
    for part in (
        "architecture: expected 'gpt2', found 'llama'",
        "expected 'Q4_0', found 'F32'",
        "1024, found 512",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "as_is"),
    [("pypi:d==1/f.gguf", True), ("hf:o/r/f.gguf", True), ("smollm2-135m", True), ("a/b.gguf", False)],
)
def test_source(tmp_path: Path, path: str, as_is: bool) -> None:
    metadata = Metadata.load(write_json(tmp_path, GOOD | {"path": path}))
    assert metadata.source == (path if as_is else tmp_path / path)


def test_a_file_beside_the_json_wins_over_a_short_name(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m").write_bytes(b"")
    metadata = Metadata.load(write_json(tmp_path, GOOD | {"path": "smollm2-135m"}))
    assert metadata.source == tmp_path / "smollm2-135m"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (GOOD | {"contxt_length": 1}, UnknownParameterError, "did you mean 'context_length'"),
        (
            {"name": "a", "path": "b"},
            InvalidArgumentError,
            "lacks architecture, quantization, context_length",
        ),
        (GOOD | {"context_length": "512"}, ArgumentTypeError, 'context_length must be an integer, not "512"'),
        (GOOD | {"context_length": True}, ArgumentTypeError, "context_length must be an integer, not true"),
        (GOOD | {"name": None}, ArgumentTypeError, "name must be a string, not null"),
        (GOOD | {"context_length": 0}, InvalidArgumentError, "positive"),
        (GOOD | {"path": " "}, InvalidArgumentError, "path is empty"),
        ([], InvalidArgumentError, "JSON object"),
        ("{", InvalidArgumentError, "not valid JSON.*line 1"),
        ("", InvalidArgumentError, "not valid JSON"),
        ('{"name": "a", "name": "b"}', InvalidArgumentError, "'name' occurs twice"),
        ("[" * 100_000, InvalidArgumentError, "not valid JSON"),
        (" " * ((1 << 20) + 1), InvalidArgumentError, "1048577 bytes"),
    ],
)
def test_faults(tmp_path: Path, data: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Metadata.load(write_json(tmp_path, data))


def test_not_utf8_absent_and_directory(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        Metadata.load(tmp_path / "bad.json")
    with pytest.raises(ModelNotFoundError):
        Metadata.load(tmp_path / "none.json")
    with pytest.raises(ModelNotFoundError, match="directory"):
        Metadata.load(tmp_path)
