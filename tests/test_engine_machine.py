"""More than 10,000 random operations on an engine of each memory kind, against a Python account.

After every step the cell table, the tree and the tiers are compared exactly (``engine_account``); what a request
samples and the log-probabilities that it reports are compared with the same text alone in a fresh context, and what it
says of the cache with a cache that forgets nothing (``engine_truth``). The operations are those of ``engine_machine``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from engine_kinds import KINDS
from engine_machine import EngineMachine
from engine_truth import Alone
from fixtures_models import TinyModelFactory
from llama_runner.core import LoraAdapter, Model
from tiny_adapters import random_pairs, write_lora

STEPS = 40  # of one run
RUNS = 66  # for each of the six kinds: more than 10,000 steps in all


@pytest.fixture
def machine_of(tiny_model: TinyModelFactory, tmp_path: Path) -> Iterator[Any]:
    made: list[type[EngineMachine]] = []

    def make(name: str) -> type[EngineMachine]:
        kind = KINDS[name]
        path = tiny_model(kind.model, **kind.options)
        model = Model(path)
        adapter = LoraAdapter(
            model, write_lora(tmp_path / "adapter.gguf", random_pairs(path), architecture=model.architecture)
        )
        alone = Alone(model), Alone(model, {adapter: 1.0})
        members = {
            "kind": kind,
            "model": model,
            "adapter": adapter,
            "alone": alone,
            "folder": tmp_path,
            "failures": {},
        }
        counts = dict.fromkeys(["steps", "requests", "exact_checks", "preempted", "runs"], 0)
        made.append(type("Machine", (EngineMachine,), {**members, **counts}))
        return made[-1]

    yield make
    for machine in made:  # hypothesis keeps the class
        for alone in machine.alone:
            alone.close()
        machine.adapter.close()  # nothing holds it any more
        del machine.model, machine.alone, machine.adapter


@pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning")
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_operations(machine_of: Any, name: str) -> None:
    machine = machine_of(name)
    run_state_machine_as_test(
        seed(zlib.crc32(name.encode()))(machine),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
            report_multiple_bugs=False,
        ),
    )
    compared = [alone.compared for alone in machine.alone]
    near_ties = [alone.near_ties for alone in machine.alone]
    print(
        f"{name}: {machine.steps} steps, {machine.requests} requests, {machine.preempted} preempted, "
        f"{machine.exact_checks} exact, {machine.failures}; without an adapter and with one {compared} greedy tokens, "
        f"{near_ties} near ties"
    )
    assert machine.steps >= 10_000 / len(KINDS)
    assert machine.requests >= machine.steps / 10
    assert min(machine.exact_checks, machine.preempted) > 0
    assert machine.failures
    for alone in machine.alone:
        assert alone.compared > 100
        assert alone.near_ties <= alone.compared / 100
