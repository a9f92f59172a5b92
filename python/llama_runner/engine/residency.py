"""``Residency``: makes the prefix tree true, in the KV memory, in host memory and on disk.

Every method wants the decode loop paused and the engine's lock held.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_runner.core import Context
from llama_runner.engine.prefix import Match, Node, PrefixCache, Stored
from llama_runner.errors import LlamaRunnerError, StateError

__all__ = ["Attached", "CacheCounters", "Residency"]

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class CacheCounters:
    """What the prefix cache did, since the start."""

    hits: int = 0
    misses: int = 0
    tokens_reused: int = 0
    tokens_restored: int = 0
    bytes_saved: int = 0
    bytes_restored: int = 0
    evicted_to_host: int = 0
    evicted_to_disk: int = 0
    evicted_for_good: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Attached:
    """A sequence that a prompt may go on in."""

    seq_id: int
    n_resident: int  # tokens of the prompt that it holds
    restored: int  # of those, how many came back from host memory or disk
    match: Match


class Residency:
    """Sequences, cells and saved states of one context, as its prefix tree has them.

    ``parts`` says whether this kind of memory can share and cut parts of a sequence; where it cannot (recurrent, hybrid),
    a prefix is of use only as a whole, from its very end on.
    """

    def __init__(
        self,
        context: Context,
        *,
        parts: bool,
        host_bytes: int,
        disk_dir: Path | None,
        disk_bytes: int,
        cells_used: Callable[[], int],
    ) -> None:
        self.context = context
        self.memory = context.memory
        self.parts = parts
        self.tree = PrefixCache()
        self.counters = CacheCounters()
        self.cells_used = cells_used
        self.host_limit, self.disk_limit = host_bytes, disk_bytes
        self.host_used = self.disk_used = 0
        self.disk_dir = disk_dir
        # the last one is where saved states are read into, before their cells are handed on
        self._spare = context.n_seq_max - 1
        self._free = list(range(context.n_seq_max - 2, -1, -1)) if context.n_seq_max > 1 else []
        self.busy: set[int] = set()  # sequences of requests that run
        # of each sequence in use: up to where its cells are those of the tree
        self._shared: dict[int, int] = {}

    # --- sequences

    def take_seq(self) -> int | None:
        """An empty sequence, made by evicting the least recently used leaf where there is none."""
        while not self._free:
            if not self.evict_one():
                return None
        seq_id = self._free.pop()
        self._shared[seq_id] = 0
        return seq_id

    def release(self, seq_id: int) -> None:
        """Empty a sequence and give it back; cells that others hold too stay with those."""
        for node in list(self.tree.nodes()):
            if node.seq_id == seq_id:
                self._lose(node)
        self.memory.seq_rm(seq_id, -1, -1)
        self._shared.pop(seq_id, None)
        self._free.append(seq_id)

    # --- before a request

    def attach(self, tokens: Tokens, most: int) -> Attached | None:
        """A sequence that holds the longest known prefix of ``tokens``, at most ``most`` of them.

        None when every sequence is in use. What is stored is read back; where that fails, less is held.
        """
        found = self.tree.match(tokens)
        pinned = found.node
        pinned.pins += 1  # not to be evicted for the sake of this very request
        try:
            seq_id = self.take_seq()
            if seq_id is None:
                return None
            try:
                held, restored = (self._attach_parts if self.parts else self._attach_whole)(found, seq_id, most)
            except LlamaRunnerError:
                self.release(seq_id)
                raise
        finally:
            pinned.pins -= 1
        self.counters.hits += held > 0
        self.counters.misses += held == 0
        self.counters.tokens_reused += held
        self.counters.tokens_restored += restored
        if held:
            self.tree.touch(found.node)
        return Attached(seq_id, held, restored, found)

    def _attach_parts(self, found: Match, seq_id: int, most: int) -> tuple[int, int]:
        held, restored = 0, 0
        for node in self.tree.path(found.node):
            stop = min(node.end, found.length, most)
            if stop <= held:
                break
            if node.resident:
                self.memory.seq_cp(self.tree.holder(node), seq_id, held, stop)
            else:
                if stop < node.end:
                    node = self.tree.split(node, stop - node.start)
                if not self._restore(node, seq_id):
                    break
                node.resident, node.seq_id = True, seq_id
                restored += stop - held
            held = stop
            self._shared[seq_id] = held
        self._forget_upper_holders(seq_id)
        return held, restored

    def _attach_whole(self, found: Match, seq_id: int, most: int) -> tuple[int, int]:
        path = self.tree.path(found.node)
        if found.inside < len(found.node.tokens):
            path = path[:-1]
        for node in reversed(path):
            if node.end > most:
                continue
            if node.seq_id is not None:
                self.memory.seq_cp(node.seq_id, seq_id, -1, -1)
                return node.end, 0
            if node.stored is not None and self._restore(node, seq_id):
                return node.end, node.end
        return 0, 0

    def _forget_upper_holders(self, seq_id: int) -> None:
        """Of the nodes that name ``seq_id`` as the one that holds them, leave the deepest."""
        mine = [node for node in self.tree.nodes() if node.seq_id == seq_id]
        for node in mine:
            if any(child.resident for child in node.children.values()) and any(
                other is not node and self._above(node, other) for other in mine
            ):
                node.seq_id = None

    @staticmethod
    def _above(upper: Node, lower: Node) -> bool:
        node: Node | None = lower
        while node is not None:
            if node is upper:
                return True
            node = node.parent
        return False

    # --- after it

    def settle(self, seq_id: int, tokens: Tokens) -> Node | None:
        """Write into the tree what a sequence holds now; it must hold ``tokens`` and nothing else.

        Cells that the tree has already are shared from here on, the sequence's own copies go. Returns the node where it
        ends, which names a sequence that holds it; None where nothing is held.
        """
        if len(tokens) == 0:
            return None
        if not self.parts:
            node = self.tree.insert(tokens)
            if node.seq_id is None:
                node.resident, node.seq_id = True, seq_id
                self._drop_stored(node)
            self.tree.touch(node)
            return node
        found = self.tree.match(tokens)
        mine = self._shared.get(seq_id, 0)
        node = self.tree.insert(tokens)
        path = self.tree.path(node)
        known = [step for step in path if step.resident]
        if known and known[-1].end > mine:
            deepest = known[-1]
            holder = self.tree.holder(deepest)
            if holder != seq_id:
                self._share(holder, seq_id, deepest.end)
        for step in path:
            if step is not node and step.seq_id is not None:
                # what lies below it is held from now on by the one that holds the end
                if step.seq_id != seq_id and step.seq_id not in self.busy:
                    self.release(step.seq_id)
                step.seq_id = None
            step.resident = True
            self._drop_stored(step)
        if node.seq_id is None and not any(child.resident for child in node.children.values()):
            node.seq_id = seq_id
        self._shared[seq_id] = len(tokens)
        self.tree.touch(node)
        assert found.length <= len(tokens)
        return node

    def _share(self, holder: int, seq_id: int, end: int) -> None:
        """Replace a sequence's cells up to ``end`` by another's of the same tokens."""
        self.memory.seq_cp(seq_id, self._spare, end, -1)
        self.memory.seq_rm(seq_id, -1, -1)
        self.memory.seq_cp(holder, seq_id, 0, end)
        self.memory.seq_cp(self._spare, seq_id, end, -1)
        self.memory.seq_rm(self._spare, -1, -1)

    def holds(self, node: Node, seq_id: int) -> bool:
        """Whether the tree counts on this sequence."""
        return node.seq_id == seq_id

    def _lose(self, node: Node) -> None:
        """The sequence that held a node is about to be emptied: what no other holds is no longer resident."""
        node.seq_id = None
        here: Node | None = node
        while here is not None and here.parent is not None:
            if here.seq_id is not None or any(child.resident for child in here.children.values()):
                return
            here.resident = False
            parent = here.parent
            self._prune(here)
            here = parent

    # --- making room

    def evict_one(self, *, keep: bool = True) -> bool:
        """Take the least recently used leaf out of the KV memory, into host memory where there is room; False if none."""
        for leaf in self.tree.resident_leaves():
            if leaf.seq_id is None:
                continue
            self._evict(leaf, keep=keep)
            return True
        return False

    def make_room(self, cells: int, capacity: int) -> bool:
        """Evict until ``cells`` more fit into the memory; False when nothing is left to evict."""
        while self.cells_used() + cells > capacity:
            if not self.evict_one():
                return False
        return True

    def _evict(self, leaf: Node, *, keep: bool) -> None:
        seq_id = leaf.seq_id
        assert seq_id is not None and leaf.parent is not None
        if keep and self.host_limit > 0 and leaf.stored is None:
            self._store(leaf, seq_id)
        leaf.resident, leaf.seq_id = False, None  # before release(), which looks for nodes that it would orphan
        parent = leaf.parent
        inherits = (
            self.parts
            and parent.parent is not None
            and parent.resident
            and parent.seq_id is None
            and not any(child.resident for child in parent.children.values())
        )
        if inherits:
            self.memory.seq_rm(seq_id, leaf.start, -1)
            self._shared[seq_id] = leaf.start
            parent.seq_id = seq_id
        else:
            self.release(seq_id)
        if leaf.stored is None:
            self.counters.evicted_for_good += 1
            self._prune(leaf)

    def _prune(self, node: Node) -> None:
        """Take out nodes that say nothing any more, from ``node`` upwards."""
        here: Node | None = node
        while (
            here is not None
            and here.parent is not None
            and not (here.children or here.resident or here.stored or here.pins)
        ):
            parent = here.parent
            self.tree.remove(here)
            here = parent

    # --- host memory and disk

    def _store(self, leaf: Node, seq_id: int) -> None:
        start = leaf.start if self.parts else 0
        if self.parts and start > 0:
            self.memory.seq_rm(self._spare, -1, -1)
            self.memory.seq_cp(seq_id, self._spare, start, leaf.end)
            try:
                blob = self.context.state_seq_get(self._spare)
            finally:
                self.memory.seq_rm(self._spare, -1, -1)
        else:
            blob = self.context.state_seq_get(seq_id)
        if not self._host_room(len(blob)):
            return
        leaf.stored = Stored(start, leaf.end, len(blob), blob, users=1)
        self.host_used += len(blob)
        self.counters.bytes_saved += len(blob)
        self.counters.evicted_to_host += 1

    def _host_room(self, size: int) -> bool:
        """Free host memory by moving what was used longest ago to disk, or dropping it."""
        if size > self.host_limit:
            return False
        for node in self.tree.stored_leaves(on_disk=False):
            if self.host_used + size <= self.host_limit:
                break
            self._to_disk(node)
        return self.host_used + size <= self.host_limit

    def _to_disk(self, node: Node) -> None:
        stored = node.stored
        assert stored is not None and stored.data is not None
        if self.disk_dir is not None and self._disk_room(stored.size):
            path = self.disk_dir / f"{uuid.uuid4().hex}.kv"
            try:
                partial = path.with_suffix(".part")
                partial.write_bytes(stored.data)
                os.replace(partial, path)
            except OSError:
                pass  # a disk that is full: then it is dropped
            else:
                stored.path = str(path)
                self.disk_used += stored.size
                self.counters.evicted_to_disk += 1
        self.host_used -= stored.size
        stored.data = None
        if stored.path is None:
            self.counters.evicted_for_good += 1
            for other in list(self.tree.nodes()):
                if other.stored is stored:
                    other.stored = None
                    self._prune(other)

    def _disk_room(self, size: int) -> bool:
        if size > self.disk_limit:
            return False
        for node in self.tree.stored_leaves(on_disk=True):
            if self.disk_used + size <= self.disk_limit:
                break
            self._drop_stored(node)
            self._prune(node)
        return self.disk_used + size <= self.disk_limit

    def _drop_stored(self, node: Node) -> None:
        stored, node.stored = node.stored, None
        if stored is None:
            return
        stored.users -= 1
        if stored.users:
            return
        if stored.data is not None:
            self.host_used -= stored.size
        if stored.path is not None:
            self.disk_used -= stored.size
            Path(stored.path).unlink(missing_ok=True)

    def _restore(self, node: Node, seq_id: int) -> bool:
        """Bring a stored node back into ``seq_id``, after what that holds already; False where it cannot be."""
        stored = node.stored
        if stored is None:
            return False
        try:
            blob = stored.data if stored.data is not None else Path(str(stored.path)).read_bytes()
            if self.parts:
                self.context.state_seq_set(self._spare, blob)
                self.memory.seq_cp(self._spare, seq_id, node.start, node.end)
            else:
                self.context.state_seq_set(seq_id, blob)
        except (OSError, StateError):
            self.counters.damaged += 1
            self._drop_stored(node)
            return False
        finally:
            if self.parts:
                self.memory.seq_rm(self._spare, -1, -1)
        self.counters.bytes_restored += stored.size
        self._drop_stored(node)
        return True

    def clear(self) -> None:
        """Forget everything that no request uses."""
        while self.evict_one(keep=False):
            pass
        for node in self.tree.stored_leaves(on_disk=False) + self.tree.stored_leaves(on_disk=True):
            self._drop_stored(node)
        for node in sorted(self.tree.nodes(), key=lambda node: -node.start):
            if not (node.children or node.resident or node.stored or node.pins):
                self.tree.remove(node)
