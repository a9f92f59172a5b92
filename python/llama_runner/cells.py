"""Cells of a KV memory: what llama.cpp says that they hold, and an account of what they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellTable"]


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
        bits = sum(word << 64 * i for i, word in enumerate(self.seqs[cell].tolist()))
        return [seq for seq in range(bits.bit_length()) if bits >> seq & 1]
