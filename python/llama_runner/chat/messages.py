"""Conversations as lists of messages in OpenAI's form: checked, and brought into one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llama_runner._check import check_text
from llama_runner.chat._json import compact, parse_object, read_object
from llama_runner.chat._results_json import clean
from llama_runner.chat._tool_results import ToolResult
from llama_runner.chat_types import ChatMessage, ToolCall
from llama_runner.errors import LlamaRunnerError, MessageError

__all__ = ["check_messages", "readable_arguments"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
# what a message may have, and of what type; what templates look at is kept
_TEXTS = ("name", "reasoning_content", "thinking", "tool_plan", "tool_name", "tool_call_id")
_FLAGS = ("prefix",)
_KEYS = ("role", "content", *_TEXTS, *_FLAGS, "tool_calls")
_ASSISTANT = frozenset({"reasoning_content", "thinking", "tool_plan", "prefix", "tool_calls"})
_TOOL = frozenset({"tool_call_id", "tool_name"})
# OpenAI's answers have these, with nothing in them, when they are put back into a conversation
_EMPTY = frozenset({"annotations", "audio", "function_call", "refusal"})


def check_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """``messages`` as new dicts in OpenAI's form; what was given is left as it is.

    Taken are dicts, a ``ChatMessage`` and a ``ToolResult``. Contents are text or lists of text parts, and no content at
    all is empty text. Tool calls have ids that are theirs alone in the conversation (an empty or repeated one is made
    ``call00001`` and so on) and arguments that are the JSON text of an object; results of tools follow the message that
    called, have the ``name`` of their tool, and their ``tool_call_id`` may be left out where one call is open. A call
    may be open only at the end. The messages of a longer conversation are the same, as far as they are the same.

    Raises MessageError with the ``index`` of the message at fault; nothing of the list is used then.
    """
    conversation = _Conversation()
    for index, message in enumerate(listed(messages)):
        conversation.add(index, message)
    return conversation.messages


def listed(messages: Iterable[Any]) -> list[Any]:
    """``messages`` as a list, whatever they are; MessageError for what is no list of anything."""
    refusal = MessageError(f"messages is a list of dicts, not {type(messages).__name__}")
    if isinstance(messages, (str, bytes, Mapping)):
        raise refusal
    try:
        each = iter(messages)
    except TypeError:
        raise refusal from None
    return list(each)


def readable_arguments(text: str) -> str:
    """``text`` where it is the JSON text of an object, and what it was understood as by ``ToolSet.validate`` where not.

    What cannot be understood is put into an object, ``{"arguments": text}``: a conversation holds calls alone whose
    arguments can be read, since many templates read them, and the model is to see what it wrote.
    """
    try:
        check_text("arguments", text)
        parse_object(text)
        return text
    except ValueError:
        pass
    try:
        return compact(read_object(text))
    except ValueError:
        return compact({"arguments": clean(text)})


class _Conversation:
    """The messages so far, and the calls of the last assistant's message that have no result yet."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.made = 0
        self.open: list[tuple[str, str, str]] = []
        """Of each open call: the id that it came with, the id that it has, its tool."""
        self.index = 0
        self.role = ""

    def add(self, index: int, message: Any) -> None:
        self.index, self.role = index, ""
        given = self.as_mapping(message)
        self.role = role = self.checked_role(given)
        if self.open and role != "tool":
            raise self.problem(
                f"the calls {self.listed()} have no result yet: their tool messages come first"
            )
        checked: dict[str, Any] = {"role": role, "content": self.content(given)}
        for key, value in given.items():
            if key not in ("role", "content", "tool_calls"):
                self.put(checked, key, value)
        if role == "tool":
            self.answer(checked)
        if given.get("tool_calls"):
            checked["tool_calls"] = self.calls(given["tool_calls"])
        elif role == "assistant" and given.get("content") is None and not _ASSISTANT & checked.keys():
            raise self.problem("it has neither content nor tool_calls")
        self.messages.append(checked)

    def problem(self, what: str) -> MessageError:
        where = f"message {self.index}" + (f" ({self.role})" if self.role else "")
        return MessageError(f"{where}: {what}", self.index)

    def as_mapping(self, message: Any) -> Mapping[str, Any]:
        if isinstance(message, ChatMessage):
            return message.to_dict()
        if isinstance(message, ToolResult):
            return message.to_message()
        if isinstance(message, Mapping):
            return message
        raise self.problem(
            f"it is a dict with role and content, not {type(message).__name__} {_cut(message)}".rstrip()
        )

    def checked_role(self, given: Mapping[str, Any]) -> str:
        role = given.get("role")
        if isinstance(role, str) and role in _ROLES:
            return str(role)
        if role is None:
            raise self.problem("it has no role")
        hint = "; results of calls have the role 'tool'" if role == "function" else ""
        raise self.problem(f"the role {_cut(role)} is none of {', '.join(_ROLES)}{hint}")

    def text(self, what: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.problem(f"{what} is a str, not {type(value).__name__}")
        try:
            check_text(what, value)
        except LlamaRunnerError as error:
            raise self.problem(str(error)) from None
        return str(value)

    # --- content

    def content(self, given: Mapping[str, Any]) -> str | list[dict[str, str]]:
        content = given.get("content")
        if content is None:
            if self.role == "assistant":
                return ""
            raise self.problem("it has no content")
        if isinstance(content, str):
            return self.text("content", content)
        if isinstance(content, (list, tuple)):
            return [self.part(place, part) for place, part in enumerate(content)]
        raise self.problem(f"content is a str or a list of text parts, not {type(content).__name__}")

    def part(self, place: int, part: Any) -> dict[str, str]:
        where = f"content[{place}]"
        if isinstance(part, str):
            return {"type": "text", "text": self.text(where, part)}
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise self.problem(f'{where} is a part such as {{"type": "text", "text": …}}, not {_cut(part)}')
        if part["type"] != "text":
            raise self.problem(f"{where} is a part of the type {_cut(part['type'])}: only text is supported")
        for key in part:
            if key not in ("type", "text"):
                raise self.problem(f"{where} has an unknown key {_cut(key)}: a text part has type and text")
        return {"type": "text", "text": self.text(f"{where}.text", part.get("text"))}

    # --- other keys

    def put(self, checked: dict[str, Any], key: Any, value: Any) -> None:
        """One more key of the message; None says as much as its absence."""
        if key in _EMPTY and not value:
            return
        if not isinstance(key, str) or key not in _KEYS:
            raise self.problem(f"it has an unknown key {_cut(key)}: it takes {', '.join(_KEYS)}")
        if value is None:
            return
        if (key in _ASSISTANT and self.role != "assistant") or (key in _TOOL and self.role != "tool"):
            owner = "assistant" if key in _ASSISTANT else "tool"
            raise self.problem(f"{key} is for messages of the role {owner}")
        if key in _FLAGS:
            if not isinstance(value, bool):
                raise self.problem(f"{key} is True or False, not {type(value).__name__}")
            checked[key] = value
        else:
            checked[key] = self.text(key, value)

    # --- calls and their results

    def calls(self, given: Any) -> list[dict[str, Any]]:
        if self.role != "assistant":
            raise self.problem("tool_calls is for messages of the role assistant")
        if not isinstance(given, (list, tuple)):
            raise self.problem(f"tool_calls is a list, not {type(given).__name__}")
        self.open = []
        return [self.call(f"tool_calls[{place}]", item) for place, item in enumerate(given)]

    def call(self, where: str, given: Any) -> dict[str, Any]:
        if isinstance(given, ToolCall):
            given = given.to_dict()
        if not isinstance(given, Mapping):
            raise self.problem(f"{where} is a dict, not {type(given).__name__}")
        function = given.get("function", given)
        if not isinstance(function, Mapping):
            raise self.problem(f"{where}.function is a dict, not {type(function).__name__}")
        if given.get("type", "function") != "function":
            raise self.problem(f"{where} is of the type {_cut(given['type'])}: only 'function' is known")
        known = ("id", "type", "index", "function") if function is not given else ("id", "type", "index")
        for key in (*given, *(function if function is not given else ())):
            if key not in (*known, "name", "arguments"):
                raise self.problem(f"{where} has an unknown key {_cut(key)}: it takes id, type and function")
        name = self.text(f"{where}: the name", function.get("name"))
        if not name:
            raise self.problem(f"{where} has no name")
        old = self.text(f"{where}.id", given.get("id") or "")
        new = self.own_id(old)
        self.open.append((old, new, name))
        arguments = self.arguments(where, function.get("arguments"))
        return {"id": new, "type": "function", "function": {"name": name, "arguments": arguments}}

    def own_id(self, old: str) -> str:
        """The id, or one of nine letters and digits, as the strictest templates want it."""
        new = old
        while not new or new in self.ids:
            self.made += 1
            new = f"call{self.made:05d}"
        self.ids.add(new)
        return new

    def arguments(self, where: str, given: Any) -> str:
        try:
            text = "{}" if given is None else given if isinstance(given, str) else _dumped(given)
            check_text("the text", text)
            if not text.strip():
                return "{}"
            parse_object(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.problem(
                f"{where}: the arguments are the JSON text of an object: {error}; "
                "readable_arguments() wraps what is none"
            ) from None
        return text

    def answer(self, checked: dict[str, Any]) -> None:
        """The call that this result is of; it is not open any more."""
        called = checked.get("tool_call_id")
        if not self.open:
            raise self.problem(
                f"no call is open that tool_call_id={called!r} could be of: "
                "a result follows the assistant's message that called, once for each call"
            )
        if not called:
            if len(self.open) > 1:
                raise self.problem(f"it has no tool_call_id, and several calls are open: {self.listed()}")
            found = self.open[0]
        else:
            # as it was given, before as it is here; an id that was given twice stands for its calls in their order
            by_both = [item for place in (0, 1) for item in self.open if item[place] == called]
            matching = next(iter(by_both), None)
            if matching is None:
                raise self.problem(f"no call has the tool_call_id {_cut(called)}; open are {self.listed()}")
            found = matching
        _, new, name = found
        if checked.get("name", name) != name:
            raise self.problem(f"the call {new} is of {name}, not of {_cut(checked['name'])}")
        self.open.remove(found)
        checked["tool_call_id"], checked["name"] = new, name

    def listed(self) -> str:
        return ", ".join(f"{new} ({name})" for _, new, name in self.open)


def _dumped(value: Any) -> str:
    if not isinstance(value, Mapping):
        raise ValueError(f"{type(value).__name__} is no dict")
    return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)


def _cut(value: Any) -> str:
    """``repr`` of a value for a message, not of its whole length."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
