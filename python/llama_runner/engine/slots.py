"""Which sequence of the context holds which tokens, and who may use it now."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llama_runner.core import Context
from llama_runner.errors import ContextBusyError

__all__ = ["Slot", "Slots"]

Tokens = npt.NDArray[np.int32]


@dataclass(eq=False)
class Slot:
    """One sequence of the context. ``tokens`` are those whose keys and values are in its cache, in order."""

    context: Context
    seq_id: int
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    last_used: int = 0

    def common_prefix(self, tokens: Tokens) -> int:
        """How many tokens at the start are the same, by comparing every one of them."""
        n = min(len(self.tokens), len(tokens))
        if n == 0:
            return 0
        differ = np.flatnonzero(np.asarray(self.tokens[:n], dtype=np.int32) != tokens[:n])
        return int(differ[0]) if len(differ) else n

    def truncate(self, n: int) -> int:
        """Keep the first ``n`` tokens at most; returns how many are left.

        A recurrent memory cannot step back: it is emptied, and 0 is returned. What llama.cpp holds decides: this
        removes what an interrupted call decoded without noting it down, and takes nothing for kept where a failed
        decode had to empty the sequence.
        """
        memory = self.context.memory
        n = min(n, len(self.tokens))
        resident = memory.seq_pos_max(self.seq_id) + 1
        if resident < n or (resident > n and not memory.seq_rm(self.seq_id, n, -1)):
            n = 0
        if n == 0:
            memory.seq_rm(self.seq_id, -1, -1)
        del self.tokens[n:]
        return n

    def release(self) -> None:
        """Give the slot back, with nothing in the cache that ``tokens`` does not account for."""
        try:
            if not self.context.closed:
                self.truncate(len(self.tokens))
        except ContextBusyError:
            pass  # a stream that was collected in the middle of a decode: whoever takes the slot next mends it
        finally:
            self.busy = False


class Slots:
    """The slots of one context. The caller holds the lock that guards the context."""

    def __init__(self, context: Context) -> None:
        self.all = [Slot(context, seq_id) for seq_id in range(context.n_seq_max)]
        self._clock = itertools.count(1)

    def take(self, slot: Slot) -> Slot:
        if slot.busy:
            raise ContextBusyError(
                f"sequence {slot.seq_id} is being generated already: finish or close() that stream first"
            )
        slot.busy = True
        slot.last_used = next(self._clock)
        return slot

    def best_for(self, tokens: Tokens, candidates: list[Slot]) -> Slot:
        """The idle slot that shares the longest prefix with ``tokens``; among equals the least recently used."""
        idle = [slot for slot in candidates if not slot.busy]
        if not idle:
            raise ContextBusyError(
                f"all {len(candidates)} sequences for generation are in use: finish or close() a stream, or make the "
                "runner with a larger n_seq_max"
            )
        return max(idle, key=lambda slot: (slot.common_prefix(tokens), -slot.last_used))

    def used(self) -> int:
        """Cells in use: no two slots share one."""
        return sum(len(slot.tokens) for slot in self.all)

    def make_room(self, n: int, capacity: int, keep: set[int]) -> bool:
        """Empty idle slots, least recently used first, until ``n`` cells are free; False when it cannot be done."""
        spare = sorted(
            (s for s in self.all if s.tokens and not s.busy and s.seq_id not in keep),
            key=lambda s: s.last_used,
        )
        while capacity - self.used() < n:
            if not spare:
                return False
            spare.pop(0).truncate(0)
        return True
