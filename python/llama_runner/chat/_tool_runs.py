"""Running tools: none can hang, end or break what called it.

A synchronous tool runs in a thread of its own, which is left behind when its time is over: Python cannot end a thread.
An asynchronous one runs on the event loop of who called it, or on one of its own in such a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from llama_runner._check import check_bool, check_float, check_int
from llama_runner.chat._problems import first_line
from llama_runner.chat._tool import MAX_TIMEOUT
from llama_runner.chat._tool_context import ToolContext
from llama_runner.chat._tool_results import MAX_RESULT_CHARS, ToolResult
from llama_runner.chat._tool_set import ValidatedCall
from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    ToolCancelledError,
    ToolError,
    ToolFailedError,
    ToolTimeoutError,
)

__all__ = ["abandoned_calls", "arun_call", "arun_calls", "run_call", "run_calls"]

_GRACE = 0.5  # seconds for a cancelled coroutine to clean up


def run_call(
    call: ValidatedCall,
    *,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> ToolResult:
    """Run one call and wait for it.

    The earliest of ``timeout`` (seconds), the tool's own and the context's deadline is its limit. Whatever the tool
    raises, SystemExit and KeyboardInterrupt too, is in the result's ``error``; so is a ToolTimeoutError, a
    ToolCancelledError once ``context.cancelled`` is set, and a ToolResultError for what cannot be written. Text longer
    than ``max_result_chars`` loses its middle. Raises InvalidArgumentError for a tool that has nothing to call.
    """
    made = _Call(call, timeout, context, max_result_chars)
    return made.not_run() or _Thread(made).wait()


async def arun_call(
    call: ValidatedCall,
    *,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> ToolResult:
    """``run_call`` on the running event loop; cancelling it cancels the tool.

    A coroutine runs on this loop: one that blocks it cannot be stopped. KeyboardInterrupt in a coroutine on the main
    thread is the user's, and is raised.
    """
    made = _Call(call, timeout, context, max_result_chars)
    return made.not_run() or await (
        _on_loop(made, made.started) if call.tool.is_async else _beside_loop(made)
    )


def run_calls(
    calls: Iterable[ValidatedCall],
    *,
    parallel: bool = True,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> list[ToolResult]:
    """Run the calls of one message; results in their order, each as of ``run_call``.

    ``timeout`` is for all of them together; each tool's own holds besides. ``parallel=False`` starts each when the one
    before it is done.
    """
    calls, context = _group(calls, parallel, timeout, context, max_result_chars)
    try:
        if not parallel:
            return [run_call(call, context=context, max_result_chars=max_result_chars) for call in calls]
        made = [_Call(call, None, context, max_result_chars) for call in calls]
        started = [call.not_run() or _Thread(call) for call in made]
        return [item.wait() if isinstance(item, _Thread) else item for item in started]
    except BaseException:  # Ctrl-C while waiting for one of them
        context.cancelled.set()
        raise
    finally:
        context.cancelled.unlink()


async def arun_calls(
    calls: Iterable[ValidatedCall],
    *,
    parallel: bool = True,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> list[ToolResult]:
    """``run_calls`` on the running event loop."""
    calls, context = _group(calls, parallel, timeout, context, max_result_chars)
    run = functools.partial(arun_call, context=context, max_result_chars=max_result_chars)
    try:
        if not parallel:
            return [await run(call) for call in calls]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
        return [task.result() for task in tasks]
    finally:
        context.cancelled.unlink()


def abandoned_calls() -> int:
    """How many tools run on, now, that nobody waits for: past their time, or cancelled."""
    with _abandoned_lock:
        return len(_abandoned)


_abandoned: set[object] = set()
_abandoned_lock = threading.Lock()


def _group(
    calls: Iterable[ValidatedCall],
    parallel: bool,
    timeout: float | None,
    context: ToolContext | None,
    max_result_chars: int,
) -> tuple[list[ValidatedCall], ToolContext]:
    """The calls, all of which can be run, and a context that has the deadline of all of them."""
    check_bool("parallel", parallel)
    _check_max_chars(max_result_chars)
    calls = list(calls)
    for call in calls:
        _check_call(call)
    return calls, _check_context(context).for_call("", _deadline(timeout))


def _check_call(call: ValidatedCall) -> None:
    if not isinstance(call, ValidatedCall):
        raise ArgumentTypeError(f"a call is what ToolSet.validate gives, not {type(call).__name__}")
    if call.tool.call is None:
        raise InvalidArgumentError(
            f"the tool {call.tool.name} is a description alone: pass call= when it is made, or answer the call yourself"
        )


def _check_max_chars(max_result_chars: int) -> int:
    return check_int("max_result_chars", max_result_chars, 100, 2**31)


def _check_context(context: ToolContext | None) -> ToolContext:
    if context is None:
        return ToolContext()
    if not isinstance(context, ToolContext):
        raise ArgumentTypeError(f"context={context!r}: it is a ToolContext, not {type(context).__name__}")
    return context


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    return time.monotonic() + check_float("timeout", timeout, 0.0, MAX_TIMEOUT)


class _Call:
    """One call: its limits, and what is made of how it ended."""

    def __init__(
        self, call: ValidatedCall, timeout: float | None, context: ToolContext | None, max_result_chars: int
    ):
        _check_call(call)
        self.begin = time.monotonic()
        self.call = call
        self.name = call.tool.name
        self.max_chars = _check_max_chars(max_result_chars)
        limits = [limit for limit in (_deadline(timeout), _deadline(call.tool.timeout)) if limit is not None]
        self.context = _check_context(context).for_call(call.call.id, min(limits, default=None))

    @property
    def remaining(self) -> float | None:
        """Seconds to wait, of which no system has more than it can wait for at once."""
        remaining = self.context.remaining
        return None if remaining is None else min(remaining, MAX_TIMEOUT)

    def started(self) -> Any:
        """Call the tool: what it returned, or a coroutine."""
        args, kwargs = self.call.tool.signature.bind(self.call.arguments, self.context)
        return self.call.tool(*args, **kwargs)

    def not_run(self) -> ToolResult | None:
        """The result of a call that is not to be started: cancelled before, or without any time."""
        if self.context.cancelled.is_set():
            return self.given_up()
        if self.remaining == 0:
            return self.failed(ToolTimeoutError(f"{self.name} was not run: no time was left", self.name))
        return None

    def ended(self, value: Any, error: BaseException | None) -> ToolResult:
        """The result of a tool that returned or raised."""
        self.context.cancelled.unlink()
        if error is not None:
            return self.failed(self.failure(error))
        seconds = time.monotonic() - self.begin
        return ToolResult.from_value(value, self.call.call.id, self.name, seconds, self.max_chars)

    def given_up(self) -> ToolResult:
        """The result of a tool that is not waited for any more, or that ended since it was told so."""
        if self.context.cancelled.is_set():
            return self.failed(ToolCancelledError(f"{self.name} was cancelled", self.name))
        limit = max(0.0, (self.context.deadline or self.begin) - self.begin)
        result = self.failed(ToolTimeoutError(f"{self.name} did not answer within {limit:.3g} s", self.name))
        self.stop()
        return result

    def failed(self, error: ToolError) -> ToolResult:
        self.context.cancelled.unlink()
        return ToolResult.from_error(error, self.call.call.id, self.name, time.monotonic() - self.begin)

    def stop(self) -> None:
        self.context.cancelled.unlink()
        self.context.cancelled.set()

    def failure(self, error: BaseException) -> ToolError:
        if isinstance(error, asyncio.CancelledError):
            return ToolCancelledError(f"{self.name} cancelled itself", self.name)
        text = _traceback(error)
        if isinstance(error, ToolError):  # says itself what the model is to be told
            error.tool = error.tool or self.name
            return error
        told = first_line(error)
        return ToolFailedError(
            f"{self.name} raised {told}", self.name, f"Error: {self.name}: {told}", error, text
        )


class _Thread:
    """A call in a thread of its own; ``wake`` is called there when it is done.

    Where ``own_loop`` is false, an awaitable that the tool returns is left to who waits.
    """

    def __init__(self, call: _Call, wake: Callable[[], None] = lambda: None, own_loop: bool = True):
        self.call = call
        self.wake = wake
        self.own_loop = own_loop
        self.lock = threading.Lock()
        self.woken = threading.Event()
        self.done = self.abandoned = self.cancelled = False
        self.value: Any = None
        self.error: BaseException | None = None
        target = functools.partial(contextvars.copy_context().run, self.run)
        try:
            threading.Thread(target=target, name=f"tool {call.name}", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self.finish(None, error)

    def run(self) -> None:
        try:
            value = self.call.started()
            if self.own_loop and inspect.isawaitable(value):
                value, error = asyncio.run(self.awaited(value))
            else:
                error = None
        except BaseException as problem:
            value, error = None, problem  # KeyboardInterrupt too: no signal comes to a thread
        self.finish(value, error)

    async def awaited(self, value: Awaitable[Any]) -> tuple[Any, BaseException | None]:
        task = asyncio.ensure_future(_guarded(lambda: value))
        unsubscribe = self.call.context.cancelled.subscribe(_on(asyncio.get_running_loop(), task.cancel))
        try:
            return await task
        finally:
            unsubscribe()

    def finish(self, value: Any, error: BaseException | None) -> None:
        with self.lock:
            self.done, self.value, self.error = True, value, error
            self.cancelled = self.call.context.cancelled.is_set()
            if self.abandoned or self.cancelled:
                _close(value)
        with _abandoned_lock:
            _abandoned.discard(self)
        self.woken.set()
        self.wake()

    def wait(self) -> ToolResult:
        """Wait up to the deadline, or until the run is cancelled."""
        unsubscribe = self.call.context.cancelled.subscribe(self.woken.set)
        try:
            self.woken.wait(self.call.remaining)
        except BaseException:
            self.leave()
            self.call.stop()
            raise
        finally:
            unsubscribe()
        return self.outcome()

    def outcome(self) -> ToolResult:
        """The result as of now; a tool that is not done is given up."""
        if self.leave() or self.cancelled:
            return self.call.given_up()
        return self.call.ended(self.value, self.error)

    def leave(self) -> bool:
        """Wait no more: whether the thread still ran, and is left behind, now or before."""
        with self.lock:
            if not self.done and not self.abandoned:
                self.abandoned = True
                with _abandoned_lock:
                    _abandoned.add(self)
            return self.abandoned


async def _beside_loop(call: _Call) -> ToolResult:
    """Run a function in a thread and, where it returns an awaitable, await that here."""
    woken = asyncio.Event()
    wake = _on(asyncio.get_running_loop(), woken.set)
    thread = _Thread(call, wake, own_loop=False)
    try:
        await _woken(woken, wake, call)
    except BaseException:
        thread.leave()
        _close(thread.value)
        call.stop()
        raise
    if not thread.leave() and not thread.cancelled and inspect.isawaitable(thread.value):
        return await _on_loop(call, lambda: thread.value)
    return thread.outcome()


async def _on_loop(call: _Call, make: Callable[[], Awaitable[Any]]) -> ToolResult:
    """Run what ``make`` makes as a task of this loop."""
    task = asyncio.ensure_future(_guarded(make))
    woken = asyncio.Event()
    cancelled = False

    def done(_: object) -> None:
        nonlocal cancelled
        cancelled = call.context.cancelled.is_set()
        woken.set()

    task.add_done_callback(done)
    try:
        await _woken(woken, _on(asyncio.get_running_loop(), woken.set), call)
    except BaseException:
        call.stop()
        await _cancel(task)
        raise
    if cancelled or not task.done():
        result = call.given_up()
        await _cancel(task)
        return result
    return call.ended(*(task.result() if not task.cancelled() else (None, asyncio.CancelledError())))


async def _woken(woken: asyncio.Event, wake: Callable[[], None], call: _Call) -> None:
    """Wait until the tool is done, its time is over or the run is cancelled."""
    unsubscribe = call.context.cancelled.subscribe(wake)
    try:
        async with asyncio.timeout(call.remaining):
            await woken.wait()
    except TimeoutError:
        pass
    finally:
        unsubscribe()


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel the task and let it clean up for a moment; where it takes longer, it is left behind."""
    task.cancel()
    try:
        await asyncio.wait([task], timeout=_GRACE)
    finally:
        if not task.done():
            with _abandoned_lock:
                _abandoned.add(task)
            task.add_done_callback(_forget)


async def _guarded(make: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """What the tool returned and what it raised: a SystemExit that a task raises would end the loop."""
    try:
        return await make(), None
    except KeyboardInterrupt as problem:
        if threading.current_thread() is threading.main_thread():
            raise
        return None, problem
    except BaseException as problem:
        return None, problem


def _on(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> Callable[[], None]:
    """What has ``function`` called by ``loop``, from any thread; once the loop is closed, nothing."""

    def call() -> None:
        try:
            loop.call_soon_threadsafe(function)
        except RuntimeError:
            pass

    return call


def _close(value: Any) -> None:
    """Close a coroutine that nobody will await."""
    if inspect.iscoroutine(value):
        value.close()


def _forget(task: object) -> None:
    with _abandoned_lock:
        _abandoned.discard(task)


def _traceback(error: BaseException) -> str:
    """The traceback as text. What its frames held is let go: results are kept for long."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # of the exception's own methods
        text = f"{type(error).__name__}: its traceback cannot be written"
    seen: BaseException | None = error
    for _ in range(100):
        if seen is None:
            break
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    return text
