"""What tests of the engine have in common: a runner on a tiny model, prompts, and waiting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from llama_runner import Completion, LlamaRunner
from llama_runner.engine import Request

Tokens = np.ndarray[Any, np.dtype[np.int32]]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def slowly(tokens: Any, logits: Any) -> None:
    """A logits processor that keeps the loop busy, so that a generation still runs when something is done to it."""
    time.sleep(0.002)


SLOW: dict[str, Any] = {**GREEDY, "logits_processor": slowly}


def make(path: Path, **options: Any) -> LlamaRunner:
    return LlamaRunner(path, **{"n_ctx": 1024, "n_threads": 1, **options})


def assert_same(outs: list[Completion], alone: list[Completion]) -> None:
    """The same tokens, or others from a place on where two are as likely, within what a batch's shape changes."""
    for out, expected in zip(outs, alone, strict=True):
        differ = np.flatnonzero(out.tokens[: len(expected.tokens)] != expected.tokens)
        if len(differ):
            assert expected.logprobs is not None
            (_, first), (_, second) = expected.logprobs[int(differ[0])].top[:2]
            assert first - second < 0.02


def prompt(n: int, seed: int = 0) -> Tokens:
    """Random tokens that are no end of anything."""
    return np.random.default_rng(seed).integers(270, 440, n).astype(np.int32)


def read_all(request: Request) -> list[int]:
    """The tokens of a request that no stream reads, to its end."""
    tokens: list[int] = []
    while not request.ended:
        chunk = request.chunk()
        assert chunk is not None
        tokens += chunk.tokens
    return tokens


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)
