"""JSON schemas of the kinds that people write: what structured output is tested with. All of them have small values."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(required: list[str] | None = None, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def array(items: Schema, low: int = 0, high: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def integer(low: int = 0, high: int = 100) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(high: int) -> Schema:
    """Quarters, which are what they are in binary, too; without a step a small model can write decimals without end."""
    return {"type": "number", "minimum": 0, "maximum": high, "multipleOf": 0.25}


def text(high: int = 10, low: int = 0) -> Schema:
    return {"type": "string", "minLength": low, "maxLength": high}


def pattern(expression: str) -> Schema:
    return {"type": "string", "pattern": expression}


def form(name: str) -> Schema:
    return {"type": "string", "format": name}


BOOL: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
NAME = text(12, 1)

SCHEMAS: dict[str, Schema] = {
    # --- scalars
    "boolean": BOOL,
    "null": NULL,
    "integer from 1 to 6": integer(1, 6),
    "integer below zero": integer(-50, -3),
    "integer around zero": {"type": "integer", "exclusiveMinimum": -4, "exclusiveMaximum": 17},
    "multiples of seven": {"type": "integer", "minimum": 0, "maximum": 700, "multipleOf": 7},
    "number from 0 to 1": number(1),
    "number above zero": {"type": "number", "exclusiveMinimum": 0, "maximum": 100, "multipleOf": 0.5},
    "short text": text(8),
    "text of five": text(5, 5),
    "enum": {"enum": ["red", "green", "blue"]},
    "enum of many kinds": {"enum": ["a", 1, 2.5, True, None, [1, 2], {"k": "v"}]},
    "const": {"const": {"version": 2, "name": "π ≈ 3", "list": [1, "two"]}},
    "nullable text": {"type": ["string", "null"], "maxLength": 6},
    "three types": {"type": ["boolean", "null", "integer"], "minimum": 0, "maximum": 9},
    # --- text with a form
    "date": form("date"),
    "time": form("time"),
    "date-time": form("date-time"),
    "uuid": form("uuid"),
    "ipv4": form("ipv4"),
    "telephone": pattern(r"^\+[1-9][0-9]{6,10}$"),
    "licence plate": pattern(r"^[A-Z]{1,3}-[A-Z]{2} [1-9][0-9]{0,3}$"),
    "hex colour": pattern(r"^#[0-9a-f]{6}$"),
    "version": pattern(r"^v?(0|[1-9]\d?)\.(0|[1-9]\d?)(-(alpha|beta)\.\d)?$"),
    "escaped": pattern(r'^"[a-z]{1,3}\\[a-z]{1,3}"$'),
    "greek": pattern(r"^[α-ω]{2,5}$"),
    # --- arrays
    "booleans": array(BOOL, 2, 4),
    "no items": array(integer(), 0, 0),
    "matrix": array(array(integer(0, 9), 2, 2), 2, 2),
    "tuple": {"type": "array", "prefixItems": [NAME, integer(), BOOL], "items": False, "minItems": 3},
    "tuple and more": {
        "type": "array",
        "prefixItems": [BOOL],
        "items": integer(0, 9),
        "minItems": 2,
        "maxItems": 4,
    },
    "mixed": array({"anyOf": [integer(0, 9), NULL, text(3)]}, 1, 3),
    "objects": array(obj(id=integer(), ok=BOOL), 1, 2),
    # --- objects
    "empty object": obj(),
    "person": obj(name=NAME, age=integer(0, 120)),
    "optional": obj(["id"], id=integer(), note=text(6), seen=BOOL, rank=integer(1, 5)),
    "all optional": obj([], a=integer(0, 9), b=BOOL, c=NULL),
    "nested": obj(outer=obj(middle=obj(inner=integer(0, 9)))),
    "address": obj(street=text(12), city={"enum": ["Paris", "Rome", "Oslo"]}, zip=pattern("^[0-9]{5}$")),
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,6}$": integer(0, 9)},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "named and more": {
        "type": "object",
        "properties": {"id": integer()},
        "required": ["id"],
        "patternProperties": {"^x[a-z]{1,4}$": BOOL},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,4}$": integer(0, 9)},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "odd names": obj(**{'a "quoted" name': integer(0, 9), "with/slash": BOOL, "naïve ☃": NULL, "": BOOL}),
    "like each other": obj(a=integer(0, 9), ab=integer(0, 9), abc=integer(0, 9)),
    # --- combinations
    "anyOf": {"anyOf": [integer(0, 9), {"enum": ["none"]}]},
    "anyOf objects": {"anyOf": [obj(cat=NAME), obj(dog=NAME, age=integer(0, 20))]},
    "oneOf by type": {"oneOf": [integer(0, 9), text(4), NULL]},
    "oneOf by tag": {
        "oneOf": [
            obj(kind={"const": "circle"}, r=integer()),
            obj(kind={"const": "box"}, w=integer(), h=integer()),
        ]
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": integer(0, 9)}, "required": ["a"]},
            {"type": "object", "properties": {"b": BOOL}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "bounds of two": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
    "beside anyOf": {
        "type": "object",
        "properties": {"id": integer()},
        "required": ["id"],
        "maxProperties": 2,
        "anyOf": [
            {"properties": {"x": BOOL}, "required": ["x"]},
            {"properties": {"y": NULL}, "required": ["y"]},
        ],
    },
    # --- references
    "defs": {
        "$defs": {"point": obj(x=integer(), y=integer())},
        **obj(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"}),
    },
    "definitions": {
        "definitions": {"flag": BOOL},
        "type": "array",
        "items": {"$ref": "#/definitions/flag"},
        "maxItems": 3,
    },
    "defs of defs": {
        "$defs": {
            "name": NAME,
            "pet": obj(name={"$ref": "#/$defs/name"}),
            "owner": obj(pet={"$ref": "#/$defs/pet"}),
        },
        "$ref": "#/$defs/owner",
    },
    "linked list": {
        "$defs": {"node": obj(value=integer(0, 9), next={"anyOf": [NULL, {"$ref": "#/$defs/node"}]})},
        "$ref": "#/$defs/node",
    },
    "tree": {
        "$defs": {
            "leaf": integer(0, 9),
            "branch": obj(left={"$ref": "#/$defs/any"}, tag=BOOL),
            "any": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/branch"}]},
        },
        "$ref": "#/$defs/any",
    },
    "itself": {**obj(["v"], v=integer(0, 9)), "properties": {"v": integer(0, 9), "rest": {"$ref": "#"}}},
    "pointer with escapes": {
        "$defs": {"a/b": BOOL},
        "type": "array",
        "items": {"$ref": "#/$defs/a~1b"},
        "minItems": 1,
        "maxItems": 2,
    },
    # --- from life
    "tool call": obj(
        tool={"enum": ["search", "open", "answer"]}, arguments=obj(query=text(12), limit=integer(1, 20))
    ),
    "classification": obj(label={"enum": ["spam", "ham"]}, confidence=number(1)),
    "calendar": obj(title=text(10), start=form("date-time"), guests=array(text(6), 0, 2), online=BOOL),
    "order": obj(
        id=pattern("^[A-Z]{2}[0-9]{4}$"),
        lines=array(obj(sku=text(6, 1), count=integer(1, 9), price=number(99)), 1, 2),
        paid=BOOL,
        note={"type": ["string", "null"], "maxLength": 8},
    ),
    "settings": obj(
        ["theme"],
        theme={"enum": ["dark", "light"]},
        font=obj(size=integer(6, 32), bold=BOOL),
        layout=array({"enum": ["left", "right"]}, 0, 2),
        beta={"const": True},
    ),
    "geometry": obj(
        type={"const": "Point"},
        coordinates={
            "type": "array",
            "prefixItems": [integer(-180, 180), integer(-90, 90)],
            "items": False,
            "minItems": 2,
        },
    ),
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "d",
        **obj(n={**integer(), "description": "how many", "default": 3, "examples": [1]}),
        "x-order": 1,
    },
}

# names and texts that only a model which knows words brings to an end
WORDY: dict[str, Schema] = {
    "map of integers": {"type": "object", "additionalProperties": integer(0, 9), "maxProperties": 3},
    "open object": {
        "type": "object",
        "properties": {"id": integer()},
        "required": ["id"],
        "maxProperties": 2,
    },
    "text": obj(title={"type": "string"}),
}
