"""``ChatParser``: what models of many families answer, whole and cut at every byte."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.chat_types import ChatDelta, ChatMessage, ChatPrompt, ToolCall
from llama_runner.core import ChatParser, ChatTemplate, Model

TEMPLATES = Path(__file__).resolve().parent.parent / "vendor" / "llama.cpp" / "models" / "templates"
USER = {"role": "user", "content": "What is the weather in Köln?"}


def function(name: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


TOOLS = [function("get_weather", town="string"), function("add", a="integer", b="integer"), function("now")]
WEATHER = ("get_weather", {"town": "Köln"})
ADD = ("add", {"a": 1, "b": 2})
HELLO = "Hällo, wörld \U0001f600!\nWhat's up? <b>1 < 2</b>"

# template, what the model answers, then: content, reasoning, tool calls
Case = tuple[str, str, str, str, list[tuple[str, dict[str, Any]]]]
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"town": "Köln"}}\n</tool_call>'
HERMES_ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
CODER = "<tool_call>\n<function=get_weather>\n<parameter=town>\nKöln\n</parameter>\n</function>\n</tool_call>"
CODER_ADD = (
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
LLAMA = '{"name": "get_weather", "parameters": {"town": "Köln"}}'
CASES: list[Case] = [
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", HELLO, HELLO, "", []),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", HERMES, "", "", [WEATHER]),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", HERMES + "\n" + HERMES_ADD, "", "", [WEATHER, ADD]),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "I look.\n" + HERMES, "I look.", "", [WEATHER]),
    ("Qwen-Qwen2.5-7B-Instruct", HERMES + "\n" + HERMES_ADD, "", "", [WEATHER, ADD]),
    ("Qwen-Qwen3-0.6B", HELLO, HELLO, "", []),
    ("Qwen-Qwen3-0.6B", f"<think>\nHm, {HELLO}\n</think>\n\nYes.", "Yes.", f"Hm, {HELLO}", []),
    ("Qwen-Qwen3-0.6B", f"<think>\nHm.\n</think>\n\n{HERMES}", "", "Hm.", [WEATHER]),
    ("Qwen-QwQ-32B", f"Hm.\n</think>\n\n{HERMES}\n{HERMES_ADD}", "", "Hm.", [WEATHER, ADD]),
    ("Qwen3-Coder", HELLO, HELLO, "", []),
    ("Qwen3-Coder", CODER + "\n" + CODER_ADD, "", "", [WEATHER, ADD]),
    ("Qwen3.5-4B", f"Hm.\n</think>\n\n{CODER}", "", "Hm.", [WEATHER]),
    ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", f"Hm.\n</think>\n{CODER}\n", "", "Hm.", [WEATHER]),
    ("meta-llama-Llama-3.1-8B-Instruct", HELLO, HELLO, "", []),
    ("meta-llama-Llama-3.1-8B-Instruct", LLAMA, "", "", [WEATHER]),
    ("meta-llama-Llama-3.2-3B-Instruct", '{"name": "add", "parameters": {"a": 1, "b": 2}}', "", "", [ADD]),
    ("meta-llama-Llama-3.3-70B-Instruct", LLAMA, "", "", [WEATHER]),
    ("mistralai-Mistral-Nemo-Instruct-2407", HELLO, HELLO, "", []),
    (
        "mistralai-Mistral-Nemo-Instruct-2407",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"town": "Köln"}, "id": "call00001"}, '
        '{"name": "add", "arguments": {"a": 1, "b": 2}, "id": "call00002"}]',
        "", "", [WEATHER, ADD],
    ),
    ("mistralai-Ministral-3-14B-Reasoning-2512", '[TOOL_CALLS]get_weather[ARGS]{"town": "Köln"}', "", "", [WEATHER]),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "[THINK]Hm.[/THINK]Yes.", "Yes.", "Hm.", []),
    ("unsloth-mistral-Devstral-Small-2507", '[TOOL_CALLS]get_weather[ARGS]{"town": "Köln"}', "", "", [WEATHER]),
    (
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"town": "Köln"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "", "Hm.", [WEATHER],
    ),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "Hm.\n</think>\n\nYes.", "Yes.", "Hm.", []),
    (
        "deepseek-ai-DeepSeek-V3.1",
        "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"town": "Köln"}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "", "", [WEATHER, ADD],
    ),
    (
        "deepseek-ai-DeepSeek-V3.2",
        'Hm.</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="town" string="true">Köln</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        "", "Hm.", [WEATHER],
    ),
    (
        "meetkai-functionary-medium-v3.1",
        '<function=get_weather>{"town": "Köln"}</function><function=add>{"a": 1, "b": 2}</function>',
        "", "", [WEATHER, ADD],
    ),
    ("meetkai-functionary-medium-v3.2", f"all\n{HELLO}", HELLO, "", []),
    ("meetkai-functionary-medium-v3.2", 'get_weather\n{"town": "Köln"}', "", "", [WEATHER]),
    (
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", '
        '"parameters": {"town": "Köln"}}\n]<|END_ACTION|>',
        "", "Hm.", [WEATHER],
    ),
    ("ibm-granite-granite-4.0", HERMES + "\n" + HERMES_ADD, "", "", [WEATHER, ADD]),
    ("ibm-granite-granite-4.1", HELLO, HELLO, "", []),
    (
        "openai-gpt-oss-120b",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "Yes.", "Hm.", [],
    ),
    (
        "openai-gpt-oss-120b",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json"
        '<|message|>{"town": "Köln"}',
        "", "Hm.", [WEATHER],
    ),
    (
        "moonshotai-Kimi-K2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"town": "Köln"}<|tool_call_end|><|tool_call_begin|>functions.add:1<|tool_call_argument_begin|>'
        '{"a": 1, "b": 2}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        "", "", [WEATHER, ADD],
    ),
    ("google-gemma-4-31B-it", '<|tool_call>call:get_weather{town:<|"|>Köln<|"|>}<tool_call|>', "", "", [WEATHER]),
    ("google-gemma-4-31B-it", HELLO, HELLO, "", []),
    (
        "MiniMax-M2",
        'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="town">Köln</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        "", "Hm.", [WEATHER],
    ),
    (
        "MiniMax-M3",
        '</mm:think>]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<town>Köln'
        "]<]minimax[>[</town>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        "", "", [WEATHER],
    ),
    (
        "GLM-4.6",
        "\n<think>Hm.</think>\n<tool_call>get_weather\n<arg_key>town</arg_key>\n<arg_value>Köln</arg_value>\n</tool_call>\n"
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n"
        "</tool_call>",
        "", "Hm.", [WEATHER, ADD],
    ),
    (
        "Apertus-8B-Instruct",
        '<|tools_prefix|>[{"get_weather": {"town": "Köln"}}, {"add": {"a": 1, "b": 2}}]<|tools_suffix|>',
        "", "", [WEATHER, ADD],
    ),
    ("LFM2-8B-A1B", '<|tool_call_start|>[get_weather(town="Köln")]<|tool_call_end|>', "", "", [WEATHER]),
    (
        "ByteDance-Seed-OSS",
        "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=add>\n<parameter=a>1</parameter>\n"
        "<parameter=b>2</parameter>\n</function>\n</seed:tool_call>",
        "", "Hm.", [ADD],
    ),
    (
        "fireworks-ai-llama-3-firefunction-v2", ' functools[{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        "", "", [ADD],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model: TinyModelFactory) -> Model:
    return Model(tiny_model("llama"))


@pytest.fixture
def hermes(model: Model) -> ChatPrompt:
    return render(model, "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", tools=TOOLS)


def render(model: Model, name: str, **options: Any) -> ChatPrompt:
    template = ChatTemplate(model, (TEMPLATES / f"{name}.jinja").read_text("utf-8"))
    return template.render([USER], **options)


def stream(prompt: ChatPrompt, pieces: list[str] | list[bytes]) -> tuple[ChatMessage, ChatMessage]:
    """What the deltas add up to, and what the parser says that they do."""
    parser = prompt.parser()
    message = ChatMessage()
    for piece in pieces:
        for delta in parser.push(piece):
            message = delta.add_to(message)
    for delta in parser.finish():
        message = delta.add_to(message)
    return message, parser.message


def push_all(parser: ChatParser, text: str) -> None:
    for letter in text:
        parser.push(letter)
    parser.finish()


def calls_of(message: ChatMessage) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


# ---------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("name", "answer", "content", "reasoning", "calls"),
    CASES,
    ids=[f"{case[0]}-{number}" for number, case in enumerate(CASES)],
)
def test_what_models_answer(
    model: Model,
    name: str,
    answer: str,
    content: str,
    reasoning: str,
    calls: list[tuple[str, dict[str, Any]]],
) -> None:
    prompt = render(model, name, tools=TOOLS, parallel_tool_calls=len(calls) > 1)
    message = prompt.parser().parse(answer)
    assert (message.content.strip(), message.reasoning_content.strip()) == (content, reasoning)
    assert calls_of(message) == calls
    data = answer.encode()
    every_byte = [data[i : i + 1] for i in range(len(data))]
    for pieces in (list(answer), every_byte, [answer], [answer[:7], answer[7:]]):
        assert stream(prompt, pieces) == (message, message)


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES}))
def test_content_alone_without_tools(model: Model, name: str) -> None:
    prompt = render(model, name, enable_thinking=False)
    answer = {"meetkai-functionary-medium-v3.2": f"all\n{HELLO}"}.get(name, HELLO)
    if name in ("openai-gpt-oss-120b", "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "MiniMax-M3"):
        pytest.skip("its content stands in markers; see the cases above")
    message = prompt.parser().parse(answer)
    # some templates leave the answer within the thinking block whatever they are told
    assert (message.content or message.reasoning_content).strip() == HELLO
    assert message.tool_calls == ()
    assert stream(prompt, list(answer)) == (message, message)


def test_reasoning_may_stay_in_the_content(model: Model) -> None:
    answer = "<think>\nHm.\n</think>\n\nYes."
    apart = render(model, "Qwen-Qwen3-0.6B").parser().parse(answer)
    inside = render(model, "Qwen-Qwen3-0.6B", reasoning_format="none").parser().parse(answer)
    assert (apart.content, apart.reasoning_content.strip()) == ("Yes.", "Hm.")
    assert "<think>" in inside.content and "Yes." in inside.content and inside.reasoning_content == ""


def test_ids_that_the_model_gives(model: Model) -> None:
    answer = '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}]'
    prompt = render(model, "mistralai-Mistral-Nemo-Instruct-2407", tools=TOOLS)
    assert stream(prompt, list(answer))[0].tool_calls == (ToolCall("now", "{}", "abcdefghi"),)


def test_a_schema_is_content(model: Model) -> None:
    prompt = render(model, "Qwen3-Coder", json_schema={"type": "object"})
    assert prompt.parser().parse('{"a": [1, 2]}').content == '{"a": [1, 2]}'
    with pytest.raises(errors.ResponseParseError):
        prompt.parser().parse("no JSON")


def test_a_continued_message(model: Model) -> None:
    template = ChatTemplate(model, (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8"))
    begun = {"role": "assistant", "content": "The answer"}
    prompt = template.render([USER, begun], continue_final_message=True)
    parser = prompt.parser()
    deltas = parser.push(" is 4.") + parser.finish()
    assert "".join(delta.content for delta in deltas) == " is 4."
    assert parser.message.content == "The answer is 4."


# ---------------------------------------------------------------------------------------------------- streaming


def test_names_come_whole_and_before_arguments(hermes: ChatPrompt) -> None:
    parser = hermes.parser()
    deltas = [delta for letter in HERMES + "\n" + HERMES_ADD for delta in parser.push(letter)]
    deltas += parser.finish()
    for index, name in enumerate(("get_weather", "add")):
        mine = [delta for delta in deltas if delta.index == index]
        assert mine[0].name == name
        assert [delta.name for delta in mine[1:]] == [""] * (len(mine) - 1)


def test_a_call_without_arguments_comes_at_the_end(model: Model) -> None:
    prompt = render(model, "Qwen3-Coder", tools=TOOLS)
    answer = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    message, known = stream(prompt, list(answer))
    assert message == known == prompt.parser().parse(answer)
    assert message.tool_calls == (ToolCall("now", "{}"),)


@pytest.mark.parametrize("cut", range(1, len(HERMES), 3))
def test_answers_that_end_early(hermes: ChatPrompt, cut: int) -> None:
    answer = HERMES[:cut]
    message, known = stream(hermes, list(answer))
    assert message == known
    for call in hermes.parser().parse(answer, partial=True).tool_calls:
        assert "get_weather".startswith(call.name)


def test_characters_and_bytes_that_are_none(hermes: ChatPrompt) -> None:
    parser = hermes.parser()
    assert parser.push(b"a\xf0\x9f") == [ChatDelta(content="a")]
    assert parser.push(b"\x98\x80") == [ChatDelta(content="\U0001f600")]
    rest = parser.push(b"\xff") + parser.push(b"b\xe2\x82") + parser.finish()
    assert "".join(delta.content for delta in rest) == "\ufffdb\ufffd"
    assert hermes.parser().parse(b"a\xffb").content == "a\ufffdb"
    assert hermes.parser().parse("a\0b").content == "a\0b"
    assert hermes.parser().parse("").content == ""
    for wrong in ("\ud800", 3, None, ["a"]):
        with pytest.raises(errors.UsageError, match="text"):
            hermes.parser().parse(wrong)
        with pytest.raises(errors.UsageError, match="text"):
            hermes.parser().push(wrong)


def test_after_the_end(hermes: ChatPrompt) -> None:
    parser = hermes.parser()
    parser.push("a")
    parser.finish()
    with pytest.raises(errors.InvalidArgumentError, match="finished"):
        parser.push("b")
    with pytest.raises(errors.InvalidArgumentError, match="finished"):
        parser.finish()
    assert parser.message == ChatMessage("a")
    assert parser.parse("c").content == "c"


def test_an_answer_of_another_form(hermes: ChatPrompt) -> None:
    answer = "é" + HERMES.replace('"arguments"', '"other"')
    with pytest.raises(errors.ResponseParseError, match="character") as caught:
        hermes.parser().parse(answer)
    assert caught.value.position is not None
    assert 0 <= caught.value.position <= answer.index('"other"')
    parser = hermes.parser()
    with pytest.raises(errors.ResponseParseError) as caught:
        push_all(parser, answer)
    assert isinstance(caught.value, (errors.LlamaRuntimeError, ValueError))
    assert parser.message.content.startswith("é")


# ---------------------------------------------------------------------------------------------------- hostile

NESTED = {
    "arrays": '<tool_call>\n{"name": "get_weather", "arguments": {"town": ' + "[" * 100_000,
    "objects": '<tool_call>\n{"name": "get_weather", "arguments": ' + '{"a":' * 100_000,
    "closed": '<tool_call>\n{"name": "add", "arguments": ' + "[" * 5_000 + "]" * 5_000 + "}\n</tool_call>",
}
CHILD = """
import json, sys, threading
from pathlib import Path
from llama_runner import errors
from llama_runner.chat_types import ChatPrompt
from llama_runner.core import ChatTemplate, Model

def run():
    model = Model(sys.argv[1])
    tools, folder, answers, user = json.load(sys.stdin)
    for name in ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "google-gemma-4-31B-it", "LFM2-8B-A1B"):
        prompt = ChatTemplate(model, Path(folder, name + ".jinja").read_text("utf-8")).render([user], tools=tools)
        schema = ChatTemplate(model).render([user], json_schema={"type": ["array", "object"]})
        for answer in answers:
            for which in (prompt, schema):
                for partial in (False, True):
                    try:
                        which.parser().parse(answer, partial=partial)
                    except errors.ResponseParseError:
                        pass
    print("alive")

if sys.argv[2] == "thread":
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_answers_that_nest_without_end(tiny_model: TinyModelFactory, where: str) -> None:
    gemma = "<|tool_call>call:get_weather{town:" + "[" * 100_000
    python = "<|tool_call_start|>[get_weather(town=" + "[" * 100_000
    answers = [*NESTED.values(), gemma, gemma.replace("[", "{a:"), python, "[" * 100_000, '{"a":' * 100_000]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_model("llama")), where],
        input=json.dumps([TOOLS, str(TEMPLATES), answers, USER]),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (child.returncode, child.stdout.strip()) == (0, "alive"), child.stderr[-800:]


def test_nesting_that_is_no_attack(hermes: ChatPrompt) -> None:
    deep = "[" * 100 + "]" * 100
    message = hermes.parser().parse(
        '<tool_call>\n{"name": "get_weather", "arguments": {"town": "x"}}\n</tool_call>'.replace('"x"', deep)
    )
    assert message.tool_calls[0].arguments == '{"town": ' + deep + "}"


def test_long_answers(hermes: ChatPrompt) -> None:
    text = "word " * 200_000
    assert hermes.parser().parse(text).content == text
    parser = hermes.parser()
    got = "".join(d.content for _ in range(100) for d in parser.push(text[:2000]))
    assert got + "".join(d.content for d in parser.finish()) == text[:2000] * 100


def test_one_thread_at_a_time(hermes: ChatPrompt) -> None:
    parser = hermes.parser()
    big = "word " * 400_000
    outcomes: list[type[BaseException] | None] = []
    barrier = threading.Barrier(4)

    def push() -> None:
        barrier.wait()
        for _ in range(4):
            try:
                parser.push(big)
                outcomes.append(None)
            except errors.ContextBusyError as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 16
    done = outcomes.count(None)
    assert done >= 1
    parser.finish()
    assert len(parser.message.content) == done * len(big)


# ---------------------------------------------------------------------------------------------------- made wrongly


@pytest.mark.parametrize("prompt", [None, "text", {}, 3])
def test_what_is_no_prompt(prompt: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="ChatPrompt"):
        ChatParser(prompt)


@pytest.mark.parametrize(
    "description",
    [
        "", "{", "[]", "{}", "null", "\0", '{"format": 99, "generation_prompt": "", "continues": false, "arena": ""}',
        '{"format": -1, "generation_prompt": "", "continues": false, "arena": ""}',
        '{"format": 1, "generation_prompt": "", "continues": false, "arena": "{}"}',
        '{"format": 1, "generation_prompt": "", "continues": false, "arena": "[[["}',
        '{"format": 1, "generation_prompt": 3, "continues": false, "arena": ""}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_descriptions_that_are_damaged(hermes: ChatPrompt, description: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="parser"):
        ChatParser(dataclasses.replace(hermes, parser_description=description))


def test_a_parser_that_goes_round_in_circles(hermes: ChatPrompt) -> None:
    found = json.loads(hermes.parser_description)
    arena = json.loads(found["arena"])
    root = arena["root"]
    for kind in ("and", "not", "atomic", "tag", "rule", "repetition", "sequence", "choice"):
        own = {
            "type": kind, "child": root, "children": [root, root], "name": "x", "tag": "x", "min_count": 0,
            "max_count": -1, "trigger": False,
        }  # fmt: skip
        arena["parsers"][root] = own
        found["arena"] = json.dumps(arena)
        circle = dataclasses.replace(hermes, parser_description=json.dumps(found))
        try:
            parser = ChatParser(circle)
        except errors.InvalidArgumentError:
            continue
        with pytest.raises(errors.ResponseParseError):
            parser.parse("hello")


def test_a_subclass_that_was_never_made() -> None:
    class Broken(ChatParser):
        def __init__(self) -> None:
            pass

    for use in (lambda p: p.parse("a"), lambda p: p.push("a"), lambda p: p.finish(), lambda p: p.message):
        with pytest.raises(errors.InvalidArgumentError, match="never made"):
            use(Broken())


def test_made_twice(hermes: ChatPrompt) -> None:
    parser = hermes.parser()
    with pytest.raises(errors.InvalidArgumentError, match="made already"):
        parser.__init__(hermes)  # type: ignore[misc]
    assert parser.parse("a").content == "a"


def test_messages_in_openais_form(model: Model) -> None:
    message = ChatMessage(
        "text", "thought", (ToolCall("add", '{"a": 1, "b": 2}', "call00001"), ToolCall("now", "{}"))
    )
    given = message.to_dict()
    assert given["role"] == "assistant" and given["reasoning_content"] == "thought"
    assert given["tool_calls"][0]["id"] == "call00001" and "id" not in given["tool_calls"][1]
    template = ChatTemplate(model, (TEMPLATES / "Qwen3-Coder.jinja").read_text("utf-8"))
    assert "<function=add>" in template.apply([USER, given], tools=TOOLS)
    assert ChatMessage("a").to_dict() == {"role": "assistant", "content": "a"}
