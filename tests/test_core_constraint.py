"""``Constraint``: it allows the tokens that llguidance's own Python package allows, and no error is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import (
    Batch,
    Constraint,
    ConstraintVocab,
    Context,
    Model,
    SamplerChain,
    Vocab,
    live_objects,
)
from llama_runner.core.constraint import check_choices, llguidance_version

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ITSELF = {"$ref": "#/$defs/a"}
LARK = 'start: greeting ", " NAME "!"\ngreeting: "hello" | "hi"\nNAME: /[A-Z][a-z]+/\n'


@pytest.fixture(scope="module")
def gpt2(llama_cpp_dir: Path) -> Iterator[Vocab]:
    with Model(llama_cpp_dir / "models" / "ggml-vocab-gpt-2.gguf", vocab_only=True) as model:
        yield model.vocab


@pytest.fixture(scope="module", params=["spm", "bpe"])
def tiny(request: pytest.FixtureRequest, tiny_model: TinyModelFactory) -> Iterator[Vocab]:
    with Model(tiny_model("llama", vocab=request.param)) as model:
        yield model.vocab


def ids(constraint: Constraint) -> list[int]:
    """The tokens that are allowed."""
    bits = np.unpackbits(constraint.compute_mask().view(np.uint8), bitorder="little")
    assert not bits[constraint.vocab.n_tokens :].any()
    return np.flatnonzero(bits).tolist()  # type: ignore[no-any-return]


def pieces(constraint: Constraint) -> set[bytes]:
    words = ConstraintVocab(constraint.vocab)
    return {words.piece(token) for token in ids(constraint)}


def feed(constraint: Constraint, text: str) -> None:
    constraint.consume(ConstraintVocab(constraint.vocab).tokenize(text))


class Reference:
    """llguidance's own Python objects over the same vocabulary."""

    def __init__(self, vocab: Vocab) -> None:
        words = ConstraintVocab(vocab)
        self.n = vocab.n_tokens

        class Tokenizer:
            eos_token_id = words.end_tokens[0]
            bos_token_id = None
            tokens = [words.piece(token) for token in range(vocab.n_tokens)]  # noqa: RUF012
            special_token_ids = [t for t in range(vocab.n_tokens) if words.piece(t)[:1] == b"\xff"]  # noqa: RUF012

            def __call__(self, text: Any) -> list[int]:
                data = text if isinstance(text, bytes) else text.encode()
                return words.tokenize(data).tolist()  # type: ignore[no-any-return]

        self.tokenizer = LLTokenizer(
            TokenizerWrapper(Tokenizer()), n_vocab=vocab.n_tokens, eos_token=words.end_tokens
        )

    def matcher(self, constraint: Constraint) -> LLMatcher:
        make = {
            "json_schema": LLMatcher.grammar_from_json_schema,
            "regex": LLMatcher.grammar_from_regex,
            "lark": LLMatcher.grammar_from_lark,
        }[constraint.kind]
        return LLMatcher(self.tokenizer, make(constraint.text), log_level=0)

    def mask(self, matcher: LLMatcher) -> np.ndarray[Any, Any]:
        mask = llguidance.numpy.allocate_token_bitmask(1, self.n)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask)
        return mask[0].view(np.uint32)


def constraints(vocab: Vocab) -> list[Constraint]:
    return [
        Constraint.json_schema(vocab, PERSON),
        Constraint.json_schema(vocab, {"type": "array", "items": {"enum": ["alpha", "alphabet"]}, "maxItems": 2}),
        Constraint.json_schema(vocab, {}, whitespace="any"),
        Constraint.regex(vocab, r"[0-9]{3}-[a-f]+( the)?"),
        Constraint.choices(vocab, ["yes", "no", "not at all."]),
        Constraint.lark(vocab, LARK),
        Constraint.gbnf(vocab, 'root ::= "a" [b-d]+ " hello"?'),
    ]  # fmt: skip


# --- the same as llguidance


@pytest.mark.parametrize("at", range(7))
def test_the_masks_are_those_of_llguidance(at: int, tiny: Vocab) -> None:
    reference = Reference(tiny)
    rng = np.random.default_rng(at)
    for _ in range(4):
        constraint = constraints(tiny)[at]
        matcher = reference.matcher(constraint)
        for _ in range(25):
            mask = constraint.compute_mask()
            assert not matcher.is_error(), matcher.get_error()
            np.testing.assert_array_equal(mask, reference.mask(matcher))
            assert constraint.accepting == matcher.is_accepting()
            assert constraint.stopped == matcher.is_stopped()
            if constraint.stopped:
                break
            forced = constraint.forced_tokens().tolist()
            assert forced == matcher.compute_ff_tokens()
            token = int(rng.choice(forced[:1] or ids(constraint)))
            constraint.consume(token)
            assert matcher.consume_token(token)


def test_the_masks_over_a_real_vocabulary(gpt2: Vocab) -> None:
    reference = Reference(gpt2)
    constraint = Constraint.json_schema(gpt2, PERSON)
    matcher = reference.matcher(constraint)
    for token in ConstraintVocab(gpt2).tokenize('{"name": "Zoë", "age": 42}').tolist():
        np.testing.assert_array_equal(constraint.compute_mask(), reference.mask(matcher))
        constraint.consume(token)
        assert matcher.consume_token(token)
    assert constraint.stopped and matcher.is_stopped()


def test_the_version_is_known() -> None:
    assert re.match(rf"llguidance@{re.escape(llguidance.__version__)}\b", llguidance_version())


# --- the vocabulary


@pytest.mark.parametrize(
    "name", ["gpt-2", "llama-spm", "llama-bpe", "qwen2", "phi-3", "starcoder", "falcon", "deepseek-llm"]
)
def test_text_is_tokenized_without_a_loss(name: str, llama_cpp_dir: Path) -> None:
    with Model(llama_cpp_dir / "models" / f"ggml-vocab-{name}.gguf", vocab_only=True) as model:
        words = ConstraintVocab(model.vocab)
        if not words.canonical:
            assert name == "falcon"  # it has no token for some bytes, and joins others
            with pytest.raises(errors.ModelCapabilityError, match="tokenize"):
                words.tokenize("x")
            assert Constraint.regex(model.vocab, "abc").forced_tokens().size == 0
            return
        for text in (
            '{"a": [1, 2]}',
            " leading",
            "naïve 中文 😀",
            "x" * 1000,
            "a\n\n  b\t",
            '": "',
            "é" * 500,
        ):
            tokens = words.tokenize(text)
            assert b"".join(words.piece(token) for token in tokens.tolist()) == text.encode()
        assert words.end_tokens and all(words.piece(token)[:1] == b"\xff" for token in words.end_tokens)
        assert set(words.end_tokens) == set(model.vocab.eog_tokens)


def test_a_tokenizer_that_changes_text_forces_nothing(tiny_model: TinyModelFactory) -> None:
    with Model(tiny_model("bert")) as model:  # lower case, and a space before each word
        words = ConstraintVocab(model.vocab)
        assert not words.canonical and "Vocab" in repr(words)
        constraint = Constraint.regex(model.vocab, "abc")
        assert constraint.forced_tokens().size == 0
        assert b"a" in pieces(constraint)


def test_text_of_special_tokens_is_text(tiny: Vocab) -> None:
    """A grammar that asks for the letters of an end token is given letters, and does not end the generation."""
    constraint = Constraint.regex(tiny, r"<\|im_end\|>")
    end = ConstraintVocab(tiny).end_tokens
    while not constraint.stopped:
        allowed = ids(constraint)
        assert not set(allowed) & set(end)
        constraint.consume(allowed[0])
    assert set(ids(constraint)) == set(end)


# --- how far it has got


def test_ends_are_allowed_exactly_where_the_text_may_end(tiny: Vocab) -> None:
    ends = ConstraintVocab(tiny).end_tokens
    constraint = Constraint.regex(tiny, "ab?")
    assert not constraint.accepting and not set(ends) & set(ids(constraint))
    with pytest.raises(errors.SamplingError, match="not allowed"):
        constraint.consume(ends[0])
    feed(constraint, "a")
    assert constraint.accepting and not constraint.stopped and set(ends) < set(ids(constraint))
    feed(constraint, "b")
    assert constraint.accepting and constraint.stopped and set(ids(constraint)) == set(ends)
    with pytest.raises(errors.SamplingError, match="after the end"):
        feed(constraint, "b")
    constraint.consume(ends)  # one after another: nobody minds
    assert constraint.stopped and constraint.n_consumed == 2 + len(ends)
    constraint.rollback(len(ends) + 1)
    assert not constraint.stopped and constraint.n_consumed == 1
    assert pieces(constraint) >= {b"b"}


def test_forced_tokens_are_what_must_come(gpt2: Vocab) -> None:
    words = ConstraintVocab(gpt2)
    constraint = Constraint.json_schema(gpt2, PERSON, whitespace="compact")
    forced = constraint.forced_tokens()
    text = b"".join(words.piece(token) for token in forced.tolist())
    # the quote that would follow could be one token with what comes after it
    assert text and b'{"name":"'.startswith(text)
    assert constraint.n_consumed == 0
    assert constraint.forced_tokens(1).tolist() == forced[:1].tolist()
    assert ids(constraint) == forced[:1].tolist()
    constraint.consume(forced)
    assert constraint.n_consumed == len(forced)
    done = Constraint.regex(gpt2, "a")
    feed(done, "a")
    assert done.forced_tokens().tolist() == words.end_tokens  # this vocabulary has one


def test_consume_takes_all_or_nothing(tiny: Vocab) -> None:
    constraint = Constraint.regex(tiny, "abc")
    a, b, z = (int(ConstraintVocab(tiny).tokenize(char)[0]) for char in "abz")
    before = ids(constraint)
    with pytest.raises(errors.SamplingError, match=f"token {z} is not allowed"):
        constraint.consume([a, b, z])
    assert ids(constraint) == before and constraint.n_consumed == 0
    constraint.consume(np.array([a, b]))
    assert constraint.n_consumed == 2
    constraint.consume([])
    constraint.rollback(0)
    constraint.rollback(2)
    assert ids(constraint) == before
    with pytest.raises(errors.InvalidArgumentError, match="only 0"):
        constraint.rollback(1)
    constraint.consume(a)
    constraint.reset()
    assert ids(constraint) == before and constraint.n_consumed == 0
    for bad, error in ((tiny.n_tokens, IndexError), (-1, IndexError), ("x", TypeError), (1.5, TypeError)):
        with pytest.raises(error):
            constraint.consume(bad)  # type: ignore[arg-type]


def test_a_clone_goes_its_own_way(tiny: Vocab) -> None:
    one = Constraint.choices(tiny, ["cat.", "car!"])
    feed(one, "ca")
    other = one.clone()
    feed(one, "t")
    feed(other, "r")
    assert pieces(one) == {b"."} and pieces(other) == {b"!"}
    assert other.kind == "regex" and other.text == one.text and other.limits == one.limits
    assert "regex cat" in repr(other)
    other.reset()
    feed(other, "cat.")
    assert other.stopped and not one.stopped


# --- in a chain


def texts(vocab: Vocab, chain: SamplerChain, most: int = 60) -> str:
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    while len(tokens) < most:
        token = chain.apply(rng.normal(size=len(vocab)).astype(np.float32))
        chain.accept(token)
        if vocab.is_eog(token):
            return vocab.detokenize_bytes(tokens).decode()
        tokens.append(token)
    raise AssertionError(vocab.detokenize(tokens))


@pytest.mark.parametrize("links", ["greedy", "dist", "top_k", "penalties", "typical", "perf", "python"])
def test_a_chain_keeps_to_it(links: str, tiny: Vocab) -> None:
    constraint = Constraint.regex(tiny, "([a-f]{2}-){3}[0-9]{2}")
    chain = SamplerChain(perf=links == "perf")
    if links == "penalties":
        chain.penalties(tiny, 64, 1.3, 0.2, 0.1).logit_bias(tiny, {5: 3.0})
    if links in ("top_k", "perf"):
        chain.top_k(20).top_p(0.9).min_p(0.01)
    if links == "typical":
        chain.typical(0.9)
    if links == "python":
        chain.python(lambda logits, tokens: None)
    chain.constraint(constraint)
    chain = chain.greedy() if links == "greedy" else chain.temp(1.5).dist(3)
    assert chain.links[0] == "constraint" and chain.names[0] == "constraint"
    for _ in range(5):
        assert re.fullmatch("([a-f]{2}-){3}[0-9]{2}", texts(tiny, chain))
        chain.reset()
    assert constraint.n_consumed == 0  # the chain has its own


@pytest.mark.parametrize("shape", ["top_k", "min_p", "greedy", "none"])
def test_the_short_way_picks_what_the_long_way_picks(shape: str, gpt2: Vocab) -> None:
    """With ``perf`` llama.cpp's own loop runs over every token of the row."""
    rng = np.random.default_rng(1)

    def chain(perf: bool) -> SamplerChain:
        made = (
            SamplerChain(perf=perf).penalties(gpt2, 16, 1.2).constraint(Constraint.json_schema(gpt2, PERSON))
        )
        made = {"top_k": lambda: made.top_k(30), "min_p": lambda: made.min_p(0.05)}.get(shape, lambda: made)()
        return made.greedy() if shape == "greedy" else made.temp(0.9).dist(7)

    short, long = chain(False), chain(True)
    for _ in range(25):
        row = rng.normal(scale=4, size=len(gpt2)).astype(np.float32)
        token = short.apply(row)
        assert token == long.apply(row)
        short.accept(token)
        long.accept(token)


def test_it_comes_first_and_is_alone(tiny: Vocab) -> None:
    chain = SamplerChain().top_k(40).penalties(tiny, 8, 1.1).dist(1)
    z = int(ConstraintVocab(tiny).tokenize("z")[0])
    chain.accept(z)  # of the prompt: none of the constraint's
    chain.constraint(Constraint.regex(tiny, "ab"))
    assert chain.links == ("constraint", "top_k(40)", "penalties", "dist")
    assert texts(tiny, chain) == "ab"
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        chain.constraint(Constraint.regex(tiny, "c"))
    chain.remove(0)
    assert chain.links == ("top_k(40)", "penalties", "dist")
    for none in (None, "ab"):
        with pytest.raises(TypeError):
            chain.constraint(none)  # type: ignore[arg-type]


def test_a_constraint_begins_where_it_has_got_to(tiny: Vocab) -> None:
    constraint = Constraint.choices(tiny, ["one two", "one three"])
    feed(constraint, "one ")
    assert texts(tiny, SamplerChain().constraint(constraint).greedy()) in ("two", "three")


def test_cloned_chains_carry_its_state(tiny: Vocab) -> None:
    chain = SamplerChain().constraint(Constraint.choices(tiny, ["cat.", "car!", "dog?"])).greedy()
    words = ConstraintVocab(tiny)
    for token in words.tokenize("ca").tolist():
        chain.accept(token)
    fork, saved = chain.clone(), chain.clone()
    chain.accept(int(words.tokenize("t")[0]))
    fork.accept(int(words.tokenize("r")[0]))
    assert (texts(tiny, chain), texts(tiny, fork)) == (".", "!")
    chain.copy_from(saved)
    chain.accept(int(words.tokenize("r")[0]))
    assert texts(tiny, chain) == "!"
    other = SamplerChain().constraint(Constraint.choices(tiny, ["else"])).greedy()
    with pytest.raises(errors.InvalidArgumentError, match="other links"):
        chain.copy_from(other)
    fork.reset()
    assert texts(tiny, fork) in ("cat.", "car!", "dog?")


def test_a_token_against_it_breaks_the_chain_until_reset(tiny: Vocab) -> None:
    chain = SamplerChain().constraint(Constraint.regex(tiny, "ab")).greedy()
    with pytest.raises(errors.SamplingError, match="not allowed"):
        chain.accept(int(ConstraintVocab(tiny).tokenize("z")[0]))
    with pytest.raises(errors.SamplingError, match="reset"):
        chain.apply(np.zeros(len(tiny), np.float32))
    chain.reset()
    assert texts(tiny, chain) == "ab"


def test_what_a_bias_rules_out_is_not_allowed_again(tiny: Vocab) -> None:
    a = ids(Constraint.regex(tiny, "a"))
    chain = (
        SamplerChain()
        .logit_bias(tiny, dict.fromkeys(a, -np.inf))
        .constraint(Constraint.regex(tiny, "a"))
        .greedy()
    )
    with pytest.raises(errors.SamplingError, match="ruled out"):
        chain.apply(np.zeros(len(tiny), np.float32))


def test_sampling_from_a_context(tiny_model: TinyModelFactory) -> None:
    with Model(tiny_model("llama")) as model, Context(model, n_ctx=128) as context:
        batch = Batch(32)
        chain = SamplerChain().top_k(40).dist(1).constraint(Constraint.regex(model.vocab, "[a-c]{4}"))
        tokens = model.vocab.tokenize("hello").tolist()
        for at, token in enumerate(tokens):
            batch.add(token, at, [0], at + 1 == len(tokens))
        found: list[int] = []
        while True:
            context.decode(batch)
            token = chain.sample(context, -1)
            if model.vocab.is_eog(token):
                break
            batch.clear()
            batch.add(token, len(tokens) + len(found), [0], True)
            found.append(token)
        assert re.fullmatch("[a-c]{4}", model.vocab.detokenize(found))


# --- what is refused


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "null"}}, "not"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"properties": {"a": {"minLenght": 3}}}, "minLenght"),  # codespell:ignore
        ({"type": "string", "nullable": True}, "nullable"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "format": "no-such-format"}, "format"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3, "type": "integer"}]}, "oneOf"),
        ({"type": "array", "items": [{"type": "null"}]}, "items"),
        ({"$ref": "#"}, "$ref"),
        ({"$defs": {"a": {"required": ["b"], "properties": {"b": ITSELF}}}, **ITSELF}, "$ref"),
        ({"type": "integer", "x-guidance": {}}, None),
        ({"x-guidance": {"lenient": True}}, "lenient"),
    ],
)  # fmt: skip
def test_a_keyword_that_would_not_be_kept_is_named(
    schema: dict[str, Any], keyword: str | None, tiny: Vocab
) -> None:
    if keyword is None:
        assert Constraint.json_schema(tiny, schema).kind == "json_schema"
        return
    with pytest.raises(errors.ConstraintError, match=re.escape(keyword)) as caught:
        Constraint.json_schema(tiny, schema)
    assert caught.value.keyword == keyword


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: Constraint.json_schema(v, "{"), "no JSON text"),
        (lambda v: Constraint.json_schema(v, "[" * 100_000), "no JSON text"),
        (lambda v: Constraint.json_schema(v, "3"), "a JSON object"),
        (lambda v: Constraint.json_schema(v, False), "no value fits"),
        (lambda v: Constraint.json_schema(v, {"type": "strin"}), "strin"),
        (lambda v: Constraint.json_schema(v, {"type": 3}), "type"),
        (lambda v: Constraint.json_schema(v, {"properties": 3}), "properties"),
        (lambda v: Constraint.json_schema(v, {"anyOf": []}), "anyOf"),
        (lambda v: Constraint.json_schema(v, {"anyOf": [3]}), "no schema"),
        (lambda v: Constraint.json_schema(v, {"$ref": "#/$defs/none"}), "none"),
        (lambda v: Constraint.json_schema(v, {"$ref": "http://example.com/s"}), "example.com"),
        (lambda v: Constraint.json_schema(v, {"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (lambda v: Constraint.json_schema(v, {"const": float("nan")}), "no JSON number"),
        (lambda v: Constraint.json_schema(v, {"const": "\ud800"}), "surrogate"),
        (lambda v: Constraint.json_schema(v, {"pattern": "(?=a)b", "type": "string"}), "look-around"),
        (lambda v: Constraint.json_schema(v, {}, whitespace="none"), "whitespace"),
        (lambda v: Constraint.regex(v, "(a"), "unclosed"),
        (lambda v: Constraint.regex(v, "(" * 300 + "a" + ")" * 300), "nests"),
        (lambda v: Constraint.lark(v, "start: nothing"), "nothing"),
        (lambda v: Constraint.lark(v, ""), "grammar"),
        (lambda v: Constraint.lark(v, "start: A\nA: A"), "circular"),
        (lambda v: Constraint.lark(v, "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(20_000))), "rules"),
        (lambda v: Constraint.gbnf(v, "root = "), "translated"),
        (lambda v: Constraint.choices(v, []), "0 choices"),
        (lambda v: Constraint.choices(v, ["a", ""]), r"choices\[1\]"),
        (lambda v: Constraint.regex(v, "a" * (5 << 20)), "bytes"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(make: Any, message: str, tiny: Vocab) -> None:
    with pytest.raises(errors.ConstraintError, match=message):
        make(tiny)


def test_schemas_that_lead_deep_do_not_end_the_process(tiny: Vocab) -> None:
    def chain(n: int) -> dict[str, Any]:
        defs: dict[str, Any] = {
            f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(n)
        }
        return {"$defs": {**defs, f"a{n}": {"type": "null"}}, "$ref": "#/$defs/a0"}

    assert Constraint.json_schema(tiny, chain(1000)).accepting is False
    with pytest.raises(errors.ConstraintError, match="levels deep"):
        Constraint.json_schema(tiny, chain(5000))
    nested: dict[str, Any] = {"type": "null"}
    for _ in range(59):
        nested = {"type": "array", "items": nested}
    Constraint.json_schema(tiny, nested)
    for _ in range(9):
        nested = {"type": "array", "items": nested}
    with pytest.raises(errors.ConstraintError, match="nests"):
        Constraint.json_schema(tiny, nested)


def test_types_that_are_none(tiny: Vocab) -> None:
    for make in (
        Constraint,
        lambda: Constraint.json_schema(tiny, 3),  # type: ignore[arg-type]
        lambda: Constraint.json_schema(tiny, {1: 2}),  # type: ignore[dict-item]
        lambda: Constraint.json_schema(tiny, {"const": object()}),
        lambda: Constraint.regex(tiny, 3),  # type: ignore[arg-type]
        lambda: Constraint.choices(tiny, "yes"),
        lambda: Constraint.choices(tiny, [1]),  # type: ignore[list-item]
        lambda: Constraint.choices(tiny, 3),  # type: ignore[arg-type]
        lambda: Constraint.regex(None, "a"),  # type: ignore[arg-type]
        lambda: Constraint.regex(tiny, "a", limits=3),  # type: ignore[arg-type]
        lambda: Constraint.regex(tiny, "a", limits={"no_such": 3}),
        lambda: ConstraintVocab(None),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(errors.InvalidArgumentError, match="NUL"):
        Constraint.regex(tiny, "a\0b")
    with pytest.raises(IndexError):
        ConstraintVocab(tiny).piece(tiny.n_tokens)
    assert check_choices(["b", "a", "b"]) == ["b", "a"]


def test_limits_are_kept_to(gpt2: Vocab) -> None:
    big = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(50)}}
    with pytest.raises(errors.ConstraintError, match=r"(?i)too (big|large|many)|limit|exceed"):
        Constraint.json_schema(gpt2, big, limits={"max_grammar_size": 50})
    constraint = Constraint.json_schema(gpt2, big, limits={"step_max_items": 500_000})
    assert constraint.limits == (0, 0, 0, 500_000, 0, 0)
    with pytest.raises(errors.InvalidArgumentError, match="max_grammar_size"):
        Constraint.json_schema(gpt2, big, limits={"max_grammar_size": 0})


def test_a_grammar_that_takes_too_much_to_follow_is_an_error(gpt2: Vocab) -> None:
    """It costs the chain that it is in, and says so."""
    lark = 'start: a*\na: "x" b | "x" c\nb: "x"* | "xx"* | "xxx"*\nc: b b b\n'
    chain = SamplerChain().constraint(Constraint.lark(gpt2, lark, limits={"max_items_in_row": 20})).greedy()
    row = np.zeros(len(gpt2), np.float32)

    def write() -> None:
        for _ in range(50):
            chain.accept(chain.apply(row))

    with pytest.raises(errors.SamplingError, match=r"(?i)complex|items|limit"):
        write()
    chain.reset()
    chain.apply(row)


# --- lifetimes, threads, and what is missing


def test_nothing_is_left_behind(tiny_model: TinyModelFactory) -> None:
    before = live_objects()["constraints"]
    with Model(tiny_model("llama", seed=3)) as model:
        constraint = Constraint.regex(model.vocab, "a+")
        chains = [SamplerChain().constraint(constraint.clone()).greedy().clone() for _ in range(3)]
        assert (
            live_objects()["constraints"] == before + 1 + 1 + 3
        )  # the vocabulary, this one, those of the chains
        del chains
    with pytest.raises(errors.ClosedError):
        constraint.compute_mask()
    with pytest.raises(errors.ClosedError):
        ConstraintVocab(model.vocab)
    del constraint, model
    assert live_objects()["constraints"] == before


def test_one_vocabulary_and_many_threads(tiny_model: TinyModelFactory) -> None:
    with Model(tiny_model("llama", seed=4)) as model:
        found, failed = [], []

        def work(seed: int) -> None:
            try:
                constraint = Constraint.json_schema(model.vocab, PERSON)
                chain = SamplerChain().constraint(constraint).temp(1.0).dist(seed)
                found.append(json.loads(texts(model.vocab, chain, 300)))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(found) == 8
        assert all(person.keys() == {"name", "age"} for person in found)


def test_a_second_thread_is_refused(tiny: Vocab) -> None:
    constraint = Constraint.regex(tiny, "a+")
    busy = 0

    def work() -> None:
        nonlocal busy
        for _ in range(300):
            try:
                constraint.compute_mask()
                constraint.clone()
            except errors.ContextBusyError:
                busy += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pieces(constraint) >= {b"a"}


MISSING = """
import sys
{before}
from llama_runner import errors
from llama_runner.core import Constraint, Model
model = Model(sys.argv[1], vocab_only=True)
for _ in range(2):
    try:
        Constraint.regex(model.vocab, "a")
    except errors.MissingExtraError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.modules['llguidance'] = None", "needs llguidance"),
        ("import llguidance; llguidance._lib.__file__ = '/no/such/file'", "no C interface"),
        ("import llguidance, _ctypes; llguidance._lib.__file__ = _ctypes.__file__", "no C interface"),
    ],
)
def test_a_library_that_is_missing_or_another_is_named(
    before: str, message: str, gpt2: Vocab, llama_cpp_dir: Path
) -> None:
    path = llama_cpp_dir / "models" / "ggml-vocab-gpt-2.gguf"
    code = MISSING.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(
        message in line and "llama-runner[structured]" in line for line in lines
    ), done
