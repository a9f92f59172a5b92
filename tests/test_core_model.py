"""``Model``: what it tells about a file, what it refuses, and how loading reports."""

from __future__ import annotations

import copy
import os
import pickle
import random
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model
from tiny_models import CHATML_TEMPLATE, write_truncated, write_unknown_architecture


def first_row(model: Model) -> np.ndarray:
    """Logits after a few tokens: what shows that a model works."""
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = Batch(8)
        batch.add_sequence([300, 301, 302, 303])
        ctx.decode(batch)
        return ctx.logits().copy()


# ---------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("kind", "architecture", "recurrent", "hybrid", "decoder", "window"),
    [
        ("llama", "llama", False, False, True, 0),
        ("swa", "gemma3", False, False, True, 32),
        ("mamba", "mamba", True, False, True, 0),
        ("hybrid", "jamba", False, True, True, 0),
        ("bert", "bert", False, False, True, 0),
    ],
)
def test_facts_of_each_memory_kind(
    tiny_model: TinyModelFactory,
    kind: str,
    architecture: str,
    recurrent: bool,
    hybrid: bool,
    decoder: bool,
    window: int,
) -> None:
    model = Model(tiny_model(kind, n_ctx_train=384))
    assert model.architecture == architecture
    assert model.name == f"tiny-{kind}"
    assert (model.is_recurrent, model.is_hybrid, model.n_swa) == (recurrent, hybrid, window)
    assert model.has_decoder is decoder
    assert model.has_encoder is False
    assert model.n_ctx_train == 384
    assert model.n_embd == 64
    assert model.n_layer >= 2
    assert architecture in model.desc
    assert not model.closed
    assert f"tiny-{kind}" not in repr(model)
    assert repr(model).startswith(f"<Model '{architecture}")


def test_sizes_agree_with_the_tensors_of_the_file(any_model_path: Path) -> None:
    tensors = gguf.GGUFReader(any_model_path).tensors
    model = Model(any_model_path)
    assert model.n_params == sum(int(t.n_elements) for t in tensors)
    assert model.size == sum(int(t.n_bytes) for t in tensors)
    assert model.quantization == "all F32"


def test_heads_and_path(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    model = Model(str(path), vocab_only=False)
    assert (model.n_head, model.n_head_kv) == (4, 2)
    assert model.path == str(path)
    assert model.vocab_only is False


def test_metadata_is_complete_and_not_cut(tiny_model: TinyModelFactory) -> None:
    long = "x" * 5000 + "é"
    model = Model(tiny_model("llama", metadata={"test.long": long, "test.number": 7}))
    assert model.meta("test.long") == long
    assert model.meta("test.number") == "7"
    assert model.meta("no.such.key") is None
    assert model.metadata["test.long"] == long
    assert model.metadata["general.architecture"] == "llama"
    assert all(model.meta(key) == value for key, value in model.metadata.items())


def test_chat_template_default_named_and_absent(tiny_model: TinyModelFactory) -> None:
    named = tiny_model("llama", metadata={"tokenizer.chat_template.tool_use": "{{ 'tools' }}"})
    model = Model(named)
    assert model.chat_template() == CHATML_TEMPLATE
    assert model.chat_template("tool_use") == "{{ 'tools' }}"
    assert model.chat_template("rag") is None
    assert Model(tiny_model("llama", chat_template=False)).chat_template() is None


@pytest.mark.real_model
def test_facts_of_the_real_model(smollm2: Path) -> None:
    model = Model(smollm2)
    assert (model.architecture, model.quantization, model.n_ctx_train) == ("llama", "Q4_1", 8192)
    assert (model.n_layer, model.n_head, model.n_head_kv, model.n_embd) == (30, 9, 3, 576)
    assert model.n_params == 134_515_008
    assert "<|im_start|>" in (model.chat_template() or "")


# ---------------------------------------------------------------------------------------------------- refusals


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError, match=r"no-such\.gguf"):
        Model(tmp_path / "no-such.gguf")
    with pytest.raises(FileNotFoundError):
        Model(tmp_path / "no-such.gguf")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError, match="directory"):
        Model(tmp_path)


def test_files_that_are_no_model(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    good = tiny_model("llama")
    size = good.stat().st_size
    bad = {
        "empty": b"",
        "one": b"G",
        "magic": b"GGUF",
        "text": b"hello" * 100,
        "random": random.Random(0).randbytes(9999),
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(errors.ModelFormatError, match=name):
            Model(path)
    for cut in (24, 100, size // 20, size // 2, size - 1):
        path = write_truncated(tmp_path / f"cut{cut}.gguf", good, cut)
        with pytest.raises(errors.ModelFormatError, match=f"cut{cut}"):
            Model(path)
    assert np.isfinite(first_row(Model(good))).all()


def test_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedModelError, match="architecture"):
        Model(write_unknown_architecture(tmp_path / "alien.gguf"))


def test_vocab_only_file_says_how_to_load_it(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", vocab_only=True)
    with pytest.raises(errors.ModelCapabilityError, match="vocab_only=True"):
        Model(path)
    assert Model(path, vocab_only=True).vocab.tokenize("the").size > 0


def test_vocab_only_model_makes_no_context(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"), vocab_only=True)
    assert model.vocab_only
    assert "vocab_only" in repr(model)
    assert model.vocab.tokenize("hello world").size > 0
    with pytest.raises(errors.ModelCapabilityError, match="vocab_only"):
        Context(model)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"n_gpu_layers": -2}, errors.InvalidArgumentError),
        ({"n_gpu_layers": 2**31}, errors.InvalidArgumentError),
        ({"n_gpu_layers": 1.0}, errors.ArgumentTypeError),
        ({"n_gpu_layers": True}, errors.ArgumentTypeError),
        ({"vocab_only": 1}, errors.ArgumentTypeError),
        ({"use_mmap": None}, errors.ArgumentTypeError),
        ({"use_mlock": "no"}, errors.ArgumentTypeError),
        ({"check_tensors": 0}, errors.ArgumentTypeError),
        ({"split_mode": "diagonal"}, errors.InvalidArgumentError),
        ({"split_mode": None}, errors.InvalidArgumentError),
        ({"main_gpu": -1}, errors.InvalidArgumentError),
        ({"main_gpu": 10_000}, errors.InvalidArgumentError),
        ({"progress": 3}, errors.ArgumentTypeError),
    ],
)
def test_bad_arguments_name_themselves(
    tiny_model: TinyModelFactory, arguments: dict, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=next(iter(arguments))):
        Model(tiny_model("llama"), **arguments)


@pytest.mark.parametrize("path", [None, 3, 1.5, [], True])
def test_a_path_of_a_wrong_type(path: object) -> None:
    with pytest.raises(TypeError):
        Model(path)


@pytest.mark.parametrize("path", ["a\0b.gguf", "\ud800.gguf"])
def test_a_path_that_no_file_can_have(path: str) -> None:
    with pytest.raises(errors.InvalidArgumentError):
        Model(path)


@pytest.mark.parametrize("key", [None, 3, b"general.name", "\ud800", "general.name\0x"])
def test_bad_metadata_keys_and_template_names(tiny_model: TinyModelFactory, key: object) -> None:
    model = Model(tiny_model("llama"))
    with pytest.raises(errors.UsageError):
        model.meta(key)
    if key is not None:
        with pytest.raises(errors.UsageError):
            model.chat_template(key)
    assert model.meta("general.name") == "tiny-llama"


# ---------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "options",
    [
        {"use_mmap": True},
        {"use_mmap": False},
        {"check_tensors": True},
        {"split_mode": "row"},
        {"n_gpu_layers": 0},
    ],
)
def test_every_way_of_loading_gives_the_same_model(tiny_model: TinyModelFactory, options: dict) -> None:
    expected = first_row(Model(tiny_model("llama"), n_gpu_layers=0))
    np.testing.assert_allclose(first_row(Model(tiny_model("llama"), **options)), expected, atol=2e-2)


def test_names_that_are_not_ascii_or_not_utf8(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    names = ["modèle ü 模型.gguf"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"m\xff.gguf"))
    for name in names:
        path = tmp_path / name
        path.write_bytes(tiny_model("llama").read_bytes())
        assert Model(path).path == str(path)


def test_progress_rises_to_one(tiny_model: TinyModelFactory) -> None:
    seen: list[float] = []
    Model(tiny_model("llama"), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert all(0.0 <= value <= 1.0 for value in seen)


def test_progress_can_cancel(tiny_model: TinyModelFactory) -> None:
    calls: list[float] = []

    def cancel(value: float) -> bool:
        calls.append(value)
        return False

    with pytest.raises(errors.LlamaRuntimeError, match="cancelled"):
        Model(tiny_model("llama"), progress=cancel)
    assert len(calls) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_progress_raises_is_raised(tiny_model: TinyModelFactory, error: BaseException) -> None:
    def fail(value: float) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        Model(tiny_model("llama"), progress=fail)
    assert caught.value is error


def test_loading_twice_into_one_object_is_refused(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        model.__init__(tiny_model("swa"))
    assert model.architecture == "llama"
    first_row(model)


def test_a_failed_load_leaves_an_object_that_is_closed(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    model = Model.__new__(Model)
    with pytest.raises(errors.ModelNotFoundError):
        model.__init__(tmp_path / "none.gguf")
    assert model.closed
    with pytest.raises(errors.ClosedError):
        _ = model.vocab
    model.close()


def test_a_model_cannot_be_copied_or_pickled(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            act(model)


def test_threads_share_one_model(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    expected = first_row(model)
    rows: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: rows.append(first_row(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 4
    for row in rows:
        np.testing.assert_array_equal(row, expected)
