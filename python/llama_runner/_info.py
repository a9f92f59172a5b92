"""What this installation is made of."""

from __future__ import annotations

import importlib.metadata
from typing import Any

__all__ = ["__version__", "build_info"]

try:
    __version__ = importlib.metadata.version("llama-runner")
except importlib.metadata.PackageNotFoundError:
    __version__ = "0+source"  # run from a source tree that was never installed


def build_info() -> dict[str, Any]:
    """The facts of this build and of the machine it runs on, ready for JSON.

    ``version``; ``llama_cpp_commit`` and ``llama_cpp_release``; ``compiler``, ``system``, ``build_type``; ``native``
    and ``portable``; ``backends``, each with its state and the reason; ``devices`` found at run time, memory in bytes;
    ``cpu_features`` in use; ``physical_cores`` that this process may use. Loads the backends. Any thread.
    """
    from llama_runner import core
    from llama_runner.system import usable_physical_cores

    return {
        "version": __version__,
        **core.build_facts(),
        "devices": core.devices(),
        "cpu_features": cpu_features(core.system_info()),
        "physical_cores": usable_physical_cores(),
    }


def cpu_features(line: str) -> list[str]:
    """``"CPU : AVX = 1 | AVX2 = 1 | FMA = 0 |"`` as ``["AVX", "AVX2"]``."""
    features = []
    for part in line.split("|"):
        name, _, value = part.rpartition(":")[2].partition("=")
        if value.strip() == "1":
            features.append(name.strip())
    return features
