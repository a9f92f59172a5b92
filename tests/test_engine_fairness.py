"""Who gets how much of an engine: owners take turns, and a quota bounds what each of them may hold."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine_use import GREEDY, SLOW, make, prompt, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.engine import Stream, exhaust
from llama_runner.errors import ContextOverflowError, InvalidArgumentError


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


def asked(runner: LlamaRunner, owner: str | None, n: int, seed: int, **options: object) -> list[Stream]:
    return [
        runner.stream(prompt(20, 100 * seed + i), max_tokens=30, owner=owner, **{**SLOW, **options})
        for i in range(n)
    ]


def starts(streams: list[Stream]) -> list[float]:
    """When each of them got its turn."""
    for stream in streams:
        exhaust(stream)
    return [stream._request.admitted for stream in streams]


def test_an_owner_with_many_requests_does_not_keep_another_waiting(path: Path) -> None:
    with make(path, max_running=2) as runner:
        many = asked(runner, "a", 12, 1)
        wait_for(lambda: runner.counters.running == 2)
        with runner.engine.paused():
            few = asked(runner, "b", 2, 2)
            nobody = asked(runner, None, 1, 3)
            there = time.perf_counter()
        first, second, none = starts(many), starts(few), starts(nobody)
        assert first == sorted(first)
        assert second == sorted(second)
        # besides those that ran already
        assert sum(there < start < second[0] for start in first) <= 1
        assert sum(there < start < second[1] for start in first) <= 3
        assert sum(there < start < none[0] for start in first) <= 2


def test_owners_share_what_runs_evenly(path: Path) -> None:
    """Each of three has eight waiting: whoever is started, no owner is more than one turn ahead of another."""
    with make(path, max_running=3, n_ctx=512) as runner:
        blocker = runner.stream(prompt(300, 9), max_tokens=200, priority=1, **SLOW)
        next(blocker)
        with runner.engine.paused():
            streams = {owner: asked(runner, owner, 8, i) for i, owner in enumerate("abc")}
        blocker.close()
        turns = sorted((start, owner) for owner, made in streams.items() for start in starts(made))
        for n in range(len(turns)):
            had = [sum(owner == each for _, owner in turns[:n]) for each in "abc"]
            assert max(had) - min(had) <= 3, turns
        first = [owner for _, owner in turns[:3]]
        assert sorted(first) == ["a", "b", "c"]


def test_a_larger_priority_comes_before_any_owners_turn(path: Path) -> None:
    with make(path, max_running=1) as runner:
        running = asked(runner, "a", 1, 1)
        wait_for(lambda: runner.counters.running == 1)
        urgent = asked(runner, "a", 3, 2, priority=1)
        other = asked(runner, "b", 1, 3)
        exhaust(running[0])
        assert max(starts(urgent)) < min(starts(other))


def test_quotas(path: Path) -> None:
    with make(path, quotas={"a": 150}) as runner:
        streams = [runner.stream(prompt(20, i), max_tokens=100, owner="a", **GREEDY) for i in range(3)]
        other = runner.stream(prompt(20, 9), max_tokens=600, owner="b", **SLOW)
        next(other)
        wait_for(lambda: runner.counters.waiting <= 2)
        counters = runner.counters
        assert counters.running <= 2
        assert [len([t for c in s for t in c.tokens]) for s in streams] == [100] * 3
        other.close()
        with pytest.raises(ContextOverflowError, match=r"161 cells, and the quota of 'a' is 150"):
            runner.generate(prompt(61), max_tokens=100, owner="a")
    with pytest.raises(InvalidArgumentError, match="quotas"):
        make(path, quotas={"a": 0})


def test_a_quota_ends_what_has_no_other_end(path: Path) -> None:
    with make(path, quotas={"a": 400}) as runner:
        stream = runner.stream(prompt(20), max_tokens=None, owner="a", **SLOW)
        while stream._request.job.progress["n_sampled"] < 300:
            next(stream)
        # it has outgrown what was set aside for it: taken out, it must come back in
        with runner.engine.paused():
            runner.engine.scheduler.preempt(stream._request)
        runner.engine.loop.wake()
        out = exhaust(stream)
        assert (len(out.tokens), out.finish_reason) == (380, "length")
        outs = runner.generate(prompt(20, 1), n=2, max_tokens=None, owner="a", **GREEDY)
        assert [len(out.tokens) for out in outs] == [180, 180]
        with pytest.raises(ContextOverflowError, match="quota of 'a' is 400"):
            runner.generate(prompt(400), max_tokens=None, owner="a")
