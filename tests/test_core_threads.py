"""One context, one thread: a second one is turned away from every call, and nothing is closed under the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain
from test_core_lifecycle import CONTEXT_CALLS, MEMORY_CALLS, feed, touch


@pytest.fixture
def busy(tiny_model: TinyModelFactory) -> Iterator[tuple[Context, Batch]]:
    """A context that another thread is in the middle of a long decode of, and the batch it decodes."""
    model = Model(tiny_model("llama", n_ctx_train=16384, n_layer=12))
    made = Context(model, n_ctx=8192, n_batch=8192, n_ubatch=256, n_seq_max=2, n_threads=1)
    batch = Batch(8192)
    batch.add_sequence(np.full(8192, 300))
    ended: list[BaseException] = []

    def work() -> None:
        try:
            made.decode(batch)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while True:
        try:
            _ = made.n_ctx_seq
        except errors.ContextBusyError:
            break
    yield made, batch
    assert thread.is_alive()  # the test was quicker than the decode
    made.abort()
    thread.join()
    assert [type(error) for error in ended] == [errors.DecodeAbortedError]
    assert made.memory.seq_pos_max(0) == -1
    assert np.isfinite(feed(made)).all()
    model.close()


def test_a_second_thread_is_turned_away_everywhere(busy: tuple[Context, Batch]) -> None:
    ctx, batch = busy
    for target, calls in ((ctx, CONTEXT_CALLS), (ctx.memory, MEMORY_CALLS)):
        for name, arguments in calls.items():
            if name == "fingerprint":  # reads the model
                continue
            with pytest.raises(errors.ContextBusyError):
                touch(target, name, arguments)
    with pytest.raises(errors.ContextBusyError):
        SamplerChain().greedy().sample(ctx)
    for call in (batch.clear, lambda: batch.add(1, 0, 0), lambda: batch.add_sequence([1])):
        with pytest.raises(errors.ContextBusyError):
            call()
    with pytest.raises(errors.ContextBusyError), ctx:
        pass
    with pytest.raises(errors.ContextBusyError):
        Context(ctx.model, n_ctx=256).decode(batch)
    assert (len(batch), ctx.closed, ctx.n_ctx) == (8192, False, 8192)


def test_closing_is_refused_while_a_thread_is_inside(busy: tuple[Context, Batch]) -> None:
    ctx, _ = busy
    others = [Context(ctx.model, n_ctx=256, n_threads=1) for _ in range(12)]
    for close in (ctx.close, ctx.model.close):
        with pytest.raises(errors.ContextBusyError):
            close()
    assert not ctx.closed
    assert not ctx.model.closed
    assert [other.closed for other in others] == [False] * 12  # nothing is freed
    assert np.isfinite(feed(others[0])).all()
