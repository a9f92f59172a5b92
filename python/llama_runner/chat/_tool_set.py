"""``ToolSet``: the tools of one conversation: their names, their order, and the checking of calls."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from llama_runner.chat._json import compact, read_object, shown
from llama_runner.chat._problems import argument_error
from llama_runner.chat._schemas import example
from llama_runner.chat._tool import Tool
from llama_runner.chat_types import ToolCall
from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    ToolArgumentError,
    ToolDefinitionError,
    UnknownToolError,
)

__all__ = ["ToolChoice", "ToolSet", "ValidatedCall"]

_MODES = ("auto", "none", "required")


@dataclasses.dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may, must or must not call a tool, and which."""

    mode: Literal["auto", "none", "required"] = "auto"
    """As ``ChatTemplate.render(tool_choice=…)`` takes it."""
    name: str | None = None
    """The one tool that it must call, with ``mode`` ``"required"``: render with ``ToolSet.chosen(choice)``."""


@dataclasses.dataclass(frozen=True, slots=True)
class ValidatedCall:
    """A call whose arguments are what its tool takes."""

    call: ToolCall
    tool: Tool
    arguments: dict[str, Any] = dataclasses.field(hash=False)
    """By name, in the types of the function's annotations; as JSON has them for a tool made of a schema."""


class ToolSet(Mapping[str, Tool]):
    """Tools by name, in the order in which they were given; immutable.

    Takes Tools, functions, and dicts in OpenAI's or MCP's form. Raises ToolDefinitionError where two have one name.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any] | Mapping[str, Any]] = ()):
        self._tools: dict[str, Tool] = {}
        if isinstance(tools, ToolSet):
            tools = tools.values()
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Iterable):
            raise ArgumentTypeError(
                f"tools is a list of functions, Tools or dicts, not {type(tools).__name__}"
            )
        for item in tools:
            made = Tool.of(item)
            if made.name in self._tools:
                raise ToolDefinitionError(f"two tools are named {made.name!r}: give one of them another name")
            self._tools[made.name] = made

    def __getitem__(self, name: str) -> Tool:
        found = self._tools.get(name)
        if found is None:
            raise UnknownToolError(self.no_such_tool(name))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"ToolSet({', '.join(self._tools)})"

    def no_such_tool(self, name: object) -> str:
        """What is said of a name that no tool has."""
        if not self._tools:
            return f"there is no tool {shown(str(name))}: there are no tools"
        near = difflib.get_close_matches(str(name)[:64], self._tools, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no tool {shown(str(name))}; there is {', '.join(self._tools)}{hint}"

    def to_list(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, always in the same order and words: the cached prefix depends on it."""
        return [item.to_dict() for item in self._tools.values()]

    def choice(self, tool_choice: str | Mapping[str, Any] | ToolChoice | None) -> ToolChoice:
        """``"auto"``, ``"none"``, ``"required"``, a tool's name, or OpenAI's dict, as a :class:`ToolChoice`.

        None is ``"auto"``. Raises UnknownToolError, InvalidArgumentError, ArgumentTypeError.
        """
        if tool_choice is None:
            return ToolChoice()
        if isinstance(tool_choice, ToolChoice):
            found = tool_choice
        elif isinstance(tool_choice, str):
            found = ToolChoice(tool_choice) if tool_choice in _MODES else ToolChoice("required", tool_choice)  # type: ignore[arg-type]
        elif isinstance(tool_choice, Mapping):
            function = tool_choice.get("function", tool_choice)
            name = function.get("name") if isinstance(function, Mapping) else None
            if tool_choice.get("type", "function") != "function" or not isinstance(name, str):
                raise InvalidArgumentError(
                    f"tool_choice={dict(tool_choice)!r}: "
                    'it is {"type": "function", "function": {"name": …}}, "auto", "none", "required" or a name'
                )
            found = ToolChoice("required", name)
        else:
            raise ArgumentTypeError(
                f"tool_choice={tool_choice!r}: it is a str or a dict, not {type(tool_choice).__name__}"
            )
        if found.name is not None and found.name not in self._tools:
            raise UnknownToolError(f"tool_choice: {self.no_such_tool(found.name)}")
        if found.mode == "required" and not self._tools:
            raise InvalidArgumentError("tool_choice='required': there are no tools to call")
        return found

    def chosen(self, choice: ToolChoice) -> ToolSet:
        """The tools that ``choice`` leaves: the named one, or all of them."""
        return self if choice.name is None else ToolSet([self[choice.name]])

    def validate(self, call: ToolCall) -> ValidatedCall:
        """``call`` with its arguments checked and converted.

        Raises ToolArgumentError for a tool that there is not and for wrong arguments; its ``for_model`` says what to
        write instead.
        """
        found = self._tools.get(call.name)
        if found is None:
            raise ToolArgumentError(self.no_such_tool(call.name), call.name)
        schema = found.parameters
        try:
            arguments = read_object(call.arguments)
        except ValueError as problem:
            raise ToolArgumentError(
                f"{found.name}: the arguments are no JSON object: {problem}",
                found.name,
                f"Error: {found.name} was not run, its arguments are no JSON object: {problem}\n"
                f"Call {found.name} again with arguments such as {compact(example(schema, schema))}",
            ) from None
        checked, problems = found.signature.check(arguments)
        if problems:
            raise argument_error(found.name, schema, arguments, problems)
        return ValidatedCall(call, found, checked)
