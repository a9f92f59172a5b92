"""``json_schema_to_grammar``: grammars that keep a schema, and schemas that a grammar cannot keep."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Model, SamplerChain, Vocab, json_schema_to_grammar


@pytest.fixture(scope="module")
def vocab(tiny_model: TinyModelFactory) -> Vocab:
    return Model(tiny_model("llama")).vocab


def names(kind: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "title": kind}


TREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "child": {"$ref": "#/$defs/node"}},
    "required": ["name"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"$ref": "#/$defs/node"},
            },
            "required": ["n"],
        }
    },
}
SUPPORTED: dict[str, Any] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -12, "maximum": 345},
    "integer from": {"type": "integer", "minimum": 17},
    "integer to": {"type": "integer", "exclusiveMaximum": 100},
    "integer between fractions": {"type": "integer", "minimum": 1.5, "maximum": 4.5},
    "number": {"type": "number"},
    "string": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^(ab|c[de]{2,3})x?$"},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "enum": {"enum": ["a", 1, None, True, {"b": [1.5]}]},
    "const": {"const": {"a": "ü"}},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}]},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 5, "maximum": 6}]},
    "types": {"type": ["boolean", "null"]},
    "types with bounds": {"type": ["integer", "null"], "minimum": 3, "maximum": 5},
    "object": names("o", a={"type": "boolean"}, b={"type": "string", "maxLength": 2}),
    "optional": {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}},
    "extra": {
        "type": "object",
        "properties": {"ab": {"type": "null"}},
        "additionalProperties": {"type": "boolean"},
    },
    "nested": names("n", list={"type": "array", "items": names("i", x={"type": "integer"}), "maxItems": 2}),
    "references": TREE,
    "annotated": {"type": "null", "title": "t", "description": "d", "default": None, "examples": [], "x-mine": 1},
    "neutral": {"type": "array", "items": {"type": "null"}, "maxItems": 3, "uniqueItems": False},
    "unicode names": names("u", **{"größe": {"type": "null"}, "a b": {"type": "null"}, 'q"': {"type": "null"}}),
}  # fmt: skip


def sample(grammar: str, vocab: Vocab, rng: np.random.Generator, most: int = 400) -> str | None:
    """Text by chance within a grammar, or None when it does not come to an end."""
    chain = SamplerChain().grammar(vocab, grammar).dist(int(rng.integers(2**31)))
    # shorter text is likelier, so that what may be repeated comes to an end
    logits = rng.normal(0, 1, len(vocab)).astype(np.float32)
    logits[[token for token in range(len(vocab)) if not vocab.detokenize_bytes([token]).isascii()]] = -50
    for close in ('"', "}", "]"):
        logits[vocab.tokenize(close, add_special=False)[-1]] += 6
    tokens: list[int] = []
    while len(tokens) < most:
        token = chain.apply(logits)
        if vocab.is_eog(token):
            return vocab.detokenize_bytes(tokens).decode()
        chain.accept(token)
        tokens.append(token)
    return None


@pytest.mark.parametrize("schema", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_text_keeps_the_schema(vocab: Vocab, schema: Any) -> None:
    grammar = json_schema_to_grammar(schema)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    rng = np.random.default_rng(1)
    texts = [sample(grammar, vocab, rng) for _ in range(12)]
    finished = [text for text in texts if text is not None]
    assert len(finished) >= 4
    for text in finished:
        if schema.get("format") == "date":
            assert len(json.loads(text)) == 10  # the grammar knows no calendar
            continue
        validator.validate(json.loads(text))


@pytest.mark.real_model
def test_the_real_model_keeps_a_schema(smollm2: Any) -> None:
    from llama_runner.core import Batch, Context

    model = Model(smollm2)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
    }
    context = Context(model, n_ctx=256)
    chain = SamplerChain().grammar(model.vocab, json_schema_to_grammar(schema)).temp(0.8).dist(3)
    tokens = model.vocab.tokenize("Paris as JSON: ")
    batch = Batch(64)
    batch.add_sequence(tokens, pos=0, seq_id=0, logits="last")
    text = b""
    for position in range(len(tokens), 200):
        context.decode(batch)
        token = chain.sample(context, -1)
        if model.vocab.is_eog(token):
            break
        text += model.vocab.detokenize_bytes([token])
        batch.clear()
        batch.add(token, position, [0], True)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", [{}, True, "{}", '{"type": "object"}', b'{"type": "null"}', "true"])
def test_what_a_schema_may_be(vocab: Vocab, schema: Any) -> None:
    SamplerChain().grammar(vocab, json_schema_to_grammar(schema))


# ---------------------------------------------------------------------------------------------------- unsupported

S, N, OBJECT = {"type": "string"}, {"type": "null"}, {"type": "object", "properties": {"a": {"type": "null"}}}
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"type": "number", "minimum": 1}, "minimum"),
    ({"type": "number", "multipleOf": 2}, "multipleOf"),
    ({"type": "integer", "multipleOf": 2}, "multipleOf"),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": 1}, "exclusiveMinimum"),
    ({**S, "pattern": "^a$", "minLength": 1}, "minLength"),
    ({**S, "format": "date", "maxLength": 1}, "maxLength"),
    ({**S, "format": "email"}, "format"),
    ({**S, "pattern": "a"}, "anchored"),
    ({**S, "pattern": "^(?=a)b$"}, "group syntax"),
    ({**S, "pattern": r"^\d+$"}, "escape"),
    ({"minimum": 1}, "minimum"),
    ({"type": "array", "items": N, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": N}, "contains"),
    ({"type": "array", "prefixItems": [N], "minItems": 1}, "minItems"),
    ({"type": "array", "items": N, "prefixItems": [N]}, "prefixItems"),
    ({**OBJECT, "minProperties": 1}, "minProperties"),
    ({**OBJECT, "patternProperties": {"^a": N}}, "patternProperties"),
    ({**OBJECT, "propertyNames": S}, "propertyNames"),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({**OBJECT, "if": OBJECT, "then": OBJECT}, "if"),
    ({**OBJECT, "not": OBJECT}, "not"),
    ({**OBJECT, "required": ["b"]}, "'b'"),
    ({**OBJECT, "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({**OBJECT, "requried": ["a"]}, "requried"),
    ({"properties": {}, "anyOf": [OBJECT]}, "properties"),
    ({"type": "object", "anyOf": [OBJECT]}, "type"),
    ({"anyOf": [N], "oneOf": [N]}, "anyOf"),
    ({"allOf": [N, N]}, "allOf"),
    ({"allOf": [OBJECT]}, "allOf"),
    ({"const": 1, "minimum": 3}, "minimum"),
    ({**S, "enum": ["a", 1]}, "1 is not of type"),
    ({**S, "const": None}, "None is not of type"),
    ({"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": N}}, "minimum"),
    ({"type": ["string", "null"], "minimum": 1}, "minimum"),
    ({"$defs": {"a": {"type": "number", "minimum": 1}}, "$ref": "#/$defs/a"}, "#/\\$defs/a"),
    ({"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": 1}}}, "#/items/items"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "word"), UNSUPPORTED, ids=lambda value: str(value)[:60])
def test_what_would_be_passed_over_is_named(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=word):
        json_schema_to_grammar(schema)
    assert "root ::=" in json_schema_to_grammar(schema, ignore_unsupported=True)


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    json_schema_to_grammar({"type": "string", "pattern": "a"}, ignore_unsupported=True)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------- refused


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def circle() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


CHAIN = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(3_000)} | {"d3000": N}
REFUSED: list[tuple[Any, str]] = [
    (False, "false"),
    ("", "JSON text"),
    ("{", "JSON text"),
    ("[" * 100_000, "JSON text"),
    ({"type": "thing"}, "thing"),
    ({"type": []}, "empty"),
    ({"type": 3}, "3"),
    ({"enum": []}, "at least one"),
    ({"anyOf": []}, "at least one"),
    ({"anyOf": {}}, "at least one"),
    ({"properties": [1]}, "properties"),
    ({"properties": {"a": 3}}, "no schema"),
    ({"type": "array", "items": 3}, "no schema"),
    ({"type": "array", "items": False}, "no schema"),
    ({"additionalProperties": 3}, "additionalProperties"),
    ({**OBJECT, "required": "a"}, "list of names"),
    ({"pattern": 3}, "pattern"),
    ({**S, "pattern": "^a(b$"}, "unbalanced"),
    ({**S, "pattern": "^[a$"}, "unterminated"),
    ({**S, "pattern": "^*$"}, "nothing to repeat"),
    ({**S, "pattern": "^a{5,2}$"}, "repeats"),
    ({**S, "pattern": "^a{1,100000}$"}, "100000 times"),
    ({**S, "maxLength": 10**9}, "maxLength"),
    ({**S, "maxLength": -1}, "maxLength"),
    ({**S, "maxLength": "3"}, "maxLength"),
    ({**S, "maxLength": True}, "maxLength"),
    ({**S, "minLength": 3, "maxLength": 2}, "minLength"),
    ({"type": "array", "items": N, "minItems": 10**9}, "minItems"),
    ({"type": "integer", "minimum": 10**30}, "64 bits"),
    ({"type": "integer", "minimum": 10**17}, "at most"),
    ({"type": "integer", "minimum": 1e300}, "at most"),
    ({"type": "integer", "minimum": math.nan}, "nan"),
    ({"type": "integer", "minimum": "1"}, "minimum"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer"),
    ({"type": "integer", "minimum": 4.2, "maximum": 4.8}, "no integer"),
    ({"const": math.inf}, "inf"),
    ({"const": "\ud800"}, "character"),
    ({"const": "a\0"}, "character"),
    ({"$ref": "https://example.org/s.json"}, "within the schema"),
    ({"$ref": "s.json#/a"}, "within the schema"),
    ({"$ref": "#"}, "within the schema"),
    ({"$ref": 3}, "within the schema"),
    ({"$ref": "#/$defs/a"}, "leads nowhere"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "itself"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [N, {"$ref": "#/$defs/a"}]}}}, "itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "itself"),
    ({"anyOf": [{"$ref": "#/$defs/a-b"}, {"$ref": "#/$defs/a_b"}], "$defs": {"a-b": N, "a_b": S}}, "to the grammar"),
    (deep(100), "nests"),
    (circle(), "nests"),
    ({"enum": list(range(30_000))}, "more than 20000"),
    ({"properties": {"x" * 200: N}}, "at most 100"),
    ({"properties": {"a]": N}, "additionalProperties": True, "type": "object"}, "a]"),
    ({"$ref": "#/$defs/d0", "$defs": CHAIN}, "nests|refers|recurs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "reason"), REFUSED, ids=lambda value: str(value)[:50] if str(value) else "empty"
)
def test_schemas_that_are_refused(schema: Any, reason: str) -> None:
    for ignore in (False, True):
        with pytest.raises(errors.InvalidArgumentError, match=reason):
            json_schema_to_grammar(schema, ignore_unsupported=ignore)


@pytest.mark.parametrize(
    "schema", [None, 3, [], 1.5, object(), {1: "a"}, {"a": {2: 3}}, {"const": object()}, {"const": {1, 2}}]
)
def test_schemas_of_a_wrong_type(schema: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="schema"):
        json_schema_to_grammar(schema)


def test_switches_of_a_wrong_type() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="ignore_unsupported"):
        json_schema_to_grammar({}, ignore_unsupported=1)
    with pytest.raises(errors.ArgumentTypeError, match="timeout"):
        json_schema_to_grammar({}, timeout="1")


def test_many_optional_properties_are_bounded_in_time() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1500)}}
    with pytest.raises(errors.InvalidArgumentError, match=r"more than 300 ms|of memory|rules"):
        json_schema_to_grammar(schema, timeout=0.3)


def test_small_stacks(tiny_model: TinyModelFactory) -> None:
    code = """
import json, sys, threading
from llama_runner import errors
from llama_runner.core import json_schema_to_grammar
def run():
    for schema in json.load(sys.stdin):
        try:
            json_schema_to_grammar(schema, ignore_unsupported=True, timeout=1)
        except errors.InvalidArgumentError:
            pass
    print("alive")
threading.stack_size(256 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    chained = {f"d{i}": names("d", n={"$ref": f"#/$defs/d{i + 1}"}) for i in range(999)}
    schemas = [
        deep(60), {"properties": {"x" * 100: N}, "additionalProperties": True, "type": "object"},
        {"$ref": "#/$defs/d0", "$defs": chained | {"d999": N}},
        {"type": "string", "pattern": "^" + "(" * 5000 + ")" * 5000 + "$"},
        {"type": "string", "pattern": "^" + "a" * 1_000_000 + "$"}, {"const": "x" * 1_000_000},
        {"type": "object", "properties": {f"p{i}": N for i in range(500)}},
    ]  # fmt: skip
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(schemas),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (child.returncode, child.stdout.strip()) == (0, "alive"), child.stderr[-800:]
