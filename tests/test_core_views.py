"""Arrays of logits are views without a copy, and never read memory that was freed or written again."""

from __future__ import annotations

import gc
import queue
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner.core import Batch, Context, Model, SamplerChain

TOKENS = np.random.default_rng(7).integers(270, 450, size=600).astype(np.int32)


def make(path: Path, **options: object) -> Context:
    return Context(Model(path), **{"n_ctx": 512, "n_seq_max": 2, "n_threads": 1, **options})


def feed(ctx: Context, n: int, pos: int, logits: str = "last") -> np.ndarray:
    batch = Batch(n)
    batch.add_sequence(TOKENS[pos : pos + n], pos, 0, logits)
    ctx.decode(batch)
    return ctx.logits()


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Context:
    return make(tiny_model("llama"))


def test_two_calls_see_the_same_memory(ctx: Context) -> None:
    row = feed(ctx, 5, 0)
    assert row.dtype == np.float32
    assert row.shape == (ctx.n_vocab,)
    assert row.flags.c_contiguous
    assert not row.flags.owndata
    assert np.shares_memory(row, ctx.logits(-1))
    assert row.ctypes.data == ctx.logits(4).ctypes.data


def test_rows_of_one_decode_lie_side_by_side(ctx: Context) -> None:
    feed(ctx, 4, 0, "all")
    rows = [ctx.logits(i) for i in range(4)]
    assert len({row.ctypes.data for row in rows}) == 4
    assert not any(np.shares_memory(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_a_view_can_be_written_and_the_next_one_sees_it(ctx: Context) -> None:
    row = feed(ctx, 5, 0)
    assert row.flags.writeable
    row[77] = 1e6
    assert ctx.logits()[77] == 1e6
    assert SamplerChain().greedy().sample(ctx) == 77


def test_a_kept_row_survives_later_decodes(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        row = feed(ctx, 5, 0)
        copy = row.copy()
        for pos in range(5, 60):
            later = feed(ctx, 1, pos)
            assert not np.shares_memory(row, later)
        np.testing.assert_array_equal(row, copy)
        assert not np.array_equal(row, later)


def test_rows_of_many_decodes_at_once(ctx: Context) -> None:
    rows, copies = [], []
    for pos in range(200):
        rows.append(feed(ctx, 1, pos))
        copies.append(rows[-1].copy())
    for row, copy in zip(rows, copies, strict=True):
        np.testing.assert_array_equal(row, copy)
    assert len({row.ctypes.data for row in rows}) == 200
    # the views may go in any order
    for i in np.random.default_rng(0).permutation(200)[:150]:
        rows[i] = copies[i] = np.zeros(0, np.float32)
    gc.collect()
    feed(ctx, 20, 200, "all")
    for row, copy in zip(rows, copies, strict=True):
        np.testing.assert_array_equal(row, copy)


def test_a_buffer_that_has_to_grow(ctx: Context) -> None:
    small = feed(ctx, 1, 0)
    kept = [(small, small.copy())]
    for n, pos in ((10, 1), (100, 11), (3, 111), (300, 114), (1, 414)):
        feed(ctx, n, pos, "all")
        kept += [(ctx.logits(i), ctx.logits(i).copy()) for i in {0, n // 2, n - 1}]
    for row, copy in kept:
        np.testing.assert_array_equal(row, copy)


def test_a_view_of_a_view_keeps_the_memory_too(ctx: Context) -> None:
    part = feed(ctx, 5, 0)[100:200:2].reshape(5, 10)
    copy = part.copy()
    memory = memoryview(ctx.logits())
    whole = bytes(memory)
    for pos in range(5, 40):
        feed(ctx, 1, pos)
    ctx.close()
    np.testing.assert_array_equal(part, copy)
    assert bytes(memory) == whole


def test_after_close(ctx: Context) -> None:
    earlier = feed(ctx, 5, 0)
    row = feed(ctx, 3, 5)
    copies = earlier.copy(), row.copy()
    ctx.close()
    ctx.model.close()
    gc.collect()
    np.testing.assert_array_equal(earlier, copies[0])
    np.testing.assert_array_equal(row, copies[1])
    row[:] = 1.0  # still ours to write
    assert row.sum() == len(row)


def test_after_the_context_and_the_model_are_gone(tiny_model: TinyModelFactory) -> None:
    ctx = make(tiny_model("llama"))
    gone = weakref.ref(ctx)
    rows = [feed(ctx, 3, 3 * i) for i in range(4)]
    copies = [row.copy() for row in rows]
    del ctx
    gc.collect()
    assert gone() is None  # a view keeps its buffer alive, not the context
    others = [make(tiny_model("llama")) for _ in range(3)]  # reuse what was freed
    for other in others:
        feed(other, 50, 100, "all")
    for row, copy in zip(rows, copies, strict=True):
        np.testing.assert_array_equal(row, copy)


def test_a_failed_decode_leaves_the_views_alone(ctx: Context) -> None:
    row = feed(ctx, 5, 0)
    copy = row.copy()
    batch = Batch(3)
    batch.add_sequence(TOKENS[:3], 100)
    for _ in range(3):
        with pytest.raises(ValueError, match="follow on"):
            ctx.decode(batch)
    np.testing.assert_array_equal(row, copy)
    later = feed(ctx, 1, 5)
    assert not np.shares_memory(row, later)
    np.testing.assert_array_equal(row, copy)


def test_a_restored_state_leaves_the_views_alone(ctx: Context) -> None:
    row = feed(ctx, 5, 0)
    copy = row.copy()
    ctx.state_seq_set(1, ctx.state_seq_get(0))
    ctx.memory.clear(True)
    feed(ctx, 5, 0)
    np.testing.assert_array_equal(row, copy)


def test_embeddings_are_kept_as_well(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), embeddings=True, pooling="none") as ctx:
        logits = feed(ctx, 5, 0, "all")
        vector = ctx.embeddings(2)
        copies = logits.copy(), vector.copy()
        assert np.shares_memory(vector, ctx.embeddings(2))
        assert not np.shares_memory(vector, logits)
        for pos in range(5, 20):
            feed(ctx, 1, pos)
    np.testing.assert_array_equal(logits, copies[0])
    np.testing.assert_array_equal(vector, copies[1])


def test_matrices_are_views_too(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), embeddings=True, pooling="none") as ctx:
        feed(ctx, 5, 0, "all")
        kept = [
            ctx.logits_matrix(),
            ctx.embeddings_matrix(),
            ctx.logits_matrix()[1:4],
            ctx.embeddings_matrix().T,
        ]
        copies = [array.copy() for array in kept]
        assert np.shares_memory(kept[0], ctx.logits(3)) and np.shares_memory(kept[1], ctx.embeddings(3))
        assert not any(array.flags.owndata for array in kept)
        kept[0][2, 7] = copies[0][2, 7] = copies[2][1, 7] = 5.0
        assert ctx.logits(2)[7] == 5.0
        feed(ctx, 1, 5)
        assert ctx.logits_matrix().shape == (1, ctx.n_vocab) and ctx.embeddings_matrix().shape == (1, 64)
        ctx.set_embeddings(False)
        for pos in range(6, 40):
            feed(ctx, 1, pos)
        assert not np.shares_memory(kept[0], ctx.logits_matrix())
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_pooled_embeddings_are_copies(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("bert")), n_ctx=256, embeddings=True, n_threads=1) as ctx:
        batch = Batch(8)
        batch.add_sequence([1, 50, 60, 2], logits="all")
        ctx.encode(batch)
        vector = ctx.embeddings_seq(0)
        copy = vector.copy()
        assert not np.shares_memory(vector, ctx.embeddings_seq(0))
        batch.clear()
        batch.add_sequence([1, 100, 2], logits="all")
        ctx.encode(batch)
    np.testing.assert_array_equal(vector, copy)


def test_views_read_and_dropped_in_other_threads(ctx: Context) -> None:
    # one thread decodes; others check and drop the rows it hands them, while the buffers take turns
    waiting: queue.Queue[tuple[np.ndarray, np.ndarray] | None] = queue.Queue()
    checked: list[bool] = []

    def check() -> None:
        while (pair := waiting.get()) is not None:
            checked.append(all(np.array_equal(*pair) for _ in range(5)))
            del pair

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for pos in range(400):
        row = feed(ctx, 1, pos)
        waiting.put((row, row.copy()))
        del row
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    assert checked == [True] * 400


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
@pytest.mark.parametrize("kept", ["nothing", "the last row", "the first row"])
def test_memory_stays_flat_over_many_decodes(tiny_model: TinyModelFactory, kept: str) -> None:
    # 2048 outputs of 548 floats are 4.5 MB: a buffer leaked at each of 500 decodes would be two gigabytes
    with make(tiny_model("llama"), n_ctx=2048, n_batch=2048) as ctx:
        feed(ctx, 500, 0, "all")
        ctx.memory.clear()
        batch = Batch(1)
        first = last = None

        def step(pos: int) -> None:
            nonlocal first, last
            batch.clear()
            batch.add(300, pos, 0, True)
            ctx.decode(batch)
            row = ctx.logits()
            if kept == "the last row":
                last = row
            elif kept == "the first row" and first is None:
                first = row

        for pos in range(100):
            step(pos)
        gc.collect()
        before = resident()
        for pos in range(100, 600):
            step(pos)
        gc.collect()
        assert resident() - before < 8 << 20
        assert (first is not None) == (kept == "the first row")
        assert (last is not None) == (kept == "the last row")


@needs_proc
def test_dropped_rows_give_their_memory_back(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), n_ctx=1024, n_batch=512) as ctx:

        def keep_and_drop() -> int:
            """The pages in use after 40 kept buffers of a megabyte each were dropped."""
            rows = []
            for _ in range(40):
                ctx.memory.clear()
                rows.append(feed(ctx, 500, 0, "all"))
            del rows
            gc.collect()
            return resident()

        # the allocator keeps pages for itself, a little more or less each time; a leak would be 44 MB a round
        first = keep_and_drop()
        for _ in range(6):
            last = keep_and_drop()
        assert last - first < 80 << 20
