"""Which JSON schemas llama.cpp's converter turns into a grammar that keeps them, and which it would misread or die of.

The converter looks at a node's keywords in a fixed order and passes over the rest without a word. ``check_schema``
follows that order and names what would be passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from llama_runner._syntax import MAX_REPEAT
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["check_any_schema", "check_schema", "check_tools"]

MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_INTEGER = 10**15  # the converter writes numbers of up to 16 digits
MAX_NAME = 100  # a name's characters nest as deep in the grammar of "any other name"

Schema = dict[str, Any]

ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment",
    "$anchor", "$defs", "definitions", "contentEncoding", "contentMediaType",
})  # fmt: skip
COMPOSITE = ("oneOf", "anyOf")
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
STRING_FORMATS = re.compile(r"date|time|date-time|uuid[1-5]?")
USED = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
    "any": frozenset[str](),
}
# what says nothing when it has this value
NEUTRAL = {
    "uniqueItems": False, "minItems": 0, "minLength": 0, "minProperties": 0, "required": [],
    "additionalProperties": True, "additionalItems": True, "unevaluatedProperties": True, "unevaluatedItems": True,
}  # fmt: skip


def check_schema(schema: Any, strict: bool = True) -> Schema:
    """``schema`` as a dict that the native converter can be given; ``strict``: and that it keeps in full."""
    if isinstance(schema, (str, bytes)):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"the schema is no JSON text: {error}") from None
    checker = _Checker(schema, strict)
    return checker.checked


def check_any_schema(schema: Any) -> Schema:
    """``check_schema`` for where an empty schema is taken for none: one that says that anything fits."""
    return check_schema(schema) or {"type": list(TYPES)}


def check_tools(tools: list[Any]) -> None:
    """Refuse tools whose parameters the native converter would not come back from."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        parameters = function.get("parameters") if isinstance(function, dict) else None
        if parameters:
            _Checker(parameters, strict=False)


class _Checker:
    def __init__(self, schema: Any, strict: bool):
        self.strict = strict
        self.nodes = 0
        self.references: dict[str, str] = {}
        self.checked: Schema = {}
        if schema is False:
            raise self.problem("#", "false fits no value")
        if not isinstance(schema, (dict, bool)):
            raise ArgumentTypeError(f"a schema is a dict, a bool or JSON text, not {type(schema).__name__}")
        try:
            self.checked = self.plain(schema if schema is not True else {}, "#", 0)
            # what has no end comes before what would only be passed over
            self.strict = False
            self.check_node(self.checked, "#", 0)
            self.check_recursion()
            self.strict = strict
            if strict:
                self.check_node(self.checked, "#", 0)
        except RecursionError:
            raise self.problem("#", "its references recurse too deeply") from None

    def problem(self, path: str, what: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"the schema at {path}: {what}")

    # --- the values as such

    def plain(self, value: Any, path: str, depth: int) -> Any:
        """A copy of ``value`` that holds JSON values only."""
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise self.problem(path[:200], f"it nests more than {MAX_DEPTH} levels")
        if self.nodes > MAX_NODES:
            raise self.problem(path[:200], f"it has more than {MAX_NODES} values")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ArgumentTypeError(f"the schema at {path}: the key {key!r} is no str")
                self.check_string(key, path)
            return {key: self.plain(item, f"{path}/{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, f"{path}/{i}", depth + 1) for i, item in enumerate(value)]
        if isinstance(value, str):
            self.check_string(value, path)
            return value
        if isinstance(value, float) and not math.isfinite(value):
            raise self.problem(path, f"{value} is no JSON number")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
            raise self.problem(path, "the integer has more than 64 bits")
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise ArgumentTypeError(f"the schema at {path}: {type(value).__name__} is no JSON value")

    def check_string(self, text: str, path: str) -> None:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise self.problem(
                path[:200].encode("ascii", "replace").decode(), "it has a character that no text has"
            )

    # --- one node, in the converter's order

    def check_node(self, node: Any, path: str, depth: int) -> None:
        if node is True:
            raise self.problem(path, "write {} for a schema that anything fits")
        if not isinstance(node, dict):
            raise self.problem(path, f"{node!r} is no schema")
        if depth > MAX_DEPTH:
            raise self.problem(path[:200], f"it nests more than {MAX_DEPTH} levels")
        for name in ("$defs", "definitions"):
            for key, item in self.mapping(node, name, path):
                self.check_node(item, f"{path}/{name}/{key}", depth + 1)
        if "$ref" in node:
            self.check_reference(node["$ref"], path)
            self.check_used(node, {"$ref"}, path, "beside $ref")
        elif any(key in node for key in COMPOSITE):
            key = next(key for key in COMPOSITE if key in node)
            self.check_alternatives(node[key], f"{path}/{key}", depth)
            self.check_used(node, {key}, path, f"beside {key}")
        elif isinstance(node.get("type"), list):
            if not node["type"]:
                raise self.problem(path, "type is empty")
            for kind in node["type"]:
                self.check_kind(kind, path)
                self.check_typed({**node, "type": kind}, f"{path} as {kind!r}", depth, shared=True)
            self.check_shared(node, path)
        else:
            self.check_typed(node, path, depth)

    def check_typed(self, node: Schema, path: str, depth: int, shared: bool = False) -> None:
        kind = node.get("type")
        if kind is not None:
            self.check_kind(kind, path)
        if "const" in node or "enum" in node:
            key = "const" if "const" in node else "enum"
            values = [node["const"]] if key == "const" else node["enum"]
            if not isinstance(values, list) or not values:
                raise self.problem(path, "enum is a list of at least one value")
            if self.strict and kind is not None and not shared:
                wrong = next((value for value in values if not has_type(value, kind)), None)
                if wrong is not None or (None in values and not has_type(None, kind)):
                    raise self.problem(
                        path, f"{wrong!r} is not of type {kind!r}, and the grammar would allow it"
                    )
            self.check_used(node, {key, "type"}, path, f"beside {key}")
            return
        if kind is None:
            kind = self.guess_kind(node)
        if kind == "allOf" or ("allOf" in node and kind in ("object", "string") and "properties" not in node):
            self.check_alternatives(node.get("allOf"), f"{path}/allOf", depth)
            self.check_used(node, set(), path, "")
            return
        used = {"type", *USED[kind]}
        if kind == "object":
            self.check_object(node, path, depth)
        elif kind == "array":
            used = self.check_array(node, path, depth, used)
        elif kind == "string":
            used = self.check_text(node, path, used)
        elif kind == "integer":
            self.check_integer(node, path)
        if not shared:
            self.check_used(node, used, path, f"for type {kind!r}" if kind != "any" else "without a type")

    def check_kind(self, kind: Any, path: str) -> None:
        if kind not in TYPES:
            raise self.problem(path, f"type {kind!r} is none of {', '.join(TYPES)}")

    def guess_kind(self, node: Schema) -> str:
        """What the converter takes a node without a type for."""
        if "properties" in node or node.get("additionalProperties", True) is not True:
            return "object"
        if "allOf" in node:
            return "allOf"
        if "items" in node or "prefixItems" in node:
            return "array"
        if {"pattern", "minLength", "maxLength"} & node.keys() or STRING_FORMATS.fullmatch(
            str(node.get("format"))
        ):
            return "string"
        return "any"

    def check_shared(self, node: Schema, path: str) -> None:
        """With several types, each takes the keywords that are its own; together they take these."""
        used = {"type", "pattern", "format", "prefixItems", "const", "enum"}
        for kind in node["type"]:
            used |= USED[kind]
        self.check_used(node, used, path, "for these types")

    def check_object(self, node: Schema, path: str, depth: int) -> None:
        names = [name for name, _ in self.mapping(node, "properties", path)]
        for name, item in self.mapping(node, "properties", path):
            if len(name) > MAX_NAME:
                raise self.problem(
                    f"{path}/properties", f"a name has {len(name)} characters: at most {MAX_NAME}"
                )
            self.check_node(item, f"{path}/properties/{name}", depth + 1)
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self.problem(path, "required is a list of names")
        missing = next((name for name in required if name not in names), None)
        if self.strict and missing is not None:
            raise self.problem(path, f"required names {missing!r}, which is not in properties")
        extra = node.get("additionalProperties", False)
        if isinstance(extra, dict):
            self.check_node(extra, f"{path}/additionalProperties", depth + 1)
        elif not isinstance(extra, bool):
            raise self.problem(path, "additionalProperties is a bool or a schema")
        awkward = next((name for name in names if re.search(r'[\]\\^"\-\x00-\x1f]', name)), None)
        if extra is not False and awkward is not None:
            raise self.problem(
                path,
                f"additionalProperties beside the name {awkward!r}: the grammar cannot tell others from it",
            )

    def check_array(self, node: Schema, path: str, depth: int, used: set[str]) -> set[str]:
        key = "items" if "items" in node else "prefixItems"
        items = node.get(key)
        if isinstance(items, list):
            for i, item in enumerate(items):
                self.check_node(item, f"{path}/{key}/{i}", depth + 1)
            return {"type", key}
        if key in node:
            self.check_node(items, f"{path}/{key}", depth + 1)
        self.check_counts(node, "minItems", "maxItems", path)
        return {*used, key}

    def check_text(self, node: Schema, path: str, used: set[str]) -> set[str]:
        if "pattern" in node:
            if not isinstance(node["pattern"], str):
                raise self.problem(path, "pattern is a str")
            return {"type", "pattern"}
        if STRING_FORMATS.fullmatch(str(node.get("format"))):
            return {"type", "format"}
        self.check_counts(node, "minLength", "maxLength", path)
        return used

    def check_counts(self, node: Schema, low: str, high: str, path: str) -> None:
        for key in (low, high):
            count = node.get(key, 0)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_REPEAT:
                raise self.problem(path, f"{key}={count!r}: a grammar counts from 0 to {MAX_REPEAT}")
        if high in node and node.get(low, 0) > node[high]:
            raise self.problem(path, f"{low}={node[low]} is more than {high}={node[high]}")

    def check_integer(self, node: Schema, path: str) -> None:
        bounds = {}
        for key in USED["integer"] & node.keys():
            value = node[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > MAX_INTEGER:
                raise self.problem(
                    path, f"{key}={value!r}: a bound is a number of at most {MAX_INTEGER} in size"
                )
            bounds[key] = value
        for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if self.strict and plain in bounds and exclusive in bounds:
                raise self.problem(path, f"{exclusive} beside {plain} is not supported")
        low = math.ceil(bounds.get("minimum", math.floor(bounds.get("exclusiveMinimum", -MAX_INTEGER)) + 1))
        high = math.floor(bounds.get("maximum", math.ceil(bounds.get("exclusiveMaximum", MAX_INTEGER)) - 1))
        if low > high:
            raise self.problem(path, f"no integer is from {low} to {high}")

    def check_alternatives(self, items: Any, path: str, depth: int) -> None:
        if not isinstance(items, list) or not items:
            raise self.problem(path, "it is a list of at least one schema")
        for i, item in enumerate(items):
            self.check_node(item, f"{path}/{i}", depth + 1)

    def check_used(self, node: Schema, used: set[str], path: str, where: str) -> None:
        if not self.strict:
            return
        for key, value in node.items():
            if key in used or key in ANNOTATIONS or key.startswith("x-"):
                continue
            if (
                key in NEUTRAL
                and value == NEUTRAL[key]
                and isinstance(value, bool) is isinstance(NEUTRAL[key], bool)
            ):
                continue
            raise self.problem(
                path, f"{key} is not supported {where}".rstrip() + "; ignore_unsupported leaves it out"
            )

    def mapping(self, node: Schema, key: str, path: str) -> Iterator[tuple[str, Any]]:
        found = node.get(key, {})
        if not isinstance(found, dict):
            raise self.problem(path, f"{key} is a dict of schemas")
        return iter(found.items())

    # --- references

    def check_reference(self, reference: Any, path: str) -> None:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise self.problem(path, f"$ref {reference!r}: only '#/…', within the schema, is followed")
        target = self.resolve(reference, path)
        if not isinstance(target, dict):
            raise self.problem(path, f"$ref {reference!r} leads to no schema")
        # the converter names the rule by the letters and digits of the reference alone
        name = re.sub(r"[^a-zA-Z0-9-]+", "-", reference)
        if self.references.setdefault(name, reference) != reference:
            raise self.problem(
                path, f"$ref {reference!r} and {self.references[name]!r} are one to the grammar: rename one"
            )

    def resolve(self, reference: str, path: str) -> Any:
        target: Any = self.checked
        for part in reference[2:].split("/"):
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(target):
                target = target[int(part)]
            else:
                raise self.problem(path, f"$ref {reference!r} leads nowhere: there is no {part!r}")
        return target

    def check_recursion(self) -> None:
        """Refuse schemas that are themselves without a value in between: the converter or the grammar would not end."""
        done: set[int] = set()

        def visit(node: Any, path: str, above: frozenset[int]) -> None:
            if not isinstance(node, dict) or id(node) in done:
                return
            if id(node) in above:
                raise self.problem(path, "it refers to itself without a value in between")
            inner = above | {id(node)}
            if "$ref" in node:
                visit(self.resolve(node["$ref"], path), node["$ref"], inner)
            else:
                for key in ("oneOf", "anyOf", "allOf"):
                    for item in node.get(key) or ():
                        visit(item, f"{path}/{key}", inner)
            done.add(id(node))

        for reference in self.references.values():
            visit(self.resolve(reference, "#"), reference, frozenset())
            if not isinstance(self.resolve(reference, "#"), dict):
                raise self.problem("#", f"$ref {reference!r} leads to no schema")
        visit(self.checked, "#", frozenset())


def has_type(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a schema's type."""
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if isinstance(value, int):
        return kind in ("integer", "number")
    if isinstance(value, float):
        return kind == "number" or (kind == "integer" and value.is_integer())
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return bool(kind == names[type(value)])
