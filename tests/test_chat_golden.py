"""``ChatParser`` on what models of every template family answer: whole, cut at every byte, and a byte at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat import differences
from chat.conversations import user
from chat.goldens import AGAIN, DIFFERS, FAMILIES, Answer, Family
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat_types import ChatDelta, ChatMessage, ChatPrompt
from llama_runner.core import ChatTemplate, Model

ASK = user("Go west.")
ANSWERS = [answer for family in FAMILIES for answer in family.answers]


@pytest.fixture(scope="module")
def model(tiny_model: TinyModelFactory) -> Model:
    return differences.load_model(tiny_model("llama"))


class Prompts:
    """Templates and what they render, each once: to find the form of the answers takes some milliseconds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.templates: dict[str, ChatTemplate] = {}
        self.rendered: dict[tuple[str, str], ChatPrompt] = {}

    def template(self, name: str) -> ChatTemplate:
        if name not in self.templates:
            self.templates[name] = differences.load_template(self.model, name)
        return self.templates[name]

    def of(self, name: str, answer: Answer) -> ChatPrompt:
        key = name, repr(sorted(answer.options.items()))
        if key not in self.rendered:
            self.rendered[key] = self.template(name).render([ASK], **answer.options)
        return self.rendered[key]


@pytest.fixture(scope="module")
def prompts(model: Model) -> Prompts:
    return Prompts(model)


def add(message: ChatMessage, deltas: list[ChatDelta]) -> ChatMessage:
    for delta in deltas:
        message = delta.add_to(message)
    return message


def is_beginning(part: ChatMessage, whole: ChatMessage) -> bool:
    """Whether ``whole`` takes nothing of ``part`` back; names come whole, and so do ids, later perhaps."""
    return (
        whole.content.startswith(part.content)
        and whole.reasoning_content.startswith(part.reasoning_content)
        and len(part.tool_calls) <= len(whole.tool_calls)
        and all(
            known.name == call.name
            and known.id in ("", call.id)
            and call.arguments.startswith(known.arguments)
            for known, call in zip(part.tool_calls, whole.tool_calls, strict=False)
        )
    )


def test_there_is_something_to_read() -> None:
    assert len(FAMILIES) >= 50 and len(ANSWERS) >= 400
    names = [name for family in FAMILIES for name in family.templates]
    assert sorted(names) == differences.template_names()
    assert {answer.differs for answer in ANSWERS} == DIFFERS.keys() | {""}
    assert {answer.again for answer in ANSWERS} == AGAIN.keys() | {""}
    for answer in ANSWERS:
        assert answer.calls_text in answer.text
        assert answer.found != answer.message or not answer.differs
        for call in answer.message.tool_calls:
            assert isinstance(json.loads(call.arguments), dict)


# ---------------------------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_whole(prompts: Prompts, family: Family) -> None:
    for name in family.templates:
        for answer in family.answers:
            parser = prompts.of(name, answer).parser()
            if answer.found is None:
                with pytest.raises(errors.ResponseParseError) as caught:
                    parser.parse(answer.text)
                assert caught.value.position is not None, (name, answer.name)
            else:
                assert parser.parse(answer.text) == answer.found, (name, answer.name)


# ------------------------------------------------------------------------------------------------------------ in pieces


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_in_pieces(prompts: Prompts, family: Family) -> None:
    for answer in family.answers:
        prompt = prompts.of(family.templates[0], answer)
        if answer.found is None:
            check_refused_in_pieces(prompt, answer)
            continue
        if any(ends_with(other, answer) for other in family.answers):
            continue  # it is cut there
        data = answer.text.encode()
        for cut in range(len(data) + 1):
            parser = prompt.parser()
            message = add(ChatMessage(), parser.push(data[:cut]))
            assert is_beginning(message, answer.found), (answer.name, data[:cut], message)
            message = add(message, parser.push(data[cut:]) + parser.finish())
            assert message == parser.message == answer.found, (answer.name, data[:cut])


def ends_with(other: Answer, answer: Answer) -> bool:
    """Whether ``answer`` is the end of another one; of two that are the same, one counts."""
    return (
        other is not answer
        and other.found is not None
        and other.text.endswith(answer.text)
        and (len(other.text) > len(answer.text) or other.name < answer.name)
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_byte_by_byte(prompts: Prompts, family: Family) -> None:
    for answer in family.answers:
        if answer.found is None:
            continue
        prompt = prompts.of(family.templates[0], answer)
        parser, reader = prompt.parser(), prompt.parser()
        data = answer.text.encode()
        message = ChatMessage()
        named: dict[int, str] = {}
        for end in range(1, len(data) + 2):
            deltas = parser.push(data[end - 1 : end]) if end <= len(data) else parser.finish()
            for delta in deltas:
                if delta.index is not None:  # a name comes whole, with the first delta of its call, and once
                    assert bool(delta.name) == (delta.index not in named), (answer.name, delta)
                    named.setdefault(delta.index, delta.name)
            message = add(message, deltas)
            assert is_beginning(message, answer.found), (answer.name, message)
            part = reader.parse(data[:end], partial=True)
            # text that was given out cannot be taken back, and stays; a call of which all is known waits for the end
            assert is_beginning(part, message), (answer.name, data[:end], part, message)
        assert message == parser.message == answer.found, answer.name
        assert list(named.values()) == [call.name for call in answer.found.tool_calls]


def check_refused_in_pieces(prompt: ChatPrompt, answer: Answer) -> None:
    """It is refused in pieces too, at the end at the latest, and what came before is text of it."""
    parser = prompt.parser()
    data = answer.text.encode()
    message = ChatMessage()
    with pytest.raises(errors.ResponseParseError):  # noqa: PT012
        for i in range(len(data)):
            message = add(message, parser.push(data[i : i + 1]))
        parser.finish()
    for text in (message.content, message.reasoning_content):
        assert text in answer.text


# ------------------------------------------------------------------------------------------------------ the next prompt


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_next_prompt_holds_the_answer(prompts: Prompts, family: Family) -> None:
    for name in family.templates:
        for answer in family.answers:
            if answer.found is None:
                continue
            text = next_prompt(prompts.template(name), answer, answer.found)
            if answer.found.tool_calls:
                assert (answer.calls_text.strip() in text) == (not answer.again), (name, answer.name, text)
            else:
                assert (answer.found.content.strip() in text) == (not answer.again), (name, answer.name, text)


def next_prompt(template: ChatTemplate, answer: Answer, message: ChatMessage) -> str:
    results: list[dict[str, Any]] = [
        {"role": "tool", "name": call.name, "tool_call_id": call.id or f"call{i:05d}", "content": "done"}
        for i, call in enumerate(message.tool_calls)
    ]
    following = results or [user("Thanks.")]
    options = {key: answer.options[key] for key in ("tools", "enable_thinking") if key in answer.options}
    return template.apply([ASK, message.to_dict(), *following], **options)


# -------------------------------------------------------------------------------------------- what the native layer did


def test_the_end_token_is_no_part_of_a_call(model: Model, prompts: Prompts) -> None:
    """llama.cpp takes it for one where a template ends calls with it, and refuses every call of a real model."""
    name = "Mistral-Small-3.2-24B-Instruct-2506"
    assert "eos_token" in prompts.template(name).source and model.vocab.eos is not None
    family = next(family for family in FAMILIES if family.name == "mistral-small-3.2")
    answer = next(answer for answer in family.answers if answer.name == "several calls")
    prompt = prompts.of(name, answer)
    assert prompt.grammar is not None and "</s>" not in prompt.grammar
    assert [call.id for call in prompt.parser().parse(answer.text).tool_calls] == ["call00000", "call00001"]


def test_a_name_that_begins_another_is_held_back(prompts: Prompts) -> None:
    answer = next(a for a in ANSWERS if a.family == "ling-3" and a.name == "arguments that are hard to write")
    parser = prompts.of("inclusionai-ling-3.0-flash", answer).parser()
    begin = answer.text[: answer.text.index("log_entry")]
    for name in ("log", "log_", "log_entry"):
        assert parser.parse(begin + name, partial=True).tool_calls == ()
    # an answer that is said to be whole has what there is of it
    assert [call.name for call in parser.parse(begin + "log").tool_calls] == ["log"]
