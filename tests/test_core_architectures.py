"""Every architecture that llama.cpp knows: no crash, no wrong logits, and ``Model.capabilities`` says what it can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from architectures import COLUMNS, PAGE, STEPS, page, release, try_out, try_out_all, write_models
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Capabilities, Context, Model

Outcomes = dict[str, dict[str, Any]]

# what a step is in Capabilities; the others are no capability, or not one of the model alone
FIELDS = {
    name: f"can_{name}"
    for name in ("fork", "fork_part", "remove_tail", "remove_middle", "shift", "save_state", "steer")
}


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All of them, written once, tried out and deleted: they are 900 MB."""
    folder = tmp_path_factory.mktemp("architectures")
    try:
        return try_out_all(write_models(folder))
    finally:
        shutil.rmtree(folder)


@pytest.mark.native
def test_no_model_ends_the_process(outcomes: Outcomes) -> None:
    assert len(outcomes) > 107
    assert {name: outcome["died"] for name, outcome in outcomes.items() if "died" in outcome} == {}


@pytest.mark.native
@pytest.mark.parametrize("step", STEPS)
def test_every_result_is_right_or_refused(outcomes: Outcomes, step: str) -> None:
    found = {name: outcome.get(step, "died") for name, outcome in outcomes.items()}
    assert {name: how for name, how in found.items() if not how.startswith(("yes", "refused: "))} == {}
    assert "yes" in found.values()


@pytest.mark.native
def test_capabilities_say_what_was_done(outcomes: Outcomes) -> None:
    for name, outcome in outcomes.items():
        done = {field: outcome[step] == "yes" for step, field in FIELDS.items()}
        assert done == {field: outcome["able"][field] for field in done}, name
        assert outcome["decode"] == "yes", name
        assert (outcome["able"]["no_shift"] is None) == outcome["able"]["can_shift"], name
        assert outcome["able"]["memory"] != "unknown", name


@pytest.mark.native
def test_every_kind_is_among_them(outcomes: Outcomes) -> None:
    ables = [outcome["able"] for outcome in outcomes.values()]
    kinds = {"attention", "sliding-window", "recurrent", "hybrid", "none"}
    assert {able["memory"] for able in ables} == kinds
    for field in (
        "has_encoder",
        "has_logits",
        "every_row",
        "causal",
        "can_shift",
        "can_remove_tail",
        "can_steer",
    ):
        assert {able[field] for able in ables} == {True, False}, field


@pytest.mark.native
def test_the_page_says_the_same(outcomes: Outcomes) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(outcomes, release()), "run python tests/architectures.py"


# ---------------------------------------------------------------------------------------------------- without the tool

EXPECTED = {
    "llama": ("attention", "llama_kv_cache"),
    "swa": ("sliding-window", "llama_kv_cache_iswa"),
    "mamba": ("recurrent", "llama_memory_recurrent"),
    "hybrid": ("hybrid", "llama_memory_hybrid"),
    "bert": ("none", ""),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_tiny_models_do_what_they_say(tiny_model: TinyModelFactory, tmp_path: Path, kind: str) -> None:
    outcome = try_out(tiny_model(kind), tmp_path)
    able = outcome["able"]
    assert (able["memory"], able["memory_class"]) == EXPECTED[kind]
    assert {step: how for step, how in outcome.items() if str(how).startswith(("wrong", "error"))} == {}
    for step, field in FIELDS.items():
        assert (outcome[step] == "yes") == able[field], step
    cells = kind in ("llama", "swa")
    for field in ("can_fork_part", "can_remove_tail", "can_remove_middle"):
        assert able[field] == cells
    assert able["can_shift"] == (kind != "bert")
    assert able["has_logits"] == able["causal"] == able["can_save_state"] == (kind != "bert")


def test_capabilities_are_facts(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    able = model.capabilities
    assert isinstance(able, Capabilities)
    assert able is model.capabilities
    assert able == Model(tiny_model("llama")).capabilities
    assert not able.embeds_only
    assert Model(tiny_model("bert")).capabilities.embeds_only
    with pytest.raises(AttributeError):
        able.memory = "none"  # type: ignore[misc]
    with pytest.raises(errors.ModelCapabilityError):
        _ = Model(tiny_model("llama"), vocab_only=True).capabilities
    model.close()
    with pytest.raises(errors.ClosedError):
        _ = model.capabilities


YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
}


@pytest.mark.parametrize("attention", [None, 1.0 / (1.0 + 0.1 * 1.3862943611198906)])
def test_a_rotation_that_lengthens_keys_is_no_shift(
    tiny_model: TinyModelFactory, attention: float | None
) -> None:
    # YaRN makes keys longer as it turns them, and a shift would do so again; with this factor it does not
    more = {} if attention is None else {"llama.rope.scaling.attn_factor": attention}
    model = Model(tiny_model("llama", metadata=YARN | more))
    able = model.capabilities
    assert able.can_shift == (attention is not None), able.no_shift
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = Batch(4)
        batch.add_sequence([300, 301, 302, 303])
        ctx.decode(batch)
        if able.can_shift:
            ctx.memory.seq_add(0, 0, -1, 5)
        else:
            with pytest.raises(errors.ModelCapabilityError, match="turn the keys"):
                ctx.memory.seq_add(0, 0, -1, 5)
            with pytest.raises(errors.ModelCapabilityError, match="turn the keys"):
                ctx.memory.seq_div(0, 0, -1, 2)
        assert ctx.memory.seq_pos_max(0) == (8 if able.can_shift else 3)


def test_every_column_is_a_step() -> None:
    assert set(COLUMNS) <= set(STEPS)
    assert set(FIELDS.values()) <= set(Capabilities.__slots__)
