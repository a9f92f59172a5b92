"""``Context.set_sampler``: chains that run inside the graph of a decode."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain, Stepper, Vocab

TOKENS = np.arange(300, 310)


@pytest.fixture
def model(tiny_model: TinyModelFactory) -> Model:
    return Model(tiny_model("llama"))


@pytest.fixture
def ctx(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_seq_max=3, n_threads=1) as made:
        yield made


def feed(ctx: Context, seqs: tuple[int, ...] = (0,), tokens: np.ndarray = TOKENS) -> None:
    batch = Batch(64)
    for seq in seqs:
        batch.add_sequence(tokens, pos=ctx.memory.seq_pos_max(seq) + 1, seq_id=seq, logits="last")
    ctx.decode(batch)


def reference(model: Model) -> np.ndarray:
    with Context(model, n_ctx=256, n_threads=1) as plain:
        feed(plain)
        return np.array(plain.logits())


def test_greedy_in_the_graph(ctx: Context, model: Model) -> None:
    row = reference(model)
    chain = SamplerChain().greedy()
    ctx.set_sampler(0, chain)
    assert chain.names == ("+greedy",)
    feed(ctx)
    assert ctx.sampled_token() == int(row.argmax())
    assert ctx.sampled_token(9) == int(row.argmax())
    assert chain.sample(ctx) == int(row.argmax())
    assert ctx.sampled_probs() is None


def test_a_whole_chain_in_the_graph(ctx: Context, model: Model) -> None:
    row = reference(model)
    chain = SamplerChain().top_k(20).top_p(0.95).temp(0.8).dist(seed=3)
    ctx.set_sampler(0, chain)
    assert chain.names == ("+top-k", "+top-p", "+temp", "+dist")
    feed(ctx)
    token = ctx.sampled_token()
    candidates, logits, probs = ctx.sampled_candidates(), ctx.sampled_logits(), ctx.sampled_probs()
    assert (candidates.dtype, logits.dtype, probs.dtype) == (np.int32, np.float32, np.float32)
    assert set(candidates.tolist()) == set(np.argsort(row)[::-1][:20].tolist())
    left = np.isfinite(logits)
    np.testing.assert_allclose(logits[left], row[candidates][left] / 0.8, rtol=1e-4)
    assert probs.sum() == pytest.approx(1, abs=1e-4)
    assert token in candidates[left]
    assert chain.sample(ctx) == token
    candidates[:] = 0  # a copy
    assert ctx.sampled_candidates().any()


@pytest.mark.parametrize("make", [
    lambda c, v: c.min_p(0.1).dist(1),
    lambda c, v: c.temp(0).dist(1),
    lambda c, v: c.temp_ext(0.9, 0.0).dist(1),
    lambda c, v: c.temp_ext(0.9, 0.3).dist(1),
    lambda c, v: c.penalties(v, 20, 1.2, 0.1, 0.1).top_k(10).dist(1),
    lambda c, v: c.top_k(10).penalties(v, 20, 1.2, 0.1, 0.1).dist(1),
    lambda c, v: c.logit_bias(v, {5: 3.0, 7: -np.inf}).dist(1),
    lambda c, v: c.top_p(0.9).dist(1),
    lambda c, v: c.top_k(0).dist(1),
    lambda c, v: c.top_k(10).top_k(5).dist(1),
])  # fmt: skip
def test_every_link_that_a_graph_has(
    ctx: Context, make: Callable[[SamplerChain, Vocab], SamplerChain]
) -> None:
    chain = make(SamplerChain(), ctx.model.vocab)
    ctx.set_sampler(0, chain)
    assert not any(name.startswith("-") for name in chain.names)
    feed(ctx)
    for _ in range(20):
        token = ctx.sampled_token()
        assert token is not None
        assert chain.sample(ctx) == token
        feed(ctx, tokens=np.array([token]))


@pytest.mark.parametrize("make", [
    lambda c, v: c.top_k(10).typical(0.9).dist(1),
    lambda c, v: c.grammar(v, "root ::= [a-z ]+").dist(1),
    lambda c, v: c.top_k(200).grammar(v, "root ::= [a-z ]+").greedy(),
    lambda c, v: c.mirostat_v2(seed=1),
    lambda c, v: c.top_p(0.9).xtc(0.5, 0.1, seed=3).dist(1),
    lambda c, v: c.top_k(30).python(lambda logits, tokens: None).dist(1),
    lambda c, v: c.dry(v, 1.0).dist(1),
])  # fmt: skip
def test_what_a_graph_has_not_runs_afterwards(
    ctx: Context, model: Model, make: Callable[[SamplerChain, Vocab], SamplerChain]
) -> None:
    row = reference(model)
    chain = make(SamplerChain(), model.vocab)
    expected = chain.clone().apply(row)
    ctx.set_sampler(0, chain)
    feed(ctx)
    assert ctx.sampled_token() is None
    assert ctx.sampled_logits() is not None
    assert chain.sample(ctx) == expected


def test_draws_go_on_and_a_clone_has_the_state(ctx: Context) -> None:
    chain = SamplerChain().top_k(40).temp(3.0).dist(7)
    ctx.set_sampler(0, chain)
    seen = set()
    for _ in range(30):
        feed(ctx, tokens=np.array([300]))
        seen.add(chain.sample(ctx))
    assert len(seen) > 5
    copy = chain.clone()
    ctx.set_sampler(0, None)
    row = np.random.default_rng(0).normal(size=ctx.n_vocab).astype(np.float32)
    fresh = SamplerChain().top_k(40).temp(3.0).dist(7)
    assert [copy.apply(row) for _ in range(20)] != [fresh.apply(row) for _ in range(20)]


def test_sequences_with_and_without(ctx: Context, model: Model) -> None:
    row = reference(model)
    best = int(row.argmax())
    one = SamplerChain().greedy()
    ctx.set_sampler(1, one)
    feed(ctx, (0, 1, 2))
    assert [ctx.sampled_token(i) for i in (9, 19, 29)] == [None, best, None]
    assert [ctx.sampled_token(i) for i in (-3, -2, -1)] == [None, best, None]
    np.testing.assert_allclose(ctx.logits(9), row, atol=1e-3)
    np.testing.assert_allclose(ctx.logits(-1), row, atol=1e-3)
    for i in (19, -2):
        with pytest.raises(errors.ModelCapabilityError, match="graph"):
            ctx.logits(i)
        with pytest.raises(errors.ModelCapabilityError, match="graph"):
            SamplerChain().greedy().sample(ctx, i)
    assert one.sample(ctx, 19) == best
    for i in (9, -1):
        with pytest.raises(errors.InvalidArgumentError, match="attached"):
            one.sample(ctx, i)
    assert SamplerChain().greedy().sample(ctx, 9) == best
    other = SamplerChain().top_k(1).dist(1)
    ctx.set_sampler(2, other)
    feed(ctx, (2, 0, 1), np.array([305]))
    assert (ctx.sampled_token(0), ctx.sampled_token(1), ctx.sampled_token(2)) == (
        other.sample(ctx, 0), None, one.sample(ctx, 2)
    )  # fmt: skip


def test_two_rows_of_output_of_one_sequence_are_refused(ctx: Context) -> None:
    ctx.set_sampler(0, SamplerChain().greedy())
    batch = Batch(16)
    batch.add_sequence(TOKENS, logits="all")
    with pytest.raises(errors.InvalidArgumentError, match="second"):
        ctx.decode(batch)
    assert ctx.memory.seq_pos_max(0) == -1
    feed(ctx)
    assert ctx.sampled_token() is not None


def test_changing_the_chain_after_a_decode(ctx: Context, model: Model) -> None:
    # rows that llama.cpp has still to put in order, with samplers and without
    row = reference(model)
    batch = Batch(64)
    for at in range(10):
        for seq in (2, 1, 0):
            batch.add(int(TOKENS[at]), at, seq, at == 9)
    ctx.decode(batch)
    ctx.set_sampler(1, SamplerChain().greedy())
    for i in (-1, -2, -3):
        np.testing.assert_allclose(ctx.logits(i), row, atol=1e-3)
    feed(ctx, (0, 1, 2), np.array([305]))
    ctx.set_sampler(1, None)
    assert ctx.sampled_token(1) is None
    with pytest.raises(errors.ModelCapabilityError, match="graph"):
        ctx.logits(1)
    feed(ctx, (0, 1, 2), np.array([306]))
    assert np.isfinite(ctx.logits(1)).all()


def test_an_attached_chain_is_the_contexts(ctx: Context, model: Model) -> None:
    chain = SamplerChain().top_k(5).dist(1)
    ctx.set_sampler(0, chain)
    row = np.zeros(ctx.n_vocab, np.float32)
    for call in (
        lambda: chain.apply(row), lambda: chain.temp(1), lambda: chain.remove(0), lambda: ctx.set_sampler(1, chain),
    ):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError, match=r"clone\(\)"):
            call()
    with Context(model, n_ctx=256, n_threads=1) as other:
        feed(other)
        with pytest.raises(errors.InvalidArgumentError, match="attached"):
            chain.sample(other)
    feed(ctx)
    chain.sample(ctx)
    ctx.set_sampler(0, None)
    for call in (
        lambda: chain.sample(ctx),
        chain.reset,
        lambda: chain.accept(1),
        lambda: ctx.set_sampler(0, chain),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=r"clone\(\)"):
            call()
    copy = chain.clone()
    assert copy.apply(row) in range(ctx.n_vocab)
    ctx.set_sampler(0, copy)
    feed(ctx, tokens=np.array([301]))
    assert copy.sample(ctx) >= 0
    ctx.set_sampler(0, None)
    ctx.set_sampler(0, None)


def test_closing_the_context(model: Model) -> None:
    ctx = Context(model, n_ctx=256, n_threads=1)
    chain, kept = SamplerChain().greedy(), SamplerChain().greedy()
    gone = weakref.ref(kept)
    ctx.set_sampler(0, kept)
    del kept
    gc.collect()
    assert gone() is not None
    feed(ctx)
    assert ctx.sampled_token() is not None
    ctx.set_sampler(0, chain)
    gc.collect()
    assert gone() is None
    feed(ctx)
    ctx.close()
    with pytest.raises(errors.ClosedError):
        ctx.sampled_token()
    with pytest.raises(errors.InvalidArgumentError, match="clone"):
        chain.apply(np.zeros(ctx.n_vocab, np.float32))
    assert chain.clone().apply(np.zeros(ctx.n_vocab, np.float32)) == 0
    again = Context(model, n_ctx=256, n_threads=1)
    held = chain.clone()
    again.set_sampler(0, held)
    del again
    gc.collect()
    assert held.clone().apply(np.zeros(ctx.n_vocab, np.float32)) == 0


def test_chains_that_llama_cpp_gets_wrong_in_a_graph(ctx: Context) -> None:
    vocab, n = ctx.model.vocab, ctx.n_vocab
    for chain, match in (
        (SamplerChain().top_k(10).greedy(), "greedy"),
        (SamplerChain().top_p(0.9).greedy(), "greedy"),
        (SamplerChain().top_k(10).logit_bias(vocab, {500: 1.0}).dist(1), "logit_bias"),
        (SamplerChain().top_k(n + 1).dist(1), "candidates"),
        (SamplerChain().top_k(5).top_k(6).dist(1), "5 candidates"),
        (SamplerChain().temp(0).top_k(2).dist(1), "1 candidates"),
        (SamplerChain().top_k(3), "selects"),
        (SamplerChain(), "selects"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=match):
            ctx.set_sampler(0, chain)
        chain.dist(1)  # free as before
    for wrong in (3, "a", object()):
        with pytest.raises(errors.ArgumentTypeError):
            ctx.set_sampler(0, wrong)
    for seq in (-1, 3):
        with pytest.raises(errors.IndexOutOfRangeError):
            ctx.set_sampler(seq, None)
    feed(ctx)
    assert np.isfinite(ctx.logits()).all()


def test_contexts_without_logits(tiny_model: TinyModelFactory) -> None:
    for ctx in (
        Context(Model(tiny_model("bert")), n_ctx=256, n_threads=1, embeddings=True),
        Context(Model(tiny_model("llama")), n_ctx=256, n_threads=1, embeddings=True, pooling="none"),
    ):
        with pytest.raises(errors.ModelCapabilityError, match="embeddings"):
            ctx.set_sampler(0, SamplerChain().greedy())


def test_without_samplers_there_is_nothing(ctx: Context) -> None:
    for get in (ctx.sampled_token, ctx.sampled_logits, ctx.sampled_probs, ctx.sampled_candidates):
        with pytest.raises(errors.IndexOutOfRangeError):
            get()
    feed(ctx)
    for get in (ctx.sampled_token, ctx.sampled_logits, ctx.sampled_probs, ctx.sampled_candidates):
        assert get() is None
        with pytest.raises(errors.IndexOutOfRangeError):
            get(3)


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_every_memory_kind(tiny_model: TinyModelFactory, kind: str) -> None:
    with Context(Model(tiny_model(kind)), n_ctx=256, n_seq_max=2, n_threads=2) as ctx:
        feed(ctx, (0, 1))
        best = int(ctx.logits(-1).argmax())
        ctx.memory.clear()
        ctx.set_sampler(1, SamplerChain().greedy())
        feed(ctx, (0, 1))
        assert ctx.sampled_token(-1) == best


def test_a_stepper_uses_it(ctx: Context, model: Model) -> None:
    def run(made: Context, chain: SamplerChain) -> list[int]:
        stepper, tokens, token = Stepper(made, chain, model.vocab), [], 300
        for pos in range(20):
            token, _, _ = stepper.advance(token, pos)
            tokens.append(token)
        return tokens

    chain = SamplerChain().greedy()
    ctx.set_sampler(0, chain)
    with Context(model, n_ctx=256, n_threads=1) as plain:
        assert run(ctx, chain) == run(plain, SamplerChain().greedy())


def test_a_decode_keeps_others_out_of_the_chain(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        inside, go_on = threading.Event(), threading.Event()

        def wait(logits: np.ndarray, tokens: np.ndarray) -> None:
            inside.set()
            assert go_on.wait(20)

        chain = SamplerChain().python(wait).greedy()
        ctx.set_sampler(0, chain)
        feed(ctx)
        thread = threading.Thread(target=lambda: chain.sample(ctx))
        thread.start()
        assert inside.wait(20)
        with pytest.raises(errors.ContextBusyError):
            feed(ctx, tokens=np.array([301]))
        go_on.set()
        thread.join()
        feed(ctx, tokens=np.array([301]))
