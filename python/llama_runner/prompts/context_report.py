"""What a ``ContextBuilder`` hands back: messages, their tokens, and an account of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTS", "BuiltContext", "ContextReport", "Cut"]

PARTS = ("template", "system", "tools", "pinned", "history", "turn", "memories", "tool_results")


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """One thing that is not in the context, or not all of it."""

    part: str
    action: Literal["dropped", "shortened"]
    what: str
    """Its first words."""
    tokens: int
    """What is missing, in tokens of the text alone."""
    reason: str
    messages: tuple[int, ...] = ()
    """Places in the history, where it is of the history."""


@dataclasses.dataclass(frozen=True, slots=True)
class ContextReport:
    """The account of a context. ``sum(report.parts.values()) == report.total``, tokens of the rendered prompt."""

    budget: int
    total: int
    """Tokens of the whole prompt, as the model gets them."""
    parts: Mapping[str, int]
    """Tokens that each part adds to the rendering: ``template`` is what the chat template writes around empty texts,
    ``turn`` the last user message and what follows it, ``history`` what was before. Where a template puts in a system
    text of its own when there is none, or sets texts differently when others are there, the difference shows here."""
    included: Mapping[str, int]
    """How many: messages of history and turn, memories, tool results, tools."""
    cut: tuple[Cut, ...]
    trimmed: bool
    """Whether the history was cut in this build, so that the prompt begins differently than the one before."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.total} of {self.budget} tokens"]
        lines += [f"  {part:<12} {n:>7}" for part, n in self.parts.items() if n]
        lines += [
            f"  {cut.action} {cut.part}: {cut.what!r} ({cut.tokens} tokens): {cut.reason}" for cut in self.cut
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BuiltContext:
    """A conversation that fits."""

    messages: list[dict[str, Any]]
    """In OpenAI's form, for ``ChatTemplate.render`` or ``apply``, together with ``tools``."""
    tools: list[dict[str, Any]] | None
    prompt: str
    """The messages as the chat template renders them, with the start of the answer."""
    tokens: NDArray[np.int32]
    """The prompt's tokens, ready to be generated from."""
    dropped: list[dict[str, Any]]
    """The messages of the history that are not in it, oldest first: what a summary could stand for."""
    report: ContextReport

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)
