"""Cells of a KV memory: what llama.cpp says that they hold, and an account of what they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from llama_runner.errors import CellMismatchError

if TYPE_CHECKING:
    from llama_runner.core import Memory

__all__ = ["CellAccount", "CellTable"]

END = 1 << 31
SHOWN = 20  # differences that an error lists


@dataclass(frozen=True, slots=True, eq=False)
class CellTable:
    """The cells of one part of a memory, in one stream; ``Memory.cells`` makes them.

    ``kind`` is ``"full"`` for layers that attend to everything, ``"window"`` for those with a sliding window of
    ``window`` positions, ``"state"`` for recurrent ones, whose cell is the state after a position. With
    ``kv_unified=False`` cells are in streams, each of the one sequence with that number; otherwise ``stream`` is 0.
    """

    kind: Literal["full", "window", "state"]
    stream: int
    window: int
    used: int  # cells that hold something
    end: int  # one more than the highest of these
    pos: NDArray[np.int32]  # (n_cells,): the position in each cell, -1 where it is free
    seqs: NDArray[np.uint64]  # (n_cells, words): bit s % 64 of word s // 64 where sequence s owns the cell

    def owned_by(self, seq_id: int) -> NDArray[np.intp]:
        """Indices of the cells that a sequence owns, in the order of its positions."""
        word = self.seqs[:, seq_id // 64]
        owned = np.flatnonzero(word >> np.uint64(seq_id % 64) & np.uint64(1))
        return owned[np.argsort(self.pos[owned], kind="stable")]

    def owners(self, cell: int) -> list[int]:
        """The sequences that own a cell."""
        return bits_of(mask_of_words(self.seqs[cell].tolist()))


@dataclass(slots=True)
class Run:
    """Cells with consecutive positions and the same owners; ``depth`` of them at each position (``seq_div``)."""

    pos: int
    length: int
    depth: int
    owners: int  # a bit for each sequence; 0 once the run is no more

    @property
    def end(self) -> int:
        return self.pos + self.length

    def __len__(self) -> int:
        return self.length * self.depth


@dataclass(frozen=True, slots=True)
class Saved:
    """What an account had of one sequence, or of all (``seq_id`` None), when it was saved."""

    seq_id: int | None
    runs: tuple[tuple[int, tuple[int, int, int, int]], ...]  # stream, and the run's fields
    states: tuple[tuple[int, int], ...]


class CellAccount:
    """Who owns which position of a memory, kept in Python beside it.

    Give it every change that the memory was given and accepted, in the same words; ``verify`` compares the two. It
    keeps runs of positions, so that its size goes with the forks and edits that a memory has seen and not with its
    tokens. A cell that several sequences share is one cell, and counted once.

    Of a sliding window it does not know when llama.cpp lets go of a position that no token attends to any more: it
    demands that the windowed part has the end of what the full one has, as far as the next token attends to it.
    No thread rule of its own; use it where the memory is used.
    """

    def __init__(
        self,
        n_seq_max: int,
        *,
        kinds: Iterable[Literal["full", "window", "state"]] = ("full",),
        unified: bool = True,
        window: int = 0,
    ) -> None:
        self.n_seq_max = n_seq_max
        self.kinds = frozenset(kinds)
        self.unified = unified
        self.window = window
        self._streams: list[list[Run]] = [[] for _ in range(1 if unified else n_seq_max)]
        self._states: list[tuple[int, int]] = []  # position, owners
        self._tails: dict[int, Run] = {}  # for each set of owners the run that grew last

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """An account of what a memory holds now."""
        tables = memory.cells()
        window = max((table.window for table in tables), default=0)
        full = [table for table in tables if table.kind == "full"]
        account = cls(
            memory.context.n_seq_max,
            kinds={table.kind for table in tables},
            unified=len(full) < 2,
            window=window,
        )
        for table in full:
            for pos, owners in sorted(entries(table), key=lambda entry: (entry[1], entry[0])):
                account._grow(table.stream, pos, owners)
        account._states = [entry for table in tables if table.kind == "state" for entry in entries(table)]
        return account

    # --- changes, in the words of Batch, Memory and Context

    def extend(self, seq_ids: int | Sequence[int], n: int = 1, pos: int | None = None) -> None:
        """``n`` rows that were decoded, at ``pos`` or after the last position; each of all of ``seq_ids``."""
        ids = [seq_ids] if isinstance(seq_ids, int) else list(seq_ids)
        start = self.pos_max(ids[0]) + 1 if pos is None else pos
        owners = sum(1 << seq for seq in ids)
        if "full" in self.kinds:
            self._grow(0 if self.unified else ids[0], start, owners, n)
        if "state" in self.kinds:
            self._disown(owners)
            self._states.append((start + n - 1, owners))

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> None:
        """A removal that the memory returned True for."""
        low, high = bounds(p0, p1)
        bit = 1 << seq_id
        for run in self._select(seq_id, low, high):
            run.owners &= ~bit
        self._tidy(seq_id)
        state = self._state(seq_id)
        if low <= state < high:
            self._disown(bit)
            if low > 0:  # a snapshot of before the tail
                self._states.append((low - 1, bit))

    def seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int = -1, p1: int = -1) -> None:
        low, high = bounds(p0, p1)
        bit = 1 << seq_id_dst
        if seq_id_src == seq_id_dst:
            return
        for run in self._select(seq_id_src, low, high):
            if self.unified:
                run.owners |= bit
            else:
                self._streams[seq_id_dst].append(Run(run.pos, run.length, run.depth, bit))
        self._tidy(seq_id_dst)
        self._states = [(pos, owners | bit * (owners >> seq_id_src & 1)) for pos, owners in self._states]

    def seq_keep(self, seq_id: int) -> None:
        for other in range(self.n_seq_max):
            if other != seq_id:
                self.seq_rm(other)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """A shift; of cells that others share as well, as with ``shared=True``."""
        low, high = bounds(p0, p1)
        for run in self._select(seq_id, low, high):
            run.pos += delta
        self._move_state(seq_id, low, high, lambda pos: pos + delta)

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        low, high = bounds(p0, p1)
        runs = self._runs(seq_id)
        for run in self._select(seq_id, low, high):
            for piece in divided(run, d):
                runs.append(piece)
            run.owners = 0
        self._tidy(seq_id)
        self._move_state(seq_id, low, high, lambda pos: pos // d)

    def clear(self) -> None:
        for runs in self._streams:
            runs.clear()
        self._states.clear()
        self._tails.clear()

    def save(self, seq_id: int | None = None) -> Saved:
        """What ``state_seq_get`` saves, or ``state_get`` without a sequence; for ``restore``."""
        mask = -1 if seq_id is None else 1 << seq_id
        runs = tuple(
            (stream, (run.pos, run.length, run.depth, run.owners & mask))
            for stream, held in enumerate(self._streams)
            for run in held
            if run.owners & mask
        )
        return Saved(
            seq_id, runs, tuple((pos, owners & mask) for pos, owners in self._states if owners & mask)
        )

    def restore(self, saved: Saved, seq_id: int | None = None) -> None:
        """What ``state_seq_set`` restored to ``seq_id``, or ``state_set`` without one: with cells of their own."""
        if saved.seq_id is None:
            self.clear()
            for stream, fields in saved.runs:
                self._streams[stream].append(Run(*fields))
            self._states = list(saved.states)
            return
        seq = saved.seq_id if seq_id is None else seq_id
        self.seq_rm(seq)
        for _, (pos, length, depth, _) in saved.runs:
            self._runs(seq).append(Run(pos, length, depth, 1 << seq))
        self._states += [(pos, 1 << seq) for pos, _ in saved.states]

    def step_back(self, saved: Saved, seq_id: int | None = None) -> None:
        """What ``state_seq_set`` of a partial state did: the sequence goes back to the last position of ``saved``."""
        seq = saved.seq_id if seq_id is None else seq_id
        assert seq is not None, "a partial state is that of a sequence"
        ends = [fields[0] + fields[1] for _, fields in saved.runs] + [pos + 1 for pos, _ in saved.states]
        self._disown(1 << seq)
        self.seq_rm(seq, max(ends), -1)
        self._states += [(pos, 1 << seq) for pos, _ in saved.states]

    # --- what it says

    @property
    def n_used(self) -> int:
        """Cells in use, each counted once; states of a recurrent memory. As ``Memory.n_used``."""
        if "full" in self.kinds:
            return sum(len(run) for runs in self._streams for run in runs)
        return len(self._states)

    def n_cells(self, seq_id: int) -> int:
        """Cells that a sequence owns, alone or with others."""
        return sum(len(run) for run in self._runs(seq_id) if run.owners >> seq_id & 1)

    def n_own(self, seq_id: int) -> int:
        """Cells that would be free if a sequence were removed."""
        return sum(len(run) for run in self._runs(seq_id) if run.owners == 1 << seq_id)

    def runs(self, seq_id: int) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """(first position, one past the last, cells at each, owners) of what a sequence owns, by position."""
        own = [run for run in self._runs(seq_id) if run.owners >> seq_id & 1]
        return sorted((run.pos, run.end, run.depth, tuple(bits_of(run.owners))) for run in own)

    def shared(self, seq_id: int, p0: int = -1, p1: int = -1) -> list[int]:
        """Other sequences that own a cell of this one in a range."""
        low, high = bounds(p0, p1)
        owners = 0
        for run in self._runs(seq_id):
            if run.owners >> seq_id & 1 and max(low, run.pos) < min(high, run.end):
                owners |= run.owners
        return [seq for seq in bits_of(owners) if seq != seq_id]

    def pos_min(self, seq_id: int) -> int:
        """As ``Memory.seq_pos_min``, but for a sliding window, whose first position only the memory knows."""
        held = [run.pos for run in self._runs(seq_id) if run.owners >> seq_id & 1]
        first = min(held, default=-1)
        if "state" not in self.kinds:
            return first
        return max(first, self._state(seq_id))

    def pos_max(self, seq_id: int) -> int:
        """As ``Memory.seq_pos_max``."""
        last = max((run.end - 1 for run in self._runs(seq_id) if run.owners >> seq_id & 1), default=-1)
        if "state" not in self.kinds:
            return last
        return min(last, self._state(seq_id)) if "full" in self.kinds else self._state(seq_id)

    def verify(self, memory: Memory) -> None:
        """Compare with the positions and the cells of ``memory``; CellMismatchError lists what differs."""
        differences = [*self._compare_positions(memory), *self._compare_cells(memory.cells())]
        if differences:
            shown = "\n  ".join(differences[:SHOWN])
            raise CellMismatchError(
                f"the account and the memory differ in {len(differences)} things:\n  {shown}", differences
            )

    # --- inside

    def _runs(self, seq_id: int) -> list[Run]:
        return self._streams[0 if self.unified else seq_id]

    def _grow(self, stream: int, pos: int, owners: int, n: int = 1) -> None:
        tail = self._tails.get(owners)
        if tail is None or (tail.owners, tail.depth, tail.end) != (owners, 1, pos):
            fits = (
                run for run in self._streams[stream] if (run.owners, run.depth, run.end) == (owners, 1, pos)
            )
            tail = next(fits, None)
            if tail is None:
                tail = Run(pos, 0, 1, owners)
                self._streams[stream].append(tail)
            self._tails[owners] = tail
        tail.length += n

    def _select(self, seq_id: int, low: int, high: int) -> list[Run]:
        """The runs of a sequence within a range, cut off at its ends."""
        runs = self._runs(seq_id)
        chosen: list[Run] = []
        for run in list(runs) if low < high else ():
            if not run.owners >> seq_id & 1 or run.end <= low or high <= run.pos:
                continue
            if run.pos < low:
                runs.append(Run(run.pos, low - run.pos, run.depth, run.owners))
                run.pos, run.length = low, run.end - low
            if run.end > high:
                runs.append(Run(high, run.end - high, run.depth, run.owners))
                run.length = high - run.pos
            chosen.append(run)
        return chosen

    def _tidy(self, seq_id: int) -> None:
        """Drop what nobody owns, and join what was cut and fits again."""
        runs = self._runs(seq_id)
        alive = sorted((run for run in runs if run.owners), key=lambda run: (run.owners, run.depth, run.pos))
        runs.clear()
        for run in alive:
            last = runs[-1] if runs else None
            if last and (last.owners, last.depth, last.end) == (run.owners, run.depth, run.pos):
                last.length += run.length
                run.owners = 0
                if self._tails.get(last.owners) is run:
                    self._tails[last.owners] = last
            else:
                runs.append(run)

    def _state(self, seq_id: int) -> int:
        return next((pos for pos, owners in self._states if owners >> seq_id & 1), -1)

    def _disown(self, mask: int) -> None:
        self._states = [(pos, owners & ~mask) for pos, owners in self._states if owners & ~mask]

    def _move_state(self, seq_id: int, low: int, high: int, move: Callable[[int], int]) -> None:
        self._states = [
            (move(pos) if owners >> seq_id & 1 and low <= pos < high else pos, owners)
            for pos, owners in self._states
        ]

    def _compare_positions(self, memory: Memory) -> Iterator[str]:
        for seq in range(self.n_seq_max):
            for name, mine, real in (
                ("pos_min", self.pos_min(seq), memory.seq_pos_min(seq)),
                ("pos_max", self.pos_max(seq), memory.seq_pos_max(seq)),
            ):
                if mine != real and not ("window" in self.kinds and name == "pos_min"):
                    yield f"sequence {seq}: {name} is {mine} here and {real} in the memory"
        if self.n_used != memory.n_used:
            yield f"{self.n_used} cells are in use here and {memory.n_used} in the memory"

    def _compare_cells(self, tables: list[CellTable]) -> Iterator[str]:
        full = {table.stream: table for table in tables if table.kind == "full"}
        for table in tables:
            held = np.flatnonzero(table.pos >= 0)
            if (len(held), held[-1] + 1 if len(held) else 0) != (table.used, table.end):
                yield f"{table.kind} {table.stream}: {table.used} cells below {table.end} are said to be in use"
            if table.kind == "window":
                yield from self._compare_window(table, full[table.stream])
            elif table.kind == "state":
                yield from differing("state", table, list(self._states))
            else:
                expected = [
                    (pos, run.owners)
                    for run in self._streams[table.stream]
                    for pos in range(run.pos, run.end)
                    for _ in range(run.depth)
                ]
                yield from differing(f"full {table.stream}", table, expected)

    def _compare_window(self, table: CellTable, full: CellTable) -> Iterator[str]:
        if not table.seqs[table.pos >= 0].any(axis=1).all() or table.seqs[table.pos < 0].any():
            yield f"window {table.stream}: a cell without an owner holds a position, or the other way round"
        for seq in range(self.n_seq_max) if self.unified else [table.stream]:
            mine = np.sort(full.pos[full.owned_by(seq)])
            real = np.sort(table.pos[table.owned_by(seq)])
            kept = mine[len(mine) - len(real) :]
            if not np.array_equal(kept, real):
                yield f"window {table.stream}: sequence {seq} has other positions than in the full part"
            elif len(real) < len(mine) and mine[len(mine) - len(real) - 1] > mine[-1] + 1 - self.window:
                first = real[0] if len(real) else None
                yield f"window {table.stream}: sequence {seq} begins at {first}, too late for what follows {mine[-1]}"


def bounds(p0: int, p1: int) -> tuple[int, int]:
    return max(p0, 0), END if p1 < 0 else p1


def divided(run: Run, d: int) -> Iterator[Run]:
    """The run with each position divided by ``d``: whole groups in one run, what is left at either end."""
    first, last = -(-run.pos // d), run.end // d  # quotients of the groups that are whole
    if first > last:
        yield Run(run.pos // d, 1, run.depth * run.length, run.owners)
        return
    if head := first * d - run.pos:
        yield Run(run.pos // d, 1, run.depth * head, run.owners)
    if last > first:
        yield Run(first, last - first, run.depth * d, run.owners)
    if tail := run.end - last * d:
        yield Run(last, 1, run.depth * tail, run.owners)


def bits_of(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def mask_of_words(words: list[int]) -> int:
    return sum(word << 64 * i for i, word in enumerate(words))


def entries(table: CellTable) -> list[tuple[int, int]]:
    """(position, owners) of each cell that holds something."""
    held = np.flatnonzero(table.pos >= 0)
    words = table.seqs[held].tolist()
    return [(pos, mask_of_words(row)) for pos, row in zip(table.pos[held].tolist(), words, strict=True)]


def differing(where: str, table: CellTable, expected: list[tuple[int, int]]) -> Iterator[str]:
    real = entries(table)
    if sorted(real) == sorted(expected):
        return
    mine, theirs = Counter(expected), Counter(real)
    for (pos, owners), n in sorted((mine - theirs).items()):
        yield f"{where}: position {pos} of {bits_of(owners)} is missing from the memory ({n} cells)"
    for (pos, owners), n in sorted((theirs - mine).items()):
        yield f"{where}: position {pos} of {bits_of(owners)} is in the memory alone ({n} cells)"
