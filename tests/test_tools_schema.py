"""What a model is told of a tool, and what is made of the arguments that it writes."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat.tools import Tool, ToolChoice, ToolContext, ToolSet, run_call, tool
from llama_runner.chat_types import ToolCall
from llama_runner.core import ChatTemplate, Model


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Node(BaseModel):
    """A node."""

    name: str
    kids: list[Node] = []


class Place(TypedDict):
    lat: float
    lon: float


@dataclasses.dataclass
class Range:
    low: int
    high: int = 9


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    day: datetime.date
    pair: tuple[int, int] = (1, 2)


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def check_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("n must be even")
        return n


def parameters(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    made = Tool.from_function(function, **options)
    jsonschema.Draft202012Validator.check_schema(made.parameters)
    return made.parameters


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    return parameters(function)["properties"]  # type: ignore[no-any-return]


def arguments_of(function: Any, **arguments: Any) -> dict[str, Any]:
    made = function if isinstance(function, Tool) else Tool.from_function(function, name="f")
    return ToolSet([made]).validate(ToolCall(made.name, json.dumps(arguments))).arguments


def refusal(function: Any, arguments: Any) -> str:
    """What the model is told of ``arguments``."""
    made = function if isinstance(function, Tool) else Tool.from_function(function, name="f")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    with pytest.raises(errors.ToolArgumentError) as caught:
        ToolSet([made]).validate(ToolCall(made.name, text))
    assert isinstance(caught.value, ValueError) and caught.value.tool == made.name
    return caught.value.for_model


# ---------------------------------------------------------------------------------------------------- from functions

ANNOTATIONS: dict[str, tuple[Any, Any, Any, Any]] = {
    # the annotation, its schema, a value as JSON has it, and what the function gets
    "str": (str, {"type": "string"}, "a", "a"),
    "int": (int, {"type": "integer"}, "3", 3),
    "float": (float, {"type": "number"}, 3, 3.0),
    "bool": (bool, {"type": "boolean"}, True, True),
    "any": (Any, {}, [1], [1]),
    "optional": (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, None),  # noqa: UP045
    "union": (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "a", "a"),
    "literal": (Literal["a", 3], {"enum": ["a", 3]}, 3, 3),
    "enum": (Unit, {"enum": ["celsius", "fahrenheit"], "type": "string"}, "celsius", Unit.C),
    "list": (list[int], {"type": "array", "items": {"type": "integer"}}, [1, "2"], [1, 2]),
    "set": (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], {1, 2}),
    "dict": (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    "bare dict": (dict, {"type": "object"}, {"a": []}, {"a": []}),
    "field": (
        Annotated[int, Field(ge=1, le=7, description="Days.")],
        {"type": "integer", "minimum": 1, "maximum": 7, "description": "Days."}, 3, 3,
    ),
    "typed dict": (
        Place,
        {
            "type": "object", "required": ["lat", "lon"],
            "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
        },
        {"lat": 1, "lon": 2}, {"lat": 1.0, "lon": 2.0},
    ),
    "dataclass": (
        Range,
        {
            "type": "object", "required": ["low"],
            "properties": {"low": {"type": "integer"}, "high": {"type": "integer", "default": 9}},
        },
        {"low": 1}, Range(1, 9),
    ),
    "date": (datetime.date, {"type": "string", "format": "date"}, "2025-01-02", datetime.date(2025, 1, 2)),
    "path": (Path, {"type": "string", "format": "path"}, "a/b", Path("a/b")),
    "model": (
        Even,
        {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}, {"n": 2}, Even(n=2),
    ),
    "strict model": (
        Strict,
        {
            "type": "object", "required": ["day"], "additionalProperties": False,
            "properties": {
                "day": {"type": "string", "format": "date"},
                "pair": {
                    "type": "array", "default": [1, 2], "minItems": 2, "maxItems": 2,
                    "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                },
            },
        },
        {"day": "2025-01-02", "pair": [3, 4]}, Strict(day=datetime.date(2025, 1, 2), pair=(3, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations(name: str) -> None:
    annotation, schema, given_value, expected = ANNOTATIONS[name]

    def f(x: Any) -> None: ...

    f.__annotations__["x"] = annotation
    assert parameters(f) == {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    found = arguments_of(f, x=given_value)["x"]
    assert found == expected and type(found) is type(expected)


def test_there_is_a_recursive_model() -> None:
    def f(tree: Node) -> str:
        return tree.kids[0].kids[0].name

    schema = parameters(f)
    assert schema["properties"] == {"tree": {"$ref": "#/$defs/Node"}}
    assert schema["$defs"]["Node"]["properties"]["kids"]["items"] == {"$ref": "#/$defs/Node"}
    tree = {"name": "a", "kids": [{"name": "b", "kids": [{"name": "c"}]}]}
    made = ToolSet([f])
    assert run_call(made.validate(ToolCall("f", json.dumps({"tree": tree})))).content == "c"
    tree["kids"][0]["kids"][0]["name"] = 3  # type: ignore[index]
    assert "- tree.kids[0].kids[0].name: got 3, want a string" in refusal(f, {"tree": tree})


def test_defaults_and_kinds() -> None:
    def f(
        a: int, b: int = 2, *, c: Unit = Unit.F, d: float = float("nan"), e: object = object(), **rest: int
    ) -> None: ...

    schema = parameters(f)
    assert schema["required"] == ["a"] and schema["additionalProperties"] == {"type": "integer"}
    assert {name: node.get("default") for name, node in schema["properties"].items()} == {
        "a": None, "b": 2, "c": "fahrenheit", "d": None, "e": None,
    }  # fmt: skip
    assert arguments_of(f, a=1, more="3") == {"a": 1, "more": 3}
    assert '- more: got "x", want an integer' in refusal(f, {"a": 1, "more": "x"})


def test_fields_as_defaults() -> None:
    def f(
        a: int = Field(3, ge=1, description="An a."),
        b: Annotated[int, Field(default=4)] = 5,
        c: list[int] = Field(default_factory=list),  # noqa: B008 - as pydantic has it
    ) -> Any:
        return [a, b, c]

    assert "required" not in parameters(f)
    assert properties(f)["a"] == {"type": "integer", "minimum": 1, "default": 3, "description": "An a."}
    assert run_call(ToolSet([f]).validate(ToolCall("f", ""))).content == "[3, 5, []]"
    assert "a: got 0, want an integer at least 1" in refusal(f, {"a": 0})


def test_awkward_names() -> None:
    def f(
        schema: int, copy: int, json: int, model_config: int, _private: int, field_name: int, loc: int
    ) -> int:
        return schema + copy + json + model_config + _private + field_name + loc

    names = ["schema", "copy", "json", "model_config", "_private", "field_name", "loc"]
    assert list(properties(f)) == names
    assert run_call(ToolSet([f]).validate(ToolCall("f", json.dumps(dict.fromkeys(names, 1))))).value == 7


def test_a_property_named_title_stays() -> None:
    class Book(BaseModel):
        title: str = "t"

    def f(title: str, book: Book) -> None: ...

    assert properties(f)["title"] == {"type": "string"}
    assert properties(f)["book"]["properties"] == {"title": {"default": "t", "type": "string"}}


def test_definitions_are_written_where_they_are_used() -> None:
    class Big(BaseModel):
        a: Annotated[str, Field(description="x" * 300)]

    def f(one: Unit, two: Unit | None, b: Big, c: list[Big], n: Node) -> None: ...

    schema = parameters(f)
    assert sorted(schema["$defs"]) == ["Big", "Node"]
    assert schema["properties"]["one"] == {"enum": ["celsius", "fahrenheit"], "type": "string"}
    assert schema["properties"]["c"]["items"] == {"$ref": "#/$defs/Big"}


def test_partials() -> None:
    def f(a: int, b: int, c: int = 3) -> Any:
        """Adds."""
        return [a, b, c]

    made = Tool.from_function(functools.partial(functools.partial(f, 1), c=9))
    assert (made.name, made.description) == ("f", "Adds.")
    assert made.parameters["properties"] == {"b": {"type": "integer"}} and made.parameters["required"] == [
        "b"
    ]
    assert run_call(ToolSet([made]).validate(ToolCall("f", '{"b": 2}'))).content == "[1, 2, 9]"
    assert "there is no such argument, only b" in refusal(made, {"b": 2, "c": 3})


def test_types_of_the_function_around() -> None:
    class Local(BaseModel):
        a: int

    def f(x: Local) -> int:
        return x.a

    @tool
    def g(x: list[Local]) -> int:
        return len(x)

    assert run_call(ToolSet([f]).validate(ToolCall("f", '{"x": {"a": 4}}'))).value == 4
    assert run_call(ToolSet([g]).validate(ToolCall("g", '{"x": [{"a": 4}]}'))).value == 1


def google(town: str, days: int = 1, **rest: int) -> None:
    """The weather of a town.

    It may rain: bring a coat.

    Args:
        town (str, optional): Name of the town,
            in full: with the country.
        days: How many.
        **rest: More.
        gone: There is none such.

    Returns:
        dict: The weather.

    Raises:
        ValueError: If it rains.

    Note:
        Slow.
    """


def numpy_style(town: str, days: int = 1, **rest: int) -> None:
    """The weather of a town.

    It may rain: bring a coat.

    Parameters
    ----------
    town : str
        Name of the town,
        in full: with the country.
    days : int, optional
        How many.
    **rest
        More.

    Returns
    -------
    dict
        The weather.

    Notes
    -----
    Slow.
    """


def sphinx(town: str, days: int = 1, **rest: int) -> None:
    """The weather of a town.

    It may rain: bring a coat.

    :param str town: Name of the town,
        in full: with the country.
    :param days: How many.
    :type days: int
    :returns: The weather.
    :raises ValueError: If it rains.
    """


@pytest.mark.parametrize("function", [google, numpy_style, sphinx])
def test_docstrings(function: Callable[..., Any]) -> None:
    made = Tool.from_function(function)
    assert made.description.startswith("The weather of a town.\n\nIt may rain: bring a coat.")
    assert (
        "coat" in made.description and "Returns" not in made.description and "Raises" not in made.description
    )
    assert ("Slow." in made.description) == (function is not sphinx)
    found = made.parameters["properties"]
    assert found["town"]["description"] == "Name of the town, in full: with the country."
    assert found["days"]["description"] == "How many."


def test_what_is_said_of_a_tool() -> None:
    def f(a: Annotated[int, Field(description="Of the field.")]) -> None:
        """Args:
        a: Of the docstring.
        """

    assert properties(f)["a"]["description"] == "Of the field."
    assert Tool.from_function(f, description="  Other.\n  Lines.").description == "Other.\nLines."
    assert Tool.from_function(f, name="g").name == "g"
    assert Tool.from_function(lambda: 1, name="g").description == ""
    made = Tool.from_function(google, timeout=3).to_dict()
    assert made["type"] == "function" and list(made["function"]) == ["name", "description", "parameters"]


@given(st.text())
def test_any_docstring_is_read(text: str) -> None:
    def f(a: int = 1) -> None: ...

    f.__doc__ = "Args:\n" + text
    try:
        Tool.from_function(f)
    except errors.ToolDefinitionError:
        assert "\0" in text  # what no description can hold


class Custom:
    pass


def with_self(self, a: int) -> None: ...  # type: ignore[no-untyped-def]


def positional(*values: int) -> None: ...


def of_custom(a: Custom) -> None: ...


def of_callable(a: Callable[[int], int]) -> None: ...


def of_unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def of_broken(a: 1 / 0) -> None: ...  # type: ignore[valid-type]


def aliased(a: Annotated[int, Field(alias="b")]) -> None: ...


def generates() -> Any:
    yield 1


async def generates_later() -> Any:
    yield 1


REFUSED: dict[str, tuple[Any, str]] = {
    "self": (with_self, "bound method"),
    "*args": (positional, r"takes \*values: arguments come by name"),
    "custom": (of_custom, "the type of a, .*Custom.*, cannot come from JSON"),
    "callable": (of_callable, "JSON"),
    "unknown": (of_unknown, "annotation cannot be evaluated: name 'Nowhere'"),
    "broken": (of_broken, "annotation cannot be evaluated: division by zero"),
    "alias": (aliased, "alias of a is not supported"),
    "generator": (generates, "generator function"),
    "async generator": (generates_later, "generator function"),
    "lambda": (lambda: 1, "'<lambda>' is no name for a tool.*pass name="),
    "builtin": (print, r"\*args"),
    "no signature": (dict, "the signature of dict cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_that_make_no_tool(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(errors.ToolDefinitionError, match=reason) as caught:
        Tool.from_function(function)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, errors.UsageError)


def test_a_builtin_with_a_signature() -> None:
    made = Tool.from_function(len)
    assert run_call(ToolSet([made]).validate(ToolCall("len", '{"obj": [1, 2]}'))).value == 2


@pytest.mark.parametrize("function", [1, None, "f", object()])
def test_what_is_no_function(function: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError):
        Tool.from_function(function, name="f")


@pytest.mark.parametrize("name", ["", "a b", "ü", "a" * 65, "a/b", "a\n", "<x>"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(errors.ToolDefinitionError, match="is no name for a tool"):
        Tool.from_schema({"name": name})
    with pytest.raises(errors.ToolDefinitionError, match="is no name for a tool"):
        Tool.from_function(len, name=name)


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "a" * 64])
def test_names(name: str) -> None:
    assert list(ToolSet([{"name": name}])) == [name]


# ---------------------------------------------------------------------------------------------------- from schemas

PARAMETERS = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "minLength": 2},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "kinds": {"type": "array", "items": {"enum": ["rain", "wind"]}},
    },
    "required": ["town"],
}
WEATHER = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}


def test_every_form_of_a_description() -> None:
    forms: list[dict[str, Any]] = [
        WEATHER,
        {"type": "function", "function": WEATHER},
        {"type": "function", **WEATHER, "strict": True},
        {"name": "weather", "description": "The weather.", "inputSchema": PARAMETERS, "annotations": {"a": True}},
        {"name": "weather", "title": "The weather.", "inputSchema": PARAMETERS, "_meta": {}, "outputSchema": {}},
    ]  # fmt: skip
    for form in forms:
        before = json.dumps(form)
        (made,) = ToolSet([form]).values()
        assert made.to_dict() == {"type": "function", "function": WEATHER}
        assert made.call is None
        made.to_dict()["function"]["parameters"]["properties"].clear()
        assert json.dumps(form) == before and made.to_dict()["function"] == WEATHER
    assert Tool.from_mcp(forms[3]).annotations == {"a": True}


def test_no_parameters() -> None:
    for form in (
        {"name": "f"},
        {"name": "f", "parameters": {}},
        {"name": "f", "inputSchema": {"type": "object"}},
    ):
        (made,) = ToolSet([form]).values()
        assert made.parameters == {"type": "object", "properties": {}}
        assert ToolSet([made]).validate(ToolCall("f", "")).arguments == {}
        assert "x: there is no such argument, it takes none" in refusal(made, {"x": 1})


def test_a_schema_with_a_function() -> None:
    made = Tool.from_schema(WEATHER, lambda town, days=1, kinds=(): [town, days, kinds], timeout=3)
    call = ToolSet([made]).validate(ToolCall("weather", '{"town": "ab", "days": 3}'))
    assert call.arguments == {"town": "ab", "days": 3}
    assert run_call(call).content == '["ab", 3, []]'


def self_containing() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


MALFORMED: dict[str, Any] = {
    "list": [],
    "text": "{}",
    "number": 3,
    "type": {"type": "array"},
    "unknown type": {"properties": {"a": {"type": "strnig"}}},
    "type of a type": {"properties": {"a": {"type": 3}}},
    "properties": {"properties": ["a"]},
    "property": {"properties": {"a": 3}},
    "required": {"properties": {}, "required": "a"},
    "enum": {"properties": {"a": {"enum": []}}},
    "minimum": {"properties": {"a": {"type": "number", "minimum": "1"}}},
    "pattern": {"properties": {"a": {"type": "string", "pattern": "("}}},
    "nowhere": {"properties": {"a": {"$ref": "#/$defs/Nowhere"}}},
    "remote": {"properties": {"a": {"$ref": "https://example.com/schema.json"}}},
    "circle": {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
    "self": self_containing(),
    "deep": deep(70),
    "very deep": deep(5000),
    "no JSON": {"properties": {"a": {"default": object()}}},
    "NaN": {"properties": {"a": {"default": float("nan")}}},
    "NUL": {"properties": {"a": {"description": "a\0"}}},
    "surrogate": {"properties": {"a": {"description": "\ud800"}}},
    "key": {"properties": {1: {}}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_schemas_that_are_none(name: str) -> None:
    with pytest.raises(errors.ToolDefinitionError, match="the parameters of the tool f"):
        Tool.from_schema({"name": "f", "parameters": MALFORMED[name]})
    with pytest.raises(errors.ToolDefinitionError, match="the parameters of the tool f"):
        Tool.from_mcp({"name": "f", "inputSchema": MALFORMED[name]})


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"name": 3},
        {"name": None},
        {"function": WEATHER, "x": 1},
        {"type": "web_search", "name": "f"},
        {"name": "f", "input_schema": {}},
        {"name": "f", "description": 3},
        {"name": "f", "description": "a\0"},
        {"function": 3},
        {"name": "f", "inputSchema": {}, "parameters": {}},
    ],
    ids=str,
)
def test_descriptions_that_are_none(form: dict[str, Any]) -> None:
    with pytest.raises((errors.ToolDefinitionError, errors.ArgumentTypeError)):
        ToolSet([form])


def test_recursive_schemas() -> None:
    again = {"$ref": "#/$defs/N"}
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "next": again}, "required": ["v"]}
    schema = {"properties": {"n": again}, "required": ["n"], "$defs": {"N": node}}
    made = Tool.from_schema({"name": "f", "parameters": schema})
    value = {"v": 1, "next": {"v": 2, "next": {"v": 3}}}
    assert arguments_of(made, n=value) == {"n": value}
    told = refusal(made, {"n": {"v": 1, "next": {"next": {"v": "x"}}}})
    assert "- n.next.v: missing, want an integer" in told
    assert '- n.next.next.v: got "x", want an integer' in told
    assert told.endswith('arguments such as {"n": {"v": 1}}')


def test_bounds_that_no_grammar_counts_to() -> None:
    schema = {
        "properties": {
            "text": {"type": "string", "maxLength": 10_000},
            "id": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
            "max-results": {"type": "integer"},
        },
        "additionalProperties": True,
    }
    made = Tool.from_schema({"name": "f", "parameters": schema})
    assert made.to_dict()["function"]["parameters"]["properties"] == {
        "text": {"type": "string"}, "id": {"type": "integer", "minimum": 0}, "max-results": {"type": "integer"},
    }  # fmt: skip
    told = refusal(made, {"text": "x" * 10_001, "id": 2**64})
    assert "want a string of at most 10000 characters" in told and "id: got 18446744073709551616" in told


# ---------------------------------------------------------------------------------------------------- arguments


def weather(town: str, days: Annotated[int, Field(ge=1, le=7)] = 3, unit: Unit = Unit.C) -> None: ...


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


# ---------------------------------------------------------------------------------------------------- sets


def test_a_set_is_a_mapping_in_order() -> None:
    tools = ToolSet([weather, {"name": "b"}, Tool.from_schema({"name": "a"})])
    assert list(tools) == ["weather", "b", "a"] and len(tools) == 3
    assert tools["a"].name == "a" and "b" in tools and "c" not in tools and tools.get("c") is None
    assert [item["function"]["name"] for item in tools.to_list()] == ["weather", "b", "a"]
    assert json.dumps(tools.to_list()) == json.dumps(tools.to_list()) == json.dumps(ToolSet(tools).to_list())
    with pytest.raises(errors.UnknownToolError, match="there is weather, b, a") as caught:
        tools["c"]
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, errors.UsageError)
    assert not ToolSet() and ToolSet().to_list() == []
    assert repr(tools) == "ToolSet(weather, b, a)"


def test_the_words_are_the_same_in_every_process() -> None:
    source = (
        "import json\nfrom typing import Literal\nfrom llama_runner.chat.tools import ToolSet\n"
        "def f(a: Literal['x', 'y', 'z'], b: set[int] = {3, 1}): 'F.'\n"
        "print(json.dumps(ToolSet([f]).to_list()))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1 and '"f"' in texts.pop()


def test_names_that_collide() -> None:
    with pytest.raises(errors.ToolDefinitionError, match="two tools are named 'weather'"):
        ToolSet([weather, WEATHER])


@pytest.mark.parametrize("tools", [None, 3, "weather", WEATHER, weather, {"a": weather}], ids=str)
def test_what_is_no_list_of_tools(tools: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="tools is a list"):
        ToolSet(tools)
    with pytest.raises((errors.ArgumentTypeError, errors.ToolDefinitionError)):
        ToolSet([3])  # type: ignore[list-item]


def test_tool_choice() -> None:
    tools = ToolSet([weather, {"name": "b"}])
    assert tools.choice(None) == tools.choice("auto") == ToolChoice("auto")
    assert tools.choice("none") == ToolChoice("none")
    assert tools.choice("required") == ToolChoice("required")
    named = ToolChoice("required", "b")
    forms: list[Any] = [
        "b",
        {"type": "function", "function": {"name": "b"}},
        {"type": "function", "name": "b"},
        named,
    ]
    for form in forms:
        assert tools.choice(form) == named
    assert list(tools.chosen(named)) == ["b"] and tools.chosen(ToolChoice()) is tools
    for form in ("c", {"type": "function", "function": {"name": "c"}}, ToolChoice("required", "c")):
        with pytest.raises(
            errors.UnknownToolError, match='tool_choice: there is no tool "c"; there is weather, b'
        ):
            tools.choice(form)
    for form in ({}, {"type": "x"}, {"type": "function"}, {"function": {"name": 3}}, {"function": 3}):
        with pytest.raises(errors.InvalidArgumentError, match="tool_choice"):
            tools.choice(form)
    for form in (3, True, ["b"]):
        with pytest.raises(errors.ArgumentTypeError, match="tool_choice"):
            tools.choice(form)
    with pytest.raises(errors.InvalidArgumentError, match="no tools to call"):
        ToolSet().choice("required")


# ---------------------------------------------------------------------------------------------------- in a prompt


def test_what_is_offered_makes_a_prompt_and_a_grammar(
    llama_cpp_dir: Path, tiny_model: TinyModelFactory
) -> None:
    def everything(
        ctx: ToolContext,
        tree: Node,
        place: Place,
        span: Range | None = None,
        *,
        unit: Unit = Unit.C,
        **rest: int,
    ) -> None:
        """Everything."""

    source = (
        llama_cpp_dir / "models/templates/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
    ).read_text("utf-8")
    template = ChatTemplate(Model(tiny_model("llama")), source)
    tools = ToolSet([everything, weather, WEATHER | {"name": "w"}, google])
    prompt = template.render(
        [{"role": "user", "content": "hi"}], tools=tools.to_list(), tool_choice="required"
    )
    assert all(name in prompt.prompt for name in tools) and "ctx" not in prompt.prompt
    assert prompt.grammar is not None and "everything" in prompt.grammar


def test_the_extra_is_named() -> None:
    source = """
import sys
for name in ("pydantic", "jsonschema"):
    sys.modules[name] = None
from llama_runner import errors
from llama_runner.chat.tools import Tool, ToolSet
from llama_runner.chat_types import ToolCall
tools = ToolSet([{"name": "f"}])
for call in (lambda: Tool.from_function(len), lambda: tools.validate(ToolCall("f", "{}"))):
    try:
        call()
    except errors.MissingExtraError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.count('pip install "llama-runner[tools]"') == 2


def test_nothing_heavy_is_imported() -> None:
    source = """
import sys
from llama_runner.chat.tools import ToolSet
tools = ToolSet([])
print(sorted({"pydantic", "jsonschema", "jinja2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
