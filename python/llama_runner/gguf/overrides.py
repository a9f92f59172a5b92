"""Values put in place of those in a file's metadata, held to what the file's own would have to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llama_runner._check import check_float, check_int, check_name
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError
from llama_runner.gguf.header import GGUFArray, GGUFHeader

__all__ = ["check_overrides"]

Scalar = int | float | bool | str

_LIMIT = 127  # bytes of a key, and of a string: char[128] with its NUL
_U32 = 2**32 - 1
_F32 = 3.4028234663852886e38
# what says how to read the file, and what kind of model it is: no other value can be right
_FIXED = ("general.architecture", "general.alignment", "tokenizer.ggml.model")
_FIXED_PREFIXES = ("split.",)

# of a key below the architecture's name: the range in which llama.cpp neither asserts nor divides by zero
_RANGES: dict[str, tuple[float, float]] = {
    "block_count": (1, 512),
    "context_length": (1, 2**31 - 1),
    "expert_count": (0, 1024),
    "expert_used_count": (0, 1024),
    "expert_group_count": (0, 1024),
    "expert_group_used_count": (0, 1024),
    "pooling_type": (0, 4),
    "classifier.pooling_type": (0, 4),
    "rope.freq_base": (1e-6, _F32),
    "rope.freq_base_swa": (1e-6, _F32),
    "rope.scaling.factor": (0, _F32),
    "attention.max_alibi_bias": (0, 1e6),
    "attention.clamp_kqv": (0, _F32),
}
_FLOATS = (
    "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor", "attention.max_alibi_bias", "attention.clamp_kqv",
)  # fmt: skip
# which may be 0 though the file says otherwise; any other number might be a divisor
_MAY_BE_ZERO = (
    "attention.sliding_window", "leading_dense_block_count", "nextn_predict_layers", "pooling_type",
    "classifier.pooling_type", "expert_shared_count", "rope.scaling.original_context_length",
)  # fmt: skip


def check_overrides(header: GGUFHeader, overrides: Any, name: str = "kv_overrides") -> dict[str, Scalar]:
    """``overrides``, a mapping from key to int, float, bool or str, each held to the type and range of the file's.

    Raises ArgumentTypeError for a value of another type than the file's, InvalidArgumentError for a key that is too
    long or fixed, a value that is too long or out of range, and for hyperparameters that contradict each other.
    """
    if not isinstance(overrides, Mapping):
        raise ArgumentTypeError(f"{name}={overrides!r}: it is a mapping from key to value")
    checked: dict[str, Scalar] = {}
    for key, value in overrides.items():
        _check_key(header, key, name)
        checked[key] = _check_value(header, key, value, f"{name}[{key!r}]")
    merged = {**header.kv, **checked}
    for key in checked:
        if key.startswith(f"{header.architecture}."):
            _check_hyperparameter(header.architecture, key, merged, name)
    return checked


def _check_key(header: GGUFHeader, key: Any, name: str) -> None:
    data = check_name(f"a key of {name}", key)
    if not 1 <= len(data) <= _LIMIT:
        raise InvalidArgumentError(
            f"{name}: the key {key[:40]!r}… has {len(data)} bytes; it may have 1 to {_LIMIT}"
        )
    if key in _FIXED or key.startswith(_FIXED_PREFIXES):
        raise InvalidArgumentError(
            f"{name}: {key!r} says how the file is to be read and cannot be another value"
        )
    if isinstance(header.kv.get(key), GGUFArray):
        raise InvalidArgumentError(
            f"{name}: {key!r} is an array in the file; only single values can be replaced"
        )


def _check_value(header: GGUFHeader, key: str, given: Any, what: str) -> Scalar:
    # a NumPy scalar is a number as well as Python's own
    value: object = given.item() if hasattr(given, "item") and getattr(given, "shape", None) == () else given
    if not isinstance(value, (bool, int, float, str)):
        raise ArgumentTypeError(
            f"{what}={value!r}: it is an int, float, bool or str, not {type(value).__name__}"
        )
    own = header.kv.get(key)
    if own is None and key.removeprefix(f"{header.architecture}.") in _FLOATS:
        own = 0.0  # what the file would have
    if own is not None:
        if isinstance(own, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**53 else math.inf
        if type(own) is not type(value):
            raise ArgumentTypeError(
                f"{what}={value!r}: the file's is {own!r}, {type(own).__name__}, not {type(value).__name__}"
            )
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return check_int(what, value, 0, _U32)
    if isinstance(value, float):
        return check_float(what, value, -_F32, _F32)
    data = check_name(what, value)
    if len(data) > _LIMIT:
        raise InvalidArgumentError(f"{what} has {len(data)} bytes; llama.cpp takes at most {_LIMIT}")
    return value


def _check_hyperparameter(architecture: str, key: str, merged: Mapping[str, Any], name: str) -> None:
    short = key[len(architecture) + 1 :]
    value = merged[key]
    what = f"{name}[{key!r}]"
    if isinstance(value, (str, bool)):
        if short == "rope.scaling.type" and value not in ("none", "linear", "yarn", "longrope"):
            raise InvalidArgumentError(f"{what}={value!r}: it is none, linear, yarn or longrope")
        return
    if short.endswith("epsilon") and value < 0:
        raise InvalidArgumentError(f"{what}={value}: it must be at least 0")  # else a compute thread asserts
    low, high = _RANGES.get(short, (-_F32, _F32))
    if not low <= value <= high:
        raise InvalidArgumentError(f"{what}={value}: it must be from {low:g} to {high:g}")
    if value == 0 and isinstance(value, int) and short not in _MAY_BE_ZERO and short not in _RANGES:
        raise InvalidArgumentError(f"{what}=0: it must be at least 1")
    if short.startswith(("rope.dimension_count", "attention.", "embedding_length")):
        _check_rope(architecture, merged, what)
    if short.startswith("expert"):
        _check_experts(architecture, merged, what)


def _check_rope(architecture: str, merged: Mapping[str, Any], what: str) -> None:
    """A compute thread asserts that the rotated part of a head is even and no longer than the head."""
    rotated = merged.get(f"{architecture}.rope.dimension_count")
    heads = merged.get(f"{architecture}.attention.head_count")
    width = merged.get(f"{architecture}.embedding_length")
    length = merged.get(f"{architecture}.attention.key_length")
    if length is None and isinstance(heads, int) and isinstance(width, int) and heads:
        length = width // heads
    if not isinstance(rotated, int) or not isinstance(length, int):
        return
    if rotated % 2 or rotated > length:
        raise InvalidArgumentError(
            f"{what}: {rotated} rotated dimensions (rope.dimension_count) in heads of {length}; "
            "it must be an even number, and no more than a head has"
        )


def _check_experts(architecture: str, merged: Mapping[str, Any], what: str) -> None:
    def number(short: str) -> int:
        value = merged.get(f"{architecture}.{short}", 0)
        return value if isinstance(value, int) else 0

    experts, used = number("expert_count"), number("expert_used_count")
    if used > experts or (experts and not used):
        raise InvalidArgumentError(
            f"{what}: {used} experts used of {experts}; it must be from 1 to all of them"
        )
    groups, groups_used = number("expert_group_count"), number("expert_group_used_count")
    if groups > 1 and (experts % groups or groups >= experts or not 0 < groups_used < groups):
        raise InvalidArgumentError(
            f"{what}: {groups_used} of {groups} groups used for {experts} experts; the groups must divide the experts, "
            "and fewer than all of them be used"
        )
