"""2,000 requests from threads and asyncio at once, many given up, some failing: each is answered, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_account import verify
from engine_truth import EXACT, Alone, Tokens
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, errors
from llama_runner.core import Context, Model, live_objects
from llama_runner.engine import AsyncStream, Engine, Request, Stream
from llama_runner.results import Completion

REQUESTS = 2000
WARM_UP = 600  # of them: what is allocated once is allocated by then
THREADS = 4
TASKS = 6
PATIENCE = 240  # seconds until all that waits is answered with ClosedError, and the test has failed
GROWTH = 12 << 20  # bytes of resident memory, after the warm-up
GIVEN_UP = 0.2
FAULTY = 0.05


class Broken(Exception):
    """What a logits processor raises here."""


def broken(tokens: list[Tokens], logits: np.ndarray) -> None:
    raise Broken("on purpose")


def harmless(tokens: list[Tokens], logits: np.ndarray) -> None:
    logits[:, 300] -= 1


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def has_proc() -> bool:
    return Path("/proc/self/status").exists()


class Traffic:
    """Takes the numbers from 0 to REQUESTS - 1 one by one, and does with each what that number says."""

    def __init__(self, engine: Engine, alone: Alone) -> None:
        self.engine, self.alone = engine, alone
        self.lock = threading.Lock()
        self.next = 0
        self.ends: Counter[str] = Counter()
        self.rows = 0
        self.resident: list[int] = []
        self.checks: list[tuple[Tokens, Completion]] = []
        rng = np.random.default_rng(5)
        self.trunks = [rng.integers(270, 340, 90).astype(np.int32) for _ in range(5)]

    def take(self) -> int | None:
        with self.lock:
            if self.next == REQUESTS:
                return None
            self.next += 1
            if self.next in (WARM_UP, REQUESTS) and has_proc():
                gc.collect()
                self.resident.append(resident_bytes())
            return self.next

    def plan(self, number: int) -> tuple[random.Random, Tokens, dict[str, Any], str]:
        """A prompt, how it is submitted, and what becomes of it."""
        rng = random.Random(number)
        trunk = rng.choice(self.trunks)[: rng.randrange(1, 90)]
        tail = np.array([rng.randrange(270, 340) for _ in range(rng.randrange(0, 30))], np.int32)
        fate = rng.choices(["answered", "cancelled", "faulty"], [1 - GIVEN_UP - FAULTY, GIVEN_UP, FAULTY])[0]
        if fate == "cancelled":
            fate = rng.choice(["cancelled", "timeout", "left"])
        if fate == "faulty":
            fate = rng.choice(["processor", "no slot", "allocation"])
        params = GenerationParams(
            max_tokens=rng.choice([1, 2, 5, 10, 25]) if fate != "left" else None,
            temperature=rng.choice([0, 0, 0.8]),
            seed=number,
            ignore_eos=True,
            logprobs=rng.choice([None, 0]),
            stop=rng.choice([(), (), ("the",)]),
            timeout=rng.choice([1e-6, 1e-3, 5e-3]) if fate == "timeout" else None,
        )
        options: dict[str, Any] = {"priority": rng.choice([0, 0, 0, 1]), "params": params}
        if fate == "processor":
            options["logits_processor"] = broken
        elif rng.random() < 0.05:
            options["logits_processor"] = harmless
        return rng, np.concatenate([trunk, tail]), options, fate

    def inject(self, fate: str, rng: random.Random) -> None:
        if fate == "no slot":
            self.engine.loop._fail_next(1, rng.choice([1, 2, 8]))
        if fate == "allocation":
            self.engine.loop._fail_next(-2, rng.choice([1, 2, 8]))

    def note(self, prompt: Tokens, request: Request, error: BaseException | None, *, greedy: bool) -> None:
        """How it ended: with a result, or with a typed error that is owed to a fault."""
        progress = request.job.progress
        how = progress["end"]
        assert how is not None
        sampled = progress["n_sampled"]
        rows = progress["n_computed"] + max(0, sampled - 1)
        if progress["error"] == "sampling" and sampled:
            rows += 1  # decoded, and no token came of it
        with self.lock:
            self.rows += rows
            self.ends[type(error).__name__ if error is not None else how] += 1
        if error is not None:
            assert isinstance(error, errors.LlamaRunnerError), error
            assert how == "error"
            assert isinstance(error.__cause__, Broken) == (progress["error"] == "sampling")
            return
        out = request.completion()
        assert out.finish_reason == how
        assert out.usage.prompt_tokens == len(prompt)
        assert out.usage.cached_tokens + out.usage.computed_tokens == len(prompt)
        if greedy and request.processor < 0 and len(out.tokens):
            with self.lock:
                self.checks.append((prompt, out))

    # --- from a thread

    def work(self) -> None:
        while (number := self.take()) is not None:
            rng, prompt, options, fate = self.plan(number)
            self.inject(fate, rng)
            (request,) = self.engine.submit(prompt, **options)
            error = None
            try:
                self.read(Stream(self.engine, request), fate, rng)
            except errors.LlamaRunnerError as caught:
                error = caught
            self.note(prompt, request, error, greedy=options["params"].is_greedy)

    def read(self, stream: Stream, fate: str, rng: random.Random) -> None:
        if fate == "cancelled":
            timer = threading.Timer(rng.random() * 0.01, stream.cancel)
            timer.start()
            try:
                for _ in stream:
                    pass
            finally:
                timer.join()
            return
        with stream:
            for i, _ in enumerate(stream):
                if fate == "left" and i == 3:
                    break
        _ = stream.completion  # raises, where it failed while it was being left

    # --- from asyncio

    async def serve(self) -> None:
        while (number := self.take()) is not None:
            rng, prompt, options, fate = self.plan(number)
            self.inject(fate, rng)
            made: list[Request] = []

            def submit(
                notify: Any, prompt: Tokens = prompt, options: Any = options, made: Any = made
            ) -> Request:
                made.extend(self.engine.submit(prompt, notify=notify, **options))
                return made[0]

            error = None
            try:
                await self.aread(AsyncStream(self.engine, submit), fate, rng)
            except errors.LlamaRunnerError as caught:
                error = caught
            request = made[0]
            while not request.ended:  # a task that was cancelled left it to end by itself
                try:
                    if request.chunk(0) is None:
                        await asyncio.sleep(0.001)
                except errors.LlamaRunnerError as caught:
                    error = caught
            self.note(prompt, request, error, greedy=options["params"].is_greedy)

    async def aread(self, stream: AsyncStream, fate: str, rng: random.Random) -> None:
        if fate == "cancelled":
            task = asyncio.ensure_future(stream.result())
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        async with stream:
            n = 0
            async for _ in stream:
                n += 1
                if fate == "left" and n == 3:
                    break


@pytest.fixture
def engine(tiny_model: TinyModelFactory, tmp_path: Path) -> Iterator[Engine]:
    model = Model(tiny_model("llama"))
    context = Context(model, n_ctx=512, n_batch=64, n_ubatch=64, n_seq_max=10, **EXACT)
    with Engine(
        context, host_cache_bytes=200_000, disk_cache=tmp_path, disk_cache_bytes=1_000_000, slice_seconds=0.01
    ) as made:
        yield made
    context.close()
    model.close()


@contextlib.contextmanager
def closed_if_it_hangs(engine: Engine) -> Iterator[None]:
    """Closing ends every waiter with an error; where even that does not help, the process says where, and ends."""
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    hung = threading.Timer(PATIENCE, engine.close)
    hung.start()
    try:
        yield
    finally:
        hung.cancel()
        hung.join()
        faulthandler.cancel_dump_traceback_later()


def test_two_thousand_requests(engine: Engine) -> None:
    alone = Alone(engine.context.model)
    traffic = Traffic(engine, alone)
    raised: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    async def tasks() -> None:
        await asyncio.gather(*(traffic.serve() for _ in range(TASKS)))

    works = [traffic.work] * THREADS + [lambda: asyncio.run(tasks())]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    began = time.monotonic()
    with closed_if_it_hangs(engine):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while not engine.closed and (engine.counters.running or engine.counters.waiting):
            time.sleep(0.001)
    took = time.monotonic() - began
    assert not raised, raised
    assert not engine.closed, f"not all was answered within {PATIENCE} s"
    print(f"{REQUESTS} requests in {took:.1f} s: {dict(traffic.ends)}, {engine.counters}")

    assert sum(traffic.ends.values()) == REQUESTS
    assert traffic.ends["cancelled"] >= REQUESTS / 20
    assert traffic.ends["timeout"] >= REQUESTS / 50
    assert traffic.ends["SamplingError"] >= REQUESTS / 100
    assert traffic.ends["length"] >= REQUESTS / 3
    verify(engine, idle=True)
    counters = engine.counters
    assert counters.requests == counters.finished == REQUESTS
    assert counters.failed == sum(n for end, n in traffic.ends.items() if end.endswith("Error"))
    assert counters.loop["rows"] == traffic.rows, "rows were computed that no request was told of"
    assert counters.cache.evictions > 50
    for prompt, out in traffic.checks:
        alone.check(prompt, out, greedy=True)
    assert alone.compared > REQUESTS
    assert alone.near_ties <= alone.compared / 200
    alone.close()
    engine.clear()
    verify(engine, idle=True)
    assert engine.context.memory.n_used == 0
    assert engine.residency.tiers.host_used == engine.residency.tiers.disk_used == 0
    if has_proc():
        at_warm_up, at_end = traffic.resident
        assert at_end - at_warm_up < GROWTH, f"{at_end - at_warm_up} bytes more than after {WARM_UP} requests"
    del threads, works
    gc.collect()
    assert live_objects()["jobs"] == 0
