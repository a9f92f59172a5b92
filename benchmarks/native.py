"""Runs of llama-bench and of our own processes, measured in the same way."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llama_runner.system import usable_physical_cores

THREADS = usable_physical_cores()
N_PROMPT = 512
N_GEN = 128


def llama_bench_rate(program: Path, model: Path, *, prompt: int = 0, generate: int = 0) -> float:
    """Tokens a second of one llama-bench repetition after its own warm-up."""
    done = subprocess.run(
        [
            program,
            "-m",
            model,
            "-p",
            str(prompt),
            "-n",
            str(generate),
            "-t",
            str(THREADS),
            "-r",
            "1",
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ratios(ours: Callable[[], float], native: Callable[[], float], rounds: int = 5) -> list[float]:
    """Ours over native, alternating, so that a slow minute of the machine hits both."""
    pairs = [(native(), ours()) for _ in range(rounds)]
    return [mine / theirs for theirs, mine in pairs]


def describe(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


# A process of its own in between: the peak of a child that forks off a large parent would be the parent's.
LAUNCHER = """
import os, sys
null = os.open(os.devnull, os.O_WRONLY)
quiet = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def peak_rss(command: list[object]) -> int:
    """Peak resident bytes of a child process that runs to its end (not below those of a bare interpreter)."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)], capture_output=True, text=True, check=True
    )
    code, peak = map(int, done.stdout.split())
    assert code == 0, f"{command[0]} ended with {code}"
    return peak * (1 if sys.platform == "darwin" else 1024)
