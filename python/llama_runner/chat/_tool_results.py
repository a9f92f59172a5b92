"""``ToolResult``: what a tool gave back, written for a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from llama_runner.chat._problems import first_line
from llama_runner.chat._results_json import Unwritable, clean, cut, write
from llama_runner.errors import ToolError, ToolResultError

__all__ = ["MAX_RESULT_CHARS", "ToolResult"]

MAX_RESULT_CHARS = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of one call, good or bad."""

    call_id: str
    name: str
    content: str
    """What the model is told."""
    value: Any = None
    """What the tool returned; None where it did not."""
    error: ToolError | None = None
    seconds: float = 0.0
    truncated: bool = False
    """Whether ``content`` was cut."""

    @property
    def ok(self) -> bool:
        return self.error is None

    @classmethod
    def from_error(cls, error: ToolError, call_id: str, name: str = "", seconds: float = 0.0) -> ToolResult:
        """The result of a call that came to nothing, a refused one too."""
        return cls(call_id, name or error.tool, clean(error.for_model), None, error, seconds)

    @classmethod
    def from_value(
        cls, value: Any, call_id: str, name: str, seconds: float = 0.0, max_chars: int = MAX_RESULT_CHARS
    ) -> ToolResult:
        """The result of a tool that returned ``value``; with a ToolResultError where that cannot be written."""
        try:
            content, truncated = cut(write(value), max_chars)
        except Unwritable as problem:
            error = ToolResultError(f"{name} returned {problem}", name)
        except Exception as problem:  # of the value's own methods
            error = ToolResultError(
                f"{name} returned a {type(value).__name__} that cannot be written: {first_line(problem)}",
                name,
            )
        else:
            return cls(call_id, name, clean(content), value, None, seconds, truncated)
        return cls(call_id, name, clean(error.for_model), value, error, seconds)

    def to_message(self) -> dict[str, Any]:
        """The message that answers the call."""
        message = {"role": "tool", "tool_call_id": self.call_id, "name": self.name, "content": self.content}
        return {key: value for key, value in message.items() if key != "tool_call_id" or value}
