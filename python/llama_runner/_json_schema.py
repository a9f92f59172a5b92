"""Which JSON schemas llguidance keeps in full: what it would pass over without a word is named here instead.

llguidance refuses most of what it does not implement by itself. It lets through keywords that no draft knows, which are
most often misspelt ones, and counts a repeated key of an object as another property.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from llama_runner.errors import ArgumentTypeError, ConstraintError

__all__ = ["WHITESPACE", "guided_schema", "plain_schema", "schema_text"]

MAX_DEPTH = 60  # llguidance's reader of JSON stops at 128 levels, and a schema within a schema takes two
MAX_NODES = 200_000
MAX_TEXT = 4 << 20  # bytes

Json = Any

# how the parts of a value are set apart: (between items, between key and value, elsewhere)
WHITESPACE: Mapping[str, Mapping[str, Json]] = {
    "compact": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    "line": {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"},
    "any": {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"},
}
_SAFE_GUIDANCE = frozenset(
    {
        "whitespace_flexible", "whitespace_pattern", "item_separator", "key_separator", "json_allowed_escapes",
        "json_allow_general_unicode_escapes",
    }
)  # fmt: skip

_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # names to schemas
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items", "additionalItems")
_VALUES = frozenset(
    {
        "type", "const", "enum", "required", "minItems", "maxItems", "minProperties", "maxProperties", "minLength",
        "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
        "$ref",
    }
)  # fmt: skip
_ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema",
        "$id", "id", "$comment", "$anchor", "contentEncoding", "contentMediaType", "discriminator", "nullable",
    }
)  # fmt: skip
# what says nothing when it has this value
_NEUTRAL: Mapping[str, Json] = {
    "uniqueItems": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "minContains": 0,
    "nullable": False,
}
_KNOWN = _VALUES | _ANNOTATIONS | {*_SCHEMAS, *_LISTS, *_SINGLE}


def plain_schema(schema: object) -> dict[str, Any]:
    """``schema``, a mapping, a bool or JSON text, as a dict of JSON values only, checked to be one that can be read."""
    if isinstance(schema, (str, bytes)):
        if len(schema) > MAX_TEXT:
            raise ConstraintError(f"the schema has {len(schema)} characters: at most {MAX_TEXT}")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"the schema is no JSON text: {error}") from None
        if not isinstance(schema, (dict, bool)):
            raise ConstraintError(f"the schema is {schema!r:.60}: a schema is a JSON object, true or false")
    if schema is True:
        return {}
    if schema is False:
        raise ConstraintError("the schema is false, which no value fits")
    if not isinstance(schema, Mapping):
        raise ArgumentTypeError(
            f"a JSON schema is a dict, a bool or JSON text, not {type(schema).__name__} {schema!r:.60}"
        )
    count = [0]
    plain = _plain(schema, "#", 0, count)
    assert isinstance(plain, dict)
    return plain


def _plain(value: object, path: str, depth: int, count: list[int]) -> Json:
    count[0] += 1
    if depth > 2 * MAX_DEPTH:
        raise ConstraintError(f"the schema at {path[:200]}: it nests more than {2 * MAX_DEPTH} levels", path=path)
    if count[0] > MAX_NODES:
        raise ConstraintError(f"the schema has more than {MAX_NODES} values")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentTypeError(f"the schema at {path}: the key {key!r} is no str")
        return {
            _text(key, path): _plain(item, f"{path}/{key}", depth + 1, count) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}/{i}", depth + 1, count) for i, item in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConstraintError(f"the schema at {path}: {value} is no JSON number", path=path)
        return value
    raise ArgumentTypeError(f"the schema at {path}: {type(value).__name__} is no JSON value")


def _text(text: str, path: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConstraintError(f"the schema at {path!a}: {text!a:.60} has a lone surrogate", path=path)
    return str(text)


def schema_text(schema: object) -> str:
    """The schema as canonical JSON text: equal schemas that list their properties in the same order are equal text."""
    return json.dumps(plain_schema(schema), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def guided_schema(schema: object, whitespace: str = "line") -> str:
    """The schema as JSON text for llguidance, after every keyword that it would pass over has been refused by name."""
    if whitespace not in WHITESPACE:
        raise ConstraintError(f"whitespace={whitespace!r:.40}: it is one of {', '.join(WHITESPACE)}")
    plain = plain_schema(schema)
    guidance = plain.pop("x-guidance", {})
    if not isinstance(guidance, dict):
        raise ConstraintError("the schema at #/x-guidance: it is an object", keyword="x-guidance")
    for name in guidance:
        if name not in _SAFE_GUIDANCE:
            raise ConstraintError(
                f"the schema at #/x-guidance: {name} is none of {', '.join(sorted(_SAFE_GUIDANCE))}, which leave the "
                "schema's meaning as it is",
                path="#/x-guidance",
                keyword=name,
            )
    _check(plain, "#", 0)
    guided = {**plain, "x-guidance": {**WHITESPACE[whitespace], **guidance}}
    return json.dumps(guided, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _check(node: Json, path: str, depth: int) -> None:
    """Refuse what llguidance would pass over."""
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise ConstraintError(f"the schema at {path}: {node!r:.60} is no schema", path=path)
    if depth > MAX_DEPTH:
        raise ConstraintError(f"the schema at {path[:200]}: it nests more than {MAX_DEPTH} levels", path=path)
    for key, value in list(node.items()):
        if key in _NEUTRAL and value == _NEUTRAL[key] and type(value) is type(_NEUTRAL[key]):
            del node[key]
            continue
        if key.startswith("x-"):
            del node[key]
            continue
        if key == "nullable":  # OpenAPI's, and not JSON Schema's: to pass it over would lose the null
            raise _unsupported(key, path, 'write {"type": ["string", "null"]} or anyOf')
        if key not in _KNOWN:
            raise _unsupported(key, path)
    least = node.get("minProperties", 0)
    if isinstance(least, int) and least > max(1, len(set(_strings(node.get("required"))))):
        raise _unsupported("minProperties", path, "a key could be repeated to reach it; name the keys in required")
    for key in _SCHEMAS:
        inner = node.get(key, {})
        if not isinstance(inner, dict):
            raise ConstraintError(f"the schema at {path}: {key} is an object of schemas", path=path, keyword=key)
        for name, item in inner.items():
            _check(item, f"{path}/{key}/{name}", depth + 1)
    for key in _LISTS:
        items = node.get(key, [])
        if not isinstance(items, list) or (key in node and not items and key != "prefixItems"):
            raise ConstraintError(f"the schema at {path}: {key} is a list of schemas", path=path, keyword=key)
        for i, item in enumerate(items):
            _check(item, f"{path}/{key}/{i}", depth + 1)
    for key in _SINGLE:
        if key in node:
            if isinstance(node[key], list):
                raise _unsupported(key, path, "as a list it is of older drafts; write prefixItems")
            _check(node[key], f"{path}/{key}", depth + 1)


def _strings(value: Json) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _unsupported(keyword: str, path: str, hint: str = "") -> ConstraintError:
    more = f": {hint}" if hint else ""
    return ConstraintError(
        f"the schema at {path}: the keyword {keyword} is not supported{more}", keyword=keyword, path=path
    )
