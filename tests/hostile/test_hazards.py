"""Every site of docs/hazards.md is provoked in a child process: a typed error, no death, and the object works on."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest

from hostile.hazard import HAZARDS
from hostile.runner import Outcome, run_cases

FOLDER = Path(__file__).parent
MODULES = sorted(f"hostile.{path.stem}" for path in FOLDER.glob("cases_*.py"))
CASES: dict[str, list[str]] = {}
for _module in MODULES:
    _known = set(HAZARDS)
    importlib.import_module(_module)
    CASES[_module] = [name for name in HAZARDS if name not in _known]
ALL = [(module, name) for module, names in CASES.items() for name in names]


@functools.cache
def outcomes(module: str) -> dict[str, Outcome]:
    """All cases of a module, run in one child (and one more for each death)."""
    names = CASES[module]
    done = run_cases(FOLDER / "worker.py", [module], range(len(names)))
    return {names[outcome.number]: outcome for outcome in done}


@pytest.mark.parametrize(("module", "name"), ALL, ids=[name for _, name in ALL])
def test_hazard(module: str, name: str) -> None:
    outcome = outcomes(module)[name]
    assert outcome.died is None, f"the process died of it ({outcome.died}):\n{outcome.stderr}"
    assert outcome.report is None, outcome.report
