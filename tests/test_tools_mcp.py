"""MCP servers' tools: as they describe them, called by a client of the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, Field

from llama_runner import errors
from llama_runner.chat.mcp import mcp_text, mcp_tools
from llama_runner.chat.tools import ToolResult, ToolSet, arun_call, run_call
from llama_runner.chat_types import ToolCall

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "self": {"type": "integer"}}}
LISTED: list[dict[str, Any]] = [
    {"name": "greet", "description": "Greets.", "inputSchema": SCHEMA, "annotations": {"readOnlyHint": True}},
    {"name": "fail", "inputSchema": {"type": "object"}},
]


def answer(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "fail":
        return {"content": [{"type": "text", "text": "no greeting today"}], "isError": True}
    return {"content": [{"type": "text", "text": f"{name} {arguments}"}]}


async def answer_later(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return answer(name, arguments)


def answer_by_coroutine(name: str, arguments: dict[str, Any]) -> Any:
    return answer_later(name, arguments)


def both(tools: ToolSet, name: str, arguments: str = "{}") -> ToolResult:
    call = tools.validate(ToolCall(name, arguments, "c1"))
    first, second = run_call(call), asyncio.run(arun_call(call))
    assert (first.content, type(first.error)) == (second.content, type(second.error))
    return first


@pytest.mark.parametrize("call_tool", [answer, answer_later, answer_by_coroutine])
def test_calls_reach_the_client(call_tool: Any) -> None:
    tools = mcp_tools(LISTED, call_tool, timeout=5)
    assert list(tools) == ["greet", "fail"]
    assert tools["greet"].annotations == {"readOnlyHint": True} and tools["greet"].timeout == 5
    assert tools["greet"].is_async == (call_tool is answer_later)
    # names that a Python function could not have as keywords
    result = both(tools, "greet", '{"name": "Ada", "self": 1}')
    assert result.ok and result.content == "greet {'name': 'Ada', 'self': 1}"
    failed = both(tools, "fail")
    assert failed.content == "Error: no greeting today" and isinstance(failed.error, errors.ToolError)
    assert failed.error.tool == "fail"


def test_prefixes() -> None:
    tools = mcp_tools(LISTED, answer, prefix="a.")
    assert list(tools) == ["a.greet", "a.fail"]
    assert both(tools, "a.greet").content == "greet {}"
    assert len(ToolSet([*tools.values(), *mcp_tools(LISTED, answer, prefix="b.").values()])) == 4


def test_objects_of_a_library() -> None:
    class Listed(BaseModel):
        name: str
        title: str | None = None
        input_schema: dict[str, Any] = Field(alias="inputSchema")

    class Text(BaseModel):
        type: str = "text"
        text: str

    class Result(BaseModel):
        content: list[Text]
        is_error: bool = Field(False, alias="isError")

    tools = mcp_tools(
        [Listed(name="greet", inputSchema=SCHEMA)],
        lambda name, arguments: Result(content=[Text(text=name)], isError=False),
    )
    assert both(tools, "greet").content == "greet"


PARTS: dict[str, tuple[Any, str]] = {
    "text": ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
    "nothing": ({"content": []}, ""),
    "structured": ({"content": [], "structuredContent": {"a": 1}}, '{"a": 1}'),
    "both": ({"content": [{"type": "text", "text": "a"}], "structuredContent": {"a": 1}}, "a"),
    "image": (
        {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/png"}]},
        "[image image/png, 3 bytes, left out]",
    ),
    "resource": ({"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "a"}}]}, "a"),
    "blob": (
        {"content": [{"type": "resource", "resource": {"uri": "file:///a", "blob": "AAAA"}}]},
        "[resource file:///a, 3 bytes, left out]",
    ),
    "link": ({"content": [{"type": "resource_link", "uri": "file:///a"}]}, "[resource file:///a]"),
    "str": ("a", "a"),
}


@pytest.mark.parametrize("name", PARTS)
def test_text_of_results(name: str) -> None:
    result, text = PARTS[name]
    assert mcp_text(result) == text


@pytest.mark.parametrize("result", [3, None, {"content": [3]}, {"content": [{"type": "video"}]}], ids=str)
def test_results_that_are_none(result: Any) -> None:
    with pytest.raises(errors.ToolError, match="MCP result"):
        mcp_text(result)
    assert "MCP result" in both(mcp_tools(LISTED, lambda *_: result), "greet").content


def test_an_error_without_words() -> None:
    with pytest.raises(errors.ToolError, match="did not say why"):
        mcp_text({"isError": True})


@pytest.mark.parametrize("descriptions", [[3], [{"inputSchema": {}}], [{"name": "a/b"}], LISTED * 2], ids=str)
def test_descriptions_that_are_none(descriptions: Any) -> None:
    with pytest.raises((errors.ArgumentTypeError, errors.ToolDefinitionError)):
        mcp_tools(descriptions, answer)


def test_a_client_that_is_none() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="call_tool"):
        mcp_tools(LISTED, None)  # type: ignore[arg-type]
