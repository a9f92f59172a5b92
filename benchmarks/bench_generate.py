"""What a user calls: one stream, sampled, text to Python; and the prefill of a prompt. Against llama-bench."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llama_runner import LlamaRunner
from llama_runner.core import Batch
from native import N_GEN, N_PROMPT, THREADS, describe, llama_bench_rate, peak_rss, ratios


@pytest.fixture(scope="module")
def runner(smollm2: Path):
    with LlamaRunner(smollm2, n_ctx=1024, n_threads=THREADS) as made:
        made.generate("warm up", max_tokens=4)
        yield made


def stream_rate(runner: LlamaRunner) -> float:
    """Tokens a second of one sampled stream, from the first token to the last, as text in Python."""
    runner.clear_context()
    stream = runner.stream(
        "A", max_tokens=N_GEN + 1, top_k=40, top_p=0.95, min_p=0.0, temperature=0.8, ignore_eos=True, seed=1
    )
    next(stream)
    start = time.perf_counter()
    text = "".join(chunk.text for chunk in stream)
    seconds = time.perf_counter() - start
    assert text
    return N_GEN / seconds


def prefill_rate(runner: LlamaRunner) -> float:
    """Tokens a second of reading a prompt of random tokens."""
    runner.clear_context()
    tokens = np.random.default_rng(0).integers(1000, 40000, N_PROMPT, dtype=np.int32)
    out = runner.generate(tokens, max_tokens=1, temperature=0)
    assert out.usage.computed_tokens == N_PROMPT
    return N_PROMPT / out.timings.prompt_seconds


@pytest.mark.benchmark(group="stream")
def bench_one_stream_sampled(benchmark, runner, smollm2, llama_bench):
    found = ratios(
        lambda: stream_rate(runner), lambda: llama_bench_rate(llama_bench, smollm2, generate=N_GEN)
    )
    benchmark.extra_info.update(ratio_to_llama_bench_tg=describe(found), target=0.95)
    benchmark.pedantic(stream_rate, args=(runner,), rounds=3)


@pytest.mark.benchmark(group="prefill")
def bench_prefill(benchmark, runner, smollm2, llama_bench):
    found = ratios(
        lambda: prefill_rate(runner), lambda: llama_bench_rate(llama_bench, smollm2, prompt=N_PROMPT)
    )
    benchmark.extra_info.update(ratio_to_llama_bench_pp=describe(found), target=0.97)
    benchmark.pedantic(prefill_rate, args=(runner,), rounds=3)


def gaps(runner: LlamaRunner) -> list[float]:
    """Microseconds from the end of each native call of a stream to the start of the next: all that Python does."""
    runner.clear_context()
    stream = runner.stream("A", max_tokens=N_GEN, temperature=0.8, ignore_eos=True, seed=1)
    advance = stream._generation._following
    times: list[float] = []

    def timed(token: int, pos: int) -> tuple[int, bytes, bool]:
        times.append(time.perf_counter())
        following = advance(token, pos)
        times.append(time.perf_counter())
        return following

    stream._generation._following = timed
    for _ in stream:
        pass
    return [(start - end) * 1e6 for end, start in zip(times[1::2], times[2::2], strict=False)]


@pytest.mark.benchmark(group="python")
def bench_python_cost_per_token(benchmark, runner, tmp_path):
    """What Python adds to a streamed token: in place, and with a model so small that the caches stay warm.

    The first is the larger by what a decode does to the caches: it reads all weights, and then even a trivial loop of
    Python costs several times what it costs otherwise, which is measured beside it.
    """
    from tiny_models import write_tiny_model

    def trivial() -> float:
        start = time.perf_counter()
        [i * 2 for i in range(100)]
        return (time.perf_counter() - start) * 1e6

    context, batch, after = runner.context, Batch(1), []
    runner.clear_context()
    for i in range(100):
        batch.clear()
        batch.add(5 + i, i, 1, True)
        context.decode(batch)
        after.append(trivial())
    context.memory.seq_rm(1)
    with LlamaRunner(write_tiny_model(tmp_path / "tiny.gguf", "llama"), n_ctx=512) as small:
        warm = [statistics.median(gaps(small)) for _ in range(5)]
    benchmark.extra_info.update(
        microseconds_in_place=describe([statistics.median(gaps(runner)) for _ in range(5)]),
        microseconds_warm=describe(warm),
        trivial_loop_after_decode=round(statistics.median(after), 1),
        trivial_loop_warm=round(statistics.median(trivial() for _ in range(1000)), 1),
        target=20,
    )
    benchmark.pedantic(gaps, args=(runner,), rounds=2)


CHILD = """
import sys, numpy
from llama_runner import LlamaRunner
with LlamaRunner(sys.argv[1], n_ctx=int(sys.argv[2]), n_threads=int(sys.argv[3])) as runner:
    tokens = numpy.random.default_rng(0).integers(1000, 40000, int(sys.argv[4]), dtype=numpy.int32)
    runner.generate(tokens, max_tokens=16, ignore_eos=True)
"""


@pytest.mark.benchmark(group="memory")
def bench_resident_memory(benchmark, smollm2, llama_bench):
    """Peak resident MiB of ours (interpreter and NumPy included) over llama-bench's, for the same work and context."""

    def megabytes() -> tuple[float, float]:
        ours = peak_rss([sys.executable, "-c", CHILD, smollm2, N_PROMPT + 16, THREADS, N_PROMPT])
        native = peak_rss(
            [llama_bench, "-m", smollm2, "-pg", f"{N_PROMPT},16", "-p", 0, "-n", 0, "-t", THREADS, "-r", 1]
        )
        return ours / 2**20, native / 2**20

    found = [megabytes() for _ in range(3)]
    benchmark.extra_info.update(
        mebibytes=describe([ours for ours, _ in found]),
        mebibytes_llama_bench=describe([native for _, native in found]),
        mebibytes_over_llama_bench=describe([ours - native for ours, native in found]),
        target=60,
    )
    benchmark.pedantic(megabytes, rounds=1)


@pytest.mark.benchmark(group="import")
def bench_import(benchmark):
    """Milliseconds that ``import llama_runner`` adds to importing NumPy, and with the class itself."""

    def child(code: str) -> float:
        import subprocess

        timed = f"import numpy, time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)"
        return float(
            subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout
        )

    package = [child("import llama_runner") * 1e3 for _ in range(7)]
    whole = [child("from llama_runner import LlamaRunner") * 1e3 for _ in range(7)]
    benchmark.extra_info.update(
        import_package_ms=describe(package), import_LlamaRunner_ms=describe(whole), target=30
    )
    benchmark.pedantic(lambda: statistics.median(package), rounds=1)
