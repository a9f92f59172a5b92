"""The prefill of a prompt against llama-bench; memory beside it; what an import takes."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.native import N_PROMPT, THREADS, describe, llama_bench_rate, peak_rss, ratios
from llama_runner import LlamaRunner


@pytest.fixture(scope="module")
def runner(smollm2: Path):
    with LlamaRunner(smollm2, n_ctx=1024, n_threads=THREADS) as made:
        made.generate("warm up", max_tokens=4)
        yield made


def prefill_rate(runner: LlamaRunner) -> float:
    """Tokens a second of reading a prompt of random tokens."""
    runner.clear_context()
    tokens = np.random.default_rng(0).integers(1000, 40000, N_PROMPT, dtype=np.int32)
    out = runner.generate(tokens, max_tokens=1, temperature=0)
    assert out.usage.computed_tokens == N_PROMPT
    return N_PROMPT / out.timings.prompt_seconds


@pytest.mark.benchmark(group="prefill")
def bench_prefill(benchmark, runner, smollm2, llama_bench):
    found = ratios(
        lambda: prefill_rate(runner), lambda: llama_bench_rate(llama_bench, smollm2, prompt=N_PROMPT)
    )
    benchmark.extra_info.update(ratio_to_llama_bench_pp=describe(found), target=0.97)
    benchmark.pedantic(prefill_rate, args=(runner,), rounds=3)


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
