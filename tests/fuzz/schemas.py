"""JSON schemas by chance: right, nearly right, and nonsense in every place."""

from __future__ import annotations

import functools
import random
from typing import Any

from llama_runner import errors
from llama_runner.core import Model, SamplerChain, json_schema_to_grammar

TYPES = ["object", "array", "string", "integer", "number", "boolean", "null"]
NAMES = [
    "a", "b", "ab", "a b", "a-b", "a_b", "größe", 'q"', "root", "string", "value", "", "a]", "\\", "x" * 99,
    "\U0001f600",
]  # fmt: skip
PATTERNS = [
    "^a$", "^[a-z]+$", "^(a|b)*c?$", "^a{2,3}$", "^a{2,}$", "^(ab){0,5}$", "a", "^a|b$", "^\\d$", "^\\.\\[$",
    "^[^a\\]]$", "^(", "^)$", "^[$", "^*$", "^a{5,2}$", "^a{99999}$", "^(?:a)$", "^(?=a)$", "^\\u00e9$", "^\"$",
    "^\\\\$", "^" + "(" * 200 + ")" * 200 + "$", "^.$", "^a{,3}$", "^a{x}$", "^a{1,2,3}$", "^\\$", "^é+$", "^$", "$",
    "^",
]  # fmt: skip
NUMBERS = [
    *[0, 1, 2, 3, 5, 17, 100] * 4, -1, 2000, 2001, 10**9, 10**15, 10**16, 2**63, -(10**15), 1.5, -0.5, 1e300,
    float("nan"), float("inf"), True,
]  # fmt: skip
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    "",
    "a",
    "\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
    "#",
    "#/",
    object(),
    {1: 2},
    b"x",
]
REFERENCES = [
    *["#/$defs/a", "#/$defs/b", "#/$defs/c"] * 6, "#/properties/a", "#", "#/", "#/$defs", "#/$defs/a/b", "http://x",
    "", "#/anyOf/0", 3,
]  # fmt: skip


@functools.cache
def load_model(path: str) -> Model:
    return Model(path)


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8) if depth < 3 else chance.randrange(5)
    if kind < 5:
        return chance.choice([None, True, 1, -2.5, "a", 'é"\\\n', ""])
    if kind < 7:
        return [value(chance, depth + 1) for _ in range(chance.randrange(3))]
    return {chance.choice(NAMES): value(chance, depth + 1) for _ in range(chance.randrange(3))}


def schema(chance: random.Random, depth: int = 0) -> Any:
    if chance.random() < 0.008:
        return chance.choice(ODD)
    kind = chance.randrange(11) if depth < 4 else chance.randrange(6)

    def inner() -> Any:
        return schema(chance, depth + 1)

    node: dict[Any, Any]
    if kind < 2:
        node = {"type": chance.choice(TYPES)}
    elif kind == 2:
        node = {"type": "string"}
        formats = ["date", "time", "date-time", "uuid", "email"]
        keys = {"minLength": NUMBERS, "maxLength": NUMBERS, "pattern": PATTERNS, "format": formats}
        for key, choices in keys.items():
            if chance.random() < 0.4:
                node[key] = chance.choice(choices)
    elif kind == 3:
        node = {"type": "integer"}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if chance.random() < 0.4:
                node[key] = chance.choice(NUMBERS)
    elif kind == 4:
        node = chance.choice(
            [{"const": value(chance)}, {"enum": [value(chance) for _ in range(chance.randrange(4))]}]
        )
    elif kind == 5:
        node = {"$ref": chance.choice(REFERENCES)}
    elif kind == 6:
        node = {chance.choice(["anyOf", "oneOf", "allOf"]): [inner() for _ in range(chance.randrange(4))]}
    elif kind < 9:
        names = chance.sample(NAMES, chance.randrange(4))
        node = {"type": "object", "properties": {name: inner() for name in names}}
        if chance.random() < 0.5:
            node["required"] = chance.sample(names, chance.randrange(len(names) + 1))
        if chance.random() < 0.4:
            node["additionalProperties"] = chance.choice([True, False, inner()])
    else:
        node = {"type": "array"}
        node[chance.choice(["items", "items", "prefixItems"])] = chance.choice([inner(), [inner(), inner()]])
        for key in ("minItems", "maxItems"):
            if chance.random() < 0.4:
                node[key] = chance.choice(NUMBERS)
    if chance.random() < 0.04:
        key = chance.choice(
            ["title", "not", "if", "uniqueItems", "type", "required", "items", "x-a", "minimum", "$defs"]
        )
        node[key] = chance.choice([*ODD, inner()])
    if chance.random() < 0.05:
        node["type"] = [chance.choice(TYPES) for _ in range(chance.randrange(3))]
    return node


def make_schema(seed: int) -> Any:
    chance = random.Random(seed)
    made = schema(chance)
    if isinstance(made, dict) and chance.random() < 0.6:
        made["$defs"] = {name: schema(chance, 2) for name in "abc"}
    return made


def try_input(seed: int, model: str) -> None:
    made = make_schema(seed)
    try:
        grammar = json_schema_to_grammar(made, ignore_unsupported=seed % 3 == 0, timeout=0.2)
    except errors.LlamaRunnerError:
        return
    # what comes out is a grammar
    chain = SamplerChain()
    if seed % 5 == 0:
        try:
            chain.grammar(load_model(model).vocab, grammar)
        except errors.InvalidArgumentError as error:
            # a rule that begins with itself is told apart only when the grammar is put to use
            if "parsed" not in str(error):
                raise
