"""Jinja templates by chance: vendored ones with parts changed, and expressions over all that the interpreter has."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

from llama_runner import errors
from llama_runner.core import ChatTemplate, Model

VENDORED = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "models" / "templates"
FILTERS = [
    "abs", "capitalize", "count", "default", "dictsort", "e", "escape", "first", "float", "format", "indent", "int",
    "items", "join", "keys", "last", "length", "list", "lower", "lstrip", "map", "max", "min", "pop", "reject",
    "rejectattr", "replace", "reverse", "rsplit", "rstrip", "safe", "select", "selectattr", "slice", "sort",
    "split", "string", "strip", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "values",
    "wordcount", "append", "get", "startswith", "endswith", "nothing",
]  # fmt: skip
TESTS = [
    "boolean", "callable", "defined", "divisibleby(X)", "eq(X)", "equalto(X)", "even", "false", "filter", "float",
    "ge(X)", "gt(X)", "in(X)", "integer", "iterable", "le(X)", "lower", "lt(X)", "mapping", "ne(X)", "none",
    "number", "odd", "sameas(X)", "sequence", "string", "test", "true", "undefined", "upper",
]  # fmt: skip
OPERATORS = [
    "+", "-", "*", "/", "%", "~", "==", "!=", "<", ">", "<=", ">=", "and", "or", "in", "not in",
]  # fmt: skip
VALUES = [
    "0", "1", "(-1)", "2", "10", "1.5", "(-0.0)", "(0 % 0)", "9223372036854775807", "(-9223372036854775807 - 1)",
    "true", "none", "'a'", "'10'", "''", "'é\\n{}'", '"b\'c"', "[]", "[1, '1', 2.5, 'b', none, true]",
    "[[1, 2], [2, 1]]", "(1, 2)", "{}", "{'a': 1, 'b': [2]}", "{1: 2}", "messages", "messages[0]",
    "messages[0].content", "tools", "bos_token", "undefined_thing", "namespace(a=1)", "dict(a=[1])", "range(5)",
    "range(20, 0, -3)", "loop", "x", "y", "ns", "ns.a", "m", "m()", "caller", "strftime_now('%Y')", "true",
    "[3, 1, 2]", "'a,b'", "loop.index", "messages[0:1]", "'abc'[::-1]",
]  # fmt: skip
PIECES = [
    "{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", "(", ")", "[", "]", "{", "}", "'", '"', "|", ".", ",", ":",
    "=", "\\", "{% else %}", "{% endif %}", "{% endfor %}", "{% endmacro %}", "{% break %}", "{% continue %}",
    "{% set x = x %}", "{% set ns.me = ns %}", "{% for i in range(99) %}", "{% macro m() %}{{ m() }}{% endmacro %}",
    "not ", "is ", "in ", "//", "**", "1e308", "(1,)", "|tojson", "|sort", "|length", "[-1]", "[::-1]", " * 1000",
    "é", "\U0001f600", "{% generation %}",
]  # fmt: skip
PRELUDE = (
    "{% macro m(x, y=1) %}{{ x }}{% endmacro %}{% set ns = namespace(a=1) %}"
    "{% set x = [1, 'a'] %}{% set y = {'a': [1]} %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "é"}, {"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}],
    [
        {"role": "user", "content": "x" * 200},
        {
            "role": "assistant", "content": None, "reasoning_content": "r",
            "tool_calls": [
                {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": '{"a": [1]}'}}
            ],
        },
        {"role": "tool", "content": "[1]", "name": "f", "tool_call_id": "abcdefghi"},
    ],
]  # fmt: skip


@functools.cache
def load_model(path: str) -> Model:
    return Model(path)


@functools.cache
def vendored() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(VENDORED.glob("*.jinja"))]


def expression(chance: random.Random, depth: int = 0) -> str:
    kind = chance.randrange(12) if depth < 4 else 0

    def inner() -> str:
        return expression(chance, depth + 1)

    if kind < 3:
        return chance.choice(VALUES)
    if kind < 6:
        arguments = chance.choice(
            ["", "", f"({inner()})", f"({inner()}, {inner()})", f"(attribute={inner()})"]
        )
        return f"({inner()})|{chance.choice(FILTERS)}{arguments}"
    if kind < 8:
        return f"({inner()} {chance.choice(OPERATORS)} {inner()})"
    if kind == 8:
        test = chance.choice(TESTS).replace("X", inner())
        return f"({inner()} is {chance.choice(['', 'not '])}{test})"
    if kind == 9:
        return f"({inner()}).{chance.choice(FILTERS)}({chance.choice(['', inner()])})"
    if kind == 10:
        return chance.choice(
            [f"[{inner()}, {inner()}]", f"{{ {inner()}: {inner()} }}", f"({inner()}, {inner()})"]
        )
    return chance.choice(
        [
            f"({inner()})[{inner()}]",
            f"({inner()})[{inner()}:{inner()}:{inner()}]",
            f"({inner()} if {inner()} else {inner()})",
        ]
    )


def statements(chance: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(9) if depth < 3 else 0
        body = statements(chance, depth + 1) if kind > 3 else ""
        value = expression(chance, chance.randrange(5))
        parts.append(
            [
                f"{{{{ {value} }}}}",
                f"{{% set {chance.choice(['x', 'y', 'ns.a', 'x, y'])} = {value} %}}",
                "{% set ns = namespace(a=1) %}",
                f"{{% set _ = x.append({value}) %}}",
                f"{{% if {value} %}}{body}{{% else %}}-{{% endif %}}",
                f"{{% for x in {value} %}}{body}{{% endfor %}}",
                f"{{% for x, y in {value} %}}{body}{{% else %}}{body}{{% endfor %}}",
                f"{{% macro m(x, y={value}) %}}{body}{{% endmacro %}}",
                f"{{% call m({value}) %}}{body}{{% endcall %}}",
            ][kind]
        )
    return "".join(parts)


def mutated(chance: random.Random) -> str:
    text = chance.choice(vendored())
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([1, 2, 10, 100, 1000]))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:]
        elif kind == 2:
            text = text[:start] + chance.choice(PIECES) + text[start:]
        elif kind == 3:
            text = text[:start] + "{{ " + expression(chance) + " }}" + text[start:]
        elif kind == 4:
            text = text.replace(chance.choice(FILTERS), chance.choice(FILTERS))
        else:
            text = text.replace("messages", chance.choice(["messages[1:]", "ns", "loop", "tools"]), 1)
    return text


def make_template(seed: int) -> str:
    chance = random.Random(seed)
    return mutated(chance) if seed % 4 == 0 else PRELUDE + statements(chance)


def try_input(seed: int, model: str) -> None:
    chance = random.Random(~seed)
    try:
        template = ChatTemplate(load_model(model), make_template(seed), timeout=0.05)
        messages = chance.choice(CONVERSATIONS)
        tools = chance.choice([None, [TOOL]])
        if seed % 8 == 1:
            template.render(messages, tools=tools, enable_thinking=seed % 16 == 1)
        else:
            template.apply(messages, tools=tools)
    except errors.LlamaRunnerError:
        pass
