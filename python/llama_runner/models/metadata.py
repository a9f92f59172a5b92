"""A small JSON file that says which model is meant, and what its header must say."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    ModelMismatchError,
    unknown_name,
)
from llama_runner.gguf.files import require_file, storage_error
from llama_runner.gguf.header import GGUFHeader
from llama_runner.models.registry import short_names

__all__ = ["Metadata"]

_FIELDS: dict[str, type[str | int]] = {
    "name": str,
    "path": str,
    "architecture": str,
    "quantization": str,
    "context_length": int,
}
_MAX_BYTES = 1 << 20
_JSON_NAMES = {str: "a string", int: "an integer"}


@dataclass(frozen=True)
class Metadata:
    """``name`` is a label; the file at ``path`` must have this architecture, quantization and context.

    ``path`` is relative to the folder of the JSON file (``origin``), or a ``pypi:`` or ``hf:`` spec, or a
    short name.
    """

    name: str
    path: str
    architecture: str
    quantization: str
    context_length: int
    origin: Path | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Metadata:
        """Read the JSON file at ``path``.

        Raises ModelNotFoundError, StorageError, InvalidArgumentError (no JSON object, a key twice, keys
        missing, a value out of range), UnknownParameterError (a key that does not exist),
        ArgumentTypeError (a value of the wrong type).
        """
        path = Path(path)
        where = f"the metadata file {str(path)!r}"
        size = require_file(path)
        if size > _MAX_BYTES:
            raise InvalidArgumentError(f"{where} has {size} bytes; the limit is {_MAX_BYTES}")
        try:
            data = json.loads(path.read_bytes(), object_pairs_hook=_without_twins)
        except OSError as error:
            raise storage_error(f"cannot read {where}", error) from error
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{where} is not valid JSON: {error}") from error
        return cls(**_checked(data, where), origin=path)

    @property
    def source(self) -> str | Path:
        """What to give to :func:`~llama_runner.models.resolve_model`: a spec, a short name or a path."""
        if self.path.startswith(("hf:", "pypi:")):
            return self.path
        folder = self.origin.parent if self.origin is not None else Path()
        local = folder / Path(self.path).expanduser()
        if self.path in short_names() and not local.is_file():
            return self.path
        return local

    def check(self, header: GGUFHeader) -> None:
        """Compare with a header; ModelMismatchError names every field that differs.

        Compared are ``architecture``, ``quantization`` (whatever its case) and ``context_length``.
        """
        differences: dict[str, tuple[object, object]] = {}
        if self.architecture != header.architecture:
            differences["architecture"] = (self.architecture, header.architecture)
        if self.quantization.casefold() != (header.quantization or "").casefold():
            differences["quantization"] = (self.quantization, header.quantization)
        if self.context_length != header.context_length:
            differences["context_length"] = (self.context_length, header.context_length)
        if differences:
            listed = "; ".join(
                f"{key}: expected {want!r}, found {got!r}" for key, (want, got) in differences.items()
            )
            raise ModelMismatchError(
                f"{str(header.path)!r} is not the model {self.name!r}: {listed}", differences
            )


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twin!r} occurs twice")
    return result


def _checked(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"{where} must hold a JSON object with {', '.join(_FIELDS)}")
    for key in data:
        if key not in _FIELDS:
            raise unknown_name(key, _FIELDS, where)
    missing = [key for key in _FIELDS if key not in data]
    if missing:
        raise InvalidArgumentError(f"{where} lacks {', '.join(missing)}")
    for key, kind in _FIELDS.items():
        value: Any = data[key]
        if type(value) is not kind:
            raise ArgumentTypeError(
                f"{where}: {key} must be {_JSON_NAMES[kind]}, not {json.dumps(value)[:60]}"
            )
        if isinstance(value, str) and not value.strip():
            raise InvalidArgumentError(f"{where}: {key} is empty")
        if isinstance(value, int) and value <= 0:
            raise InvalidArgumentError(f"{where}: {key} must be positive, not {value}")
    return data
