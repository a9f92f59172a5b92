"""One stream against llama-bench, also next to a busy Python thread; 8 and 32 against llama-batched-bench."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.conditions import Conditions, LoopTime, each, native_program, random_tokens, spinning
from benchmarks.native import batched_bench, llama_bench_rate
from benchmarks.report import Row, Spread, at_least
from llama_runner import LlamaRunner

SAMPLED: dict[str, Any] = {
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.0,
    "temperature": 0.8,
    "seed": 1,
    "ignore_eos": True,
}


def stream_rate(runner: LlamaRunner, n: int) -> float:
    """Tokens a second of one sampled stream, from its first chunk to its last, as text in Python."""
    runner.clear_context()
    stream = runner.stream("A", max_tokens=n + 1, **SAMPLED)
    next(stream)
    start = time.perf_counter()
    after = sum(len(chunk.tokens) for chunk in stream)
    return after / (time.perf_counter() - start)


def one_stream(conditions: Conditions) -> Iterator[Row]:
    """A single sampled stream, text to Python, against `tg` of llama-bench."""
    n = conditions.size(128, 32)
    program = native_program("llama-bench")
    with conditions.runner(n_ctx=1024) as runner:
        stream_rate(runner, 8)
        native, ours = conditions.alternate(
            lambda: llama_bench_rate(program, conditions.model, generate=n, threads=conditions.threads),
            lambda: stream_rate(runner, n),
        )
        loop = LoopTime(runner)
        stream_rate(runner, n)
        note = str(loop)
    work = {"work": "stream", "n": n, "threads": conditions.threads}
    yield Row(
        f"one stream, {n} tokens, sampled",
        "tokens/s",
        native=Spread.of(native),
        ours=Spread.of(ours),
        ratio=Spread.of(each(ours, native)),
        wanted=at_least(0.98),
        peers=conditions.peers.rates(conditions, work, Spread.of(native).median),
        notes=[note],
    )


def busy_python(conditions: Conditions) -> Iterator[Row]:
    """The same with one model thread, while a Python thread does `while True: pass` on the other core."""
    n = conditions.size(96, 24)
    program = native_program("llama-bench")

    def beside() -> float:
        with spinning():
            return stream_rate(runner, n)

    with conditions.runner(n_ctx=1024, n_threads=1) as runner:
        stream_rate(runner, 8)
        native, alone, busy = conditions.alternate(
            lambda: llama_bench_rate(program, conditions.model, generate=n, threads=1),
            lambda: stream_rate(runner, n),
            beside,
        )
    name = f"one stream, {n} tokens, 1 model thread, a Python thread spinning"
    work = {"work": "stream", "n": n, "threads": 1, "spin": True}
    yield Row(
        name,
        "tokens/s",
        native=Spread.of(native),
        ours=Spread.of(busy),
        ratio=Spread.of(each(busy, native)),
        wanted=at_least(0.95),
        peers=conditions.peers.rates(conditions, work, Spread.of(native).median),
    )
    yield Row(
        f"{name}: over ours without it",
        "tokens/s",
        ours=Spread.of(busy),
        ratio=Spread.of(each(busy, alone)),
        wanted=at_least(0.95),
        notes=[f"ours without the spinning thread: {Spread.of(alone)} tokens/s"],
    )


def many_streams(conditions: Conditions) -> Iterator[Row]:
    """8 and 32 streams, greedy, against llama-batched-bench: all tokens of prompts and answers over the wall time.

    Both decode the same rows: an answer has one token more than llama-batched-bench has steps, since ours samples its
    first from the prompt. No two prompts begin alike.
    """
    for streams in (8, 32):
        yield _streams(conditions, streams)


def _streams(conditions: Conditions, streams: int) -> Row:
    prompt, generate = conditions.size(64, 16), conditions.size(64, 16)
    n_ctx = max(1024, 2 * streams * (prompt + generate))
    program = native_program("llama-batched-bench")
    rounds = iter(range(1_000_000))
    total = streams * (prompt + generate)

    def native() -> dict[str, float]:
        return batched_bench(
            program, conditions.model, n_ctx=n_ctx, prompt=prompt, generate=generate, streams=streams,
            threads=conditions.threads,
        )  # fmt: skip

    def ours() -> tuple[float, float, float, str]:
        runner.clear_context()
        seed = next(rounds) * streams
        prompts = [random_tokens(prompt, seed + i) for i in range(streams)]
        loop, start = LoopTime(runner), time.perf_counter()
        outs = runner.generate_many(prompts, max_tokens=generate + 1, temperature=0, ignore_eos=True)
        took = time.perf_counter() - start
        assert all(out.usage.completion_tokens == generate + 1 for out in outs)
        assert all(out.usage.computed_tokens == prompt for out in outs), "a prompt was cached"
        # what is left of the time once the last of them has read its prompt is much like llama-batched-bench's t_tg
        reading = max(out.timings.first_token_seconds for out in outs)
        return total / took, reading, took - reading, str(loop)

    with conditions.runner(n_ctx=n_ctx) as runner:
        runner.generate("warm up", max_tokens=4)
        theirs, mine = conditions.alternate(native, ours)
    native_rates = [found["speed"] for found in theirs]
    rates = [found[0] for found in mine]
    work = {
        "work": "batch",
        "prompts": [random_tokens(prompt, i).tolist() for i in range(streams)],
        "n": generate,
        "n_ctx": n_ctx,
        "threads": conditions.threads,
    }
    return Row(
        f"{streams} streams, prompts of {prompt}, {generate} tokens each",
        "tokens/s",
        native=Spread.of(native_rates),
        ours=Spread.of(rates),
        ratio=Spread.of(each(rates, native_rates)),
        wanted=at_least(0.97),
        peers=conditions.peers.rates(conditions, work, Spread.of(native_rates).median),
        notes=[
            f"native: {Spread.of([f['t_pp'] for f in theirs])} s prompts, {Spread.of([f['t_tg'] for f in theirs])} s "
            f"answers; ours: {Spread.of([f[1] for f in mine])} s to the last first token, "
            f"{Spread.of([f[2] for f in mine])} s after it",
            mine[-1][3],
        ],
    )
