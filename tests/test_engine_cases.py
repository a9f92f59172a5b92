"""Cases that the random tests of the engine came upon, or could: each one by itself."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from engine_account import verify
from engine_truth import EXACT, Alone, Tokens
from engine_use import slowly
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, errors
from llama_runner.core import Context, Model
from llama_runner.engine import Engine, Request, Sequence
from llama_runner.results import Completion

PATIENCE = 30.0
RNG = np.random.default_rng(3)
A, B, C, D = (RNG.integers(270, 340, 30).astype(np.int32) for _ in range(4))


class EngineFactory(Protocol):
    def __call__(
        self, kind: str = "llama", *, context: dict[str, Any] | None = None, **options: Any
    ) -> Engine: ...


@pytest.fixture
def engine_of(tiny_model: TinyModelFactory) -> Iterator[EngineFactory]:
    made: list[Engine] = []

    def make(kind: str = "llama", *, context: dict[str, Any] | None = None, **options: Any) -> Engine:
        settings = {"n_ctx": 256, "n_batch": 32, "n_ubatch": 32, "n_seq_max": 6, **EXACT, **(context or {})}
        made.append(Engine(Context(Model(tiny_model(kind)), **settings), **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.context.close()
    made.clear()


def submit(engine: Engine, *parts: Tokens, n: int = 1, priority: int = 0, **params: Any) -> list[Request]:
    settings = {"max_tokens": 4, "temperature": 0, "ignore_eos": True, **params}
    return engine.submit(np.concatenate(parts), GenerationParams(**settings), n=n, priority=priority)


def answer(request: Request) -> Completion:
    while not request.ended:
        assert request.chunk(PATIENCE) is not None, "nothing comes"
    return request.completion()


def ask(engine: Engine, *parts: Tokens, **params: Any) -> Completion:
    return answer(submit(engine, *parts, **params)[0])


def until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.001)


def stall(engine: Engine, on: bool = True) -> None:
    """Let every decode be put off, or no longer: what is running stays where it is."""
    engine.loop._fail_next(2 if on else 0, 1 << 30 if on else 0)


def running(engine: Engine, n: int) -> None:
    until(lambda: engine.counters.running == n, f"{n} run")


@pytest.mark.parametrize("kind", ["mamba", "hybrid", "swa"])
def test_a_state_is_not_that_of_its_first_half(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind)
    alone = Alone(engine.context.model)
    for tail in (B, C, D):  # the second makes a node of A, the third looks for a state there
        for _ in range(2):
            out = ask(engine, A, tail, logprobs=0)
            alone.check(np.concatenate([A, tail]), out, greedy=True)
            until(lambda: engine.counters.running == 0, "it is settled")
            with engine.paused():  # into host memory, from which it comes back
                while engine.residency.evict_one():
                    pass
            verify(engine)
        assert out.usage.cached_tokens in (0, len(A)), "but for a checkpoint at the fork there is none of use"
    found = ask(engine, A, D, np.concatenate([out.tokens, C]), logprobs=0)
    assert found.usage.cached_tokens == 63  # the last sampled token was never read
    assert found.explanation is not None
    assert found.explanation.restored_tokens == 63
    alone.close()


def test_a_leader_that_gives_way_takes_its_followers_along(engine_of: EngineFactory) -> None:
    engine = engine_of()
    stall(engine)
    group = submit(engine, A, B, n=3, max_tokens=8)
    running(engine, 3)
    with engine.paused():
        engine.scheduler.preempt(group[0])
        assert engine.scheduler.running == {}
        assert engine.scheduler.waiting == [group[0]]
        assert group[0].followers == group[1:]
    verify(engine)
    engine.cancel(group[0])  # it waits, and so do they: they must not wait for ever
    assert answer(group[0]).finish_reason == "cancelled"
    stall(engine, False)
    outs = [answer(request) for request in group[1:]]
    assert [out.finish_reason for out in outs] == ["length", "length"]
    assert (
        outs[0].tokens.tolist() == outs[1].tokens.tolist() == ask(engine, A, B, max_tokens=8).tokens.tolist()
    )


def test_a_follower_gives_way_alone(engine_of: EngineFactory) -> None:
    engine = engine_of()
    stall(engine)
    group = submit(engine, A, B, n=3, max_tokens=8)
    running(engine, 3)
    with engine.paused():
        engine.scheduler.preempt(group[2])
        assert list(engine.scheduler.running.values()) == group[:2]
    stall(engine, False)
    engine.loop.wake()
    tokens = [answer(request).tokens.tolist() for request in group]
    assert tokens[0] == tokens[1] == tokens[2]
    assert group[2].preempted == 1
    usage = group[2].usage()
    assert usage.computed_tokens == group[2].job.progress["n_computed"]


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_nothing_cached_is_in_the_way_of_a_request(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind)
    # it shares its beginning with what comes, which has room only without the rest
    ask(engine, A, B, C, D, max_tokens=100)
    for parts in ((A, C, D, B), (A, C, D, B), (A, C, D, A)):
        assert ask(engine, *parts, max_tokens=None).finish_reason == "length"
        verify(engine)


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_one_sequence_is_enough(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind, context={"n_seq_max": 2})
    for _ in range(3):
        assert ask(engine, A, B).finish_reason == "length"
    engine = engine_of(kind, context={"n_seq_max": 4})
    for _ in range(3):
        assert [answer(r).finish_reason for r in submit(engine, A, B, n=3)] == ["length"] * 3
    verify(engine)


def test_several_without_a_limit_share_the_room(engine_of: EngineFactory) -> None:
    engine = engine_of()
    outs = [answer(request) for request in submit(engine, A, B, n=4, max_tokens=None)]
    assert {out.finish_reason for out in outs} <= {"length"}
    assert sum(len(out.tokens) for out in outs) >= 256 - 60
    with pytest.raises(errors.ContextOverflowError, match="4 generations"):
        submit(engine, A, B, n=4, max_tokens=50)
    verify(engine, idle=True)


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_mark_goes_with_the_request_that_was_to_leave_it(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind)
    alone = Alone(engine.context.model)
    stall(engine)
    (first,) = submit(engine, A, B, C)
    running(engine, 1)
    (second,) = submit(engine, A, B, D, logprobs=0)
    until(lambda: first.mark is not None, "the second waits for a checkpoint of the first")
    verify(engine)
    with engine.paused():
        engine.scheduler.preempt(first)
        assert first.mark is None
    verify(engine)
    stall(engine, False)
    engine.loop.wake()
    alone.check(np.concatenate([A, B, D]), answer(second), greedy=True)
    answer(first)
    verify(engine)
    alone.close()


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_request_can_leave_two_checkpoints(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind, context={"n_batch": 16, "n_ubatch": 16})
    alone = Alone(engine.context.model)
    stall(engine)
    (first,) = submit(engine, A, B, C, D, max_tokens=60)
    running(engine, 1)
    (second,) = submit(engine, A, C, logprobs=0)
    until(lambda: first.mark is not None, "the first mark")
    assert first.mark is not None
    assert first.mark[0] == len(A)
    stall(engine, False)
    answer(second)
    stall(engine)
    (third,) = submit(engine, A, B, C, A, logprobs=0)
    verify(engine)
    stall(engine, False)
    for request, parts in ((third, (A, B, C, A)), (second, (A, C))):
        alone.check(np.concatenate(parts), answer(request), greedy=True)
        verify(engine)
    answer(first)
    assert second.usage().cached_tokens == len(A)
    alone.close()


def test_an_engine_begins_with_an_empty_memory(engine_of: EngineFactory) -> None:
    engine = engine_of()
    expected = ask(engine, A, B, max_tokens=8).tokens.tolist()
    ask(engine, C, D)
    engine.close()
    assert engine.context.memory.n_used > 0
    with Engine(engine.context) as second:
        verify(second, idle=True)
        assert second.context.memory.n_used == 0
        out = ask(second, A, B, max_tokens=8)
        assert out.usage.cached_tokens == 0
        assert out.tokens.tolist() == expected
        with pytest.raises(errors.ContextBusyError):
            Engine(engine.context)
        assert ask(second, A, B).usage.cached_tokens == 59


def test_nobody_gives_way_for_nothing(engine_of: EngineFactory) -> None:
    engine = engine_of()
    pinned = Sequence(engine, np.concatenate([A, B, C]))
    pinned.pin()
    stall(engine)
    (low,) = submit(engine, D, max_tokens=20)
    running(engine, 1)
    (high,) = submit(engine, D[5:], priority=9, max_tokens=200)  # cannot fit as long as the others are pinned
    until(lambda: engine.counters.waiting == 1, "it waits")
    stall(engine, False)
    assert len(answer(low).tokens) == 20
    assert low.preempted == 0
    with pytest.raises(errors.ContextOverflowError, match="pinned"):
        answer(high)
    verify(engine, [pinned._pin])
    stall(engine)
    (low,) = submit(engine, D, max_tokens=20)
    running(engine, 1)
    (high,) = submit(engine, D[5:], priority=9, max_tokens=200)
    until(lambda: engine.counters.waiting == 1, "it waits")
    pinned.unpin()
    until(lambda: low.preempted == 1, "there is room without the pin")
    stall(engine, False)
    assert len(answer(high).tokens) == 200
    assert len(answer(low).tokens) == 20


def test_all_sequences_pinned_is_an_error(engine_of: EngineFactory) -> None:
    engine = engine_of(context={"n_seq_max": 3})
    held = [Sequence(engine, part) for part in (A, B)]
    for sequence in held:
        sequence.pin()
    with pytest.raises(errors.ContextOverflowError, match="n_seq_max"):
        ask(engine, C)
    held[0].unpin()
    assert ask(engine, C).finish_reason == "length"
    assert held[1].pinned
    held[1].unpin()


def test_what_lost_its_state_while_pinned_goes_with_the_pin(engine_of: EngineFactory, tmp_path: Path) -> None:
    engine = engine_of(host_cache_bytes=0, disk_cache=tmp_path)
    ask(engine, A, B)
    until(lambda: engine.counters.running == 0, "it is settled")
    with engine.paused():
        while engine.residency.evict_one():
            pass
    (file,) = tmp_path.glob("*/*.kv")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    node = engine.pin(np.concatenate([A, B]))
    assert node is not None
    out = ask(engine, A, B, C)
    assert out.usage.cached_tokens == 0
    assert engine.counters.cache.damaged == 1
    engine.pin(np.empty(0, np.int32), node)
    verify(engine)
    engine.clear()
    verify(engine, idle=True)
    assert list(engine.residency.tree.nodes()) == []


def test_a_sequence_may_be_collected_anywhere(engine_of: EngineFactory) -> None:
    engine = engine_of()
    sequence = Sequence(engine, A)
    sequence.pin()
    node = sequence._pin
    assert node is not None
    held = [sequence]
    del sequence

    def drop() -> None:
        held.clear()

    with engine._lock:  # another thread has it, perhaps while it waits for what this one has
        thread = threading.Thread(target=drop)
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "collecting a sequence waits for a lock"
    engine.loop.wake()
    until(lambda: node.pins == 0, "the pin is undone")
    verify(engine, idle=True)


def test_generate_and_fork_at_once(engine_of: EngineFactory) -> None:
    engine = engine_of()
    sequence = Sequence(engine, A)
    for i in range(60):
        sequence.generate(max_tokens=1, ignore_eos=True, seed=i)
        fork = sequence.fork()  # copies the sampler, which the loop has just used
        assert len(fork) == len(sequence) == 31 + i


def test_scoring_that_gave_way_scores_every_token(engine_of: EngineFactory) -> None:
    engine = engine_of(context={"n_batch": 16, "n_ubatch": 16})
    alone = Alone(engine.context.model)
    whole = np.concatenate([A, B, C])
    stall(engine)
    scoring = engine.feed(whole, want="logprobs", want_from=10)
    running(engine, 1)
    with engine.paused():
        engine.scheduler.preempt(scoring)
        engine.scheduler.waiting.remove(scoring)
    stall(engine, False)
    ask(engine, whole)  # meanwhile another computes the same
    with engine.paused():
        engine.scheduler.push(scoring)
    engine.loop.wake()
    until(lambda: scoring.job.end_reason == "fed", "it ends")
    scores = scoring.job.wanted("logprobs")
    expected = alone.logprobs(whole)[np.arange(9, len(whole) - 1), whole[10:]]
    assert np.abs(scores - expected).max() < 5e-3  # a NaN is none
    alone.close()


def test_a_refused_submission_holds_no_processor(engine_of: EngineFactory) -> None:
    engine = engine_of(quotas={"small": 50})

    class Processor:
        def __call__(self, tokens: list[Tokens], logits: np.ndarray) -> None:
            pass

    processor = Processor()
    alive = weakref.ref(processor)
    with pytest.raises(errors.ContextOverflowError, match="quota"):
        engine.submit(A, GenerationParams(max_tokens=40), owner="small", logits_processor=processor)
    out = answer(
        engine.submit(A, GenerationParams(max_tokens=2), owner="small", logits_processor=processor)[0]
    )
    assert out.usage.prompt_tokens == 30
    del processor

    def gone() -> bool:
        gc.collect()
        return alive() is None

    until(gone, "the processor is let go of")


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_a_restart_finds_what_was_computed(engine_of: EngineFactory, kind: str, tmp_path: Path) -> None:
    outs: list[Completion] = []
    for _ in range(3):
        engine = engine_of(kind, disk_cache=tmp_path)
        verify(engine, idle=True)
        prompt = np.concatenate([A, B, *(out.tokens for out in outs)])
        outs.append(ask(engine, prompt, max_tokens=8))
        # all but the last token that was sampled before: that one was never read
        assert outs[-1].usage.cached_tokens == (0 if len(outs) == 1 else len(prompt) - 1)
        until(lambda: engine.counters.running == 0, "it is settled")  # noqa: B023
        verify(engine, idle=True)
        engine.close()
        engine.context.close()


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_preempted_outputs_are_the_same_and_counted(engine_of: EngineFactory, kind: str) -> None:
    engine = engine_of(kind, host_cache_bytes=0)
    alone = Alone(engine.context.model)
    params = GenerationParams(max_tokens=180, logprobs=0, temperature=0, ignore_eos=True)
    (request,) = engine.submit(np.concatenate([A, B]), params, logits_processor=slowly)
    for _ in range(4):
        seen = request.job.progress["n_sampled"]
        until(lambda: request.job.progress["n_sampled"] > seen or request.job.end_reason, "a token")  # noqa: B023
        with engine.paused():
            engine.scheduler.preempt(request)
            while engine.residency.evict_one(keep=False):
                pass
        engine.loop.wake()
    out = answer(request)
    alone.check(np.concatenate([A, B]), out, greedy=True)
    assert out.explanation is not None
    assert out.explanation.preempted >= 1
    assert out.usage.computed_tokens == 60
    rows = engine.counters.loop["rows"]
    assert rows == request.job.progress["n_computed"] + len(out.tokens) - 1
    assert out.explanation.recomputed_tokens == rows - 60 - len(out.tokens) + 1 > 0
    alone.close()


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_state_that_a_failure_emptied_is_not_used(engine_of: EngineFactory, kind: str) -> None:
    """llama.cpp moves states about to compute; of what it had moved when that failed nothing is left."""
    engine = engine_of(kind)
    alone = Alone(engine.context.model)
    first = ask(engine, A, B).tokens
    engine.loop._fail_next(-2, 1 << 20)
    with pytest.raises(errors.OutOfMemoryError):
        ask(engine, C)
    engine.loop._fail_next(0, 0)
    until(lambda: engine.counters.running == 0, "it is settled")
    with engine.paused() as context:
        ((seq_id, node),) = engine.residency.holders()
        assert node.end == 63
        context.memory.seq_rm(seq_id)
        engine.scheduler._failed = 0  # as if nobody had looked since
    out = ask(engine, A, B, first, D, logprobs=0)
    assert out.usage.cached_tokens == 0
    alone.check(np.concatenate([A, B, first, D]), out, greedy=True)
    until(lambda: engine.counters.running == 0, "it is settled")
    verify(engine, idle=True)
    assert engine.counters.cache.damaged == 1
    alone.close()
