"""Constrained generation: what the mask and the sampling take of a step, and what forced tokens save."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.conditions import Conditions
from benchmarks.report import Row, Spread, at_least, at_most
from llama_runner import GenerationParams, LlamaRunner
from llama_runner.core import Batch, Constraint, ConstraintVocab, SamplerChain

PROMPT = "A record of an order, as JSON:\n"
KINDS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 16},
    {"type": "integer", "minimum": 0, "maximum": 99_999},
    {"enum": ["pending", "paid", "sent", "returned"]},
    {"type": "boolean"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"type": ["string", "null"], "maxLength": 12},
]


def schema(n: int) -> dict[str, Any]:
    """An object of ``n`` required properties of several kinds."""
    names = [
        f"{word}_{i}"
        for i, word in zip(range(n), itertools.cycle(["customer", "amount", "status", "is_open", "code"]))
    ]
    return {
        "type": "object",
        "properties": dict(zip(names, itertools.cycle(KINDS))),
        "required": names,
        "additionalProperties": False,
    }  # fmt: skip


def steps(runner: LlamaRunner, wanted: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
    """Microseconds of each decode of one token, and of the mask, sampling and acceptance after it."""
    vocab = runner.model.vocab
    chain = SamplerChain().top_k(40).top_p(0.95).min_p(0.05).temp(0.8).dist(seed)
    chain.constraint(Constraint.json_schema(vocab, wanted))
    decoding, sampling = [], []
    with runner.engine.paused() as context:
        context.memory.clear()
        prompt = vocab.tokenize(PROMPT)
        batch = Batch(len(prompt))
        batch.add_sequence(prompt, pos=0, seq_id=0, logits="last")
        context.decode(batch)
        for at in range(len(prompt), context.n_ctx):
            start = time.perf_counter()
            token = chain.sample(context, -1)
            sampling.append((time.perf_counter() - start) * 1e6)
            if vocab.is_eog(token):
                break
            batch.clear()
            batch.add(token, at, [0], True)
            start = time.perf_counter()
            context.decode(batch)
            decoding.append((time.perf_counter() - start) * 1e6)
        context.memory.clear()
    return decoding, sampling


def structured(conditions: Conditions) -> Iterator[Row]:
    """A schema of 30 properties: the share of mask and sampling in a step, and the steps that forced tokens save."""
    wanted = schema(conditions.size(30, 8))
    n = len(wanted["properties"])
    rounds = conditions.size(5, 1)
    with conditions.runner(n_ctx=2048) as runner:
        start = time.perf_counter()
        ConstraintVocab(runner.model.vocab)
        prepared = time.perf_counter() - start
        start = time.perf_counter()
        Constraint.json_schema(runner.model.vocab, wanted)
        compiled = time.perf_counter() - start
        medians, worst, notes = [], [], []
        for seed in range(rounds):
            decoding, sampling = steps(runner, wanted, seed)
            step = statistics.median(decoding)
            sampling.sort()
            medians.append(sampling[len(sampling) // 2] / step)
            worst.append(sampling[int(len(sampling) * 0.99)] / step)
            notes.append(f"{sampling[len(sampling) // 2]:.0f} of {step:.0f} µs")
        yield Row(
            f"mask and sampling of a schema of {n} properties, the median over a decode",
            "share",
            ours=Spread.of(medians),
            ratio=Spread.of([share / 0.03 for share in medians]),
            wanted=at_most(1),
            notes=[
                "the ratio is to 3%",
                ", ".join(notes),
                f"vocabulary {prepared:.2f} s, grammar {compiled * 1e3:.1f} ms, once",
            ],
        )  # fmt: skip
        yield Row(
            "the same, the 99th of a hundred",
            "share",
            ours=Spread.of(worst),
            ratio=Spread.of([share / 0.1 for share in worst]),
            wanted=at_most(1),
            notes=["the ratio is to 10%"],
        )
        yield forced(runner, wanted, rounds)


def forced(runner: LlamaRunner, wanted: dict[str, Any], rounds: int) -> Row:
    """What part of the decode steps of a generation its forced tokens save."""
    saved, notes = [], []
    for seed in range(rounds):
        params = GenerationParams(json_schema=wanted, seed=seed, max_tokens=1500)
        seconds, done = [], []
        for settings in (params, params.with_logprobs(0)):  # with log-probabilities nothing is forced
            runner.clear_context()
            before = runner.counters.loop["steps"]
            start = time.perf_counter()
            completion = runner.generate(PROMPT, params=settings)
            seconds.append(time.perf_counter() - start)
            done.append(completion)
            if settings is params:
                steps = runner.counters.loop["steps"] - before
        assert done[0].parsed.keys() == wanted["properties"].keys()
        usage = done[0].usage
        saved.append(1 - steps / usage.completion_tokens)
        rates = [len(c.tokens) / t for c, t in zip(done, seconds, strict=True)]
        notes.append(
            f"{usage.forced_tokens} of {usage.completion_tokens} tokens, {rates[0] / rates[1]:.2f} times the rate"
        )
    return Row(
        "decode steps that forced tokens save",
        "share",
        ours=Spread.of(saved),
        ratio=Spread.of([share / 0.1 for share in saved]),
        wanted=at_least(1),
        notes=["the ratio is to 10%", "; ".join(notes)],
    )
