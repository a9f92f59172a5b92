"""``AdapterSets``: which LoRA adapters requests are computed with, and the numbers that the loop knows them by.

``take`` and ``release`` want the engine's lock held, and are given what pauses the loop.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from llama_runner._check import check_float
from llama_runner.core import Context, DecodeLoop, LoraAdapter
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["AdapterSets", "Adapters"]

Paused = Callable[[], contextlib.AbstractContextManager[Context]]
Adapters = Mapping[LoraAdapter, float] | Sequence[tuple[LoraAdapter, float]]


class AdapterSets:
    """The sets that requests name; the loop knows each for as long as one does."""

    def __init__(self, loop: DecodeLoop) -> None:
        self._model = loop.context.model
        self._loop = loop
        self._numbers: dict[Hashable, int] = {}
        self._users: dict[Hashable, int] = {}  # how many requests are computed with each
        self._next = itertools.count(1)

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, adapters: Adapters | None) -> Hashable:
        """Prefixes are shared among requests with the same: None without adapters, else their digests and scales."""
        if not adapters:
            return None
        pairs = pairs_of(adapters)
        for pair in pairs:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], LoraAdapter)):
                raise ArgumentTypeError(f"adapters maps each LoraAdapter to its scale, and has {pair!r:.60}")
            if pair[0].model is not self._model:
                raise InvalidArgumentError(f"{pair[0]!r} is of another model than {self._model!r}")
            check_float("the scale of an adapter", pair[1], -1e30, 1e30)
        key = tuple(sorted((str(adapter.digest), float(scale)) for adapter, scale in pairs if scale))
        if len({digest for digest, _ in key}) < len(key):
            raise InvalidArgumentError("adapters has one of them twice")
        return key or None

    def take(self, adapters: Adapters | None, n: int, paused: Paused) -> tuple[Hashable, int]:
        """What ``n`` requests are computed with: the key of their prefixes, and the set's number.

        ``release`` it as many times as one of them has ended.
        """
        key = self.key(adapters)
        if key is None or adapters is None:
            return None, 0
        self._users[key] = self._users.get(key, 0) + n
        if key not in self._numbers:
            try:
                self._numbers[key] = self._introduce(pairs_of(adapters), paused)
            except BaseException:
                del self._users[key]
                raise
        return key, self._numbers[key]

    def _introduce(self, pairs: list[tuple[LoraAdapter, float]], paused: Paused) -> int:
        """Tell the loop of them; returns their number."""
        number = next(self._next)
        with paused() as context:
            # it checks them against the graph, which a later step relies on
            try:
                context.set_adapters(dict(pairs))
                context.set_adapters(None)
            finally:
                self._loop.adapters_changed()
            self._loop.set_adapters(number, [(adapter, float(scale)) for adapter, scale in pairs if scale])
        return number

    def release(self, key: Hashable, n: int, paused: Paused) -> None:
        """So many requests with them are no more."""
        self._users[key] -= n
        if self._users[key] == 0:
            del self._users[key]
            number = self._numbers.pop(key)
            with paused():
                self._loop.set_adapters(number, ())


def pairs_of(adapters: Any) -> list[Any]:
    """Adapters and scales, however they were given; what is in the pairs is not looked at."""
    if isinstance(adapters, (str, bytes)) or not isinstance(adapters, (Mapping, Sequence)):
        raise ArgumentTypeError(f"adapters={adapters!r:.60}: a dict of LoraAdapter and scale, or such pairs")
    return list(adapters.items() if isinstance(adapters, Mapping) else adapters)
