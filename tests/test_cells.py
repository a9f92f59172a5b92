"""``CellAccount``: a Python account of who owns which position, against one that keeps every cell by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, CellAccount, Context, Model

N_SEQ = 3
Change = Callable[[int, frozenset[int]], tuple[int, frozenset[int]]]


def make(path: object, **options: object) -> Context:
    return Context(Model(path), **{"n_ctx": 256, "n_seq_max": N_SEQ, "n_threads": 1, **options})


def feed(ctx: Context, n: int, pos: int = 0, seq: int = 0) -> None:
    batch = Batch(n)
    batch.add_sequence(np.arange(300, 300 + n), pos, seq)
    ctx.decode(batch)


class Plain:
    """The same, a position and its owners for each cell."""

    def __init__(self) -> None:
        self.cells: list[tuple[int, frozenset[int]]] = []

    def apply(self, seq: int, p0: int, p1: int, change: Change) -> None:
        low, high = max(p0, 0), 1 << 31 if p1 < 0 else p1
        self.cells = [
            change(pos, owners) if seq in owners and low <= pos < high else (pos, owners)
            for pos, owners in self.cells
        ]
        self.cells = [cell for cell in self.cells if cell[1]]

    def extend(self, seqs: list[int], n: int, pos: int) -> None:
        self.cells += [(pos + i, frozenset(seqs)) for i in range(n)]

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        self.apply(seq, p0, p1, lambda pos, owners: (pos, owners - {seq}))

    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        self.apply(src, p0, p1, lambda pos, owners: (pos, owners | {dst}))

    def seq_keep(self, seq: int) -> None:
        self.cells = [(pos, frozenset([seq])) for pos, owners in self.cells if seq in owners]

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.apply(seq, p0, p1, lambda pos, owners: (pos + delta, owners))

    def seq_div(self, seq: int, p0: int, p1: int, d: int) -> None:
        self.apply(seq, p0, p1, lambda pos, owners: (pos // d, owners))

    def copy(self, src: int, dst: int) -> None:
        copies = [(pos, frozenset([dst])) for pos, owners in self.cells if src in owners]
        self.seq_rm(dst)
        self.cells += copies

    def entries(self) -> Counter:
        return Counter(self.cells)


seqs = st.integers(0, N_SEQ - 1)
places = st.integers(-1, 40)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("extend"), st.sets(seqs, min_size=1).map(sorted), st.integers(1, 9), st.integers(0, 30)
        ),
        st.tuples(st.just("seq_rm"), seqs, places, places),
        st.tuples(st.just("seq_cp"), seqs, seqs, places, places),
        st.tuples(st.just("seq_keep"), seqs),
        st.tuples(st.just("seq_add"), seqs, places, places, st.integers(0, 20)),
        st.tuples(st.just("seq_div"), seqs, places, places, st.integers(2, 5)),
        st.tuples(st.just("copy"), seqs, seqs),
    ),
    max_size=25,
)


@given(OPERATIONS)
@settings(derandomize=True, deadline=None, max_examples=300, database=None)
def test_runs_tell_what_single_cells_tell(operations: list[tuple]) -> None:
    account, plain = CellAccount(N_SEQ), Plain()
    for name, *arguments in operations:
        if name == "copy":
            src, dst = arguments
            account.restore(account.save(src), dst)
        else:
            getattr(account, name)(*arguments)
        getattr(plain, name)(*arguments)
    told = Counter()
    for seq in range(N_SEQ):
        held = [pos for pos, owners in plain.cells if seq in owners]
        assert account.pos_min(seq) == min(held, default=-1)
        assert account.pos_max(seq) == max(held, default=-1)
        assert account.n_cells(seq) == len(held)
        assert account.n_own(seq) == sum(owners == {seq} for _, owners in plain.cells)
        assert set(account.shared(seq)) == {s for _, o in plain.cells if seq in o for s in o} - {seq}
        for first, end, depth, owners in account.runs(seq):
            if owners[0] == seq:
                told.update({(pos, frozenset(owners)): depth for pos in range(first, end)})
    assert told == plain.entries()
    assert account.n_used == len(plain.cells)


def test_a_long_sequence_is_one_run() -> None:
    account = CellAccount(64)
    for _ in range(1000):
        account.extend(0)
    account.extend(0, 100_000)
    for seq in range(1, 64):
        account.seq_cp(0, seq)
    assert account.runs(5) == [(0, 101_000, 1, tuple(range(64)))]
    for _ in range(10):
        for seq in range(64):
            account.extend(seq)
    assert account.n_used == 101_000 + 640
    assert [run[:2] for run in account.runs(5)] == [(0, 101_000), (101_000, 101_010)]


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
@pytest.mark.parametrize("unified", [True, False])
def test_what_differs_is_named(tiny_model: TinyModelFactory, kind: str, unified: bool) -> None:
    with make(tiny_model(kind), kv_unified=unified, n_ctx=768) as ctx:
        account = CellAccount.of(ctx.memory)
        account.verify(ctx.memory)
        feed(ctx, 20)
        with pytest.raises(errors.CellMismatchError, match="sequence 0: pos_max is -1 here and 19") as caught:
            account.verify(ctx.memory)
        assert len(caught.value.differences) >= 3
        account.extend(0, 20)
        account.verify(ctx.memory)
        ctx.memory.seq_cp(0, 2)
        with pytest.raises(errors.CellMismatchError, match="sequence 2: pos_max is -1 here and 19"):
            account.verify(ctx.memory)
        account.seq_cp(0, 2)
        account.verify(ctx.memory)
        feed(ctx, 5, 20, 2)
        account.extend([2], 5)
        account.verify(ctx.memory)
        adopted = CellAccount.of(ctx.memory)
        adopted.verify(ctx.memory)
        for seq in range(N_SEQ):
            assert adopted.runs(seq) == account.runs(seq)
        account.seq_rm(0)
        with pytest.raises(errors.CellMismatchError):
            account.verify(ctx.memory)
        ctx.memory.seq_rm(0)
        account.verify(ctx.memory)


def test_owners_that_differ_while_positions_do_not(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        account = CellAccount.of(ctx.memory)
        for seq in (0, 1):
            feed(ctx, 10, 0, seq)
        account.extend([0, 1], 10, 0)  # the memory has two cells for each
        with pytest.raises(errors.CellMismatchError, match="10 cells are in use here and 20"):
            account.verify(ctx.memory)


def test_a_window_that_lacks_what_follows(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("swa"), swa_full=False, n_ubatch=32, n_ctx=1024) as ctx:
        account = CellAccount.of(ctx.memory)
        assert account.window == 32
        for pos in range(0, 500, 100):
            feed(ctx, 100, pos)
            account.extend(0, 100)
            account.verify(ctx.memory)
        assert ctx.memory.seq_pos_min(0) > 0
        account.window = 500
        with pytest.raises(errors.CellMismatchError, match="too late"):
            account.verify(ctx.memory)
