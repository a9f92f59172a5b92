"""What is made of the arguments that a model writes, and what it is told of wrong ones."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Optional

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from llama_runner import errors
from llama_runner.chat.tools import Tool, ToolSet
from llama_runner.chat_types import ToolCall
from tool_use import (
    PARAMETERS,
    WEATHER,
    Even,
    Place,
    Range,
    Strict,
    Unit,
    arguments_of,
    refusal,
    weather,
)

# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "made", [Tool.from_function(weather), Tool.from_schema(WEATHER)], ids=["function", "schema"]
)
class TestArguments:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "Expecting property name"),
            ('{"town": "x"', "Expecting ',' delimiter"),
            ("town=x", 'Expecting value at character 0, near "town=x"'),
            ("[1]", "it is a list, not an object"),
            ("3", "it is a number, not an object"),
            ('"x"', "Expecting value"),
            ('{"town": NaN}', "NaN is no JSON number"),
            ('{"town": -Infinity}', "-Infinity is no JSON number"),
            ('{"days": 1e999}', "larger than a double"),
            ('{"days": ' + "9" * 400 + "}", "more than 300 digits"),
            ('{"days": ' + "9" * 5000 + "}", "digits"),
            ('{"town": "\\ud800"}', r"\ud800 is no text"),
            ('{"town": "\\u0000"}', r"\u0000 is no text"),
            ('{"town": ' + "[" * 100_000, "nests more than 200 levels"),
            ('{"town": ' + "[" * 1000 + "]" * 1000 + "}", "nests more than 200 levels"),
        ],
    )
    def test_no_json(self, made: Tool, text: str, reason: str) -> None:
        told = refusal(made, text)
        assert reason in told
        assert told.startswith("Error: weather was not run, its arguments are no JSON object: ")
        assert told.endswith('Call weather again with arguments such as {"town": "text"}')
        assert len(told) < 400

    def test_json_in_json(self, made: Tool) -> None:
        call = ToolCall("weather", json.dumps(json.dumps({"town": "ab"})))
        assert ToolSet([made]).validate(call).arguments == {"town": "ab"}

    @pytest.mark.parametrize("text", ["", "  ", "null", "{}"])
    def test_missing(self, made: Tool, text: str) -> None:
        told = refusal(made, text)
        assert "- town: missing, want a string" in told and told.endswith('such as {"town": "text"}')

    def test_several_problems(self, made: Tool) -> None:
        told = refusal(made, {"days": 9, "dyas": 3})
        assert "- days: got 9, want an integer from 1 to 7\n" in told
        assert "- dyas: there is no such argument, only town, days, " in told
        assert "- town: missing, want a string" in told
        assert (
            told.splitlines()[-1] == 'Call weather again with arguments such as {"town": "text", "days": 1}'
        )

    def test_the_example_keeps_what_was_right(self, made: Tool) -> None:
        assert refusal(made, {"town": "Paris", "days": "x"}).endswith('such as {"town": "Paris", "days": 1}')

    def test_what_came_is_cut(self, made: Tool) -> None:
        told = refusal(made, {"town": ["x" * 100_000], "days": 1})
        assert len(told) < 400 and 'town: got ["xxx' in told

    def test_unknown_tools(self, made: Tool) -> None:
        tools = ToolSet([made, {"name": "other"}])
        for name, hint in (("wether", "; did you mean weather?"), ("q" * 10_000, "")):
            with pytest.raises(errors.ToolArgumentError) as caught:
                tools.validate(ToolCall(name, "{}"))
            assert "there is weather, other" in caught.value.for_model
            assert caught.value.for_model.endswith("other" + hint)
            assert len(caught.value.for_model) < 200


def test_enums_and_places() -> None:
    assert arguments_of(weather, town="x", unit="fahrenheit")["unit"] is Unit.F
    told = refusal(weather, {"town": "x", "unit": "kelvin"})
    assert '- unit: got "kelvin", want one of "celsius", "fahrenheit"' in told
    made = Tool.from_schema(WEATHER)
    told = refusal(made, {"town": "ab", "kinds": ["rain", "snow"]})
    assert '- kinds[1]: got "snow", want one of "rain", "wind"' in told
    told = refusal(made, {"town": "ab", "kinds": "rain"})
    assert '- kinds: got "rain", want a list, each item one of' in told


def test_what_validators_say() -> None:
    def f(even: Even, day: datetime.date, strict: Strict | None = None, u: int | list[str] = 1) -> None: ...

    told = refusal(
        f, {"even": {"n": 3}, "day": "soon", "strict": {"day": "2025-01-02", "x": 1}, "u": {"a": 1}}
    )
    assert "- even.n: got 3, want an integer (n must be even)" in told
    assert '- day: got "soon", want a date such as "2025-01-31"' in told
    assert "- strict.x: there is no such argument" in told
    assert '- u: got {"a": 1}, want an integer or a list of strings' in told
    assert told.count("- u:") == 1


def test_a_validator_that_raises_what_it_should_not() -> None:
    class Odd(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            return 1 // n

    def f(odd: Odd) -> None: ...

    assert "- odd: got" in refusal(f, {"odd": {"n": 0}}) and "ZeroDivisionError" in refusal(
        f, {"odd": {"n": 0}}
    )


def test_many_problems_are_counted() -> None:
    def f(numbers: list[int]) -> None: ...

    told = refusal(f, {"numbers": ["x"] * 1000})
    assert told.count("\n- ") == 6 and "and 995 more" in told and len(told) < 500


json_types = st.sampled_from([str, int, bool, list[int], dict[str, str], Optional[int], Unit, Place, Range])  # noqa: UP045
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def outcome(tools: ToolSet, name: str, arguments: str) -> tuple[dict[str, Any] | None, str]:
    """The arguments as the tool gets them, or what the model is told."""
    try:
        return tools.validate(ToolCall(name, arguments)).arguments, ""
    except errors.ToolArgumentError as error:
        return None, error.for_model


@given(
    st.dictionaries(st.sampled_from("abc"), json_types, min_size=1),
    st.dictionaries(st.sampled_from("abcd"), json_values),
)
def test_any_arguments_are_taken_or_told(types: Mapping[str, Any], arguments: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def f({', '.join(types)}): ...", namespace)
    namespace["f"].__annotations__ = dict(types)
    tools = ToolSet([namespace["f"]])
    found, told = outcome(tools, "f", json.dumps(arguments))
    assert outcome(tools, "f", json.dumps(arguments))[1] == told
    if found is None:
        assert told.startswith("Error: f was not run") and len(told) < 2000
        repaired = told.rpartition("arguments such as ")[2]
        assert outcome(tools, "f", repaired)[1] == ""  # the example is one that is taken
    else:
        assert found.keys() == arguments.keys()


@given(st.dictionaries(st.sampled_from(["town", "days", "kinds", "x"]), json_values))
def test_any_arguments_of_a_schema(arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments)
    found, told = outcome(ToolSet([WEATHER]), "weather", text)
    closed = {**PARAMETERS, "additionalProperties": False}
    valid = jsonschema.Draft202012Validator(closed).is_valid(arguments)
    assert (found == arguments) if valid else (found is None and told)
