"""The short names of ``registry.toml``, which lies beside this file."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

__all__ = ["ShortName", "short_names"]


@dataclass(frozen=True)
class ShortName:
    """One entry: ``source`` is a ``pypi:`` or ``hf:`` spec, ``sha256`` and ``size`` are the file's own."""

    name: str
    source: str
    sha256: str
    size: int
    license: str
    description: str


@functools.cache
def short_names() -> Mapping[str, ShortName]:
    """Every short name that :func:`~llama_runner.models.resolve_model` knows, with what it stands for."""
    text = resources.files("llama_runner.models").joinpath("registry.toml").read_text("utf-8")
    return MappingProxyType(
        {name: ShortName(name=name, **entry) for name, entry in tomllib.loads(text).items()}
    )
