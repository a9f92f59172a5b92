"""The keywords of ``Model``: what each does, and that no value of them ends the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, devices
from llama_runner.gguf import check_overrides, read_gguf_header

GPUS = [device["name"] for device in devices() if device["type"] in ("gpu", "igpu")]


def first_row(model: Model) -> np.ndarray:
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = Batch(8)
        batch.add_sequence([300, 301, 302, 303])
        ctx.decode(batch)
        return ctx.logits().copy()


# ---------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "options",
    [
        {"use_mmap": "auto"},
        {"use_direct_io": True},
        {"use_direct_io": True, "use_mmap": False},
        {"use_mmap": False, "use_mlock": True},
        {"use_mlock": True},
        {"lazy": "on"},
        {"lazy": "off"},
        {"devices": []},
        {"tensor_split": [1]},
        {"tensor_split": np.array([0.25, 3, 0])},
        {"tensor_split": (1e30,) * 16},
        {"tensor_buft_overrides": {r"blk\.0\.ffn_.*": "CPU", "attn": "CPU"}},
        {"tensor_buft_overrides": {}},
        {"use_extra_bufts": False},
        {"no_host": True},
        {"load_mtp": True},
        {"kv_overrides": {}},
        {"main_gpu": 0, "split_mode": "none"},
    ],
)
def test_every_setting_gives_the_same_model(tiny_model: TinyModelFactory, options: dict) -> None:
    expected = first_row(Model(tiny_model("llama"), devices=[]))
    np.testing.assert_allclose(first_row(Model(tiny_model("llama"), **options)), expected, atol=2e-2)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"devices": "CPU"}, errors.ArgumentTypeError),
        ({"devices": [1]}, errors.ArgumentTypeError),
        ({"devices": ["CPU"]}, errors.InvalidArgumentError),
        ({"devices": ["no-such"]}, errors.InvalidArgumentError),
        ({"devices": ["a\0"]}, errors.InvalidArgumentError),
        ({"split_mode": "diagonal"}, errors.InvalidArgumentError),
        ({"split_mode": "tensor", "devices": []}, errors.InvalidArgumentError),
        ({"tensor_split": 1}, errors.ArgumentTypeError),
        ({"tensor_split": []}, errors.InvalidArgumentError),
        ({"tensor_split": [0, 0.0]}, errors.InvalidArgumentError),
        ({"tensor_split": [-1]}, errors.InvalidArgumentError),
        ({"tensor_split": [float("nan")]}, errors.InvalidArgumentError),
        ({"tensor_split": ["1"]}, errors.ArgumentTypeError),
        ({"tensor_split": [1] * 17}, errors.InvalidArgumentError),
        ({"tensor_buft_overrides": ["ffn"]}, errors.ArgumentTypeError),
        ({"tensor_buft_overrides": {"ffn": "no-such"}}, errors.InvalidArgumentError),
        ({"tensor_buft_overrides": {"ffn": None}}, errors.ArgumentTypeError),
        ({"tensor_buft_overrides": {1: "CPU"}}, errors.ArgumentTypeError),
        ({"tensor_buft_overrides": {"": "CPU"}}, errors.InvalidArgumentError),
        ({"tensor_buft_overrides": {"(": "CPU"}}, errors.InvalidArgumentError),
        ({"tensor_buft_overrides": {"x" * 1025: "CPU"}}, errors.InvalidArgumentError),
        ({"tensor_buft_overrides": {f"p{i}": "CPU" for i in range(4096)}}, errors.InvalidArgumentError),
        ({"use_mmap": "yes"}, errors.ArgumentTypeError),
        ({"use_direct_io": True, "use_mmap": True}, errors.InvalidArgumentError),
        ({"use_direct_io": True, "use_mlock": True}, errors.InvalidArgumentError),
        ({"lazy": True}, errors.InvalidArgumentError),
        ({"lazy": "sometimes"}, errors.InvalidArgumentError),
        ({"use_extra_bufts": 1}, errors.ArgumentTypeError),
        ({"no_host": None}, errors.ArgumentTypeError),
        ({"load_mtp": "x"}, errors.ArgumentTypeError),
        ({"kv_overrides": [("a", 1)]}, errors.ArgumentTypeError),
    ],
)
def test_bad_values_name_themselves(
    tiny_model: TinyModelFactory, options: dict, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=next(iter(options))):
        Model(tiny_model("llama"), **options)


@pytest.mark.parametrize("pattern", ["(a?){100}" * 100, "((a?){90}){90}", "(a?){99999}", "a{1,4000}" * 3])
def test_patterns_that_would_overflow_the_stack(tiny_model: TinyModelFactory, pattern: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="repeats too much"):
        Model(tiny_model("llama"), tensor_buft_overrides={pattern: "CPU"})


@pytest.mark.parametrize(
    "pattern", ["(" * 340 + "a" + ")" * 340, "(a?){63}" * 8, "a|" * 500 + "b", "(a{1,31}){1,31}"]
)
def test_the_largest_patterns_do_not_overflow_it(tiny_model: TinyModelFactory, pattern: str) -> None:
    code = """
import sys, threading
from llama_runner import errors
from llama_runner.core import Model
def load():
    try:
        Model(sys.argv[1], tensor_buft_overrides={sys.argv[2]: "CPU"})
    except errors.InvalidArgumentError as error:
        print("refused", error)
threading.stack_size(1 << 20)  # less than any platform's default
thread = threading.Thread(target=load)
thread.start()
thread.join()
print("alive")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model("llama")), pattern],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (run.returncode, run.stdout.split()[-1:]) == (0, ["alive"]), run.stdout + run.stderr


@pytest.mark.skipif(not GPUS, reason="needs a GPU")
def test_a_gpu_and_its_index(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    expected = first_row(Model(path, devices=[]))
    for options in (
        {"devices": GPUS[:1]},
        {"split_mode": "none"},
        {"tensor_buft_overrides": {"ffn": GPUS[0]}},
    ):
        np.testing.assert_allclose(first_row(Model(path, **options)), expected, atol=2e-2)
    with pytest.raises(errors.InvalidArgumentError, match="main_gpu"):
        Model(path, split_mode="none", main_gpu=len(GPUS))
    with pytest.raises(errors.InvalidArgumentError, match="once"):
        Model(path, devices=[GPUS[0], GPUS[0]])


# ---------------------------------------------------------------------------------------------------- metadata


def test_overrides_take_effect(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    plain = Model(path)
    model = Model(
        path,
        kv_overrides={
            "llama.context_length": 1024,
            "tokenizer.ggml.add_bos_token": False,
            "llama.rope.freq_base": 500000.0,
            "general.name": "other",
        },
    )
    assert (plain.n_ctx_train, model.n_ctx_train) == (512, 1024)
    assert plain.vocab.tokenize("a").size == model.vocab.tokenize("a").size + 1
    assert np.abs(first_row(plain) - first_row(model)).max() > 1e-4
    assert model.meta("llama.context_length") == "512"  # metadata is the file's


def test_a_state_belongs_to_the_overrides_as_well(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    with Context(Model(path), n_ctx=256) as one:
        batch = Batch(4)
        batch.add_sequence([300, 301])
        one.decode(batch)
        blob = one.state_seq_get(0)
    with (
        Context(Model(path, kv_overrides={"llama.rope.freq_base": 5e5}), n_ctx=256) as two,
        pytest.raises(errors.StateError),
    ):
        two.state_seq_set(0, blob)


def test_a_key_that_nobody_reads_is_an_error(tiny_model: TinyModelFactory) -> None:
    for key, value in (("llama.contxt_length", 7), ("tokenizer.chat_template", "x"), ("test.nothing", True)):
        with pytest.raises(errors.InvalidArgumentError, match=f"did not read {key}"):
            Model(tiny_model("llama"), kv_overrides={key: value})
    # absent from the file and of a type that the loader does not want
    with pytest.raises(errors.InvalidArgumentError, match=r"llama\.attention\.causal"):
        Model(tiny_model("llama"), kv_overrides={"llama.attention.causal": 1})
    assert Model(tiny_model("llama"), kv_overrides={"llama.attention.causal": True}).n_layer == 2


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        (1, 1, errors.ArgumentTypeError),
        ("", 1, errors.InvalidArgumentError),
        ("k" * 128, 1, errors.InvalidArgumentError),
        ("a\0b", 1, errors.InvalidArgumentError),
        ("\ud800", 1, errors.InvalidArgumentError),
        ("general.name", "x" * 128, errors.InvalidArgumentError),
        ("general.name", "é" * 64, errors.InvalidArgumentError),
        ("general.name", 1, errors.ArgumentTypeError),
        ("general.name", None, errors.ArgumentTypeError),
        ("general.name", b"x", errors.ArgumentTypeError),
        ("general.architecture", "bert", errors.InvalidArgumentError),
        ("general.alignment", 64, errors.InvalidArgumentError),
        ("split.count", 2, errors.InvalidArgumentError),
        ("tokenizer.ggml.model", "none", errors.InvalidArgumentError),
        ("tokenizer.ggml.tokens", "x", errors.InvalidArgumentError),
        ("llama.block_count", 0, errors.InvalidArgumentError),
        ("llama.block_count", 513, errors.InvalidArgumentError),
        ("llama.block_count", 2**32, errors.InvalidArgumentError),
        ("llama.block_count", -1, errors.InvalidArgumentError),
        ("llama.block_count", 2.0, errors.ArgumentTypeError),
        ("llama.block_count", True, errors.ArgumentTypeError),
        ("llama.context_length", 0, errors.InvalidArgumentError),
        ("llama.attention.head_count", 0, errors.InvalidArgumentError),
        ("llama.attention.layer_norm_rms_epsilon", -1e-5, errors.InvalidArgumentError),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), errors.InvalidArgumentError),
        ("llama.attention.layer_norm_rms_epsilon", 1e39, errors.InvalidArgumentError),
        ("llama.rope.dimension_count", 63, errors.InvalidArgumentError),
        ("llama.rope.dimension_count", 66, errors.InvalidArgumentError),
        ("llama.attention.key_length", 32, errors.InvalidArgumentError),
        ("llama.rope.freq_base", 0.0, errors.InvalidArgumentError),
        ("llama.rope.scaling.type", "spiral", errors.InvalidArgumentError),
        ("llama.pooling_type", 9, errors.InvalidArgumentError),
        ("llama.expert_count", 2000, errors.InvalidArgumentError),
        ("llama.expert_count", 8, errors.InvalidArgumentError),
        ("llama.expert_used_count", 1, errors.InvalidArgumentError),
        ("llama.wkv_head_size", 0, errors.InvalidArgumentError),
    ],
)
def test_bad_overrides(
    tiny_model: TinyModelFactory, key: object, value: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="kv_overrides"):
        Model(tiny_model("llama"), kv_overrides={key: value})


def test_values_of_numpy_and_whole_numbers_for_floats(tiny_model: TinyModelFactory) -> None:
    header = read_gguf_header(tiny_model("llama"))
    found = check_overrides(header, {"llama.context_length": np.int64(9), "llama.rope.freq_base": 5})
    assert found == {"llama.context_length": 9, "llama.rope.freq_base": 5.0}
    assert [type(value) for value in found.values()] == [int, float]


HOSTILE = """
import sys
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

path = sys.argv[1]
model = Model(path)
refused = loaded = computed = 0
for key, value in model.metadata.items():
    for bad in (0, 1, 2, 3, 7, 64, 65, 1 << 16, 2**31 - 1, 2**32 - 1, 0.0, 1e-30, -1.0, 1e30, 3.4e38, True, False,
                "", "x"):
        print(key, bad, file=sys.stderr, flush=True)
        try:
            other = Model(path, kv_overrides={key: bad})
            loaded += 1
            other.vocab.tokenize("hello <s> world")
            with Context(other, n_ctx=256, n_threads=2) as ctx:
                batch = Batch(8)
                batch.add_sequence([1, 2, 3, 4])
                ctx.decode(batch)
                computed += 1
        except errors.LlamaRunnerError:
            refused += 1
print(refused, loaded, computed)
"""


def test_no_override_ends_the_process(any_model_path: Path) -> None:
    """Each key of the file with values of each kind: refused, or the model loads and computes something."""
    run = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(any_model_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert run.returncode == 0, f"{run.returncode} at {run.stderr[-600:]}"
    refused, loaded, computed = map(int, run.stdout.split())
    assert refused > 100
    assert computed > 10
    assert loaded >= computed


# ---------------------------------------------------------------------------------------------------- facts


def test_more_facts(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama", metadata={"general.sampling.temp": 0.5, "general.sampling.top_k": 20}))
    assert (model.n_embd_inp, model.n_embd_out, model.n_layer_nextn) == (64, 64, 0)
    assert (model.rope_type, model.rope_freq_scale_train) == ("norm", 1.0)
    assert (model.n_cls_out, model.classifier_labels, model.decoder_start_token) == (1, (), None)
    assert model.is_diffusion is False
    assert model.sampling_metadata == {"temp": "0.500000", "top_k": "20"}
    assert Model(tiny_model("bert")).rope_type == "neox"
    assert Model(tiny_model("mamba")).rope_type == "none"
    assert Model(tiny_model("llama")).sampling_metadata == {}
    scaled = Model(tiny_model("llama"), kv_overrides={"llama.rope.scaling.factor": 4.0})
    assert scaled.rope_freq_scale_train == 0.25


def test_labels_of_a_classifier(tiny_model: TinyModelFactory) -> None:
    labels = ["no", "yes", "perhaps é"]
    path = tiny_model("llama", metadata={"llama.classifier.output_labels": labels})
    model = Model(path)
    assert (model.n_cls_out, model.classifier_labels) == (3, tuple(labels))


def test_facts_without_weights(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"), vocab_only=True)
    assert (model.n_head, model.n_head_kv) == (0, 0)
    assert model.n_embd_out == model.n_embd


def test_getters_while_another_thread_closes(tiny_model: TinyModelFactory) -> None:
    """Each getter tells the truth or raises ClosedError; none reads what is gone."""
    path = tiny_model("llama")
    names = [name for name in dir(Model) if isinstance(getattr(Model, name), type(Model.desc))]
    assert len(names) > 25
    for _ in range(20):
        model = Model(path, use_mmap=False)
        wrong: list[object] = []
        go = threading.Event()

        def read(model: Model = model, wrong: list[object] = wrong, go: threading.Event = go) -> None:
            go.wait()
            try:
                while True:
                    for name in names:
                        getattr(model, name)
                    model.chat_template()
                    model.meta("general.name")
                    if model.closed:
                        return
            except errors.ClosedError:
                pass
            except errors.ContextBusyError:
                pass  # in the middle of being closed
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        go.set()
        while not model.closed:
            try:
                model.close()
            except errors.ContextBusyError:
                continue
        for thread in threads:
            thread.join()
        assert not wrong
