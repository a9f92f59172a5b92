"""What a change of the cache did, and what one would do: counted, never estimated."""

from __future__ import annotations

import dataclasses
from typing import Any

from llama_runner.results import Explanation

__all__ = ["MessagePlan", "Plan", "Receipt"]


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What a change did. ``tokens_before = kept + dropped``, of a sequence or conversation; of a cache, its cells."""

    action: str
    tokens_before: int
    tokens_after: int
    kept: int
    """Tokens that stay as they were: no change makes them be computed again, but the cache may have lost some."""
    dropped: int
    """Tokens that are not where they were any more: removed, or behind something that changed."""
    computed: int = 0
    """Tokens that this call computed."""
    pending: int = 0
    """Tokens that the next call will compute, as things are now."""
    exact: bool = True
    """Whether what follows is what a computation from nothing gives."""
    reason: str = ""
    messages: tuple[str, ...] = ()
    """Ids of the messages that were removed or changed."""

    def __str__(self) -> str:
        parts = [f"{self.action}: {self.tokens_before} to {self.tokens_after} tokens, {self.kept} kept"]
        parts += [
            f"{n} {word}"
            for n, word in (
                (self.dropped, "dropped"),
                (self.computed, "computed"),
                (self.pending, "to be computed"),
            )
            if n
        ]
        return ", ".join(parts) + (f" ({self.reason})" if self.reason else "")

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "messages": list(self.messages)}


@dataclasses.dataclass(frozen=True, slots=True)
class MessagePlan:
    """One message's part of a plan."""

    role: str
    start: int
    """Its first token, and with ``stop`` the one behind its last; what stands between messages is the later one's."""
    stop: int
    cached: int
    """Tokens of it that would not be computed."""

    @property
    def computed(self) -> int:
        return self.stop - self.start - self.cached


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What generating from a list of messages would compute, as things are now."""

    explanation: Explanation
    messages: tuple[MessagePlan, ...]
    fits: bool
    """Whether the context can hold the prompt and at least one token more."""

    @property
    def prompt_tokens(self) -> int:
        return self.explanation.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self.explanation.cached_tokens

    @property
    def computed_tokens(self) -> int:
        return self.explanation.computed_tokens

    @property
    def reason(self) -> str:
        return self.explanation.reason

    def __str__(self) -> str:
        return str(self.explanation)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.explanation.to_dict(),
            "fits": self.fits,
            "messages": [dataclasses.asdict(message) for message in self.messages],
        }
