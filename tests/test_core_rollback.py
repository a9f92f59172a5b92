"""A decode that fails, is aborted or interrupted leaves the KV memory as it was before the call."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=8192).astype(np.int32)
# KV memory and attention in full precision: batches of different shapes then differ by rounding alone
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3  # a wrong token moves a logit by a hundred times that
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals to a process are POSIX")


def batch_of(n: int, pos: int = 0, seq_id: int = 0) -> Batch:
    batch = Batch(n)
    batch.add_sequence(TOKENS[pos : pos + n], pos, seq_id)
    return batch


def last_row(ctx: Context, n: int, pos: int = 0, seq_id: int = 0) -> np.ndarray:
    ctx.decode(batch_of(n, pos, seq_id))
    return ctx.logits().copy()


def ends(ctx: Context) -> list[int]:
    return [ctx.memory.seq_pos_max(seq) for seq in range(ctx.n_seq_max)]


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_seq_max=4, **EXACT) as made:
        yield made


@pytest.fixture(scope="module")
def slow_model(tiny_model: TinyModelFactory) -> Model:
    """A model that needs seconds for 8000 tokens."""
    return Model(tiny_model("llama", n_ctx_train=16384, n_layer=12))


@pytest.fixture
def slow(slow_model: Model) -> Iterator[Context]:
    with Context(slow_model, n_ctx=8448, n_batch=8192, n_ubatch=256, n_seq_max=3, **EXACT) as made:
        yield made


def test_no_room_leaves_the_positions_as_they_were(tiny_model: TinyModelFactory) -> None:
    for kind in ("llama", "swa", "hybrid"):
        with Context(Model(tiny_model(kind)), n_ctx=256, n_batch=256, n_seq_max=2, **EXACT) as ctx:
            last_row(ctx, 100)
            last_row(ctx, 150, seq_id=1)
            with pytest.raises(errors.NoSlotError, match="n_ctx=256") as caught:
                ctx.decode(batch_of(10, 100))
            assert caught.value.code == 1
            assert ends(ctx) == [99, 149]
            row = last_row(ctx, 6, 100)  # exactly what is left
            ctx.memory.clear()
            np.testing.assert_allclose(row, last_row(ctx, 106), atol=CLOSE)


def shared_batch() -> Batch:
    """8000 rows, of sequence 0 and 1 together, after position 99 of both; and one of sequence 2, which was empty."""
    batch = Batch(8192)
    batch.add(300, 0, 2)
    for pos in range(100, 8100):
        batch.add(int(TOKENS[pos]), pos, [0, 1])
    return batch


def check_unchanged(ctx: Context, first: np.ndarray) -> None:
    """Sequences 0 and 1 hold 100 tokens, 2 none, there is no output, and they go on as if nothing had happened."""
    with pytest.raises(errors.IndexOutOfRangeError, match="no output"):
        ctx.logits()
    assert ends(ctx) == [99, 99, -1]
    np.testing.assert_allclose(last_row(ctx, 1, 100, 0), first, atol=CLOSE)
    np.testing.assert_allclose(last_row(ctx, 1, 100, 1), first, atol=CLOSE)


def prefilled(ctx: Context) -> np.ndarray:
    """Fill 0 to 99 of sequences 0 and 1; the logits that token 100 must give."""
    expected = last_row(ctx, 101, seq_id=2)
    ctx.memory.clear()
    last_row(ctx, 100)
    ctx.memory.seq_cp(0, 1)
    return expected


def test_abort_from_another_thread_rolls_every_sequence_back(slow: Context) -> None:
    expected, batch = prefilled(slow), shared_batch()
    threading.Timer(0.3, slow.abort).start()
    with pytest.raises(errors.DecodeAbortedError) as caught:
        slow.decode(batch)
    assert caught.value.code == 2
    check_unchanged(slow, expected)


def test_abort_without_a_decode_has_no_effect(ctx: Context) -> None:
    ctx.abort()
    assert np.isfinite(last_row(ctx, 5)).all()


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_timeout_rolls_every_sequence_back(slow: Context, timeout: float) -> None:
    expected = prefilled(slow)
    with pytest.raises(errors.DecodeAbortedError, match="timeout"):
        slow.decode(shared_batch(), timeout=timeout)
    check_unchanged(slow, expected)


def test_timeouts_that_are_long_enough_or_no_times(ctx: Context) -> None:
    ctx.decode(batch_of(5), timeout=1e9)
    for bad in (-1, float("nan"), float("inf"), 1e10):
        with pytest.raises(errors.InvalidArgumentError, match="timeout"):
            ctx.decode(batch_of(1, 5), timeout=bad)
    for bad in ("1", True, [], object()):
        with pytest.raises(errors.ArgumentTypeError, match="timeout"):
            ctx.decode(batch_of(1, 5), timeout=bad)
    assert ends(ctx)[0] == 4


def test_an_aborted_recurrent_decode_empties_its_sequences_and_says_so(tiny_model: TinyModelFactory) -> None:
    for kind in ("mamba", "hybrid"):
        model = Model(tiny_model(kind, n_ctx_train=8192))
        with Context(model, n_ctx=8192, n_batch=8192, n_ubatch=64, n_seq_max=2, **EXACT) as ctx:
            expected = last_row(ctx, 20)
            kept = last_row(ctx, 15, seq_id=1)
            with pytest.raises(errors.DecodeAbortedError, match="cannot step back"):
                ctx.decode(batch_of(8000, 20), timeout=0.02)
            assert ends(ctx) == [-1, 14]
            np.testing.assert_allclose(last_row(ctx, 20), expected, atol=CLOSE)
            assert np.abs(kept - expected).max() > 100 * CLOSE


@contextlib.contextmanager
def handler(number: int, act: object) -> Iterator[None]:
    before = signal.signal(number, act)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_ctrl_c_in_a_long_decode(slow: Context) -> None:
    expected = prefilled(slow)
    batch = shared_batch()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - also where it comes before the call
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        slow.decode(batch)
    check_unchanged(slow, expected)


@needs_posix
def test_what_a_signal_handler_raises_comes_out_of_the_decode(slow: Context) -> None:
    expected = prefilled(slow)
    busy: list[BaseException] = []

    class Mine(Exception):
        pass

    def raising(number: int, frame: object) -> None:
        try:
            slow.n_ctx_seq  # noqa: B018
        except errors.ContextBusyError as error:
            busy.append(error)
        raise Mine

    batch = shared_batch()
    with handler(signal.SIGUSR1, raising):
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        with pytest.raises(Mine):
            slow.decode(batch)
    assert len(busy) == 1
    check_unchanged(slow, expected)


@needs_posix
def test_a_signal_handler_that_returns_does_not_stop_a_decode(slow: Context) -> None:
    seen: list[float] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            os.kill(os.getpid(), signal.SIGUSR1)

    with handler(signal.SIGUSR1, lambda number, frame: seen.append(time.monotonic())):
        sender = threading.Thread(target=send)
        sender.start()
        start = time.monotonic()
        slow.decode(batch_of(2048))
        end = time.monotonic()
        stop.set()
        sender.join()
    assert ends(slow)[0] == 2047
    assert any(start < at < end for at in seen)  # while it ran, not after
