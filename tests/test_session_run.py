"""``Session.run``: tools are called, wrong calls are answered, limits hold, and every step is told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.chat.tools import CancelFlag, Tool, ToolContext
from llama_runner.errors import (
    ContextOverflowError,
    InvalidArgumentError,
    ToolDefinitionError,
    UnknownToolError,
)
from session_use import add, find_city, with_tools

pytestmark = pytest.mark.real_model
ONE: dict[str, Any] = {"parallel_tool_calls": False, "temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def runner(smollm2: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(smollm2, n_ctx=4096) as made:
        yield made


@pytest.fixture
def chat(runner: LlamaRunner) -> Session:
    return runner.session(system="You add numbers.", tools=[add, find_city], template=with_tools())


def test_a_tool_is_called_and_its_result_replied_to(chat: Session) -> None:
    told = []
    run = chat.run("Add 1 and 2.", tool_choice="add", max_steps=3, on_step=told.append, **ONE)
    first, last = run.steps[0], run.steps[-1]
    assert [call.name for call in first.reply.tool_calls] == ["add"]
    arguments = json.loads(first.reply.tool_calls[0].arguments)
    assert first.results[0].value == arguments["a"] + arguments["b"]
    assert [m.role for m in chat.messages][:4] == ["system", "user", "assistant", "tool"]
    assert chat.messages[3].tool_call_id == first.reply.tool_calls[0].id
    assert told == list(run.steps) and run.reply is last.reply and run.text == last.reply.text
    assert run.usage.completion_tokens == sum(step.reply.usage.completion_tokens for step in run.steps)
    assert run.usage.computed_tokens < run.usage.prompt_tokens
    assert json.dumps(run.to_dict()) and run.results[0].name == "add"
    assert run.why in ("done", "length", "max_steps")
    # what stood before the result was read while the tool ran, or is new: never the whole again
    assert run.steps[1].reply.usage.computed_tokens < 60


def test_asyncio_runs_tools_together(runner: LlamaRunner) -> None:
    running = most = 0

    async def slow(city: str) -> str:
        """Look up a city."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(2000):  # 20 s, unless another comes
            if most > 1:
                break
            await asyncio.sleep(0.01)
        running -= 1
        return f"{city} is far away"

    async def several() -> list[Any]:
        sessions = [runner.session(tools=[slow], template=with_tools()) for _ in range(3)]
        return await asyncio.gather(
            *(s.arun("Where is Rome?", tool_choice="slow", max_steps=2, **ONE) for s in sessions)
        )

    runs = asyncio.run(several())
    assert all(run.steps[0].results[0].ok for run in runs)
    assert most > 1


def test_the_last_step_answers_without_tools(chat: Session) -> None:
    run = chat.run("Add 1 and 2.", tool_choice="required", max_steps=2, **ONE)
    assert len(run.steps) == 2 and run.steps[1].reply.tool_calls == ()
    assert run.why in ("max_steps", "length")
    # a single step's results stand, and nobody has replied to them
    single = chat.run("Add 3 and 4.", tool_choice="add", max_steps=1, **ONE)
    assert (single.why, len(single.steps)) == ("max_steps", 1) and chat.messages[-1].role == "tool"
    assert chat.send(tool_choice="none", **ONE).text


def test_wrong_calls_are_told_to_the_model(runner: LlamaRunner) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        if a >= 0:
            raise ValueError("no numbers today")
        return a + b

    chat = runner.session(tools=[add], template=with_tools())
    run = chat.run("Add 1 and 2.", tool_choice="add", max_steps=2, **ONE)
    failed = run.steps[0].results[0]
    assert not failed.ok and "no numbers today" in failed.content
    assert chat.messages[2].content == failed.content and "Traceback" not in failed.content
    # the tool that it calls is not there any more
    strict = Tool.from_schema(
        {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}},
        },
        lambda **_: {1, 2},
    )
    other = runner.session(tools=[strict], template=with_tools())
    result = other.run("Add 1.", tool_choice="add", max_steps=1, **ONE).steps[0].results[0]
    # the grammar holds to the schema, and a set is written as a list
    assert (result.ok, result.content) == (True, "[1, 2]")


def test_time_is_limited(runner: LlamaRunner) -> None:
    asleep = threading.Event()

    def hang(seconds: float, context: ToolContext) -> str:
        """Sleep for some seconds."""
        context.cancelled.wait(100)
        asleep.set()
        return "late"

    chat = runner.session(tools=[hang], template=with_tools())
    begin = time.monotonic()
    run = chat.run("Sleep.", tool_choice="hang", max_steps=2, tool_timeout=0.3, **ONE)
    assert "TimeoutError" in type(run.steps[0].results[0].error).__name__ and len(run.steps) == 2
    assert asleep.wait(5), "a tool that looks is told that nobody waits"
    took = time.monotonic() - begin
    assert took < 60
    run = runner.session(tools=[hang], template=with_tools()).run(
        "Sleep.", tool_choice="hang", max_steps=5, timeout=max(8.0, 3 * took), **ONE
    )
    assert run.why == "timeout" and "TimeoutError" in type(run.steps[0].results[0].error).__name__
    none = chat.run("Sleep.", timeout=0.0)
    assert (none.why, none.steps, none.reply, none.text) == ("timeout", (), None, "")


def test_cancel_from_outside(runner: LlamaRunner) -> None:
    flag = CancelFlag()

    def stop(number: int) -> str:
        """Stop."""
        flag.set()
        return "stopped"

    chat = runner.session(tools=[stop], template=with_tools())
    run = chat.run("Stop.", tool_choice="stop", cancel=flag, max_steps=4, **ONE)
    assert run.why == "cancelled" and len(run.steps) == 1
    assert chat.messages[-1].role == "tool"  # what was done stands
    flag = CancelFlag()
    steps = 0

    def in_the_middle(tokens: Any, logits: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            flag.set()

    run = chat.run(
        "Tell me a very long story.", cancel=flag, tool_choice="none", max_tokens=2000, ignore_eos=True,
        logits_processor=in_the_middle,
    )  # fmt: skip
    assert run.why == "cancelled" and chat.messages[-1].finish_reason == "cancelled"

    async def cancelled() -> None:
        task = asyncio.create_task(
            chat.arun("On and on.", tool_choice="none", max_tokens=2000, ignore_eos=True)
        )
        await asyncio.sleep(0.3)
        n = len(chat)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(chat) == n

    asyncio.run(cancelled())


def test_descriptions_alone_are_left_to_the_caller(runner: LlamaRunner) -> None:
    described = Tool.from_function(add).to_dict()
    chat = runner.session(tools=[described], template=with_tools())
    run = chat.run("Add 1 and 2.", tool_choice="add", **ONE)
    assert run.why == "pending" and run.steps[0].results == ()
    call = run.steps[0].reply.tool_calls[0]
    reply = chat.send({"role": "tool", "tool_call_id": call.id, "content": "3"}, tool_choice="none", **ONE)
    assert reply.message.role == "assistant"


def test_errors_leave_what_was_done(runner: LlamaRunner) -> None:
    def flood(n: int) -> str:
        """Give many words."""
        return "word " * 3900

    chat = runner.session(tools=[flood], template=with_tools())
    with pytest.raises(ContextOverflowError):
        chat.run("Give me words.", tool_choice="flood", **ONE)
    # the calls have their results: the conversation can be gone on with, or rolled back
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool"]
    chat.rollback(chat.messages[0])
    with pytest.raises(UnknownToolError, match="nothing"):
        chat.run("x", tool_choice="nothing")
    with pytest.raises(ToolDefinitionError):
        runner.session(tools=[{"name": "broken", "parameters": {"type": "nonsense"}}], template=with_tools())
    for wrong in ({"max_steps": 0}, {"timeout": -1}, {"tool_timeout": -1}):
        with pytest.raises(InvalidArgumentError):
            chat.run("x", **wrong)
    assert len(chat) == 1
