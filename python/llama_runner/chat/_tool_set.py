"""``ToolSet``: the tools of one conversation: their names, their order, and the checking of calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from llama_runner.chat._tool import Tool
from llama_runner.chat_types import ToolCall

__all__ = ["ToolChoice", "ToolSet", "ValidatedCall"]


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
    arguments: dict[str, Any]
    """By name, in the types of the function's annotations; as JSON has them for a tool made of a schema."""


class ToolSet(Mapping[str, Tool]):
    """Tools by name, in the order in which they were given; immutable."""

    def __init__(self, tools: Iterable[Tool | Callable[..., Any] | Mapping[str, Any]] = ()):
        raise NotImplementedError

    def __getitem__(self, name: str) -> Tool:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def to_list(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, always in the same order and words: the cached prefix depends on it."""
        raise NotImplementedError

    def choice(self, tool_choice: str | Mapping[str, Any] | ToolChoice | None) -> ToolChoice:
        """``"auto"``, ``"none"``, ``"required"``, a tool's name, or OpenAI's dict, as a :class:`ToolChoice`."""
        raise NotImplementedError

    def chosen(self, choice: ToolChoice) -> ToolSet:
        """The tools that ``choice`` leaves: the named one, or all of them."""
        raise NotImplementedError

    def validate(self, call: ToolCall) -> ValidatedCall:
        """``call`` with its arguments checked and converted. Raises ToolArgumentError, with ``for_model``."""
        raise NotImplementedError
