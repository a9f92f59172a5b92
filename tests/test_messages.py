"""Conversations: every message checked, calls and their results held together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat.messages import check_messages, readable_arguments
from llama_runner.chat.tools import ToolResult
from llama_runner.chat_types import ChatMessage, ToolCall
from llama_runner.core import ChatTemplate, Model

USER = {"role": "user", "content": "Hi"}


def call(name: str = "f", arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calling(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **more}


def result(content: str = "3", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def refused(messages: Any, match: str, index: int | None) -> None:
    with pytest.raises(errors.MessageError, match=match) as caught:
        check_messages(messages)
    assert caught.value.index == index
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, errors.UsageError)


# ---------------------------------------------------------------------------------------------------- what is taken


def test_a_conversation_is_copied() -> None:
    given_messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "naïve \U0001f600\n", "name": "Ada"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "prefix": True},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        calling(call(id="x", arguments='{"a":  1}'), call("g", id="y")),
        result(tool_call_id="y", name="g"),
        result(tool_call_id="x", name="f"),
        {"role": "assistant", "content": "", "thinking": "…"},
    ]
    before = copy.deepcopy(given_messages)
    checked = check_messages(given_messages)
    assert checked == before == given_messages
    checked[4]["content"][0]["text"] = "changed"
    checked[5]["tool_calls"][0]["function"]["name"] = "changed"
    assert given_messages == before


def test_any_iterable_and_none() -> None:
    assert check_messages(iter([USER])) == check_messages((USER,)) == [USER]
    assert check_messages([]) == []


def test_content_that_is_not_there() -> None:
    checked = check_messages([
        {"role": "assistant", "content": None, "tool_calls": [call(id="x")]},
        result(tool_call_id="x"),
        {"role": "assistant", "reasoning_content": "Hm."},
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}]},
        {"role": "user", "content": ""},
    ])  # fmt: skip
    assert [message["content"] for message in checked[:3]] == ["", "3", ""]
    assert checked[3]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def test_what_others_write_with_nothing_in_it() -> None:
    message = {
        "role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": None, "name": None,
    }  # fmt: skip
    assert check_messages([message, {**USER, "name": None}]) == [{"role": "assistant", "content": "Hi"}, USER]
    assert check_messages([{**message, "tool_calls": []}]) == [{"role": "assistant", "content": "Hi"}]


def test_our_own_objects() -> None:
    answer = ChatMessage("", "Hm.", (ToolCall("f", '{"a": 1}', "x"), ToolCall("g", "")))
    checked = check_messages([USER, answer, ToolResult("x", "f", "3"), ToolResult("", "g", "4")])
    assert checked[1:] == [
        {
            "role": "assistant", "content": "", "reasoning_content": "Hm.",
            "tool_calls": [call("f", '{"a": 1}', id="x"), call("g", "{}", id="call00001")],
        },
        {"role": "tool", "content": "3", "tool_call_id": "x", "name": "f"},
        {"role": "tool", "content": "4", "tool_call_id": "call00001", "name": "g"},
    ]  # fmt: skip


def ids(messages: list[dict[str, Any]]) -> list[str]:
    return [
        each["id"] if "id" in each else each["tool_call_id"]
        for message in check_messages(messages)
        for each in (message.get("tool_calls") or ([message] if message["role"] == "tool" else []))
    ]


class TestIds:
    def test_made_where_there_are_none(self) -> None:
        assert (
            ids([calling(call()), result(), calling(call(id="")), result()])
            == ["call00001"] * 2 + ["call00002"] * 2
        )

    def test_what_there_is_stays(self) -> None:
        assert ids([calling(call(id="abc"))]) == ["abc"]

    def test_twice_in_a_message(self) -> None:
        messages = [
            calling(call(id="x"), call("g", id="x")),
            result(tool_call_id="x"),
            result(tool_call_id="x"),
        ]
        assert ids(messages) == ["x", "call00001"] * 2
        assert [message.get("name") for message in check_messages(messages)] == [None, "f", "g"]

    def test_again_in_a_later_message(self) -> None:
        turn = [calling(call(id="x")), result(tool_call_id="x")]
        assert ids([*turn, *turn, *turn]) == ["x", "x", "call00001", "call00001", "call00002", "call00002"]

    def test_one_that_was_made_is_given(self) -> None:
        messages = [calling(call(), call("g", id="call00001")), result(tool_call_id="call00001"), result()]
        assert ids(messages) == ["call00001", "call00002", "call00002", "call00001"]

    def test_the_one_open_call_is_meant(self) -> None:
        assert ids([calling(call(id="x"), call(id="y")), result(tool_call_id="y"), result()]) == [
            "x",
            "y",
            "y",
            "x",
        ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a":  1}', '{"a":  1}'),
        ({"a": "ü"}, '{"a": "ü"}'),
        ({}, "{}"),
        (None, "{}"),
        ("", "{}"),
        (" \n", "{}"),
    ],
    ids=repr,
)
def test_arguments(arguments: Any, text: str) -> None:
    (message,) = check_messages([calling(call(arguments=arguments))])
    assert message["tool_calls"][0]["function"]["arguments"] == text


def test_every_form_of_a_call() -> None:
    forms = [ToolCall("f", "{}", "x"), call(id="x", index=0), {"name": "f", "arguments": {}, "id": "x"}]
    forms.append({"id": "x", "function": {"name": "f"}})
    for form in forms:
        assert check_messages([calling(form)]) == [calling(call(id="x"))]


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("messages", [None, 3, "text", b"text", USER, object()], ids=str)
def test_what_is_no_list(messages: Any) -> None:
    refused(messages, "messages is a list of dicts", None)


NO_MESSAGES: dict[str, tuple[Any, str]] = {
    "text": ("Hi", r"message 1: it is a dict with role and content, not str 'Hi'"),
    "none": (None, "it is a dict"),
    "list": ([USER], "it is a dict"),
    "no role": ({"content": "Hi"}, "it has no role"),
    "role": ({"role": "bot", "content": "Hi"}, "the role 'bot' is none of system, developer, user, assistant, tool"),
    "role of a type": ({"role": 3, "content": "Hi"}, "the role 3"),
    "unhashable role": ({"role": [], "content": "Hi"}, r"the role \[\]"),
    "function": ({"role": "function", "content": "Hi"}, "results of calls have the role 'tool'"),
    "no content": ({"role": "user"}, r"message 1 \(user\): it has no content"),
    "none as content": ({"role": "system", "content": None}, "it has no content"),
    "empty assistant": ({"role": "assistant", "content": None}, "neither content nor tool_calls"),
    "number": ({"role": "user", "content": 3}, "content is a str or a list of text parts, not int"),
    "dict": ({"role": "user", "content": {"text": "a"}}, "content is a str or a list of text parts, not dict"),
    "surrogate": ({"role": "user", "content": "a\ud800"}, "lone surrogate.*index 1"),
    "NUL": ({"role": "user", "content": "a\0"}, "NUL"),
    "NUL in a name": ({**USER, "name": "\0"}, "NUL"),
    "image": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        r"content\[0\] is a part of the type 'image_url': only text is supported",
    ),
    "audio": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
        r"content\[1\] is a part of the type 'input_audio'",
    ),
    "part": ({"role": "user", "content": [3]}, r"content\[0\] is a part such as"),
    "part without a type": ({"role": "user", "content": [{"text": "a"}]}, r"content\[0\] is a part such as"),
    "part without text": ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\].text is a str, not NoneType"),
    "part with more": ({"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}, "unknown key 'x'"),
    "NUL in a part": ({"role": "user", "content": ["\0"]}, "NUL"),
    "key": ({**USER, "contents": "a"}, "unknown key 'contents': it takes role, content, name"),
    "key of a type": ({**USER, 3: "a"}, "unknown key 3"),
    "key of surrogates": ({**USER, "\ud800": "a"}, "unknown key"),
    "name": ({**USER, "name": 3}, "name is a str, not int"),
    "reasoning of a user": ({**USER, "thinking": "Hm."}, "thinking is for messages of the role assistant"),
    "calls of a user": ({**USER, "tool_calls": [call()]}, "tool_calls is for messages of the role assistant"),
    "id of a user": ({**USER, "tool_call_id": "x"}, "tool_call_id is for messages of the role tool"),
    "prefix": ({"role": "assistant", "content": "", "prefix": 1}, "prefix is True or False"),
    "refusal": ({"role": "assistant", "content": "", "refusal": "No."}, "unknown key 'refusal'"),
    "calls": (calling() | {"tool_calls": "f"}, "tool_calls is a list, not str"),
    "call": (calling(3), r"tool_calls\[0\] is a dict, not int"),
    "function of a call": (calling({"function": 3}), r"tool_calls\[0\].function is a dict"),
    "type of a call": (calling(call() | {"type": "custom"}), "only 'function' is known"),
    "call without a name": (calling(call("")), r"tool_calls\[0\] has no name"),
    "name of a call": (calling(call(3)), r"tool_calls\[0\]: the name is a str"),  # type: ignore[arg-type]
    "id of a call": (calling(call(id=3)), r"tool_calls\[0\].id is a str, not int"),
    "key of a call": (calling(call(x=3)), r"tool_calls\[0\] has an unknown key 'x'"),
    "key of a function": (calling({"function": {"name": "f", "x": 1}}), r"tool_calls\[0\] has an unknown key 'x'"),
    "no JSON": (calling(call(), call(arguments="{")), r"tool_calls\[1\]: the arguments are the JSON text of an object"),
    "no object": (calling(call(arguments="[1]")), "it is a list, not an object; readable_arguments"),
    "JSON in JSON": (calling(call(arguments='"{}"')), "it is a string, not an object"),
    "null": (calling(call(arguments="null")), "it is null, not an object"),
    "list as arguments": (calling(call(arguments=[1])), "list is no dict"),
    "NaN": (calling(call(arguments='{"a": NaN}')), "NaN is no JSON number"),
    "NaN in a dict": (calling(call(arguments={"a": float("nan")})), "not JSON compliant"),
    "object in a dict": (calling(call(arguments={"a": object()})), "not JSON serializable"),
    "surrogate in arguments": (calling(call(arguments='{"a": "\\ud800"}')), "is no text"),
    "NUL in arguments": (calling(call(arguments={"a": "\0"})), "is no text"),
    "depth of arguments": (calling(call(arguments='{"a":' * 1000)), "nests more than 200"),
    "result of nothing": (result(tool_call_id="x"), "no call is open that tool_call_id='x' could be of"),
    "result without an id": (result(), "no call is open"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MESSAGES)
def test_messages_that_are_none(name: str) -> None:
    message, reason = NO_MESSAGES[name]
    refused([USER, message], reason, 1)


def test_results_and_their_calls() -> None:
    two = calling(call(id="x"), call("g", id="y"))
    refused([two, result()], r"no tool_call_id, and several calls are open: x \(f\), y \(g\)", 1)
    refused(
        [two, result(tool_call_id="z")], r"no call has the tool_call_id 'z'; open are x \(f\), y \(g\)", 1
    )
    refused([two, result(tool_call_id="x"), result(tool_call_id="x")], r"'x'; open are y \(g\)", 2)
    refused([two, result(tool_call_id="x", name="g")], "the call x is of f, not of 'g'", 1)
    refused(
        [two, result(tool_call_id="x"), USER], r"message 2 \(user\): the calls y \(g\) have no result yet", 2
    )
    refused([two, calling(call())], r"message 1 \(assistant\): the calls x \(f\), y \(g\) have no result", 1)
    done = [two, result(tool_call_id="y"), result()]
    refused([*done, result(tool_call_id="x")], "no call is open", 3)
    assert len(check_messages([*done, USER])) == 4
    assert len(check_messages(done[:2])) == 2  # open at the end


def test_errors_stay_short() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 1_000_000

    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError

    for wrong in (Long(), Silent(), {"role": "x" * 100_000}, {**USER, "k" * 100_000: 1}, {"role": Long()}):
        with pytest.raises(errors.MessageError) as caught:
            check_messages([wrong])
        assert len(str(caught.value)) < 400
        str(caught.value).encode()


# ------------------------------------------------------------------------------------------------ what holds for all

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
some_ids = st.sampled_from(["", "x", "y", "call00001", "call00002"])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            messages.append(
                {"role": draw(st.sampled_from(["user", "system", "developer"])), "content": draw(text)}
            )
            continue
        count = draw(st.integers(0, 3))
        arguments = st.dictionaries(text, st.integers() | text, max_size=2)
        calls = [
            call(draw(st.sampled_from("fg")), draw(arguments | arguments.map(json.dumps)), id=draw(some_ids))
            for _ in range(count)
        ]
        messages.append(
            {"role": "assistant", "content": draw(text)} | ({"tool_calls": calls} if calls else {})
        )
        answered = calls if len({each["id"] for each in calls} - {""}) == len(calls) else calls[:0]
        messages += [result(draw(text), tool_call_id=each["id"]) for each in answered]
        if answered != calls:
            messages += [result(draw(text), tool_call_id=None)] if len(calls) == 1 else []
            if len(calls) > 1:  # left open
                break
    return messages


@given(conversations())
def test_checked_conversations_stay_as_they_are(messages: list[dict[str, Any]]) -> None:
    checked = check_messages(messages)
    assert check_messages(checked) == checked
    assert json.loads(json.dumps(checked)) == checked
    made = [each["id"] for message in checked for each in message.get("tool_calls", ())]
    assert len(set(made)) == len(made) and all(made)


@given(conversations(), st.integers(0, 20))
def test_a_beginning_is_the_beginning_of_the_whole(messages: list[dict[str, Any]], length: int) -> None:
    assert check_messages(messages[:length]) == check_messages(messages)[:length]


KEYS = [
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "type",
    "text",
    "function",
    "id",
    "arguments",
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.sampled_from(["user", "assistant", "tool", "text", "function"]),
        )
    ),
    max_leaves=30,
)  # fmt: skip


@given(anything)
def test_anything_is_taken_or_refused_by_type(messages: Any) -> None:
    try:
        check_messages(messages)
    except errors.MessageError:
        pass


@given(st.text(st.characters()) | anything.map(lambda value: json.dumps(value, default=str)))
def test_arguments_are_made_readable(written: str) -> None:
    readable = readable_arguments(written)
    (message,) = check_messages([calling(call(arguments=readable))])
    assert message["tool_calls"][0]["function"]["arguments"] == readable
    assert readable_arguments(readable) == readable


def test_readable_arguments() -> None:
    assert readable_arguments('{"a":  1}') == '{"a":  1}'
    assert readable_arguments('{"a": ') == '{"arguments": "{\\"a\\": "}'
    assert readable_arguments("") == readable_arguments("null") == "{}"
    assert readable_arguments('"{\\"a\\": 1}"') == '{"a": 1}'
    assert readable_arguments("[" * 100_000) == json.dumps({"arguments": "[" * 100_000})
    assert readable_arguments("\ud800") == '{"arguments": "\ufffd"}'


TEMPLATES = (
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "Qwen-Qwen3-0.6B",
    "mistralai-Mistral-Nemo-Instruct-2407",
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_take_what_was_checked(
    llama_cpp_dir: Path, tiny_model: TinyModelFactory, name: str
) -> None:
    source = (llama_cpp_dir / "models" / "templates" / f"{name}.jinja").read_text("utf-8")
    template = ChatTemplate(Model(tiny_model("llama")), source)
    broken = readable_arguments('{"town": "Par')
    messages = check_messages([
        {"role": "user", "content": "Weather?"},
        calling(call("weather", {"town": "Rome"}), call("weather", broken)),
        result("sunny", tool_call_id="call00001"),
        result("Error", tool_call_id="call00002"),
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks."},
    ])  # fmt: skip
    prompt = template.apply(messages)
    assert "Rome" in prompt and "sunny" in prompt and "Par" in prompt
