"""Split models: loaded by the first part or by the list of all, and what is wrong with a set of parts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, estimate_memory, quantize, split_path, split_prefix
from llama_runner.gguf import read_model_file
from split_models import split_model


def first_row(model: Model) -> np.ndarray:
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = Batch(8)
        batch.add_sequence([300, 301, 302, 303])
        ctx.decode(batch)
        return ctx.logits().copy()


@pytest.fixture
def parts(tiny_model: TinyModelFactory, tmp_path: Path) -> list[Path]:
    found = split_model(tiny_model("llama"), tmp_path)
    assert len(found) == 3
    return found


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("prefix", "index", "count"), [("m", 0, 3), ("/a/b c/ü", 65534, 65535), ("x" * 5000, 1, 2)]
)
def test_a_name_and_its_prefix(prefix: str, index: int, count: int) -> None:
    name = split_path(prefix, index, count)
    assert name == f"{prefix}-{index + 1:05d}-of-{count:05d}.gguf"
    assert split_prefix(name, index, count) == prefix
    assert split_prefix(name, index - 1 if index else 1, count) is None


def test_a_name_that_is_none_of_a_part() -> None:
    assert split_prefix("model.gguf", 0, 3) is None
    assert split_prefix("-00001-of-00003.gguf", 0, 3) is None
    assert split_path(Path("dir") / "m", 0, 1) == os.path.join("dir", "m-00001-of-00001.gguf")


@pytest.mark.parametrize("function", [split_path, split_prefix])
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((None, 0, 1), errors.ArgumentTypeError),
        (("a\0", 0, 1), errors.InvalidArgumentError),
        (("\ud800", 0, 1), errors.InvalidArgumentError),
        (("m", 1, 1), errors.InvalidArgumentError),
        (("m", -1, 1), errors.InvalidArgumentError),
        (("m", 0, 65536), errors.InvalidArgumentError),
        (("m", 0.0, 1), errors.ArgumentTypeError),
    ],
)
def test_bad_names(function: Callable[..., object], arguments: tuple, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        function(*arguments)


# ---------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("options", [{}, {"use_mmap": False}])
def test_the_first_part_loads_all(tiny_model: TinyModelFactory, parts: list[Path], options: dict) -> None:
    whole = Model(tiny_model("llama"))
    model = Model(parts[0], **options)
    assert (model.path, model.paths) == (str(parts[0]), tuple(map(str, parts)))
    assert (model.n_params, model.size) == (whole.n_params, whole.size)
    np.testing.assert_array_equal(first_row(model), first_row(whole))


def test_a_list_of_parts_of_any_name(tiny_model: TinyModelFactory, parts: list[Path], tmp_path: Path) -> None:
    renamed = [tmp_path / name for name in ("head.bin", "ü.gguf", "tail")]
    for old, new in zip(parts, renamed, strict=True):
        old.rename(new)
    model = Model(renamed)
    np.testing.assert_array_equal(first_row(model), first_row(Model(tiny_model("llama"))))
    with pytest.raises(errors.ModelFormatError, match=r"-00001-of-00003\.gguf.*list of all parts"):
        Model(renamed[0])


def test_a_list_of_one_whole_model(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    assert Model([path]).paths == (str(path),)
    with pytest.raises(errors.ModelFormatError, match="whole model"):
        Model([path, path])


def test_the_state_of_a_split_model_is_that_of_all_its_parts(parts: list[Path]) -> None:
    digest = read_model_file([str(parts[0])]).digest()
    edit_last = bytearray(parts[2].read_bytes())
    edit_last[-5] ^= 1
    parts[2].write_bytes(edit_last)
    assert read_model_file([str(parts[0])]).digest() != digest


@pytest.mark.parametrize("given", [[], (), [None], [["a"]], 3, {"a": 1}])
def test_lists_that_are_none(given: object) -> None:
    with pytest.raises(errors.UsageError):
        Model(given)


# ---------------------------------------------------------------------------------------------------- what is wrong


def test_a_missing_part(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(errors.ModelNotFoundError, match=r"part 2 of 3.*00002-of-00003"):
        Model(parts[0])
    with pytest.raises(errors.ModelFormatError, match=r"2 files are given.*1 of 3"):
        Model([parts[0], parts[2]])


def test_parts_out_of_order(parts: list[Path]) -> None:
    with pytest.raises(errors.ModelFormatError, match=r"not part 2 of 3.*split\.no is 2"):
        Model([parts[0], parts[2], parts[1]])
    with pytest.raises(errors.ModelFormatError, match="part 2 of 3"):
        Model(parts[1])


def test_a_part_of_another_model(tiny_model: TinyModelFactory, parts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    foreign = split_model(tiny_model("llama", n_layer=4), other, max_tensors=14)
    assert len(foreign) == 3
    with pytest.raises(errors.ModelFormatError, match="different models"):
        Model([parts[0], foreign[1], parts[2]])
    shutil.copy(tiny_model("llama"), parts[1])
    with pytest.raises(errors.ModelFormatError, match=r"split\.no is missing"):
        Model(parts[0])


def test_part_numbers_of_a_type_that_upstream_asserts(parts: list[Path]) -> None:
    # key, then the type u16 as u32, then the value; i16 has the same size
    edit(parts[1], b"split.no\x02\0\0\0", b"split.no\x03\0\0\0")
    with pytest.raises(errors.ModelFormatError, match="u16"):
        Model(parts[0])


def test_a_truncated_part(parts: list[Path]) -> None:
    with open(parts[2], "r+b") as file:
        file.truncate(parts[2].stat().st_size - 1)
    with pytest.raises(errors.ModelFormatError, match="truncated"):
        Model(parts[0])


# ---------------------------------------------------------------------------------------------------- with the rest


@pytest.mark.parametrize("use_mmap", [True, False])
def test_the_estimate_of_a_split_model(parts: list[Path], use_mmap: bool) -> None:
    estimate = estimate_memory(parts, n_ctx=256, use_mmap=use_mmap)
    with Context(Model(parts, use_mmap=use_mmap), n_ctx=256) as ctx:
        found = ctx.memory_breakdown
    assert (estimate.weights, estimate.kv, estimate.compute) == (
        found["model"],
        found["context"],
        found["compute"],
    )


def test_save_joins_the_parts(tiny_model: TinyModelFactory, parts: list[Path], tmp_path: Path) -> None:
    model = Model(parts[0])
    joined = Model(model.save(tmp_path / "joined.gguf"))
    whole = Model(tiny_model("llama"))
    assert joined.paths == (str(tmp_path / "joined.gguf"),)
    assert joined.size == whole.size
    # what llama.cpp's quantizer writes into each file
    assert joined.metadata == {**whole.metadata, "general.quantization_version": "2"}
    assert joined.chat_template() == whole.chat_template()
    np.testing.assert_array_equal(first_row(joined), first_row(whole))
    with pytest.raises(errors.StorageError, match="exists"):
        model.save(tmp_path / "joined.gguf")
    model.close()
    with pytest.raises(errors.ClosedError):
        model.save(tmp_path / "again.gguf")


def test_quantize_keeps_the_split(parts: list[Path], tmp_path: Path) -> None:
    made = quantize(parts[0], tmp_path / "small.gguf", "Q8_0", keep_split=True)
    assert made.paths == tuple(str(tmp_path / f"small-0000{i}-of-00003.gguf") for i in (1, 2, 3))
    model = Model(made.paths[0])
    assert model.quantization == "Q8_0"
    assert model.size == made.bytes_after
    assert np.isfinite(first_row(model)).all()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_quantize_a_part_that_would_be_empty(parts: list[Path], tmp_path: Path) -> None:
    # upstream reads through a null pointer there
    layers = [
        {tensor.name.split(".")[1] for tensor in header.tensors if tensor.name.startswith("blk.")}
        for header in read_model_file([str(parts[0])]).headers
    ]
    gone = next(i for i in range(2) if any(found == {str(i)} for found in layers[1:]))
    with pytest.raises(errors.InvalidArgumentError, match="nothing of"):
        quantize(parts[0], tmp_path / "x", "Q8_0", keep_split=True, prune_layers=[gone])
