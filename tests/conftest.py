"""Fixtures of the whole suite. Real parts; tiny random models where weights are moot."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# the same examples each time, however slow the machine is; HYPOTHESIS_SEEDED=0 looks for new ones
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=os.environ.get("HYPOTHESIS_SEEDED") != "0",
    database=None,
    print_blob=True,
)
hypothesis.settings.load_profile("suite")

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


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> Iterator[None]:
    """Some tests send themselves Ctrl-C, which a shell that starts the suite in the background has it ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test module every native object that was made in it is gone again.

    A module and not a test: its own fixtures may hold a model for all of its tests. Fixtures of the session hold paths.
    """
    before = live_objects()
    yield
    for item in request.session.items:
        if item.path == request.path:
            (getattr(item, "funcargs", None) or {}).clear()  # pytest lets go of the last test's only later
    for value in vars(request.module).values():  # models that the module keeps by @cache
        if hasattr(value, "cache_clear") and value.__module__ == request.module.__name__:
            value.cache_clear()
    more = {kind: n - before.get(kind, 0) for kind, n in live_objects().items() if n > before.get(kind, 0)}
    assert not more, f"still alive after the last test of this module: {more}"


def live_objects() -> dict[str, int]:
    if "llama_runner.core" not in sys.modules:
        return {}
    from llama_runner.core import live_objects

    gc.collect()
    return live_objects()
