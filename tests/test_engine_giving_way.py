"""Who gives way to whom, and that nobody does for nothing; what runs is told, counted and answered all the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_account import verify
from engine_use import GREEDY, SLOW, make, prompt, read_all, slowly, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, LlamaRunner
from llama_runner.engine import AsyncStream, Engine, Request
from llama_runner.errors import ClosedError, ContextOverflowError, DecodeError


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


def submit(
    engine: Engine, n_prompt: int, seed: int, max_tokens: int | None = 5, **options: Any
) -> list[Request]:
    params = GenerationParams(max_tokens=max_tokens, **GREEDY)
    return engine.submit(prompt(n_prompt, seed), params, **options)


def count(stream: Any) -> int:
    """Tokens of the whole generation, whatever was read of it before."""
    for _ in stream:
        pass
    return len(stream.completion.tokens)


def stall(runner: LlamaRunner, on: bool = True) -> None:
    """Let every decode be put off, or no longer: what runs stays where it is, and others are let in or not."""
    runner.engine.loop._fail_next(2 if on else 0, 1 << 30 if on else 0)


# --- of as many as may run together


def test_nobody_makes_place_for_one_that_is_over_its_quota(path: Path) -> None:
    with make(path, max_running=2, quotas={"a": 400}) as runner:
        first = runner.stream(prompt(20), max_tokens=300, owner="a", priority=1, **SLOW)
        next(first)
        other = runner.stream(prompt(20, 1), max_tokens=300, owner="b", **SLOW)
        next(other)
        stall(runner)
        second = runner.stream(prompt(20, 2), max_tokens=300, owner="a", priority=1, **GREEDY)
        wait_for(lambda: runner.counters.waiting == 1)
        assert runner.counters.running == 2
        stall(runner, False)
        assert [count(stream) for stream in (first, second, other)] == [300, 300, 300]
        assert other.completion.explain().preempted == 0


def test_nobody_makes_place_for_one_that_waits_for_a_shared_prompt(path: Path) -> None:
    with make(path, max_running=2, n_ctx=8192, slice_seconds=0.001) as runner:
        other = runner.stream(prompt(20, 1), max_tokens=3000, **SLOW)
        next(other)
        long = prompt(3000)
        reading = runner.stream(long, max_tokens=300, priority=1, **SLOW)
        wait_for(lambda: runner.counters.running == 2)
        stall(runner)
        alike = np.concatenate([long[:2900], prompt(20, 2)])
        sharing = runner.stream(alike, max_tokens=5, priority=1, **GREEDY)
        wait_for(lambda: runner.counters.sharing == 1)
        assert runner.counters.running == 2
        assert other._request.preempted == 0
        stall(runner, False)
        assert count(sharing) == 5
        assert sharing.completion.usage.cached_tokens == 2900
        assert other._request.preempted == 1  # now it had to
        assert count(reading) == 300
        other.close()


def test_a_group_has_as_many_make_place_as_it_is(path: Path) -> None:
    with make(path, max_running=4) as runner:
        low = [runner.stream(prompt(20, i), max_tokens=100, **SLOW) for i in range(4)]
        for stream in low:
            next(stream)
        group = submit(runner.engine, 20, 9, max_tokens=50, n=3, priority=1)
        most = 0
        while not all(request.job.end_reason for request in group):
            most = max(most, runner.counters.running)
        assert most <= 4
        assert [count(stream) for stream in low] == [100] * 4
        assert sorted(stream.completion.explain().preempted for stream in low) == [0, 1, 1, 1]


# --- room


@pytest.mark.parametrize("kind", ["llama", "swa", "hybrid"])
def test_nobody_gives_way_to_one_that_would_not_fit_then(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as runner:
        high = runner.stream(prompt(20, 2), max_tokens=500, priority=2, **SLOW)
        next(high)
        low = runner.stream(prompt(20), max_tokens=200, **SLOW)
        next(low)
        stall(runner)
        middle = runner.stream(prompt(20, 1), max_tokens=600, priority=1, **GREEDY)
        wait_for(lambda: runner.counters.waiting == 1)
        assert runner.counters.running == 2
        stall(runner, False)
        assert count(middle) == 600
        assert [count(stream) for stream in (high, low)] == [500, 200]
        assert low.completion.explain().preempted <= 1  # once the first has ended


@pytest.mark.parametrize("kind", ["llama", "swa", "hybrid"])
def test_what_cannot_fit_evicts_nothing(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as runner:
        runner.generate(prompt(200, 5), max_tokens=1, **GREEDY)
        first = runner.stream(prompt(20), max_tokens=500, **SLOW)
        next(first)
        stall(runner)
        second = runner.stream(prompt(20, 1), max_tokens=600, **GREEDY)
        wait_for(lambda: runner.counters.waiting == 1)
        assert runner.counters.cache.evictions == 0
        stall(runner, False)
        assert [count(stream) for stream in (first, second)] == [500, 600]


def test_the_prompt_of_a_group_is_counted_once(path: Path) -> None:
    """One of two has ended, so that the tree has it, and another has it pinned there: it is the leader's as well."""
    with make(path) as runner:
        engine = runner.engine
        runner.generate(prompt(280, 5), max_tokens=1, **GREEDY)  # what may be evicted
        group = submit(engine, 400, 1, max_tokens=150, n=2, logits_processor=slowly)
        wait_for(lambda: group[1].n_tokens > 405)
        stall(runner)
        engine.cancel(group[1])
        wait_for(lambda: runner.counters.running == 1)
        (alike,) = submit(engine, 400, 1, max_tokens=60, logits_processor=slowly)
        wait_for(lambda: alike.admitted)
        with engine.paused():
            kept = engine.residency.n_kept(engine.scheduler.running.values(), Counter())
            assert 400 < kept < 400 + 150 + 60
        (other,) = submit(engine, 20, 7, max_tokens=150)
        wait_for(lambda: other.admitted)
        assert group[0].job.end_reason is alike.job.end_reason is None
        for request in (group[0], alike, other):
            engine.cancel(request)


def test_what_others_have_read_takes_no_room_twice(path: Path) -> None:
    """One of a higher priority takes a place, and of the room only what it does not share with one that runs."""
    with make(path, max_running=2) as runner:
        engine = runner.engine
        (first,) = submit(engine, 600, 1, max_tokens=300, priority=1, logits_processor=slowly)
        (low,) = submit(engine, 20, 2, max_tokens=90, logits_processor=slowly)
        wait_for(lambda: first.n_tokens > 605 and low.n_tokens > 22)
        stall(runner)
        tokens = np.concatenate([prompt(600, 1), prompt(10, 3)])
        (alike,) = engine.submit(tokens, GenerationParams(max_tokens=50, **GREEDY), priority=1)
        wait_for(lambda: alike.admitted)
        stall(runner, False)
        assert [len(read_all(request)) for request in (alike, first, low)] == [50, 300, 90]
        assert (low.preempted, alike.usage().cached_tokens) == (1, 600)


def test_a_group_over_its_quota_keeps_nobody_else_out(path: Path) -> None:
    with make(path, n_ctx=2048, max_running=4, quotas={"a": 400}) as runner:
        engine = runner.engine
        running = [
            submit(engine, 20, i, 300, owner=owner, logits_processor=slowly)[0]
            for i, owner in enumerate("ab")
        ]
        wait_for(lambda: runner.counters.running == 2)
        stall(runner)
        group = submit(engine, 20, 3, 60, n=3, owner="a")
        wait_for(lambda: runner.counters.waiting == 1)
        (other,) = submit(engine, 20, 4, 30, owner="c")
        wait_for(lambda: other.admitted)
        assert runner.counters.waiting == 1
        stall(runner, False)
        assert [len(read_all(request)) for request in (other, *group)] == [30, 60, 60, 60]
        for request in running:
            engine.cancel(request)


def test_a_step_stops_for_a_follower_that_is_cancelled(path: Path) -> None:
    with make(path, n_ctx=24576, n_batch=24576, n_ubatch=512, slice_seconds=100) as runner:
        group = submit(runner.engine, 24000, 0, n=2)
        wait_for(lambda: group[0].n_resident > 0)
        runner.engine.cancel(group[1])
        wait_for(lambda: group[1].job.end_reason)
        assert group[0].n_resident < 24000, "the step that read all of it went on to its end"
        runner.engine.cancel(group[0])


def test_a_state_is_not_lost_for_a_follower_that_is_cancelled(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("mamba"), n_ctx=8192, n_batch=8192, n_ubatch=512, slice_seconds=100) as runner:
        group = submit(runner.engine, 8000, 0, n=2)
        wait_for(lambda: group[0].n_resident > 0)
        runner.engine.cancel(group[1])
        assert len(read_all(group[0])) == 5
        assert (group[0].usage().computed_tokens, group[0].explain().recomputed_tokens) == (8000, 0)


def test_an_heir_is_a_reader_like_its_leader(path: Path) -> None:
    with make(path, n_ctx=4096, slice_seconds=0.001) as runner:
        engine = runner.engine
        with engine.paused():
            group = submit(engine, 3000, 1, n=3)
        wait_for(lambda: group[0].n_resident > 0)
        with engine.paused():
            engine.cancel(group[0])
            tokens = np.concatenate([prompt(3000, 1)[:2900], prompt(20, 3)])
            (alike,) = engine.submit(tokens, GenerationParams(max_tokens=5, **GREEDY))
        assert len(read_all(alike)) == 5
        assert alike.usage().cached_tokens == 2900
        for request in group[1:]:
            assert len(read_all(request)) == 5


def test_the_prompt_of_a_group_is_promised_once(path: Path) -> None:
    """1,500 tokens and four answers of 60 leave room for another of 100, also while they are being read."""
    with make(path, n_ctx=2048, slice_seconds=0.001) as runner:
        with runner.engine.paused():
            group = submit(runner.engine, 1500, 0, max_tokens=60, n=4, logits_processor=slowly)
            stall(runner)
        wait_for(lambda: runner.counters.running == 4)
        other = runner.stream(prompt(50, 2), max_tokens=50, **GREEDY)
        wait_for(lambda: other._request.admitted)
        stall(runner, False)
        assert count(other) == 50
        assert [len(read_all(request)) for request in group] == [60] * 4


def test_a_pin_that_goes_lets_others_in(path: Path) -> None:
    with make(path) as runner:
        for drop in (False, True):
            runner.clear_context()
            sequence = runner.sequence(prompt(500, 7))
            sequence.pin()
            first = runner.stream(prompt(20), max_tokens=400, **SLOW)
            next(first)
            stall(runner)
            second = runner.stream(prompt(20, 1), max_tokens=300, **GREEDY)
            wait_for(lambda: runner.counters.waiting == 1)
            if drop:
                del sequence
            else:
                sequence.unpin()
            wait_for(lambda: second._request.admitted)  # noqa: B023
            stall(runner, False)
            first.close()
            second.close()


def test_one_that_runs_out_of_time_in_the_queue_lets_others_in(path: Path) -> None:
    with make(path) as runner:
        first = runner.stream(prompt(20), max_tokens=600, **SLOW)
        next(first)
        stall(runner)
        big = runner.stream(prompt(20, 1), max_tokens=900, timeout=0.1, **GREEDY)
        small = runner.stream(prompt(20, 2), max_tokens=5, **GREEDY)
        assert list(big)[-1].finish_reason == "timeout"
        wait_for(lambda: small._request.admitted)
        stall(runner, False)
        assert count(small) == 5
        first.close()


def test_queueing_waits_for_nobody(path: Path) -> None:
    """Whoever looks between two steps, or waits for the end of one, holds no newcomer up."""
    with make(path) as runner:
        inside, leave = threading.Event(), threading.Event()

        def look() -> None:
            with runner.engine.paused():
                inside.set()
                leave.wait(30)

        looker = threading.Thread(target=look)
        looker.start()
        assert inside.wait(30)
        (request,) = submit(runner.engine, 20, 0)
        assert looker.is_alive() and not leave.is_set()
        leave.set()
        looker.join()
        assert len(read_all(request)) == 5


# --- prompts that are alike


@pytest.mark.parametrize("n", [1, 3])
def test_who_shares_a_beginning_with_a_group_waits_for_that_alone(path: Path, n: int) -> None:
    with make(path, n_ctx=12288, slice_seconds=0.001) as runner:
        long = prompt(12000)
        with runner.engine.paused():
            group = submit(runner.engine, 12000, 0, n=n)
        wait_for(lambda: runner.counters.running == n)
        other = runner.stream(np.concatenate([long[:300], prompt(20, 3)]), max_tokens=1, **GREEDY)
        wait_for(lambda: other._request.admitted)
        assert group[0].n_resident < 12000
        assert count(other) == 1
        assert other.completion.usage.cached_tokens == 300
        for request in group:
            runner.engine.cancel(request)


def test_a_checkpoint_is_asked_of_whom_reads(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("swa"), n_ctx=4096, slice_seconds=0.001) as runner:
        long = prompt(1500)
        with runner.engine.paused():
            group = submit(runner.engine, 1500, 0, max_tokens=100, n=2)
        wait_for(lambda: runner.counters.running == 2)
        with runner.engine.paused():
            first = runner.stream(np.concatenate([long[:900], prompt(20, 3)]), max_tokens=1, **GREEDY)
        wait_for(lambda: runner.counters.sharing == 1)
        second = runner.stream(np.concatenate([long[:600], prompt(20, 4)]), max_tokens=1, **GREEDY)
        assert [count(stream) for stream in (first, second)] == [1, 1]
        assert first.completion.usage.cached_tokens == 900
        assert [request.mark for request in group] == [None, None]
        assert [len(read_all(request)) for request in group] == [100] * 2


# --- giving way in the middle


def test_an_async_stream_that_gave_way_goes_on_piece_by_piece(path: Path) -> None:
    async def pieces(runner: LlamaRunner) -> list[int]:
        params = GenerationParams(max_tokens=150, **GREEDY)

        def begin(notify: Callable[[], None]) -> Request:
            return runner.engine.submit(prompt(20), params, logits_processor=slowly, notify=notify)[0]

        stream, sizes = AsyncStream(runner.engine, begin), []

        async def read() -> None:
            async for chunk in stream:
                sizes.append(len(chunk.tokens))

        reading = asyncio.create_task(read())
        while len(sizes) < 20:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(
            lambda: list(runner.stream(prompt(20, 1), max_tokens=5, priority=1, **GREEDY))
        )
        at = len(sizes)
        await reading
        assert stream.completion.explain().preempted == 1
        return sizes[at:]

    with make(path, max_running=1) as runner:
        after = asyncio.run(pieces(runner))
        assert len(after) > 10
        assert max(after) < sum(after) // 2


def test_a_generation_without_an_end_that_gave_way_ends_as_alone(path: Path) -> None:
    with make(path, max_running=1) as runner:
        pinned = runner.sequence(prompt(300, 7))
        pinned.pin()
        expected = count(runner.stream(prompt(20), max_tokens=None, stop_tokens=[], **GREEDY))
        assert expected == 1024 - 300 - 20 + 1  # the last one is in no cell
        runner.clear_context()
        stream = runner.stream(prompt(20), max_tokens=None, stop_tokens=[], **SLOW)
        seen = 0
        while seen < 600:
            seen += len(next(stream).tokens)
        stall(runner)
        high = runner.stream(prompt(5, 3), max_tokens=2, priority=1, **GREEDY)
        wait_for(lambda: stream._request.preempted == 1)
        stall(runner, False)
        assert count(high) == 2
        assert count(stream) == expected
        assert stream.completion.finish_reason == "length"
        assert stream.completion.explain().preempted == 1
        pinned.unpin()


def test_followers_that_hold_nothing_are_not_put_out_for_room(path: Path) -> None:
    with make(path, n_ctx=8192, slice_seconds=0.001) as runner:
        other = runner.stream(prompt(20, 5), max_tokens=300, **SLOW)
        next(other)
        group = submit(runner.engine, 7000, 0, n=4)
        wait_for(lambda: runner.counters.running == 5 and group[0].n_resident > 0)
        # fewer and fewer rows of the leader, and then it is held back
        runner.engine.loop._fail_next(1, 12)
        for request in group:
            assert len(read_all(request)) == 5
        assert len({request.preempted for request in group}) == 1, "they gave way together"
        assert group[0].preempted > 0
        assert [request.usage().cached_tokens for request in group] == [0, 7000, 7000, 7000]
        assert count(other) == 300


def test_one_that_has_just_been_ended_is_not_put_out(path: Path) -> None:
    with make(path, max_running=1) as runner:
        engine = runner.engine
        stream = runner.stream(prompt(20), max_tokens=None, **SLOW)
        next(stream)
        with engine.paused():
            engine.loop.end(stream._request.job, "length")
            engine.scheduler.preempt(stream._request)
            assert engine.scheduler.waiting == []
        list(stream)
        assert stream.completion.finish_reason == "length"
        wait_for(lambda: runner.counters.finished == 1)
        assert stream.completion.explain().preempted == 0


def test_one_is_tried_again_as_often_as_it_got_on(path: Path) -> None:
    with make(path) as runner:
        engine = runner.engine
        stream, seen = runner.stream(prompt(20), max_tokens=300, **SLOW), 0
        for at in (30, 60):
            while seen < at:
                seen += len(next(stream).tokens)
            with engine.paused():  # from the beginning, where there is no room for the first row either
                engine.scheduler.preempt(stream._request)
                engine.residency.clear()
                assert stream._request.n_tokens < 512
                engine.loop._fail_next(1, int(np.ceil(np.log2(stream._request.n_tokens))))
            engine.loop.wake()
        assert count(stream) == 300


def test_what_a_forced_run_leaves_is_known_between_its_steps(path: Path) -> None:
    """Eight rows a step for what comes sixteen at a time: each of them counts as soon as it is in the memory."""
    with make(path, n_batch=8, n_ubatch=8) as runner:
        engine = runner.engine
        text = "".join(chr(97 + i % 26) for i in range(300))
        (request,) = engine.submit(prompt(40), GenerationParams(max_tokens=500, temperature=0, regex=text))
        looks = 0
        while not request.job.end_reason:
            with engine.paused() as context:
                if request.seq_id is not None and not request.job.end_reason:
                    assert request.n_resident == context.memory.seq_pos_max(request.seq_id) + 1
                    looks += 1
        assert looks > 0
        read_all(request)
        assert request.completion().text == text


def test_an_error_while_one_gives_way_answers_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(path) as runner:
        engine = runner.engine
        stream = runner.stream(prompt(20), max_tokens=300, **SLOW)
        next(stream)

        def fail(*args: object) -> None:
            raise MemoryError("none left")

        with engine.paused():
            monkeypatch.setattr(engine.residency, "settle", fail)
            with pytest.raises(MemoryError):
                engine.scheduler.preempt(stream._request)
        monkeypatch.undo()
        engine.close()
        with pytest.raises(ClosedError):
            list(stream)


def test_sequences_of_a_group_that_cannot_start_are_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(path) as runner:
        engine = runner.engine
        free = engine.residency.n_free

        def fail(*args: object) -> None:
            raise ContextOverflowError("it does not fit", 1, 1)

        monkeypatch.setattr(engine.residency, "_attach_parts", fail)
        for request in submit(engine, 30, 0, n=4):
            with pytest.raises(DecodeError, match="does not fit"):
                read_all(request)
        monkeypatch.undo()
        assert engine.residency.n_free == free
        verify(engine, idle=True)


# --- quotas


def test_generations_without_an_end_stay_within_their_quota(path: Path) -> None:
    with make(path, n_ctx=2048, quotas={"a": 700}) as runner:
        engine = runner.engine
        streams = [
            runner.stream(prompt(20, i), max_tokens=None, stop_tokens=[], owner="a", **GREEDY)
            for i in range(3)
        ]
        other = runner.stream(prompt(20, 9), max_tokens=400, owner="b", **GREEDY)
        most, together = 0, 0
        while not all(stream._request.job.end_reason for stream in streams):
            with engine.paused():
                running = [r for r in engine.scheduler.running.values() if r.owner == "a"]
                most = max(most, sum(request.n_resident for request in running))
                together = max(together, len(running))
        assert together >= 2
        assert 600 < most <= 700
        assert [count(stream) for stream in streams] == [680] * 3
        assert count(other) == 400
        assert other.completion.explain().preempted == 0
        assert sum(stream.completion.explain().preempted for stream in streams) > 0
        wait_for(lambda: engine.counters.running == 0)
        verify(engine, idle=True)


def test_a_quota_binds_forced_runs_and_groups(path: Path) -> None:
    text = "".join(chr(97 + i % 26) for i in range(400))
    with make(path, n_ctx=2048, quotas={"a": 900}) as runner:
        engine = runner.engine
        params = GenerationParams(temperature=0, regex=text, max_tokens=None)
        requests = engine.submit(prompt(40), params, n=2, owner="a")
        assert requests[0].limit == 410
        requests += engine.submit(prompt(40, 1), params, owner="a")
        most = 0
        while not all(request.job.end_reason for request in requests):
            with engine.paused():
                running = engine.scheduler.running.values()
                most = max(most, sum(request.n_resident for request in running))
            time.sleep(0.0005)
        assert most <= 900
        for request in requests:
            read_all(request)
            assert request.completion().text == text
