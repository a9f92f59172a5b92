"""Runs with tools that misbehave, runs that are ended in each phase, and many forks under asyncio."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, Session
from llama_runner.chat.tools import CancelFlag, ToolContext
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    InvalidArgumentError,
    LlamaRunnerError,
    MessageError,
    UnknownToolError,
)
from session_use import with_tools
from tiny_models import write_with_vocab_of

pytestmark = pytest.mark.real_model
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def runner(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaRunner]:
    """A model that says nothing of sense, held to calls by their grammar."""
    path = write_with_vocab_of(tmp_path_factory.mktemp("like") / "smollm2.gguf", smollm2)
    with LlamaRunner(path, n_ctx=2048, n_threads=1) as made:
        yield made


def calling(runner: LlamaRunner, *tools: Any) -> Session:
    return runner.session(template=with_tools(), tools=tools)


def raises() -> str:
    """Raise."""
    raise RuntimeError("boom")


def exits() -> str:
    """Exit."""
    raise SystemExit(3)


def hangs() -> str:
    """Hang."""
    time.sleep(2)
    return "late"


def garbage() -> object:
    """Return what cannot be written."""
    return object()


def unreadable() -> str:
    """Return text that is none."""
    return "a\0b\ud800"


@pytest.mark.parametrize("tool", [raises, exits, hangs, garbage, unreadable])
def test_tools_that_misbehave(runner: LlamaRunner, tool: Callable[[], object]) -> None:
    session = calling(runner, tool)
    for max_steps, roles in ((1, "uat"), (2, "uata")):
        run = session.run(
            "go",
            max_steps=max_steps,
            tool_choice=tool.__name__,
            tool_timeout=0.2,
            parallel_tool_calls=False,
            **GREEDY,
        )
        assert [result.ok for result in run.results] == [tool is unreadable]
        assert len(run.steps) == max_steps and "".join(m.role[0] for m in session.messages) == roles
        assert not session.busy and session.send("on", max_tokens=1).usage.completion_tokens == 1
        session.rollback(None)


def test_a_tool_that_uses_its_session(runner: LlamaRunner, tmp_path: Path) -> None:
    """It may look at it and fork it; what would part the call from its result is refused. Nothing waits for itself."""
    told: dict[str, object] = {}

    def uses(context: ToolContext) -> str:
        """Use the session."""
        session = context.session
        for name, call in {
            "look": lambda: len(session.messages), "plan": session.plan, "save": lambda: session.save(tmp_path / "s"),
            "fork": lambda: aside(session.fork()), "send": lambda: session.send("x"), "add": lambda: session.add("x"),
            "run": lambda: session.run("x"),
        }.items():  # fmt: skip
            try:
                told[name] = call()
            except LlamaRunnerError as error:
                told[name] = type(error)
        return "done"

    def aside(fork: Session) -> str:
        fork.rollback(None)
        return fork.send("aside", max_tokens=2).finish_reason

    session = calling(runner, uses)
    run = session.run("go", max_steps=2, tool_choice="uses", parallel_tool_calls=False, **GREEDY)
    assert run.steps[0].results[0].content == "done" and len(session) == 4
    assert told["look"] == 2 and told["fork"] == "length"
    assert [told[name] for name in ("send", "add", "run")] == [MessageError] * 3
    assert not isinstance(told["plan"], type) and not isinstance(told["save"], type)


def test_a_tool_that_breaks_its_run(runner: LlamaRunner) -> None:
    """What it did to the conversation stays, and the run says that its results have no place any more."""
    kept: list[Any] = []

    def rolls_back(context: ToolContext) -> str:
        """Roll back."""
        context.session.rollback(None)
        return "x"

    def answers(context: ToolContext) -> str:
        """Answer itself."""
        for call in context.session.messages[-1].tool_calls:
            context.session.add({"role": "tool", "tool_call_id": call.id, "content": "mine"})
        return "x"

    def holds(context: ToolContext) -> str:
        """Keep the session."""
        context.session.rollback(None)
        kept.append(context.session.stream("x", max_tokens=2000, ignore_eos=True))
        return "x"

    for tool, error, roles in (
        (rolls_back, MessageError, ""),
        (answers, MessageError, "uat"),
        (holds, ContextBusyError, ""),
    ):
        session = calling(runner, tool)
        with pytest.raises(error):
            session.run("go", tool_choice=tool.__name__, parallel_tool_calls=False, **GREEDY)
        assert "".join(m.role[0] for m in session.messages) == roles
    assert session.busy
    kept[0].close()
    assert not session.busy


def test_each_phase_can_be_ended(runner: LlamaRunner) -> None:
    for after in (0.0, 0.01, 0.1, 0.6):
        for by_flag in (True, False):
            session, flag = calling(runner, hangs), CancelFlag()
            timer = threading.Timer(after, flag.set)
            options: dict[str, Any] = {"cancel": flag} if by_flag else {"timeout": after}
            if by_flag:
                timer.start()
            began = time.monotonic()
            run = session.run("go", tool_choice="hangs", parallel_tool_calls=False, **GREEDY, **options)
            assert run.why in (("cancelled",) if by_flag else ("timeout",)) and time.monotonic() - began < 8
            assert "".join(m.role[0] for m in session.messages) in ("", "ua", "uat")
            assert not session.busy
            timer.cancel()


def test_wrong_calls_of_run(runner: LlamaRunner) -> None:
    session = calling(runner, raises)
    for options, error in (
        ({"tool_choice": "nope"}, UnknownToolError),
        ({"tools": [], "tool_choice": "required"}, InvalidArgumentError),
        ({"grammar": 'root ::= "a"', "tool_choice": "required"}, InvalidArgumentError),
    ):
        with pytest.raises(error):
            session.run("go", **options)
        assert len(session) == 0 and not session.busy
    with pytest.raises(ZeroDivisionError):
        session.run(
            "go", tool_choice="raises", parallel_tool_calls=False, on_step=lambda step: 1 // 0, **GREEDY
        )
    assert "".join(m.role[0] for m in session.messages) == "uat"  # what was done stays
    described = {"name": "described", "description": "d", "parameters": {"type": "object", "properties": {}}}
    session = calling(runner, described)
    run = session.run("go", tool_choice="described", **GREEDY)
    assert run.why == "pending"
    answers = [
        {"role": "tool", "tool_call_id": c.id, "content": "3"} for c in session.messages[-1].tool_calls
    ]
    assert session.send(answers, max_tokens=1).usage.completion_tokens == 1
    session = calling(runner, raises)
    session.add("word " * 1400)
    with pytest.raises(ContextOverflowError):
        session.run("word " * 700)
    assert len(session) == 1


def test_a_run_whose_task_is_cancelled(runner: LlamaRunner) -> None:
    running = threading.Event()

    async def waits() -> str:
        """Wait."""
        running.set()
        await asyncio.sleep(30)
        return "x"

    async def main() -> None:
        session = calling(runner, waits)
        task = asyncio.create_task(
            session.arun("go", tool_choice="waits", parallel_tool_calls=False, **GREEDY)
        )
        await asyncio.to_thread(running.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [m.role for m in session.messages] == ["user", "assistant"] and not session.busy
        call = session.messages[-1].tool_calls[0]  # it is open, and can be answered
        reply = await session.asend({"role": "tool", "tool_call_id": call.id, "content": "x"}, max_tokens=1)
        assert reply.usage.completion_tokens == 1

    asyncio.run(main())


# --- many forks


def test_sixteen_forks_and_random_cancels(tiny_model: TinyModelFactory) -> None:
    rng = random.Random(0)
    with LlamaRunner(tiny_model("llama"), n_ctx=2048, n_threads=1) as tiny:
        root = tiny.session(template=PLAIN)
        root.send("hello", max_tokens=4, ignore_eos=True)

        async def one(fork: Session, how: int) -> None:
            if how == 0:
                await fork.asend("whole", max_tokens=30, ignore_eos=True)
            elif how == 1:
                # a reply that is left before its end stays as far as it was read
                async for _ in fork.astream("left", max_tokens=200, ignore_eos=True):
                    break
            else:
                await fork.asend("cancelled", max_tokens=1500, ignore_eos=True)

        async def main() -> None:
            for _ in range(4):
                forks = root.fork(16)
                hows = [rng.randrange(3) for _ in forks]
                tasks = [asyncio.create_task(one(f, how)) for f, how in zip(forks, hows, strict=True)]
                await asyncio.sleep(rng.random() * 0.05)
                for task, how in zip(tasks, hows, strict=True):
                    if how == 2:
                        task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                gc.collect()
                for fork, how, result in zip(forks, hows, done, strict=True):
                    assert not fork.busy
                    if how == 0:
                        assert result is None and fork.messages[-1].finish_reason == "length"
                    elif how == 1:
                        assert fork.messages[-1].finish_reason in ("cancelled", "length")
                    else:
                        assert isinstance(result, asyncio.CancelledError) and len(fork) == 2

        asyncio.run(main())
        gc.collect()
        deadline = time.monotonic() + 10
        while tiny.counters.running + tiny.counters.waiting:
            assert time.monotonic() < deadline, "what was cancelled goes on"
            time.sleep(0.01)
        gc.collect()
        tiny.clear_context()
        assert tiny.get_context_info().used == 0


def test_eight_threads_on_eight_forks(tiny_model: TinyModelFactory) -> None:
    with LlamaRunner(tiny_model("llama"), n_ctx=2048, n_threads=1) as tiny:
        root = tiny.session(template=PLAIN)
        root.send("hello", max_tokens=4, ignore_eos=True)
        problems: list[BaseException] = []

        def work(fork: Session, k: int) -> None:
            try:
                for i in range(5):
                    fork.send(f"{k} {i}", max_tokens=4, ignore_eos=True)
                    stream = fork.stream("left", max_tokens=100, ignore_eos=True)
                    next(stream)
                    if i % 2:
                        stream.close()
                    del stream
                    fork.rollback(fork.messages[1 + 2 * (i % 2)])
                    fork.sync([*fork.to_messages(), {"role": "user", "content": "synced"}])
                    fork.gc(0.5)
                    fork.fork(2)
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(f, k)) for k, f in enumerate(root.fork(8))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not problems and not any(thread.is_alive() for thread in threads)


def test_closing_while_sessions_stream(tiny_model: TinyModelFactory) -> None:
    for _ in range(5):
        tiny = LlamaRunner(tiny_model("llama"), n_ctx=2048, n_threads=1)
        root = tiny.session(template=PLAIN)
        ends: list[str] = []

        def read(fork: Session, ends: list[str] = ends) -> None:
            try:
                while True:
                    fork.send("on", max_tokens=20, ignore_eos=True)
                    fork.rollback(None)
            except ClosedError:
                ends.append("closed")

        forks = root.fork(6)
        threads = [threading.Thread(target=read, args=(fork,)) for fork in forks]
        for thread in threads:
            thread.start()
        abandoned = root.stream("x", max_tokens=1500)
        time.sleep(0.05)
        tiny.close()
        for thread in threads:
            thread.join(20)
        assert ends == ["closed"] * 6 and not any(fork.busy for fork in forks)
        del abandoned
        gc.collect()
