"""``SamplerChain.python``: a callable on a NumPy row as a link."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain

N = 100
ROW = np.random.default_rng(0).normal(size=N).astype(np.float32)


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_threads=1) as made:
        batch = Batch(16)
        batch.add_sequence(np.arange(300, 310), logits="all")
        made.decode(batch)
        yield made


def test_it_changes_the_row_in_place() -> None:
    def only_seven(logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[:] = -np.inf
        logits[7] = 0

    assert SamplerChain().python(only_seven).dist(1).apply(ROW) == 7
    assert (
        SamplerChain().top_k(90).python(only_seven).greedy().apply(np.where(np.arange(N) == 7, 9, ROW)) == 7
    )


def test_it_returns_another() -> None:
    for kind in (np.float32, np.float64, np.float16):
        chain = SamplerChain().python(lambda logits, tokens, kind=kind: (-logits).astype(kind)).greedy()
        assert chain.apply(ROW) == int(ROW.argmin())


def test_what_it_sees() -> None:
    seen = []
    chain = (
        SamplerChain().python(lambda logits, tokens: seen.append((logits.copy(), tokens.copy()))).top_k(3)
        .temp(0.5).python(lambda logits, tokens: seen.append((logits.copy(), tokens.copy()))).dist(1)
    )  # fmt: skip
    chain.accept(5)
    chain.accept(9)
    chain.apply(ROW)
    (whole, tokens), (cut, _) = seen
    assert whole.dtype == cut.dtype == np.float32
    np.testing.assert_array_equal(whole, ROW)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [5, 9]
    best = np.argsort(ROW)[::-1][:3]
    assert set(np.flatnonzero(np.isfinite(cut))) == set(best)
    np.testing.assert_allclose(cut[best], ROW[best] / 0.5, rtol=1e-6)
    chain.reset()
    chain.apply(ROW)
    assert seen[2][1].tolist() == []


def test_a_link_that_does_nothing_changes_no_draw() -> None:
    def run(chain: SamplerChain) -> list[int]:
        return [chain.apply(ROW) for _ in range(200)]

    plain = run(SamplerChain().top_p(0.9).temp(0.7).dist(3))
    assert run(SamplerChain().python(lambda logits, tokens: None).top_p(0.9).temp(0.7).dist(3)) == plain


def test_what_it_brings_back_of_the_cut_is_not_looked_at() -> None:
    def revive(logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[:] = 100.0

    best = {int(i) for i in np.argsort(ROW)[::-1][:2]}
    chain = SamplerChain().top_k(2).python(revive).dist(1)
    assert {chain.apply(ROW) for _ in range(50)} == best


class Mine(Exception):
    pass


def test_what_it_raises_is_raised_and_nothing_is_accepted(ctx: Context) -> None:
    fail = True
    seen = []

    def sometimes(logits: np.ndarray, tokens: np.ndarray) -> None:
        seen.append(tokens.tolist())
        if fail:
            raise Mine("no")

    chain = SamplerChain().python(sometimes).dist(5)
    for _ in range(3):
        with pytest.raises(Mine, match="no"):
            chain.sample(ctx)
    with pytest.raises(Mine):
        chain.apply(np.array(ctx.logits()))
    fail = False
    first = chain.sample(ctx)
    assert first == SamplerChain().dist(5).sample(ctx)  # the draw was not spent
    chain.sample(ctx)
    assert seen == [[], [], [], [], [], [first]]


def test_even_ctrl_c_is_passed_on() -> None:
    def stop(logits: np.ndarray, tokens: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SamplerChain().python(stop).greedy().apply(ROW)


@pytest.mark.parametrize(
    "wrong", [3, "abc", [1.0] * N, np.zeros(N - 1, np.float32), np.zeros(N, np.int32), np.zeros((1, N))]
)
def test_results_of_a_wrong_kind(wrong: object) -> None:
    chain = SamplerChain().python(lambda logits, tokens: wrong).greedy()
    with pytest.raises(errors.ArgumentTypeError, match="returned"):
        chain.apply(ROW)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_results_that_are_no_numbers(number: float) -> None:
    def spoil(logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[50] = number

    with pytest.raises(errors.SamplingError, match="50"):
        SamplerChain().python(spoil).greedy().apply(ROW)
    with pytest.raises(errors.SamplingError, match=r"ruled out"):
        SamplerChain().python(lambda logits, tokens: np.full(N, -np.inf)).dist(1).apply(ROW)


def test_a_row_that_is_kept_is_safe() -> None:
    kept = []
    chain = SamplerChain().python(lambda logits, tokens: kept.append((logits, tokens))).dist(1)
    for _ in range(50):
        chain.accept(chain.apply(ROW))
    del chain
    gc.collect()
    for logits, tokens in kept:
        np.testing.assert_array_equal(logits, ROW)
        logits[:] = 1.0
        tokens[:] = 1


def test_it_may_not_use_its_own_chain(ctx: Context) -> None:
    caught = []

    def again(logits: np.ndarray, tokens: np.ndarray) -> None:
        for call in (
            lambda: chain.apply(ROW), chain.clone, chain.reset, lambda: chain.accept(1), lambda: chain.top_k(3),
            lambda: chain.remove(0), ctx.logits, ctx.memory.clear,
        ):  # fmt: skip
            with pytest.raises(errors.ContextBusyError):
                call()
            caught.append(1)

    chain = SamplerChain().python(again).greedy()
    assert chain.sample(ctx) == int(ctx.logits().argmax())
    assert len(caught) == 8


class Counter:
    def __init__(self, calls: int = 0) -> None:
        self.calls = calls

    def __call__(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        self.calls += 1


def test_clones_share_the_function_or_have_their_own() -> None:
    shared, own = Counter(), Counter()
    copies: list[Counter] = []

    def copy(counter: Counter) -> Counter:
        copies.append(Counter(counter.calls))
        return copies[-1]

    chain = SamplerChain().python(shared).python(own, clone=copy).dist(1)
    chain.accept(chain.apply(ROW))
    second = chain.clone()
    third = second.clone()
    assert [second.apply(ROW) for _ in range(5)] == [chain.apply(ROW) for _ in range(5)]
    assert third.links == ("python", "python", "dist")
    assert (shared.calls, own.calls) == (11, 6)
    assert [c.calls for c in copies] == [6, 1]
    saved = chain.clone()
    expected = [chain.apply(ROW) for _ in range(5)]
    chain.copy_from(saved)
    assert [chain.apply(ROW) for _ in range(5)] == expected
    assert own.calls == 16


def test_a_clone_that_fails() -> None:
    def no(function: object) -> object:
        raise Mine

    with pytest.raises(Mine):
        SamplerChain().python(Counter(), clone=no).greedy().clone()
    with pytest.raises(errors.ArgumentTypeError, match="called"):
        SamplerChain().python(Counter(), clone=lambda function: 3).greedy().clone()


def test_what_is_no_function() -> None:
    for wrong in (None, 3, "abc"):
        with pytest.raises(errors.ArgumentTypeError):
            SamplerChain().python(wrong)
    with pytest.raises(errors.ArgumentTypeError, match="clone"):
        SamplerChain().python(Counter(), clone=3)


def test_a_cycle_through_the_function_is_collected() -> None:
    counter = Counter()
    chain = SamplerChain().python(counter).greedy()
    counter.chain = chain  # type: ignore[attr-defined]
    chain.apply(ROW)
    gone = weakref.ref(counter)
    del chain, counter
    gc.collect()
    assert gone() is None


def test_a_removed_function_is_let_go() -> None:
    counter = Counter()
    gone = weakref.ref(counter)
    chain = SamplerChain().python(counter).greedy()
    del counter
    assert chain.apply(ROW) == int(ROW.argmax())
    chain.remove(0)
    gc.collect()
    assert gone() is None
    assert chain.apply(ROW) == int(ROW.argmax())
