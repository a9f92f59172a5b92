"""Which JSON schemas llguidance keeps in full: what it would pass over without a word is named here instead.

llguidance refuses most of what it does not implement by itself. It lets through keywords that no draft knows, which are
most often misspelt ones, and counts a repeated key of an object as another property.
"""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Mapping
from typing import Any

from llama_runner.errors import ArgumentTypeError, ConstraintError

__all__ = ["WHITESPACE", "guided_schema", "plain_schema", "schema_text"]

MAX_DEPTH = 60  # llguidance's reader of JSON stops at 128 levels, and a schema within a schema takes two
MAX_NODES = 200_000
MAX_TEXT = 4 << 20  # bytes
MAX_PATH = 8000  # levels that can be in one another by references: llguidance follows each once, by recursion

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
        raise ConstraintError(
            f"the schema at {path[:200]}: it nests more than {2 * MAX_DEPTH} levels", path=path
        )
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
    _References(plain).check()
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
        raise _unsupported(
            "minProperties", path, "a key could be repeated to reach it; name the keys in required"
        )
    for key in _SCHEMAS:
        inner = node.get(key, {})
        if not isinstance(inner, dict):
            raise ConstraintError(
                f"the schema at {path}: {key} is an object of schemas", path=path, keyword=key
            )
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


class _References:
    """Where a schema refers to itself: how deep that can go, and whether it comes to an end."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.targets: dict[str, Json] = {}
        todo: list[Json] = [root]
        while todo:
            node = todo.pop()
            if not isinstance(node, dict):
                continue
            reference = node.get("$ref")
            if isinstance(reference, str) and reference not in self.targets:
                self.targets[reference] = self.resolve(reference)
                todo.append(self.targets[reference])
            todo += _inner(node)

    def resolve(self, reference: str) -> Json:
        """What a pointer leads to; None where it is no pointer within the schema, or leads nowhere."""
        if not reference.startswith("#"):
            return None
        node: Json = self.root
        for part in urllib.parse.unquote(reference[1:]).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and len(name) < 7 and int(name) < len(node):
                node = node[int(name)]
            else:
                return None
        return node

    def check(self) -> None:
        deepest = _depth(self.root) + sum(
            MAX_DEPTH if target is None else _depth(target) for target in self.targets.values()
        )
        if deepest > MAX_PATH:
            raise ConstraintError(
                f"the schema's {len(self.targets)} references can lead {deepest} levels deep: at most {MAX_PATH}",
                keyword="$ref",
            )
        if self.targets:
            self.check_ends()

    def check_ends(self) -> None:
        """Refuse a schema that only values without an end would fit, such as an object that requires itself."""
        ends: set[str] = set()
        left = [*reversed(self.targets)]  # what is referred to last is most often what the others need
        while True:
            n = len(left)
            for name in left:
                if self.ends(self.targets[name], ends):
                    ends.add(name)
            left = [name for name in left if name not in ends]
            if len(left) == n:
                break
        if not self.ends(self.root, ends):
            raise ConstraintError(
                f"the schema at #: $ref {left[0]!r} requires itself: no value that fits has an end",
                keyword="$ref",
            )

    def ends(self, node: Json, known: set[str]) -> bool:
        """Whether some value of finite size fits, given the references of which that is known."""
        if not isinstance(node, dict) or "const" in node or "enum" in node:
            return True
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in known and self.targets.get(reference) is not None:
            return False
        for key in ("anyOf", "oneOf"):
            if key in node and not any(self.ends(item, known) for item in node[key]):
                return False
        if not all(self.ends(item, known) for item in node.get("allOf", ())):
            return False
        kinds = node.get("type", "object" if "required" in node else None)
        if kinds == "object":
            return all(
                self.ends(node.get("properties", {}).get(name, node.get("additionalProperties", True)), known)
                for name in _strings(node.get("required"))
            )
        if kinds == "array":
            least = node.get("minItems", 0)
            first = node.get("prefixItems", [])
            items = [*first, node.get("items", True)][: least if isinstance(least, int) else 0]
            return all(self.ends(item, known) for item in items)
        return True


def _inner(node: dict[str, Any]) -> list[Json]:
    """The schemas right within a schema."""
    found: list[Json] = []
    for key in _SCHEMAS:
        found += node.get(key, {}).values()
    for key in _LISTS:
        found += node.get(key, [])
    return found + [node[key] for key in _SINGLE if key in node]


def _depth(node: Json) -> int:
    """Levels of schemas within a schema, itself included; definitions count where they are referred to."""
    if not isinstance(node, dict):
        return 1
    inner = _inner({key: value for key, value in node.items() if key not in ("$defs", "definitions")})
    return 1 + max(map(_depth, inner), default=0)
