"""``SamplerChain``: what each link lets through, draws that repeat, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain, Vocab

PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
DRAWS = 400


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_threads=1) as made:
        batch = Batch(16)
        batch.add_sequence(np.arange(300, 310), logits="all")
        made.decode(batch)
        yield made


@pytest.fixture
def vocab(tiny_model: TinyModelFactory) -> Vocab:
    return Model(tiny_model("llama")).vocab


def draws(chain: SamplerChain, logits: np.ndarray = LOGITS, n: int = DRAWS) -> list[int]:
    return [chain.apply(logits) for _ in range(n)]


def support(chain: SamplerChain, logits: np.ndarray = LOGITS) -> set[int]:
    """Every token that may come, each of at least 3 % where it may come at all."""
    return set(draws(chain, logits))


# ---------------------------------------------------------------------------------------------------- selecting links


def test_greedy_is_argmax(ctx: Context) -> None:
    rows = [ctx.logits(i) for i in range(10)]
    best = [int(row.argmax()) for row in rows]
    assert len(set(best)) > 3
    assert [SamplerChain().greedy().sample(ctx, i) for i in range(10)] == best
    assert [SamplerChain().greedy().apply(row) for row in rows] == best
    assert SamplerChain().greedy().sample(ctx) == best[-1]


def test_dist_draws_by_probability() -> None:
    counts = Counter(draws(SamplerChain().dist(seed=3), n=4000))
    for token, probability in enumerate(PROBABILITIES):
        # five standard deviations
        assert abs(counts[token] - 4000 * probability) < 5 * np.sqrt(4000 * probability * (1 - probability))


def test_same_seed_same_draws() -> None:
    def run(seed: int | None) -> list[int]:
        return draws(SamplerChain().top_k(4).temp(1.2).dist(seed))

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert run(None) != run(None)  # a seed of its own each


def test_the_seed_can_be_told() -> None:
    assert SamplerChain().dist(seed=0).seed == 0
    assert SamplerChain().dist(seed=2**32 - 2).seed == 2**32 - 2
    assert SamplerChain().greedy().seed is None
    drawn = SamplerChain().dist()
    assert isinstance(drawn.seed, int)
    assert draws(drawn) == draws(SamplerChain().dist(drawn.seed))


def test_mirostat_holds_the_surprise_down() -> None:
    logits = np.random.default_rng(0).normal(scale=2, size=2000).astype(np.float32)
    surprise = -np.log2(np.exp(logits) / np.exp(logits).sum())

    def settled(tau: float) -> list[int]:
        return draws(SamplerChain().mirostat_v2(tau=tau, eta=0.3, seed=5), logits, 1500)[500:]

    means = [float(surprise[settled(tau)].mean()) for tau in (0.0, 3.0, 6.0, 8.0)]
    assert means == sorted(means)
    assert set(settled(0.0)) == {int(logits.argmax())}
    assert means[3] > means[0] + 2


def test_mirostat_1_holds_the_surprise_down(vocab: Vocab) -> None:
    logits = np.random.default_rng(0).normal(scale=2, size=len(vocab)).astype(np.float32)
    surprise = -np.log2(np.exp(logits) / np.exp(logits).sum())

    def mean(tau: float) -> float:
        return float(
            surprise[draws(SamplerChain().mirostat(vocab, tau, 0.3, 50, 5), logits, 1500)[500:]].mean()
        )

    means = [mean(tau) for tau in (0.0, 3.0, 6.0)]
    assert means == sorted(means)
    assert means[2] > means[0] + 1


def test_adaptive_p_draws_near_its_target() -> None:
    def mean(target: float) -> float:
        chain = SamplerChain().adaptive_p(target, 0.9, seed=3)
        found = []
        for _ in range(1000):
            token = chain.apply(LOGITS)
            chain.accept(token)
            found.append(PROBABILITIES[token])
        return float(np.mean(found))

    low, middle, high = mean(0.05), mean(0.25), mean(0.5)
    assert low < middle < high
    assert high - low > 0.15
    # negative: by probability alone
    assert mean(-1.0) == pytest.approx(float((PROBABILITIES**2).sum()), abs=0.03)


# ---------------------------------------------------------------------------------------------------- narrowing links


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (lambda c: c.top_k(2), {0, 1}),
        (lambda c: c.top_k(1), {0}),
        (lambda c: c.top_k(0), {0, 1, 2, 3, 4}),
        (lambda c: c.top_p(0.7), {0, 1}),
        (lambda c: c.top_p(0.8), {0, 1, 2}),
        (lambda c: c.top_p(0.0), {0}),
        (lambda c: c.top_p(0.0, min_keep=3), {0, 1, 2}),
        (lambda c: c.top_p(1.0), {0, 1, 2, 3, 4}),
        (lambda c: c.min_p(0.4), {0, 1}),
        (lambda c: c.min_p(1.0), {0}),
        (lambda c: c.min_p(1.0, min_keep=2), {0, 1}),
        (lambda c: c.min_p(0.0), {0, 1, 2, 3, 4}),
        # surprises 0.69 1.39 1.90 2.66 3.51 nats, entropy 1.26: nearest first 1, 0, 2, 3, 4
        (lambda c: c.typical(0.2), {1}),
        (lambda c: c.typical(0.7), {0, 1}),
        (lambda c: c.typical(1.0), {0, 1, 2, 3, 4}),
        # standard deviation of the logits 1.00: down to 1.00 or 1.5 below the best
        (lambda c: c.top_n_sigma(1.0), {0, 1}),
        (lambda c: c.top_n_sigma(1.5), {0, 1, 2}),
        (lambda c: c.top_n_sigma(-1), {0, 1, 2, 3, 4}),
        # those of at least 0.2 are 0 and 1: all of them but the last go
        (lambda c: c.xtc(1.0, 0.2, seed=1), {1, 2, 3, 4}),
        (lambda c: c.xtc(1.0, 0.1, seed=1), {2, 3, 4}),
        (lambda c: c.xtc(0.0, 0.1, seed=1), {0, 1, 2, 3, 4}),
        (lambda c: c.temp(0), {0}),
        (lambda c: c.temp(0.05), {0}),
        (lambda c: c.temp(1), {0, 1, 2, 3, 4}),
        (lambda c: c.top_k(3).top_p(0.6), {0, 1}),
        (lambda c: c, {0, 1, 2, 3, 4}),
    ],
)
def test_what_each_link_lets_through(
    link: Callable[[SamplerChain], SamplerChain], expected: set[int]
) -> None:
    assert support(link(SamplerChain()).dist(seed=1)) == expected


def frequencies(chain: SamplerChain) -> np.ndarray:
    return np.bincount(draws(chain, n=4000), minlength=5) / 4000


def test_temperature_reshapes_the_probabilities() -> None:
    for t in (0.5, 2.0):
        powered = PROBABILITIES ** (1 / t)
        np.testing.assert_allclose(
            frequencies(SamplerChain().temp(t).dist(2)), powered / powered.sum(), atol=0.03
        )


def test_dynamic_temperature_follows_the_entropy() -> None:
    entropy = -(PROBABILITIES * np.log(PROBABILITIES)).sum() / np.log(5)
    t = 0.2 + (1.8 - 0.2) * entropy**2.0
    powered = PROBABILITIES ** (1 / t)
    found = frequencies(SamplerChain().temp_ext(1.0, 0.8, 2.0).dist(2))
    np.testing.assert_allclose(found, powered / powered.sum(), atol=0.03)


def test_penalties(vocab: Vocab) -> None:
    flat = np.full(len(vocab), -30.0, np.float32)
    flat[10:15] = 5.0
    presence = SamplerChain().penalties(vocab, last_n=2, presence=25.0).dist(1)
    presence.accept(10)
    presence.accept(11)
    assert support(presence, flat) == {12, 13, 14}
    presence.accept(12)  # 10 is out of the window again
    assert support(presence, flat) == {10, 13, 14}
    frequency = SamplerChain().penalties(vocab, frequency=12.0).dist(1)
    frequency.accept(10)
    assert support(frequency, flat) == {11, 12, 13, 14}
    repeat = SamplerChain().penalties(vocab, repeat=100.0).dist(1)
    for token in (10, 11, 12, 13):
        repeat.accept(token)
    assert Counter(draws(repeat, flat))[14] > DRAWS * 0.9  # 5 against 0.05
    none = SamplerChain().penalties(vocab, last_n=0, presence=100.0).dist(1)
    none.accept(10)
    assert support(none, flat) == {10, 11, 12, 13, 14}
    presence.reset()
    assert support(presence, flat) == {10, 11, 12, 13, 14}


def test_logit_bias(ctx: Context, vocab: Vocab) -> None:
    row = ctx.logits()
    best, second = (int(i) for i in row.argsort()[::-1][:2])
    assert SamplerChain().logit_bias(vocab, {best: float("-inf")}).greedy().sample(ctx) == second
    assert SamplerChain().logit_bias(vocab, {7: 1000.0, best: -1000.0}).greedy().sample(ctx) == 7
    assert (
        SamplerChain().logit_bias(vocab, {7: 1000.0}).logit_bias(vocab, {8: 1001.0}).greedy().sample(ctx) == 8
    )


def test_dry_ends_a_repetition(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    flat[304] = 1.0

    def after(tokens: list[int], **options: object) -> int:
        chain = SamplerChain().dry(vocab, 5.0, 1.75, 2, 64, **options).greedy()
        for token in tokens:
            chain.accept(token)
        return chain.apply(flat)

    repeated = [301, 302, 303, 304, 301, 302, 303]
    assert after([301, 302, 303]) == 304
    assert after(repeated) != 304  # it would be said a second time after 301 302 303
    assert after([301, 304, 301]) == 304  # one token is no repetition yet
    breaker = (
        vocab.token_to_piece(303).decode()
        if isinstance(vocab.token_to_piece(303), bytes)
        else (vocab.token_to_piece(303))
    )
    assert after(repeated, breakers=[breaker]) == 304


def test_infill_merges_what_begins_alike(vocab: Vocab) -> None:
    flat = np.full(len(vocab), -30.0, np.float32)
    flat[vocab.eos] = 5.0
    flat[300] = 1.0
    assert SamplerChain().top_k(20).infill(vocab).greedy().apply(flat) == vocab.eos
    flat[vocab.eos] = -30.0
    assert SamplerChain().top_k(20).infill(vocab).greedy().apply(flat) == 300
    with pytest.raises(errors.InvalidArgumentError, match="top_k"):
        SamplerChain().infill(vocab)
    with pytest.raises(errors.InvalidArgumentError, match="top_k"):
        SamplerChain().top_k(100_000).infill(vocab)
    chain = SamplerChain().top_k(20).infill(vocab).greedy()
    with pytest.raises(errors.InvalidArgumentError, match="infill"):
        chain.remove(0)
    chain.remove(1)
    chain.remove(0)
    assert chain.links == ("greedy",)


# ---------------------------------------------------------------------------------------------------- state


def test_a_clone_goes_on_identically(vocab: Vocab) -> None:
    logits = np.random.default_rng(1).normal(size=len(vocab)).astype(np.float32)

    def step(chain: SamplerChain) -> int:
        token = chain.apply(logits)
        chain.accept(token)
        return token

    makers = [
        lambda: SamplerChain().dist(9),
        lambda: SamplerChain().top_k(50).xtc(0.5, 0.01, seed=4).temp(0.8).dist(9),
        lambda: SamplerChain().penalties(vocab, last_n=100, repeat=1.5, frequency=0.5, presence=0.5).dist(9),
        lambda: SamplerChain().mirostat_v2(seed=9),
        lambda: SamplerChain().grammar(vocab, "root ::= [a-z ]{200}").dist(9),
        lambda: SamplerChain().logit_bias(vocab, {int(logits.argmax()): float("-inf")}).dist(9),
        lambda: SamplerChain().mirostat(vocab, seed=9),
        lambda: SamplerChain().dry(vocab, 2.0, breakers=["a", ". "]).dist(9),
        lambda: SamplerChain().min_p(0.01).adaptive_p(0.3, seed=9),
        lambda: SamplerChain().min_p(0.9).adaptive_p(0.3, seed=9),
        lambda: SamplerChain().adaptive_p(-1.0, seed=9),
        lambda: SamplerChain().top_k(40).infill(vocab).dist(9),
        lambda: SamplerChain().grammar_lazy(vocab, "root ::= [a-z ]{200}", patterns=["no such text"]).dist(9),
    ]
    for make in makers:
        first = make()
        for _ in range(20):
            step(first)
        second = first.clone()
        assert repr(second) == repr(first)
        assert len(second) == len(first)
        assert second.seed == first.seed
        third = make()
        third.accept(int(vocab.tokenize("a", add_special=False)[-1]))
        third.copy_from(first)
        following = [step(first) for _ in range(40)]
        assert [step(second) for _ in range(40)] == following  # the first's steps did not move the second
        assert [step(third) for _ in range(40)] == following
        first.reset()
        again = [step(first) for _ in range(60)]
        fresh = make()
        assert [step(fresh) for _ in range(60)] == again
        if "infill" not in repr(first) and "min_p(0.9)" not in repr(first):
            assert again[:40] != following


def test_reset_starts_over() -> None:
    chain = SamplerChain().dist(5)
    first = draws(chain)
    assert draws(chain) != first
    chain.reset()
    assert draws(chain) == first


def test_sample_accepts_and_apply_does_not(ctx: Context, vocab: Vocab) -> None:
    best = int(ctx.logits().argmax())
    chain = SamplerChain().penalties(vocab, presence=100.0).greedy()
    assert chain.apply(ctx.logits()) == best
    assert chain.apply(ctx.logits()) == best
    assert chain.sample(ctx) == best
    assert chain.sample(ctx) != best


def test_copy_from_wants_the_same_links(vocab: Vocab) -> None:
    chain = SamplerChain().top_k(40).dist(1)
    for other in (
        SamplerChain(),
        SamplerChain().top_k(40),
        SamplerChain().top_k(41).dist(1),
        SamplerChain().top_k(40).dist(2),
        SamplerChain().top_k(40).greedy(),
        SamplerChain().dist(1).top_k(40),
        SamplerChain().penalties(vocab, last_n=3, presence=1.0).dist(1),
    ):
        with pytest.raises(errors.InvalidArgumentError, match="other"):
            chain.copy_from(other)
    same = SamplerChain().top_k(40).dist(1)
    ahead = draws(chain)
    chain.copy_from(same)
    assert draws(chain) == ahead
    chain.copy_from(chain)
    with pytest.raises(TypeError):
        chain.copy_from(None)


def test_copy_from_mends_a_broken_chain(vocab: Vocab) -> None:
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    saved = chain.clone()
    with pytest.raises(errors.SamplingError):
        chain.accept(vocab.eos)
    with pytest.raises(errors.SamplingError, match="reset"):
        saved.copy_from(chain)
    chain.copy_from(saved)
    assert chain.apply(np.zeros(len(vocab), np.float32)) == saved.apply(np.zeros(len(vocab), np.float32))


def test_adaptive_p_is_not_copied_between_draw_and_accept() -> None:
    chain = SamplerChain().adaptive_p(0.3, seed=1)
    token = chain.apply(LOGITS)
    for call in (chain.clone, lambda: SamplerChain().adaptive_p(0.3, seed=1).copy_from(chain)):
        with pytest.raises(errors.SamplingError, match="accept"):
            call()
    chain.accept(token)
    assert chain.clone().apply(LOGITS) == chain.apply(LOGITS)
    chain.reset()
    chain.clone()


def test_links_can_be_removed(vocab: Vocab) -> None:
    chain = SamplerChain().penalties(vocab, presence=1.0).top_k(1).temp(0.5).dist(1)
    for bad in (4, -5, 2**31 - 1):
        with pytest.raises(errors.IndexOutOfRangeError, match="4 links"):
            chain.remove(bad)
    chain.remove(0)
    assert support(chain) == {0}  # no vocabulary any more: five logits will do
    chain.remove(-3)
    assert chain.links == ("temp(0.5)", "dist")
    assert len(support(chain)) > 1
    chain.remove(-1)
    with pytest.raises(errors.InvalidArgumentError, match="greedy"):
        chain.apply(LOGITS)
    chain.greedy()
    assert chain.names == ("temp", "greedy")
    assert chain.apply(LOGITS) == 0


def test_a_grammar_that_is_removed_lets_its_model_go(tiny_model: TinyModelFactory) -> None:
    with Model(tiny_model("llama")) as model:
        chain = SamplerChain().grammar(model.vocab, 'root ::= "a"').greedy()
    with pytest.raises(errors.ClosedError):
        chain.apply(np.zeros(548, np.float32))
    with pytest.raises(errors.ClosedError):
        chain.remove(0)


def test_names_are_llama_cpps(vocab: Vocab) -> None:
    chain = SamplerChain().top_k(0).top_p(1.0).min_p(0.1).penalties(vocab, repeat=1.1).dist(1)
    assert chain.names == ("?top-k", "?top-p", "min-p", "penalties", "dist")
    assert chain.links == ("top_k(0)", "top_p(1.0)", "min_p(0.1)", "penalties", "dist")


def test_perf_counts() -> None:
    for perf in (True, False):
        chain = SamplerChain(perf=perf).top_k(1000).dist(1)
        logits = np.random.default_rng(0).normal(size=500_000).astype(np.float32)
        for _ in range(3):
            chain.accept(chain.apply(logits))
        assert chain.perf["n_sample"] == 3
        assert (chain.perf["sample_ms"] > 0) == perf
        assert chain.clone().perf["n_sample"] == 0
        chain.perf_reset()
        assert chain.perf == {"sample_ms": 0.0, "n_sample": 0}


def test_a_chain_is_for_one_vocabulary(vocab: Vocab, tiny_model: TinyModelFactory) -> None:
    other = Model(tiny_model("llama", vocab="bpe")).vocab
    assert len(other) != len(vocab)
    for add in (
        lambda chain, v: chain.penalties(v, presence=1.0),
        lambda chain, v: chain.logit_bias(v, {5: 1.0}),
        lambda chain, v: chain.grammar(v, "root ::= [a-z]+"),
        lambda chain, v: chain.dry(v, 1.0),
        lambda chain, v: chain.top_k(9).infill(v),
        lambda chain, v: chain.mirostat(v),
    ):
        chain = add(SamplerChain(), vocab)
        n = len(chain)
        with pytest.raises(errors.InvalidArgumentError, match="vocabulary"):
            chain.penalties(other)
        with pytest.raises(errors.InvalidArgumentError, match="vocabulary"):
            add(chain, other).dist(1)
        assert len(chain) <= n + 1
        chain.dist(1)
        for size in (len(other), 5):
            with pytest.raises(errors.InvalidArgumentError, match=f"{size} logits"):
                chain.apply(np.zeros(size, np.float32))
        for token in (len(vocab), 2**31 - 1):
            with pytest.raises(errors.IndexOutOfRangeError, match=str(token)):
                chain.accept(token)
        chain.apply(np.zeros(len(vocab), np.float32))


def test_links_are_listed() -> None:
    assert repr(SamplerChain()) == "<SamplerChain empty>"
    chain = SamplerChain()
    assert chain.top_k(40).temp(0.8).dist(1) is chain
    assert (len(chain), repr(chain)) == (3, "<SamplerChain top_k(40) temp(0.8) dist>")


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_chain_must_select(ctx: Context) -> None:
    for chain in (SamplerChain(), SamplerChain().top_k(4).temp(0.5)):
        for call in (lambda chain=chain: chain.sample(ctx), lambda chain=chain: chain.apply(LOGITS)):
            with pytest.raises(errors.InvalidArgumentError, match="greedy"):
                call()
    # a link after the selecting one reorders what was selected: 1 is the best here, and 0 would come out
    for logits in (LOGITS, LOGITS[[1, 0, 2, 3, 4]], LOGITS[::-1].copy()):
        with pytest.raises((errors.InvalidArgumentError, errors.SamplingError)):
            SamplerChain().greedy().top_k(2).apply(logits)


def test_nothing_left_to_select(ctx: Context, vocab: Vocab) -> None:
    none = np.full(8, -np.inf, np.float32)
    for chain in (SamplerChain().greedy(), SamplerChain().dist(1), SamplerChain().top_k(3).temp(0.5).dist(1),
                  SamplerChain().mirostat_v2(seed=1)):  # fmt: skip
        with pytest.raises(errors.SamplingError, match=r"ruled out|no token"):
            chain.apply(none)
        assert chain.apply(LOGITS) in range(5)
    everything = {token: float("-inf") for token in range(len(vocab))}
    with pytest.raises(errors.SamplingError, match=r"ruled out|no token"):
        SamplerChain().logit_bias(vocab, everything).dist(1).sample(ctx)
    only = np.full(8, -np.inf, np.float32)
    only[6] = -50.0
    assert support(SamplerChain().dist(1), only) == {6}


def test_numbers_that_no_float32_holds() -> None:
    for chain in (SamplerChain().temp(1e-38).dist(1), SamplerChain().temp(1e-38).greedy()):
        with pytest.raises(errors.SamplingError, match="float32"):
            chain.apply(np.array([1, 20, 3], np.float32))
        assert chain.apply(np.array([-1, 0, -2], np.float32) * 1e-3) == 1
    for chain in (SamplerChain().greedy(), SamplerChain().top_k(2).dist(1), SamplerChain().dist(1),
                  SamplerChain().min_p(0.1).dist(1)):  # fmt: skip
        for at in (0, 1, 40, 99):
            row = np.zeros(100, np.float32)
            row[at] = np.inf
            with pytest.raises(errors.SamplingError, match="inf"):
                chain.apply(row)


@pytest.mark.parametrize(
    "name", ["greedy", "dist", "mirostat_v2", "top_k", "top_p", "min_p", "typical", "temp", "xtc"]
)
def test_logits_that_are_no_numbers(name: str) -> None:
    arguments = {
        "top_k": (3,),
        "top_p": (0.9,),
        "min_p": (0.1,),
        "typical": (0.9,),
        "temp": (0.7,),
        "xtc": (0.5, 0.1),
    }
    for bad in (np.full(5, np.nan), np.array([1, 2, np.nan, 0, 0]), np.array([np.nan, 1, 2, 0, 0])):
        chain = getattr(SamplerChain(), name)(*arguments.get(name, ()))
        if name in arguments:
            chain.dist(1)
        with pytest.raises(errors.SamplingError, match="NaN"):
            chain.apply(bad.astype(np.float32))
        assert chain.apply(LOGITS) in range(5)


def test_arrays_that_are_no_logits() -> None:
    chain = SamplerChain().greedy()
    wrong = [None, 3, [1.0], "abc", b"\0\0\0\0", np.float32(1.0), np.zeros(4, np.int32), np.zeros((2, 3), np.float32),
             LOGITS.astype(np.float64), LOGITS.astype(np.float16), np.zeros(9, np.float32)[::2]]  # fmt: skip
    for bad in wrong:
        with pytest.raises(errors.ArgumentTypeError, match="float32"):
            chain.apply(bad)
    with pytest.raises(errors.InvalidArgumentError, match="empty"):
        chain.apply(np.zeros(0, np.float32))
    assert chain.apply(np.broadcast_to(LOGITS, (5,))) == 0  # read-only


def test_rows_without_logits(ctx: Context) -> None:
    chain = SamplerChain().greedy()
    for bad in (10, -11, 2**31 - 1):
        with pytest.raises(errors.IndexOutOfRangeError):
            chain.sample(ctx, bad)
    assert chain.sample(ctx) == int(ctx.logits().argmax())


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    "dist": [(-1,), (2**32 - 1,), (2**64,)],
    "mirostat_v2": [(-1,), (NAN,), (5, INF), (5, -0.1), (5, 0.1, -1)],
    "top_k": [(-1,), (2**31,)],
    "top_p": [(-0.1,), (1.1,), (NAN,), (0.5, 0), (0.5, -1), (0.5, 2**70)],
    "min_p": [(-0.1,), (1.1,), (INF,), (0.5, 0)],
    "typical": [(-0.1,), (1.1,), (NAN,)],
    "top_n_sigma": [(-2,), (NAN,), (INF,)],
    "xtc": [(1.1, 0.1), (-1, 0.1), (0.5, NAN), (0.5, 2), (0.5, 0.1, 0), (0.5, 0.1, 1, -1)],
    "temp": [(-0.1,), (NAN,), (INF,), (1e39,)],
    "temp_ext": [(-1, 0), (1, -1), (1, 0, NAN), (INF, 0)],
    "accept": [(-1,), (2**31,)],
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_out_of_range_add_no_link(name: str) -> None:
    chain = SamplerChain()
    for arguments in OUT_OF_RANGE[name]:
        with pytest.raises(errors.InvalidArgumentError):
            getattr(chain, name)(*arguments)
    needed = {"temp_ext": 2, "xtc": 2}.get(name, 1)
    for wrong in ("1", [1], True, object(), 1j):
        with pytest.raises(errors.ArgumentTypeError):
            getattr(chain, name)(*[wrong] * needed)
    assert len(chain) == 0


def test_penalties_and_biases_out_of_range(vocab: Vocab) -> None:
    chain = SamplerChain()
    for bad in ({"multiplier": -1}, {"multiplier": NAN}, {"base": 0.5}, {"allowed_length": -1}, {"last_n": 2**31},
                {"breakers": [""]}, {"breakers": ["x" * 41]}, {"breakers": ["x"] * 65},
                {"breakers": ["a\0"]}):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError, match=next(iter(bad))):
            chain.dry(vocab, **{"multiplier": 1.0, **bad})
    for wrong in (None, 3, "abc", b"abc", [3], [None]):
        with pytest.raises(errors.ArgumentTypeError, match="breakers"):
            chain.dry(vocab, 1.0, breakers=wrong)
    for bad in ({"tau": -1}, {"eta": NAN}, {"m": 1}, {"m": 0}, {"seed": -1}):
        with pytest.raises(errors.InvalidArgumentError, match=next(iter(bad))):
            chain.mirostat(vocab, **bad)
    for bad in (
        {"target": 1.5},
        {"target": -2},
        {"target": NAN},
        {"decay": 1.0},
        {"decay": -0.1},
        {"seed": 2**32},
    ):
        with pytest.raises(errors.InvalidArgumentError, match=next(iter(bad))):
            chain.adaptive_p(**{"target": 0.5, **bad})
    for options in ({"last_n": -1}, {"last_n": 2**31}, {"repeat": 0}, {"repeat": NAN}, {"frequency": INF}):
        with pytest.raises(errors.InvalidArgumentError, match=next(iter(options))):
            chain.penalties(vocab, **options)
    for bias in ({1: NAN}, {1: INF}, {1: 1e300}):
        with pytest.raises(errors.InvalidArgumentError, match=r"bias\[1\]"):
            chain.logit_bias(vocab, bias)
    for bias in ({-1: 1.0}, {len(vocab): 1.0}, {2**70: 1.0}):
        with pytest.raises(errors.IndexOutOfRangeError, match="token"):
            chain.logit_bias(vocab, bias)
    for bias in (None, 3, "abc", [1, 2], {"a": 1.0}, {1: "x"}, {1: None}, {1.5: 1.0}):
        with pytest.raises(TypeError):
            chain.logit_bias(vocab, bias)
    assert len(chain) == 0
