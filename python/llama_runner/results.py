"""What a generation gives back: text, tokens, why it ended, what it cost. Immutable, and plain to JSON."""

from __future__ import annotations

import builtins
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._response import Response
from .errors import InvalidArgumentError

__all__ = [
    "Chunk",
    "Completion",
    "ContextInfo",
    "Explanation",
    "FinishReason",
    "IdlePrefix",
    "SequenceInfo",
    "SessionInfo",
    "Timings",
    "TokenLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length", "eos", "cancelled", "timeout"]
"""``stop``: a stop string; ``eos``: the model ended; ``length``: max_tokens or the context's end."""

_Logprobs = tuple["TokenLogprob", ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, counted and not estimated: ``prompt_tokens = cached_tokens + computed_tokens``."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the cache already, so that their prefill was skipped."""
    computed_tokens: int
    """The others. Of a generation that ended before its prompt was read, ``timings`` says how many it came to."""
    completion_tokens: int
    forced_tokens: int = 0
    """Of the completion's, those that a constraint left no choice about: decoded together with the one before them."""

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.cached_tokens, self.computed_tokens, self.completion_tokens) < 0:
            raise InvalidArgumentError(f"a token count cannot be negative: {self}")
        if not 0 <= self.forced_tokens <= self.completion_tokens:
            raise InvalidArgumentError(f"forced_tokens are some of completion_tokens: {self}")
        if self.prompt_tokens != self.cached_tokens + self.computed_tokens:
            raise InvalidArgumentError(f"prompt_tokens must be cached_tokens + computed_tokens: {self}")

    def __add__(self, other: Usage) -> Usage:
        """What two generations cost together."""
        names = [field.name for field in dataclasses.fields(self)]
        return Usage(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "computed_tokens": self.computed_tokens,
            "completion_tokens": self.completion_tokens,
            "forced_tokens": self.forced_tokens,
            "total_tokens": self.total_tokens,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why as much of a prompt was computed as was."""

    prompt_tokens: int
    cached_tokens: int
    restored_tokens: int
    """Of the cached ones, those that came back from host memory or disk."""
    computed_tokens: int
    known_tokens: int
    """How far the prompt agreed with something that the cache knew of."""
    prompt_differs_at: str
    """The text of the prompt's token where it first differs from that; empty where it does not."""
    cache_differs_at: str
    """The text of the cache's token there."""
    reason: str
    preempted: int = 0
    """How many times the request gave way to others."""
    recomputed_tokens: int = 0
    """Tokens of the prompt that were read again after that, or after a failed step."""

    def __str__(self) -> str:
        return f"{self.cached_tokens} of {self.prompt_tokens} tokens were cached: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one generated token, and of the likeliest in its place, best first."""

    token: int
    text: str
    """``bytes`` for reading: half a character shows as U+FFFD."""
    bytes: builtins.bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "text": self.text,
            "bytes": list(self.bytes),
            "logprob": _json_number(self.logprob),
            "top": [{"token": token, "logprob": _json_number(logprob)} for token, logprob in self.top],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, by the wall clock.

    ``first_token_seconds`` runs from the call to the first token, ``generation_seconds`` from the end
    of the prefill to the last token. The two counts are those that the rates divide.
    """

    prompt_seconds: float
    generation_seconds: float
    first_token_seconds: float
    computed_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_seconds(self) -> float:
        return self.prompt_seconds + self.generation_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prefill, without tokens from the cache; 0 where nothing was computed."""
        return _rate(self.computed_tokens, self.prompt_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the generation; 0 where nothing was generated."""
        return _rate(self.completion_tokens, self.generation_seconds)

    def __repr__(self) -> str:
        return (
            f"Timings(prompt {self.prompt_seconds:.3f} s, {self.prompt_tokens_per_second:.1f} tokens/s; "
            f"generation {self.generation_seconds:.3f} s, {self.tokens_per_second:.1f} tokens/s; "
            f"first token after {self.first_token_seconds:.3f} s)"
        )

    def to_dict(self) -> dict[str, float]:
        return {
            "prompt_seconds": self.prompt_seconds,
            "generation_seconds": self.generation_seconds,
            "first_token_seconds": self.first_token_seconds,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a stream. The text of all chunks together is the text of the ``Completion``.

    ``text`` can be empty and the next one longer: half a character and a possible stop string are held
    back until they are decided. Only the last chunk has a ``finish_reason``.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: _Logprobs | None = None
    finish_reason: FinishReason | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "logprobs": _logprobs_dict(self.logprobs),
            "finish_reason": self.finish_reason,
        }


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A finished generation. ``str(completion)`` is its text.

    Two are equal when they say the same: all but the timings, which never agree, is compared.
    """

    text: str
    tokens: npt.NDArray[np.int32]
    """The tokens generated, as a read-only int32 array; with a stop string more than ``text`` shows."""
    finish_reason: FinishReason
    stop_match: str | None
    """The stop string that ended the text, if one did."""
    usage: Usage
    timings: Timings
    logprobs: _Logprobs | None
    seed: int
    """The seed really used: passed back in, it repeats the generation."""
    explanation: Explanation | None = None
    """Why as much of the prompt was computed as was; not compared."""
    response: Response | None = None
    """What the text of a constrained generation is to become; not compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _frozen_tokens(self.tokens))

    @property
    def parsed(self) -> Any:
        """The answer as what was asked for: a value of the type given as ``json_schema``, or JSON's plain values for a
        schema; the text itself for ``regex``, ``choices``, ``lark`` and ``grammar``; None without any of these.

        Raises ResponseParseError where the generation was cut off before that. Made anew at each call.
        """
        return None if self.response is None else self.response.parse()

    def _compared(self) -> tuple[object, ...]:
        told = (self.text, self.tokens.tobytes(), self.finish_reason, self.stop_match)
        return (*told, self.usage, self.logprobs, self.seed)

    def __eq__(self, other: object) -> bool:
        return self._compared() == other._compared() if isinstance(other, Completion) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def __reduce__(self) -> tuple[type[Completion], tuple[object, ...]]:
        # NumPy forgets read-only over a pickle; going through the constructor sets it again.
        return Completion, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def as_type(self, kind: Any) -> Completion:
        """The same with ``parsed`` giving a value of this type; itself where there is nothing to change."""
        if self.response is None or kind is None:
            return self
        return dataclasses.replace(self, response=dataclasses.replace(self.response, type=kind))

    def explain(self) -> Explanation:
        """Which part of the prompt was cached, where it first differed from that, and why the rest was computed."""
        if self.explanation is None:
            raise InvalidArgumentError("this completion was not made by an engine: nobody knows")
        return self.explanation

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        why = self.finish_reason if self.stop_match is None else f"{self.finish_reason} {self.stop_match!r}"
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return (
            f"<Completion {text!r}: {why}, {self.usage.completion_tokens} tokens at "
            f"{self.timings.tokens_per_second:.1f}/s, prompt {self.usage.prompt_tokens} "
            f"({self.usage.cached_tokens} cached), seed {self.seed}>"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "tokens": self.tokens.tolist(),
            "finish_reason": self.finish_reason,
            "stop_match": self.stop_match,
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "logprobs": _logprobs_dict(self.logprobs),
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceInfo:
    """One sequence in the KV cache; both positions are -1 where it is empty."""

    seq_id: int
    pos_min: int
    pos_max: int
    n_tokens: int

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session, as the cache sees it."""

    n_messages: int
    n_tokens: int
    resident_tokens: int
    """Of its tokens, those in the KV memory, which others may share."""
    idle_seconds: float
    owner: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class IdlePrefix:
    """A cached prefix that nobody uses, and what its eviction would free."""

    n_tokens: int
    """Its length from the start of the text."""
    n_cells: int
    """Cells that no other prefix shares with it."""
    idle_seconds: float
    text: str
    """Its end."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class ContextInfo:
    """How full a context is.

    ``used`` counts cells: one that several sequences share counts once, so ``used`` can be less than
    the tokens of all sequences together.
    """

    n_ctx: int
    used: int
    n_seq_max: int
    sequences: tuple[SequenceInfo, ...] = ()
    sessions: tuple[SessionInfo, ...] = ()
    """Of the runner's sessions, those that have tokens."""
    next_to_go: tuple[IdlePrefix, ...] = ()
    """Prefixes that nobody uses, in the order in which they would be evicted."""

    def __post_init__(self) -> None:
        if self.n_ctx < 1 or not 0 <= self.used <= self.n_ctx:
            raise InvalidArgumentError(f"used must be from 0 to n_ctx {self.n_ctx}, not {self.used}")

    @property
    def capacity(self) -> int:
        """Cells in all: ``n_ctx``."""
        return self.n_ctx

    @property
    def free(self) -> int:
        return self.n_ctx - self.used

    @property
    def ratio(self) -> float:
        """Used share of the context, 0 to 1."""
        return self.used / self.n_ctx

    def __str__(self) -> str:
        count = len(self.sequences)
        return (
            f"{self.used} of {self.n_ctx} cells used ({self.ratio:.0%}), "
            f"{count} of {self.n_seq_max} sequence{'' if self.n_seq_max == 1 else 's'}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "n_ctx": self.n_ctx,
            "used": self.used,
            "free": self.free,
            "ratio": self.ratio,
            "n_seq_max": self.n_seq_max,
            "sequences": [sequence.to_dict() for sequence in self.sequences],
            "sessions": [session.to_dict() for session in self.sessions],
            "next_to_go": [prefix.to_dict() for prefix in self.next_to_go],
        }


def _frozen_tokens(tokens: Sequence[int] | npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """A copy of its own: whoever holds the original, or a view below it, cannot change a result."""
    frozen = np.array(tokens, dtype=np.int32)
    if frozen.ndim != 1:
        raise InvalidArgumentError(f"tokens must be a flat array, not one of shape {frozen.shape}")
    frozen.setflags(write=False)
    return frozen


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _json_number(value: float) -> float | None:
    """JSON has no infinity, and a token that a grammar ruled out has the log-probability -inf."""
    return value if math.isfinite(value) else None


def _logprobs_dict(logprobs: _Logprobs | None) -> list[dict[str, Any]] | None:
    return None if logprobs is None else [logprob.to_dict() for logprob in logprobs]
