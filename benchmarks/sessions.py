"""A long conversation that grows by one message: what does it take beyond computing the message?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.conditions import Conditions, random_tokens
from benchmarks.report import Row, Spread, at_most
from llama_runner import LlamaRunner


def conversation(n: int) -> list[dict[str, str]]:
    """A system text and ``n`` messages of a sentence each."""
    messages = [{"role": "system", "content": "You are terse."}]
    for i in range(n):
        text = (
            f"Question {i}: what does {7 * i} mean to you?"
            if i % 2 == 0
            else f"The number {7 * i} means little."
        )
        messages.append({"role": ("user", "assistant")[i % 2], "content": text})
    return messages


def sessions(conditions: Conditions) -> Iterator[Row]:
    """``sync`` of the whole list, less what the engine takes for the same new tokens by themselves."""
    n, rounds = conditions.size(200, 40), conditions.size(15, 3)
    history = conversation(n)
    beyond, parts = [], {"rendering": [], "tokenizing": []}  # type: dict[str, list[float]]
    with conditions.runner(n_ctx=8192) as runner:
        session = runner.session()
        session.sync(history)
        for turn in range(rounds):
            new = [*history, {"role": "user", "content": f"Number {turn}?"}]
            start = time.perf_counter()
            receipt = session.sync(new)
            whole = time.perf_counter() - start
            beyond.append((whole - _prefill(runner, session.tokens.tolist(), receipt.computed, turn)) * 1e3)
            start = time.perf_counter()
            text = session._renderer.text(new, session.options, True)
            parts["rendering"].append((time.perf_counter() - start) * 1e3)
            session._renderer.tokens(session._renderer.text(history, session.options, True))
            start = time.perf_counter()
            session._renderer.tokens(text)
            parts["tokenizing"].append((time.perf_counter() - start) * 1e3)
    yield Row(
        f"sync of a history of {n} messages with one more, beyond its prefill",
        "ms",
        ours=Spread.of(beyond),
        ratio=Spread.of([value / 5 for value in beyond]),
        wanted=at_most(1),
        notes=[
            "the ratio is to 5 ms; "
            + ", ".join(f"{what} {statistics.median(times):.1f} ms" for what, times in parts.items())
        ],
    )


def _prefill(runner: LlamaRunner, tokens: list[int], n: int, turn: int) -> float:
    """Seconds for as many tokens behind as many cached ones, by the engine alone."""
    import numpy as np

    prompt = np.asarray(tokens[:-1], dtype=np.int32)
    prompt[len(prompt) - n :] = random_tokens(n, 1000 + turn)
    start = time.perf_counter()
    request = runner.engine.feed(prompt)
    while not request.ended:
        request.chunk()
    seconds = time.perf_counter() - start
    assert request.usage().computed_tokens == n
    return seconds
