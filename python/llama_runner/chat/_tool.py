"""``Tool``: what a model may call, made of a function, of a JSON schema, or of an MCP server's description."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, overload

from llama_runner._check import check_float, check_text
from llama_runner.chat._problems import Problem
from llama_runner.chat._schema_check import SchemaSignature, checked_parameters
from llama_runner.chat._schemas import offered
from llama_runner.chat._signatures import (
    FunctionSignature,
    is_coroutine_function,
    is_generator_function,
    named,
)
from llama_runner.chat._tool_context import ToolContext
from llama_runner.errors import ArgumentTypeError, ToolDefinitionError, UsageError

__all__ = ["MAX_TIMEOUT", "Tool", "tool"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_TIMEOUT = 30 * 86400.0  # what every system can wait for at once
_KEYS = ("name", "description", "parameters", "strict")
_MCP_KEYS = (
    "name",
    "title",
    "description",
    "inputSchema",
    "outputSchema",
    "annotations",
    "icons",
    "execution",
    "_meta",
)


class Signature(Protocol):
    """How JSON arguments are checked, and become those of the call."""

    def check(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]: ...

    def bind(
        self, arguments: Mapping[str, Any], context: ToolContext
    ) -> tuple[list[Any], dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its name, what a model is told of it, and what is called.

    Made by :meth:`from_function`, :meth:`from_schema`, :meth:`from_mcp` or ``@tool``. Calling it calls the function.
    Raises ToolDefinitionError, which names the tool and what is wrong with it, and ArgumentTypeError.
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
    signature: Signature = dataclasses.field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    """How arguments are checked; made of ``parameters`` where it is not given."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        check_name(self.name)
        if not isinstance(self.description, str):
            raise ArgumentTypeError(
                f"the description of the tool {self.name} is a str, not {type(self.description).__name__}"
            )
        try:
            check_text("its description", self.description)
        except UsageError as error:
            raise ToolDefinitionError(f"the tool {self.name}: {error}") from None
        put(self, "description", inspect.cleandoc(self.description))
        if self.call is not None and not callable(self.call):
            raise ArgumentTypeError(
                f"the tool {self.name}: call={self.call!r} is a function, or None for a description alone"
            )
        if self.call is not None and is_generator_function(self.call):
            raise ToolDefinitionError(
                f"the tool {self.name} is a generator function: a model gets one result; return a list"
            )
        if self.timeout is not None:
            put(self, "timeout", check_float("timeout", self.timeout, 0.0, MAX_TIMEOUT))
        put(self, "is_async", self.call is not None and is_coroutine_function(self.call))
        put(self, "parameters", checked_parameters(self.name, self.parameters))
        if self.signature is None:
            put(self, "signature", SchemaSignature(self.name, self.parameters, self.call))

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
    ) -> Self:
        """A tool of a function, method, partial or other callable, also an async one.

        Its parameters become the schema, by pydantic (extra ``tools``): annotations, defaults, and descriptions from
        ``Field`` or the docstring. A parameter annotated with ``ToolContext`` is given the run's context and not shown.
        """
        name = named(function) if name is None else name
        check_name(name, function)
        signature = FunctionSignature(function, name)
        told = signature.description if description is None else description
        return cls(
            name,
            told,
            signature.schema,
            function,
            timeout,
            signature=signature,
        )

    @classmethod
    def from_schema(
        cls,
        schema: Mapping[str, Any],
        call: Callable[..., Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        """A tool of OpenAI's description: ``{"type": "function", "function": {…}}``, or what is within.

        ``call`` gets the arguments by keyword, as JSON has them, checked by jsonschema (extra ``tools``).
        """
        check_mapping(schema)
        inner = schema
        if "function" in schema or "type" in schema:
            if schema.get("type", "function") != "function":
                raise ToolDefinitionError(f"a tool of the type {schema['type']!r}: only 'function' is known")
            if "function" in schema:
                check_keys(schema, ("type", "function"))
                inner = schema["function"]
                check_mapping(inner)
            else:
                inner = {key: value for key, value in schema.items() if key != "type"}
        check_keys(inner, _KEYS)
        parameters = inner.get("parameters")
        return cls(
            inner.get("name"),  # type: ignore[arg-type]  # checked by __post_init__
            inner.get("description") or "",
            {} if parameters is None else parameters,
            call,
            timeout,
        )

    @classmethod
    def from_mcp(
        cls,
        description: Mapping[str, Any],
        call: Callable[..., Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        """A tool of an MCP server's description: ``name``, ``description``, ``inputSchema``, ``annotations``…"""
        check_mapping(description)
        check_keys(description, _MCP_KEYS)
        hints = description.get("annotations") or {}
        check_mapping(hints)
        parameters = description.get("inputSchema")
        return cls(
            description.get("name"),  # type: ignore[arg-type]  # checked by __post_init__
            description.get("description") or description.get("title") or "",
            {} if parameters is None else parameters,
            call,
            timeout,
            annotations=dict(hints),
        )

    @classmethod
    def of(cls, item: Tool | Callable[..., Any] | Mapping[str, Any]) -> Tool:
        """``item`` itself where it is a Tool, or one made of a function, OpenAI's dict or MCP's."""
        if isinstance(item, Tool):
            return item
        if isinstance(item, Mapping):
            return cls.from_mcp(item) if "inputSchema" in item else cls.from_schema(item)
        return cls.from_function(item)

    def to_dict(self) -> dict[str, Any]:
        """The tool in OpenAI's form, as ``ChatTemplate`` takes it.

        Bounds that no grammar can count to (a ``maxLength`` above 2000) are left out, and checked when a call comes.
        """
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": offered(self.parameters),
        }
        return {"type": "function", "function": function}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """What the function returns: nothing is checked, and no context given."""
        if self.call is None:
            raise ToolDefinitionError(f"the tool {self.name} is a description alone: it has nothing to call")
        return self.call(*args, **kwargs)


def check_name(name: Any, function: Any = None) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a tool's name is a str, not {name!r}")
    if not _NAME.fullmatch(name):
        hint = "; pass name=" if function is not None else ""
        raise ToolDefinitionError(
            f"{name[:100]!r} is no name for a tool: from 1 to 64 of the letters a-z and A-Z, digits, _, . and -{hint}"
        )


def check_mapping(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"a tool's description is a dict, not {type(value).__name__}")


def check_keys(description: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in description:
        if key not in known:
            raise ToolDefinitionError(
                f"the tool {str(description.get('name', ''))[:64]!r} has an unknown key {key!r}: "
                f"it takes {', '.join(known)}"
            )


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
