"""Bounds on grammars and templates that llama.cpp parses by recursion: beyond them its stack would overflow.

What a template does when it runs is bounded natively, by ``native/bounds.cpp``.
"""

from __future__ import annotations

import re
from typing import Any

from llama_runner._check import check_text
from llama_runner.errors import InvalidArgumentError

__all__ = ["check_arguments", "check_grammar", "check_repeats", "check_template", "check_trigger"]

MAX_DEPTH = 200
MAX_RULES = 10_000
MAX_ELEMENTS = 1_000_000  # of a grammar whose repetitions are written out, at 8 bytes each in several copies
MAX_REPEAT = 2000  # llama.cpp's own bound
MAX_TRIGGER = 1000
MAX_TRIGGER_DEPTH = 16
MAX_TEMPLATE = 128 * 1024

# what is no structure: literals, character classes, comments
_GRAMMAR_TEXT = re.compile(rb'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|<[^>]*>|#[^\r\n]*', re.DOTALL)
_REPEAT = re.compile(rb"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")
_COUNTS = re.compile(rb"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_TEMPLATE_TEXT = re.compile(rb"\{#.*?#\}|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_JSON_BRACKET = re.compile(r'"(?:\\.|[^"\\])*"?|([\[{])|([\]}])', re.DOTALL)
_BLOCK = re.compile(rb"\{%[-+]?\s*(end)?(?:if|for|macro|call|filter|generation)\b")


def check_grammar(text: bytes) -> None:
    """Refuse a GBNF grammar that is empty, nested or chained too deeply, or repeats backwards."""
    if not text.strip():
        raise InvalidArgumentError("grammar is empty: write at least a rule named root")
    # what a literal or a class holds counts by its length: NUL bytes, of which the text has none
    structure = _GRAMMAR_TEXT.sub(lambda found: b"" if found[0][:1] == b"#" else b"\0" * len(found[0]), text)
    depth = deepest(structure, b"(", b")")
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"the grammar nests {depth} parentheses: at most {MAX_DEPTH}")
    rules = structure.count(b"::=")
    if rules > MAX_RULES:
        raise InvalidArgumentError(f"the grammar has {rules} rules: at most {MAX_RULES}")
    elements = len(text)
    for found in _REPEAT.finditer(structure):
        low, _, high = found.groups()
        if high and int(low[:30]) > int(high[:30]):
            raise InvalidArgumentError(
                f"the grammar repeats {{{low.decode()},{high.decode()}}}: the first is the smaller"
            )
        times = max(int(low[:30]), int(high[:30] or 0))
        elements += max(1, literal_before(structure, found.start())) * min(times, MAX_REPEAT)
    if elements > MAX_ELEMENTS:
        raise InvalidArgumentError(
            f"the grammar has about {elements} elements with its repetitions written out: at most {MAX_ELEMENTS}"
        )


def literal_before(structure: bytes, end: int) -> int:
    """How many NUL bytes, which stand for a literal, precede ``end``, white space aside."""
    while end > 0 and structure[end - 1 : end].isspace():
        end -= 1
    start = end
    while start > 0 and structure[start - 1] == 0:
        start -= 1
    return end - start


def check_trigger(index: int, text: object) -> bytes:
    """The pattern ``text`` as bytes; refused where it is empty, long or nested deeply, since std::regex recurses."""
    pattern = check_text(f"patterns[{index}]", text)
    depth = deepest(re.sub(rb"\\.", b"", pattern, flags=re.DOTALL), b"(", b")")
    if not pattern or len(pattern) > MAX_TRIGGER or depth > MAX_TRIGGER_DEPTH:
        raise InvalidArgumentError(
            f"patterns[{index}] has {len(pattern)} bytes and {depth} levels of parentheses: "
            f"from 1 to {MAX_TRIGGER}, and at most {MAX_TRIGGER_DEPTH}"
        )
    return pattern


def check_repeats(text: bytes) -> None:
    """Refuse a GBNF grammar with a count beyond 2000, which llama.cpp would take for any count."""
    for counts in _COUNTS.findall(_GRAMMAR_TEXT.sub(b"", text)):
        for count in counts:
            if count and int(count[:30]) > MAX_REPEAT:
                raise InvalidArgumentError(
                    f"the grammar repeats {count.decode()} times: at most {MAX_REPEAT}"
                )


def check_template(text: bytes) -> None:
    """Refuse a Jinja template that is empty, longer than 128 KiB, or nested too deeply."""
    if not text:
        raise InvalidArgumentError("source is empty: pass a Jinja template, or None for the model's own")
    if len(text) > MAX_TEMPLATE:
        raise InvalidArgumentError(f"the template has {len(text)} bytes: at most {MAX_TEMPLATE}")
    structure = _TEMPLATE_TEXT.sub(b"", text)
    depth = max(deepest(structure, b"([", b")]"), deepest_block(structure))
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"the template nests {depth} levels: at most {MAX_DEPTH}")


def deepest(text: bytes, opening: bytes, closing: bytes) -> int:
    depth = most = 0
    for byte in re.findall(rb"[()\[\]]", text):
        if byte in opening:
            depth += 1
            most = max(most, depth)
        elif byte in closing:
            depth -= 1
    return most


def deepest_json(text: str) -> int:
    """How deep the brackets and braces of JSON text nest, those in strings left out."""
    depth = most = 0
    for opening, closing in _JSON_BRACKET.findall(text):
        depth += bool(opening) - bool(closing)
        most = max(most, depth)
    return most


def check_arguments(messages: list[Any]) -> None:
    """Refuse messages whose tool calls have arguments, JSON text that the native side parses, that nest without end."""
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, (list, tuple)) else ():
            function = call.get("function") if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and deepest_json(arguments) > MAX_DEPTH:
                raise InvalidArgumentError(
                    f"a tool call's arguments nest more than {MAX_DEPTH} levels: a message cannot hold them"
                )


def deepest_block(text: bytes) -> int:
    depth = most = 0
    for match in _BLOCK.finditer(text):
        depth += -1 if match.group(1) else 1
        most = max(most, depth)
    return most
