"""The engine in asyncio, token logs that grow and fork, and what the engine says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_use import GREEDY, SLOW, make, prompt, slowly, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.errors import (
    ContextOverflowError,
    InvalidArgumentError,
    ModelCapabilityError,
    SamplingError,
    UnknownParameterError,
)


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


@pytest.fixture
def runner(path: Path) -> Iterator[LlamaRunner]:
    with make(path) as made:
        yield made


# --- asyncio


def test_gather_is_one_batch(runner: LlamaRunner) -> None:
    async def main() -> list[list[int]]:
        outs = await asyncio.gather(
            *(runner.agenerate(prompt(20, i), max_tokens=30, **SLOW) for i in range(8))
        )
        return [out.tokens.tolist() for out in outs]

    together = asyncio.run(main())
    assert runner.counters.loop["steps"] < 8 * 30
    assert together == [
        runner.generate(prompt(20, i), max_tokens=30, **GREEDY).tokens.tolist() for i in range(8)
    ]


def test_async_streams_and_their_ends(runner: LlamaRunner) -> None:
    async def main() -> None:
        tokens: list[int] = []
        async for chunk in runner.astream(prompt(10), max_tokens=900, **SLOW):
            tokens += chunk.tokens
            if len(tokens) >= 5:
                break
        task = asyncio.create_task(runner.agenerate(prompt(10, 1), max_tokens=900, **SLOW))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.agenerate(prompt(10, 2), max_tokens=900, **SLOW), 0.02)
        outs = await runner.agenerate(prompt(30, 3), n=3, max_tokens=4, seed=1)
        assert [out.seed for out in outs] == [1, 2, 3]
        (top,) = await runner.agenerate(prompt(30, 3), best_of=3, max_tokens=4, seed=1)
        assert top.tokens.tolist() in [out.tokens.tolist() for out in outs]
        with pytest.raises(UnknownParameterError, match="agenerate"):
            await runner.agenerate(prompt(3), max_token=4)

    asyncio.run(main())
    wait_for(lambda: runner.counters.running == 0)
    assert runner.counters.cancelled >= 2


# --- Sequence


def test_a_sequence_grows_forks_and_shrinks(runner: LlamaRunner) -> None:
    seq = runner.sequence(prompt(100))
    assert seq.extend(()) == 100
    assert seq.extend(prompt(10, 1)) == 10
    branches = seq.fork(16)
    before = runner.get_context_info().used
    outs = [branch.generate(max_tokens=8, seed=i, ignore_eos=True) for i, branch in enumerate(branches)]
    assert {out.usage.computed_tokens for out in outs} == {1}
    assert runner.get_context_info().used <= before + 16 * 8 + 16
    assert [len(branch) for branch in branches] == [118] * 16
    seq.truncate(50)
    assert (len(seq), seq.extend(prompt(5, 2))) == (50, 5)
    assert seq.tokens.tolist() == [*prompt(100)[:50].tolist(), *prompt(5, 2).tolist()]
    with pytest.raises(ValueError, match="read-only"):
        seq.tokens[0] = 1
    assert repr(seq.fork()) == "<Sequence of 55 tokens>"
    assert seq.text == runner.model.vocab.detokenize(seq.tokens, unparse_special=True)
    with pytest.raises(InvalidArgumentError, match="n=56"):
        seq.truncate(56)


def test_a_sequence_scores_and_has_logits(runner: LlamaRunner) -> None:
    seq, tail = runner.sequence(prompt(60)), prompt(20, 1)
    logits = seq.logits
    assert (logits.shape, logits.dtype) == ((runner.model.vocab.n_tokens,), np.float32)
    assert seq.generate(max_tokens=1, **GREEDY).tokens[0] == np.argmax(logits)
    seq.truncate(60)
    scores = seq.score(tail)
    expected = []
    for i, token in enumerate(tail.tolist()):
        row = runner.sequence(np.concatenate([prompt(60), tail[:i]])).logits.astype(np.float64)
        expected.append(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    assert len(seq.score(())) == 0
    with pytest.raises(ModelCapabilityError, match="embeddings=True"):
        seq.embed()
    empty = runner.sequence()
    assert (len(empty), empty.extend(())) == (0, 0)
    for call in (lambda: empty.logits, lambda: empty.score(tail), empty.embed, empty.generate):
        with pytest.raises(InvalidArgumentError, match="empty"):
            call()


def test_embeddings_of_a_sequence(path: Path) -> None:
    with make(path, embeddings=True) as runner:
        seq = runner.sequence(prompt(30))
        row = seq.embed()
        assert row.shape == (runner.model.n_embd,)
        seq.extend(prompt(1, 1))
        assert not np.allclose(seq.embed(), row)
        seq.truncate(30)
        np.testing.assert_allclose(seq.embed(), row, atol=1e-4)
        assert len(runner.generate(prompt(5), max_tokens=3, **GREEDY).tokens) == 3


def test_a_snapshot_has_the_sampler_in_it(runner: LlamaRunner) -> None:
    seq = runner.sequence(prompt(20))
    seq.generate(max_tokens=6, seed=4, ignore_eos=True)
    saved = seq.snapshot()
    first = seq.generate()  # goes on with the same random numbers
    seq.restore(saved)
    assert seq.generate().tokens.tolist() == first.tokens.tolist()
    whole = runner.sequence(prompt(20)).generate(max_tokens=12, seed=4, ignore_eos=True)
    assert whole.tokens[6:].tolist() == first.tokens.tolist()
    fork = runner.sequence()
    fork.restore(saved)
    assert fork.fork().generate().tokens.tolist() == first.tokens.tolist()
    grammar = runner.sequence(prompt(5))
    grammar.generate(grammar='root ::= "abcdefgh"', max_tokens=2, temperature=0)
    at = len(grammar)
    grammar.generate()
    text = runner.model.vocab.detokenize(grammar.tokens[5:])
    assert len(grammar) > at
    assert "abcdefgh".startswith(text.removesuffix("</s>"))
    with pytest.raises(InvalidArgumentError, match="snapshot"):
        seq.restore(3)


def test_a_sequence_that_fails_is_as_it_was(runner: LlamaRunner) -> None:
    def fails(tokens: Any, logits: Any) -> None:
        raise KeyError("x")

    seq = runner.sequence(prompt(10))
    seq.generate(max_tokens=2, seed=1, ignore_eos=True)
    before = seq.tokens.tolist()
    saved = seq.snapshot()
    with pytest.raises(SamplingError):
        seq.generate(logits_processor=fails)
    with pytest.raises(ContextOverflowError):
        seq.extend(prompt(2000))
    assert seq.tokens.tolist() == before
    after = seq.generate().tokens.tolist()
    seq.restore(saved)
    assert seq.generate().tokens.tolist() == after


def test_sequences_of_asyncio(runner: LlamaRunner) -> None:
    async def main() -> None:
        seq = runner.sequence(prompt(40))
        assert await seq.aextend(prompt(2, 1)) == 42
        branches = seq.fork(8)
        steps = runner.counters.loop["steps"]
        outs = await asyncio.gather(
            *(
                branch.agenerate(max_tokens=20, seed=i, ignore_eos=True, logits_processor=slowly)
                for i, branch in enumerate(branches)
            )
        )
        assert runner.counters.loop["steps"] - steps < 100  # one after another it would be 160
        assert len({out.tokens.tobytes() for out in outs}) > 1
        scores, logits = await asyncio.gather(seq.ascore(outs[0].tokens), seq.alogits())
        assert (len(scores), logits.shape) == (20, (runner.model.vocab.n_tokens,))
        np.testing.assert_allclose(scores, seq.score(outs[0].tokens), atol=2e-3)
        assert np.array_equal(await seq.alogits(), seq.logits)
        with pytest.raises(ModelCapabilityError):
            await seq.aembed()
        assert len(await seq.ascore(())) == 0

    asyncio.run(main())


def test_a_pinned_sequence_stays(path: Path) -> None:
    with make(path, n_ctx=512) as runner:
        seq = runner.sequence(prompt(200))
        seq.pin()
        seq.pin()
        assert seq.pinned
        for i in range(1, 5):
            runner.generate(prompt(250, i), max_tokens=4, **GREEDY)
        assert seq.fork().extend(()) == 0
        assert runner.counters.cache.bytes_restored == 0
        with pytest.raises(ContextOverflowError, match="pinned"):
            runner.generate(prompt(400, 9), max_tokens=4)
        seq.truncate(0)
        assert seq.pinned
        assert runner.generate(prompt(400, 9), max_tokens=4, **GREEDY).usage.computed_tokens == 400
        seq.extend(prompt(200))
        with pytest.raises(ContextOverflowError, match="pinned"):
            runner.generate(prompt(400, 8), max_tokens=4)
        seq.unpin()
        assert not seq.pinned
        assert runner.generate(prompt(400, 8), max_tokens=4, **GREEDY).usage.computed_tokens == 400


# --- what is said


def test_kv_map_says_who_owns_what(runner: LlamaRunner) -> None:
    runner.generate(prompt(50), max_tokens=4, **GREEDY)
    pinned = runner.sequence(np.concatenate([prompt(50), prompt(20, 1)]))
    pinned.pin()
    stream = runner.stream(prompt(30, 2), max_tokens=900, owner="me", **SLOW)
    next(stream)
    kv = runner.kv_map()
    kinds = sorted(owner.kind for owner in kv.sequences.values())
    assert kinds == ["prefix", "prefix", "request"]
    assert kv.cells_of("prefix") == 50 + 3 + 20
    (request,) = [owner for owner in kv.sequences.values() if owner.kind == "request"]
    assert (request.owner, request.pinned) == ("me", True)
    assert kv.cells_of("request") == request.n_tokens >= 30
    ages = kv.ages()
    used = kv.tables[0].pos >= 0
    assert np.isnan(ages[~used]).all() and (ages[used] >= 0).all()
    shared = [cell for cell in np.flatnonzero(used) if len(kv.owners(int(cell))) == 2]
    assert len(shared) == 50
    assert "by cached prefixes" in str(kv)
    stream.close()
    pinned.unpin()


def test_counters_add_up(runner: LlamaRunner) -> None:
    runner.generate_many([prompt(20, i) for i in range(5)], max_tokens=6, **GREEDY)
    wait_for(lambda: runner.counters.running == 0)
    counters = runner.counters
    assert (counters.requests, counters.finished, counters.failed) == (5, 5, 0)
    assert counters.queue.count == counters.first_token.count == counters.inter_token.count == 5
    assert 0 < counters.first_token.median <= counters.first_token.worst
    assert counters.loop["tokens_sampled"] == 30
    assert counters.loop["gaps"] <= 25
    assert counters.cache.misses == 5
