"""What tools return and raise, as a model is told of it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import decimal
import enum
import gc
import io
import json
import math
import sys
import threading
import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_runner import errors
from llama_runner.chat.tools import (
    Tool,
    ToolResult,
    arun_call,
    arun_calls,
    run_call,
)
from tool_use import (
    circle,
    returning,
    validated,
)


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
    "weird": (Weird, "test_tools_results.Weird"),
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
