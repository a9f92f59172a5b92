"""Tools of MCP servers: their descriptions as a ``ToolSet``, and their results as text. The client is the caller's."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from llama_runner.chat._results_json import write
from llama_runner.chat._signatures import is_coroutine_function
from llama_runner.chat._tool import Tool
from llama_runner.chat._tool_set import ToolSet
from llama_runner.errors import ArgumentTypeError, ToolError

__all__ = ["mcp_text", "mcp_tools"]

CallTool = Callable[[str, dict[str, Any]], Any]


def mcp_tools(
    descriptions: Iterable[Any], call_tool: CallTool, *, prefix: str = "", timeout: float | None = None
) -> ToolSet:
    """The tools that a server lists, each run by ``call_tool(name, arguments)``, a function or a coroutine function.

    ``descriptions`` is what ``tools/list`` gives, as dicts or as the objects of an MCP library; ``prefix`` goes before
    the names that the model sees, so that two servers can have tools of one name. ``call_tool`` gives what
    ``tools/call`` does, which becomes text by :func:`mcp_text`; ``isError`` is an error of the tool. Raises as
    ``Tool.from_mcp``.
    """
    if not callable(call_tool):
        raise ArgumentTypeError(
            f"call_tool={call_tool!r}: it is a function that takes a tool's name and its arguments"
        )
    return ToolSet([_tool(_plain(item), call_tool, prefix, timeout) for item in descriptions])


def mcp_text(result: Any) -> str:
    """The text of an MCP result: of its text parts and text resources, of other parts what they are.

    Where there is no content, that of ``structuredContent`` as JSON. Raises ToolError where the result is an error.
    """
    result = _plain(result)
    if isinstance(result, str):
        return result
    if not isinstance(result, Mapping):
        raise ToolError(f"an MCP result is a dict with content, not {type(result).__name__}")
    parts = [_part(_plain(part)) for part in result.get("content") or ()]
    structured = result.get("structuredContent")
    text = "\n".join(parts) if parts or structured is None else write(structured)
    if result.get("isError"):
        text = text or "it failed, and the server did not say why"
        raise ToolError(text, for_model=f"Error: {text}")
    return text


def _tool(description: Any, call_tool: CallTool, prefix: str, timeout: float | None) -> Tool:
    if not isinstance(description, Mapping):
        raise ArgumentTypeError(f"an MCP tool's description is a dict, not {type(description).__name__}")
    name = description.get("name")
    shown = {**description, "name": f"{prefix}{name}"} if isinstance(name, str) else description
    return Tool.from_mcp(shown, _caller(str(name), call_tool), timeout=timeout)


def _caller(name: str, call_tool: CallTool) -> Callable[..., Any]:
    async def finished(result: Awaitable[Any]) -> str:
        return mcp_text(await result)

    def call(**arguments: Any) -> Any:
        result = call_tool(name, arguments)
        return finished(result) if inspect.isawaitable(result) else mcp_text(result)

    async def call_async(**arguments: Any) -> str:
        return mcp_text(await call_tool(name, arguments))

    return call_async if is_coroutine_function(call_tool) else call


def _plain(value: Any) -> Any:
    """An MCP library's object as the dict that it stands for."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", by_alias=True, exclude_none=True) if callable(dump) else value


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return str(part.get("text", ""))
    if kind == "resource" and isinstance(part.get("resource"), Mapping):
        resource = part["resource"]
        if isinstance(resource.get("text"), str):
            return str(resource["text"])
        return _left_out("resource", resource, resource.get("blob"))
    if kind == "resource_link":
        return f"[resource {part.get('uri')}]"
    if kind in ("image", "audio"):
        return _left_out(kind, part, part.get("data"))
    raise ToolError(f"an MCP result has a part of the type {kind!r}, which is not known")


def _left_out(what: str, part: Mapping[str, Any], data: Any) -> str:
    """What is said of a part that is no text; base64 has 4 characters for 3 bytes."""
    size = f", {len(data) * 3 // 4} bytes" if isinstance(data, str) else ""
    kind = part.get("mimeType") or part.get("uri") or "of no type"
    return f"[{what} {kind}{size}, left out]"
