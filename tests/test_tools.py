"""Running tools: whatever one does, the result says so and what called it goes on."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import decimal
import enum
import functools
import gc
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat.messages import check_messages
from llama_runner.chat.tools import (
    CancelFlag,
    Tool,
    ToolContext,
    ToolResult,
    ToolSet,
    ValidatedCall,
    abandoned_calls,
    arun_call,
    arun_calls,
    run_call,
    run_calls,
    tool,
)
from llama_runner.chat_types import ToolCall
from llama_runner.core import ChatTemplate, Model


def validated(function: Any, arguments: str = "{}", call_id: str = "c1", **options: Any) -> ValidatedCall:
    made = (
        function
        if isinstance(function, Tool)
        else Tool.from_function(function, name=options.pop("name", "f"), **options)
    )
    return ToolSet([made]).validate(ToolCall(made.name, arguments, call_id))


def returning(value: Any) -> ValidatedCall:
    return validated(lambda: value)


def result_of(value: Any, **options: Any) -> ToolResult:
    """What the model is told of ``value``, which every way of running a tool agrees on."""
    result = run_call(returning(value), **options)
    again = asyncio.run(arun_call(returning(value), **options))
    assert (result.content, result.truncated, type(result.error)) == (
        again.content,
        again.truncated,
        type(again.error),
    )
    return result


def wait_for_no_abandoned(seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while abandoned_calls() and time.monotonic() < end:
        time.sleep(0.005)
    assert abandoned_calls() == 0


@pytest.fixture(autouse=True)
def none_abandoned() -> Iterator[None]:
    yield
    wait_for_no_abandoned()


# ---------------------------------------------------------------------------------------------------- what is returned


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Town:
    name: str
    size: float = math.nan


class Street(BaseModel):
    name: str
    towns: list[Town] = []


WRITTEN = {
    "str": ("as it\nis", "as it\nis"),
    "none": (None, "null"),
    "bool": (True, "true"),
    "int": (2**70, str(2**70)),
    "float": (0.5, "0.5"),
    "nan": ([math.nan, math.inf, -math.inf], '["NaN", "Infinity", "-Infinity"]'),
    "unicode": (["ü"], '["ü"]'),
    "tuple": ((1, "a"), '[1, "a"]'),
    "namedtuple": (Point(1, 2), '{"x": 1, "y": 2}'),
    "set": ({"b", "a", 3}, '["a", "b", 3]'),
    "deque": (deque([1]), "[1]"),
    "range": (range(3), "[0, 1, 2]"),
    "keys": ({1: "a", None: "b", True and 2.5: "c", Colour.RED: 1}, '{"1": "a", "null": "b", "2.5": "c", "red": 1}'),
    "mapping": (OrderedDict(a=1), '{"a": 1}'),
    "bytes": (b"a\xc3\xbc", "aü"),
    "bytes within": ({"a": b"b"}, '{"a": "b"}'),
    "binary": (b"\xff\x00", json.dumps({"base64": base64.b64encode(b"\xff\x00").decode()})),
    "datetime": ([datetime.datetime(2025, 1, 2, 3, 4)], '["2025-01-02T03:04:00"]'),
    "date": ([datetime.date(2025, 1, 2)], '["2025-01-02"]'),
    "timedelta": ([datetime.timedelta(hours=1)], '["1:00:00"]'),
    "path": (Path("a/b"), '"a/b"'),
    "decimal": (decimal.Decimal("1.10"), '"1.10"'),
    "uuid": (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    "enum": (Colour.RED, '"red"'),
    "dataclass": (Town("x"), '{"name": "x", "size": "NaN"}'),
    "pydantic": (Street(name="s", towns=[Town("x", 1.0)]), '{"name": "s", "towns": [{"name": "x", "size": 1.0}]}'),
    "numpy scalar": (np.float32(0.5), "0.5"),
    "numpy bool": (np.True_, "true"),
    "numpy str": (np.str_("a"), "a"),
    "numpy date": (np.datetime64("2025-01-02"), '"2025-01-02"'),
    "numpy array": (np.arange(4, dtype=np.uint8).reshape(2, 2), "[[0, 1], [2, 3]]"),
    "numpy nan": (np.array([np.nan, 1]), '["NaN", 1.0]'),
    "numpy dates": (np.array(["2025-01-02"], dtype="datetime64[ns]"), '["2025-01-02T00:00:00.000000000"]'),
    "numpy objects": (np.array([Path("a"), None], dtype=object), '["a", null]'),
    "numpy record": (np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]), "[[1, 2.5]]"),
    "numpy 0d": (np.array(3), "3"),
    "shared": ([[1]] * 2, "[[1], [1]]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_tool_returns_is_written(name: str) -> None:
    value, text = WRITTEN[name]
    result = result_of(value)
    assert result.content == text
    assert result.ok and result.error is None and result.value is value and not result.truncated
    assert result.to_message() == {"role": "tool", "tool_call_id": "c1", "name": "f", "content": text}


def circle() -> list[Any]:
    items: list[Any] = [1]
    items.append({"a": items})
    return items


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


async def later() -> AsyncIterator[int]:
    yield 1


class Weird:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Falling(dict[str, int]):
    def items(self) -> Any:
        raise ZeroDivisionError("no items")


UNWRITTEN = {
    "object": (object, "a object, which has no JSON form"),
    "weird": (Weird, "test_tools.Weird"),
    "falling": (Falling, "Falling that cannot be written: ZeroDivisionError: no items"),
    "generator": (lambda: (i for i in "ab"), "a generator, which is read once"),
    "iterator": (lambda: iter([1]), "a list_iterator, which is read once"),
    "async generator": (later, "a async_generator, which is read once"),
    "file": (lambda: io.StringIO("a"), "a _io.StringIO, which is read once"),
    "circle": (circle, "a list that holds itself"),
    "depth": (lambda: nested(100_000), "nested more than 100 levels"),
    "huge int": (lambda: 10**5000, "an integer of 16610 bits"),
    "many": (lambda: [0] * 1_000_001, "more than 1000000 values"),
    "array": (lambda: np.zeros((1001, 1001)), "an array of 1002001 values"),
    "function": (lambda: circle, "the function circle"),
    "module": (lambda: json, "a module, which has no JSON form"),
    "class": (lambda: Town, "the class Town"),
    "keys": (lambda: {1: 1, "1": 2}, "two keys are written '1'"),
    "key": (lambda: {(1, 2): 1}, "a tuple as a key"),
    "exception": (lambda: ValueError("x"), "a ValueError"),
    "lock": (threading.Lock, "lock"),
}


@pytest.mark.parametrize("name", UNWRITTEN)
def test_what_cannot_be_written_is_named(name: str) -> None:
    make, reason = UNWRITTEN[name]

    def call() -> Any:  # nothing of make's own signature
        return make()

    for result in (run_call(validated(call)), asyncio.run(arun_call(validated(call)))):
        assert isinstance(result.error, errors.ToolResultError) and isinstance(result.error, TypeError)
        assert reason in result.content
        assert result.content.startswith("Error: f returned ")
        assert not result.ok


def test_a_tool_that_returns_itself() -> None:
    def itself() -> Any:
        return itself

    assert "the function itself" in run_call(validated(itself)).content
    made = Tool.from_function(itself)
    assert "the function itself" in run_call(validated(lambda: made)).content


def test_characters_that_no_text_has() -> None:
    assert result_of("a\0b\udc80").content == "a\ufffdb\ufffd"
    assert result_of(["\udfff"]).content == '["\ufffd"]'

    def failing() -> None:
        raise ValueError("\ud800\0")

    assert "\ufffd\ufffd" in run_call(validated(failing)).content


class TestLimit:
    def test_the_middle_is_cut(self) -> None:
        text = "".join(f"{i:06d}" for i in range(1000))
        result = result_of(text, max_result_chars=500)
        head, marker, tail = result.content.split("\n")
        assert len(result.content) == 500 and result.truncated
        assert text.startswith(head) and text.endswith(tail)
        assert marker == f"[… {len(text) - len(head) - len(tail)} characters left out …]"
        assert result.value == text

    def test_a_hundred_megabytes(self) -> None:
        text = "x" * 100_000_000
        begin = time.monotonic()
        result = run_call(validated(lambda: text))
        assert len(result.content) == 20_000 and result.truncated
        assert time.monotonic() - begin < 2

    def test_what_fits_is_whole(self) -> None:
        assert result_of("x" * 100, max_result_chars=100).content == "x" * 100
        assert len(result_of("x" * 101, max_result_chars=100).content) == 100

    @given(st.integers(100, 300), st.integers(0, 3000))
    def test_it_is_kept(self, most: int, length: int) -> None:
        result = ToolResult.from_value("é" * length, "", "f", max_chars=most)
        assert len(result.content) == min(length, most)
        assert result.truncated == (length > most)

    @pytest.mark.parametrize("most", [0, 99, -1])
    def test_too_small(self, most: int) -> None:
        with pytest.raises(errors.InvalidArgumentError, match="max_result_chars"):
            run_call(returning(1), max_result_chars=most)

    def test_a_long_message_of_an_exception(self) -> None:
        def failing() -> None:
            raise ValueError("x" * 1_000_000)

        assert len(run_call(validated(failing)).content) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="ascii")), inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


@given(json_values.filter(lambda value: not isinstance(value, str)))
def test_json_values_come_back_as_they_are(value: Any) -> None:
    assert json.loads(ToolResult.from_value(value, "", "f").content) == value


# ---------------------------------------------------------------------------------------------------- what is raised


class Impolite(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


RAISED: dict[str, BaseException] = {
    "ValueError": ValueError("bad town"),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "BaseException": BaseException("base"),
    "Impolite": Impolite(),
    "StopIteration": StopIteration(1),
    "GeneratorExit": GeneratorExit(),
    "ExceptionGroup": ExceptionGroup("several", [ValueError("a")]),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError("too deep"),
}


@pytest.mark.parametrize("name", RAISED)
def test_what_a_tool_raises_is_its_result(name: str) -> None:
    def failing() -> None:
        raise RAISED[name]

    async def on_loop() -> ToolResult:
        return await arun_call(validated(failing))

    for result in (run_call(validated(failing)), asyncio.run(on_loop())):
        assert isinstance(result.error, errors.ToolFailedError)
        assert result.error.exception is RAISED[name]
        assert type(RAISED[name]).__name__ in result.content and result.content.startswith("Error: f: ")
        assert "failing" not in result.content and ".py" not in result.content
        assert "in failing" in result.error.traceback or name == "Impolite"
        assert result.value is None
    assert run_call(returning(1)).content == "1"


@pytest.mark.parametrize("name", ["ValueError", "SystemExit", "BaseException", "Impolite", "GeneratorExit"])
def test_what_a_coroutine_raises_is_its_result(name: str) -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise RAISED[name]

    async def on_loop() -> list[ToolResult]:
        return [await arun_call(validated(failing)), *(await arun_calls([validated(failing)] * 2))]

    for result in (run_call(validated(failing)), *asyncio.run(on_loop())):
        assert isinstance(result.error, errors.ToolFailedError)
        assert result.error.exception is RAISED[name]


def test_a_coroutine_in_a_thread_that_raises_keyboard_interrupt() -> None:
    async def failing() -> None:
        raise KeyboardInterrupt

    assert "KeyboardInterrupt" in run_call(validated(failing)).content
    # on the main thread it may be the user's
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(arun_call(validated(failing)))


def test_sys_exit_does_not_exit() -> None:
    assert "SystemExit: 0" in run_call(validated(lambda: sys.exit(0))).content


def test_deep_recursion() -> None:
    def deeper() -> Any:
        return deeper()

    assert "RecursionError" in run_call(validated(deeper)).content


class Big:
    pass


def test_a_failed_result_does_not_keep_what_the_tool_held() -> None:
    held: list[weakref.ref[Big]] = []

    def failing() -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise ValueError("x")

    def outer() -> None:
        try:
            failing()
        except ValueError:
            raise KeyError("y")  # noqa: B904 - the context is what is tested

    result = run_call(validated(outer))
    gc.collect()
    assert result.error is not None and held[0]() is None


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
        assert time.monotonic() - begin < 1
        assert isinstance(result.error, errors.ToolTimeoutError) and isinstance(result.error, TimeoutError)
        assert result.content == "Error: f did not answer within 0.05 s"
        assert 0.05 <= result.seconds < 1
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


# ---------------------------------------------------------------------------------------------------- the context


def test_the_context_is_given_and_not_shown() -> None:
    seen: list[ToolContext] = []

    def look(town: str, context: ToolContext, *, other: ToolContext | None = None) -> str:
        seen.append(context)
        assert other is context
        return town

    made = Tool.from_function(look)
    assert list(made.parameters["properties"]) == ["town"]
    session = object()
    begin = time.monotonic()
    call = validated(made, '{"town": "x"}', "id7")
    result = run_call(call, timeout=5, context=ToolContext(session=session, step=3))
    assert result.content == "x"
    (found,) = seen
    assert (found.session, found.step, found.call_id) == (session, 3, "id7")
    assert found.deadline is not None and begin + 4 < found.deadline < time.monotonic() + 5
    assert found.remaining is not None and 0 <= found.remaining <= 5
    assert not found.cancelled.is_set()
    assert run_call(call).ok and seen[1].session is None and seen[1].remaining is None
    with pytest.raises(errors.ToolArgumentError, match="context: there is no such argument"):
        validated(made, '{"town": "x", "context": {}}')


def test_a_context_by_name_alone() -> None:
    namespace: dict[str, Any] = {}
    exec("def f(c: 'ToolContext'): return c.call_id", namespace)
    made = Tool.from_function(namespace["f"])
    assert made.parameters["properties"] == {}
    assert run_call(validated(made)).content == "c1"


def test_context_for_a_tool_that_a_schema_describes() -> None:
    def call(context: ToolContext, **arguments: Any) -> Any:
        return [context.call_id, arguments]

    made = Tool.from_schema({"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}, call)
    assert run_call(validated(made, '{"a": 1}')).content == '["c1", {"a": 1}]'


@pytest.mark.parametrize("context", [1, {}, "x"])
def test_a_context_that_is_none(context: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="ToolContext"):
        run_call(returning(1), context=context)


def test_the_callers_context_variables_are_seen() -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="none")
    variable.set("set")

    def look() -> str:
        return variable.get()

    assert run_call(validated(look)).content == "set"


# ---------------------------------------------------------------------------------------------------- what is called


def test_every_kind_of_callable() -> None:
    class Callable_:
        """Of the class."""

        def __call__(self, a: int) -> int:
            return a + 1

        def method(self, a: int) -> int:
            return a + 2

        @classmethod
        def of_class(cls, a: int) -> int:
            return a + 3

        @staticmethod
        def static(a: int) -> int:
            return a + 4

    class Later:
        async def __call__(self, a: int) -> int:
            return a + 5

    async def coroutine(a: int, b: int) -> int:
        return a + b

    def returns_coroutine(a: int) -> Any:
        return coroutine(a, 7)

    thing = Callable_()
    calls = {
        "Callable_": (thing, "2"),
        "method": (thing.method, "3"),
        "of_class": (Callable_.of_class, "4"),
        "static": (thing.static, "5"),
        "Later": (Later(), "6"),
        "coroutine": (functools.partial(coroutine, b=6), "7"),
        "returns_coroutine": (returns_coroutine, "8"),
    }
    tools = ToolSet(function for function, _ in calls.values())
    assert list(tools) == list(calls)
    assert [made.name for made in tools.values() if made.is_async] == ["Later", "coroutine"]
    valid = [tools.validate(ToolCall(name, '{"a": 1}')) for name in calls]
    expected = [text for _, text in calls.values()]
    for parallel in (True, False):
        assert [result.content for result in run_calls(valid, parallel=parallel)] == expected
        assert [result.content for result in asyncio.run(arun_calls(valid, parallel=parallel))] == expected


def test_the_decorator() -> None:
    @tool
    def plain(a: int) -> int:
        """Adds."""
        return a + 1

    @tool(name="other", timeout=3)
    def named(a: int) -> int:
        return a + 2

    assert (plain.name, plain.description, plain(1)) == ("plain", "Adds.", 2)
    assert (named.name, named.timeout, named(1)) == ("other", 3.0, 3)
    assert list(ToolSet([plain, named])) == ["plain", "other"]


def test_a_description_alone_is_not_run() -> None:
    made = Tool.from_schema({"name": "f"})
    call = validated(made)
    for run in (lambda: run_call(call), lambda: run_calls([returning(1), call])):
        with pytest.raises(errors.InvalidArgumentError, match="description alone"):
            run()
    with pytest.raises(errors.ToolDefinitionError, match="description alone"):
        made()
    with pytest.raises(errors.ArgumentTypeError, match=r"ToolSet\.validate"):
        run_call(ToolCall("f", "{}"))  # type: ignore[arg-type]


def test_keyword_positional_and_extra_arguments() -> None:
    def all_kinds(a: int, b: int = 2, /, c: int = 3, *, d: int = 4, **rest: int) -> Any:
        return [a, b, c, d, rest]

    def content(arguments: str) -> str:
        return run_call(validated(all_kinds, arguments)).content

    assert content('{"a": 1}') == "[1, 2, 3, 4, {}]"
    assert content('{"a": 1, "c": 7, "x": 9}') == '[1, 2, 7, 4, {"x": 9}]'
    assert content('{"d": 8, "b": 5, "a": 1}') == "[1, 5, 3, 8, {}]"

    def middle(a: int = 1, b: int = 2, /) -> Any:
        return [a, b]

    assert run_call(validated(middle, '{"b": 5}')).content == "[1, 5]"


def test_defaults_are_the_functions_own() -> None:
    sentinel = object()

    def f(a: Any = sentinel, b: list[int] = []) -> bool:  # noqa: B006
        return a is sentinel and b is f.__defaults__[1]  # type: ignore[index]

    assert run_call(validated(f)).value is True


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
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run()
        assert time.monotonic() - begin < 2
        timer.join()
    assert len(flags) == 3 and all(flag.is_set() for flag in flags)


def test_a_hanging_tool_does_not_keep_the_process() -> None:
    source = """
import time
from llama_runner.chat.tools import Tool, ToolSet, run_call
from llama_runner.chat_types import ToolCall
from llama_runner.core import ChatTemplate, Model
tools = ToolSet([Tool.from_schema({"name": "f"}, lambda: time.sleep(60))])
print(run_call(tools.validate(ToolCall("f", "{}")), timeout=0.05).content)
"""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "Error: f did not answer within 0.05 s\n" and done.stderr == ""
    assert time.monotonic() - begin < 30


# ---------------------------------------------------------------------------------------------------- a whole turn


def test_a_whole_turn(llama_cpp_dir: Path, tiny_model: TinyModelFactory) -> None:
    """What a model writes under a real template, taken apart by llama.cpp's parser, run, and put back."""
    source = (
        llama_cpp_dir / "models/templates/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
    ).read_text("utf-8")
    template = ChatTemplate(Model(tiny_model("llama")), source)

    def add(numbers: list[int]) -> int:
        """Adds numbers."""
        return sum(numbers)

    tools = ToolSet([add])
    messages: list[Any] = [{"role": "user", "content": "1+2? x+y?"}]
    prompt = template.render(messages, tools=tools.to_list())
    written = "".join(
        f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>\n'
        for arguments in ('{"numbers": [1, 2]}', '{"numbers": ["x", "y"]}')
    )
    answer = prompt.parser().parse(written)
    results = []
    for call in answer.tool_calls:
        try:
            results.append(run_call(tools.validate(call)))
        except errors.ToolArgumentError as error:
            results.append(ToolResult.from_error(error, call.id))
    assert [result.ok for result in results] == [True, False]
    checked = check_messages([*messages, answer])
    for call_made, result in zip(checked[-1]["tool_calls"], results, strict=True):
        checked.append({**result.to_message(), "tool_call_id": call_made["id"]})
    text = template.apply(check_messages(checked), tools=tools.to_list())
    assert "3" in text and 'numbers[0]: got "x", want an integer' in text


def test_a_tool_may_choose_its_words() -> None:
    def picky() -> None:
        raise errors.ToolError(
            "no such town: Atlantis", for_model="There is no Atlantis; ask for another town."
        )

    result = run_call(validated(picky))
    assert result.content == "There is no Atlantis; ask for another town."
    assert result.error is not None and result.error.tool == "f"
