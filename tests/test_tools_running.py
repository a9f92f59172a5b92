"""Tools that hang, are cancelled or run together: what called them goes on."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_runner import errors
from llama_runner.chat.tools import (
    CancelFlag,
    Tool,
    ToolContext,
    ToolResult,
    ToolSet,
    abandoned_calls,
    arun_call,
    arun_calls,
    run_call,
    run_calls,
)
from llama_runner.chat_types import ToolCall
from tool_use import (
    circle,
    returning,
    validated,
    wait_for_no_abandoned,
)


@pytest.fixture(autouse=True)
def none_abandoned() -> Iterator[None]:
    yield
    wait_for_no_abandoned()


# ---------------------------------------------------------------------------------------------------- time


def hanging(stop: threading.Event) -> Callable[[], str]:
    def hang() -> str:
        stop.wait(30)
        return "late"

    return hang


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


class TestTimeout:
    def test_a_hanging_function(self, stop: threading.Event) -> None:
        begin = time.monotonic()
        result = run_call(validated(hanging(stop)), timeout=0.05)
        assert time.monotonic() - begin < 8
        assert isinstance(result.error, errors.ToolTimeoutError) and isinstance(result.error, TimeoutError)
        assert result.content == "Error: f did not answer within 0.05 s"
        assert 0.05 <= result.seconds < 8
        assert abandoned_calls() == 1
        stop.set()
        wait_for_no_abandoned()

    def test_a_hanging_function_does_not_hang_the_loop(self, stop: threading.Event) -> None:
        async def on_loop() -> tuple[ToolResult, int]:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticker = asyncio.create_task(tick())
            result = await arun_call(validated(hanging(stop)), timeout=0.2)
            ticker.cancel()
            return result, ticks

        result, ticks = asyncio.run(on_loop())
        assert isinstance(result.error, errors.ToolTimeoutError)
        assert ticks >= 5
        assert abandoned_calls() == 1

    def test_a_coroutine(self) -> None:
        seen: list[str] = []

        async def hang() -> None:
            try:
                await asyncio.sleep(30)
            finally:
                seen.append("cleaned up")

        for result in (
            asyncio.run(arun_call(validated(hang), timeout=0.05)),
            run_call(validated(hang), timeout=0.05),
        ):
            assert isinstance(result.error, errors.ToolTimeoutError)
        wait_for_no_abandoned()
        assert seen == ["cleaned up"] * 2

    def test_a_coroutine_that_does_not_let_itself_be_cancelled(self) -> None:
        released = asyncio.Event()

        async def stubborn() -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    pass

        async def on_loop() -> None:
            begin = time.monotonic()
            result = await arun_call(validated(stubborn), timeout=0.05)
            assert time.monotonic() - begin < 2
            assert isinstance(result.error, errors.ToolTimeoutError)
            assert abandoned_calls() == 1
            released.set()
            await asyncio.sleep(0.01)
            assert abandoned_calls() == 0

        asyncio.run(on_loop())

    def test_the_tools_own(self, stop: threading.Event) -> None:
        made = Tool.from_function(hanging(stop), timeout=0.05)
        assert isinstance(run_call(validated(made)).error, errors.ToolTimeoutError)
        assert isinstance(run_call(validated(made), timeout=20).error, errors.ToolTimeoutError)

    def test_none_is_left(self) -> None:
        ran: list[int] = []
        for result in (
            run_call(validated(lambda: ran.append(1)), timeout=0),
            asyncio.run(arun_call(validated(lambda: ran.append(1)), timeout=0)),
            run_call(validated(lambda: ran.append(1)), context=ToolContext(deadline=time.monotonic() - 1)),
        ):
            assert isinstance(result.error, errors.ToolTimeoutError)
            assert result.content == "Error: f was not run: no time was left"
        assert not ran

    @pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "1", True, 1e12])
    def test_wrong_ones(self, timeout: Any) -> None:
        with pytest.raises(errors.UsageError, match="timeout"):
            run_call(returning(1), timeout=timeout)
        with pytest.raises(errors.UsageError, match="timeout"):
            Tool.from_function(circle, timeout=timeout)

    def test_late_coroutines_are_closed(self, stop: threading.Event) -> None:
        async def inner() -> None: ...

        def late() -> Any:
            stop.wait(30)
            return inner()

        assert not asyncio.run(arun_call(validated(late), timeout=0.05)).ok
        stop.set()
        wait_for_no_abandoned()
        gc.collect()  # a coroutine that was never awaited would warn, and warnings are errors


class TestCancelling:
    def test_the_task_cancels_the_coroutine(self) -> None:
        seen: list[str] = []

        async def hang() -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async def on_loop() -> None:
            for run in (arun_call(validated(hang)), arun_calls([validated(hang)] * 3)):
                task = asyncio.ensure_future(run)  # type: ignore[arg-type]
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(on_loop())
        assert len(seen) == 4

    def test_the_task_leaves_the_thread(self) -> None:
        flags: list[CancelFlag] = []

        def polite(context: ToolContext) -> str:
            flags.append(context.cancelled)
            return "stopped" if context.cancelled.wait(30) else "late"

        async def on_loop() -> None:
            task = asyncio.create_task(arun_call(validated(polite)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        begin = time.monotonic()
        asyncio.run(on_loop())
        wait_for_no_abandoned()  # it heard of it
        assert time.monotonic() - begin < 2 and flags[0].is_set()

    @pytest.mark.parametrize("is_async", [False, True])
    def test_the_flag_ends_the_wait(self, is_async: bool) -> None:
        async def hang() -> None:
            await asyncio.sleep(30)

        def polite(context: ToolContext) -> None:
            context.cancelled.wait(30)

        call = validated(hang if is_async else polite)

        async def on_loop(context: ToolContext) -> ToolResult:
            return await arun_call(call, context=context)

        for run in (
            lambda context: run_call(call, context=context),
            lambda context: asyncio.run(on_loop(context)),
        ):
            context = ToolContext()
            threading.Timer(0.05, context.cancelled.set).start()
            begin = time.monotonic()
            result = run(context)
            assert time.monotonic() - begin < 2
            assert isinstance(result.error, errors.ToolCancelledError)
            assert result.content == "Error: f was cancelled"

    def test_what_is_cancelled_before_is_not_run(self) -> None:
        context = ToolContext()
        context.cancelled.set()
        ran: list[int] = []
        call = validated(lambda: ran.append(1))
        results = [run_call(call, context=context), *run_calls([call] * 2, context=context)]
        assert all(isinstance(result.error, errors.ToolCancelledError) for result in results)
        assert not ran

    def test_what_was_done_before_stays(self) -> None:
        context = ToolContext()

        def waiting(context: ToolContext) -> None:
            context.cancelled.wait(30)

        threading.Timer(0.1, context.cancelled.set).start()
        results = run_calls([validated(waiting), returning(1)], context=context)
        assert isinstance(results[0].error, errors.ToolCancelledError) and results[1].value == 1

    def test_a_coroutine_that_cancels_itself(self) -> None:
        async def cancelling() -> None:
            raise asyncio.CancelledError

        for result in (asyncio.run(arun_call(validated(cancelling))), run_call(validated(cancelling))):
            assert isinstance(result.error, errors.ToolCancelledError)

    def test_a_parent_is_not_set_by_its_child(self) -> None:
        parent = CancelFlag()
        child = CancelFlag(parent)
        child.set()
        assert not parent.is_set() and child.is_set()
        assert not CancelFlag(parent).wait(0)
        other = CancelFlag(parent)
        parent.set()
        assert other.is_set() and CancelFlag(parent).is_set()

    def test_flags_of_calls_that_are_over_are_let_go(self) -> None:
        context = ToolContext()
        for _ in range(3):
            run_calls([returning(1), returning(2)], context=context)
            asyncio.run(arun_calls([returning(1)], context=context))
        assert not context.cancelled._callbacks


# ---------------------------------------------------------------------------------------------------- several


class TestSeveral:
    def test_order_and_failures(self) -> None:
        def work(n: int) -> int:
            time.sleep(0.02 * (3 - n))
            if n == 1:
                raise ValueError("one")
            return n

        made = ToolSet([work])
        calls = [made.validate(ToolCall("work", json.dumps({"n": n}), f"id{n}")) for n in range(4)]
        for parallel in (True, False):
            for results in (
                run_calls(calls, parallel=parallel),
                asyncio.run(arun_calls(calls, parallel=parallel)),
            ):
                assert [result.call_id for result in results] == ["id0", "id1", "id2", "id3"]
                assert [result.ok for result in results] == [True, False, True, True]
                assert [result.value for result in results] == [0, None, 2, 3]

    def test_parallel_is_at_once(self) -> None:
        barrier = threading.Barrier(3)
        call = validated(lambda: barrier.wait(5))
        assert all(result.ok for result in run_calls([call] * 3))
        assert all(result.ok for result in asyncio.run(arun_calls([call] * 3)))

    def test_not_parallel_is_one_after_the_other(self) -> None:
        running = most = 0

        async def work() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

        asyncio.run(arun_calls([validated(work)] * 3, parallel=False))
        assert most == 1
        asyncio.run(arun_calls([validated(work)] * 3))
        assert most == 3

    def test_the_deadline_is_for_all(self, stop: threading.Event) -> None:
        calls = [returning(1), validated(hanging(stop)), validated(hanging(stop)), returning(2)]
        for run in (run_calls, lambda *a, **k: asyncio.run(arun_calls(*a, **k))):
            for parallel in (True, False):
                begin = time.monotonic()
                results = run(calls, timeout=0.2, parallel=parallel)
                assert time.monotonic() - begin < 2
                assert results[0].value == 1
                late = results[1:3] if parallel else results[1:]
                assert all(isinstance(result.error, errors.ToolTimeoutError) for result in late)
                assert results[3].ok is parallel

    def test_none(self) -> None:
        assert run_calls([]) == [] == asyncio.run(arun_calls([]))

    def test_many(self) -> None:
        results = run_calls([returning(n) for n in range(200)])
        assert [result.value for result in results] == list(range(200))

    def test_from_several_threads(self) -> None:
        found: list[int] = []

        def work() -> None:
            found.extend(result.value for result in run_calls([returning(n) for n in range(20)]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(list(range(20)) * 8)


def test_the_result_of_a_refused_call() -> None:
    tools = ToolSet([circle])
    with pytest.raises(errors.ToolArgumentError) as caught:
        tools.validate(ToolCall("square", "{}", "c9"))
    result = ToolResult.from_error(caught.value, "c9")
    assert result.to_message() == {
        "role": "tool",
        "tool_call_id": "c9",
        "name": "square",
        "content": 'Error: there is no tool "square"; there is circle',
    }


# ---------------------------------------------------------------------------------------------------- the process


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to one thread")
def test_ctrl_c_ends_the_wait(stop: threading.Event) -> None:
    flags: list[CancelFlag] = []

    def hang(context: ToolContext) -> None:
        flags.append(context.cancelled)
        stop.wait(30)

    main = threading.main_thread().ident
    assert main is not None and threading.current_thread() is threading.main_thread()
    for run in (lambda: run_call(validated(hang)), lambda: run_calls([validated(hang)] * 2)):
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - also where it comes before the call
            threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
            run()
        assert time.monotonic() - begin < 10
    assert len(flags) == 3 and all(flag.is_set() for flag in flags)


def test_a_hanging_tool_does_not_keep_the_process() -> None:
    source = """
import time
from llama_runner.chat.tools import Tool, ToolSet, run_call
from llama_runner.chat_types import ToolCall
tools = ToolSet([Tool.from_schema({"name": "f"}, lambda: time.sleep(60))])
print(run_call(tools.validate(ToolCall("f", "{}")), timeout=0.05).content)
"""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "Error: f did not answer within 0.05 s\n" and done.stderr == ""
    assert time.monotonic() - begin < 30
