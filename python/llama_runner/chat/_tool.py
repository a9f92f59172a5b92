"""``Tool``: what a model may call, made of a function, of a JSON schema, or of an MCP server's description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self, overload

__all__ = ["Tool", "tool"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its name, what a model is told of it, and what is called.

    Made by :meth:`from_function`, :meth:`from_schema`, :meth:`from_mcp` or ``@tool``.
    """

    name: str
    description: str
    parameters: dict[str, Any] = dataclasses.field(hash=False)
    """JSON schema of an object with the arguments."""
    call: Callable[..., Any] | None = None
    """What runs it; None where there is a description alone, and the caller runs it in some way of its own."""
    timeout: float | None = None
    """Seconds that a call may take; None is no limit of its own."""
    is_async: bool = False
    """Whether ``call`` is a coroutine function."""
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """What an MCP server hints at: ``readOnlyHint``, ``destructiveHint`` and so on. Not shown to the model."""

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
    ) -> Self:
        raise NotImplementedError

    @classmethod
    def from_schema(
        cls,
        schema: Mapping[str, Any],
        call: Callable[..., Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        raise NotImplementedError

    @classmethod
    def from_mcp(
        cls,
        description: Mapping[str, Any],
        call: Callable[..., Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The tool in OpenAI's form, as ``ChatTemplate`` takes it."""
        raise NotImplementedError


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, timeout: float | None = None
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a :class:`Tool`: ``@tool``, or ``@tool(timeout=5)``."""

    def make(function: Callable[..., Any]) -> Tool:
        return Tool.from_function(function, name=name, description=description, timeout=timeout)

    return make if function is None else make(function)
