"""Runs many cases in few child processes, and tells which case a process died of.

A child works through numbered cases and says on its standard output which one it begins and how it ended. When it dies,
the case that it was in gets the blame and a new child goes on with the next one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
BEGIN, END = "\x1e>", "\x1e<"


@dataclass(frozen=True)
class Outcome:
    """How a case ended: what it reported, or the signal (or exit status) and the last words of the process."""

    number: int
    report: Any = None
    died: str | None = None
    stderr: str = ""


def run_cases(
    worker: Path, arguments: list[str], numbers: range, *, timeout: float = 600
) -> Iterator[Outcome]:
    """The outcome of every case of ``numbers``; ``worker`` is a Python file whose ``main`` calls :func:`work`."""
    start = numbers.start
    while start < numbers.stop:
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            str(worker),
            str(start),
            str(numbers.stop),
            *arguments,
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            "MALLOC_PERTURB_": "165",
        }
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, env=environment)
        begun = None
        for line in done.stdout.decode("utf-8", "replace").split("\n"):
            if line.startswith(BEGIN):
                begun = int(line[len(BEGIN) :])
            elif line.startswith(END):
                yield Outcome(begun, json.loads(line[len(END) :]))
                start, begun = begun + 1, None
        stderr = done.stderr.decode("utf-8", "replace")
        if begun is not None:
            yield Outcome(begun, died=how_it_ended(done.returncode), stderr=stderr[-3000:])
            start = begun + 1
        elif done.returncode != 0:
            # before the first case or after the last one: the exit of the interpreter is part of what is tested
            raise AssertionError(
                f"{worker.name} {how_it_ended(done.returncode)} outside a case:\n{stderr[-3000:]}"
            )


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def work(case: Callable[[int], Any], *, seconds: float = 20) -> None:
    """In the child: run the cases that the command line names; one that takes ``seconds`` ends the process."""
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        os.write(1, f"{BEGIN}{number}\n".encode())
        if hasattr(signal, "setitimer"):
            signal.setitimer(
                signal.ITIMER_REAL, seconds
            )  # its default action ends the process, even inside C
        report = json.dumps(case(number))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(1, f"{END}{report}\n".encode())


def limit_memory(n_bytes: int) -> None:
    """Fail allocations beyond ``n_bytes`` of address space, where the system can."""
    if sys.platform == "linux" and "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which maps terabytes
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
