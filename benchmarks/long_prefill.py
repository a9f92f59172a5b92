"""A long prompt that arrives while 8 streams run: how long do they pause?"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

from benchmarks.conditions import Conditions, random_tokens
from benchmarks.report import Row, Spread, at_most
from llama_runner import LlamaRunner

STREAMS = 8


class Reader(threading.Thread):
    """Reads a stream, and notes when each chunk came."""

    def __init__(self, runner: LlamaRunner, seed: int, n: int) -> None:
        super().__init__(daemon=True)
        self.stream = runner.stream(random_tokens(16, seed), max_tokens=n, temperature=0, ignore_eos=True)
        self.times: list[float] = []
        self.tokens = 0

    def run(self) -> None:
        for chunk in self.stream:
            self.times.append(time.perf_counter())
            self.tokens += len(chunk.tokens)

    def gaps(self, start: float, end: float) -> list[float]:
        """Milliseconds between chunks, of gaps that lie in or reach into a stretch of time."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [(after - before) * 1e3 for before, after in pairs if after > start and before < end]


def long_prefill(conditions: Conditions) -> Iterator[Row]:
    """The worst gap between two chunks of any stream while the prompt is read, over the usual gap without it."""
    prompt, usual_tokens = conditions.size(4000, 600), conditions.size(32, 10)
    n = prompt // 5 + 64 + usual_tokens  # they outlast the prompt
    n_ctx = prompt + STREAMS * (n + 32) + 256
    worst, usual, ratio, readings, native_worst, within = [], [], [], [], [], []
    rounds = max(1, conditions.rounds // 2)
    with conditions.runner(n_ctx=n_ctx) as runner:
        runner.generate(random_tokens(256, 9), max_tokens=4, ignore_eos=True)  # it knows what a row costs
        for turn in range(rounds):
            runner.clear_context()
            readers = [Reader(runner, 100 * turn + i, n) for i in range(STREAMS)]
            for reader in readers:
                reader.start()
            while any(len(reader.times) < 4 for reader in readers):
                time.sleep(0.01)
            alone_from = time.perf_counter()
            while any(reader.tokens < usual_tokens for reader in readers):
                time.sleep(0.01)
            start = time.perf_counter()
            out = runner.generate(random_tokens(prompt, 5000 + turn), max_tokens=1)
            end = time.perf_counter()
            running = sum(reader.is_alive() for reader in readers)
            assert running, "the streams ended before the prompt was read"
            for reader in readers:
                reader.stream.close()
                reader.join()
            # of the gap that a prompt arrives in, a part is the step before it; it counts all the same
            usual.append(
                statistics.median(gap for reader in readers for gap in reader.gaps(alone_from, start))
            )
            during = [gap for reader in readers for gap in reader.gaps(start, end)]
            worst.append(max(during))
            within.append(statistics.median(during))
            ratio.append(worst[-1] / usual[-1])
            readings.append(end - start)
            assert out.usage.computed_tokens == prompt
            native_worst += [gap for reader in readers if (gap := _native_worst_gap(reader)) is not None]
    notes = [
        f"usual gap {Spread.of(usual)} ms, median gap while the prompt is read {Spread.of(within)} ms; the prompt took "
        f"{Spread.of(readings)} s",
    ]
    if native_worst:
        notes.append(
            f"worst gap of a stream as the loop saw it, its start with {STREAMS - 1} others included: "
            f"{Spread.of(native_worst)} ms"
        )
    yield Row(
        f"worst gap of {STREAMS} streams while {prompt} tokens are read, over the usual gap",
        "ms",
        ours=Spread.of(worst),
        ratio=Spread.of(ratio),
        wanted=at_most(3),
        notes=notes,
    )


def _native_worst_gap(reader: Reader) -> float | None:
    try:
        return float(reader.stream._request.job.progress["worst_gap_us"]) / 1e3
    except (AttributeError, KeyError):
        return None
