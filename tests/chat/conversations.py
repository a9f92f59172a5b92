"""The conversations that every chat template is rendered with."""

from __future__ import annotations

import dataclasses
from typing import Any

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    enable_thinking: bool = True
    add_generation_prompt: bool = True


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def call(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    """A call whose id is as Mistral's templates want it: nine letters and digits."""
    return {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        "id": f"call{number:05d}",
    }


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def result(name: str, content: Any, number: int = 0) -> Message:
    return {"role": "tool", "name": name, "tool_call_id": f"call{number:05d}", "content": content}


SYSTEM = {"role": "system", "content": "You keep a ship's log."}
ASK = user("How deep is the water at the pier?")
DEPTH = tool(
    "sound_depth",
    'Depth below a mark, e.g. "pier".\nIn metres.',
    mark={"type": "string", "description": "Where"},
    tide={"type": "number"},
)
TIDE = tool(
    "tide_table",
    "Tides of a day — high & low <water>.",
    harbour={"type": "string", "enum": ["Husum", "Tönning"]},
    days={"type": "array", "items": {"type": "integer"}, "description": "Days from now"},
    unit={"type": "string", "default": "m"},
)
TOOLS = [DEPTH, TIDE]
UNION = [
    tool("moor", "Moor the ship.", berth={"type": ["integer", "null"]}, why={"description": "Any value."})
]
# no description, and a member that OpenAI has and no template asks for
BARE = [
    {
        "type": "function",
        "function": {"name": "ring_bell", "parameters": {"type": "object", "properties": {}}, "strict": True},
    }
]
ONE = call("sound_depth", {"mark": "pier", "tide": 1.5})
TWO = call("tide_table", {"harbour": "Tönning", "days": [0, 1]}, 1)
# values whose texts JSON libraries, Python and Jinja write in different ways
ODD = call(
    "sound_depth",
    {
        "mark": 'a "quay" \\ <b>&\'s</b>\n\ttwo\u2028three \U0001f6a2',
        "tide": 2.5e-07,
        "more": {
            "on": True,
            "off": None,
            "list": [],
            "map": {},
            "big": 12345678901234567,
            "whole": 4.0,
            "lon": 8.98765432101,
            "price": 1234567.25,
            "huge": -1e22,
        },
    },
)
DEEP = result("sound_depth", '{"metres": 4.5}')
TIDES = result("tide_table", "high 06:12, low 12:30", 1)
TRICKY = (
    "{{ 1 + 1 }}{% if x %}{# y #} <|im_end|>\n<|im_start|>system\n</s><s>[INST] <think>a</think> "
    "<tool_call>{}</tool_call> <|eot_id|> \\n \\u0041"
)
UNICODE = "Tönning — 水深は？ \U0001f6a2\u200d\U0001f9ed e\u0301 \u202eabc\u202c \u00a0|"

CONVERSATIONS: dict[str, Conversation] = {
    "user": Conversation([ASK]),
    "system": Conversation([SYSTEM, ASK]),
    "turns": Conversation([SYSTEM, ASK, assistant("Four metres."), user("And at low tide?")]),
    "turns-closed": Conversation(
        [ASK, assistant("Four metres."), user("And at low tide?"), assistant("Two.")],
        add_generation_prompt=False,
    ),
    "user-closed": Conversation([ASK], add_generation_prompt=False),
    "developer": Conversation([{"role": "developer", "content": "Answer in metres."}, ASK]),
    "late-system": Conversation(
        [ASK, assistant("Four metres."), {"role": "system", "content": "Be brief."}, user("Sure?")]
    ),
    "same-role-twice": Conversation([ASK, user("And at low tide?")]),
    "tools": Conversation([SYSTEM, ASK], TOOLS),
    "tools-no-system": Conversation([ASK], TOOLS),
    "tools-bare": Conversation([ASK], BARE),
    "tools-union": Conversation([ASK], UNION),
    "call": Conversation([ASK, assistant("", tool_calls=[ONE]), DEEP], TOOLS),
    "call-answered": Conversation(
        [SYSTEM, ASK, assistant("", tool_calls=[ONE]), DEEP, assistant("Four and a half."), user("Thanks.")],
        TOOLS,
    ),
    "call-closed": Conversation([ASK, assistant("", tool_calls=[ONE])], TOOLS, add_generation_prompt=False),
    "call-as-text": Conversation(
        [ASK, assistant("", tool_calls=[call("sound_depth", '{"mark": "pier", "tide": 1.5}')]), DEEP], TOOLS
    ),
    "call-null-content": Conversation([ASK, assistant(None, tool_calls=[ONE]), DEEP], TOOLS),
    "call-after-text": Conversation([ASK, assistant("I sound it.", tool_calls=[ONE]), DEEP], TOOLS),
    "call-odd-values": Conversation([ASK, assistant("", tool_calls=[ODD]), DEEP], TOOLS),
    "call-no-arguments": Conversation(
        [ASK, assistant("", tool_calls=[call("ring_bell", {})]), result("ring_bell", "")], BARE
    ),
    "call-no-tools": Conversation([ASK, assistant("", tool_calls=[ONE]), DEEP]),
    "parallel": Conversation([ASK, assistant("", tool_calls=[ONE, TWO]), DEEP, TIDES], TOOLS),
    "parallel-swapped": Conversation([ASK, assistant("", tool_calls=[ONE, TWO]), TIDES, DEEP], TOOLS),
    "call-after-call": Conversation(
        [
            ASK,
            assistant("", tool_calls=[ONE]),
            DEEP,
            assistant("", tool_calls=[TWO]),
            TIDES,
            assistant("Wait an hour."),
        ],
        TOOLS,
        add_generation_prompt=False,
    ),
    "reasoning": Conversation(
        [ASK, assistant("Four metres.", reasoning_content="The chart says 4."), user("And at low tide?")]
    ),
    "reasoning-closed": Conversation(
        [ASK, assistant("Four metres.", reasoning_content="The chart\nsays 4.")], add_generation_prompt=False
    ),
    "reasoning-call": Conversation(
        [ASK, assistant("", reasoning_content="I must look.", tool_calls=[ONE]), DEEP], TOOLS
    ),
    "thinking-off": Conversation([SYSTEM, ASK], enable_thinking=False),
    "thinking-off-tools": Conversation([ASK], TOOLS, enable_thinking=False),
    "thinking-off-turns": Conversation(
        [ASK, assistant("Four metres.", reasoning_content="The chart says 4."), user("Sure?")],
        enable_thinking=False,
    ),
    "parts": Conversation([user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])]),
    "parts-system": Conversation([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, ASK]),
    "parts-assistant": Conversation(
        [ASK, assistant([{"type": "text", "text": "Four"}, {"type": "text", "text": "metres."}]), user("Sure?")]
    ),
    "empty": Conversation([{"role": "system", "content": ""}, user(""), assistant(""), user("")]),
    "unicode": Conversation([{"role": "system", "content": UNICODE}, user(UNICODE), assistant(UNICODE), user("?")]),
    "tricky": Conversation([{"role": "system", "content": TRICKY}, user(TRICKY), assistant(TRICKY), user(TRICKY)]),
    "whitespace": Conversation(
        [{"role": "system", "content": " \n s \n"}, user("\n\n u\t \n"), assistant(" \n a \n\n"), user("  u  ")]
    ),
    "whitespace-reasoning": Conversation(
        [ASK, assistant("\n a \n", reasoning_content="\n r \n", tool_calls=[ONE]), result("sound_depth", " 4 \n")],
        TOOLS,
    ),
}  # fmt: skip
