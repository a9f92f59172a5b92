"""Values into text: ``{{ name }}``, ``{{ name | filter }}``, ``{{# name }}…{{/ name }}``, ``{{^ name }}…{{/ name }}``.

A text is parsed once, before any value is known, and values are put in as they are: what they hold is never read as a
tag. Nothing is looked up, called or computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_runner.errors import InvalidArgumentError

__all__ = [
    "LIST_FILTERS",
    "VALUE_FILTERS",
    "Insert",
    "Node",
    "Section",
    "inserts",
    "parse",
    "parse_tag",
    "render",
]

NAME = r"[a-z][a-z0-9_]*"
# A section's tag that has a line to itself takes the whole line with it.
_TAG = re.compile(
    r"(?P<escape>\\\{\{)"
    r"|^[ \t]*\{\{[ \t]*(?P<alone>[#^/][^{}\n]*)\}\}[ \t]*(?:\n|\Z)"
    r"|\{\{(?P<tag>[^{}\n]*)\}\}"
    r"|(?P<open>\{\{)",
    re.MULTILINE,
)
_INSERT = re.compile(rf"\s*(?P<name>{NAME})\s*(?:\|\s*(?P<filter>{NAME})\s*)?")
_SECTION = re.compile(rf"\s*(?P<mark>[#^/])\s*(?P<name>{NAME})\s*")


def _bullets(items: list[str]) -> str:
    return "\n".join("- " + item.replace("\n", "\n  ") for item in items)


def _numbered(items: list[str]) -> str:
    return "\n".join(f"{i}. " + item.replace("\n", "\n   ") for i, item in enumerate(items, 1))


def item_names(items: list[str]) -> list[str]:
    """Of each item what stands before its first colon: ``"search: finds pages"`` is ``"search"``."""
    return [item.partition(":")[0].strip() for item in items]


LIST_FILTERS: Mapping[str, Callable[[list[str]], str]] = {
    "bullets": _bullets,
    "numbered": _numbered,
    "lines": "\n".join,
    "comma": ", ".join,
    "names": lambda items: ", ".join(item_names(items)),
    "json": lambda items: json.dumps(items, ensure_ascii=False),
}
VALUE_FILTERS: Mapping[str, Callable[[Any], str]] = {
    "json": lambda value: json.dumps(value, ensure_ascii=False)
}


@dataclass(frozen=True, slots=True)
class Insert:
    """The value of ``name``, written by ``filter``."""

    name: str
    filter: str | None


@dataclass(frozen=True, slots=True)
class Section:
    """``body``, if ``name`` has a value that is not empty or false; ``inverted``: if it has none."""

    name: str
    inverted: bool
    body: tuple[Node, ...]


Node = str | Insert | Section


def parse_tag(text: str) -> Insert | None:
    """The one ``{{ name }}`` that ``text`` consists of, or None where it is anything else."""
    tag = _TAG.fullmatch(text)
    found = _INSERT.fullmatch(tag["tag"]) if tag is not None and tag["tag"] is not None else None
    return Insert(found["name"], found["filter"]) if found is not None else None


def parse(text: str) -> tuple[Node, ...]:
    """``text`` as nodes. Raises InvalidArgumentError with the line of a tag that is wrong."""
    # the innermost section is last; each has its opening tag, where that stands, and what it holds so far
    stack: list[tuple[re.Match[str] | None, int, list[Node]]] = [(None, 0, [])]
    at = 0
    for tag in _TAG.finditer(text):
        nodes = stack[-1][2]
        if tag.start() > at:
            nodes.append(text[at : tag.start()])
        at = tag.end()
        if tag["escape"]:
            nodes.append("{{")
            continue
        where = f"line {text.count(chr(10), 0, tag.start('alone') if tag['alone'] else tag.start()) + 1}"
        if tag["open"]:
            raise InvalidArgumentError(
                f"{where}: '{{{{' is not closed on its line; for the characters themselves write \\{{{{"
            )
        inner = tag["alone"] or tag["tag"]
        section = _SECTION.fullmatch(inner)
        if section is None:
            insert = _INSERT.fullmatch(inner)
            if insert is None:
                raise InvalidArgumentError(
                    f"{where}: {{{{{inner}}}}} is no tag; right are {{{{ name }}}}, {{{{ name | filter }}}}, "
                    "{{# name }}…{{/ name }} and {{^ name }}…{{/ name }}, and \\{{ for the characters themselves"
                )
            nodes.append(Insert(insert["name"], insert["filter"]))
        elif section["mark"] != "/":
            stack.append((section, tag.start(), []))
        else:
            opened, _, body = stack.pop()
            if opened is None or opened["name"] != section["name"]:
                right = f"{{{{/ {opened['name']} }}}} is due" if opened else "no section is open"
                raise InvalidArgumentError(f"{where}: {{{{/ {section['name']} }}}}: {right}")
            stack[-1][2].append(Section(opened["name"], opened["mark"] == "^", tuple(body)))
    opened, start, nodes = stack[-1]
    if opened is not None:
        line = text.count("\n", 0, start) + 1
        raise InvalidArgumentError(
            f"line {line}: {{{{{opened['mark']} {opened['name']} }}}} is never closed by {{{{/ {opened['name']} }}}}"
        )
    if at < len(text):
        nodes.append(text[at:])
    return tuple(nodes)


def inserts(
    nodes: tuple[Node, ...], within: frozenset[str] = frozenset()
) -> Iterator[tuple[Insert | Section, frozenset[str]]]:
    """Every tag, with the names of the sections around it that hold only where there is a value."""
    for node in nodes:
        if isinstance(node, Insert):
            yield node, within
        elif isinstance(node, Section):
            yield node, within
            yield from inserts(node.body, within if node.inverted else within | {node.name})


def render(nodes: tuple[Node, ...], values: Mapping[str, Any]) -> str:
    """The text, without blank space of the template's own at either end; that of values stays."""
    pieces = [(text, own) for text, own in _pieces(nodes, values) if text]
    while pieces and pieces[0][1]:
        rest = pieces[0][0].lstrip()
        if rest:
            pieces[0] = (rest, True)
            break
        del pieces[0]
    while pieces and pieces[-1][1]:
        rest = pieces[-1][0].rstrip()
        if rest:
            pieces[-1] = (rest, True)
            break
        del pieces[-1]
    return "".join(text for text, _ in pieces)


def _pieces(nodes: tuple[Node, ...], values: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Text, and whether it is the template's own."""
    for node in nodes:
        if isinstance(node, str):
            yield node, True
        elif isinstance(node, Insert):
            yield _written(values[node.name], node.filter), False
        elif _present(values[node.name]) != node.inverted:
            yield from _pieces(node.body, values)


def _present(value: Any) -> bool:
    # zero is a value; no text, an empty list and false are none
    return value is not None and value is not False and value != "" and value != []


def _written(value: Any, name: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return LIST_FILTERS[name or "comma"](value)
    if name is not None:
        return VALUE_FILTERS[name](value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
