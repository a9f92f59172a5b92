"""100 agent sessions of 5 turns, 8 at a time: how much of their prompts is computed, and how soon they speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.conditions import Conditions, LoopTime, Tokens, random_tokens
from benchmarks.report import Row, Spread, at_most
from llama_runner import LlamaRunner
from llama_runner.results import Completion

AT_A_TIME = 8
USER, ANSWER = 40, 24  # tokens a turn adds

TOOL = """
{{"type": "function", "function": {{"name": "{name}", "description": "{verb} a {thing} of the customer's project, and \
return what became of it as JSON. Ask before anything is lost.", "parameters": {{"type": "object", "properties": \
{{"{thing}_id": {{"type": "string", "description": "Which {thing}, as list_{thing}s gave it"}}, "reason": \
{{"type": "string", "description": "Why, in a sentence that the customer can read"}}, "dry_run": \
{{"type": "boolean", "default": true}}}}, "required": ["{thing}_id", "reason"]}}}}}}"""


class PerfectCache:
    """A radix set over token ids without compression: the tokens that one prefill each would have computed.

    It holds all that was ever put into it, and shares every common beginning. Only what an answer's last token leaves
    is missing: that token was sampled and never decoded.
    """

    def __init__(self) -> None:
        self.root: dict[int, Any] = {}
        self.n_tokens = 0

    def known(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of ``tokens`` are in it."""
        node = self.root
        for at, token in enumerate(tokens):
            if token not in node:
                return at
            node = node[token]
        return len(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        node = self.root
        for token in tokens:
            if token not in node:
                node[token] = {}
                self.n_tokens += 1
            node = node[token]

    def computes(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt it would compute: what is new, and at least the last one, for its logits."""
        return len(prompt) - min(self.known(prompt), len(prompt) - 1)


def system_prompt(runner: LlamaRunner, n: int) -> Tokens:
    """An agent's instructions and tools, cut to ``n`` tokens."""
    text = "You are an agent that looks after a customer's project. Call one tool at a time. Tools:"
    for verb in ("Create", "Rename", "Archive", "Restore", "Inspect", "Delete", "Share", "Merge"):
        for thing in ("branch", "ticket", "release", "invoice"):
            text += TOOL.format(name=f"{verb.lower()}_{thing}", verb=verb, thing=thing)
    tokens = runner.model.vocab.tokenize(text, add_special=True, parse_special=False)
    assert len(tokens) >= n
    return tokens[:n]


class Agents:
    """Sessions whose prompts grow by what the user says and what was answered."""

    def __init__(self, runner: LlamaRunner, sessions: int, turns: int, shared: int) -> None:
        self.runner, self.turns = runner, turns
        self.histories = [system_prompt(runner, shared)] * sessions
        self.perfect = PerfectCache()
        self.computed: list[int] = []
        self.perfectly: list[int] = []
        self.first_seconds: list[float] = []

    def ask(self, prompt: Tokens) -> Completion:
        return self.runner.generate(prompt, max_tokens=ANSWER, temperature=0, ignore_eos=True)

    def run(self, after_turn: Callable[[int], None]) -> None:
        """All sessions take their first turn, eight at a time, then all of them the second, and so on."""
        for turn in range(self.turns):
            prompts = [
                np.concatenate([history, random_tokens(USER, 1000 * turn + i)])
                for i, history in enumerate(self.histories)
            ]
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                outs = list(pool.map(self.ask, prompts))
            for i, (prompt, out) in enumerate(zip(prompts, outs, strict=True)):
                listed = prompt.tolist()
                self.computed.append(out.usage.computed_tokens)
                self.perfectly.append(self.perfect.computes(listed))
                self.perfect.add([*listed, *out.tokens[:-1].tolist()])
                self.histories[i] = np.concatenate([prompt, out.tokens])
                self.first_seconds.append(out.timings.first_token_seconds)
            after_turn(turn)

    def without_cache(self, n: int) -> list[float]:
        """Seconds to the first token of ``n`` of the last prompts whose first token no other prompt begins with."""
        step = max(1, len(self.histories) // n)
        prompts = [history[:-ANSWER].copy() for history in self.histories[::step][:n]]
        for i, prompt in enumerate(prompts):
            prompt[0] = 2000 + i
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            outs = list(pool.map(self.ask, prompts))
        assert all(out.usage.cached_tokens == 0 for out in outs)
        return [out.timings.first_token_seconds for out in outs]


def agents(conditions: Conditions) -> Iterator[Row]:
    """Prompt tokens computed, over a perfect cache's; the time to the first token, over that without a cache."""
    sessions, turns, shared = conditions.size(100, 12), conditions.size(5, 2), conditions.size(1000, 200)
    n_ctx = conditions.size(8192, 2048)
    host = 2 << 30
    with conditions.runner(n_ctx=n_ctx, host_cache_bytes=host) as runner:
        runner.generate("warm up", max_tokens=4)
        fleet = Agents(runner, sessions, turns, shared)
        loop = LoopTime(runner)
        fleet.run(lambda turn: conditions.say(f"  agents: turn {turn + 1} of {turns}"))
        looped = str(loop)
        cold = fleet.without_cache(conditions.size(2 * AT_A_TIME, AT_A_TIME))
        counters = runner.engine.counters
    computed, perfect = sum(fleet.computed), sum(fleet.perfectly)
    first = slice(0, sessions)
    name = f"{sessions} agents, {turns} turns, {shared} shared tokens, {AT_A_TIME} at a time"
    work = {
        "work": "agents",
        "shared": fleet.histories[0][:shared].tolist(),
        "users": [
            [random_tokens(USER, 1000 * turn + i).tolist() for turn in range(turns)] for i in range(sessions)
        ],
        "answer": ANSWER,
        "at_a_time": AT_A_TIME,
        # a slot shares nothing with another: each needs its own copy of the longest prompt
        "n_ctx": max(n_ctx, AT_A_TIME * (shared + turns * (USER + ANSWER) + 16)),
        "host_mib": host >> 20,
        "threads": conditions.threads,
    }
    yield Row(
        f"{name}: prompt tokens computed, over a perfect cache's",
        "tokens",
        ours=Spread.of([computed]),
        ratio=Spread.of([computed / perfect]),
        wanted=at_most(1.05),
        peers=conditions.peers.agents(conditions, work, perfect),
        notes=[
            f"n_ctx={n_ctx}, host_cache_bytes={host:,}; a perfect cache computes {perfect:,}: of each prompt, in the "
            "order of the requests, what no earlier prompt or answer has at its start, and at least one token; it "
            "never forgets, shares while others still compute, and lacks only each answer's last token",
            f"first turns: {sum(fleet.computed[first]):,} computed, {sum(fleet.perfectly[first]):,} perfectly; later "
            f"turns: {computed - sum(fleet.computed[first]):,} and {perfect - sum(fleet.perfectly[first]):,}",
            looped,
            f"preemptions {counters.preemptions}, {counters.cache}",
        ],
    )
    yield Row(
        f"{name}: time to the first token, over that without a cache",
        "s",
        ours=Spread.of(fleet.first_seconds),
        ratio=Spread.of([Spread.of(fleet.first_seconds).median / Spread.of(cold).median]),
        wanted=at_most(0.25),
        notes=[
            f"without: {Spread.of(cold)} s, {len(cold)} last prompts, {AT_A_TIME} at a time, each with a first token "
            "of its own, so that nothing of it is known"
        ],
    )
