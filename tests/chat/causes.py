"""Why llama.cpp's prompt is another than the template's own: what it does to the request before it renders.

A cause turns a request into the one that llama.cpp renders. One that is listed for a template and a conversation must
explain the whole difference, together with the others listed there, and none of them may be left out.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from chat.conversations import Conversation, Message
from chat.oracle import render


@dataclasses.dataclass
class Request:
    """What jinja2 is given."""

    source: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    left_out: set[str] = dataclasses.field(default_factory=set)
    quirks: set[str] = dataclasses.field(default_factory=set)
    finish: Callable[[str], str] = str

    @classmethod
    def of(cls, source: str, conversation: Conversation) -> Request:
        asked = copy.deepcopy(conversation)
        flags = {
            "enable_thinking": asked.enable_thinking,
            "add_generation_prompt": asked.add_generation_prompt,
        }
        return cls(source, asked.messages, asked.tools, flags)

    def render(self, bos: str, eos: str, now: datetime.datetime) -> str:
        text = render(
            self.source, self.messages, bos=bos, eos=eos, now=now, tools=self.tools, left_out=self.left_out,
            quirks=frozenset(self.quirks), **self.variables,
        )  # fmt: skip
        return self.finish(text)

    def functions_called(self) -> Iterator[dict[str, Any]]:
        for message in self.messages:
            for call in message.get("tool_calls") or ():
                yield call["function"]


Cause = Callable[[Request, datetime.datetime], None]
CAUSES: dict[str, Cause] = {}


def cause(apply: Cause) -> Cause:
    """Registers a cause under its name; they are applied in the order in which they stand here."""
    CAUSES[apply.__name__.replace("_", "-")] = apply
    return apply


# ------------------------------------------------------------------------------------------------- the template's text


# --------------------------------------------------------------------------------------------------------- variables


@cause
def dates_given(request: Request, now: datetime.datetime) -> None:
    """`datetime` and `date_string` are variables of every template: today, where it would have a date of its own."""
    request.variables["datetime"] = now.strftime("%b %d %Y")
    request.variables["date_string"] = now.strftime("%d %b %Y")


@cause
def tools_undefined(request: Request, now: datetime.datetime) -> None:
    """Without tools, `tools` is undefined; transformers passes None, which is another thing to some templates."""
    if request.tools is None:
        request.left_out.add("tools")


@cause
def tools_rebuilt(request: Request, now: datetime.datetime) -> None:
    """Tools are made anew of name, description (empty where there is none) and parameters, in this order."""
    if request.tools is not None:
        request.tools = [
            {
                "type": "function",
                "function": {
                    "name": tool["function"]["name"],
                    "description": tool["function"].get("description", ""),
                    "parameters": tool["function"].get("parameters", {}),
                },
            }
            for tool in request.tools
        ]


# ---------------------------------------------------------------------------------------------------------- messages


@cause
def null_content_emptied(request: Request, now: datetime.datetime) -> None:
    """Content that is null is an empty string."""
    for message in request.messages:
        if message.get("content") is None:
            message["content"] = ""


@cause
def content_trimmed(request: Request, now: datetime.datetime) -> None:
    """StepFun: contents are stripped of the white space around them, which drives the model into loops."""
    for message in request.messages:
        for key in ("content", "reasoning_content"):
            if isinstance(message.get(key), str):
                message[key] = message[key].strip()


@cause
def developer_as_system(request: Request, now: datetime.datetime) -> None:
    """The role `developer` becomes `system`."""
    for message in request.messages:
        if message["role"] == "developer":
            message["role"] = "system"


@cause
def parts_joined(request: Request, now: datetime.datetime) -> None:
    """A list of text parts becomes one string, with a newline between them, where the template reads strings alone."""
    for message in request.messages:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(part["text"] for part in message["content"])


@cause
def system_merged(request: Request, now: datetime.datetime) -> None:
    """A first system message goes before the next message's text, where the template knows no such role."""
    if request.messages[0]["role"] == "system":
        system = request.messages.pop(0)
        request.messages[0]["content"] = f"{system['content']}\n{request.messages[0]['content']}"


@cause
def arguments_parsed(request: Request, now: datetime.datetime) -> None:
    """A call's arguments as JSON text, OpenAI's form, become an object, where the template reads one."""
    for function in request.functions_called():
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])


@cause
def arguments_written(request: Request, now: datetime.datetime) -> None:
    """A call's arguments as an object become JSON text, where the template reads text."""
    for function in request.functions_called():
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(
                function["arguments"], ensure_ascii=False, separators=(",", ":")
            )


# ---------------------------------------------------------------------------------------------- messages, one family


@cause
def reasoning_as_thinking(request: Request, now: datetime.datetime) -> None:
    """gpt-oss, LFM2: `reasoning_content` is given as `thinking` as well, as the template calls it."""
    for message in request.messages:
        if "reasoning_content" in message:
            message["thinking"] = message["reasoning_content"]


@cause
def content_dropped_for_thinking(request: Request, now: datetime.datetime) -> None:
    """gpt-oss: of content and reasoning before a call, the template takes one: the reasoning."""
    for message in request.messages:
        if "reasoning_content" in message and message.get("tool_calls"):
            message.pop("content", None)


@cause
def return_as_end(request: Request, now: datetime.datetime) -> None:
    """gpt-oss: without a generation prompt, the last answer ends as one in the middle does."""
    if not request.variables["add_generation_prompt"]:
        request.finish = lambda text: "<|end|>".join(text.rsplit("<|return|>", 1))


@cause
def model_turn_opened(request: Request, now: datetime.datetime) -> None:
    """Gemma 4: after text, a call and its result the template opens no turn for the model; llama.cpp does."""
    request.finish = lambda text: text + "<|turn>model\n" if text.endswith("<turn|>\n") else text


@cause
def reasoning_as_part(request: Request, now: datetime.datetime) -> None:
    """Ministral: contents of system and assistant become lists of parts, the reasoning the first of them."""
    for message in request.messages:
        if message["role"] not in ("system", "assistant"):
            continue
        parts = []
        if "reasoning_content" in message:
            parts.append({"type": "thinking", "thinking": message.pop("reasoning_content")})
        if isinstance(message["content"], str):
            parts.append({"type": "text", "text": message["content"]})
        else:
            parts += message["content"]
        message["content"] = parts


@cause
def results_sorted(request: Request, now: datetime.datetime) -> None:
    """DeepSeek V4: results of calls come in the order of the calls."""
    order = {call["id"]: i for m in request.messages for i, call in enumerate(m.get("tool_calls") or ())}
    places = [i for i, message in enumerate(request.messages) if message["role"] == "tool"]
    results = sorted((request.messages[i] for i in places), key=lambda m: order[m["tool_call_id"]])
    for i, message in zip(places, results, strict=True):
        request.messages[i] = message


@cause
def results_in_the_call(request: Request, now: datetime.datetime) -> None:
    """An older Gemma 4 template: results become `tool_responses` of the assistant's message, in the calls' order."""
    messages: list[Message] = []
    waiting = iter(request.messages)
    message = next(waiting, None)
    while message is not None:
        following = next(waiting, None)
        if message.get("tool_calls"):
            kept = ("role", "tool_calls", "reasoning_content")
            turn: Message = {key: message[key] for key in kept if key in message}
            responses: list[dict[str, Any]] = []
            while following is not None and following["role"] == "tool":
                call = message["tool_calls"][len(responses)]
                responses.append(
                    {"name": call["function"]["name"], "response": as_json(following["content"])}
                )
                following = next(waiting, None)
            if responses:
                turn["tool_responses"] = responses
            if (
                following is not None
                and following["role"] == "assistant"
                and following.get("content")
                and not following.get("tool_calls")
            ):
                turn["content"] = following["content"]
                following = next(waiting, None)
            message = turn
        messages.append(message)
        message = following
    request.messages = messages


def as_json(content: Any) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


# ------------------------------------------------------------------------------------------------ llama.cpp's own Jinja


def quirk(name: str, why: str) -> None:
    def apply(request: Request, now: datetime.datetime) -> None:
        request.quirks.add(name)

    apply.__name__, apply.__doc__ = name, why
    cause(apply)


quirk(
    "lists-can-change",
    "Jinja: `list.append` works; transformers' sandbox refuses it, and with it these messages.",
)
quirk(
    "generators-are-lists",
    "Jinja: `map` gives a list, which `tojson` writes; in Python it is a generator, and refused.",
)
quirk("undefined-is-nothing", "Jinja: an undefined variable is nothing in a sum of texts; Python raises.")
quirk("safe-is-plain", "Jinja: `safe` changes nothing; Python escapes what is added to it as HTML.")
quirk(
    "printed-in-pieces",
    "Jinja: a printed list is its items in a row, a mapping or none nothing; Python writes them.",
)


class Plain(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self}'"


class WrittenOut(float):
    """A number that prints all its digits."""

    def __repr__(self) -> str:
        text = f"{Decimal(float.__repr__(self)):f}"
        return text if "." in text else f"{text}.0"

    __str__ = __repr__


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {replaced(key, change): replaced(item, change) for key, item in value.items()}
    return [replaced(item, change) for item in value] if isinstance(value, list) else change(value)


@cause
def texts_quoted_unescaped(request: Request, now: datetime.datetime) -> None:
    """Jinja: a mapping as text holds its strings without escapes; Python writes a newline in them as `\\n`."""
    request.tools = replaced(request.tools, lambda value: Plain(value) if isinstance(value, str) else value)


@cause
def numbers_written_out(request: Request, now: datetime.datetime) -> None:
    """Jinja: a number that is printed has no exponent; Python gives it one from 1e16 on, and below 1e-4."""
    request.quirks.add("numbers-written-out")
    request.messages = replaced(request.messages, lambda v: WrittenOut(v) if isinstance(v, float) else v)
