"""Runs of llama-bench and llama-batched-bench and of our own processes, measured in the same way."""

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


def llama_bench_rate(
    program: Path, model: Path, *, prompt: int = 0, generate: int = 0, threads: int = THREADS
) -> float:
    """Tokens a second of one llama-bench repetition after its own warm-up."""
    command = [program, "-m", model, "-p", prompt, "-n", generate, "-t", threads, "-r", 1, "-o", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def batched_bench(
    program: Path,
    model: Path,
    *,
    n_ctx: int,
    prompt: int,
    generate: int,
    streams: int,
    shared: bool = False,
    threads: int = THREADS,
) -> dict[str, float]:
    """One llama-batched-bench in a unified memory: ``t_pp``, ``t_tg``, ``t`` in seconds, ``speed`` over all."""
    command = [
        program, "-m", model, "-c", n_ctx, "-b", 2048, "-ub", 512, "-kvu", "-t", threads, "--output-format", "jsonl",
        "-npp", prompt, "-ntg", generate, "-npl", streams, *(["-pps"] if shared else []),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('{"n_kv_max"')]
    assert len(lines) == 1, done.stdout + done.stderr
    found: dict[str, float] = json.loads(lines[0])
    return found


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
