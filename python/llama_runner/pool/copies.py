"""A pool's books: the copies of each model, who waits for one, and what there is room for."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llama_runner.pool.spec import Measured, ModelSpec
from llama_runner.pool.worker_runner import WorkerRunner
from llama_runner.runner import LlamaRunner

__all__ = [
    "Copy",
    "Entry",
    "Runner",
    "State",
    "Ticket",
    "bytes_of",
    "conversation_of",
    "resume",
    "room_for",
]

Runner = LlamaRunner | WorkerRunner


class State(enum.Enum):
    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"


@dataclass(eq=False)
class Entry:
    """One name of a pool."""

    spec: ModelSpec
    measured: Measured | None = None
    """Measured anew for each load that finds no copy: the file may be another one by then."""
    measuring: bool = False
    pinned: bool = False
    copies: list[Copy] = field(default_factory=list)
    """In every state: each of them counts."""
    last_use: float | None = None
    restarts: int = 0
    """Of workers that were unloaded since."""
    conversations: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    """Of copies that were unloaded, by index: what ``generate_stateful`` goes on from when they are loaded again."""

    @property
    def name(self) -> str:
        return self.spec.name

    def free_index(self) -> int:
        taken = {copy.index for copy in self.copies}
        return next(index for index in range(len(taken) + 1) if index not in taken)


@dataclass(eq=False)
class Copy:
    """One runner, from the decision to load it to its end."""

    entry: Entry
    index: int
    measured: Measured
    state: State = State.LOADING
    begun: bool = False
    """Whether what had to be closed for it is gone. Before that its memory is promised, and not used."""
    runner: Runner | None = None
    checkouts: int = 0
    exclusive: bool = False
    last_use: int = 0
    """By the pool's own clock, in which no two uses fall together."""

    @property
    def idle(self) -> bool:
        return self.state is State.READY and not self.checkouts


@dataclass(eq=False)
class Ticket:
    """Someone who waits for a copy. ``load`` is the one whose loading decides about this ticket, if one does."""

    entry: Entry
    exclusive: bool
    future: Future[Copy] = field(default_factory=Future)
    load: Copy | None = None


def bytes_of(copies: Iterable[Copy]) -> int:
    """What copies take together: their contexts, and their weights as often as they are in memory."""
    total = 0
    seen: set[tuple[object, ...]] = set()
    for copy in copies:
        measured = copy.measured
        total += measured.context
        if measured.key is None:
            total += measured.weights
        elif measured.key not in seen:
            seen.add(measured.key)
            total += measured.weights
    return total


def room_for(copy: Copy, loaded: list[Copy], budget: int, optional: bool) -> list[Copy] | None:
    """What has to be closed so that ``copy`` fits, least recently used first; nothing is, for an optional one.

    None where that is not enough, or where what others are closing has to be gone first.
    """
    there = [*loaded, copy]
    staying = [other for other in there if other.state is not State.CLOSING]
    idle = [other for other in staying if other.idle and not other.entry.pinned]
    idle.sort(key=lambda other: other.last_use)
    evicted: list[Copy] = []
    while bytes_of(without(staying, evicted)) > budget:
        if optional or not idle:
            return None
        evicted.append(idle.pop(0))
    for other in evicted[-2::-1]:  # an older one may be too small to matter
        fewer = without(evicted, [other])
        if bytes_of(without(staying, fewer)) <= budget:
            evicted = fewer
    # once what is being closed is gone, there is a next time
    return evicted if bytes_of(without(there, evicted)) <= budget else None


def without(copies: list[Copy], others: list[Copy]) -> list[Copy]:
    return [copy for copy in copies if copy not in others]


def conversation_of(runner: Runner) -> npt.NDArray[np.int32]:
    """The tokens of its ``generate_stateful``."""
    return runner._conversation if isinstance(runner, WorkerRunner) else runner._stateful.tokens


def resume(runner: Runner, conversation: npt.NDArray[np.int32]) -> None:
    """Have a new runner go on from there: its cache has none of it, and the next turn reads it in."""
    if isinstance(runner, WorkerRunner):
        runner._conversation = conversation
    else:
        runner._stateful.restore(conversation)
