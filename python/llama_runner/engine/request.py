"""``Request``: one generation, from its place in the queue to its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_runner.core import Job, SamplerChain, Vocab
from llama_runner.engine.prefix import Node
from llama_runner.errors import (
    ClosedError,
    ContextOverflowError,
    DecodeError,
    LlamaRunnerError,
    LlamaRuntimeError,
    OutOfMemoryError,
    SamplingError,
)
from llama_runner.params import GenerationParams
from llama_runner.results import Chunk, Completion, Timings, TokenLogprob, Usage

__all__ = ["Explanation", "Request"]

ERRORS: dict[str, type[LlamaRunnerError]] = {
    "sampling": SamplingError,
    "no_room": ContextOverflowError,
    "decode": DecodeError,
    "closed": ClosedError,
    "poisoned": LlamaRuntimeError,
    "memory": OutOfMemoryError,
}


@dataclass(frozen=True)
class Explanation:
    """Why as much of a prompt was computed as was."""

    prompt_tokens: int
    cached_tokens: int
    restored_tokens: int  # of the cached ones, those that came back from host memory or disk
    computed_tokens: int
    known_tokens: int  # how far the prompt agreed with something known
    prompt_differs_at: str  # the text of the prompt's token where it first differs, "" where it does not
    cache_differs_at: str  # that of what was known
    reason: str
    preempted: int  # how many times it gave way to others

    def __str__(self) -> str:
        return f"{self.cached_tokens} of {self.prompt_tokens} tokens were cached: {self.reason}"


class Request:
    """One generation in an engine. Its owner reads it with ``chunks`` or ``result``; the engine does the rest."""

    def __init__(
        self,
        vocab: Vocab,
        prompt: npt.NDArray[np.int32],
        params: GenerationParams,
        chain: SamplerChain | None,
        *,
        tag: int,
        seed: int = 0,
        limit: int,
        priority: int,
        owner: str | None,
        notify: Callable[[], None] | None,
        want: str = "",
        want_from: int = 1,
    ) -> None:
        self.vocab = vocab
        self.prompt = prompt
        self.params = params
        self.tag = tag
        self.seed = seed
        self.limit = limit  # most tokens to sample
        self.priority = priority
        self.owner = owner
        self.notify = notify
        self.job = Job(
            vocab,
            prompt,
            chain=chain,
            max_tokens=limit,
            ignore_eos=params.ignore_eos,
            stop=params.stop,
            logprobs=params.logprobs,
            priority=priority,
            timeout=params.timeout,
            notify=notify is not None,
            want=(want,) if want else (),
            want_from=want_from,
            tag=tag,
        )
        # how many tokens at most may be taken from the cache: the rest must be computed for what it is to leave
        self.most = len(prompt) - (chain is not None or want in ("logits", "embedding"))
        if want == "logprobs":
            self.most = min(self.most, want_from - 1)
        # --- the engine's, under its lock
        self.seq_id: int | None = None
        self.node: Node | None = None  # pinned while this runs: the part of its prompt that the tree knows
        self.followers: list[Request] = []
        self.leader: Request | None = None
        self.preempted = 0
        self.cancelled = False
        self.submitted = time.perf_counter()
        self.admitted = 0.0
        self.deadline = None if params.timeout is None else self.submitted + params.timeout
        self.cached_tokens = 0
        self.restored_tokens = 0
        self.known_tokens = 0
        self.cache_differs_at = ""
        self.reason = ""
        # --- the reader's
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._end: str | None = None
        self._ended = 0.0

    # --- the reader's side

    def chunk(self, timeout: float | None = None) -> Chunk | None:
        """What has come since the last call, waiting for it; None when ``timeout`` seconds are over first.

        Raises the typed error of a generation that failed, once what came before it has been returned.
        """
        if self._end is not None:
            raise StopIteration
        if not self.job.wait(timeout):
            return None
        return self.take()

    def take(self) -> Chunk:
        """What has come since the last call, without waiting."""
        data, tokens, scores, end = self.job.take()
        text = data.decode("utf-8", "replace")
        self._text.append(text)
        self._tokens += tokens
        logprobs = None
        if self._logprobs is not None and scores is not None:
            logprobs = tuple(
                self._token_logprob(token, score) for token, score in zip(tokens, scores, strict=True)
            )
            self._logprobs += logprobs
        if end is not None:
            self._end = end
            self._ended = time.perf_counter()
            if end == "error":
                raise self.error()
        reason: Any = end
        return Chunk(text, tuple(tokens), logprobs, reason)

    def _token_logprob(self, token: int, score: tuple[float, list[tuple[int, float]]]) -> TokenLogprob:
        piece = self.vocab.token_to_piece(token)
        return TokenLogprob(token, piece.decode(errors="replace"), piece, score[0], tuple(score[1]))

    def error(self) -> LlamaRunnerError:
        """The typed error of a generation that ended with one."""
        progress, text = self.job.progress, self.job.error_text
        kind = ERRORS.get(str(progress["error"]), DecodeError)
        if kind is ContextOverflowError:
            return ContextOverflowError(text, len(self.prompt) + self.limit, 0)
        if kind is DecodeError:
            return DecodeError(text, code=-2)
        return kind(text or "the engine was closed while this generation was under way")

    @property
    def ended(self) -> bool:
        """Whether the reader has had the last of it."""
        return self._end is not None

    def completion(self) -> Completion:
        """The result, once the reader has had the last of it."""
        assert self._end is not None
        progress = self.job.progress
        n = len(self._tokens)
        computed = len(self.prompt) - self.cached_tokens
        if progress["fed_us"] == 0:
            computed = int(progress["n_computed"])
        first = progress["first_us"] or progress["last_us"]
        fed, added = progress["fed_us"] or first, progress["added_us"]
        waited = self.admitted - self.submitted if self.admitted else 0.0
        prompt_seconds = max(0.0, (fed - added) / 1e6) if added and fed else 0.0
        generating = max(0.0, (progress["last_us"] - fed) / 1e6) if fed else 0.0
        if self._end == "error" and progress["error"] != "closed":
            raise self.error()
        reason: Any = "cancelled" if self._end == "error" else self._end
        return Completion(
            text="".join(self._text),
            tokens=np.asarray(self._tokens, dtype=np.int32),
            finish_reason=reason,
            stop_match=self.job.stop_match,  # type: ignore[arg-type]
            usage=Usage(len(self.prompt), self.cached_tokens, len(self.prompt) - self.cached_tokens, n),
            timings=Timings(
                prompt_seconds=prompt_seconds,
                generation_seconds=generating,
                first_token_seconds=waited + prompt_seconds if first else self._ended - self.submitted,
                computed_tokens=computed,
                completion_tokens=n,
            ),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            seed=self.seed,
        )

    def explain(self) -> Explanation:
        """Which part of the prompt was known, where it first differed, and why the rest was computed."""
        at = self.known_tokens
        differs = (
            self.vocab.token_to_piece(int(self.prompt[at]), special=True) if at < len(self.prompt) else b""
        )
        return Explanation(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            restored_tokens=self.restored_tokens,
            computed_tokens=len(self.prompt) - self.cached_tokens,
            known_tokens=at,
            prompt_differs_at=differs.decode(errors="replace"),
            cache_differs_at=self.cache_differs_at,
            reason=self.reason,
            preempted=self.preempted,
        )
