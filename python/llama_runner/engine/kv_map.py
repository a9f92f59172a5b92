"""``KvMap``: who owns which cell of the KV memory, and since when it has been idle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llama_runner.cells import CellTable

__all__ = ["KvMap", "Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """What a sequence id stands for: a request that runs, a checkpoint that it leaves, or a cached prefix."""

    kind: Literal["request", "checkpoint", "prefix"]
    owner: str | None  # whom a quota counts for
    tag: int | None  # of the request
    n_tokens: int
    idle_seconds: float  # since it was of use
    pinned: bool  # never evicted as long as it is so


@dataclass(frozen=True, slots=True)
class KvMap:
    """A picture of the KV memory between two steps.

    ``tables`` are those of ``Memory.cells``: the cells of each part of the memory. ``sequences`` says what each
    sequence id in them stands for.
    """

    tables: tuple[CellTable, ...]
    sequences: dict[int, Owner]

    def owners(self, cell: int, table: int = 0) -> tuple[Owner, ...]:
        """Who owns a cell; empty where it is free."""
        return tuple(self.sequences[seq] for seq in self.tables[table].owners(cell) if seq in self.sequences)

    def ages(self, table: int = 0) -> npt.NDArray[np.float32]:
        """For each cell, seconds since any of its owners was of use: float32 (n_cells,), NaN where it is free."""
        cells = self.tables[table]
        ages = np.full(len(cells.pos), np.nan, dtype=np.float32)
        for seq_id, owner in sorted(self.sequences.items(), key=lambda item: -item[1].idle_seconds):
            ages[cells.owned_by(seq_id)] = owner.idle_seconds
        return ages

    def cells_of(self, kind: str, table: int = 0) -> int:
        """How many cells sequences of a kind own, each counted once."""
        cells = self.tables[table]
        owned = np.zeros(len(cells.pos), dtype=bool)
        for seq_id, owner in self.sequences.items():
            if owner.kind == kind:
                owned[cells.owned_by(seq_id)] = True
        return int(owned.sum())

    def __str__(self) -> str:
        if not self.tables:
            return "a memory of a kind whose cells are not known"
        table = self.tables[0]
        running, cached = self.cells_of("request"), self.cells_of("prefix")
        return (
            f"{table.used} of {len(table.pos)} cells used: {running} by requests, {cached} by cached prefixes"
        )
