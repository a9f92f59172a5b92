"""What an engine's results are held against: a context that sees one text at a time, a cache that forgets nothing."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_runner.core import Batch, Context, LoraAdapter, Model
from llama_runner.engine.prefix import common_length
from llama_runner.errors import LlamaRunnerError
from llama_runner.results import Completion

__all__ = ["EXACT", "Alone", "PerfectCache", "Tokens", "told"]

Tokens = npt.NDArray[np.int32]
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 5e-3  # of log-probabilities: batches of other shapes round differently


class Alone:
    """The model in a fresh context, for one text at a time."""

    def __init__(self, model: Model, adapters: Mapping[LoraAdapter, float] | None = None) -> None:
        self.context = Context(model, n_ctx=512, n_batch=512, n_ubatch=512, **EXACT)
        if adapters is not None:
            self.context.set_adapters(adapters)
        self.rows: dict[bytes, npt.NDArray[np.float32]] = {}
        self.compared = self.near_ties = 0

    def logprobs(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """The log-probabilities that follow each token: (n, n_vocab)."""
        key = tokens.tobytes()
        if key not in self.rows:
            self.context.memory.clear()
            batch = Batch(len(tokens))
            rows = [batch.add(int(t), i, 0, True) for i, t in enumerate(tokens)]
            self.context.decode(batch)
            logits = np.array([self.context.logits(row) for row in rows], np.float64)
            top = logits.max(axis=1, keepdims=True)
            scores = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
            if len(self.rows) > 500:
                self.rows.clear()
            self.rows[key] = scores.astype(np.float32)
        return self.rows[key]

    def check(self, prompt: Tokens, out: Completion, *, greedy: bool) -> None:
        """The request alone samples the same: the same tokens, or, counted, others as likely within CLOSE."""
        if len(out.tokens) == 0:
            return
        whole = np.concatenate([prompt, out.tokens])
        scores = self.logprobs(whole)[len(prompt) - 1 : -1]
        chosen = scores[np.arange(len(out.tokens)), out.tokens]
        if greedy:
            best = scores.max(axis=1)
            assert (best - chosen).max() < CLOSE, f"not what is sampled alone: {out.tokens}, {best - chosen}"
            self.near_ties += int((scores.argmax(axis=1) != out.tokens).sum())
            self.compared += len(out.tokens)
        if out.logprobs is not None:
            told = np.array([entry.logprob for entry in out.logprobs])
            assert np.abs(told - chosen).max() < CLOSE, f"log-probabilities differ: {np.abs(told - chosen)}"

    def close(self) -> None:
        self.context.close()


@dataclass
class PerfectCache:
    """All that was ever computed, and, as long as nothing was lost of it, exactly what has to be found again."""

    parts: bool  # whether this kind of memory can share the beginning of a sequence
    logs: list[Tokens] = field(default_factory=list)
    ends: set[bytes] = field(default_factory=set)  # without parts: where a state was left

    def longest(self, tokens: Tokens) -> int:
        """How many tokens at the start of a text were computed before."""
        return max((common_length(log, tokens) for log in self.logs), default=0)

    def finds(self, tokens: Tokens, most: int) -> int:
        """How many it must take from the cache, of at most ``most``."""
        if self.parts:
            return min(self.longest(tokens), most)
        return max((n for n in range(1, most + 1) if tokens[:n].tobytes() in self.ends), default=0)

    def add(self, tokens: Tokens) -> None:
        if len(tokens) and tokens.tobytes() not in self.ends:
            self.logs.append(tokens)
            self.ends.add(tokens.tobytes())


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Write down what fails: with threads another run may not fail, and hypothesis tells of that alone."""
    try:
        yield
    except (AssertionError, LlamaRunnerError):
        traceback.print_exc()
        raise
