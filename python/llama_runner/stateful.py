"""What ``generate_stateful`` goes on from: one long text of prompts and answers, held in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from llama_runner._hold import OneAtATime
from llama_runner.engine import Engine
from llama_runner.engine.prefix import Node, common_length
from llama_runner.receipts import Receipt

__all__ = ["StatefulLog", "StatefulTurn"]

Tokens = npt.NDArray[np.int32]
NONE: Tokens = np.empty(0, dtype=np.int32)


class StatefulLog:
    """The tokens of all turns, and where each began. One turn at a time: a second thread gets ContextBusyError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = OneAtATime(
            "another thread is in generate_stateful(): the conversation takes one turn at a time"
        )
        self._pinned: Node | None = None  # where the text ends in the prefix tree
        self.tokens: Tokens = NONE
        self.starts: list[int] = []

    @contextlib.contextmanager
    def turn(self) -> Iterator[Self]:
        """Have it to oneself."""
        with self._turn.taken():
            try:
                yield self
            finally:
                if self._pinned is None and len(self):  # a turn that was to take its place came to nothing
                    self._pinned = self._engine.pin(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def with_prompt(self, new: Tokens, most: int | None = None) -> StatefulTurn:
        """The text and one more prompt: of more than ``most`` tokens the oldest turns go, down to half of that.

        The text does not change before ``commit``.
        """
        kept, starts, receipt = self.tokens, self.starts, None
        if most is not None and len(self) and len(self) + len(new) > most:
            kept, starts = self._shortened(max(0, most // 2 - len(new)))
            receipt = self._receipt(kept)
        if receipt is not None:  # the cells of what goes may be wanted for what stays
            self._pinned = self._engine.pin(NONE, self._pinned)
        return StatefulTurn(np.concatenate([kept, new]), [*starts, len(kept)], receipt)

    def commit(self, turn: StatefulTurn, answer: Tokens) -> None:
        """A turn is done: this is the text now, and its cells stay."""
        self.starts = turn.starts
        self._set(np.concatenate([turn.tokens, answer]))

    def restore(self, tokens: Tokens) -> None:
        """Go on from a text of another time, as one turn."""
        self.starts = [0] if len(tokens) else []
        self._set(tokens)

    def clear(self) -> None:
        """Forget it all."""
        self.restore(NONE)

    def drop_oldest(self, most: int) -> bool:
        """Drop the oldest turns until there are at most ``most`` tokens; whether anything went."""
        kept, starts = self._shortened(most)
        if len(kept) == len(self):
            return False
        self.starts = starts
        self._set(kept)
        return True

    def _set(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._pinned = self._engine.pin(tokens, self._pinned)

    def _shortened(self, most: int) -> tuple[Tokens, list[int]]:
        """The text without its oldest turns, and where the others begin then.

        The token that begins every text of this model stays.
        """
        bos = self._engine.vocab.bos
        head = self.tokens[: 1 if len(self) and bos is not None and int(self.tokens[0]) == bos else 0]
        for i, begin in enumerate(self.starts[1:], 1):
            if len(head) + len(self) - begin <= most:
                shift = begin - len(head)
                return np.concatenate([head, self.tokens[begin:]]), [
                    0,
                    *(s - shift for s in self.starts[i + 1 :]),
                ]
        return (self.tokens, self.starts) if len(self) <= most else (head.copy(), [0] if len(head) else [])

    def _receipt(self, kept: Tokens) -> Receipt | None:
        if len(kept) == len(self):
            return None
        same = common_length(self.tokens, kept)
        return Receipt(
            "gc",
            len(self),
            len(kept),
            same,
            len(self) - same,
            pending=len(kept) - same,
            reason="the oldest turns were dropped, and what followed them is computed anew",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class StatefulTurn:
    """A prompt with what it goes on from, and what made room for it."""

    tokens: Tokens
    starts: list[int]
    receipt: Receipt | None
