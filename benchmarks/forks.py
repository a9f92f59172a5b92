"""16 branches of one long prefix, against llama-batched-bench with a shared prompt; what a fork costs and copies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.agents import PerfectCache
from benchmarks.conditions import (
    Conditions,
    Tokens,
    each,
    in_threads,
    native_program,
    random_tokens,
)
from benchmarks.native import batched_bench
from benchmarks.report import Row, Spread, at_most
from llama_runner import LlamaRunner

BRANCHES = 16


def sampling(n: int, seed: int) -> dict[str, Any]:
    """A branch differs from the others by its seed. One token more than steps: the first comes from the prefix."""
    return {"max_tokens": n + 1, "temperature": 1.0, "top_k": 40, "seed": seed, "ignore_eos": True}


class Forks:
    """Both ways to have branches, and what they left behind."""

    def __init__(self, conditions: Conditions, runner: LlamaRunner, prefix: int, generate: int) -> None:
        self.conditions, self.runner = conditions, runner
        self.prefix, self.generate = prefix, generate
        self.seed = 0
        self.fork_ms: list[float] = []
        self.cells: list[
            tuple[int, int]
        ] = []  # in use afterwards, and what a perfect sharing of the tokens needs
        self.first_ms: list[float] = []

    def fresh(self) -> Tokens:
        self.runner.clear_context()
        self.seed += 1
        return random_tokens(self.prefix, self.seed)

    def count(self, prefix: Tokens, answers: list[Tokens]) -> None:
        while (
            self.runner.engine.counters.running
        ):  # their last cells are shared once the engine has noted their end
            time.sleep(0.001)
        perfect = PerfectCache()
        for answer in answers:
            perfect.add([*prefix.tolist(), *answer[:-1].tolist()])
        self.cells.append((self.runner.get_context_info().used, perfect.n_tokens))

    def many(self) -> float:
        """Seconds of ``generate_many(n=16)``."""
        prefix = self.fresh()
        start = time.perf_counter()
        outs = self.runner.generate_many([prefix], n=BRANCHES, **sampling(self.generate, self.seed * 100))
        took = time.perf_counter() - start
        self.count(prefix, [out.tokens for out in outs])
        return took

    def sequences(self) -> float:
        """Seconds of a ``Sequence`` that is extended, forked 16 times, and each fork generated from in a thread."""
        prefix = self.fresh()
        start = time.perf_counter()
        sequence = self.runner.sequence()
        sequence.extend(prefix)
        before = time.perf_counter()
        forks = sequence.fork(BRANCHES)
        self.fork_ms.append((time.perf_counter() - before) * 1e3 / BRANCHES)
        outs = in_threads(
            [
                lambda fork=fork, i=i: fork.generate(**sampling(self.generate, self.seed * 100 + i))
                for i, fork in enumerate(forks)
            ]
        )
        took = time.perf_counter() - start
        assert all(out.usage.completion_tokens == self.generate + 1 for out in outs)
        self.first_ms.append(max(out.timings.first_token_seconds for out in outs) * 1e3)
        self.count(prefix, [out.tokens for out in outs])
        return took


def forks(conditions: Conditions) -> Iterator[Row]:
    """Wall time of both ways, the fork alone, the cells in use, and the bytes that were copied."""
    prefix, generate = conditions.size(1024, 128), conditions.size(32, 8)
    n_ctx = 2 * (prefix + BRANCHES * generate)
    program = native_program("llama-batched-bench")
    with conditions.runner(n_ctx=n_ctx) as runner:
        runner.generate("warm up", max_tokens=4)
        ours = Forks(conditions, runner, prefix, generate)
        native, many, sequences = conditions.alternate(
            lambda: batched_bench(
                program, conditions.model, n_ctx=n_ctx, prompt=prefix, generate=generate, streams=BRANCHES,
                shared=True, threads=conditions.threads,
            )["t"],
            ours.many,
            ours.sequences,
        )  # fmt: skip
        cache = runner.engine.counters.cache
        copied = cache.bytes_saved + cache.bytes_restored
    name = f"{BRANCHES} branches of {prefix} tokens, {generate} each"
    work = {
        "work": "fork",
        "prefix": random_tokens(prefix, 0).tolist(),
        "branches": BRANCHES,
        "n": generate,
        "n_ctx": max(n_ctx, BRANCHES * (prefix + generate + 8)),
        "threads": conditions.threads,
    }
    yield Row(
        f"{name}: generate_many(n=16)",
        "s",
        native=Spread.of(native),
        ours=Spread.of(many),
        ratio=Spread.of(each(many, native)),
        wanted=at_most(1.10),
        peers=conditions.peers.seconds(conditions, work, Spread.of(native).median),
    )
    yield Row(
        f"{name}: Sequence.fork(16), a thread each",
        "s",
        native=Spread.of(native),
        ours=Spread.of(sequences),
        ratio=Spread.of(each(sequences, native)),
        wanted=at_most(1.10),
        notes=[f"from generate() to its first token, the slowest branch: {Spread.of(ours.first_ms)} ms"],
    )
    yield Row("a fork, of Sequence.fork(16)", "ms", ours=Spread.of(ours.fork_ms), wanted=at_most(1))
    yield Row(
        "cells in use after the branches, over those of their distinct tokens",
        "cells",
        ours=Spread.of([used for used, _ in ours.cells]),
        ratio=Spread.of([used / perfect for used, perfect in ours.cells]),
        wanted=at_most(1),
        notes=[
            f"{prefix} + {BRANCHES} * {generate} = {prefix + BRANCHES * generate} where no two branches begin alike",
            f"keys and values copied out of the memory or back into it: {copied} bytes",
        ],
    )
    yield Row(
        "bytes of keys and values copied by forks", "bytes", ours=Spread.of([copied]), wanted=at_most(0)
    )
