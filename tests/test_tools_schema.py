"""What a model is told of tools that are made of functions and of schemas."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llama_runner import errors
from llama_runner.chat.tools import Tool, ToolSet, run_call, tool
from llama_runner.chat_types import ToolCall
from tool_use import (
    PARAMETERS,
    WEATHER,
    Even,
    Node,
    Place,
    Range,
    Strict,
    Unit,
    arguments_of,
    refusal,
)


def parameters(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    made = Tool.from_function(function, **options)
    jsonschema.Draft202012Validator.check_schema(made.parameters)
    return made.parameters


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    return parameters(function)["properties"]  # type: ignore[no-any-return]


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
