"""Other ways to run the same work: each in a process of its own, where it is installed; none is a dependency."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.conditions import Conditions

MODULES = {"llama-cpp-python": "llama_cpp", "xllamacpp": "xllamacpp", "cyllama": "cyllama"}
SERVER = "llama-server"
CHILD = Path(__file__).with_name("peer_child.py")
PATIENCE = 900  # seconds for one piece of work


class Peers:
    """Those of the peers that there are. They run once each, after ours and native have taken their turns."""

    def __init__(
        self, python: str = sys.executable, llama_server: str | None = None, wanted: bool = True
    ) -> None:
        self.python = python
        self.commands: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}
        if not wanted:
            return
        for name, module in MODULES.items():
            find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
            if subprocess.run([python, "-c", find], check=False, capture_output=True).returncode == 0:
                self.commands[name] = [python, str(CHILD), name]
            else:
                self.missing[name] = "not installed"
        server = llama_server or shutil.which(SERVER)
        if server:
            self.commands[SERVER] = [sys.executable, str(CHILD), SERVER, server]
        else:
            self.missing[SERVER] = "not on PATH"

    @property
    def names(self) -> list[str]:
        return list(self.commands)

    def measure(self, conditions: Conditions, work: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What each peer says of a piece of work: a dict of numbers, or ``{"cannot": why}``."""
        found = {}
        for name, command in self.commands.items():
            conditions.say(f"  {name}")
            found[name] = self._run(command, {**work, "model": str(conditions.model)})
        return found

    @staticmethod
    def _run(command: list[str], work: Mapping[str, Any]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                command, input=json.dumps(work), capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return {"cannot": f"not done after {PATIENCE} s"}
        answers = [line for line in done.stdout.splitlines() if line.startswith('{"peer":')]
        if done.returncode != 0 or not answers:
            lines = [line for line in done.stderr.splitlines() if "Error" in line]
            return {"cannot": f"failed: {lines[-1][:80] if lines else done.returncode}"}
        answer: dict[str, Any] = json.loads(answers[-1])["peer"]
        return answer

    def _cells(
        self, conditions: Conditions, work: Mapping[str, Any], show: Callable[[dict[str, Any]], str]
    ) -> dict[str, str]:
        found = self.measure(conditions, work)
        return {
            name: f"cannot: {answer['cannot']}" if "cannot" in answer else show(answer)
            for name, answer in found.items()
        }

    def rates(self, conditions: Conditions, work: Mapping[str, Any], native: float) -> dict[str, str]:
        """Tokens a second, and how many times native's."""
        return self._cells(
            conditions, work, lambda answer: f"{answer['rate']:.0f} ({answer['rate'] / native:.2f}x)"
        )

    def seconds(self, conditions: Conditions, work: Mapping[str, Any], native: float) -> dict[str, str]:
        """Wall time, and how many times native's."""
        return self._cells(
            conditions, work, lambda answer: f"{answer['seconds']:.1f} ({answer['seconds'] / native:.2f}x)"
        )

    def agents(self, conditions: Conditions, work: Mapping[str, Any], perfect: int) -> dict[str, str]:
        """Prompt tokens computed, how many times a perfect cache's, and the median time to the first token."""
        return self._cells(
            conditions,
            work,
            lambda answer: (
                f"{answer['computed']:,} ({answer['computed'] / perfect:.2f}x), first token {answer['first']:.2f} s"
            ),
        )
