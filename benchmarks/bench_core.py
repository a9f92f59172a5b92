"""What the low-level API adds to llama.cpp: one decoded token against a loop in C, a row of logits, a filled batch."""

from __future__ import annotations

import subprocess
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.native import describe
from llama_runner.core import Batch, Context, Model, argmax, log_softmax, top_logprobs
from tiny_models import write_tiny_model

N_STEPS = 50  # a round of a millisecond: among many, some run undisturbed
N_ROUNDS = 500


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", n_layer=1)


@pytest.fixture(scope="module")
def context(tiny: Path):
    with Context(Model(tiny, n_gpu_layers=0), n_ctx=512, n_threads=1) as made:
        yield made


def fastest(call: Callable[[], object], number: int = 200, rounds: int = 200) -> float:
    """Microseconds of one call in the fastest of many rounds: what the call costs when nothing disturbs it."""
    return min(timeit.repeat(call, number=number, repeat=rounds)) / number * 1e6


def loop_in_c(program: Path, model: Path, rounds: int) -> list[float]:
    """Microseconds of a step in each round."""
    command = [program, model, str(N_STEPS), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) / 1e3 for line in done.stdout.split()]


def loop_in_python(ctx: Context, batch: Batch) -> tuple[float, float]:
    """Microseconds of a step, and of the decode in it."""
    ctx.memory.clear(False)
    clock, decoding = time.perf_counter_ns, 0
    start = clock()
    for pos in range(N_STEPS):
        batch.clear()
        batch.add(300 + pos % 100, pos, 0, True)
        before = clock()
        ctx.decode(batch)
        decoding += clock() - before
        ctx.logits(0)
    return (clock() - start) / N_STEPS / 1e3, decoding / N_STEPS / 1e3


@pytest.mark.benchmark(group="core")
def bench_decode_of_one_token(benchmark, context, tiny, decode_loop):
    """The fastest rounds of both, which take turns; `step` has the batch and the logits in it as well."""
    batch, in_c, in_python = Batch(1), [], []
    for _ in range(8):
        in_c += loop_in_c(decode_loop, tiny, N_ROUNDS)
        in_python += [loop_in_python(context, batch) for _ in range(N_ROUNDS)]
    steps, decodes = zip(*in_python, strict=True)
    benchmark.extra_info.update(
        step_in_c_us=describe(in_c),
        step_us=describe(list(steps)),
        decode_over_c_us=round(min(decodes) - min(in_c), 2),
        step_over_c_us=round(min(steps) - min(in_c), 2),
        target_us=2,
    )
    benchmark.pedantic(loop_in_python, args=(context, batch), rounds=3)


@pytest.mark.benchmark(group="core")
def bench_row_of_logits(benchmark, context):
    context.memory.clear(False)
    context.decode(Batch.from_arrays([300, 301], logits="all"))
    benchmark.extra_info.update(
        logits_us=round(fastest(lambda: context.logits(0)), 3),
        logits_matrix_us=round(fastest(context.logits_matrix), 3),
        target_us=1,
    )
    benchmark(context.logits, 0)


@pytest.mark.benchmark(group="core")
def bench_fill_512_rows(benchmark):
    batch, tokens, pos = Batch(512), np.arange(512, dtype=np.int32), np.arange(512, dtype=np.int32)
    seqs, wants = np.zeros((512, 2), np.int32), np.zeros(512, bool)
    seqs[:, 1] = 1
    benchmark.extra_info.update(
        tokens_us=round(fastest(lambda: batch.set(tokens, 0, 0, "last")), 3),
        arrays_us=round(fastest(lambda: batch.set(tokens, pos, seqs[:, 0].copy(), wants)), 3),
        two_sequences_a_row_us=round(fastest(lambda: batch.set(tokens, pos, seqs, wants)), 3),
        target_us=5,
    )
    benchmark(batch.set, tokens, pos, seqs, wants)


def numpy_log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))).astype(np.float32)


def numpy_top(logits: np.ndarray) -> np.ndarray:
    return np.argpartition(logits, -20, axis=1)


@pytest.mark.benchmark(group="scores")
def bench_scores(benchmark):
    """Milliseconds for 64 rows of 150,000 logits, NumPy beside it; with one thread and with all."""
    logits = np.random.default_rng(0).normal(size=(64, 150_000)).astype(np.float32) * 5

    def milliseconds(call: Callable[[], object]) -> float:
        return round(fastest(call, 1, 7) / 1e3, 1)

    benchmark.extra_info.update(
        log_softmax_ms=milliseconds(lambda: log_softmax(logits)),
        log_softmax_one_thread_ms=milliseconds(lambda: log_softmax(logits, n_threads=1)),
        numpy_log_softmax_ms=milliseconds(lambda: numpy_log_softmax(logits)),
        top_20_ms=milliseconds(lambda: top_logprobs(logits, 20)),
        top_20_one_thread_ms=milliseconds(lambda: top_logprobs(logits, 20, n_threads=1)),
        numpy_argpartition_ms=milliseconds(lambda: numpy_top(logits)),
        argmax_ms=milliseconds(lambda: argmax(logits)),
        numpy_argmax_ms=milliseconds(lambda: logits.argmax(axis=1)),
    )
    benchmark.pedantic(log_softmax, args=(logits,), rounds=3)
