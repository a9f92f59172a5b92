"""The engine's benchmarks, as ``python -m benchmarks`` runs them; ``--benchmark-json`` keeps what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.conditions import Conditions
from benchmarks.peers import Peers


@pytest.fixture(scope="module")
def conditions(smollm2: Path) -> Conditions:
    return Conditions(smollm2, peers=Peers(wanted=False))


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.benchmark(group="engine")
def bench_engine(benchmark, conditions, name):
    """Each once: it takes its own rounds, against native in turn."""
    rows = benchmark.pedantic(lambda: list(BENCHMARKS[name](conditions)), rounds=1)
    benchmark.extra_info.update({row.name: row.to_dict() for row in rows})
