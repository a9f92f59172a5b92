"""Checks of arguments: each returns the value in the type that C wants, or raises an error that names it."""

from __future__ import annotations

import math
import operator
from typing import Any

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["check_bool", "check_float", "check_int", "check_text"]


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int from ``low`` to ``high``, both included."""
    if isinstance(value, bool):
        raise ArgumentTypeError(f"{name}={value!r}: it is an integer, not a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{name}={value!r}: it is an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise InvalidArgumentError(f"{name}={number}: it must be from {low} to {high}")
    return number


def check_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a finite float from ``low`` to ``high``, both included."""
    if isinstance(value, (bool, str, bytes)):
        raise ArgumentTypeError(f"{name}={value!r}: it is a number, not {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentTypeError(f"{name}={value!r}: it is a number, not {type(value).__name__}") from None
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{name}={number}: it must be a finite number")
    if not low <= number <= high:
        raise InvalidArgumentError(f"{name}={number}: it must be from {low} to {high}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """``value``, which must be a bool."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name}={value!r}: it is True or False, not {type(value).__name__}")
    return value


def check_text(name: str, value: Any) -> bytes:
    """``value``, a str or UTF-8 bytes, as UTF-8 bytes without NUL."""
    if isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"{name} has a lone surrogate, {value[error.start]!r}, at index {error.start}: it is no character; "
                "decode its source with errors='replace'"
            ) from None
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    else:
        raise ArgumentTypeError(f"{name} is a str or UTF-8 bytes, not {type(value).__name__}")
    nul = data.find(b"\0")
    if nul >= 0:
        raise InvalidArgumentError(f"{name} has a NUL character at byte {nul}: no model reads it; remove it")
    return data
