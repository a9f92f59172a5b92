"""Tools as they are called: every kind of function, with its context, from the prompt to the result."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat.messages import check_messages
from llama_runner.chat.tools import (
    Tool,
    ToolContext,
    ToolResult,
    ToolSet,
    arun_calls,
    run_call,
    run_calls,
    tool,
)
from llama_runner.chat_types import ToolCall
from llama_runner.core import ChatTemplate, Model
from tool_use import (
    returning,
    validated,
)

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
