"""Pytest plugin: tiny models, each written once a session.

Load it from the top-level conftest with `pytest_plugins = ["fixtures_models"]`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import pytest

from tiny_models import DECODER_KINDS, KINDS, write_tiny_model


class TinyModelFactory(Protocol):
    """`tiny_model("llama")`, or with any keyword of `write_tiny_model`; equal calls share one file."""

    def __call__(self, kind: str = "llama", **options: Any) -> Path: ...


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModelFactory:
    """A factory of tiny models. All tests of the session share the files: copy one before changing it."""
    folder = tmp_path_factory.mktemp("tiny_models")
    written: dict[str, Path] = {}

    def make(kind: str = "llama", **options: Any) -> Path:
        # The repr tells True from 1 and orders nested values; options hold plain data only.
        key = f"{kind} {sorted(options.items())!r}"
        if key not in written:
            name = re.sub(r"[^a-z0-9]+", "-", kind.lower())
            written[key] = write_tiny_model(folder / f"{len(written):03d}-{name}.gguf", kind, **options)
        return written[key]

    return make


@pytest.fixture(params=KINDS, scope="session")
def any_kind(request: pytest.FixtureRequest) -> str:
    """Every memory kind in turn, bert (no memory) included."""
    return str(request.param)


@pytest.fixture(params=DECODER_KINDS, scope="session")
def decoder_kind(request: pytest.FixtureRequest) -> str:
    """Every memory kind that generates text, in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def any_model_path(tiny_model: TinyModelFactory, any_kind: str) -> Path:
    """A tiny model of every kind in turn."""
    return tiny_model(any_kind)


@pytest.fixture(scope="session")
def decoder_model_path(tiny_model: TinyModelFactory, decoder_kind: str) -> Path:
    """A tiny model of every kind that generates text, in turn."""
    return tiny_model(decoder_kind)
