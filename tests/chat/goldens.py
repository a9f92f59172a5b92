"""What models of each family answer, and what it means: the files in ``golden/``.

Each file is a family: templates whose models write alike. An answer has the text that the model writes, from where the
prompt has left it on, and the message that it is. One that llama.cpp reads otherwise says so by ``differs``, a cause of
``DIFFERS``, and has what is read instead in ``found``, or nothing where the answer is refused; a test holds that too.
The next prompt holds the calls as the model wrote them (``calls_text``, or all of the text), so that a cached prefix
goes on; where it does not, ``again`` says why.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from chat.conversations import tool
from llama_runner.chat_types import ChatMessage, ToolCall

FOLDER = Path(__file__).with_name("golden")

COURSE = tool(
    "set_course",
    "Turns the ship.",
    heading={"type": "integer"},
    slow={"type": "boolean"},
    speed={"type": "number"},
)
# a name that begins another one
LOG = tool("log", "Reads the log.")
ENTRY = tool(
    "log_entry",
    "Writes into the log.",
    text={"type": "string"},
    place={
        "type": "object",
        "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
        "required": ["lat", "name"],
    },
    tags={"type": "array", "items": {"type": "string"}},
)
FLAT_ENTRY = tool("log_entry", "Writes into the log.", text={"type": "string"})
TOOLS = {"all": [COURSE, LOG, ENTRY], "flat": [COURSE, LOG, FLAT_ENTRY]}

DIFFERS = {
    "a brace begins a call": "With tools offered, a `{` in a plain answer is taken for a call, and the answer refused.",
    "text with calls is not foreseen": "With tools offered, an answer that is not calls alone is refused.",
    "one call alone is foreseen": "Several calls as the template itself writes them are refused.",
    "the call is taken for text": "A call after text is left in the content.",
    "an id of the analysis": "The parser wants the very id that llama.cpp analysed the template with: all calls are "
    "refused, and with tools offered the markers of content stay in it.",
    "reasoning begins in the prompt": "The prompt's end, `Here are my reasoning steps:`, is part of the reasoning.",
}  # fmt: skip

AGAIN = {
    "booleans as Python's": "`True` where the model wrote `true`.",
    "lists as Python's": "Lists and mappings with Python's quotes.",
    "texts as Python's": "Texts with Python's quotes.",
    "lists and mappings are lost": "Lists lose their commas, mappings everything: see `printed-in-pieces`.",
    "arguments sorted": "The template sorts the arguments by name; models are trained to write them so.",
    "written in ASCII": "The template escapes what is not ASCII.",
    "no line for no arguments": "A call without arguments has one line less.",
    "with an empty id": "The template writes an id, and the model does not.",
    "calls are left out": "The template knows no calls in the history.",
    "the content is left out": "Beside reasoning (see `reasoning-as-part`); without `reasoning_content` it is there.",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    family: str
    name: str
    text: str
    message: ChatMessage
    """What it means."""
    differs: str
    found: ChatMessage | None
    """What is read; None where the answer is refused."""
    calls_text: str
    """What the model wrote of its calls; empty where there are none."""
    again: str
    options: dict[str, Any]
    """For ``ChatTemplate.render``."""

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    templates: list[str]
    answers: list[Answer]


def read_message(found: dict[str, Any]) -> ChatMessage:
    calls = tuple(ToolCall(**call) for call in found.get("calls", ()))
    return ChatMessage(found.get("content", ""), found.get("reasoning", ""), calls)


def read_answer(family: str, tools: str, entry: dict[str, Any]) -> Answer:
    differs = entry.get("differs", "")
    message = read_message(entry)
    found = (read_message(entry["found"]) if "found" in entry else None) if differs else message
    options = {"tools": TOOLS[tools], **entry.get("options", {})}
    calls_text = entry.get("calls_text", entry["text"]) if message.tool_calls else ""
    again = entry.get("again", "")
    return Answer(family, entry["name"], entry["text"], message, differs, found, calls_text, again, options)


def read_family(path: Path) -> Family:
    table = tomllib.loads(path.read_text("utf-8"))
    answers = [read_answer(path.stem, table.get("tools", "all"), entry) for entry in table["answer"]]
    return Family(path.stem, table["templates"], answers)


FAMILIES = [read_family(path) for path in sorted(FOLDER.glob("*.toml"))]


def as_table(attribute: str, whys: dict[str, str]) -> str:
    """For the page: what each cause is, and the families that have it in ``attribute`` of an answer."""
    lines = ["| what | families |", "| --- | --- |"]
    for cause, why in whys.items():
        names = [
            family.name
            for family in FAMILIES
            if any(getattr(answer, attribute) == cause for answer in family.answers)
        ]
        lines.append(f"| {why} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"
