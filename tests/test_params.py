"""GenerationParams: every value checked, every way of building it the same."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError, UnknownParameterError
from llama_runner.params import GenerationParams

NAMES = [field.name for field in dataclasses.fields(GenerationParams)]

# One value of each field that is not its default, as given and as stored.
OTHER: dict[str, tuple[Any, Any]] = {
    "max_tokens": (None, None),
    "temperature": (0, 0.0),
    "top_k": (0, 0),
    "top_p": (1, 1.0),
    "min_p": (0.1, 0.1),
    "typical_p": (0.5, 0.5),
    "repeat_penalty": (1.1, 1.1),
    "frequency_penalty": (-0.5, -0.5),
    "presence_penalty": (0.5, 0.5),
    "penalty_last_n": (0, 0),
    "seed": (2**32 - 2, 2**32 - 2),
    "stop": ("\n", ("\n",)),
    "stop_tokens": ([7, 3, 7], (7, 3)),
    "echo": (True, True),
    "ignore_eos": (True, True),
    "logprobs": (0, 0),
    "logit_bias": ({7: -1, 3: 2.5}, ((3, 2.5), (7, -1.0))),
    "json_schema": ({"type": "integer"}, '{"type":"integer"}'),
    "regex": ("[0-9]+", "[0-9]+"),
    "choices": (["yes", "no", "yes"], ("yes", "no")),
    "lark": ('start: "a"', 'start: "a"'),
    "grammar": ('root ::= "a"', 'root ::= "a"'),
    "timeout": (2, 2.0),
}


def test_defaults() -> None:
    params = GenerationParams()
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (256, 0.8, 40, 0.95)
    assert (params.min_p, params.typical_p, params.penalty_last_n) == (0.05, 1.0, 64)
    assert (params.seed, params.stop, params.logprobs, params.timeout) == (None, (), None, None)
    assert repr(params) == "GenerationParams()"


def test_there_is_a_value_for_each_field() -> None:
    assert sorted(OTHER) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_way_of_setting_a_field_is_the_same(name: str) -> None:
    given_value, stored = OTHER[name]
    by_keyword = GenerationParams(**{name: given_value})
    assert getattr(by_keyword, name) == stored
    assert type(getattr(by_keyword, name)) is type(stored)
    assert by_keyword != GenerationParams()
    assert repr(by_keyword) == f"GenerationParams({name}={stored!r})"
    for other in (
        getattr(GenerationParams(), f"with_{name}")(given_value),
        GenerationParams().replace(**{name: given_value}),
        GenerationParams.from_kwargs(None, {name: given_value}),
        GenerationParams.from_kwargs(GenerationParams(), {name: given_value}),
        GenerationParams.from_dict({name: given_value}),
        dataclasses.replace(GenerationParams(), **{name: given_value}),
        GenerationParams.from_dict(json.loads(json.dumps(by_keyword.to_dict()))),
        pickle.loads(pickle.dumps(by_keyword)),
        copy.deepcopy(by_keyword),
        eval(repr(by_keyword)),
    ):
        assert other == by_keyword
        assert hash(other) == hash(by_keyword)


def test_no_method_for_a_field_is_missing_or_left_over() -> None:
    methods = {
        n.removeprefix("with_") for n, _ in inspect.getmembers(GenerationParams) if n.startswith("with_")
    }
    assert methods == set(NAMES)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationParams().top_k = 3  # type: ignore[misc]
    assert not hasattr(GenerationParams(), "__dict__")


def test_step_by_step_leaves_the_original() -> None:
    base = GenerationParams(seed=1)
    cold = base.with_temperature(0).with_stop("a", "b")
    assert (base.temperature, base.stop) == (0.8, ())
    assert (cold.temperature, cold.stop, cold.seed) == (0.0, ("a", "b"), 1)
    assert (cold.is_greedy, base.is_greedy) == (True, False)
    assert cold.with_stop().stop == cold.with_stop([]).stop == ()


@pytest.mark.parametrize("stop", ["x", ["x"], ("x",), iter(["x"]), ["x", "x"], np.array(["x"]), np.str_("x")])
def test_stop_takes_a_string_or_several(stop: Any) -> None:
    params = GenerationParams(stop=stop)
    assert params.stop == ("x",)
    assert type(params.stop[0]) is str


def test_none_is_no_stop_and_no_bias() -> None:
    assert GenerationParams(stop=None, logit_bias=None) == GenerationParams()


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint32])
def test_numpy_integers_become_ints(kind: type) -> None:
    params = GenerationParams(top_k=kind(5), seed=kind(5), temperature=kind(5), logit_bias={kind(5): kind(5)})
    assert (type(params.top_k), type(params.seed), type(params.temperature)) == (int, int, float)
    assert params.logit_bias == ((5, 5.0),)
    json.dumps(params.to_dict())


def test_numpy_floats_and_bools_become_plain() -> None:
    params = GenerationParams(temperature=np.float32(0.5), ignore_eos=np.bool_(True))  # type: ignore[arg-type]
    assert type(params.temperature) is float
    assert params.ignore_eos is True


def test_negative_zero_is_zero() -> None:
    assert repr(GenerationParams(temperature=-0.0).temperature) == "0.0"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", -5, "-5"),
        ("max_tokens", 2**31, "2147483648"),
        ("temperature", -0.1, "0 or more"),
        ("temperature", float("nan"), "nan"),
        ("temperature", float("inf"), "finite"),
        ("temperature", 10**400, "inf"),
        ("top_k", -1, "0 turns it off"),
        ("top_p", 1.01, "from 0 to 1"),
        ("top_p", -0.01, "from 0 to 1"),
        ("min_p", 2, "from 0 to 1"),
        ("typical_p", float("nan"), "from 0 to 1"),
        ("repeat_penalty", 0, "above 0"),
        ("frequency_penalty", float("-inf"), "finite"),
        ("presence_penalty", 1e39, "finite"),  # infinite as the C float that it becomes
        ("penalty_last_n", -1, "-1"),
        ("penalty_last_n", 2**31 - 1, "from 0 to 1048576"),
        ("seed", -1, "None draws one"),
        ("seed", 2**32 - 1, "from 0 to 4294967294"),
        ("stop", "", "empty"),
        ("stop", ["a", ""], "empty"),
        ("stop", "\ud800", "surrogate"),
        ("logprobs", -1, "-1"),
        ("logprobs", 101, "from 0 to 100"),
        ("logit_bias", {-1: 1.0}, "-1"),
        ("logit_bias", {1: float("nan")}, r"logit_bias\[1\]"),
        ("logit_bias", {1: float("-inf")}, "finite"),
        ("logit_bias", [(1, 1.0), (1, 2.0)], "1 twice"),
        ("grammar", "", "root ::="),
        ("grammar", " \n", "root ::="),
        ("grammar", 'root ::= "a\0"', "NUL, which is at 11"),
        ("grammar", "\udfff", "surrogate"),
        ("timeout", 0, "above 0"),
        ("timeout", -1, "above 0"),
    ],
)
def test_value_out_of_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        GenerationParams(**{name: value})
    assert name in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        *(
            (name, True, "bool True")
            for name in ("max_tokens", "temperature", "top_k", "top_p", "seed", "timeout")
        ),
        *((name, "1", "str '1'") for name in ("max_tokens", "temperature", "top_k", "seed", "ignore_eos")),
        ("max_tokens", 5.0, "float 5.0"),
        ("temperature", None, "NoneType"),
        ("temperature", 1j, "complex"),
        ("temperature", np.bool_(True), "bool"),
        ("top_k", np.float64(5), "float64"),
        ("top_k", np.array([5]), "ndarray"),
        ("ignore_eos", 1, "int 1"),
        ("stop", b"a", "bytes"),
        ("stop", 5, "int 5"),
        ("stop", {"a": 1}, "dict"),
        ("stop", ["a", b"b"], "bytes b'b'"),
        ("logit_bias", 5, "int 5"),
        ("logit_bias", "ab", "str 'ab'"),
        ("logit_bias", [5], "int 5"),
        ("logit_bias", [(1, 2, 3)], "tuple"),
        ("logit_bias", {"1": 1.0}, "str '1'"),
        ("logit_bias", {1: "1"}, "str '1'"),
        ("grammar", b"root", "bytes"),
    ],
)
def test_value_of_the_wrong_type(name: str, value: Any, shown: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        GenerationParams(**{name: value})
    assert name in str(caught.value)
    assert shown in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        GenerationParams(max_tokens="x" * 100_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_unknown_names_are_answered_with_the_nearest() -> None:
    builders: list[Callable[[], GenerationParams]] = [
        lambda: GenerationParams(temprature=1),  # type: ignore[arg-type]
        lambda: GenerationParams().replace(temprature=1),
        lambda: GenerationParams.from_kwargs(None, {"temprature": 1}),
        lambda: GenerationParams.from_dict({"temprature": 1}),
    ]
    for build in builders:
        with pytest.raises(UnknownParameterError, match="did you mean 'temperature'"):
            build()
    with pytest.raises(UnknownParameterError, match=r"^generate\(\) has no parameter 'x'"):
        GenerationParams.from_kwargs(None, {"x": 1}, where="generate()")


def test_keywords_lie_over_params() -> None:
    base = GenerationParams(temperature=0.1, seed=4)
    merged = GenerationParams.from_kwargs(base, {"temperature": 0.5})
    assert (merged.temperature, merged.seed) == (0.5, 4)
    assert GenerationParams.from_kwargs(base, {}) is base
    assert GenerationParams.from_kwargs(None, {}) == GenerationParams()


def test_params_of_the_wrong_type() -> None:
    with pytest.raises(ArgumentTypeError, match="GenerationParams"):
        GenerationParams.from_kwargs({"seed": 1}, {})  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="mapping"):
        GenerationParams.from_dict([])  # type: ignore[arg-type]


@given(
    st.builds(
        GenerationParams,
        max_tokens=st.none() | st.integers(1, 2**31 - 1),
        temperature=st.floats(0, 100),
        seed=st.none() | st.integers(0, 2**32 - 2),
        stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
        logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100)),
    )
)
def test_json_there_and_back(params: GenerationParams) -> None:
    assert GenerationParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


def test_no_choice_at_all_is_a_mistake() -> None:
    """A list that came out empty must not mean a free text."""
    for empty in ([], set(), iter(())):
        with pytest.raises(InvalidArgumentError, match="choices is empty"):
            GenerationParams(choices=empty)
    assert GenerationParams(choices=None) == GenerationParams(choices=()) == GenerationParams().with_choices()
