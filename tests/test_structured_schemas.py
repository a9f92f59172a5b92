"""Text that a constraint let through, under models that know JSON and models that know nothing: all of it is valid."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import Completion, LlamaRunner, errors
from llama_runner.core import Constraint, Model
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


# --- schemas put together at random


def small(rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(-5, 5)
    kinds: list[dict[str, Any]] = [
        {"type": "integer", "minimum": low, "maximum": low + rng.randrange(9)},
        {"type": "string", "maxLength": rng.randrange(4)},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", 1, None, [1], {"a": 1}][: rng.randrange(1, 6)]},
        {"const": rng.choice([1, "x", {"a": [1]}])},
        {"type": ["string", "integer"], "maxLength": 2, "minimum": 0, "maximum": 9},
    ]
    return rng.choice(kinds)


def composed(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.randrange(8)
    if depth > 2 or kind < 2:
        return {**small(rng), **small(rng)} if kind == 1 else small(rng)
    if kind < 5:
        key = ("anyOf", "allOf", "oneOf")[kind - 2]
        return {key: [composed(rng, depth + 1) for _ in range(2)]}
    if kind == 5:
        items = {
            "items": composed(rng, depth + 1),
            "minItems": rng.randrange(2),
            "maxItems": rng.randrange(1, 4),
        }
        return {"type": "array", **items, **({"prefixItems": [small(rng)]} if rng.random() < 0.4 else {})}
    names = ["a", "b", "c", "ab"][: rng.randrange(1, 5)]
    return {
        "type": "object",
        "properties": {name: composed(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": rng.choice([False, False, small(rng)]),
        "patternProperties": {"^x[ab]?$": small(rng)} if rng.random() < 0.2 else {},
        "minProperties": rng.randrange(3),
        "maxProperties": rng.randrange(1, 5),
    }


def written(constraint: Constraint, rng: random.Random) -> str:
    """Text of tokens that are drawn from those allowed, with a liking for what closes things."""
    vocab, tokens = constraint.vocab, []
    while not constraint.stopped and not (constraint.accepting and rng.random() < 0.3):
        bits = np.unpackbits(constraint.compute_mask().view(np.uint8), bitorder="little")
        allowed = [token for token in np.flatnonzero(bits).tolist() if not vocab.is_eog(token)]
        closing = [token for token in allowed if vocab.token_to_piece(token)[:1] in b'"}],:']
        tokens.append(rng.choice(closing if closing and rng.random() < 0.4 else allowed))
        constraint.consume(tokens[-1])
        assert len(tokens) < 2000
    return vocab.detokenize_bytes(tokens).decode()


def test_what_is_not_refused_is_kept(tiny_model: TinyModelFactory) -> None:
    rng, kept, refused = random.Random(3), 0, 0
    with Model(tiny_model("llama", vocab="bpe")) as model:
        for _ in range(600):
            schema = composed(rng)
            try:
                constraint = Constraint.json_schema(model.vocab, schema)
            except errors.ConstraintError:
                refused += 1
                continue
            value = json.loads(written(constraint, rng))
            jsonschema.Draft202012Validator(schema).validate(value)
            kept += 1
    assert kept > 200 and refused > 50
