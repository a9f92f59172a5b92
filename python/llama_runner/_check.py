"""Checks of arguments: each returns the value in the type that C wants, or raises an error that names it."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

from llama_runner.errors import ArgumentTypeError, ForkedProcessError, InvalidArgumentError

__all__ = [
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "check_name",
    "check_path",
    "check_process",
    "check_prompts",
    "check_text",
]


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


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """``value``, which must be one of ``choices``, in value and in type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        kind = (
            InvalidArgumentError if type(value) in {type(choice) for choice in choices} else ArgumentTypeError
        )
        raise kind(f"{name}={value!r}: it is one of {', '.join(map(repr, choices))}")
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


def check_name(name: str, value: Any) -> bytes:
    """``value``, which must be a str, as UTF-8 bytes without NUL."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name}={value!r}: it is a str, not {type(value).__name__}")
    return check_text(name, value)


def check_path(value: Any, name: str = "path", *, absolute: bool = True) -> str:
    """``value``, a str, bytes or os.PathLike that a file can be named by, absolute unless that is unwanted."""
    try:
        path = os.fsdecode(os.fspath(value))
        os.fsencode(path)
    except TypeError:
        raise ArgumentTypeError(
            f"{name}={value!r}: it is a str or os.PathLike, not {type(value).__name__}"
        ) from None
    except UnicodeError:
        raise InvalidArgumentError(
            f"{name}={value!r}: it has a character that no file name can have"
        ) from None
    if "\0" in path:
        raise InvalidArgumentError(f"{name}={value!r}: it has a NUL character")
    return os.path.abspath(path) if absolute else path


def check_prompts(value: Any) -> None:
    """ArgumentTypeError for what is one prompt, or none, where several are asked for."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"prompts is an iterable of prompts, not {value!r:.60}: generate() takes one")


def check_process(pid: int, what: str) -> None:
    """ForkedProcessError in a process that was forked off the one that made ``what``."""
    if os.getpid() != pid:
        raise ForkedProcessError(
            f"this {what} belongs to process {pid}, and this is a fork of it: make one of your own before the first "
            "model is loaded, or start processes with multiprocessing's 'spawn'"
        )
