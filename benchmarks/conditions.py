"""What all benchmarks have in common: the model, how many rounds, taking turns, a busy Python thread, memory."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers import Peers
from llama_runner import LlamaRunner
from llama_runner.system import usable_physical_cores

ROOT = Path(__file__).parent.parent
Tokens = npt.NDArray[np.int32]

# llama-bench's and llama-batched-bench's own
BATCH: dict[str, Any] = {"n_batch": 2048, "n_ubatch": 512}


@dataclass
class Conditions:
    """How the benchmarks run."""

    model: Path
    quick: bool = False
    rounds: int = 5
    threads: int = field(default_factory=usable_physical_cores)
    peers: Peers = field(default_factory=Peers)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def size(self, whole: int, quick: int) -> int:
        """How much of something there is: less with ``--quick``."""
        return quick if self.quick else whole

    def runner(self, **options: Any) -> LlamaRunner:
        """A runner with the batch sizes of llama.cpp's programs."""
        return LlamaRunner(self.model, **{"n_threads": self.threads, **BATCH, **options})

    def alternate(self, *measures: Callable[[], Any]) -> list[list[Any]]:
        """Each of ``measures`` once a round, in turn, forwards and backwards, so that a slow minute hits all."""
        found: list[list[Any]] = [[] for _ in measures]
        for turn in range(self.rounds):
            order = range(len(measures)) if turn % 2 == 0 else range(len(measures) - 1, -1, -1)
            for which in order:
                found[which].append(measures[which]())
        return found


@functools.cache
def native_program(name: str) -> Path:
    """llama.cpp's own program, built from the same tree with the same flags (some minutes the first time)."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    from native_tools import native_tool

    return native_tool(name)


def random_tokens(n: int, seed: int, n_vocab: int = 40_000) -> Tokens:
    """Ordinary tokens without meaning: what is measured does not depend on what they say."""
    return np.random.default_rng(seed).integers(min(1000, n_vocab // 2), n_vocab, n, dtype=np.int32)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def each(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratios of what was measured in the same round."""
    return [a / b for a, b in zip(over, under, strict=True)]


@contextlib.contextmanager
def spinning() -> Iterator[None]:
    """A Python thread that computes and never waits, next to what runs inside."""
    go_on = True

    def spin() -> None:
        while go_on:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        go_on = False
        thread.join()


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """All of ``calls`` at the same time, each in a thread; their results in order."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(at: int) -> None:
        try:
            results[at] = calls[at]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class LoopTime:
    """What the native loop did meanwhile, from ``runner.engine.counters``."""

    def __init__(self, runner: LlamaRunner) -> None:
        self.runner = runner
        self.before = dict(runner.engine.counters.loop)
        self.start = time.perf_counter()

    def __str__(self) -> str:
        took = (time.perf_counter() - self.start) * 1e6
        now = self.runner.engine.counters.loop
        rows = {name: now[name] - self.before[name] for name in ("steps", "rows_fed", "rows_sampled")}
        decode, sample = ((now[name] - self.before[name]) / took for name in ("decode_us", "sample_us"))
        return (
            f"the loop: {decode:.1%} of the time decoding, {sample:.1%} sampling, {1 - decode - sample:.1%} neither; "
            f"{rows['steps']} steps, {rows['rows_fed']} rows read, {rows['rows_sampled']} sampled"
        )
