"""What an engine's account says of the KV memory and the tiers, held against what is there, exactly.

``verify(engine)`` pauses the engine between two steps and compares the cell table of llama.cpp with the prefix tree,
the sequences that run and the free ones; and what the tiers count with what they hold, on disk as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llama_runner.cells import CellTable
from llama_runner.core import Context
from llama_runner.engine import Engine, Request
from llama_runner.engine.prefix import Node, PrefixCache
from llama_runner.engine.residency import Residency
from llama_runner.engine.tiers import Tiers, skip_head

__all__ = ["verify"]


def verify(engine: Engine, pinned: Iterable[Node | None] = (), *, idle: bool = False) -> None:
    """Raise AssertionError where account and truth differ.

    ``pinned`` are the nodes that the caller has pinned, once for each pin. ``idle`` says that nothing may be running.
    """
    with engine.paused() as context:
        running = dict(engine.scheduler.running)
        if idle:
            engine.scheduler.settle_ended()
            assert not engine.scheduler.running, engine.scheduler.running
            assert not engine.scheduler.waiting
            running = {}
        Account(engine.residency, context, list(running.values())).verify()
        verify_tree(engine.residency)
        verify_pins(engine.residency.tree, running.values(), pinned)
        verify_tiers(engine.residency.tiers, engine.residency)
        for tag, request in running.items():
            assert request.tag == tag
            assert request.seq_id is not None
        for request in engine.scheduler.waiting:
            assert request.seq_id is None
            assert request.mark is None
            assert request.node is None


class Account:
    """The sequences: what each must hold, and which cells it may share."""

    def __init__(self, residency: Residency, context: Context, running: list[Request]) -> None:
        self.residency, self.context, self.running = residency, context, running
        self.tables: list[CellTable] = context.memory.cells()
        self.ends = {seq: context.memory.seq_pos_max(seq) + 1 for seq in range(context.n_seq_max)}
        self.starts = {seq: context.memory.seq_pos_min(seq) for seq in range(context.n_seq_max)}

    def verify(self) -> None:
        self.verify_roles()
        expected = self.expected()
        assert self.ends == expected, f"ends are {self.ends}, and the account has {expected}"
        for table in self.tables:
            self.verify_table(table, expected)
        if self.residency.parts:
            self.verify_sharing()

    def verify_roles(self) -> None:
        """Every sequence is free, in use, or the spare one; what is in use has a reason."""
        held = {seq for seq, nodes in self.residency._held.items() if nodes}
        in_use = self.residency.busy | held
        free = self.residency._free
        assert len(free) == len(set(free)), free
        roles = Counter([*free, *in_use, self.residency._spare])
        assert roles == Counter(range(self.context.n_seq_max)), f"free {free}, in use {in_use}"
        busy = [request.seq_id for request in self.running]
        busy += [request.mark[1] for request in self.running if request.mark is not None]
        assert sorted(busy) == sorted(self.residency.busy), f"{busy} run, and {self.residency.busy} are busy"  # type: ignore[type-var]
        assert set(self.residency._shared) == in_use, f"{self.residency._shared}, in use are {in_use}"

    def expected(self) -> dict[int, int]:
        """How many tokens each sequence is to hold."""
        expected = dict.fromkeys(range(self.context.n_seq_max), 0)
        for seq, nodes in self.residency._held.items():
            ends = {node.end for node in nodes}
            assert len(ends) <= 1, f"sequence {seq} ends in several places: {nodes}"
            expected.update(dict.fromkeys([seq] if ends else [], max(ends, default=0)))
        for request in self.running:
            assert request.seq_id is not None
            held = int(request.job.progress["n_resident"])
            assert held >= expected[request.seq_id], f"{request.job} holds less than the tree counts on"
            expected[request.seq_id] = held
            if request.mark is not None:
                at, seq = request.mark
                expected[seq] = at if request.job.progress["marked"] else 0
        return expected

    def verify_table(self, table: CellTable, expected: dict[int, int]) -> None:
        owned = np.zeros(len(table.pos), dtype=bool)
        for seq, end in expected.items():
            cells = table.owned_by(seq)
            owned[cells] = True
            pos = table.pos[cells]
            if table.kind == "state":
                assert pos.tolist() == ([end - 1] if end else []), (
                    f"the state of {seq} is at {pos}, not {end}"
                )
                continue
            first = 0
            if table.kind == "window" and not self.residency.parts:
                first = int(pos[0]) if len(pos) else 0
                assert first <= max(0, end + 1 - table.window), f"the window of {seq} begins at {first}"
            assert np.array_equal(pos, np.arange(first, end)), f"sequence {seq} holds {pos}, not 0 to {end}"
        assert table.used == int(owned.sum()) == int((table.pos >= 0).sum())

    def verify_sharing(self) -> None:
        """Each token of the tree is in one cell; sequences that share it share that; nothing else is shared."""
        tree = self.residency.tree
        for table in self.tables:
            cells = {seq: table.owned_by(seq) for seq in self.ends}
            of_tree: set[int] = set()
            n_tree = 0
            for node in tree.nodes():
                if not node.resident:
                    continue
                mine = cells[tree.holder(node)][node.start : node.end]
                assert len(mine) == len(node.tokens), f"{node} is held by {tree.holder(node)} in part"
                of_tree.update(mine.tolist())
                n_tree += len(mine)
                if node.seq_id is not None:
                    for above in tree.path(node):
                        there = cells[tree.holder(above)][above.start : above.end]
                        here = cells[node.seq_id][above.start : above.end]
                        assert np.array_equal(here, there), f"{node.seq_id} has its own cells of {above}"
            assert len(of_tree) == n_tree, "two nodes share cells"
            others: Counter[int] = Counter()
            follows: set[int] = set()
            for request in self.running:
                assert request.seq_id is not None
                shared = self.residency._shared[request.seq_id]
                mine = cells[request.seq_id]
                known = tree.match(request.job.tokens[:shared], request.key)
                assert shared <= len(mine), f"{shared} of {len(mine)} cells are said to be shared"
                assert known.resident == shared, (
                    f"{shared} of {request.job} are said to be in the tree, not {known}"
                )
                for node in tree.path(known.node):
                    stop = min(node.end, shared)
                    there = cells[tree.holder(node)][node.start : stop]
                    assert np.array_equal(mine[node.start : stop], there), (
                        f"{request.job} has cells of its own"
                    )
                own = mine[shared:].tolist()
                others.update(own)
                if request.siblings > 1:  # those of a group have the cells of their prompt in common
                    follows.update(own[: max(0, len(request.prompt) - shared)])
            twice = {cell for cell, n in others.items() if n > 1 or cell in of_tree}
            assert twice <= follows, f"cells {twice - follows} are shared, and the account does not say so"
            assert table.used == len(of_tree | set(others))


def verify_tree(residency: Residency) -> None:
    tree = residency.tree
    seen: set[int] = set()
    for root in tree._roots.values():
        assert root.parent is None
        assert root.resident
        assert root.seq_id is None
        for child in root.children.values():
            assert child.parent is root
    for node in tree.nodes():
        assert id(node) not in seen
        seen.add(id(node))
        assert node.parent is not None
        assert len(node.tokens) > 0
        assert node.start == node.parent.end
        assert node.parent.children[int(node.tokens[0])] is node
        assert node.children or node.resident or node.stored or node.pins, f"{node} says nothing"
        if node.seq_id is not None:
            assert node.resident
            assert node in residency._held[node.seq_id]
        if node.resident:
            tree.holder(node)  # raises where there is none
            if residency.parts:
                assert node.parent.resident, f"{node} is resident, and what it builds on is not"
            else:
                assert node.seq_id is not None, f"{node} is said to be resident and has no state"
    for seq, nodes in residency._held.items():
        for node in nodes:
            assert id(node) in seen, f"{node} is held and not in the tree"
            assert node.seq_id == seq


def verify_pins(tree: PrefixCache, running: Iterable[Request], pinned: Iterable[Node | None]) -> None:
    expected = Counter(id(request.node) for request in running if request.node is not None)
    expected.update(id(node) for node in pinned if node is not None)
    for node in [*tree._roots.values(), *tree.nodes()]:
        assert node.pins == expected[id(node)], f"{node} has {node.pins} pins, not {expected[id(node)]}"
        del expected[id(node)]
    assert not expected, "something that is pinned is no longer in the tree"


def verify_tiers(tiers: Tiers, residency: Residency) -> None:
    referred = {node.stored: None for node in residency.tree.nodes() if node.stored is not None}
    assert set(referred) == set(tiers._stored)
    for stored in tiers._stored:
        nodes = [node for node in residency.tree.nodes() if node.stored is stored]
        assert {id(node) for node in nodes} == {id(node) for node in stored.nodes}
        assert len(nodes) == len(stored.nodes)
        assert stored.data is not None or stored.path is not None
        assert stored.data is None or len(stored.data) == stored.size
        for node in nodes:
            if residency.parts:
                assert stored.start <= node.start
                assert node.end <= stored.end
            else:
                assert (stored.start, stored.end) == (0, node.end), f"{node} is stored as another: {stored}"
    in_host = sum(stored.size for stored in tiers._stored if stored.data is not None)
    on_disk = {stored.path: stored.size for stored in tiers._stored if stored.path is not None}
    assert tiers.host_used == in_host <= tiers.host_limit
    assert tiers.disk_used == sum(on_disk.values()) <= tiers.disk_limit
    if tiers._folder is not None:
        there = {path for path in tiers._folder.iterdir() if path.name != "lock"}
        assert there == set(on_disk)
        for path, size in on_disk.items():
            assert size_of_state(path) == size


def size_of_state(path: Path) -> int:
    with open(path, "rb") as file:
        skip_head(file)
        return path.stat().st_size - file.tell()
