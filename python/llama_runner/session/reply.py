"""``Reply`` and ``ReplyChunk``: what a turn of a conversation gives back."""

from __future__ import annotations

import dataclasses
from typing import Any

from llama_runner.chat_types import ChatDelta, ToolCall
from llama_runner.errors import ResponseParseError
from llama_runner.receipts import Receipt
from llama_runner.results import Chunk, Completion
from llama_runner.session.message import Message

__all__ = ["Reply", "ReplyChunk"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reply(Completion):
    """A ``Completion`` that is a message of a session: ``text`` is the message's content alone."""

    message: Message = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]
    raw_text: str = ""
    """All of it in the model's own syntax, reasoning and tool calls included, and what it was made to begin with."""
    parse_error: ResponseParseError | None = None
    """Why the text could not be taken apart; the message's content is then ``raw_text``."""
    receipt: Receipt | None = None
    """What was dropped of the conversation to make room for it."""

    @property
    def message_id(self) -> str:
        return self.message.id

    @property
    def reasoning(self) -> str:
        """What the model thought first, where its template has a place for that."""
        return self.message.reasoning_content

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for."""
        return self.message.tool_calls

    def __repr__(self) -> str:
        said = Completion.__repr__(self).replace("<Completion", "<Reply", 1)
        calls = ", ".join(f"{call.name}({call.arguments})" for call in self.tool_calls)
        return f"{said[:-1]}, calls {calls}>" if calls else said

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _rebuild, (values,)

    def to_dict(self) -> dict[str, Any]:
        return {**Completion.to_dict(self), "message_id": self.message_id, "message": self.message.to_dict()}


def _rebuild(values: dict[str, Any]) -> Reply:
    return Reply(**values)


@dataclasses.dataclass(frozen=True, slots=True)
class ReplyChunk(Chunk):
    """One piece of a reply. ``text`` is what it adds to the content; ``deltas`` tell of all that it adds."""

    deltas: tuple[ChatDelta, ...] = ()

    @property
    def reasoning(self) -> str:
        """What it adds to the reasoning."""
        return "".join(delta.reasoning_content for delta in self.deltas)

    def to_dict(self) -> dict[str, Any]:
        return {**Chunk.to_dict(self), "deltas": [dataclasses.asdict(delta) for delta in self.deltas]}
