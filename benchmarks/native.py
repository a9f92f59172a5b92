"""Runs of llama-bench and of our own processes, measured in the same way."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
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


def peak_rss(command: list[object]) -> int:
    """Peak resident bytes of a child process that runs to its end."""
    child = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda stream: errors.append(stream.read()), args=(child.stderr,))
    reader.start()
    _, status, usage = os.wait4(child.pid, 0)
    reader.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, errors[0][-2000:]
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
