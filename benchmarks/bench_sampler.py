"""Sampling many rows of a large vocabulary, against llama.cpp's own chain row by row, in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.native import describe, ratios
from llama_runner.core import SamplerChain, apply_rows

N_ROWS = 32
N_VOCAB = 150_000
THREADS = 2


def chain(seed: int, perf: bool) -> SamplerChain:
    """With ``perf`` it is llama.cpp's loop: a candidate for each logit, and each link over all of them."""
    return SamplerChain(perf=perf).top_k(40).top_p(0.95).temp(0.8).dist(seed)


def rate(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1 / (time.perf_counter() - start)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=3, size=(N_ROWS, N_VOCAB)).astype(np.float32)


@pytest.mark.benchmark(group="sampler")
def bench_rows_against_llama_cpp(benchmark, rows):
    """All rows in one call on two cores, against a native call a row; the same draws."""
    ours, theirs = [chain(i, False) for i in range(N_ROWS)], [chain(i, True) for i in range(N_ROWS)]

    def native() -> list[int]:
        return [one.apply(row) for one, row in zip(theirs, rows, strict=True)]

    for _ in range(20):
        assert apply_rows(rows, ours, n_threads=THREADS).tolist() == native()
    found = ratios(
        lambda: rate(lambda: apply_rows(rows, ours, n_threads=THREADS)), lambda: rate(native), rounds=21
    )
    alone = ratios(lambda: rate(lambda: apply_rows(rows, ours, n_threads=1)), lambda: rate(native), rounds=21)
    benchmark.extra_info.update(ratio_to_llama_cpp=describe(found), with_one_thread=describe(alone), target=4)
    benchmark.pedantic(apply_rows, args=(rows, ours), kwargs={"n_threads": THREADS}, rounds=20)


LINKS = {
    "top_k": lambda made: made.top_k(40).top_p(0.95).temp(0.8).dist(1),
    "min_p": lambda made: made.min_p(0.05).temp(0.8).dist(1),
    "greedy": lambda made: made.greedy(),
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("n_vocab", [49_152, N_VOCAB])
@pytest.mark.benchmark(group="sampler")
def bench_one_row(benchmark, rows, name, n_vocab):
    """One row alone, by its first link."""
    row = rows[0, :n_vocab]
    ours, theirs = LINKS[name](SamplerChain()), LINKS[name](SamplerChain(perf=True))
    found = ratios(
        lambda: rate(lambda: [ours.apply(row) for _ in range(20)]),
        lambda: rate(lambda: [theirs.apply(row) for _ in range(20)]),
        rounds=21,
    )
    benchmark.extra_info.update(ratio_to_llama_cpp=describe(found))
    benchmark.pedantic(ours.apply, args=(row,), rounds=50)
