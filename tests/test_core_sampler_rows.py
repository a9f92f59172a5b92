"""``sample_rows`` and ``apply_rows``; and that no shortcut changes what is selected, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain, Vocab, apply_rows, sample_rows

N_ROWS = 10


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_threads=2) as made:
        batch = Batch(16)
        batch.add_sequence(np.arange(300, 300 + N_ROWS), logits="all")
        made.decode(batch)
        yield made


@pytest.fixture
def vocab(tiny_model: TinyModelFactory) -> Vocab:
    return Model(tiny_model("llama")).vocab


# ---------------------------------------------------------------------------------------------------- shortcuts

# each builds the same chain twice: as it is, and so that llama.cpp's own loop runs over all candidates
Build = Callable[[SamplerChain, Vocab], SamplerChain]
CHAINS: dict[str, Build] = {
    "top_k top_p temp": lambda c, v: c.top_k(40).top_p(0.95).temp(0.8).dist(1),
    "top_k 1": lambda c, v: c.top_k(1).dist(1),
    "top_k 2": lambda c, v: c.top_k(2).dist(1),
    "top_k 128": lambda c, v: c.top_k(128).min_p(0.01).dist(1),
    "top_k 129": lambda c, v: c.top_k(129).dist(1),
    "top_k twice": lambda c, v: c.top_k(60).top_k(30).temp(3.0).dist(1),
    "top_k typical": lambda c, v: c.top_k(50).typical(0.9).temp(1.5).dist(1),
    "top_k xtc": lambda c, v: c.top_k(30).xtc(0.5, 0.05, seed=2).dist(1),
    "top_k sigma": lambda c, v: c.top_k(99).top_n_sigma(1.0).dist(1),
    "top_k temp_ext": lambda c, v: c.top_k(64).temp_ext(1.0, 0.5).dist(1),
    "top_k mirostat": lambda c, v: c.top_k(100).mirostat_v2(4.0, 0.2, seed=1),
    "top_k grammar": lambda c, v: c.top_k(100).grammar(v, "root ::= [a-z ]*").dist(1),
    "top_k greedy": lambda c, v: c.top_k(40).greedy(),
    "top_k adaptive": lambda c, v: c.top_k(20).adaptive_p(0.3, seed=1),
    "min_p": lambda c, v: c.min_p(0.05).temp(1.2).dist(1),
    "min_p 1": lambda c, v: c.min_p(1.0).dist(1),
    "min_p keep": lambda c, v: c.min_p(0.9, min_keep=30).dist(1),
    "min_p low": lambda c, v: c.min_p(1e-9).top_p(0.9).dist(1),
    "greedy": lambda c, v: c.greedy(),
    "no-ops first": lambda c, v: c.top_p(1.0).top_k(0).min_p(0.0).penalties(v).top_k(20).dist(1),
    "penalties": lambda c, v: c.penalties(v, 30, 1.3, 0.4, 0.2).top_k(40).top_p(0.9).temp(0.9).dist(1),
    "penalties greedy": lambda c, v: c.penalties(v, 8, 1.5, 0.1, 0.3).greedy(),
    "penalties min_p": lambda c, v: c.penalties(v, 64, 0.8, -0.5, 0.0).min_p(0.1).dist(1),
    "dry": lambda c, v: c.dry(v, 2.0, 1.75, 1, 100, ["a"]).top_k(10).dist(1),
    "bias": lambda c, v: c.logit_bias(v, {0: 3.0, 5: -np.inf, 17: 50.0, 547: 2.5}).top_k(10).dist(1),
    "bias of most": lambda c, v: c.logit_bias(v, {i: i / 100 for i in range(500)}).top_k(10).dist(1),
    "all sparse": lambda c, v: (
        c.penalties(v, 64, 1.1).logit_bias(v, {9: 1.0}).dry(v, 1.0).logit_bias(v, {3: 4.0}).top_k(25).dist(1)
    ),
    "dist": lambda c, v: c.dist(1),
    "top_p": lambda c, v: c.top_p(0.9).dist(1),
}


def hard_rows(n_vocab: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """Rows as models make them, and rows with ties, few candidates and wide ranges."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        row = rng.normal(scale=(0.1, 1.0, 4.0, 30.0)[i % 4], size=n_vocab)
        match i % 8:
            case 1:
                row = np.round(row)  # ties everywhere
            case 2:
                row = np.round(row * 4) / 4
            case 3:
                row[rng.random(n_vocab) < 0.97] = -np.inf
            case 4:
                row = np.sort(row)  # the best come last: every one goes through the heap
            case 5:
                row = np.sort(row)[::-1]
            case 6:
                row[:] = row[0]
                row[rng.integers(n_vocab, size=20)] += 1
            case 7:
                row = row * 1e30
        yield row.astype(np.float32)


def outcome(chain: SamplerChain, row: np.ndarray) -> int | str:
    try:
        return chain.apply(row)
    except errors.SamplingError as error:
        return str(error)


@pytest.mark.parametrize("name", CHAINS)
def test_shortcuts_select_what_llama_cpp_selects(vocab: Vocab, name: str) -> None:
    n = len(vocab)
    ours, theirs = CHAINS[name](SamplerChain(), vocab), CHAINS[name](SamplerChain(perf=True), vocab)
    selected = set()
    for at, row in enumerate(hard_rows(n, 400, len(name))):
        token = outcome(ours, row)
        assert token == outcome(theirs, row), at
        for chain in (ours, theirs):
            if isinstance(token, int) and "grammar" not in name:
                chain.accept(token)
            elif "failed" in str(token) or at % 150 == 149:
                chain.reset()
        if at % 50 == 49:
            ours, theirs = ours.clone(), theirs.clone()
        selected.add(token)
    assert len(selected) > 20


SIZES = [1, 2, 3, 31, 32, 33, 40, 63, 64, 65, 127, 128, 129, 1000, 32_000, 50_257]
FREE = ["top_k top_p temp", "top_k 1", "top_k 128", "top_k xtc", "min_p", "min_p keep", "min_p low", "greedy"]


@pytest.mark.parametrize("name", FREE)
def test_shortcuts_on_rows_of_every_size(vocab: Vocab, name: str) -> None:
    for size in SIZES:
        ours, theirs = CHAINS[name](SamplerChain(), vocab), CHAINS[name](SamplerChain(perf=True), vocab)
        for row in hard_rows(size, 24, size):
            assert outcome(ours, row) == outcome(theirs, row)


def test_a_bad_number_is_found_wherever_it_is() -> None:
    for build in (lambda c: c.top_k(3).dist(1), lambda c: c.min_p(0.5).dist(1), lambda c: c.greedy()):
        chain = build(SamplerChain())
        for size in (3, 70, 1000):
            for at in {0, 1, 2, size // 2, size - 2, size - 1}:
                for number in (np.nan, np.inf):
                    row = np.linspace(5, -5, size, dtype=np.float32)
                    row[at] = number
                    with pytest.raises(errors.SamplingError, match="NaN"):
                        chain.apply(row)


# ---------------------------------------------------------------------------------------------------- many rows


def build(seed: int) -> SamplerChain:
    return SamplerChain().top_k(40).top_p(0.95).temp(0.8).dist(seed)


@pytest.mark.parametrize(("n", "n_vocab"), [(1, 50), (7, 1000), (32, 40_000), (64, 20_000)])
@pytest.mark.parametrize("n_threads", [1, 2, 5, None])
def test_apply_rows_is_apply_row_by_row(n: int, n_vocab: int, n_threads: int | None) -> None:
    ours, theirs = [build(i) for i in range(n)], [build(i) for i in range(n)]
    for seed in range(4):
        rows = np.stack(list(hard_rows(n_vocab, n, seed)))
        tokens = apply_rows(rows, ours, n_threads=n_threads)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [chain.apply(row) for chain, row in zip(theirs, rows, strict=True)]


def test_chains_of_every_kind_at_once(vocab: Vocab) -> None:
    rng = np.random.default_rng(5)
    ours = [make(SamplerChain(), vocab) for make in CHAINS.values()]
    theirs = [make(SamplerChain(), vocab) for make in CHAINS.values()]
    seen = []
    ours.append(SamplerChain().python(lambda logits, tokens: seen.append(1)).dist(1))
    theirs.append(SamplerChain().dist(1))
    for _ in range(20):
        rows = rng.normal(scale=3, size=(len(ours), len(vocab))).astype(np.float32)
        tokens = apply_rows(rows, ours, n_threads=4)
        assert tokens.tolist() == [chain.apply(row) for chain, row in zip(theirs, rows, strict=True)]
    assert len(seen) == 20


def test_sample_rows_is_sample_row_by_row(ctx: Context, vocab: Vocab) -> None:
    def chains() -> list[SamplerChain]:
        return [SamplerChain().penalties(vocab, presence=2.0).top_k(5).dist(i) for i in range(N_ROWS)]

    ours, theirs = chains(), chains()
    for rows in (None, range(N_ROWS), [*range(5, N_ROWS), *range(5)], [-1] * N_ROWS, [3] * N_ROWS):
        tokens = sample_rows(ctx, ours, rows)
        each = range(N_ROWS) if rows is None else rows
        assert tokens.tolist() == [chain.sample(ctx, i) for chain, i in zip(theirs, each, strict=True)]
    assert sample_rows(ctx, []).shape == (0,)
    assert apply_rows(np.zeros((0, 5), np.float32), []).shape == (0,)


def test_a_row_that_fails_holds_no_other_up(ctx: Context, vocab: Vocab) -> None:
    none = dict.fromkeys(range(len(vocab)), float("-inf"))
    chains = [SamplerChain().penalties(vocab, presence=1e9).greedy() for _ in range(3)]
    chains.insert(1, SamplerChain().logit_bias(vocab, none).greedy())
    with pytest.raises(errors.RowSamplingError, match=r"1 of 4 rows .*chains\[1\].*ruled out") as caught:
        sample_rows(ctx, chains, [0, 0, 0, 0])
    best = int(ctx.logits(0).argmax())
    assert caught.value.tokens.tolist() == [best, -1, best, best]
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value.failures[1], errors.SamplingError)
    assert all(chain.sample(ctx, 0) != best for chain in (chains[0], *chains[2:]))  # they had accepted it
    assert isinstance(caught.value, RuntimeError)


class Mine(Exception):
    pass


def test_a_callable_that_raises_is_one_row_that_fails(ctx: Context) -> None:
    def no(logits: np.ndarray, tokens: np.ndarray) -> None:
        raise Mine

    with pytest.raises(errors.RowSamplingError) as caught:
        sample_rows(ctx, [build(1), SamplerChain().python(no).greedy(), build(2)])
    assert isinstance(caught.value.failures[1], Mine)
    assert isinstance(caught.value.__cause__, Mine)
    assert (caught.value.tokens >= 0).tolist() == [True, False, True]


def test_the_processor_sees_all_rows_once(ctx: Context) -> None:
    seen = []

    def forbid(logits: np.ndarray, rows: np.ndarray) -> None:
        seen.append((logits.copy(), rows.tolist()))
        logits[np.arange(len(logits)), logits.argmax(axis=1)] = -np.inf

    chains = [SamplerChain().greedy() for _ in range(4)]
    before = np.array([ctx.logits(i) for i in (2, 0, 5, 5)])
    tokens = sample_rows(ctx, chains, [2, 0, 5, 5], processor=forbid)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][0], before)
    assert seen[0][1] == [2, 0, 5, 5]
    assert tokens.tolist() == np.argsort(before, axis=1)[:, -2].tolist()
    np.testing.assert_array_equal(ctx.logits(2), before[0])  # a copy was changed
    other = sample_rows(ctx, chains, [2, 0, 5, 5], processor=lambda logits, rows: -logits.astype(np.float64))
    assert other.tolist() == before.argmin(axis=1).tolist()


def test_a_processor_that_fails_changes_nothing(ctx: Context) -> None:
    def no(logits: np.ndarray, rows: np.ndarray) -> None:
        raise Mine

    chain, same = build(3), build(3)
    for wrong in (
        no,
        lambda logits, rows: 3,
        lambda logits, rows: logits[:, 1:],
        lambda logits, rows: logits > 0,
    ):
        with pytest.raises((Mine, errors.ArgumentTypeError)):
            sample_rows(ctx, [chain], processor=wrong)
    with pytest.raises(errors.ContextBusyError):
        sample_rows(ctx, [chain], processor=lambda logits, rows: ctx.logits())
    with pytest.raises(errors.ContextBusyError):
        sample_rows(ctx, [chain], processor=lambda logits, rows: chain.reset())
    with pytest.raises(errors.ArgumentTypeError, match="processor"):
        sample_rows(ctx, [chain], processor=3)
    assert chain.sample(ctx) == same.sample(ctx)


def test_bad_arguments_select_nothing(ctx: Context, vocab: Vocab) -> None:
    chains, same = [build(1), build(2)], [build(1), build(2)]
    bad: list[tuple[type[Exception], dict]] = [
        (errors.IndexOutOfRangeError, {"rows": [0, N_ROWS]}),
        (errors.IndexOutOfRangeError, {"rows": [0, -N_ROWS - 1]}),
        (errors.InvalidArgumentError, {"rows": [0]}),
        (errors.InvalidArgumentError, {"rows": [0, 2**70]}),
        (errors.ArgumentTypeError, {"rows": 3}),
        (errors.ArgumentTypeError, {"rows": [0, "a"]}),
        (errors.InvalidArgumentError, {"n_threads": 0}),
        (errors.InvalidArgumentError, {"n_threads": 65}),
        (errors.InvalidArgumentError, {"chains": [chains[0], chains[0]]}),
        (errors.InvalidArgumentError, {"chains": [chains[0], SamplerChain().top_k(3)]}),
        (errors.ArgumentTypeError, {"chains": [chains[0], None]}),
        (errors.ArgumentTypeError, {"chains": 3}),
        (errors.IndexOutOfRangeError, {"chains": [build(i) for i in range(N_ROWS + 1)]}),
    ]
    for kind, options in bad:
        with pytest.raises(kind):
            sample_rows(ctx, **{"chains": chains, **options})
    for logits in (None, np.zeros((2, 5)), np.zeros(5, np.float32), np.zeros((2, 10), np.float32)[:, ::2]):
        with pytest.raises(errors.ArgumentTypeError, match="logits"):
            apply_rows(logits, chains)
    for logits in (np.zeros((3, 5), np.float32), np.zeros((2, 0), np.float32)):
        with pytest.raises(errors.InvalidArgumentError, match="shape"):
            apply_rows(logits, chains)
    with pytest.raises(errors.InvalidArgumentError, match=r"chains\[1\].*vocabulary"):
        apply_rows(
            np.zeros((2, 5), np.float32), [build(1), SamplerChain().penalties(vocab, presence=1).greedy()]
        )
    assert sample_rows(ctx, chains).tolist() == sample_rows(ctx, same).tolist()


def test_a_busy_chain_lets_the_others_go(ctx: Context) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(logits: np.ndarray, tokens: np.ndarray) -> None:
        inside.set()
        assert go_on.wait(20)

    busy = SamplerChain().python(wait).greedy()
    row = np.zeros(10, np.float32)
    thread = threading.Thread(target=lambda: busy.apply(row))
    thread.start()
    assert inside.wait(20)
    chains = [build(1), busy, build(2)]
    with pytest.raises(errors.ContextBusyError):
        sample_rows(ctx, chains)
    go_on.set()
    thread.join()
    assert (sample_rows(ctx, chains) >= 0).all()


def test_several_threads_sample_many_rows_at_once() -> None:
    rows = np.stack(list(hard_rows(40_000, 24, 3)))
    expected = [build(i).apply(row) for i, row in enumerate(rows)]
    results: list[list[int]] = []

    def run() -> None:
        for _ in range(10):
            results.append(apply_rows(rows, [build(i) for i in range(24)], n_threads=3).tolist())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 40
