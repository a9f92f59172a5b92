"""Text that a constraint let through, under models that know JSON and models that know nothing: all of it is valid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import Completion, LlamaRunner
from structured_schemas import SCHEMAS, WORDY

# weights drawn at random, a vocabulary of each kind, and an architecture of each memory that it may matter for
RANDOM = {"spm": ("llama", "spm", 4), "bpe": ("llama", "bpe", 3), "recurrent": ("mamba", "bpe", 1)}
MOST = 700  # tokens; those of random weights are a byte or two


def check(schema: dict[str, Any], completion: Completion) -> None:
    assert completion.finish_reason == "eos", completion.text[-200:]
    value = json.loads(completion.text)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
    assert completion.parsed == value


def runs(runner: LlamaRunner, n: int, schemas: dict[str, Any], prompt: str, **options: Any) -> int:
    """``n`` generations for each schema, all that belong to a few schemas at once; how many there were."""
    names, done = list(schemas), 0
    for start in range(0, len(names), 4):
        streams = [
            (name, runner.stream(prompt, json_schema=schemas[name], seed=start + i, **options))
            for name in names[start : start + 4]
            for i in range(n)
        ]
        for name, stream in streams:
            for _ in stream:
                pass
            try:
                check(schemas[name], stream.completion)
            except BaseException as error:
                error.add_note(f"{name}: {stream.completion.text}")
                raise
            done += 1
    return done


@pytest.fixture(scope="module")
def tiny(tiny_model: TinyModelFactory) -> Iterator[dict[str, LlamaRunner]]:
    runners = {
        name: LlamaRunner(
            tiny_model(kind, vocab=vocab, n_ctx_train=8192),
            n_ctx=8192 if kind == "llama" else 2048,
            n_threads=1,
        )
        for name, (kind, vocab, _) in RANDOM.items()
    }
    yield runners
    for runner in runners.values():
        runner.close()


def test_there_are_schemas_enough() -> None:
    assert len(SCHEMAS) >= 60
    assert len(SCHEMAS) * (sum(n for _, _, n in RANDOM.values()) + 1) >= 500


@pytest.mark.parametrize("name", RANDOM)
def test_random_weights_write_valid_json(name: str, tiny: dict[str, LlamaRunner]) -> None:
    n = RANDOM[name][2]
    # flat probabilities: nothing but the constraint says where anything ends
    assert runs(tiny[name], n, SCHEMAS, "hello", temperature=1.0, top_k=0, max_tokens=MOST) == n * len(
        SCHEMAS
    )


@pytest.mark.real_model
def test_a_small_model_writes_valid_json(smollm2: Path) -> None:
    with LlamaRunner(smollm2, n_ctx=8192) as runner:
        # hot, and no token twice too often: this model writes zeros after a decimal point without end
        options = {"temperature": 1.0, "repeat_penalty": 1.2, "max_tokens": 300}
        schemas = SCHEMAS | WORDY
        assert runs(runner, 1, schemas, "A JSON value:\n", **options) == len(schemas)
        counters = runner.counters.loop
        # what could not be otherwise was not sampled
        assert counters["tokens_forced"] > 0.2 * counters["tokens_sampled"]
        assert counters["rows_forced"] <= counters["tokens_forced"]
