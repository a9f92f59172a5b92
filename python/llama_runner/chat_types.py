"""What chat templates give and what models answer: prompts, messages, tool calls, and the deltas of a stream."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llama_runner.core import ChatParser

__all__ = ["ChatDelta", "ChatMessage", "ChatPrompt", "GrammarTrigger", "MessageDelimiter", "ToolCall"]


@dataclasses.dataclass(frozen=True, slots=True)
class GrammarTrigger:
    """What switches a lazy grammar on: a word, a token, or a regular expression (``pattern_full``: of all the text)."""

    type: Literal["word", "token", "pattern", "pattern_full"]
    value: str
    token: int | None = None
    """The token id, where ``type`` is ``token``."""

    @property
    def pattern(self) -> str | None:
        """The regular expression that llama.cpp's lazy grammar takes for it; None for a token."""
        if self.type == "token":
            return None
        if self.type == "word":
            return re.sub(r"([.^$|()*+?\[\]{}\\])", r"\\\1", self.value)
        if self.type == "pattern":
            return self.value
        start = "" if self.value.startswith("^") else "^"
        return start + self.value + ("" if self.value.endswith("$") else "$")


@dataclasses.dataclass(frozen=True, slots=True)
class MessageDelimiter:
    """The text that begins a message of ``role`` in the prompt."""

    role: str
    delimiter: str


@dataclasses.dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation, and what is to be known for generating the answer and reading it."""

    prompt: str
    """Text to tokenize with ``parse_special=True``."""
    grammar: str | None
    """GBNF that keeps the answer to the tools or to the schema; None where nothing binds it."""
    grammar_lazy: bool
    """Whether the grammar holds only from a trigger on."""
    grammar_triggers: tuple[GrammarTrigger, ...]
    preserved_tokens: tuple[str, ...]
    """Special tokens that the parser must see as text in the answer: detokenize with ``special=True``."""
    additional_stops: tuple[str, ...]
    """Strings at which the answer ends, besides the model's end tokens."""
    format: str
    """llama.cpp's name for the form of the answer."""
    generation_prompt: str
    """The end of ``prompt`` with which the answer begins; an eager grammar wants it first."""
    supports_thinking: bool
    thinking_start_tag: str
    thinking_end_tags: tuple[str, ...]
    message_delimiters: tuple[MessageDelimiter, ...]
    """Where messages begin in ``prompt``, as far as llama.cpp knows it."""
    parser_description: str = dataclasses.field(repr=False)
    """For ``ChatParser``, and for nothing else: its form is llama.cpp's own and changes."""

    def parser(self) -> ChatParser:
        """A ``ChatParser`` for one answer to this prompt."""
        from llama_runner.core import ChatParser

        return ChatParser(self)

    @classmethod
    def from_description(cls, found: dict[str, Any]) -> ChatPrompt:
        """From what the native layer says."""
        return cls(
            prompt=found["prompt"],
            grammar=found["grammar"] or None,
            grammar_lazy=found["grammar_lazy"],
            grammar_triggers=tuple(
                GrammarTrigger(t["type"], t["value"], t["token"] if t["type"] == "token" else None)
                for t in found["grammar_triggers"]
            ),
            preserved_tokens=tuple(found["preserved_tokens"]),
            additional_stops=tuple(found["additional_stops"]),
            format=found["format"],
            generation_prompt=found["generation_prompt"],
            supports_thinking=found["supports_thinking"],
            thinking_start_tag=found["thinking_start_tag"],
            thinking_end_tags=tuple(found["thinking_end_tags"]),
            message_delimiters=tuple(
                MessageDelimiter(d["role"], d["delimiter"]) for d in found["message_delimiters"]
            ),
            parser_description=found["parser"],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asks for. ``arguments`` is JSON text as the model wrote it, and may be none."""

    name: str
    arguments: str
    id: str = ""
    """What the model called it; empty where its format has no ids."""

    def to_dict(self) -> dict[str, Any]:
        """The call in OpenAI's form, without an id where there is none."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {**call, "id": self.id} if self.id else call


@dataclasses.dataclass(frozen=True, slots=True)
class ChatMessage:
    """A model's answer, taken apart."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The message in OpenAI's form, ready to be a message of the next prompt."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message

    @classmethod
    def from_description(cls, found: dict[str, Any]) -> ChatMessage:
        """From what the native layer says."""
        return cls(
            found["content"],
            found["reasoning_content"],
            tuple(ToolCall(**call) for call in found["tool_calls"]),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ChatDelta:
    """What one more piece of an answer added: content, reasoning, or to the tool call number ``index``.

    Text is to be appended. A name comes whole, with the first delta of its call; an id as soon as it is known.
    """

    content: str = ""
    reasoning_content: str = ""
    index: int | None = None
    name: str = ""
    arguments: str = ""
    id: str = ""

    def add_to(self, message: ChatMessage) -> ChatMessage:
        """``message`` with this added."""
        calls = list(message.tool_calls)
        if self.index is not None:
            calls += [ToolCall("", "")] * (self.index + 1 - len(calls))
            call = calls[self.index]
            calls[self.index] = ToolCall(
                self.name or call.name, call.arguments + self.arguments, self.id or call.id
            )
        return ChatMessage(
            message.content + self.content, message.reasoning_content + self.reasoning_content, tuple(calls)
        )
