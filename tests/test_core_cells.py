"""``Memory.cells`` and the limits of each memory kind: what llama.cpp gets wrong without a word is refused or exact."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=8192).astype(np.int32)
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3  # a wrong token moves a logit by a hundred times that
KINDS = {
    "llama": ({}, ["full"]),
    "swa": ({}, ["full", "window"]),
    "mamba": ({}, ["state"]),
    "hybrid": ({}, ["full", "state"]),
}


def make(path: Path, **options: object) -> Context:
    return Context(Model(path), **{"n_ctx": 512, "n_batch": 512, "n_seq_max": 4, **EXACT, **options})


def feed(ctx: Context, tokens: np.ndarray, pos: int = 0, seq: int = 0) -> np.ndarray:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, pos, seq)
    ctx.decode(batch)
    return ctx.logits().copy()


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.abs(left - right).max() < CLOSE)


def span(ctx: Context, seq: int) -> tuple[int, int]:
    return ctx.memory.seq_pos_min(seq), ctx.memory.seq_pos_max(seq)


# ---------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_memory_is_told(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        for tables in (ctx.memory.cells(), ctx.memory.cells()):
            assert [table.kind for table in tables] == KINDS[kind][1]
            assert all(table.used == table.end == 0 and (table.pos == -1).all() for table in tables)
            assert not any(table.seqs.any() for table in tables)
        feed(ctx, TOKENS[:30])
        ctx.memory.seq_cp(0, 3)
        feed(ctx, TOKENS[100:110], 0, 1)
        for table in ctx.memory.cells():
            assert table.stream == 0
            assert table.pos.dtype == np.int32 and table.seqs.dtype == np.uint64
            assert table.seqs.shape == (len(table.pos), 1)
            if table.kind == "state":
                assert len(table.pos) == 4
                assert sorted(table.pos[table.pos >= 0]) == [9, 29]
                assert table.owners(int(np.argmax(table.pos))) == [0, 3]
                assert table.used == 2
            else:
                assert len(table.pos) == 512
                assert table.window == (32 if table.kind == "window" else 0)
                assert table.pos[table.owned_by(0)].tolist() == list(range(30))
                assert table.pos[table.owned_by(1)].tolist() == list(range(10))
                assert table.owned_by(0).tolist() == table.owned_by(3).tolist()
                assert table.owned_by(2).size == 0
                assert table.used == table.end == 40
        last = ctx.memory.cells()[0]
        assert (ctx.memory.n_cells, ctx.memory.n_used, ctx.memory.n_used_end) == (
            len(last.pos),
            last.used,
            last.end,
        )


@pytest.mark.parametrize("kind", ["llama", "swa", "hybrid"])
def test_streams_have_tables_of_their_own(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind), kv_unified=False, n_ctx=1024) as ctx:
        feed(ctx, TOKENS[:30], 0, 2)
        feed(ctx, TOKENS[:5], 0, 0)
        full = [table for table in ctx.memory.cells() if table.kind == "full"]
        assert [table.stream for table in full] == [0, 1, 2, 3]
        assert [table.used for table in full] == [5, 0, 30, 0]
        assert full[2].owners(0) == [2]
        assert (ctx.memory.n_cells, ctx.memory.n_used, ctx.memory.n_used_end) == (1024, 35, 30)


def test_sequences_beyond_the_first_64(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), n_seq_max=200) as ctx:
        feed(ctx, TOKENS[:4], 0, 150)
        ctx.memory.seq_cp(150, 63)
        ctx.memory.seq_cp(150, 64, 0, 2)
        ctx.memory.seq_cp(150, 199)
        (table,) = ctx.memory.cells()
        assert table.seqs.shape == (512, 4)
        assert table.owners(0) == [63, 64, 150, 199]
        assert table.owners(3) == [63, 150, 199]


def test_counting_is_cheap(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        feed(ctx, TOKENS[:400])
        memory = ctx.memory
        best = min(timed(lambda: memory.n_used) for _ in range(50))
        assert memory.n_used == 400
        assert best < 5e-6  # about 0.2 µs here


def timed(call: object) -> float:
    start = time.perf_counter()
    for _ in range(100):
        call()
    return (time.perf_counter() - start) / 100


# ---------------------------------------------------------------------------------------------------- shared cells


@pytest.mark.parametrize("name", ["seq_add", "seq_div"])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_that_others_share_do_not_move_unasked(
    tiny_model: TinyModelFactory, kind: str, name: str
) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:30])
        ctx.memory.seq_cp(0, 2)
        move = getattr(ctx.memory, name)
        with pytest.raises(errors.InvalidArgumentError, match="sequence 2 shares"):
            move(0, 0, -1, 2)
        assert ctx.memory.seq_pos_max(0) == ctx.memory.seq_pos_max(2) == 29
        if "state" in KINDS[kind][1]:
            with pytest.raises(errors.InvalidArgumentError, match="sequence 0 shares"):
                move(2, 0, -1, 2, shared=True)
            assert same(feed(ctx, TOKENS[30:31], 30, 2), feed(ctx, TOKENS[30:31], 30, 0))
        else:
            move(2, 0, -1, 2, shared=True)
            assert span(ctx, 0) == span(ctx, 2) == ((2, 31) if name == "seq_add" else (0, 14))


def test_a_tail_of_its_own_moves(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        feed(ctx, TOKENS[:20])
        ctx.memory.seq_cp(0, 1)
        feed(ctx, TOKENS[20:30], 20, 1)
        ctx.memory.seq_add(1, 20, -1, 5)
        assert span(ctx, 1) == (0, 34)
        assert span(ctx, 0) == (0, 19)


def test_a_state_of_its_own_moves_with_its_cells(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("hybrid", architecture="lfm2", n_layer=2)) as ctx:
        expected = feed(ctx, TOKENS[:31])
        ctx.memory.clear()
        feed(ctx, TOKENS[:30])
        for low, high, delta in ((0, 10, 5), (5, 30, -1), (5, -1, -1), (0, 29, 3)):
            with pytest.raises(errors.ModelCapabilityError, match="moves whole"):
                ctx.memory.seq_add(0, low, high, delta)
        ctx.memory.seq_add(0, 0, -1, 70)
        assert ctx.memory.seq_pos_max(0) == 99
        full, state = ctx.memory.cells()
        assert sorted(full.pos[full.pos >= 0]) == list(range(70, 100))
        assert state.pos.max() == 99
        assert same(feed(ctx, TOKENS[30:31], 100), expected)


@pytest.mark.parametrize("kind", ["llama", "swa"])
def test_rows_of_sequences_that_differ(tiny_model: TinyModelFactory, kind: str) -> None:
    # upstream compares their first and last positions, and computes the row from the cells of the first
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:20])
        feed(ctx, TOKENS[50:70], 0, 1)
        ctx.memory.seq_cp(0, 2)
        batch = Batch(1)
        batch.add(300, 20, [0, 1], True)
        with pytest.raises(errors.InvalidArgumentError, match="different cells"):
            ctx.decode(batch)
        batch.clear()
        batch.add(300, 20, [0, 2], True)
        ctx.decode(batch)
        assert span(ctx, 0) == span(ctx, 2) == (0, 20)
        assert same(feed(ctx, TOKENS[:1], 21, 0), feed(ctx, TOKENS[:1], 21, 2))


@pytest.mark.parametrize(("kind", "unified"), [("llama", False), ("swa", False), ("mamba", True)])
def test_rows_that_no_sequences_can_share(tiny_model: TinyModelFactory, kind: str, unified: bool) -> None:
    # upstream says that there is no room
    with make(tiny_model(kind), kv_unified=unified) as ctx:
        batch = Batch(1)
        batch.add(300, 0, [0, 1], True)
        with pytest.raises(errors.ModelCapabilityError, match="several sequences"):
            ctx.decode(batch)


# ---------------------------------------------------------------------------------------------------- moving


@pytest.mark.parametrize("kind", ["llama", "swa"])
@pytest.mark.parametrize("unified", [True, False])
def test_dividing_turns_keys_as_moving_each_would(
    tiny_model: TinyModelFactory, kind: str, unified: bool
) -> None:
    with make(tiny_model(kind), kv_unified=unified, n_ctx=1024) as ctx:
        rows = []
        for divide in (True, False):
            ctx.memory.clear()
            feed(ctx, TOKENS[:31])
            if divide:
                ctx.memory.seq_div(0, 3, 27, 3)
            else:
                for pos in range(3, 27):
                    ctx.memory.seq_add(0, pos, pos + 1, pos // 3 - pos)
            for table in ctx.memory.cells():
                if table.used:
                    expected = [p // 3 if 3 <= p < 27 else p for p in range(31)]
                    assert sorted(table.pos[table.pos >= 0]) == sorted(expected)
            ctx.memory.seq_cp(0, 1)
            rows.append(feed(ctx, TOKENS[31:32], 31, 1))
        assert same(*rows)
        feed(ctx, TOKENS[:31], 0, 2)
        assert not same(rows[0], feed(ctx, TOKENS[31:32], 31, 2))


def test_a_cache_without_layers_moves_too(tiny_model: TinyModelFactory) -> None:
    # gemma3 with one layer: it slides, and the full half of the memory has none; upstream fails an assertion
    with make(tiny_model("swa", n_layer=1)) as ctx:
        expected = feed(ctx, np.concatenate([TOKENS[:10], TOKENS[20:31]]))
        ctx.memory.clear()
        feed(ctx, TOKENS[:30])
        assert ctx.memory.seq_rm(0, 10, 20)
        ctx.memory.seq_add(0, 20, -1, -10)
        assert same(feed(ctx, TOKENS[30:31], 20), expected)
        ctx.memory.seq_add(0, 0, -1, 5)
        assert isinstance(ctx.state_seq_get(0), bytes)


@pytest.mark.parametrize("how", ["timeout", "abort"])
def test_a_stopped_decode_does_not_stop_a_move_half_way(tiny_model: TinyModelFactory, how: str) -> None:
    with make(tiny_model("llama", n_layer=8, n_ctx_train=8192), n_ctx=8192, n_batch=4096) as ctx:
        feed(ctx, TOKENS[:4000])
        expected = feed(ctx, TOKENS[4000:4001], 4000)
        ctx.memory.seq_rm(0, 4000, -1)
        for step in range(1, 4):
            ctx.memory.seq_add(0, 0, -1, 50)
            batch = Batch(1)
            batch.add_sequence(TOKENS[4000:4001], 4000 + 50 * step)
            if how == "timeout":
                with pytest.raises(errors.DecodeAbortedError):
                    ctx.decode(batch, timeout=0)
            else:
                stop = threading.Timer(0.001 * step, ctx.abort)
                stop.start()
                try:
                    ctx.decode(batch)
                    ctx.memory.seq_rm(0, 4000 + 50 * step, -1)
                except errors.DecodeAbortedError:
                    pass
                stop.join()
            assert span(ctx, 0) == (50 * step, 3999 + 50 * step)
        assert np.abs(feed(ctx, TOKENS[4000:4001], 4150) - expected).max() < 0.05


# ---------------------------------------------------------------------------------------------------- windows


def windowed(tiny_model: TinyModelFactory, **options: object) -> Context:
    """A context whose window of 32 positions has moved on: sequence 0 has 400 tokens, the windowed half the last."""
    ctx = make(tiny_model("swa"), swa_full=False, n_ubatch=32, n_ctx=1024, **options)
    feed(ctx, TOKENS[:400])
    return ctx


def test_a_cut_that_a_window_cannot_follow(tiny_model: TinyModelFactory) -> None:
    with windowed(tiny_model) as ctx, make(tiny_model("swa")) as whole:
        first = ctx.memory.seq_pos_min(0)
        assert 0 < first <= 400 - 32
        for cut in (1, 100, first, first + 30):
            assert ctx.memory.seq_rm(0, cut, -1) is False, cut
            assert span(ctx, 0) == (first, 399)
        assert ctx.memory.seq_rm(0, first + 31, -1) is True
        feed(whole, TOKENS[: first + 31])
        at = first + 31
        assert same(feed(ctx, TOKENS[500:501], at), feed(whole, TOKENS[500:501], at))
        assert ctx.memory.seq_rm(0) is True


def test_a_fork_that_a_window_cannot_follow(tiny_model: TinyModelFactory) -> None:
    with windowed(tiny_model) as ctx:
        first = ctx.memory.seq_pos_min(0)
        for low, high in ((0, 25), (0, first + 30), (10, first + 30)):
            with pytest.raises(errors.ModelCapabilityError, match="sliding window"):
                ctx.memory.seq_cp(0, 1, low, high)
            assert all(table.owned_by(1).size == 0 for table in ctx.memory.cells())
        at = first + 31
        ctx.memory.seq_cp(0, 1, 0, at)
        row = feed(ctx, TOKENS[500:501], at, 1)
        with make(tiny_model("swa")) as whole:
            feed(whole, TOKENS[:at])
            assert same(row, feed(whole, TOKENS[500:501], at))


def test_what_a_window_has_dropped_is_still_held(tiny_model: TinyModelFactory) -> None:
    # seq_pos_min is that of the windowed half; the other has the sequence from its start
    with windowed(tiny_model) as ctx:
        feed(ctx, TOKENS[:40], 0, 1)
        with pytest.raises(errors.InvalidArgumentError, match="holds positions 0 to 399"):
            ctx.memory.seq_cp(1, 0, 0, 30)
    streams = windowed(tiny_model, kv_unified=False, n_seq_max=2)
    with streams, pytest.raises(errors.ModelCapabilityError, match="a part"):
        streams.memory.seq_cp(0, 1, 50, -1)


def test_parts_of_a_batch_that_a_window_cannot_hold_at_once(tiny_model: TinyModelFactory) -> None:
    # with room found for the last part, upstream has dropped what the first attends to, and answers without it
    with make(tiny_model("swa"), swa_full=False, n_ubatch=32, n_seq_max=3) as ctx:
        feed(ctx, TOKENS[200:232])
        feed(ctx, TOKENS[:32], 0, 2)
        assert ctx.memory.seq_rm(0)
        ctx.memory.seq_cp(2, 0)
        assert ctx.memory.seq_rm(2, 8, -1)
        rows = [
            (int(TOKENS[start + i]), start + i, seq)
            for i in range(40)
            for seq, start in ((0, 32), (1, 0), (2, 8))
        ]
        batch = Batch(120)
        for row in rows:
            batch.add(*row, logits=row[1] >= 40)
        before = [table.pos.tolist() for table in ctx.memory.cells()]
        with pytest.raises(errors.InvalidArgumentError, match="at most n_ubatch=32"):
            ctx.decode(batch)
        assert [table.pos.tolist() for table in ctx.memory.cells()] == before
        for start in range(0, 120, 30):
            part = Batch(30)
            for row in rows[start : start + 30]:
                part.add(*row, logits=True)
            ctx.decode(part)
        with make(tiny_model("swa")) as whole:
            assert same(ctx.logits(27), feed(whole, TOKENS[:72]))
            assert same(ctx.logits(29), feed(whole, TOKENS[:48], 0, 1))


def test_a_fork_keeps_what_slid_out_of_its_window(tiny_model: TinyModelFactory) -> None:
    with windowed(tiny_model) as ctx:
        ctx.memory.seq_cp(0, 1)
        with pytest.raises(errors.NoSlotError):
            feed(ctx, TOKENS[400:401], 400, 1)
        assert span(ctx, 0) == span(ctx, 1)
        assert ctx.memory.seq_rm(0)
        assert np.isfinite(feed(ctx, TOKENS[400:401], 400, 1)).all()


def test_a_restored_window_cannot_be_cut_as_before(tiny_model: TinyModelFactory) -> None:
    # a saved state has of the windowed half what the next token attends to, with swa_full too
    with make(tiny_model("swa")) as ctx:
        feed(ctx, TOKENS[:200])
        blob = ctx.state_seq_get(0)
        assert ctx.memory.seq_rm(0, 100, -1) is True
        ctx.state_seq_set(1, blob)
        assert ctx.memory.seq_rm(1, 100, -1) is False
        assert ctx.memory.seq_rm(1, 199, -1) is True
        feed(ctx, TOKENS[100:199], 100)
        assert same(feed(ctx, TOKENS[199:200], 199, 1), feed(ctx, TOKENS[199:200], 199, 0))


def test_a_move_that_a_window_cannot_follow(tiny_model: TinyModelFactory) -> None:
    # small enough that both halves have the same size, so that llama.cpp allows it
    with make(tiny_model("swa", sliding_window=16), swa_full=False, n_ubatch=16, n_ctx=256) as ctx:
        for pos in range(0, 250, 10):
            feed(ctx, TOKENS[pos : pos + 10], pos)
        feed(ctx, TOKENS[300:306], 0, 1)  # takes the last free cells, and then those that slid out
        feed(ctx, TOKENS[:40], 250) if ctx.memory.n_used < 200 else None
        first = ctx.memory.seq_pos_min(0)
        assert ctx.memory.can_shift
        if first > 0:
            assert ctx.memory.seq_rm(0, 5, 240)
            with pytest.raises(errors.ModelCapabilityError, match="sliding window"):
                ctx.memory.seq_add(0, 240, -1, -235)
            assert ctx.memory.seq_pos_max(0) == 249


def test_a_stopped_decode_that_a_window_cannot_step_back_from(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("swa", n_ctx_train=8192, n_layer=6)
    with make(path, swa_full=False, n_ubatch=32, n_ctx=8192, n_batch=8192) as ctx:
        kept = feed(ctx, TOKENS[200:301], 0, 1)
        ctx.memory.seq_rm(1, 100, -1)
        batch = Batch(8000)
        batch.add_sequence(TOKENS[100:8000], 100)
        for attempt in range(6):
            feed(ctx, TOKENS[:100])
            with pytest.raises(errors.DecodeAbortedError) as caught:
                ctx.decode(batch, timeout=0.1 * 2**attempt)
            if caught.value.emptied:
                break
            assert span(ctx, 0)[1] == 99  # stopped before it had left the window behind
            assert ctx.memory.seq_rm(0)
        assert caught.value.emptied == (0,)
        assert "cannot step back" in str(caught.value)
        assert span(ctx, 0) == (-1, -1)
        assert all(table.owned_by(0).size == 0 for table in ctx.memory.cells())
        assert same(feed(ctx, TOKENS[300:301], 100, 1), kept)


# ---------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_stopped_decode_spoils_no_state_beside_it(tiny_model: TinyModelFactory, kind: str) -> None:
    # upstream moves the cell of sequence 2 aside to have 0 and 1 next to each other, and its state in the graph
    path = tiny_model(kind, n_ctx_train=8192)
    with make(path, n_ctx=8192, n_batch=8192, n_ubatch=512) as ctx:
        for seq in (0, 2, 1):
            feed(ctx, TOKENS[50 * seq : 50 * seq + 20], 0, seq)
        batch = Batch(8000)
        batch.add_sequence(TOKENS[20:3000], 20, 0)
        batch.add_sequence(TOKENS[20:3000], 20, 1)
        with pytest.raises(errors.DecodeAbortedError, match="cannot step back") as caught:
            ctx.decode(batch, timeout=0)
        assert caught.value.emptied == (0, 1, 2)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(4)] == [-1] * 4
        assert same(feed(ctx, TOKENS[100:120], 0, 2), feed(ctx, TOKENS[100:120], 0, 0))


def rows_of(*seqs: int, pos: int) -> Batch:
    batch = Batch(8)
    for seq in seqs:
        batch.add(int(TOKENS[10 * seq + pos]), pos, seq, True)
    return batch


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_sequence_begins_with_nothing_after_a_stopped_decode(
    tiny_model: TinyModelFactory, kind: str
) -> None:
    # a state that the computation was to clear counts as cleared in upstream's books, and is not
    with make(tiny_model(kind)) as ctx:
        ctx.decode(rows_of(0, 1, 2, pos=0))
        for seqs in ((0, 1), (1, 2)):
            batch = Batch(8)
            for seq in seqs:
                batch.add(300, ctx.memory.seq_pos_max(seq) + 1, seq)
            with pytest.raises(errors.DecodeAbortedError):
                ctx.decode(batch, timeout=0)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(4)] == [-1] * 4
        ctx.decode(rows_of(0, 1, 2, pos=0))
        for seq in range(3):
            row = ctx.logits(seq).copy()
            with make(tiny_model(kind)) as other:
                assert same(row, feed(other, TOKENS[10 * seq : 10 * seq + 1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unified", [True, False])
def test_keeping_one_sequence_leaves_nothing_of_the_others(
    tiny_model: TinyModelFactory, kind: str, unified: bool
) -> None:
    with make(tiny_model(kind), kv_unified=unified, n_ctx=1024) as ctx:
        for seq in range(4):
            feed(ctx, TOKENS[50 * seq : 50 * seq + 20], 0, seq)
        ctx.memory.seq_keep(2)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(4)] == [-1, -1, 19, -1]
        for table in ctx.memory.cells():
            assert all(table.owned_by(seq).size == 0 for seq in (0, 1, 3) if seq < 64)
        assert ctx.memory.n_used == (1 if kind == "mamba" else 20)
