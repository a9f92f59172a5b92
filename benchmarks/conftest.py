"""Benchmarks print ratios against llama.cpp's own programs in the same run: machines are noisy, ratios less so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct."""
    from llama_runner.models import resolve_model

    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def llama_bench() -> Path:
    """llama.cpp's llama-bench, built from the same tree with the same flags."""
    from native_tools import native_tool

    return native_tool("llama-bench")


@pytest.fixture(scope="session")
def decode_loop() -> Path:
    """Our loop of single tokens in C, built from the same tree with the same flags."""
    from native_tools import native_tool

    return native_tool("decode_loop")
