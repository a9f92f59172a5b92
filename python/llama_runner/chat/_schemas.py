"""JSON schemas of arguments: told in words, shown by an example, and made fit for a grammar."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from llama_runner._schema import MAX_INTEGER
from llama_runner._syntax import MAX_REPEAT
from llama_runner.chat._json import compact, shown

__all__ = ["describe", "example", "follow", "inline", "offered", "plain"]

Schema = dict[str, Any]
Path = tuple[str | int, ...]

_MAX_DEPTH = 6
_INLINE_CHARS = 200
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "propertyNames")
_AWKWARD = re.compile(r'[\]\\^"\-\x00-\x1f]')
_FORMATS = {
    "date-time": ("a date and time", "2025-01-31T12:00:00Z"),
    "date": ("a date", "2025-01-31"),
    "time": ("a time", "12:00:00"),
    "duration": ("a duration in ISO 8601", "PT1H30M"),
    "uuid": ("a UUID", "123e4567-e89b-12d3-a456-426614174000"),
    "email": ("an e-mail address", "name@example.com"),
    "uri": ("a URL", "https://example.com"),
}
_NOUNS = {
    "string": ("a string", "strings"),
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "booleans"),
    "null": ("null", "nulls"),
    "array": ("a list", "lists"),
    "object": ("an object", "objects"),
}


def target(node: Any, root: Schema) -> Schema:
    """``node``, or what it refers to; an empty schema where it leads nowhere."""
    for _ in range(_MAX_DEPTH * 4):
        if not isinstance(node, dict):
            return {}
        reference = node.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return node
        beside = {key: value for key, value in node.items() if key != "$ref"}
        found: Any = root
        for part in filter(None, reference[1:].split("/")):
            if isinstance(found, dict):
                found = found.get(part, {})
            else:
                found = (
                    found[int(part)]
                    if isinstance(found, list) and part.isdigit() and int(part) < len(found)
                    else {}
                )
        node = {**found, **beside} if isinstance(found, dict) else {}
    return {}


def alternatives(node: Schema, root: Schema) -> list[Schema]:
    """The alternatives of ``node``; itself where there are none."""
    for key in ("anyOf", "oneOf"):
        if isinstance(node.get(key), list) and node[key]:
            return [target(item, root) for item in node[key]]
    return [node]


def follow(root: Schema, path: Path) -> tuple[Schema, int]:
    """The schema of the value at ``path``, as far as it can be followed, and how many parts that were."""
    node = target(root, root)
    for done, part in enumerate(path):
        several = [item for item in alternatives(node, root) if item.get("type") != "null"]
        if len(several) != 1:
            return node, done
        inner = several[0]
        step: Any = None
        if isinstance(part, str):
            properties = inner.get("properties")
            step = properties.get(part) if isinstance(properties, dict) else None
            if step is None and isinstance(inner.get("additionalProperties"), dict):
                step = inner["additionalProperties"]
        else:
            prefix = inner.get("prefixItems")
            step = (
                prefix[part] if isinstance(prefix, list) and 0 <= part < len(prefix) else inner.get("items")
            )
        if not isinstance(step, dict):
            return node, done
        node = target(step, root)
    return node, len(path)


# --- in words


def describe(node: Schema, root: Schema, depth: int = 0) -> str:
    """What fits ``node``, in a few words: "an integer from 1 to 5"."""
    node = target(node, root)
    values = [node["const"]] if "const" in node else node.get("enum")
    if isinstance(values, list) and values:
        few = ", ".join(shown(value, 40) for value in values[:12]) + (", …" if len(values) > 12 else "")
        return few if len(values) == 1 else f"one of {few}"
    several = alternatives(node, root)
    if several[0] is not node:
        if depth > 2:
            return "one of several forms"
        return " or ".join(dict.fromkeys(describe(item, root, depth + 1) for item in several))
    kind = node.get("type")
    if isinstance(kind, list) and kind:
        return " or ".join(describe({**node, "type": item}, root, depth + 1) for item in kind)
    if kind == "string":
        return _string(node)
    if kind in ("integer", "number"):
        return _NOUNS[kind][0] + _range(node, "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    if kind == "array":
        return _list(node, root, depth)
    if kind == "object" and node.get("properties") and depth < 2:
        return f"an object such as {shown(example(node, root), 120)}"
    return _NOUNS[kind][0] if isinstance(kind, str) and kind in _NOUNS else "any JSON value"


def _string(node: Schema) -> str:
    form = node.get("format")
    if isinstance(form, str) and form in _FORMATS:
        return f"{_FORMATS[form][0]} such as {compact(_FORMATS[form][1])}"
    counts = _counts(node, "minLength", "maxLength", "character")
    pattern = f" that matches {node['pattern']}" if isinstance(node.get("pattern"), str) else ""
    return "a string" + counts + pattern


def _list(node: Schema, root: Schema, depth: int) -> str:
    counts = _counts(node, "minItems", "maxItems", "item")
    prefix = node.get("prefixItems")
    if isinstance(prefix, list) and depth < 3:
        return f"a list of {', '.join(describe(item, root, depth + 1) for item in prefix)}"
    items = target(node.get("items", {}), root)
    kind = items.get("type")
    if not items or depth > 2:
        return "a list" + counts
    if isinstance(kind, str) and kind in _NOUNS and set(items) <= {"type", "description"}:
        return f"a list of {_NOUNS[kind][1]}{counts}"
    return f"a list{counts}, each item {describe(items, root, depth + 1)}"


def _counts(node: Schema, low: str, high: str, what: str) -> str:
    least, most = node.get(low, 0), node.get(high)
    if most is not None and least == most:
        return f" of {most} {what}{'s' if most != 1 else ''}"
    if most is not None:
        return f" of {f'{least} to' if least else 'at most'} {most} {what}s"
    return f" of at least {least} {what}{'s' if least != 1 else ''}" if least else ""


def _range(node: Schema, low: str, high: str, above: str, below: str) -> str:
    words = [
        f"{word} {node[key]}"
        for key, word in ((low, "at least"), (above, "above"), (high, "at most"), (below, "below"))
        if isinstance(node.get(key), (int, float)) and not isinstance(node.get(key), bool)
    ]
    if low in node and high in node and len(words) == 2:
        return f" from {node[low]} to {node[high]}"
    return " " + " and ".join(words) if words else ""


# --- by an example


def example(node: Schema, root: Schema, depth: int = 0) -> Any:
    """A value that fits ``node``, as far as that can be made up: only what is required, and short."""
    node = target(node, root)
    examples = node.get("examples")
    if isinstance(examples, list) and examples:
        return examples[0]
    if "const" in node:
        return node["const"]
    if isinstance(node.get("enum"), list) and node["enum"]:
        return node["enum"][0]
    several = alternatives(node, root)
    if several[0] is not node:
        return example(
            next((item for item in several if item.get("type") != "null"), several[0]), root, depth + 1
        )
    kind = node.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if kind == "string":
        form = node.get("format")
        text = _FORMATS[form][1] if isinstance(form, str) and form in _FORMATS else "text"
        return text.ljust(min(int(number(node, "minLength", 0)), 40), "x")[
            : int(number(node, "maxLength", 40))
        ]
    if kind in ("integer", "number"):
        return _number(node)
    if kind == "boolean":
        return True
    if kind == "array":
        return _array(node, root, depth)
    if kind == "object" or (kind is None and "properties" in node):
        properties = node.get("properties", {}) if depth < _MAX_DEPTH else {}
        required = [name for name in node.get("required", ()) if name in properties]
        return {name: example(properties[name], root, depth + 1) for name in required}
    return None if kind == "null" else "text"


def _array(node: Schema, root: Schema, depth: int) -> list[Any]:
    prefix = node.get("prefixItems")
    if depth >= _MAX_DEPTH or node.get("maxItems") == 0:
        return []
    if isinstance(prefix, list):
        return [example(item, root, depth + 1) for item in prefix]
    return [example(node.get("items", {}), root, depth + 1)] * max(
        1, min(int(number(node, "minItems", 1)), 3)
    )


def _number(node: Schema) -> int | float:
    step = 1 if node.get("type") == "integer" else 0.5
    low = max(number(node, "minimum", -math.inf), number(node, "exclusiveMinimum", -math.inf) + step)
    high = min(number(node, "maximum", math.inf), number(node, "exclusiveMaximum", math.inf) - step)
    fitting: int | float = min(max(1, low), high)
    return fitting


def number(node: Schema, key: str, default: float) -> Any:
    """The number at ``key``, or ``default`` where there is none."""
    value = node.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


# --- as it is offered


def walk(node: Any) -> Iterator[Schema]:
    """Every schema in ``node``, itself included; a property's name is no keyword."""
    if not isinstance(node, dict):
        return
    yield node
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            for item in node[key].values():
                yield from walk(item)
    for key in _LISTS:
        if isinstance(node.get(key), list):
            for item in node[key]:
                yield from walk(item)
    for key in _SINGLE:
        yield from walk(node.get(key))


def plain(schema: Schema) -> Schema:
    """``schema``, changed in place, without what pydantic adds and a model has no use for."""
    for node in walk(schema):
        if isinstance(node.get("title"), str):
            del node["title"]
        node.pop("discriminator", None)
        if node.get("additionalProperties") is True and "properties" not in node:  # not all versions say so
            del node["additionalProperties"]
    return schema


def inline(schema: Schema) -> Schema:
    """``schema`` with short definitions written where they are used: templates that show types look no further."""
    schema = copy.deepcopy(schema)
    definitions: dict[str, Schema] = schema.get("$defs", {})
    while definitions:
        leaves = {
            name: item
            for name, item in definitions.items()
            if not any("$ref" in node for node in walk(item))
            and (len(compact(item)) <= _INLINE_CHARS or _uses(schema, name) <= 1)
        }
        if not leaves:
            break
        for name in leaves:
            del definitions[name]
        _replace(schema, lambda node, leaves=leaves: leaves.get(_definition(node)))  # type: ignore[misc]
    if not definitions:
        schema.pop("$defs", None)
    return schema


def _definition(node: Schema) -> str:
    reference = node.get("$ref")
    return reference[8:] if isinstance(reference, str) and reference.startswith("#/$defs/") else ""


def _uses(schema: Schema, name: str) -> int:
    return sum(_definition(node) == name for node in walk(schema))


def _replace(schema: Schema, by: Callable[[Schema], Schema | None]) -> None:
    for node in list(walk(schema)):
        found = by(node)
        if found is not None:
            del node["$ref"]
            node.update({**copy.deepcopy(found), **node})


def offered(schema: Schema) -> Schema:
    """A copy of ``schema`` that can be made a grammar: without bounds that llama.cpp cannot count to.

    They are checked when a call comes.
    """
    schema = copy.deepcopy(schema)
    for node in walk(schema):
        for key in ("minLength", "maxLength", "minItems", "maxItems"):
            if isinstance(node.get(key), int) and node[key] > MAX_REPEAT:
                del node[key]
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(node.get(key), (int, float)) and abs(node[key]) > MAX_INTEGER:
                del node[key]
        for key in _SINGLE[:1]:
            if node.get(key) is True:
                node[key] = {}
        if isinstance(node.get("properties"), dict):
            node["properties"] = {
                name: {} if item is True else item for name, item in node["properties"].items()
            }
            # a grammar cannot tell other names from such a one; it then allows no others
            if any(_AWKWARD.search(str(name)) for name in node["properties"]):
                node.pop("additionalProperties", None)
    return schema
