"""A cancel in the middle of a long prompt: how soon is it felt?"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from benchmarks.conditions import Conditions, random_tokens
from benchmarks.report import Row, Spread, at_most


def cancel(conditions: Conditions) -> Iterator[Row]:
    """From the call of ``cancel`` to the end of the stream, the worst of many moments."""
    prompt, times = conditions.size(4000, 600), conditions.size(40, 5)
    chance = random.Random(1)
    alone, among = [], []
    with conditions.runner(n_ctx=3 * prompt + 1024) as runner:
        runner.generate(random_tokens(256, 9), max_tokens=4, ignore_eos=True)  # it knows what a row costs
        for turn in range(times):
            for felt, n in ((alone, 1), (among, 2)):
                streams = [
                    runner.stream(random_tokens(prompt, 1000 * n + 2 * turn + i), max_tokens=1)
                    for i in range(n)
                ]
                time.sleep(chance.uniform(0.05, 0.6))
                start = time.perf_counter()
                streams[0].cancel()
                for _ in streams[0]:
                    pass
                felt.append((time.perf_counter() - start) * 1e3)
                assert streams[0].completion.finish_reason == "cancelled"
                for stream in streams:
                    stream.close()
    for felt, which in ((alone, "alone"), (among, "next to another")):
        felt.sort()
        yield Row(
            f"cancel of a prompt of {prompt} tokens that is read {which}, the worst of {times}",
            "ms",
            ours=Spread.of([felt[-1]]),
            ratio=Spread.of([felt[-1] / 100]),
            wanted=at_most(1),
            notes=[f"median {felt[len(felt) // 2]:.0f} ms; the ratio is to 100 ms"],
        )
