"""What tools return as JSON values, and those as text for a model."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["Unwritable", "clean", "cut", "write"]

_MAX_DEPTH = 100
_MAX_VALUES = 1_000_000
_MAX_DIGITS = 4300  # where Python itself stops writing integers
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Unwritable(Exception):
    """A value that cannot be written; the message says what it is and what to return instead."""


def write(value: Any) -> str:
    """``value`` as text: a str as it is, anything else as JSON.

    NaN and the infinities, which JSON does not have, are the strings "NaN", "Infinity" and "-Infinity". Bytes are their
    text where they are UTF-8, else ``{"base64": …}``. Sets are lists in the order of their text. Raises Unwritable.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = _bytes(bytes(value))
    if not isinstance(value, str):
        value = json.dumps(_Writer().plain(value, 0), ensure_ascii=False)
    return str.__str__(value)


def clean(text: str) -> str:
    """``text`` with U+FFFD for characters that no text has, and no conversation could hold: NUL, lone surrogates."""
    return _NO_TEXT.sub("\ufffd", text)


def cut(text: str, most: int) -> tuple[str, bool]:
    """``text`` in at most ``most`` characters, its middle left out and said so, and whether it was cut."""
    if len(text) <= most:
        return text, False
    marker = f"\n[… {len(text) - most} characters left out …]\n"
    for _ in range(3):  # the number that is said counts what the marker takes, too
        marker = f"\n[… {len(text) - max(0, most - len(marker))} characters left out …]\n"
    room = max(0, most - len(marker))
    head = room - room // 2
    return text[:head] + marker + text[len(text) - room // 2 :], True


class _Writer:
    """One value on its way to JSON: how many values it has, and which ones are being written."""

    def __init__(self) -> None:
        self.values = 0
        self.open: set[int] = set()

    def plain(self, value: Any, depth: int) -> Any:
        self.values += 1
        if self.values > _MAX_VALUES:
            raise Unwritable(f"more than {_MAX_VALUES} values; return a part of them")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, enum.Enum):
            return self.plain(value.value, depth + 1)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return self.integer(int(value))
        if isinstance(value, float):
            return _float(float(value))
        if isinstance(value, np.generic):
            return self.plain(_numpy_scalar(value), depth + 1)
        text = _text_of(value)
        if text is not None:
            return text
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _bytes(bytes(value))
        return self.container(value, depth)

    def integer(self, value: int) -> int:
        if value.bit_length() > _MAX_DIGITS * 3.32:
            raise Unwritable(f"an integer of {value.bit_length()} bits; return it as text")
        return value

    def container(self, value: Any, depth: int) -> Any:
        if id(value) in self.open:
            raise Unwritable(f"a {_name(value)} that holds itself; return what it has without the circle")
        if depth >= _MAX_DEPTH:
            raise Unwritable(f"values nested more than {_MAX_DEPTH} levels; return less of them")
        self.open.add(id(value))
        try:
            return self.inner(value, depth + 1)
        finally:
            self.open.discard(id(value))

    def inner(self, value: Any, depth: int) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return self.mapping(value._asdict(), depth)
        if isinstance(value, (list, tuple, collections.deque, range)):
            return [self.plain(item, depth) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted((self.plain(item, depth) for item in value), key=json.dumps)
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        if isinstance(value, np.ndarray):
            if value.size > _MAX_VALUES:
                raise Unwritable(f"an array of {value.size} values; return a part of them")
            return self.plain(_numpy_list(value), depth)
        if isinstance(value, type):
            raise Unwritable(f"the class {value.__name__}; return an instance, or text")
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self.mapping(fields, depth)
        if hasattr(value, "__pydantic_serializer__") and hasattr(value, "model_dump"):
            return self.plain(value.model_dump(mode="json"), depth)
        if isinstance(value, Iterator) or hasattr(value, "__anext__"):
            raise Unwritable(f"a {_name(value)}, which is read once; return a list")
        if callable(value) and hasattr(value, "__name__"):
            raise Unwritable(f"the {_name(value)} {value.__name__}; return what it gives")
        raise Unwritable(
            f"a {_name(value)}, which has no JSON form; return text, a dict, a list or a dataclass"
        )

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for key, item in value.items():
            plain = self.plain(key, depth)
            if isinstance(plain, (dict, list)):
                raise Unwritable(f"a {_name(value)} with a {_name(key)} as a key; make its keys text")
            text = plain if isinstance(plain, str) else json.dumps(plain)
            if text in written:
                raise Unwritable(f"a {_name(value)} in which two keys are written {text!r}")
            written[text] = self.plain(item, depth)
        return written


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _bytes(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _text_of(value: Any) -> str | None:
    """The text of what is written as text: times, paths, ids, exact and complex numbers."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID, complex)):
        return str(value)
    return None


def _numpy_scalar(value: np.generic) -> Any:
    """A Python value; dates are text, since NumPy would give nanoseconds as a bare number."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return str(value)
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, np.clongdouble):
        return complex(value)
    return value.item()


def _numpy_list(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.kind in "mMgGV":
        if not value.ndim:
            return value[()]
        return [_numpy_list(item) if isinstance(item, np.ndarray) else item for item in value]
    return value.tolist()
