"""Sets of tools: names, order, choice, and what a prompt and a grammar are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat.tools import Tool, ToolChoice, ToolContext, ToolSet
from llama_runner.core import ChatTemplate, Model
from tool_use import (
    WEATHER,
    Node,
    Place,
    Range,
    Unit,
    weather,
)

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
    tools = ToolSet([everything, weather, WEATHER | {"name": "w"}, {"name": "plain"}])
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
