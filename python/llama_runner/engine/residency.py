"""``Residency``: makes the prefix tree true, in the KV memory and in the tiers below it.

Every method wants the decode loop paused and the engine's lock held.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_runner.core import Context
from llama_runner.engine.prefix import Match, Node, PrefixCache, Stored
from llama_runner.engine.request import Request
from llama_runner.engine.tiers import OnDisk, Tiers
from llama_runner.errors import LlamaRunnerError, StateError

__all__ = ["Attached", "CacheCounters", "Residency"]

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class CacheCounters:
    """What the prefix cache did since the start, and what it holds."""

    hits: int = 0  # requests of which a part was cached
    misses: int = 0
    tokens_reused: int = 0
    tokens_restored: int = 0  # of those, what came back from host memory or disk
    bytes_saved: int = 0
    bytes_restored: int = 0
    evictions: int = 0  # of leaves from the KV memory
    evicted_to_disk: int = 0
    evicted_for_good: int = 0
    damaged: int = 0  # saved states that were refused
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Attached:
    """A sequence that a prompt may go on in."""

    seq_id: int
    n_resident: int  # tokens of the prompt that it holds
    restored: int  # of those, how many came back from host memory or disk


class Residency:
    """Sequences, cells and saved states of one context, as its prefix tree has them.

    ``parts`` says whether this kind of memory can share and cut parts of a sequence. Where it cannot (sliding window,
    recurrent, hybrid) a node is of use only as a checkpoint: a sequence, or a saved state, that ends where the node
    does.
    """

    def __init__(
        self,
        context: Context,
        *,
        parts: bool,
        can_save: bool,
        host_bytes: int,
        disk: Path | None,
        disk_bytes: int,
        fingerprint: str,
    ) -> None:
        self.context = context
        self.memory = context.memory
        self.parts = parts
        self.tree = PrefixCache(parts=parts)
        self.counters = CacheCounters()
        prune = weakref.WeakMethod(self._prune)  # a cycle would keep the context until it is collected

        def lost(node: Node) -> None:
            found = prune()
            if found is not None:
                found(node)

        self.tiers = Tiers(
            host_bytes=host_bytes if can_save else 0,
            disk=disk if can_save else None,
            disk_bytes=disk_bytes,
            fingerprint=fingerprint,
            tokens_to=self.tree.tokens_to,
            key_of=self.tree.key_of,
            lost=lost,
        )
        # the last one is where saved states are read into, before their cells are handed on
        self._spare = context.n_seq_max - 1
        self._free = list(range(context.n_seq_max - 2, -1, -1))
        self.busy: set[int] = set()  # sequences of requests that run: never evicted
        self._held: dict[int, set[Node]] = {}  # of each sequence in use: the nodes that count on it
        self._shared: dict[int, int] = {}  # and up to where its cells are those of the tree
        for entry in self.tiers.scan():
            self._adopt(entry)

    def _adopt(self, entry: OnDisk) -> None:
        """Make a file of an earlier process part of the tree, where what it builds on is there."""
        before = self.tree.match(entry.tokens, entry.key)
        if before.length < entry.start or before.length >= len(entry.tokens):
            entry.path.unlink(missing_ok=True)
            return
        self.tiers.adopt(entry, self.tree.insert(entry.tokens, entry.key))

    # --- sequences

    @property
    def n_free(self) -> int:
        """Sequences that nothing is in."""
        return len(self._free)

    def take_seq(self) -> int | None:
        """An empty sequence, made by evicting the least recently used one where there is none."""
        while not self._free:
            leaves = self.leaves()
            if not leaves:
                return None
            self._evict_whole(leaves[0])
        seq_id = self._free.pop()
        self._shared[seq_id] = 0
        return seq_id

    def release(self, seq_id: int) -> None:
        """Empty a sequence and give it back; cells that others hold too stay with those."""
        for node in list(self._held.pop(seq_id, ())):
            node.seq_id = None
            self._lose(node)
        self.memory.seq_rm(seq_id, -1, -1)
        self._shared.pop(seq_id, None)
        self._free.append(seq_id)

    def _hold(self, node: Node, seq_id: int | None) -> None:
        """Note which sequence holds a node to its end."""
        if node.seq_id is not None:
            held = self._held.get(node.seq_id)
            if held is not None:
                held.discard(node)
        node.seq_id = seq_id
        if seq_id is not None:
            self._held.setdefault(seq_id, set()).add(node)

    def holds_any(self, seq_id: int) -> bool:
        """Whether the tree counts on a sequence."""
        return bool(self._held.get(seq_id))

    def _lose(self, node: Node) -> None:
        """The sequence that held a node is about to be emptied: what no other holds is no longer resident."""
        if not self.parts:
            node.resident = False
            self._prune(node)
            return
        here: Node | None = node
        while here is not None and here.parent is not None:
            if here.seq_id is not None or any(child.resident for child in here.children.values()):
                return
            here.resident = False
            parent = here.parent
            self._prune(here)
            here = parent

    def holders(self) -> Iterator[tuple[int, Node]]:
        """Each sequence that the tree counts on, and the deepest node that it holds."""
        for seq_id, nodes in self._held.items():
            if nodes:
                yield seq_id, max(nodes, key=lambda node: node.end)

    # --- before a request

    def usable(self, found: Match, most: int) -> tuple[int, int]:
        """How many tokens of a match could be attached, at most ``most``, and how many of them are in the memory."""
        if self.parts:
            return min(self._stored_to(found), most), min(found.resident, most)
        for node in reversed(self.tree.path(found.node)):
            if node.end <= min(found.length, most) and (node.seq_id is not None or node.stored is not None):
                return node.end, node.end if node.seq_id is not None else 0
        return 0, 0

    def anchor(self, found: Match, most: int) -> Node:
        """The node to be pinned for who wants to attach a match: what it uses, and nothing that hangs on that.

        Cuts the match's node where the match ends, so that ``found`` is out of date afterwards.
        """
        if self.parts:
            if found.inside < len(found.node.tokens):
                return self.tree.split(found.node, found.inside)
            return found.node
        node = found.node
        while node.parent is not None:
            if node.end <= min(found.length, most) and (node.seq_id is not None or node.stored is not None):
                break
            node = node.parent
        return node

    def _stored_to(self, found: Match) -> int:
        """Up to where a match is resident or stored without a gap."""
        at = 0
        for node in self.tree.path(found.node):
            if not (node.resident or node.stored is not None):
                break
            at = min(node.end, found.length)
        return at

    def attach(self, seq_id: int, found: Match, most: int) -> Attached:
        """Let an empty sequence hold what is known of a prompt, at most ``most`` tokens; ``found`` is its match.

        What is stored is read back; where that fails, less is held.
        """
        self.busy.add(seq_id)  # what it holds already must not go for the sake of the rest
        try:
            held, restored = (self._attach_parts if self.parts else self._attach_whole)(found, seq_id, most)
            if held and self.memory.seq_pos_max(seq_id) + 1 != held:
                # the memory was changed behind the account's back: what it lacks is nobody's prefix
                self.drop_lost()
                self.memory.seq_rm(seq_id, -1, -1)
                held = restored = self._shared[seq_id] = 0
        except BaseException:
            self.release(seq_id)
            raise
        finally:
            self.busy.discard(seq_id)
        self.counters.hits += held > 0
        self.counters.misses += held == 0
        self.counters.tokens_reused += held
        self.counters.tokens_restored += restored
        if held:
            self.tree.touch(found.node)
        return Attached(seq_id, held, restored)

    def _attach_parts(self, found: Match, seq_id: int, most: int) -> tuple[int, int]:
        held, restored = 0, 0
        there: Stored | None = None  # in the spare sequence: a state that was cut since is read once
        try:
            for step in self.tree.path(found.node):
                stop = min(step.end, found.length, most)
                if stop <= held:
                    break
                if step.resident:
                    self.memory.seq_cp(self.tree.holder(step), seq_id, held, stop)
                else:
                    node = step if stop == step.end else self.tree.split(step, stop - step.start)
                    if there is None or node.stored is not there:
                        self.memory.seq_rm(self._spare, -1, -1)
                        there = node.stored
                        if not self._restore(node, self._spare):
                            break
                    self.memory.seq_cp(self._spare, seq_id, node.start, node.end)
                    node.resident = True
                    self._hold_end(node, seq_id)
                    restored += stop - held
                held = stop
                self._shared[seq_id] = held
        finally:
            self.memory.seq_rm(self._spare, -1, -1)
        return held, restored

    def _hold_end(self, node: Node, seq_id: int) -> None:
        """Name the sequence at the deepest of the nodes that it holds, and at no other."""
        for other in list(self._held.get(seq_id, ())):
            self._hold(other, None)
        self._hold(node, seq_id)

    def _attach_whole(self, found: Match, seq_id: int, most: int) -> tuple[int, int]:
        for node in reversed(self.tree.path(found.node)):
            if node.end > min(most, found.length):
                continue
            if node.seq_id is not None:
                self.memory.seq_cp(node.seq_id, seq_id, -1, -1)
                return node.end, 0
            if node.stored is not None and self._restore(node, seq_id):
                return node.end, node.end
        return 0, 0

    # --- while it runs, and after

    def publish(self, seq_id: int, tokens: Tokens, key: Hashable) -> None:
        """Let others share what a sequence holds that goes on growing; it holds ``tokens`` and nothing else."""
        if self.parts and len(tokens):
            self._write(seq_id, tokens, key)

    def settle(self, seq_id: int, tokens: Tokens, key: Hashable) -> None:
        """Write into the tree what a sequence holds, or give it back where the tree has that already."""
        if len(tokens):
            self._write(seq_id, tokens, key)
        if not self.holds_any(seq_id):
            self.release(seq_id)

    def _write(self, seq_id: int, tokens: Tokens, key: Hashable) -> None:
        if not self.parts:
            node = self.tree.insert(tokens, key)
            if node.seq_id is None:
                node.resident = True
                self._hold(node, seq_id)
            self.tree.touch(node)
            return
        known = self.tree.match(tokens, key)
        if known.resident > self._shared.get(seq_id, 0):
            # the tree's cells take the place of the sequence's own of the same tokens
            node = known.node
            while not node.resident and node.parent is not None:
                node = node.parent
            holder = self.tree.holder(node)
            if holder != seq_id:
                self._share(holder, seq_id, known.resident)
        node = self.tree.insert(tokens, key)
        for step in self.tree.path(node):
            if step is not node and step.seq_id is not None:
                # from now on held by whoever holds the end
                other = step.seq_id
                self._hold(step, None)
                if other != seq_id and other not in self.busy and not self.holds_any(other):
                    self.release(other)  # its cells are another's as well
            step.resident = True
        if node.seq_id is None and not any(child.resident for child in node.children.values()):
            self._hold_end(node, seq_id)
        self._shared[seq_id] = len(tokens)
        self.tree.touch(node)

    def _share(self, holder: int, seq_id: int, end: int) -> None:
        """Replace a sequence's cells up to ``end`` by another's of the same tokens."""
        self.memory.seq_cp(seq_id, self._spare, end, -1)
        self.memory.seq_rm(seq_id, -1, -1)
        self.memory.seq_cp(holder, seq_id, 0, end)
        self.memory.seq_cp(self._spare, seq_id, end, -1)
        self.memory.seq_rm(self._spare, -1, -1)

    def drop_lost(self) -> None:
        """What the memory does not have any more is nobody's prefix: after a failed computation that emptied states."""
        for seq_id, nodes in list(self._held.items()):
            ends = {node.end for node in nodes}
            if ends and seq_id not in self.busy and self.memory.seq_pos_max(seq_id) + 1 not in ends:
                self.counters.damaged += 1
                self.release(seq_id)

    # --- states from and for outside

    def export(self, tokens: Tokens, key: Hashable) -> bytes | None:
        """The state of a sequence of exactly these tokens, in ``core``'s container; None where they are not cached."""
        seq_id = self.take_seq()
        if seq_id is None:
            return None
        self.busy.add(seq_id)  # as in attach()
        try:
            attach = self._attach_parts if self.parts else self._attach_whole
            held, _ = attach(self.tree.match(tokens, key), seq_id, len(tokens))
            return self.context.state_seq_get(seq_id, tokens=tokens) if held == len(tokens) else None
        finally:
            self.busy.discard(seq_id)
            self.release(seq_id)

    def adopt(self, tokens: Tokens, blob: bytes | memoryview, key: Hashable) -> bool:
        """Make a saved state of ``tokens`` part of the tree; False where there is no room for it.

        Raises StateError for one that is damaged, or of other tokens; nothing has changed then.
        """
        if not self.context.model.is_recurrent:  # whose states are there from the start
            while self.memory.n_used + len(tokens) > self.memory.n_cells:
                if not self.evict_one():
                    return False
        seq_id = self.take_seq()
        if seq_id is None:
            return False
        try:
            found = self.context.state_seq_set(seq_id, blob)
            if found is None or not np.array_equal(found, tokens):
                raise StateError("the saved state is one of other tokens")
        except BaseException:
            self.release(seq_id)
            raise
        self.settle(seq_id, tokens, key)
        return True

    def forget(self, tokens: Tokens, key: Hashable) -> None:
        """Let go of what is cached of ``tokens`` and of nothing else, from their end up to where others begin."""
        found = self.tree.match(tokens, key)
        node = found.node if found.inside == len(found.node.tokens) else None
        while node is not None and node.parent is not None:
            parent = node.parent
            if node not in self.leaves():
                return
            self.evict(node, keep=False)
            node = parent

    # --- making room

    def leaves(self) -> list[Node]:
        """Nodes that may leave the KV memory, least recently used first."""
        found = [
            node
            for seq_id, nodes in self._held.items()
            if seq_id not in self.busy
            for node in nodes
            if not node.pins and not (self.parts and self._needed_below(node))
        ]
        return sorted(found, key=lambda node: node.last_used)

    def n_kept(self, running: Iterable[Request], pins: Counter[Node | None]) -> int:
        """Cells that cannot be evicted: those of running requests, and what is pinned more often than ``pins`` says."""
        cells = self.memory.cells()[0]  # the part by which a context is measured
        whole = {seq_id for request in running for seq_id in request.seq_ids}
        bits = np.zeros(cells.seqs.shape[1], np.uint64)
        for seq_id in whole:
            bits[seq_id // 64] |= np.uint64(1 << seq_id % 64)
        kept = (cells.seqs & bits).any(axis=1)
        ends: dict[int, int] = {}  # of other sequences: up to where
        for node in self.tree.nodes():
            if node.pins > pins[node]:
                held = self._held_of(node)
                if held is not None and held[0] not in whole:
                    seq_id, end = held
                    ends[seq_id] = max(ends.get(seq_id, 0), end)
        for seq_id, end in ends.items():
            owned = (cells.seqs[:, seq_id // 64] >> np.uint64(seq_id % 64)) & np.uint64(1)
            kept |= owned.astype(bool) & (cells.pos < end)
        return int(kept.sum())

    def _held_of(self, node: Node) -> tuple[int, int] | None:
        """The sequence that holds what is in the memory of a node's path, and up to where."""
        if not self.parts:
            return None if node.seq_id is None else (node.seq_id, node.end)
        for step in reversed(self.tree.path(node)):
            if step.resident:
                return self.tree.holder(step), step.end
        return None

    @staticmethod
    def _needed_below(node: Node) -> bool:
        """Whether something that is resident, or pinned, builds on a node."""
        stack = list(node.children.values())
        while stack:
            here = stack.pop()
            if here.resident or here.pins:
                return True
            stack.extend(here.children.values())
        return False

    def evict_one(self, *, keep: bool = True) -> bool:
        """Take the least recently used leaf out of the KV memory, into a tier where there is room; False if none."""
        leaves = self.leaves()
        if leaves:
            self.evict(leaves[0], keep=keep)
        return bool(leaves)

    def evict(self, leaf: Node, *, keep: bool = True) -> None:
        """Take one leaf out of the KV memory."""
        seq_id, parent = leaf.seq_id, leaf.parent
        assert seq_id is not None and parent is not None
        if keep and leaf.stored is None and self.tiers.in_use:
            self._store(leaf, seq_id)
        self.counters.evictions += 1
        self.counters.evicted_for_good += leaf.stored is None
        self._hold(leaf, None)
        leaf.resident = False
        # what the leaf grew from is now a leaf, and nobody else holds it
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
            self._hold(parent, seq_id)
        elif not self.holds_any(seq_id):
            self.release(seq_id)
        self._prune(leaf)

    def _evict_whole(self, leaf: Node) -> None:
        """Evict a leaf, and what it grew from as far as nothing else grows from that: its sequence is wanted."""
        seq_id = leaf.seq_id
        node: Node | None = leaf
        while node is not None and node.seq_id == seq_id and not node.pins:
            parent = node.parent
            self.evict(node)
            node = parent

    def unpin(self, node: Node) -> None:
        """Undo a pin; what lost all it had while it was pinned goes now. Touches the tree alone."""
        node.pins -= 1
        self._prune(node)

    def _prune(self, node: Node) -> None:
        """Take out nodes that say nothing any more, from ``node`` upwards."""
        here: Node | None = node
        while (
            here is not None
            and here.parent is not None
            and here.parent.children.get(int(here.tokens[0])) is here
        ):
            if here.children or here.resident or here.stored is not None or here.pins:
                return
            parent = here.parent
            self.tree.remove(here)
            here = parent

    # --- the tiers

    def _store(self, leaf: Node, seq_id: int) -> None:
        start = leaf.start if self.parts else 0
        try:
            if start > 0:
                self.memory.seq_cp(seq_id, self._spare, start, leaf.end)
                try:
                    blob = self.context.state_seq_get(self._spare)
                finally:
                    self.memory.seq_rm(self._spare, -1, -1)
            else:
                blob = self.context.state_seq_get(seq_id)
        except (LlamaRunnerError, MemoryError):
            return  # then it is computed again
        if self.tiers.put(leaf, start, blob):
            self.counters.bytes_saved += len(blob)

    def _room_for(self, stored: Stored) -> bool:
        """Room for all of a saved state, which is read as a whole though only its beginning may be wanted."""
        if self.parts:
            while self.memory.n_used + stored.end - stored.start > self.memory.n_cells:
                if not self.evict_one():
                    return False
        return True

    def _restore(self, node: Node, seq_id: int) -> bool:
        """Read the state that a node is stored in into an empty sequence; False where it cannot be."""
        stored = node.stored
        if stored is None:
            return False
        node.pins += 1  # making room for it must not push it out
        try:
            if not self._room_for(stored):
                return False
            self.context.state_seq_set(seq_id, self.tiers.get(stored))
        except (OSError, ValueError, LlamaRunnerError):
            self.counters.damaged += 1
            self.tiers.drop(node)
            return False
        finally:
            node.pins -= 1
        self.counters.bytes_restored += stored.size
        return True

    def clear(self) -> None:
        """Forget everything that no request uses and nothing pins."""
        while self.evict_one(keep=False):
            pass
        for node in sorted(self.tree.nodes(), key=lambda node: -node.start):
            if not node.pins:
                self.tiers.drop(node)
                self._prune(node)

    def spill(self) -> None:
        """Before the end: what the KV memory and host memory hold goes to disk, where there is one."""
        if self.tiers.disk_limit:
            self.busy.clear()
            for node in self.tree.nodes():
                node.pins = 0
            while self.evict_one():
                pass
            self.tiers.spill()

    def snapshot(self) -> CacheCounters:
        """The counters, and what the tiers hold now."""
        counters = self.counters
        counters.host_bytes, counters.disk_bytes = self.tiers.host_used, self.tiers.disk_used
        counters.evicted_to_disk = self.tiers.to_disk_count
        return CacheCounters(**{name: getattr(counters, name) for name in CacheCounters.__slots__})
