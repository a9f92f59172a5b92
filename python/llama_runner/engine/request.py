"""``Request``: one generation, from its place in the queue to its result."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Sequence
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
from llama_runner.results import Chunk, Completion, Explanation, Timings, TokenLogprob, Usage

__all__ = ["Request", "why_computed"]

ERRORS: dict[str, type[LlamaRunnerError]] = {
    "sampling": SamplingError,
    "no_room": ContextOverflowError,
    "decode": DecodeError,
    "closed": ClosedError,
    "poisoned": LlamaRuntimeError,
    "memory": OutOfMemoryError,
}


def why_computed(cached: int, most: int, known: int, differs: int | None) -> str:
    """Why no more of a prompt was cached, of ``most`` tokens that could have been; ``differs`` is the cache's token."""
    if cached >= most:
        return "all of it was known; what it has to leave is computed"
    if cached < known:
        return "this memory goes back to checkpoints alone, or what was saved is gone or damaged"
    if known == 0:
        return "nothing that is cached begins like it"
    return "the rest is new" if differs is None else "the cached text goes on differently"


class Request:
    """One generation in an engine. Its owner reads it with ``chunk`` or ``completion``; the engine does the rest."""

    def __init__(
        self,
        vocab: Vocab,
        prompt: npt.NDArray[np.int32],
        params: GenerationParams,
        chain: SamplerChain | None,
        *,
        tag: int,
        seed: int = 0,
        n_ctx: int,
        limit: int,
        priority: int,
        owner: str | None,
        notify: Callable[[], None] | None,
        want: str = "",
        want_from: int = 1,
        processor: int = -1,
        adapters: int = 0,
        key: Hashable = None,
        shown_tokens: Sequence[int] = (),
        endless: bool = False,
    ) -> None:
        self.vocab = vocab
        self.prompt = prompt
        self.params = params
        self.tag = tag
        self.seed = seed
        self.n_ctx = n_ctx
        self.limit = limit  # most tokens to sample
        self.endless = endless  # gets its cells as it comes to them, as without max_tokens
        self.priority = priority
        self.owner = owner
        self.notify = notify
        self.processor = processor
        self.key = key  # what it is computed with: nothing is shared between keys
        self.job = Job(
            vocab,
            prompt,
            chain=chain,
            max_tokens=limit,
            ignore_eos=params.ignore_eos,
            stop=params.stop,
            stop_tokens=params.stop_tokens,
            shown_tokens=shown_tokens,
            logprobs=params.logprobs,
            priority=priority,
            timeout=params.timeout,
            notify=notify is not None,
            want=(want,) if want else (),
            want_from=want_from,
            processor=processor,
            adapters=adapters,
            tag=tag,
        )
        # how many tokens at most may be taken from the cache: the rest must be computed for what it is to leave
        self.most = len(prompt) - (chain is not None or want in ("logits", "embedding"))
        self.scores = want == "logprobs"
        if self.scores:
            self.most = min(self.most, want_from - 1)
        # --- the engine's, under its lock
        self.engine: object = None  # held while this has not ended: nobody else may have it
        self.seq_id: int | None = None
        self.node: Node | None = None  # pinned while this runs: the part of its tokens that the tree knows
        # a checkpoint to be: after how many tokens, in which sequence
        self.mark: tuple[int, int] | None = None
        self.followers: list[Request] = []  # those that share its prompt, and sample from the same logits
        self.leader: Request | None = None  # of which it is a follower
        self.siblings = 1  # how many there are, or were, of its group
        self.sharing = False  # waits for another that reads the same
        self.queued = False  # its time in the queue has been counted
        self.preempted = 0
        self.held_back_at = -1  # how far it had come when there was no room, with nothing that could go
        self.grant: int | None = None  # cells of its owner's quota, before it asks for more
        self.cancelled = False
        self.submitted = time.perf_counter()
        self.admitted = 0.0
        self.deadline = None if params.timeout is None else self.submitted + params.timeout
        self.cached_tokens = 0
        self.restored_tokens = 0
        self.known_tokens = 0
        self.follows = False
        self.cache_differs_at = ""
        self.reason = "it never ran"
        # --- the reader's
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._end: str | None = None
        self._ended = 0.0

    # --- the engine's side

    @property
    def group(self) -> list[Request]:
        """It and its followers."""
        return [self, *self.followers]

    @property
    def n_tokens(self) -> int:
        """Tokens of its prompt and those that it has sampled."""
        return int(self.job.progress["n_tokens"])

    @property
    def n_resident(self) -> int:
        """How many of them are in the memory."""
        return int(self.job.progress["n_resident"])

    @property
    def seq_ids(self) -> list[int]:
        """The sequences that it is in: its own, and that of a checkpoint to be."""
        return [seq_id for seq_id in (self.seq_id, self.mark and self.mark[1]) if seq_id is not None]

    @property
    def unread(self) -> bool:
        """Whether it is a follower that waits for another to read their prompt."""
        return self.follows and not self.n_resident and not self.job.progress["fed_us"]

    def lead(self, followers: list[Request]) -> None:
        """Have others share what is computed for this one's prompt."""
        self.followers = followers
        for follower in followers:
            follower.leader = self
        for member in self.group:
            member.siblings = max(member.siblings, len(self.group))

    def note(self, cached: int, restored: int, known: int, differs: int | None) -> None:
        """What ``explain`` and ``usage`` will say; after a preemption, what they said the first time stays.

        Of the prompt's tokens that it had not got to by then, others may have computed some more meanwhile.
        """
        self.leader = None
        if self.follows:  # until now: what it has computed itself, it had not cached
            self.follows = False
            self.cached_tokens = int(self.job.progress["n_reached"] - self.job.progress["n_computed"])
        if self.admitted:
            skipped = min(cached, len(self.prompt)) - int(self.job.progress["n_reached"])
            if skipped > 0:
                self.cached_tokens += skipped
            return
        self.admitted = time.perf_counter()
        self.cached_tokens, self.restored_tokens, self.known_tokens = cached, restored, known
        if differs is not None:
            self.cache_differs_at = self.vocab.token_to_piece(differs, special=True).decode(errors="replace")
        self.reason = why_computed(cached, self.most, known, differs)

    def note_shared(self, leader: Request) -> None:
        """The same for one that shares another's prompt."""
        self.admitted = leader.admitted
        self.follows = True
        self.known_tokens = len(self.prompt)
        self.reason = "it shares the prompt of another that was sampled with it"

    def note_preempted(self) -> None:
        """What it has not read until now was cached for it; what it reads from now on may be for the second time."""
        if self.follows and self.job.progress["fed_us"]:
            self.cached_tokens = self.usage().cached_tokens
            self.follows = False

    def announce(self) -> None:
        """Wake whoever waits for it on an event loop."""
        if self.notify is not None:
            self.notify()

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
        """The typed error of a generation that ended with one; what a Python function raised is its cause."""
        progress, text = self.job.progress, self.job.error_text
        kind = ERRORS.get(str(progress["error"]), DecodeError)
        if kind is ContextOverflowError:
            return ContextOverflowError(text, len(self.prompt) + self.limit, self.n_ctx)
        if kind is DecodeError:
            code = re.search(r"llama_decode returned (-?\d+)", text)
            return DecodeError(text, code=int(code[1]) if code else -2)
        raised = self.job.raised
        if raised is not None:
            text = f"{text}: {type(raised).__name__}: {raised}"
        error = kind(text or "the engine was closed while this generation was under way")
        error.__cause__ = raised
        return error

    @property
    def ended(self) -> bool:
        """Whether the reader has had the last of it."""
        return self._end is not None

    def usage(self) -> Usage:
        """Tokens, counted: those cached are those whose computation was skipped."""
        cached = self.cached_tokens
        if self.follows:  # of a prompt that another was to read, it read what that one did not
            cached = max(0, len(self.prompt) - int(self.job.progress["n_computed"]))
        forced = min(int(self.job.progress["n_forced"]), len(self._tokens))  # of those that were taken
        return Usage(len(self.prompt), cached, len(self.prompt) - cached, len(self._tokens), forced)

    def completion(self) -> Completion:
        """The result, once the reader has had the last of it."""
        assert self._end is not None
        progress = self.job.progress
        if self._end == "error":
            raise self.error()
        usage = self.usage()
        computed = usage.computed_tokens if progress["fed_us"] else int(progress["n_computed"])
        first = progress["first_us"] or progress["last_us"]
        fed, added = progress["fed_us"] or first, progress["added_us"]
        waited = self.admitted - self.submitted if self.admitted else 0.0
        prompt_seconds = max(0.0, (fed - added) / 1e6) if added and fed else 0.0
        generating = max(0.0, (progress["last_us"] - fed) / 1e6) if fed else 0.0
        reason: Any = self._end
        tokens = np.asarray(self._tokens, dtype=np.int32)
        text = "".join(self._text)
        response = self.params.response(text, reason)
        if self.params.echo:
            text = self.vocab.detokenize(self.prompt, unparse_special=True) + text
        return Completion(
            text=text,
            tokens=tokens,
            finish_reason=reason,
            stop_match=self.job.stop_match,  # type: ignore[arg-type]
            usage=usage,
            timings=Timings(
                prompt_seconds=prompt_seconds,
                generation_seconds=generating,
                first_token_seconds=waited + prompt_seconds if first else self._ended - self.submitted,
                computed_tokens=computed,
                completion_tokens=len(tokens),
            ),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            seed=self.seed,
            explanation=self.explain(),
            response=response,
        )

    def explain(self) -> Explanation:
        """Which part of the prompt was known, where it first differed, and why the rest was computed."""
        at = self.known_tokens
        differs = b""
        if at < len(self.prompt):
            differs = self.vocab.token_to_piece(int(self.prompt[at]), special=True)
        usage = self.usage()
        return Explanation(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            restored_tokens=self.restored_tokens,
            computed_tokens=usage.computed_tokens,
            known_tokens=at,
            prompt_differs_at=differs.decode(errors="replace"),
            cache_differs_at=self.cache_differs_at,
            reason=self.reason,
            preempted=self.preempted,
            recomputed_tokens=max(0, int(self.job.progress["n_computed"]) - usage.computed_tokens),
        )
