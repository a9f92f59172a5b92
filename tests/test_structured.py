"""Structured output from a runner: types there and back, forced tokens, errors that cost their own request alone."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import enum
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired

import numpy as np
import pydantic
import pytest
from typing_extensions import TypedDict

from engine_use import wait_for
from fixtures_models import TinyModelFactory
from llama_runner import Completion, GenerationParams, LlamaRunner, WorkerRunner, errors
from llama_runner.core import ConstraintVocab, SamplerChain
from llama_runner.structured import Response, builtin_grammar, constrain, regex_to_gbnf, schema_of, value_of

HOT: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "max_tokens": 600}


class City(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=8)]
    population: Annotated[int, pydantic.Field(ge=0, le=9_999_999)]
    river: Literal["Seine", "Tiber"] | None = None


@dataclasses.dataclass
class Point:
    x: Annotated[int, pydantic.Field(ge=0, le=99)]
    y: Annotated[int, pydantic.Field(ge=0, le=99)] = 7


class Box(TypedDict):
    corner: Point
    label: NotRequired[Literal["big", "small"]]


class Pair(NamedTuple):
    first: bool
    second: Literal[1, 2]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


BOUNDED = {
    "type": "object",
    "properties": {f"key_{i}": {"type": "integer", "minimum": 0, "maximum": 99} for i in range(6)},
    "required": [f"key_{i}" for i in range(6)],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def runner(tiny_model: TinyModelFactory) -> Iterator[LlamaRunner]:
    with LlamaRunner(tiny_model("llama", vocab="bpe", n_ctx_train=8192), n_ctx=8192, n_threads=1) as made:
        yield made


# --- types there and back


@pytest.mark.parametrize(
    "kind", [City, Point, Box, Pair, Colour, list[Point], dict[Literal["a"], bool] | None, bool]
)
def test_a_type_comes_back(kind: Any, runner: LlamaRunner) -> None:
    if kind == dict[Literal["a"], bool] | None:  # its schema says propertyNames
        with pytest.raises(errors.ConstraintError, match="propertyNames"):
            runner.generate("hello", json_schema=kind)
        return
    if kind == list[Point]:
        kind = Annotated[list[Point], pydantic.Field(max_length=2)]
    for seed in range(3):
        completion = runner.generate("hello", json_schema=kind, seed=seed, **HOT)
        assert completion.finish_reason == "eos"
        value = completion.parsed
        assert pydantic.TypeAdapter(kind).validate_python(value) == value
        assert pydantic.TypeAdapter(kind).dump_python(value, mode="json") is not None
        if isinstance(kind, type) and not issubclass(kind, dict):
            assert isinstance(value, kind)


def test_the_values_are_those_of_the_text(runner: LlamaRunner) -> None:
    completion = runner.generate("hello", json_schema=City, seed=3, **HOT)
    plain = json.loads(completion.text)
    assert completion.parsed == City(**plain)
    assert plain.keys() <= {"name", "population", "river"}  # closed: nothing that the type has no place for
    as_dict = runner.generate("hello", json_schema=City.model_json_schema(), seed=3, max_tokens=600)
    assert isinstance(as_dict.parsed, dict) and as_dict.parsed == json.loads(as_dict.text)
    assert runner.generate("hello", max_tokens=2).parsed is None


def test_the_other_constraints_give_their_text(runner: LlamaRunner) -> None:
    for given in (
        {"regex": "[a-c]{3}x"},
        {"choices": ["yes", "no", "maybe not"]},
        {"lark": 'start: "a" /[b-d]{2}/ "!"'},
        {"grammar": 'root ::= "a" [b-d] [b-d] "!"'},
    ):
        found = {runner.generate("hello", seed=seed, **given, **HOT).text for seed in range(12)}  # type: ignore[arg-type]
        assert len(found) > 1
        pattern = {"regex": "[a-c]{3}x", "choices": "yes|no|maybe not"}.get(next(iter(given)), "a[b-d]{2}!")
        assert all(re.fullmatch(pattern, text) for text in found), found
        assert runner.generate("hello", seed=1, **given, **HOT).parsed in found  # type: ignore[arg-type]


def test_an_answer_that_was_cut_off_is_no_value(runner: LlamaRunner) -> None:
    completion = runner.generate("hello", json_schema=BOUNDED, max_tokens=9)
    assert completion.finish_reason == "length"
    with pytest.raises(errors.ResponseParseError, match="cut off by max_tokens"):
        _ = completion.parsed
    with pytest.raises(errors.ResponseParseError, match="cut off"):
        _ = runner.generate("hello", regex="[a-z]{400}", max_tokens=5).parsed
    with pytest.raises(errors.ResponseParseError, match="cut off"):  # it could have gone on
        Response("json_schema", "12", "length", int).parse()
    assert Response("json_schema", "12", "eos", int).parse() == 12
    assert Response("json_schema", "[1]", "length").parse() == [1]
    assert Response("choices", "no", "length", choices=("no", "yes")).parse() == "no"
    with pytest.raises(errors.ResponseParseError, match="cut off"):
        Response("choices", "no", "length", choices=("no", "not at all")).parse()
    with pytest.raises(errors.ResponseParseError, match="no JSON"):
        Response("json_schema", "{", "eos").parse()


def test_a_validator_of_the_type_has_its_say() -> None:
    class Even(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("it is odd")
            return value

    assert value_of(Even, '{"n": 2}') == Even(n=2)
    with pytest.raises(errors.ResponseParseError, match="odd") as caught:
        value_of(Even, '{"n": 3}')
    assert isinstance(caught.value.__cause__, pydantic.ValidationError)


def test_what_has_no_schema_is_refused(runner: LlamaRunner) -> None:
    class Opaque:
        pass

    for kind, why in (
        (Opaque, "Opaque has no JSON schema"),
        (set[int], "uniqueItems"),
        (list[Opaque], "Opaque"),
    ):
        with pytest.raises(errors.ConstraintError, match=why):
            runner.generate("hello", json_schema=kind)


# --- without pydantic, and without llguidance

PLAIN = """
import sys
sys.modules["pydantic"] = None
import dataclasses, enum, typing
from llama_runner import errors
from llama_runner._response import schema_of, value_of
from llama_runner._json_schema import guided_schema

class Colour(enum.Enum):
    RED = "red"

class Extra(typing.TypedDict, total=False):
    note: str | None

class Pair(typing.NamedTuple):
    a: int
    b: float = 2.0

Id = typing.NewType("Id", int)

@dataclasses.dataclass
class Node:
    id: Id
    colours: list[Colour]
    pair: Pair
    extra: Extra
    where: tuple[int, str]
    more: tuple[bool, ...] = ()
    by_name: dict[str, float] = dataclasses.field(default_factory=dict)
    kind: typing.Literal["a", 1] = "a"
    next: "Node | None" = None
    anything: typing.Any = None

schema = schema_of(Node)
guided_schema(schema)
node = value_of(Node, '{"id": 1, "colours": ["red"], "pair": {"a": 1}, "extra": {"note": null}, "where": [1, "x"],'
                      '"more": [true], "by_name": {"x": 1}, "kind": 1, "next": {"id": 2, "colours": [],'
                      '"pair": {"a": 2, "b": 3}, "extra": {}, "where": [0, ""]}, "anything": {"k": []}}')
assert node == Node(1, [Colour.RED], Pair(1), {"note": None}, (1, "x"), (True,), {"x": 1.0}, 1,
                    Node(2, [], Pair(2, 3.0), {}, (0, "")), {"k": []}), node
wrong = [(int, '"1"'), (int, "true"), (str, "1"), (float, "true"), (list[int], '["a"]'), (Pair, "{}"), (None, "0"),
         (Colour, '"blue"'), (tuple[int, int], "[1]"), (typing.Literal[1], "true"), (int | None, '"x"'),
         (dict[str, int], "[]")]
for kind, text in wrong:
    try:
        found = value_of(kind, text)
    except errors.ResponseParseError:
        continue
    raise AssertionError((kind, text, found))
for kind in (set[int], complex, dict[int, int]):
    try:
        schema_of(kind)
    except errors.MissingExtraError as error:
        assert "llama-runner[tools]" in str(error)
        continue
    raise AssertionError(kind)
print("done")
"""


def test_types_of_the_standard_library_need_no_pydantic() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "done\n", done.stderr


WITHOUT = """
import json, re, sys
sys.modules["llguidance"] = None
from llama_runner import LlamaRunner, errors
with LlamaRunner(sys.argv[1], n_ctx=2048, n_threads=1) as runner:
    hot = {"temperature": 1.0, "top_k": 0, "max_tokens": 400}
    digit = {"type": "integer", "minimum": 1, "maximum": 9}
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": digit}, "required": ["a", "b"],
              "additionalProperties": False}
    completion = runner.generate("hello", json_schema=schema, **hot)
    assert completion.finish_reason == "eos" and completion.parsed.keys() == {"a", "b"}, completion
    assert runner.generate("hello", choices=["yes", 'n"o\\\\ 1'], seed=1, **hot).text in ("yes", 'n"o\\\\ 1')
    for pattern in (r"\\d{3}-[a-f]+(x|y)?", r"^(?:ab|[^\\n]){2}\\.\\x41$", "a{2,}?b", r"[\\]\\-^]+é"):
        text = runner.generate("hello", regex=pattern, seed=2, **hot).text
        assert re.fullmatch(pattern, text), (pattern, text)
    assert runner.generate("hello", grammar='root ::= "x"', **hot).text == "x"
    more = {"json_schema": {"allOf": [{"multipleOf": 3}]}}
    for given in ({"lark": 'start: "a"'}, {"regex": "(?=a)b"}, {"regex": r"a\\b"}, more):
        try:
            runner.generate("hello", **given)
        except errors.MissingExtraError as error:
            assert "llama-runner[structured]" in str(error) and next(iter(given)) in str(error), error
            continue
        raise AssertionError(given)
print("done")
"""


def test_the_built_in_sampler_stands_in_for_llguidance(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", vocab="bpe", n_ctx_train=8192)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, path], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    "pattern",
    ["(", "a)", "[a", "*a", "a**", "a{3,1}", "a{9999}", "(?i)a", r"\b", r"(a)\1", "a^b", "a$b", "[z-a]", "[[a]]",
     r"[\D]", "a\\", r"\u{d800}", "(" * 200],
)  # fmt: skip
def test_regular_expressions_that_gbnf_cannot_say_are_named(pattern: str) -> None:
    with pytest.raises(errors.ConstraintError, match="at "):
        regex_to_gbnf(pattern)


# --- parameters


def test_at_most_one_constraint() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="json_schema and regex"):
        GenerationParams(json_schema={}, regex="a")
    with pytest.raises(errors.InvalidArgumentError, match="choices and grammar"):
        GenerationParams(choices=["a"]).with_grammar("root ::= x")
    params = GenerationParams(regex="a")
    assert params.constraint == "regex" and GenerationParams().constraint is None
    assert params.replace(regex=None, lark="start: x").constraint == "lark"
    assert GenerationParams().with_choices("a", "b") == GenerationParams(choices=("a", "b"))
    assert GenerationParams(choices=["a"]).with_choices() == GenerationParams(choices=None)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"json_schema": 3}, TypeError),
        ({"json_schema": "{"}, ValueError),
        ({"json_schema": False}, ValueError),
        ({"regex": 3}, TypeError),
        ({"regex": " "}, ValueError),
        ({"regex": "a\0"}, ValueError),
        ({"choices": "yes"}, TypeError),
        ({"choices": [1]}, TypeError),
        ({"choices": ["a", ""]}, ValueError),
        ({"lark": ""}, ValueError),
        ({"lark": b"start: x"}, TypeError),
    ],
)
def test_bad_values_are_refused_when_the_parameters_are_made(
    given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        GenerationParams(**given)
    assert isinstance(caught.value, errors.UsageError)


def test_parameters_keep_the_type_beside_themselves() -> None:
    params = GenerationParams(json_schema=City, seed=1)
    assert params.response_type is City
    assert json.loads(params.json_schema or "")["properties"].keys() == {"name", "population", "river"}
    assert params.replace(seed=2).response_type is City
    assert GenerationParams.from_kwargs(params, {"top_k": 3}).response_type is City
    assert params.replace(json_schema=None).response_type is None
    assert copy.deepcopy(params) is params and copy.copy(params) is params
    stored = GenerationParams.from_dict(json.loads(json.dumps(params.to_dict())))
    assert stored == params and hash(stored) == hash(params) and stored.response_type is None
    sent = pickle.loads(pickle.dumps(params))
    assert sent == params and sent.response_type is None
    assert "City" in repr(params) and hash(params) == hash(
        GenerationParams(json_schema=stored.json_schema, seed=1)
    )


@pytest.mark.parametrize(
    "given", [{"regex": "a+"}, {"json_schema": {}}, {"choices": ["a"]}, {"lark": "start: x"}]
)
def test_the_end_cannot_be_ruled_out(given: dict[str, Any], runner: LlamaRunner) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="ignore_eos"):
        runner.generate("hello", ignore_eos=True, **given)


def test_what_the_chain_of_parameters_begins_with(runner: LlamaRunner) -> None:
    vocab = runner.model.vocab
    chain = constrain(SamplerChain().top_k(3), vocab, GenerationParams(json_schema=City))
    assert chain.links[0] == "constraint"
    assert constrain(SamplerChain(), vocab, GenerationParams()).links == ()
    assert constrain(SamplerChain(), vocab, GenerationParams(grammar='root ::= "a"')).links == ("grammar",)
    assert builtin_grammar(GenerationParams(choices=["a", "b\n"])) == 'root ::= "a" | "b\\n"'


# --- in the engine


def test_eight_at_once_each_with_its_own(runner: LlamaRunner) -> None:
    patterns = [f"{i}-[a-f]{{{i + 3}}}-[0-9]{{2}}" for i in range(8)]
    alone = [runner.generate("hello", regex=p, seed=i, **HOT).text for i, p in enumerate(patterns)]
    streams = [runner.stream("hello", regex=p, seed=i, **HOT) for i, p in enumerate(patterns)]
    for stream, pattern, expected in zip(streams, patterns, alone, strict=True):
        text = "".join(chunk.text for chunk in stream)
        assert re.fullmatch(pattern, text)
        assert stream.completion.text == text and stream.completion.finish_reason == "eos"
        assert len(expected) == len(text)
    many = runner.generate_many(["hello", "other"], n=4, json_schema=BOUNDED, seed=5, **HOT)
    assert len({completion.text for completion in many}) > 4
    assert all(completion.parsed.keys() == BOUNDED["properties"].keys() for completion in many)  # type: ignore[attr-defined]


def test_an_error_within_a_constraint_costs_its_own_request_alone(runner: LlamaRunner) -> None:
    # every token of an "x" is taken away: after the third letter none is left
    words = ConstraintVocab(runner.model.vocab)
    x = [token for token in range(runner.model.vocab.n_tokens) if words.piece(token) == b"x"]
    good = [runner.stream("hello", regex="[a-f]{60}", seed=i, **HOT) for i in range(4)]
    bad = runner.stream("hello", regex="[a-f]{3}x", logits_processor=Ban(x), **HOT)
    more = [runner.stream("hello", json_schema=BOUNDED, seed=i, **HOT) for i in range(3)]
    with pytest.raises(errors.SamplingError, match="ruled out"):
        for _ in bad:
            pass
    for stream in good:
        assert re.fullmatch("[a-f]{60}", "".join(chunk.text for chunk in stream))
    for stream in more:
        for _ in stream:
            pass
        assert stream.completion.parsed
    with pytest.raises(errors.ConstraintError):
        runner.generate("hello", regex="(")
    assert runner.generate("hello", regex="abc", **HOT).text == "abc"


class Ban:
    """A logits processor that takes some tokens away."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, tokens: Any, logits: np.ndarray[Any, Any]) -> None:
        logits[:, self.tokens] = -np.inf


def generated(runner: LlamaRunner, **options: Any) -> tuple[Completion, dict[str, int]]:
    """A completion, and what the loop counted for it; from an empty cache: the same cells each time."""
    runner.clear_context()
    before = runner.counters.loop
    completion = runner.generate("hello", **{**HOT, **options})
    made = before["tokens_sampled"] + before["tokens_forced"] + len(completion.tokens)
    # the loop counts a step when it is over, which can be after the last token was read
    wait_for(lambda: runner.counters.loop["tokens_sampled"] + runner.counters.loop["tokens_forced"] == made)
    after = runner.counters.loop
    return completion, {name: after[name] - before[name] for name in before if isinstance(before[name], int)}


def test_forced_tokens_are_decoded_together(runner: LlamaRunner) -> None:
    for seed in range(4):
        completion, counted = generated(runner, json_schema=BOUNDED, seed=seed)
        usage = completion.usage
        assert usage.forced_tokens > 20 and usage.completion_tokens == len(completion.tokens)
        assert counted["tokens_forced"] == usage.forced_tokens
        assert counted["tokens_sampled"] == usage.completion_tokens - usage.forced_tokens
        assert counted["steps"] <= counted["tokens_sampled"] + 1
        assert counted["rows_forced"] == usage.forced_tokens
        assert completion.to_dict()["usage"]["forced_tokens"] == usage.forced_tokens
        # with log-probabilities each token is sampled from a row of its own: the same tokens
        scored, slow = generated(runner, json_schema=BOUNDED, seed=seed, logprobs=1)
        assert scored.usage.forced_tokens == 0 == slow["tokens_forced"]
        assert scored.text == completion.text and scored.tokens.tolist() == completion.tokens.tolist()
        assert scored.logprobs is not None and len(scored.logprobs) == len(scored.tokens)
        processed, _ = generated(runner, json_schema=BOUNDED, seed=seed, logits_processor=Ban([]))
        assert processed.usage.forced_tokens == 0 and processed.text == completion.text


def test_long_forced_runs_stops_and_limits(runner: LlamaRunner) -> None:
    text = "".join(chr(97 + i % 26) for i in range(300))
    whole, counted = generated(runner, regex=text)
    assert whole.text == text and counted["steps"] < len(whole.tokens) / 8
    for limit in (1, 2, 7, 40):
        cut, _ = generated(runner, regex=text, max_tokens=limit)
        assert cut.finish_reason == "length" and len(cut.tokens) == limit and text.startswith(cut.text)
        assert cut.tokens.tolist() == whole.tokens[:limit].tolist()
    stopped, _ = generated(runner, regex=text, stop=["uvw"])
    assert (
        stopped.text == text[: text.index("uvw")]
        and stopped.finish_reason == "stop"
        and stopped.stop_match == "uvw"
    )
    token = int(whole.tokens[11])
    ended, _ = generated(runner, regex=text, stop_tokens=[token])
    assert ended.finish_reason == "stop" and ended.tokens[-1] == token and text.startswith(ended.text)
    streamed = "".join(chunk.text for chunk in runner.stream("hello", regex=text, **HOT))
    assert streamed == text
    echoed = runner.generate("hello", regex="abc", echo=True, **HOT)
    assert echoed.text.endswith("helloabc") and echoed.parsed == "abc"


def test_a_full_cache_and_preemption_change_nothing(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", vocab="bpe", n_ctx_train=8192)
    with LlamaRunner(path, n_ctx=512, n_seq_max=16, n_threads=1) as small:
        streams = [
            small.stream("hello", json_schema=BOUNDED, seed=i, **{**HOT, "max_tokens": 200}) for i in range(8)
        ]
        for stream in streams:
            for _ in stream:
                pass
            assert stream.completion.parsed.keys() == BOUNDED["properties"].keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["swa", "mamba", "hybrid"])
def test_memories_of_every_kind(kind: str, tiny_model: TinyModelFactory) -> None:
    with LlamaRunner(tiny_model(kind, n_ctx_train=4096), n_ctx=1024, n_threads=1) as runner:
        for seed in range(3):
            completion = runner.generate("hello", json_schema=BOUNDED, seed=seed, **HOT)
            assert completion.parsed.keys() == BOUNDED["properties"].keys()  # type: ignore[attr-defined]
            assert completion.usage.forced_tokens > 0


def test_sequences_fork_with_their_grammar(runner: LlamaRunner) -> None:
    trunk = runner.sequence("hello")
    first = trunk.generate(regex="[a-c]{4}=[x-z]{4}", max_tokens=3, seed=1, temperature=1.0, top_k=0)
    assert first.finish_reason == "length"
    branches = trunk.fork(4)
    ends = [
        branch.generate().text for branch in branches
    ]  # with the sampler of the trunk, where it had got to
    assert len(first.tokens) == 3
    snapshot = trunk.snapshot()
    trunk.generate()
    assert re.match("[a-c]{1,3}", first.text)
    assert all(re.match(re.escape(first.text), first.text + end) for end in ends)
    assert snapshot is not None


def test_on_an_event_loop(runner: LlamaRunner) -> None:
    async def main() -> None:
        one, two = await asyncio.gather(
            runner.agenerate("hello", json_schema=City, seed=1, **HOT),
            runner.agenerate("hello", choices=["left", "right"], **HOT),
        )
        assert isinstance(one.parsed, City) and two.parsed in ("left", "right")
        text = ""
        async for chunk in runner.astream("hello", regex="[a-c]{20}", **HOT):
            text += chunk.text
        assert re.fullmatch("[a-c]{20}", text)
        many = await runner.agenerate_many(["hello"], n=3, json_schema=Point, **HOT)
        assert all(isinstance(completion.parsed, Point) for completion in many)

    asyncio.run(main())


def test_in_another_process(tiny_model: TinyModelFactory) -> None:
    class Local(pydantic.BaseModel):  # which the worker cannot import
        ok: bool

    with WorkerRunner(tiny_model("llama", vocab="bpe", n_ctx_train=8192), n_ctx=2048, n_threads=1) as worker:
        assert isinstance(worker.generate("hello", json_schema=Local, **HOT).parsed, Local)
        assert all(
            isinstance(c.parsed, Local) for c in worker.generate_many(["a", "b"], json_schema=Local, **HOT)
        )
        assert all(
            isinstance(c.parsed, Local) for c in worker.generate_many(["a"], n=2, json_schema=Local, **HOT)
        )
        with worker.stream("hello", json_schema=Local, **HOT) as stream:
            for _ in stream:
                pass
        assert isinstance(stream.completion.parsed, Local)
        assert isinstance(asyncio.run(worker.agenerate("hello", json_schema=Local, **HOT)).parsed, Local)
        with pytest.raises(errors.ConstraintError, match="uniqueItems") as caught:
            worker.generate("hello", json_schema={"uniqueItems": True})
        assert caught.value.keyword == "uniqueItems"


# --- results


def test_a_completion_keeps_what_it_is_to_become(runner: LlamaRunner) -> None:
    completion = runner.generate("hello", json_schema=City, seed=2, **HOT)
    assert completion.response is not None and completion.response.type is City
    assert isinstance(pickle.loads(pickle.dumps(completion)).parsed, City)
    assert isinstance(completion.as_type(dict[str, Any]).parsed, dict)
    assert completion.as_type(None) is completion and completion.as_type(dict) == completion


Id = NewType("Id", int)


def test_types_with_names_of_their_own() -> None:
    assert schema_of(Id) == {"type": "integer"} and value_of(Id, "3") == 3
    adapter = pydantic.TypeAdapter(list[int])
    assert schema_of(adapter) == {"type": "array", "items": {"type": "integer"}} and value_of(
        adapter, "[1]"
    ) == [1]


# --- the documentation

DOCS = Path(__file__).parent.parent / "docs" / "structured.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.real_model
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_an_example_of_the_page_runs(block: int, smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = BLOCKS[block].replace('"smollm2-135m"', repr(str(smollm2)))
    exec(compile(code, f"structured.md, block {block}", "exec", dont_inherit=True), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_page_has_examples() -> None:
    assert len(BLOCKS) >= 3
