"""llama.cpp's own programs, built from the same tree with the same flags, to compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "tools"


def program(name: str) -> str:
    """A build program: from this environment's scripts first, then from PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f'{name} is missing: pip install ".[test]"'
    return found


def native_tool(name: str) -> Path:
    """Path of one such as ``llama-bench``, ``llama-server`` or ``test-llama-archs``, built unless it is there."""
    cache = (
        []
        if not shutil.which("ccache")
        else [
            "-DCMAKE_C_COMPILER_LAUNCHER=ccache",
            "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",
        ]
    )
    # tests may run inside a build frontend's environment, whose paths must not reach this build's cache
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    run(
        [program("cmake"), "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
         "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_RUNNER_TOOLS=ON", f"-DPython_EXECUTABLE={sys.executable}", *cache],
        env,
    )  # fmt: skip
    run([program("cmake"), "--build", BUILD, "--target", name], env)
    found = [path for path in BUILD.glob(f"**/{name}*") if path.is_file() and os.access(path, os.X_OK)]
    assert len(found) == 1, found
    return found[0]


def run(command: list[object], env: dict[str, str]) -> None:
    done = subprocess.run(
        [str(part) for part in command], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
