"""The shape of a conversation: checked messages, turns, and calls with their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["Message", "append_text", "call_ids", "check_history", "digest", "groups", "text_of", "turns"]

Message = dict[str, Any]
ROLES = ("user", "assistant", "tool")


def check_history(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """``messages`` as dicts of their own. Raises for what is no message, and for a result without its call."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ArgumentTypeError(f"history is a list of messages, not {type(messages).__name__}")
    checked: list[Message] = []
    calls: list[Any] | None = None  # of the assistant's message whose results may follow
    for i, message in enumerate(messages):
        where = f"history[{i}]"
        if not isinstance(message, Mapping):
            raise ArgumentTypeError(f"{where} is a dict with role and content, not {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            raise InvalidArgumentError(f"{where} has role {role!r}: give that text to ContextBuilder.system")
        if role not in ROLES:
            raise InvalidArgumentError(
                f"{where} has role {role!r}: it is one of {', '.join(map(repr, ROLES))}"
            )
        if content is not None and not isinstance(content, (str, list)):
            raise ArgumentTypeError(
                f"{where}: content is a str or a list of parts, not {type(content).__name__}"
            )
        if role == "tool":
            if calls is None:
                raise InvalidArgumentError(
                    f"{where} is a tool's result, and no message with its call is before it"
                )
            check_call(where, message.get("tool_call_id"), calls)
        else:
            found = message.get("tool_calls") if role == "assistant" else None
            if found is not None and not isinstance(found, (list, tuple)):
                raise ArgumentTypeError(f"{where}: tool_calls is a list, not {type(found).__name__}")
            calls = list(found) if found else None
        checked.append(dict(message))
    return checked


def check_call(where: str, call_id: object, calls: Sequence[Any]) -> None:
    """Whether one of ``calls`` has that id, as far as they have ids."""
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
    if call_id and any(ids) and call_id not in ids:
        raise InvalidArgumentError(
            f"{where} answers the call {call_id!r}: the message before it calls {', '.join(map(repr, ids))}"
        )


def call_ids(messages: Sequence[Message]) -> list[str]:
    """The ids of the calls in the last group of ``messages`` that have no result yet."""
    if not messages:
        return []
    last = groups(messages, range(len(messages)))[-1]
    calls = messages[last[0]].get("tool_calls") or []
    answered = {messages[i].get("tool_call_id") for i in last[1:]}
    ids = [str(call.get("id")) for call in calls if isinstance(call, Mapping) and call.get("id")]
    return [call_id for call_id in ids if call_id not in answered]


def turns(messages: Sequence[Message]) -> list[range]:
    """The conversation's turns: each begins with a user message; the first may begin with another."""
    if not messages:
        return []
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(messages)], strict=True)]


def groups(messages: Sequence[Message], turn: range) -> list[range]:
    """What of a turn stays or goes together: a call with its results, and any other message alone."""
    starts = [i for i in turn if messages[i]["role"] != "tool" or i == turn.start]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], turn.stop], strict=True)]


def digest(message: Message) -> bytes:
    """Equal for equal messages. Raises ArgumentTypeError for what is no JSON."""
    try:
        text = json.dumps(message, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArgumentTypeError(f"messages are JSON values: {problem}") from None
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def text_of(message: Message) -> str:
    """All the text of a message, calls included."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    calls = message.get("tool_calls")
    return (content or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")


def append_text(message: Message, text: str) -> Message:
    """``message`` with ``text`` as its last paragraph."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": text}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}
