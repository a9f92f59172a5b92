"""Which messages go when a conversation has become too long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from llama_runner.session.message import Message

__all__ = ["KEPT", "fewest_dropped", "turns_of"]

KEPT = 0.75
"""Of the tokens that there is room for, so much is filled after dropping: the prefix then stays for many turns."""

T = TypeVar("T")


def turns_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """What the system says first, and then the turns: each begins with a message of the user."""
    at = 0
    while at < len(messages) and messages[at].role in ("system", "developer"):
        at += 1
    turns: list[list[Message]] = []
    for message in messages[at:]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:at]), turns


def fewest_dropped(
    messages: Sequence[Message],
    pinned: Collection[str],
    attempt: Callable[[list[Message]], T],
    n_tokens: Callable[[T], int],
    most: int,
    *,
    keeps_last: bool,
) -> tuple[list[Message], T]:
    """Drop the oldest turns, as few as bring a prompt down to ``most`` tokens, or all that may go.

    A turn with a pinned message stays; so does the last one, where nothing comes after it (``keeps_last``). ``attempt``
    renders what is left. Returns the messages that stay, and what was rendered.
    """
    first, turns = turns_of(messages)
    end = len(turns) - (1 if keeps_last and turns else 0)
    may_go = [i for i, turn in enumerate(turns[:end]) if not any(message.id in pinned for message in turn)]

    def without(n: int) -> list[Message]:
        gone = set(may_go[:n])
        return [*first, *(message for i, turn in enumerate(turns) if i not in gone for message in turn)]

    tried: dict[int, T] = {}

    def fits(n: int) -> bool:
        tried[n] = attempt(without(n))
        return n_tokens(tried[n]) <= most

    low, high = 0, len(may_go)
    while low < high:  # the fewest turns with which it fits
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    if low not in tried:
        fits(low)
    return without(low), tried[low]
