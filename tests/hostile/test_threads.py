"""The guarantees of docs/threads.md. One context, one thread: a second one is turned away from every call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, ChatTemplate, Context, Memory, Model, SamplerChain, Stepper
from test_core_lifecycle import feed


@pytest.fixture
def busy(tiny_model: TinyModelFactory) -> Iterator[tuple[Context, Batch, Stepper]]:
    """A context that another thread is in the middle of a long decode of, and the batch it decodes."""
    model = Model(tiny_model("llama", n_ctx_train=16384, n_layer=12))
    made = Context(model, n_ctx=8192, n_batch=8192, n_ubatch=256, n_seq_max=2, n_threads=1)
    batch = Batch(8192)
    batch.add_sequence(np.full(8192, 300))
    step = Stepper(made, SamplerChain().greedy(), model.vocab)
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
    yield made, batch, step
    assert thread.is_alive()  # the test was quicker than the decode
    made.abort()
    thread.join()
    assert [type(error) for error in ended] == [errors.DecodeAbortedError]
    assert made.memory.seq_pos_max(0) == -1
    assert np.isfinite(feed(made)).all()
    model.close()


# Every public name of an object is found by itself. What may be used while another thread is inside is named here, with
# the reason; everything else has to raise ContextBusyError, methods and getters alike.

FACTS = "a number or object that is fixed when the context is made"
ANY_THREAD: dict[type, dict[str, str]] = {
    Context: {
        "abort": "its purpose", "closed": "one pointer is looked at",
        "memory": "makes the Memory; its methods are guarded",
        **dict.fromkeys(("model", "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_vocab"), FACTS),
        **dict.fromkeys(("kv_unified", "swa_full"), FACTS),
        "n_outputs": "a plain number, of the last decode that ended",
        "produces_embeddings": "a plain flag",
    },
    Memory: {"context": FACTS},
    Batch: {
        "capacity": FACTS, "n_embd": FACTS, "n_outputs": "a plain number", "from_arrays": "makes another",
    },
    Stepper: dict.fromkeys(("context", "chain", "vocab", "seq_id"), FACTS),
}  # fmt: skip


def arguments(method: Callable[..., Any], ctx: Context) -> dict[str, Any]:
    """A good value for each parameter that has no default, by its name."""
    values = {
        "batch": Batch(1), "seq_id": 0, "seq_id_src": 0, "seq_id_dst": 1, "p0": 0, "p1": -1, "delta": 1, "d": 2,
        "i": -1,
        "n_threads": 1, "blob": b"", "token": 300, "pos": 0, "seq_ids": 0, "tokens": [300], "path": "/nowhere",
        "rows": [300], "embeddings": True, "chain": None, "buffer": bytearray(9),
    }  # fmt: skip
    parameters = inspect.signature(method).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    missing = [name for name in needed if name not in values]
    assert not missing, f"{method}: say a good value for {missing} here"
    return {name: values[name] for name in needed}


def public_names(target: object) -> list[str]:
    free = ANY_THREAD[type(target)]
    names = [name for name in dir(type(target)) if not name.startswith("_")]
    assert set(free) <= set(names), f"gone from {type(target).__name__}: {set(free) - set(names)}"
    return [name for name in names if name not in free]


def use(target: object, name: str, ctx: Context) -> None:
    value = getattr(target, name)  # a getter raises here
    if callable(value):
        value(**arguments(value, ctx))


def test_a_second_thread_is_turned_away_everywhere(busy: tuple[Context, Batch, Stepper]) -> None:
    ctx, batch, step = busy
    allowed: list[str] = []

    def hammer() -> None:
        for _ in range(20):
            for target in (ctx, ctx.memory, batch, step):
                for name in public_names(target):
                    try:
                        use(target, name, ctx)
                    except errors.ContextBusyError:
                        continue
                    except BaseException as error:
                        allowed.append(f"{type(target).__name__}.{name} raised {error!r}")
                    else:
                        allowed.append(f"{type(target).__name__}.{name} was let in")

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(allowed)) == []
    for call in (
        lambda: SamplerChain().greedy().sample(ctx),
        lambda: Stepper(ctx, SamplerChain().greedy(), ctx.model.vocab),
        lambda: Context(ctx.model, n_ctx=256).decode(batch),
        ctx.__enter__,
        ctx.close,
        ctx.model.close,
    ):
        with pytest.raises(errors.ContextBusyError):
            call()
    assert (len(batch), ctx.closed, ctx.n_ctx) == (8192, False, 8192)
    repr(ctx), repr(ctx.memory), repr(batch), len(batch)


def test_what_any_thread_may_use_while_another_computes(busy: tuple[Context, Batch, Stepper]) -> None:
    ctx, *_ = busy
    for name in ANY_THREAD[Context]:
        if name != "abort":
            getattr(ctx, name)
    ctx.model.metadata, ctx.model.desc, ctx.model.chat_template()
    vocab = ctx.model.vocab
    assert vocab.detokenize(vocab.tokenize("the world")) == " the world"
    assert ChatTemplate(ctx.model).apply([{"role": "user", "content": "a"}])
    assert np.isfinite(feed(Context(ctx.model, n_ctx=256, n_threads=1))).all()


def together(work: Callable[[int], Any], n: int = 4) -> list[Any]:
    """What ``work`` gives in ``n`` threads that begin at the same moment."""
    results: list[Any] = [None] * n
    barrier = threading.Barrier(n)

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = work(i)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_share_a_model_and_a_vocabulary(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    vocab = model.vocab
    text = "the world once upon a time " * 20

    def work(i: int) -> tuple[list[int], list[float]]:
        with Context(model, n_ctx=256, n_threads=1) as ctx:
            row = feed(ctx).tolist()
            for _ in range(20):
                ids = vocab.tokenize(text).tolist()
                assert vocab.detokenize(ids) == " " + text
                assert model.vocab is not None and model.metadata["general.name"]
            chain = SamplerChain().grammar(vocab, 'root ::= "a"+').greedy()
            chain.accept(chain.apply(ctx.logits()))
        return ids, row

    results = together(work)
    assert all(result == results[0] for result in results), results
    assert len(results[0][1]) == len(vocab)


@pytest.mark.parametrize("what", ["context", "chain", "batch"])
def test_threads_that_fight_over_one_object(tiny_model: TinyModelFactory, what: str) -> None:
    """Each call is done whole or refused; nothing comes out of two at once."""
    model = Model(tiny_model("llama"))
    ctx = Context(model, n_ctx=256, n_threads=1)
    expected = feed(ctx).copy()
    chain = SamplerChain().penalties(model.vocab, presence=1.0).greedy()
    batch = Batch(200_000)

    def one(i: int) -> None:
        if what == "context":
            ctx.memory.clear()
            feed(ctx)
        elif what == "chain":
            chain.accept(chain.apply(expected))
            chain.clone().reset()
        else:
            batch.add_sequence([1, 2, 3])

    def work(i: int) -> tuple[int, int]:
        done = refused = 0
        for _ in range(300):
            try:
                one(i)
                done += 1
            except (
                errors.ContextBusyError,
                errors.InvalidArgumentError,
                errors.IndexOutOfRangeError,
                errors.NoSlotError,
            ):
                refused += 1
        return done, refused

    results = together(work)
    assert all(isinstance(result, tuple) for result in results), results
    assert sum(done for done, _ in results) > 0
    if what == "batch":
        assert len(batch) == 3 * sum(done for done, _ in results)
    ctx.memory.clear()
    np.testing.assert_allclose(feed(ctx), expected, atol=1e-3)


def test_threads_that_close_what_others_use(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama")
    for _ in range(20):
        model = Model(path)
        ctx = Context(model, n_ctx=256, n_threads=1)
        vocab = model.vocab

        def work(i: int, model: Model = model, ctx: Context = ctx, vocab: Any = vocab) -> str:
            try:
                for _ in range(5):
                    (lambda: feed(ctx), model.close, lambda: vocab.tokenize("the world"), ctx.close)[i]()
            except (errors.ClosedError, errors.ContextBusyError):
                return "refused"
            return "done"

        assert set(together(work)) <= {"refused", "done"}
        model.close()
        assert model.closed and ctx.closed


def test_closing_is_refused_while_a_thread_is_inside(busy: tuple[Context, Batch, Stepper]) -> None:
    ctx, *_ = busy
    others = [Context(ctx.model, n_ctx=256, n_threads=1) for _ in range(12)]
    for close in (ctx.close, ctx.model.close):
        with pytest.raises(errors.ContextBusyError):
            close()
    assert not ctx.closed
    assert not ctx.model.closed
    assert [other.closed for other in others] == [False] * 12  # nothing is freed
    assert np.isfinite(feed(others[0])).all()
