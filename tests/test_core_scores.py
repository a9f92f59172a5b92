"""Log-probabilities of many rows, against NumPy in double precision."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, argmax, log_softmax, logprobs, top_logprobs

rng = np.random.default_rng(5)


def reference(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    with np.errstate(divide="ignore"):
        wide = wide - wide.max(axis=-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To float32's own spacing and an error of 1e-6 in the sum."""
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-6)


def shapes() -> list[np.ndarray]:
    out = [
        rng.normal(size=(n, m)).astype(np.float32) * 8
        for n, m in ((1, 1), (3, 2), (5, 15), (4, 16), (7, 17), (2, 1000))
    ]
    out += [rng.normal(size=(40, 50_000)).astype(np.float32) * 4]  # enough for several threads
    out += [out[3] * np.float32(1e30), out[3] - np.float32(3e38), np.zeros((3, 548), np.float32)]
    masked = rng.normal(size=(6, 548)).astype(np.float32)
    masked[rng.random(masked.shape) < 0.9] = -np.inf
    masked[:, 77] = 1.0
    return [*out, masked]


@pytest.mark.parametrize("n_threads", [None, 1, 3])
def test_against_double_precision(n_threads: int | None) -> None:
    for logits in shapes():
        expected = reference(logits)
        found = log_softmax(logits, n_threads=n_threads)
        assert found.dtype == np.float32 and found.shape == logits.shape
        close(found, expected)
        tokens = rng.integers(0, logits.shape[1], len(logits))
        close(logprobs(logits, tokens, n_threads=n_threads), expected[np.arange(len(logits)), tokens])
        np.testing.assert_array_equal(argmax(logits, n_threads=n_threads), logits.argmax(axis=1))
        for k in {1, min(3, logits.shape[1]), min(40, logits.shape[1]), logits.shape[1]}:
            ids, scores = top_logprobs(logits, k, n_threads=n_threads)
            assert (
                ids.dtype == np.int32
                and scores.dtype == np.float32
                and ids.shape == scores.shape == (len(logits), k)
            )
            order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(ids, order)
            close(scores, np.take_along_axis(expected, order, axis=1))


def test_a_single_row() -> None:
    logits = rng.normal(size=548).astype(np.float32)
    close(log_softmax(logits), reference(logits))
    assert log_softmax(logits).shape == (548,)
    best = argmax(logits)
    assert type(best) is int and best == logits.argmax()
    score = logprobs(logits, best)
    assert type(score) is float and abs(score - reference(logits)[best]) < 1e-6
    ids, scores = top_logprobs(logits, 5)
    assert ids.shape == scores.shape == (5,) and ids[0] == best and scores[0] == np.float32(score)


def test_no_rows() -> None:
    none = np.zeros((0, 10), np.float32)
    assert log_softmax(none).shape == (0, 10)
    assert logprobs(none, []).shape == argmax(none).shape == (0,)
    assert [part.shape for part in top_logprobs(none, 3)] == [(0, 3), (0, 3)]


def test_rows_that_lie_apart_backwards_or_on_top_of_each_other() -> None:
    base = rng.normal(size=(9, 100)).astype(np.float32)
    for logits in (
        base[::2],
        base[::-1],
        base[:, 10:60],
        base[3:4],
        np.broadcast_to(base[0], (4, 100)),
        base[::-3, 5:6],
    ):
        close(log_softmax(logits), reference(logits))
        np.testing.assert_array_equal(argmax(logits), logits.argmax(axis=1))
    for bad in (base[:, ::2], base.T, base[:, ::-1]):
        with pytest.raises(errors.InvalidArgumentError, match="one piece"):
            log_softmax(bad)


def test_an_array_to_write_to() -> None:
    logits = rng.normal(size=(6, 50)).astype(np.float32)
    expected = reference(logits)
    out = np.empty((12, 60), np.float32)
    part = out[::2, 5:55]
    assert log_softmax(logits, part) is part
    close(part, expected)
    assert log_softmax(logits, out=logits) is logits
    close(logits, expected)
    row = logits[2]
    log_softmax(row, row)
    locked = np.empty((6, 50), np.float32)
    locked.flags.writeable = False
    overlapping = np.empty(400, np.float32)
    for bad, match in [
        (np.empty((6, 51), np.float32), "shape"),
        (np.empty((5, 50), np.float32), "shape"),
        (locked, "read-only|writable"),
        (np.lib.stride_tricks.as_strided(overlapping, (6, 50), (4, 4)), "overlaps"),
        (np.broadcast_to(overlapping[:50], (6, 50)), "read-only|writable|overlaps"),
    ]:
        with pytest.raises(errors.InvalidArgumentError, match=match):
            log_softmax(logits, bad)
    many = rng.normal(size=(8, 50)).astype(np.float32)
    with pytest.raises(errors.InvalidArgumentError, match="overlaps"):
        log_softmax(many[:6], many[1:7])
    for bad in (np.empty((6, 50)), [0.0], "out"):
        with pytest.raises(errors.ArgumentTypeError, match="out"):
            log_softmax(logits, bad)


CALLS: dict[str, Callable[[np.ndarray], object]] = {
    "log_softmax": log_softmax,
    "logprobs": lambda logits: logprobs(logits, np.zeros(len(logits), np.int32)),
    "top_logprobs": lambda logits: top_logprobs(logits, 3),
    "argmax": argmax,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("at", [0, 16, 99])
def test_rows_that_have_no_scores(name: str, at: int) -> None:
    for n_rows in (4, 400):
        logits = np.zeros((n_rows, 10_000), np.float32)
        logits[3, at] = np.copysign(np.float32(np.nan), -1 if n_rows == 4 else 1)
        logits[-1, 0] = np.nan
        with pytest.raises(errors.InvalidArgumentError, match="row 3 of logits has a NaN"):
            CALLS[name](logits)
    logits = np.zeros((4, 100), np.float32)
    logits[2, at] = np.inf
    if name == "argmax":
        assert argmax(logits).tolist() == [0, 0, at, 0]
    else:
        with pytest.raises(errors.InvalidArgumentError, match=r"row 2 of logits has \+inf"):
            CALLS[name](logits)
    logits[2] = -np.inf
    if name == "argmax":
        assert argmax(logits).tolist() == [0, 0, 0, 0]
    else:
        with pytest.raises(errors.InvalidArgumentError, match="row 2 of logits is -inf throughout"):
            CALLS[name](logits)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "bad",
    [
        None,
        1.0,
        [0.0, 1.0],
        "x",
        np.zeros(4),
        np.zeros(4, np.float16),
        np.zeros(4, np.int32),
        np.zeros(4, ">f4"),
        b"1234",
    ],
    ids=repr,
)
def test_logits_of_the_wrong_type(name: str, bad: object) -> None:
    with pytest.raises((errors.ArgumentTypeError, TypeError)):
        CALLS[name](bad)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 2, 2)])
def test_logits_of_the_wrong_shape(shape: tuple) -> None:
    for call in (
        log_softmax,
        argmax,
        lambda logits: top_logprobs(logits, 1),
        lambda logits: logprobs(logits, 0),
    ):
        with pytest.raises(errors.InvalidArgumentError, match="shape"):
            call(np.zeros(shape, np.float32))


def test_tokens_and_numbers_out_of_range() -> None:
    logits = np.zeros((3, 10), np.float32)
    for bad in ([0, 10, 0], [0, -1, 0]):
        with pytest.raises(errors.IndexOutOfRangeError, match=r"tokens\[1\]"):
            logprobs(logits, bad)
    for bad in ([0, 0], [0] * 4, np.zeros((3, 2), int), [0, 0, 2**40]):
        with pytest.raises(errors.InvalidArgumentError, match="tokens"):
            logprobs(logits, bad)
    for bad in (None, 0, [0.0] * 3, "abc"):
        with pytest.raises(errors.ArgumentTypeError, match="tokens"):
            logprobs(logits, bad)
    with pytest.raises(errors.IndexOutOfRangeError, match="from 0 to 9"):
        logprobs(logits[0], 10)
    for bad in (0, -1, 11, 2**40):
        with pytest.raises(errors.InvalidArgumentError, match="k="):
            top_logprobs(logits, bad)
    for bad in (None, 1.0, "1", True):
        with pytest.raises(errors.ArgumentTypeError, match="k="):
            top_logprobs(logits, bad)
    for call in (log_softmax, argmax):
        for bad in (0, 513):
            with pytest.raises(errors.InvalidArgumentError, match="n_threads"):
                call(logits, n_threads=bad)
        with pytest.raises(errors.ArgumentTypeError, match="n_threads"):
            call(logits, n_threads="2")


finite = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None)
@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 70)),
        elements=st.one_of(finite, st.sampled_from([-np.inf, 0.0, -0.0, 1.0, 1.0])),
    ),
    st.data(),
)
def test_any_rows(logits: np.ndarray, data: st.DataObject) -> None:
    logits[:, data.draw(st.integers(0, logits.shape[1] - 1))] = data.draw(finite)
    close(log_softmax(logits), reference(logits))
    k = data.draw(st.integers(1, logits.shape[1]))
    np.testing.assert_array_equal(
        top_logprobs(logits, k)[0], np.argsort(-logits, axis=1, kind="stable")[:, :k]
    )
    np.testing.assert_array_equal(argmax(logits), logits.argmax(axis=1))


def test_of_what_a_context_computed(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_threads=1) as ctx:
        tokens = np.arange(300, 320, dtype=np.int32)
        ctx.decode(Batch.from_arrays(tokens, logits="all"))
        matrix = ctx.logits_matrix()
        expected = reference(matrix)
        close(logprobs(matrix[:-1], tokens[1:]), expected[np.arange(19), tokens[1:]])
        ids, scores = top_logprobs(matrix, 3)
        close(scores, np.take_along_axis(expected, ids.astype(int), axis=1))
        close(log_softmax(ctx.logits()), expected[-1])


def test_many_threads_at_once() -> None:
    logits = rng.normal(size=(64, 40_000)).astype(np.float32)
    expected = reference(logits)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(log_softmax(logits))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        close(each, expected)
