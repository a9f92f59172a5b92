"""The JSON that models write: read strictly, and shown in short."""

from __future__ import annotations

import json
import math
from typing import Any, Never

from llama_runner._syntax import MAX_DEPTH, deepest_json

__all__ = ["compact", "parse_object", "read_object", "shown"]


def read_object(text: str) -> dict[str, Any]:
    """The object that a model meant by ``text``. Raises ValueError with a reason.

    None at all (no text, ``null``) is an empty one, and one that was written as a JSON string is read too: small models
    do that.
    """
    value = _parse(text) if text.strip() else None
    if isinstance(value, str):
        value = _parse(value)
    return {} if value is None else _object(value)


def parse_object(text: str) -> dict[str, Any]:
    """The object that ``text`` is. Raises ValueError with a reason.

    What llama.cpp's JSON parser would refuse or misread once the call is part of the conversation is refused here: NaN,
    numbers beyond a double, characters that no text has, more than 200 levels.
    """
    return _object(_parse(text))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it is {_KINDS[type(value)]}, not an object")
    return value


_KINDS = {
    list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null",
}  # fmt: skip


def _parse(text: str) -> Any:
    if deepest_json(text) > MAX_DEPTH:
        raise ValueError(f"it nests more than {MAX_DEPTH} levels")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 10) : error.pos + 10]
        raise ValueError(f"{error.msg} at character {error.pos}, near {json.dumps(near)}") from None
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    _check(value)
    return value


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key)
            _check(item)
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, str):
        bad = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if bad is not None:
            raise ValueError(f"the character \\u{ord(bad):04x} is no text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is larger than a double can be")
    elif isinstance(value, int) and abs(value) > 10**300:
        raise ValueError("a number has more than 300 digits")


def compact(value: Any) -> str:
    """``value``, of JSON types, as JSON text."""
    return json.dumps(value, ensure_ascii=False)


def shown(value: Any, most: int = 60) -> str:
    """JSON text of ``value``, cut to about ``most`` characters, for a message."""
    text = compact(value)
    return text if len(text) <= most else f"{text[:most]}…"
