"""Who waits for whom: streams keep their pace, and whoever wants the whole answer has none to keep."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_use import GREEDY, SLOW, make, prompt, read_all, slowly, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, LlamaRunner
from llama_runner.engine import Stream, exhaust


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


def test_a_long_prompt_does_not_keep_a_short_one_waiting(path: Path) -> None:
    with make(path, n_ctx=4096, slice_seconds=0.001) as runner:
        long = runner.stream(prompt(3500), max_tokens=1, **GREEDY)
        wait_for(lambda: runner.counters.running == 1)
        assert len(runner.generate(prompt(10, 1), max_tokens=2, **GREEDY).tokens) == 2
        assert not long._request.job.progress["end"]
        long.close()


def sampled(stream: Stream) -> int:
    return int(stream._request.job.progress["n_sampled"])


def read_beside(runner: LlamaRunner, whole: bool, priority: int = 0) -> int:
    """How many tokens a generation samples while a prompt of 1,500 is read."""
    runner.clear_context()
    runner.generate(prompt(300, 1), max_tokens=1, **GREEDY)  # what a row costs is known
    stream = runner.stream(prompt(10, 2), max_tokens=2000, priority=priority, **GREEDY)
    if whole:
        stream.read_whole()
    wait_for(lambda: sampled(stream) > 20)
    before = sampled(stream)
    runner.generate(prompt(1500, 3), max_tokens=1, **GREEDY)
    after = sampled(stream)
    stream.close()
    return after - before


def test_streams_go_on_while_a_prompt_is_read(path: Path) -> None:
    """A step beside a stream, or what goes first, reads little; beside one that is wanted whole, a slice."""
    with make(path, n_ctx=4096, n_batch=2048) as runner:
        beside_whole = min(read_beside(runner, True) for _ in range(3))
        beside_stream = max(read_beside(runner, False) for _ in range(3))
        beside_urgent = max(read_beside(runner, True, priority=1) for _ in range(3))
    assert beside_stream > 3 * beside_whole, (beside_stream, beside_whole)
    assert beside_urgent > 3 * beside_whole, (beside_urgent, beside_whole)


def rows_of_each_call(runner: LlamaRunner, prompts: list[Any], **options: Any) -> list[int]:
    """How many rows of logits each step had that somebody sampled from."""
    rows: list[int] = []

    def count(tokens: Any, logits: Any) -> None:
        rows.append(len(tokens))

    runner.clear_context()
    outs = runner.generate_many(prompts, logits_processor=count, **{**GREEDY, **options})
    assert sum(rows) == sum(len(out.tokens) for out in outs)
    return rows


def test_those_that_come_together_sample_together(path: Path) -> None:
    """Prompts of several slices: whoever is through first waits, and then each step has a row for all of them."""
    with make(path, n_ctx=4096, n_batch=128) as runner:
        runner.generate(prompt(200, 99), max_tokens=20, **GREEDY)
        prompts = [prompt(60 + 20 * i, i) for i in range(8)]
        # one of three times: a pause of the machine between two submissions parts them
        tries = (rows_of_each_call(runner, prompts, max_tokens=100) for _ in range(3))
        assert any(rows[-99:] == [8] * 99 for rows in tries)  # the first token comes from the prompt


def test_a_short_answer_does_not_wait_for_a_long_prompt(path: Path) -> None:
    """They come together, and reading the one takes longer than the other's three tokens."""
    with make(path, n_ctx=4096, slice_seconds=0.001) as runner:
        runner.generate(prompt(300, 9), max_tokens=20, **GREEDY)
        ends: dict[str, float] = {}

        def ask(name: str, given: Any, n: int) -> None:
            runner.generate(given, max_tokens=n, **GREEDY)
            ends[name] = time.perf_counter()

        threads = [
            threading.Thread(target=ask, args=args)
            for args in (("short", prompt(8, 1), 3), ("long", prompt(3500, 2), 1))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends["short"] < ends["long"]


def test_nothing_comes_before_the_end_of_what_is_read_whole(path: Path) -> None:
    with make(path) as runner:
        stream = runner.stream(prompt(10), max_tokens=300, **SLOW)
        stream.read_whole()
        job = stream._request.job
        wait_for(lambda: sampled(stream) > 3)
        assert not job.wait(0.005)
        (chunk,) = list(stream)
        assert (len(chunk.tokens), chunk.finish_reason) == (300, "length")
        expected = runner.generate(prompt(10), max_tokens=300, **GREEDY)
        assert (list(chunk.tokens), chunk.text) == (expected.tokens.tolist(), expected.text)

        half = runner.stream(prompt(10, 1), max_tokens=60, **SLOW)
        first = next(half)
        half.read_whole()
        rest = list(half)
        assert len(rest) <= 2  # one that was there already
        tokens = [*first.tokens, *(token for chunk in rest for token in chunk.tokens)]
        assert tokens == runner.generate(prompt(10, 1), max_tokens=60, **GREEDY).tokens.tolist()


def test_what_is_read_whole_ends_early_like_any_other(path: Path) -> None:
    with make(path) as runner:
        stream = runner.stream(prompt(10), max_tokens=900, **SLOW)
        wait_for(lambda: sampled(stream) > 0)
        threading.Timer(0.05, stream.cancel).start()
        out = exhaust(stream)
        assert out.finish_reason == "cancelled"
        assert 0 < len(out.tokens) < 900
        late = runner.generate(prompt(10, 1), max_tokens=900, timeout=0.5, **SLOW)
        assert late.finish_reason == "timeout"
        assert 0 < len(late.tokens) < 900
        assert np.array_equal(
            out.tokens, runner.generate(prompt(10), max_tokens=len(out.tokens), **GREEDY).tokens
        )


def test_one_that_waits_for_others_can_be_cancelled(path: Path) -> None:
    """Held back, with its first token sampled, while those that came with it are read."""
    with make(path, n_ctx=4096, slice_seconds=0.001) as runner:
        runner.generate(prompt(300, 9), max_tokens=20, **GREEDY)
        streams = [runner.stream(prompt(8 if i == 0 else 600, i), max_tokens=400, **GREEDY) for i in range(5)]
        for stream in streams:
            stream.read_whole()
        wait_for(lambda: sampled(streams[0]) >= 1)
        streams[0].cancel()
        outs = [exhaust(stream) for stream in streams]
        assert outs[0].finish_reason == "cancelled"
        assert [len(out.tokens) for out in outs[1:]] == [400] * 4


def test_an_event_loop_is_told_of_the_end_alone(path: Path) -> None:
    with make(path) as runner:

        def times_told(whole: bool) -> int:
            told: list[float] = []
            params = GenerationParams(max_tokens=40, temperature=0, ignore_eos=True)
            before = 0

            def paced(tokens: Any, logits: Any) -> None:
                """Gives a reader that is told of each token the time to take it."""
                nonlocal before
                slowly(tokens, logits)
                deadline = time.perf_counter() + 0.1
                while not whole and len(told) == before and time.perf_counter() < deadline:
                    time.sleep(0.001)
                before = len(told)

            (request,) = runner.engine.submit(
                prompt(10), params, logits_processor=paced, notify=lambda: told.append(time.perf_counter())
            )
            if whole:
                request.job.read_whole()
            assert len(read_all(request)) == 40
            wait_for(lambda: told)
            return len(told)

        assert times_told(False) > 5
        assert times_told(True) <= 2
