"""Greedy output is what llama.cpp's own llama-completion gives, built from the same tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from llama_runner import Completion, LlamaRunner
from native_tools import native_tool

pytestmark = [pytest.mark.real_model, pytest.mark.native]

N_TOKENS = 48
N_CTX = 1024
# Two tokens closer than this may change places with the order of the additions; farther apart, a difference is a bug.
NEAR_TIE = 0.2
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Q: What is 12 times 12?\nA:",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\n",
    "In 1969, the first human",
    "Zutaten: 200 g Mehl, 3 Eier, eine Prise Salz.\nZubereitung:",
    "SELECT name, age FROM users WHERE",
    "日本の首都は",
    "<html>\n<head>\n<title>",
    "1, 1, 2, 3, 5, 8, 13,",
    "Water boils at " + "100 degrees, and " * 60 + "so",
]


@pytest.fixture(scope="module")
def llama_completion() -> Path:
    return native_tool("llama-completion")


@pytest.fixture(scope="module", params=[True, False], ids=["flash", "no_flash"])
def flash_attn(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def runner(smollm2: Path, flash_attn: bool):
    # upstream reads a prompt in one batch: no slow moment of the machine may have it read here in several
    with LlamaRunner(smollm2, n_ctx=N_CTX, n_threads=2, flash_attn=flash_attn, slice_seconds=100) as made:
        made.generate(
            "word " * 60, max_tokens=1
        )  # what a row costs is known then, and a slice as long as it may be
        yield made


def upstream(program: Path, model: Path, prompt: str, flash_attn: bool) -> bytes:
    """What llama-completion writes after the prompt."""
    done = subprocess.run(
        [program, "-m", model, "-p", prompt, "-n", str(N_TOKENS), "-c", str(N_CTX), "-t", "2", "--temp", "0",
         "-fa", "on" if flash_attn else "off", "-no-cnv", "--no-display-prompt", "--no-warmup", "--simple-io",
         "--no-escape"],
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout


def first_difference(runner: LlamaRunner, ours: Completion, theirs: bytes) -> int | None:
    """Index of the first token of ours that does not continue theirs, or None."""
    text = b""
    for index, token in enumerate(ours.tokens.tolist()):
        text += runner.model.vocab.token_to_piece(token)
        if not theirs.startswith(text):
            return index
    return None


def test_at_least_ten_prompts():
    assert len(PROMPTS) >= 10


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:16].strip().replace("\n", " "))
def test_equal_to_llama_completion(runner, smollm2, llama_completion, flash_attn, prompt):
    runner.clear_context()  # a cached prefix would be computed in other batches than upstream's
    steps = runner.engine.counters.loop["steps"]
    ours = runner.generate(prompt, max_tokens=N_TOKENS, temperature=0, logprobs=2)
    assert runner.engine.counters.loop["steps"] - steps == len(
        ours.tokens
    )  # of which the first read all of the prompt
    theirs = upstream(llama_completion, smollm2, prompt, flash_attn)
    at = first_difference(runner, ours, theirs)
    if at is not None:
        best, second = (logprob for _, logprob in ours.logprobs[at].top[:2])
        assert best - second < NEAR_TIE, f"token {at} differs: ours {ours.text!r}, theirs {theirs.decode()!r}"
    else:
        assert len(theirs) > 0
        assert np.all(ours.tokens >= 0)
