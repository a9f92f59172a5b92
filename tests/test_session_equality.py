"""One conversation of 40 turns with tools, had in three ways: the same tokens each turn, and nothing computed twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import LlamaRunner, Reply, Session
from llama_runner.chat.tools import ToolSet, run_calls
from llama_runner.core import Model
from llama_runner.engine.prefix import common_length
from session_use import add, find_city, with_tools

pytestmark = pytest.mark.real_model

TURNS = 40
CLOSE = 0.7  # of logits: as far as llama.cpp's kernels for one row and for many differ with this model (docs/engine.md)
SYSTEM = {"role": "system", "content": "You are a terse assistant that knows cities and numbers."}


def user(turn: int) -> dict[str, Any]:
    kinds = (
        f"What comes to your mind at the number {turn}?",
        f"Add {turn} and {turn + 7}.",
        f"Tell me about the city of Ix{turn}.",
        "And why is that?",
    )
    return {"role": "user", "content": kinds[turn % 4]}


def options(turn: int) -> dict[str, Any]:
    """A call is certain in two of four turns; in the others there is none."""
    choice = ("none", "add", "find_city", "none")[turn % 4]
    length = 60 if choice != "none" else 6
    return {
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": length,
        "logprobs": 2,
    }


@dataclasses.dataclass
class Way:
    """How the conversation is had, and what it has come to."""

    runner: LlamaRunner
    tools: ToolSet
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [SYSTEM])
    computed: int = 0
    expected: int = 0  # what a perfect cache would have computed
    seen: list[np.ndarray[Any, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        pass

    def reply(self, turn: int, new: list[dict[str, Any]]) -> Reply:
        raise NotImplementedError

    def count(self, session: Session, reply: Reply, synced: int = 0) -> None:
        prompt = self.runner.chat_tokens(self.messages, template=with_tools(), tools=self.tools.to_list())
        tokens = session.tokens
        assert tokens[: len(prompt)].tolist() == prompt.tolist()
        self.computed += reply.usage.computed_tokens + synced
        known = max((common_length(tokens, other[:-1]) for other in self.seen), default=0)
        self.expected += reply.usage.prompt_tokens - min(known, reply.usage.prompt_tokens - 1)
        self.seen.append(tokens)
        self.messages.append(reply.message.to_dict())


class AsSession(Way):
    def begin(self) -> None:
        self.session = self.runner.session(messages=[SYSTEM], tools=self.tools, template=with_tools())

    def reply(self, turn: int, new: list[dict[str, Any]]) -> Reply:
        self.messages += new
        reply = self.session.send(new, **options(turn) if new[0]["role"] == "user" else AFTER)
        self.count(self.session, reply)
        return reply


class BySync(Way):
    def begin(self) -> None:
        self.session = self.runner.session(tools=self.tools, template=with_tools())

    def reply(self, turn: int, new: list[dict[str, Any]]) -> Reply:
        self.messages += new
        receipt = self.session.sync(self.messages)
        reply = self.session.send(**options(turn) if new[0]["role"] == "user" else AFTER)
        self.count(self.session, reply, receipt.computed)
        return reply


class Stateless(Way):
    def reply(self, turn: int, new: list[dict[str, Any]]) -> Reply:
        self.messages += new
        fresh = self.runner.session(messages=self.messages, tools=self.tools, template=with_tools())
        reply = fresh.send(**options(turn) if new[0]["role"] == "user" else AFTER)
        self.count(fresh, reply)
        return reply


AFTER: dict[str, Any] = {"tool_choice": "none", "temperature": 0, "max_tokens": 6, "logprobs": 2}


@pytest.fixture
def ways(smollm2: Path) -> Iterator[list[Way]]:
    model = Model(smollm2)
    runners = [LlamaRunner(model, n_ctx=8192, n_batch=512) for _ in range(3)]
    tools = ToolSet([add, find_city])
    yield [kind(runner, tools) for kind, runner in zip((AsSession, BySync, Stateless), runners, strict=True)]
    for runner in runners:
        runner.close()


def test_three_ways_of_one_conversation(ways: list[Way]) -> None:
    calls = ties = 0
    for turn in range(TURNS):
        new = [user(turn)]
        while new:
            replies = [way.reply(turn, new) for way in ways]
            ties += agree(replies)
            first = replies[0]
            for way in ways[1:]:  # after a near-tie all go on from the first one's
                way.messages[-1] = first.message.to_dict()
            new = [
                result.to_message()
                for result in run_calls(ways[0].tools.validate(call) for call in first.tool_calls)
            ]
            calls += len(new)
    assert calls == TURNS // 2
    print(f"{calls} calls, {len(ways[0].seen)} replies, {ties} near-ties; computed {[way.computed for way in ways]}, "
          f"expected {[way.expected for way in ways]}")  # fmt: skip
    assert (
        ties <= len(ways[0].seen) / 10
    )  # 3 of 60, in slices of any size; what is no near-tie has failed by now
    for way in ways:
        assert way.expected <= way.computed <= way.expected + ties * 60
    # in all it is a small part of what sending everything each time would cost
    everything = sum(len(tokens) for tokens in ways[0].seen)
    assert ways[0].computed < everything / 8


def agree(replies: list[Reply]) -> int:
    """The same tokens, or, counted, others that were as likely."""
    ties = 0
    for reply in replies[1:]:
        same = common_length(replies[0].tokens, reply.tokens)
        if same == len(reply.tokens) == len(replies[0].tokens):
            assert reply.message.to_dict() == replies[0].message.to_dict()
            continue
        assert replies[0].logprobs is not None
        best, second = (value for _, value in replies[0].logprobs[same].top)
        assert best - second < CLOSE, (replies[0].text, reply.text, best - second)
        ties += 1
    return ties
