"""Fixtures of the whole suite. Real parts; tiny random models where weights are moot."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["fixtures_models", "fixtures_sources"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, fetched once and kept in the user's cache."""
    from llama_runner.models import resolve_model

    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def llama_cpp_dir() -> Path:
    """The vendored llama.cpp, which installing the package has fetched."""
    folder = Path(__file__).parent.parent / "vendor" / "llama.cpp"
    assert (folder / "include" / "llama.h").is_file(), (
        "vendor/llama.cpp is empty: run vendor/fetch_llama_cpp.py"
    )
    return folder
