"""Runs a fuzzer in a child process with bounded memory and time, and says which input did what it must not.

A fuzzer is a file with ``try_input(seed, model)``: it makes an input of the seed alone and raises whatever the library
must not. ``python fuzzing.py FILE MODEL FIRST COUNT`` runs it here, to look at one seed again.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import traceback
from pathlib import Path

INPUTS = int(os.environ.get("LLAMA_RUNNER_FUZZ_INPUTS", "10000"))
MEMORY = 6 << 30  # of address space: stacks are reserved in full, and touched as far as they are needed
CHUNKS = 4


def run_fuzzer(fuzzer: Path, model: Path) -> None:
    """Try INPUTS inputs of ``fuzzer``, and fail with the first seed that did something else than it should."""
    count = max(INPUTS // CHUNKS, 1)
    for first in range(0, INPUTS, count):
        child = subprocess.run(
            [sys.executable, __file__, str(fuzzer), str(model), str(first), str(count)],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        last = child.stdout.split()[-1:]
        assert child.returncode == 0, (
            f"seed {last}, exit code {child.returncode}: python tests/fuzz/fuzzing.py {fuzzer} MODEL "
            f"{''.join(last)} 1\n{child.stderr[-3000:]}"
        )


def main(fuzzer: str, model: str, first: str, count: str) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    spec = importlib.util.spec_from_file_location("fuzzer", fuzzer)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for seed in range(int(first), int(first) + int(count)):
        print(seed, flush=True)  # the last line says what killed the process
        try:
            module.try_input(seed, model)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
