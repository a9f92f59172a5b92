"""``Message``, and the tree that messages form when a conversation is rolled back, edited or forked."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llama_runner.chat_types import ToolCall

__all__ = ["Branch", "Message", "Node", "branch_tree", "path_to"]


def new_id() -> str:
    """A name that no other message has."""
    return f"msg_{os.urandom(8).hex()}"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message. Immutable: what is edited is another message of the same id."""

    id: str
    data: Mapping[str, Any] = dataclasses.field(repr=False)
    """It in OpenAI's form, for reading; ``to_dict()`` is a copy to keep."""
    finish_reason: str | None = None
    """Why a reply ended; None for messages that were given."""

    @classmethod
    def new(cls, data: Mapping[str, Any], finish_reason: str | None = None) -> Message:
        return cls(new_id(), data, finish_reason)

    @property
    def role(self) -> str:
        return str(self.data["role"])

    @property
    def content(self) -> str:
        """Its text; that of all its parts where it has several."""
        content = self.data.get("content")
        if isinstance(content, str):
            return content
        return "".join(str(part.get("text", "")) for part in content or ())

    @property
    def reasoning_content(self) -> str:
        return str(self.data.get("reasoning_content") or "")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            ToolCall(call["function"]["name"], call["function"]["arguments"], call.get("id", ""))
            for call in self.data.get("tool_calls") or ()
        )

    @property
    def tool_call_id(self) -> str:
        """Of a tool's message: which call it answers."""
        return str(self.data.get("tool_call_id") or "")

    @property
    def complete(self) -> bool:
        """False for a reply that was cut off: by its limit, by a timeout, or because it was cancelled."""
        return self.finish_reason not in ("length", "timeout", "cancelled")

    def to_dict(self) -> dict[str, Any]:
        """A copy in OpenAI's form."""
        return copy.deepcopy(dict(self.data))

    def __repr__(self) -> str:
        text = self.content if len(self.content) <= 50 else self.content[:47] + "..."
        calls = "".join(f" {call.name}({call.arguments:.40})" for call in self.tool_calls)
        return f"<Message {self.id} {self.role} {text!r}{calls}>"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A message at its place in the tree: after its parent."""

    message: Message
    parent: Node | None
    depth: int

    @classmethod
    def after(cls, parent: Node | None, message: Message) -> Node:
        return cls(message, parent, 1 if parent is None else parent.depth + 1)


def path_to(node: Node | None) -> tuple[Node, ...]:
    """The nodes from the first message to ``node``."""
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return tuple(reversed(found))


def is_above(node: Node | None, other: Node | None) -> bool:
    """Whether ``node`` is ``other``, or stands above it; None, the beginning, stands above all."""
    if node is None:
        return True
    while other is not None and other.depth > node.depth:
        other = other.parent
    return node is other


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A part of the tree: a message (None at the root), and what follows it, in the order in which it came up."""

    message: Message | None
    children: tuple[Branch, ...]
    current: bool
    """Whether the conversation as it is now goes through here."""
    node: Node | None = dataclasses.field(repr=False)
    tree: str = dataclasses.field(repr=False, default="")
    """Names the sessions whose branch it is: one, and its forks."""

    @property
    def tips(self) -> tuple[Branch, ...]:
        """The ends of the conversations that go through here."""
        found: list[Branch] = []
        stack: list[Branch] = [self]
        while stack:
            here = stack.pop()
            if here.children:
                stack.extend(reversed(here.children))
            else:
                found.append(here)
        return tuple(found)

    def messages(self) -> tuple[Message, ...]:
        """The conversation from its first message to here."""
        return tuple(node.message for node in path_to(self.node))

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.children)

    def __str__(self) -> str:
        lines: list[str] = []
        stack: list[tuple[Branch, int]] = [(child, 0) for child in reversed(self.children)]
        if self.message is not None:
            stack = [(self, 0)]
        while stack:
            here, depth = stack.pop()
            assert here.message is not None
            text = " ".join(here.message.content.split())
            mark = "*" if here.current else " "
            lines.append(f"{mark} {'  ' * depth}{here.message.role}: {text[:60]}")
            deeper = depth + (len(here.children) > 1)
            stack.extend((child, deeper) for child in reversed(here.children))
        return "\n".join(lines)


def branch_tree(tips: Iterable[Node | None], head: Node | None, tree: str = "") -> Branch:
    """The tree of all conversations that end in ``tips`` or in ``head``."""
    children: dict[int | None, list[Node]] = {None: []}
    seen: dict[int, Node] = {}
    for tip in [*tips, head]:
        for node in path_to(tip):
            if id(node) not in seen:
                seen[id(node)] = node
                children.setdefault(None if node.parent is None else id(node.parent), []).append(node)
    current = {id(node) for node in path_to(head)}
    made: dict[int, Branch] = {}
    for node in sorted(seen.values(), key=lambda node: -node.depth):
        below = tuple(made[id(child)] for child in children.get(id(node), ()))
        made[id(node)] = Branch(node.message, below, id(node) in current, node, tree)
    return Branch(None, tuple(made[id(node)] for node in children[None]), True, None, tree)
