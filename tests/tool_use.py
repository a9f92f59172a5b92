"""What the tests of tools share: types and functions to make tools of, and what becomes of a call."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import time
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from llama_runner import errors
from llama_runner.chat.tools import (
    Tool,
    ToolSet,
    ValidatedCall,
    abandoned_calls,
)
from llama_runner.chat_types import ToolCall


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


def weather(town: str, days: Annotated[int, Field(ge=1, le=7)] = 3, unit: Unit = Unit.C) -> None: ...


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


def circle() -> list[Any]:
    items: list[Any] = [1]
    items.append({"a": items})
    return items


def validated(function: Any, arguments: str = "{}", call_id: str = "c1", **options: Any) -> ValidatedCall:
    made = (
        function
        if isinstance(function, Tool)
        else Tool.from_function(function, name=options.pop("name", "f"), **options)
    )
    return ToolSet([made]).validate(ToolCall(made.name, arguments, call_id))


def returning(value: Any) -> ValidatedCall:
    return validated(lambda: value)


def wait_for_no_abandoned(seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while abandoned_calls() and time.monotonic() < end:
        time.sleep(0.005)
    assert abandoned_calls() == 0


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
