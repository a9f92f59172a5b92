"""``Batch``: filled from arrays, tokens or embeddings; what it says of itself; what it refuses, by the row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny_archs
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=1024).astype(np.int32)
EXACT = {"n_ctx": 256, "type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3


def contents(batch: Batch) -> tuple[list, ...]:
    return batch.tokens.tolist(), batch.pos.tolist(), batch.seq_ids.tolist(), batch.wants_output.tolist()


def as_added(rows: list[tuple]) -> tuple[list, ...]:
    """What the same rows come to, added one by one."""
    batch = Batch(len(rows))
    for row in rows:
        batch.add(*row)
    return contents(batch)


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_seq_max=4, **EXACT) as made:
        yield made


# ---------------------------------------------------------------------------------------------------- filling


def test_arrays_fill_it_as_rows_one_by_one_do() -> None:
    tokens = np.array([5, 6, 7, 8], np.int32)
    wants = np.array([True, False, False, True])
    batch = Batch(16)
    assert batch.set(tokens) == 3
    assert contents(batch) == as_added([(5, 0, 0), (6, 1, 0), (7, 2, 0), (8, 3, 0, True)])
    assert batch.set(tokens, 10, 2, "all") == 3
    assert contents(batch) == as_added([(int(t), 10 + i, 2, True) for i, t in enumerate(tokens)])
    batch.set(tokens, np.array([3, 9, 4, 10], np.int32), np.array([0, 1, 0, 1], np.int32), wants)
    assert contents(batch) == as_added([(5, 3, 0, True), (6, 9, 1), (7, 4, 0), (8, 10, 1, True)])
    assert (len(batch), batch.n_outputs) == (4, 2)
    batch.set(tokens, 0, np.array([[0, 1, 2], [3, -1, -1], [2, 0, -1], [1, -1, -1]]), "none")
    assert contents(batch) == as_added([(5, 0, [0, 1, 2]), (6, 1, 3), (7, 2, [2, 0]), (8, 3, 1)])
    assert batch.add_rows([9], 4, [[0, 2]], [True]) == 4
    assert batch.add(10, 5, 3) == 5
    assert batch.add_rows(tokens[:2], [7, 9], 1) == 7
    assert contents(batch) == as_added(
        [(5, 0, [0, 1, 2]), (6, 1, 3), (7, 2, [2, 0]), (8, 3, 1), (9, 4, [0, 2], True), (10, 5, 3), (5, 7, 1),
         (6, 9, 1, True)]
    )  # fmt: skip
    assert batch.n_outputs == 2
    made = Batch.from_arrays(tokens, 2, 1, wants)
    assert (made.capacity, made.n_embd) == (4, 0)
    assert contents(made) == as_added([(5, 2, 1, True), (6, 3, 1), (7, 4, 1), (8, 5, 1, True)])


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_integers_of_any_kind(dtype: object) -> None:
    values = np.array([5, 6, 7], dtype)
    wide = np.zeros((3, 4), dtype)
    wide[:, 1] = values
    for tokens in (values, wide[:, 1], values[::-1][::-1], values.tolist(), tuple(values)):
        batch = Batch.from_arrays(tokens, tokens, np.array([0, 1, 2], dtype))
        assert contents(batch) == as_added([(5, 5, 0), (6, 6, 1), (7, 7, 2, True)])
    read_only = values.copy()
    read_only.flags.writeable = False
    assert Batch.from_arrays(read_only).tokens.tolist() == [5, 6, 7]
    assert Batch.from_arrays([5], np.int64(3), np.int32(2)).pos.tolist() == [3]


def test_it_copies_what_it_is_given() -> None:
    tokens, pos = TOKENS[:5].copy(), np.arange(5, dtype=np.int32)
    batch = Batch.from_arrays(tokens, pos)
    tokens[:] = pos[:] = 0
    assert batch.tokens.tolist() == TOKENS[:5].tolist()
    assert batch.pos.tolist() == [0, 1, 2, 3, 4]
    batch.tokens[:] = 0
    assert batch.tokens.tolist() == TOKENS[:5].tolist()


def test_what_is_in_an_empty_one() -> None:
    batch = Batch(4)
    for array, dtype in ((batch.tokens, np.int32), (batch.pos, np.int32), (batch.wants_output, np.bool_)):
        assert array.shape == (0,) and array.dtype == dtype
    assert batch.seq_ids.shape == (0, 1)
    assert batch.embeddings.shape == (0, 0) and batch.embeddings.dtype == np.float32
    assert "0 of 4 rows" in repr(batch)
    assert "embeddings" in repr(Batch(4, n_embd=8))


def test_a_decode_of_arrays(ctx: Context) -> None:
    one = Batch(64)
    for i in range(20):
        one.add(int(TOKENS[i]), i // 2, i % 2, logits=i >= 18)
    ctx.decode(one)
    expected = ctx.logits_matrix().copy()
    ctx.memory.clear()
    pos, seqs = np.arange(20) // 2, np.arange(20) % 2
    ctx.decode(Batch.from_arrays(TOKENS[:20], pos, seqs, np.arange(20) >= 18))
    np.testing.assert_array_equal(ctx.logits_matrix(), expected)


# ---------------------------------------------------------------------------------------------------- refusals

BAD = [
    (([-1],), "row 0 has token -1"),
    (([1, 2**31 - 1, -7],), "row 2 has token -7"),
    (([1, 2**31],), "rows has 2147483648"),
    (([],), "rows is empty"),
    ((np.zeros(0, np.int32),), "rows is empty"),
    ((np.zeros((0, 4), np.int32),), "rows"),
    ((np.zeros((2, 2), np.int32),), r"rows has shape \(2, 2\)"),
    (([1, 2], -1), "pos=-1"),
    (([1, 2], 2**31 - 2), "pos=2147483646"),
    (([1, 2], [0, -1]), "row 1 has position -1"),
    (([1, 2], [0, 2**31 - 1]), "row 1 has position 2147483647"),
    (([1, 2], [0]), "pos has 1 rows: there are 2"),
    (([1, 2], [0, 1, 2]), "pos has 3 rows"),
    (([1, 2], np.zeros((2, 4), np.int32)), r"pos has shape \(2, 4\)"),
    (([1, 2], [0, -(2**40)]), "pos has -1099511627776"),
    (([1, 2], 0, -1), "seq_ids=-1"),
    (([1, 2], 0, 256), "seq_ids=256"),
    (([1, 2], 0, [0, -1]), r"row 1 has seq_ids \[-1\]"),
    (([1, 2], 0, [0, 256]), r"row 1 has seq_ids \[256\]"),
    (([1, 2], 0, [[0, 1], [1, 1]]), r"row 1 has seq_ids \[1, 1\]"),
    (([1, 2], 0, [[0, 1], [-1, 1]]), r"row 1 has seq_ids \[-1, 1\]"),
    (([1, 2], 0, [[0, -1, 1], [1, 2, 3]]), r"row 0 has seq_ids \[0, -1, 1\]"),
    (([1, 2], 0, [[0, -2], [0, 1]]), r"row 0 has seq_ids \[0, -2\]"),
    (([1, 2], 0, [0]), "seq_ids has 1 rows"),
    (([1, 2], 0, np.zeros((2, 257), np.int32)), "seq_ids has shape"),
    (([1, 2], 0, np.zeros((2, 0), np.int32)), "seq_ids"),
    (([1, 2], 0, 0, "first"), "logits='first'"),
    (([1, 2], 0, 0, [True]), "logits has 1 rows"),
    (([1, 2], 0, 0, np.ones((2, 1), bool)), r"logits has shape \(2, 1\)"),
    ((np.zeros(9, np.int32),), "9 more rows do not fit"),
]
BAD_TYPES = [
    (None,), (3,), ("abc",), ([None],), ([1.5],), (np.zeros(2),), ([[1], [1, 2]],), (["1"],), ({1: 2},), ([2**70],),
    ([1, 2], None), ([1, 2], "0"), ([1, 2], 1.0), ([1, 2], True), ([1, 2], [0.0, 1.0]), ([1, 2], object()),
    ([1, 2], 0, None), ([1, 2], 0, "0"), ([1, 2], 0, False), ([1, 2], 0, [[0], [0, 1]]),
    ([1, 2], 0, 0, None), ([1, 2], 0, 0, True), ([1, 2], 0, 0, [0, 1]), ([1, 2], 0, 0, b"last"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "match"), BAD, ids=str)
def test_bad_rows_are_named_and_none_is_added(arguments: tuple, match: str) -> None:
    batch = Batch(8)
    batch.set([5, 6], 3, [[0, 1], [0, 1]], "all")
    before = contents(batch)
    for method in (batch.add_rows, batch.set):
        with pytest.raises(errors.InvalidArgumentError, match=match):
            method(*arguments)
        assert contents(batch) == before
        assert (len(batch), batch.n_outputs) == (2, 2)


@pytest.mark.parametrize("arguments", BAD_TYPES, ids=str)
def test_values_of_the_wrong_type(arguments: tuple) -> None:
    batch = Batch(8)
    for method in (batch.add_rows, batch.set, Batch.from_arrays):
        with pytest.raises((errors.ArgumentTypeError, errors.InvalidArgumentError)):
            method(*arguments)
    assert len(batch) == 0


def test_widths_of_embeddings_that_cannot_be() -> None:
    for bad in (0, -1, 2**20 + 1, 2**64):
        with pytest.raises(errors.InvalidArgumentError, match="n_embd"):
            Batch(1, n_embd=bad)
    for bad in (True, 1.5, "8"):
        with pytest.raises(errors.ArgumentTypeError, match="n_embd"):
            Batch(1, n_embd=bad)


def test_a_batch_is_for_one_thread(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama", n_ctx_train=16384, n_layer=12))
    with Context(model, n_ctx=2048, n_batch=2048, n_threads=1) as ctx:
        batch = Batch.from_arrays(np.full(2048, 300, np.int32))

        def decode() -> None:
            while ctx.memory.seq_pos_max(0) < 0:
                try:
                    ctx.decode(batch)
                except errors.ContextBusyError:  # this thread too may find it taken
                    pass

        thread = threading.Thread(target=decode)
        thread.start()
        refused = 0
        while thread.is_alive():
            # the first two are refused either way: it is full, and no row is none
            for call in (
                lambda: batch.add_rows([1]),
                lambda: batch.set([]),
                lambda: batch.tokens,
                lambda: batch.seq_ids,
            ):
                try:
                    call()
                except errors.ContextBusyError:
                    refused += 1
                except errors.InvalidArgumentError:
                    pass
        thread.join()
        assert refused > 5
        assert len(batch) == 2048
        assert ctx.memory.seq_pos_max(0) == 2047


# ---------------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_embeddings_in_place_of_the_tokens_they_belong_to(tiny_model: TinyModelFactory, kind: str) -> None:
    path = tiny_model(kind)
    scale = 8.0 if kind == "swa" else 1.0  # gemma multiplies what it looks up, and not what it is given
    table = tiny_archs.token_embeddings(path) * scale
    with Context(Model(path), n_seq_max=2, **EXACT) as ctx:
        ctx.decode(Batch.from_arrays(TOKENS[:12], logits="all"))
        expected = ctx.logits_matrix()
        ctx.memory.clear()
        batch = Batch(16, n_embd=64)
        assert batch.add_rows(table[TOKENS[:5]], logits="all") == 4
        assert batch.add_rows(table[TOKENS[5:12]], 5, 0, np.ones(7, bool)) == 11
        np.testing.assert_array_equal(batch.embeddings, table[TOKENS[:12]])
        assert batch.tokens.shape == (0,)
        ctx.decode(batch)
        np.testing.assert_allclose(ctx.logits_matrix(), expected, atol=CLOSE)
        # tokens and embeddings in turn, in batches of their own
        ctx.decode(Batch.from_arrays(TOKENS[12:13], 12))
        ctx.decode(Batch.from_arrays(table[TOKENS[13:14]], 13))
        alone = ctx.logits().copy()
        ctx.memory.clear()
        ctx.decode(Batch.from_arrays(TOKENS[:14]))
        np.testing.assert_allclose(ctx.logits(), alone, atol=CLOSE)


def test_embeddings_of_an_encoder(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("bert")
    table = tiny_archs.token_embeddings(path)
    with Context(Model(path), embeddings=True, **EXACT) as ctx:
        ctx.encode(Batch.from_arrays([1, 50, 60, 2]))
        expected = ctx.embeddings_seq(0)
        ctx.encode(Batch.from_arrays(table[[1, 50, 60, 2]]))
        np.testing.assert_allclose(ctx.embeddings_seq(0), expected, atol=CLOSE)


def test_embeddings_that_are_refused(ctx: Context) -> None:
    batch = Batch(8, n_embd=64)
    rows = np.ones((3, 64), np.float32)
    for bad, kind, match in [
        (rows[:, :63], errors.InvalidArgumentError, r"shape \(3, 63\): it must be \(n, 64\)"),
        (rows[0], errors.InvalidArgumentError, r"shape \(64,\)"),
        (rows.reshape(3, 8, 8), errors.ArgumentTypeError, "shape"),
        (rows.astype(complex), errors.ArgumentTypeError, "complex"),
        ([["a"] * 64], errors.ArgumentTypeError, "dtype"),
        (rows.astype(np.float64) * 1e300, errors.InvalidArgumentError, "row 0 has the embedding inf"),
        (np.zeros((0, 64), np.float32), errors.InvalidArgumentError, "empty"),
        (np.ones((9, 64), np.float32), errors.InvalidArgumentError, "do not fit"),
    ]:
        with pytest.raises(kind, match=match):
            batch.add_rows(bad)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = rows.copy()
        spoilt[2, 63] = value
        with pytest.raises(errors.InvalidArgumentError, match=r"row 2 has the embedding .* at index 63"):
            batch.add_rows(spoilt)
    with pytest.raises(errors.InvalidArgumentError, match="no tokens: use add_rows"):
        batch.add(5, 0, 0)
    with pytest.raises(errors.InvalidArgumentError, match="no tokens: use add_rows"):
        batch.add_sequence([5])
    assert len(batch) == 0
    for dtype in (np.float16, np.float64, np.int64):
        batch.set(rows.astype(dtype))
        np.testing.assert_array_equal(batch.embeddings, rows)
    with pytest.raises(errors.InvalidArgumentError, match="n_embd=65: this model takes 64"):
        ctx.decode(Batch.from_arrays(np.ones((1, 65), np.float32)))
    with pytest.raises(errors.InvalidArgumentError, match="four positions"):
        ctx.decode(Batch.from_arrays(rows, np.zeros((3, 4), np.int32)))
    ctx.decode(batch)
    assert np.isfinite(ctx.logits()).all()


def test_m_rope(tmp_path: Path) -> None:
    path = tiny_archs.qwen2vl(tmp_path / "qwen2vl.gguf")
    table = tiny_archs.token_embeddings(path)
    with Context(Model(path), n_seq_max=2, **EXACT) as ctx:

        def logits(batch: Batch) -> np.ndarray:
            ctx.memory.clear()
            ctx.decode(batch)
            return ctx.logits_matrix().copy()

        expected = logits(Batch.from_arrays(TOKENS[:9], logits="all"))
        rows = table[TOKENS[:9]]
        np.testing.assert_allclose(logits(Batch.from_arrays(rows, logits="all")), expected, atol=CLOSE)
        pos = np.repeat(np.arange(9, dtype=np.int32)[:, None], 4, axis=1)
        pos[:, 3] = 0
        np.testing.assert_allclose(logits(Batch.from_arrays(rows, pos, 0, "all")), expected, atol=CLOSE)
        # some rows with one position, some with four
        mixed = Batch(9, n_embd=64)
        mixed.add_rows(rows[:4], 0, 0, "all")
        mixed.add_rows(rows[4:], pos[4:], 0, "all")
        np.testing.assert_allclose(logits(mixed), expected, atol=CLOSE)
        # a picture of 3 by 2: the same time, other places
        image = np.array([[2, 2 + y, 2 + x, 0] for y in range(3) for x in range(2)], np.int32)
        ctx.memory.clear()
        ctx.decode(Batch.from_arrays(TOKENS[:2]))
        ctx.decode(Batch.from_arrays(rows[:6], image))
        assert ctx.memory.seq_pos_max(0) == 2
        first = ctx.logits().copy()
        with pytest.raises(errors.InvalidArgumentError, match="next is 3 or more"):
            ctx.decode(Batch.from_arrays([5], 2))
        with pytest.raises(errors.InvalidArgumentError, match="next is 3 or more"):
            ctx.decode(Batch.from_arrays(rows[:2], image[:2]))
        with pytest.raises(errors.InvalidArgumentError, match="next is 6 or more"):
            ctx.decode(Batch.from_arrays([5, 6], [5, 5]))
        ctx.decode(Batch.from_arrays([5], 5))  # text goes on behind the largest of the picture's positions
        assert np.isfinite(ctx.logits()).all()
        image[:, 1] = 2  # the places count
        ctx.memory.clear()
        ctx.decode(Batch.from_arrays(TOKENS[:2]))
        ctx.decode(Batch.from_arrays(rows[:6], image))
        assert np.abs(ctx.logits() - first).max() > 10 * CLOSE
        for shape in ((6, 2), (6, 3)):
            with pytest.raises(errors.InvalidArgumentError, match="one position, or four"):
                Batch.from_arrays(rows[:6], np.zeros(shape, np.int32))
        with pytest.raises(errors.InvalidArgumentError, match="row 1 has position -3"):
            Batch.from_arrays(rows[:2], [[0, 0, 0, 0], [1, 0, -3, 0]])
