"""``ChatTemplate``: messages to prompt text, by the model's own template or one of the vendored ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import ChatTemplate, Model, SamplerChain
from tiny_models import CHATML_TEMPLATE

USER = {"role": "user", "content": "What is 2+2?"}
SYSTEM = {"role": "system", "content": "Be terse."}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
TEMPLATES = Path(__file__).resolve().parent.parent / "vendor" / "llama.cpp" / "models" / "templates"


@pytest.fixture
def model(tiny_model: TinyModelFactory) -> Model:
    return Model(tiny_model("llama"))


@pytest.fixture
def chatml(model: Model) -> ChatTemplate:
    return ChatTemplate(model)


# ---------------------------------------------------------------------------------------------------- rendering


def test_the_models_own_template(chatml: ChatTemplate, model: Model) -> None:
    assert chatml.source == CHATML_TEMPLATE
    assert chatml.model is model
    assert chatml.apply([SYSTEM, USER]) == (
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_generation_prompt(chatml: ChatTemplate) -> None:
    with_prompt = chatml.apply([USER])
    without = chatml.apply([USER], add_generation_prompt=False)
    assert with_prompt == without + "<|im_start|>assistant\n"


def test_messages_may_come_from_any_iterable(chatml: ChatTemplate) -> None:
    expected = chatml.apply([SYSTEM, USER])
    assert chatml.apply((SYSTEM, USER)) == expected
    assert chatml.apply(message for message in (SYSTEM, USER)) == expected


def test_text_passes_unchanged(chatml: ChatTemplate) -> None:
    # a backslash and what follows it are text, not the character they would name
    texts = (
        "naïve \U0001f600 模型",
        'quote " and \\ and \t\n',
        "{{ 1 + 1 }}{% if %}",
        "<|im_end|>",
        r"\u0000 \n",
        "",
    )
    for text in texts:
        assert chatml.apply([{"role": "user", "content": text}]).startswith(
            f"<|im_start|>user\n{text}<|im_end|>\n"
        )


def test_long_conversations(chatml: ChatTemplate) -> None:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"message {i} " + "x" * 500} for i in range(500)
    ]
    text = chatml.apply(turns)
    assert text.count("<|im_start|>") == 501
    assert "message 499 x" in text


def test_parts_of_text_are_joined(chatml: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = chatml.apply([{"role": "user", "content": parts}])
    assert text.index("one") < text.index("two")


def test_a_template_of_ones_own(model: Model) -> None:
    template = ChatTemplate(
        model, "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}{{ mood }}"
    )
    assert template.source.startswith("{% for m")
    assert template.apply([SYSTEM, USER]) == "[system: Be terse.][user: What is 2+2?]"
    assert template.apply([USER], mood="glad").endswith("]glad")


def test_special_tokens_come_from_the_model(tiny_model: TinyModelFactory) -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ bos_token }}{{ eos_token }}"
    rendered = ChatTemplate(Model(tiny_model("mamba")), source).apply([USER])
    # the one at the beginning is left to tokenize(), which adds it for this model
    assert rendered == "What is 2+2?<|startoftext|><|endoftext|>"


def test_tools_reach_the_template(llama_cpp_dir: Path, model: Model) -> None:
    source = (
        llama_cpp_dir / "models/templates/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
    ).read_text("utf-8")
    template = ChatTemplate(model, source)
    assert "get_weather" in template.apply([USER], tools=[TOOL])
    assert "get_weather" not in template.apply([USER])


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_vendored_templates_render_a_conversation(model: Model, path: Path) -> None:
    template = ChatTemplate(model, path.read_text(encoding="utf-8"))
    turns = [USER, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "And 3+3?"}]
    first, whole = template.apply([USER]), template.apply(turns)
    assert "What is 2+2?" in first
    assert "And 3+3?" in whole
    # the start of the answer of a turn before may hold a thinking block that is dropped later; the question stays
    assert whole.index("What is 2+2?") < whole.index("And 3+3?")
    assert "What is 2+2?" in template.apply([SYSTEM, USER])


def test_the_vendored_templates_are_there(llama_cpp_dir: Path) -> None:
    assert llama_cpp_dir / "models" / "templates" == TEMPLATES
    assert len(list(TEMPLATES.glob("*.jinja"))) >= 40


@pytest.mark.real_model
def test_the_real_models_template(smollm2: Path) -> None:
    model = Model(smollm2, vocab_only=True)
    text = ChatTemplate(model).apply([USER])
    assert text.endswith("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n")
    ids = model.vocab.tokenize(text, parse_special=True)
    (end,) = model.vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert (ids == end).sum() == text.count("<|im_end|>") == 2


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_model_without_a_template(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama", chat_template=False))
    with pytest.raises(errors.ModelCapabilityError, match="no chat template"):
        ChatTemplate(model)
    assert ChatTemplate(model, "x{{ messages[0].content }}").apply([USER]) == "xWhat is 2+2?"


@pytest.mark.parametrize("source", ["{{", "{%", "{% for %}", "{% if true %}", "{% endfor %}", "{{ 1 + }}"])
def test_templates_that_cannot_be_parsed(model: Model, source: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="cannot be parsed"):
        ChatTemplate(model, source)


@pytest.mark.parametrize("source", ["", "a\0b", "\ud800", b"\xff"])
def test_sources_that_are_no_text(model: Model, source: object) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="source"):
        ChatTemplate(model, source)


@pytest.mark.parametrize("source", [3, [], object(), 1.5])
def test_sources_of_a_wrong_type(model: Model, source: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="source"):
        ChatTemplate(model, source)
    with pytest.raises(TypeError):
        ChatTemplate(source)


def test_a_template_that_raises_says_why(model: Model) -> None:
    template = ChatTemplate(model, "{{ raise_exception('only one system message') }}")
    for _ in range(2):
        with pytest.raises(errors.InvalidArgumentError, match="only one system message"):
            template.apply([USER])


@pytest.mark.parametrize(
    "messages",
    [
        ["hello"],
        [3],
        [None],
        [[USER]],
        [{}],
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": 1, "content": "a"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"text": "no type"}]}],
        [{"role": "assistant", "content": "a", "tool_calls": 3}],
        [{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}],
        [USER, {"role": "user"}],
        "text",
        {"role": "user", "content": "a dict, not a list of them"},
    ],
    ids=str,
)
def test_messages_that_are_none(chatml: ChatTemplate, messages: object) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="message"):
        chatml.apply(messages)
    assert "2+2" in chatml.apply([USER])


@pytest.mark.parametrize("text", ["a\0b", "\0", "\\\0"])
def test_nul_in_a_message(chatml: ChatTemplate, text: str) -> None:
    for message in ({"role": "user", "content": text}, {"role": text, "content": "a"}):
        with pytest.raises(errors.InvalidArgumentError, match="NUL"):
            chatml.apply([message])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_in_a_message(chatml: ChatTemplate, text: str) -> None:
    for message in ({"role": "user", "content": text}, {"role": text, "content": "a"}, {**USER, text: "a"}):
        with pytest.raises(errors.InvalidArgumentError, match="surrogate"):
            chatml.apply([message])


def circle() -> list[object]:
    items: list[object] = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    "value", [b"bytes", {1, 2}, object(), 1j, circle()], ids=lambda value: type(value).__name__
)
def test_what_is_no_json(chatml: ChatTemplate, value: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="JSON"):
        chatml.apply([{"role": "user", "content": value}])
    with pytest.raises(errors.ArgumentTypeError, match="JSON"):
        chatml.apply([USER], tools=[value])
    with pytest.raises(errors.ArgumentTypeError, match="JSON"):
        chatml.apply([USER], extra=value)
    assert "2+2" in chatml.apply([USER])


def test_numbers_that_json_does_not_have(chatml: ChatTemplate) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises((errors.InvalidArgumentError, errors.ArgumentTypeError)):
            chatml.apply([{**USER, "x": value}])
        with pytest.raises((errors.InvalidArgumentError, errors.ArgumentTypeError)):
            chatml.apply([USER], extra=value)


def test_nesting_too_deep(chatml: ChatTemplate) -> None:
    deep: list[object] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(errors.UsageError):
        chatml.apply([{**USER, "x": deep}])
    assert "2+2" in chatml.apply([USER])


@pytest.mark.parametrize("messages", [None, 3, 1.5, object()])
def test_messages_of_a_wrong_type(chatml: ChatTemplate, messages: object) -> None:
    with pytest.raises(TypeError):
        chatml.apply(messages)


@pytest.mark.parametrize("tools", ["x", ["x"], [3], [{}], [{"type": "function"}], [{**TOOL, "function": {}}]])
def test_tools_that_are_none(chatml: ChatTemplate, tools: object) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="tool"):
        chatml.apply([USER], tools=tools)


@pytest.mark.parametrize("flag", ["no", 1, None])
def test_switches_are_bools(chatml: ChatTemplate, flag: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="add_generation_prompt"):
        chatml.apply([USER], add_generation_prompt=flag)
    with pytest.raises(errors.ArgumentTypeError, match="enable_thinking"):
        chatml.apply([USER], enable_thinking=flag)


# ---------------------------------------------------------------------------------------------------- ChatPrompt

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}


def vendored(model: Model, name: str) -> ChatTemplate:
    return ChatTemplate(model, (TEMPLATES / f"{name}.jinja").read_text("utf-8"))


def test_render_without_tools(chatml: ChatTemplate) -> None:
    prompt = chatml.render([SYSTEM, USER])
    assert prompt.prompt == chatml.apply([SYSTEM, USER])
    assert prompt.prompt.endswith(prompt.generation_prompt) and "assistant" in prompt.generation_prompt
    assert prompt.grammar is None and not prompt.grammar_lazy and prompt.grammar_triggers == ()
    assert prompt.format == "peg-native"
    assert not prompt.supports_thinking and prompt.thinking_start_tag == ""
    assert {d.role: d.delimiter for d in prompt.message_delimiters}["user"].startswith("<|im_start|>user")
    assert hash(prompt) == hash(chatml.render([SYSTEM, USER]))
    assert "parser_description" not in repr(prompt)


def test_render_with_tools(model: Model) -> None:
    template = vendored(model, "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use")
    prompt = template.render([USER], tools=[TOOL])
    assert prompt.prompt == template.apply([USER], tools=[TOOL])
    assert prompt.grammar is not None and "get_weather" in prompt.grammar
    assert prompt.grammar_lazy
    assert [(t.type, t.pattern) for t in prompt.grammar_triggers] == [("word", "<tool_call>\n")]
    assert "<tool_call>" in prompt.preserved_tokens
    assert not template.render([USER], tools=[TOOL], tool_choice="required").grammar_lazy
    without = template.render([USER], tools=[TOOL], tool_choice="none")
    assert without.grammar is None
    SamplerChain().grammar(model.vocab, prompt.grammar)
    one = template.render([USER], tools=[TOOL], parallel_tool_calls=False).grammar
    several = template.render([USER], tools=[TOOL], parallel_tool_calls=True).grammar
    assert one != several == prompt.grammar  # this template says that it can


def test_thinking_tags(model: Model) -> None:
    template = vendored(model, "Qwen-Qwen3-0.6B")
    prompt = template.render([USER])
    assert prompt.supports_thinking
    assert (prompt.thinking_start_tag, prompt.thinking_end_tags) == ("<think>", ("</think>",))
    off = template.render([USER], enable_thinking=False)
    assert off.prompt.endswith("<think>\n\n</think>\n\n")


def test_capabilities(model: Model, chatml: ChatTemplate) -> None:
    tools = vendored(model, "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use").capabilities
    assert tools["supports_tools"] and tools["supports_tool_calls"] and tools["supports_system_role"]
    assert not chatml.capabilities["supports_tools"]
    assert not vendored(model, "google-gemma-2-2b-it").capabilities["supports_system_role"]


def test_a_schema_binds_the_answer(chatml: ChatTemplate, model: Model) -> None:
    prompt = chatml.render([USER], json_schema=SCHEMA)
    assert prompt.grammar is not None and "answer" in prompt.grammar and not prompt.grammar_lazy
    SamplerChain().grammar(model.vocab, prompt.grammar)
    assert chatml.render([USER], json_schema=json.dumps(SCHEMA)).grammar == prompt.grammar
    for anything in ({}, True):
        assert chatml.render([USER], json_schema=anything).grammar is not None
    with pytest.raises(errors.InvalidArgumentError, match="minimum"):
        chatml.render([USER], json_schema={"type": "number", "minimum": 1})
    with pytest.raises(errors.InvalidArgumentError, match="pattern"):
        chatml.render([USER], json_schema={"type": "string", "pattern": "not anchored"})


def test_a_grammar_of_ones_own(chatml: ChatTemplate, model: Model) -> None:
    assert chatml.render([USER], grammar='root ::= "a"').grammar == 'root ::= "a"'
    for grammar, reason in (("", "empty"), ("(" * 300, "nests"), ("\ud800", "surrogate")):
        with pytest.raises(errors.InvalidArgumentError, match=reason):
            chatml.render([USER], grammar=grammar)
    with pytest.raises(errors.InvalidArgumentError, match="only one"):
        chatml.render([USER], grammar='root ::= "a"', json_schema=SCHEMA)
    with pytest.raises(errors.InvalidArgumentError, match="grammar"):
        vendored(model, "Qwen3-Coder").render([USER], grammar='root ::= "a"', tools=[TOOL])


def test_continuing_the_last_message(chatml: ChatTemplate, model: Model) -> None:
    begun = {"role": "assistant", "content": "The answer is"}
    prompt = chatml.render([USER, begun], continue_final_message=True)
    assert prompt.prompt.endswith("<|im_start|>assistant\nThe answer is")
    thought = {"role": "assistant", "content": "", "reasoning_content": "Two and two"}
    qwen = vendored(model, "Qwen-Qwen3-0.6B")
    rendered = qwen.render([USER, thought], continue_final_message="reasoning_content").prompt
    assert rendered.rstrip().endswith("Two and two")
    for messages in ([USER], [], [USER, {**begun, "tool_calls": []}, USER]):
        with pytest.raises(errors.InvalidArgumentError, match="continue_final_message"):
            chatml.render(messages, continue_final_message=True)


def test_template_kwargs_reach_the_template(model: Model) -> None:
    template = ChatTemplate(model, "{{ messages[0].content }}{{ mood }}")
    assert template.render([USER], template_kwargs={"mood": "glad"}).prompt == "What is 2+2?glad"


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("tool_choice", "any", errors.InvalidArgumentError),
        ("tool_choice", {"type": "function"}, errors.ArgumentTypeError),
        ("reasoning_format", "qwen", errors.InvalidArgumentError),
        ("reasoning_format", None, errors.ArgumentTypeError),
        ("parallel_tool_calls", "yes", errors.ArgumentTypeError),
        ("continue_final_message", "all", errors.InvalidArgumentError),
        ("continue_final_message", 1, errors.ArgumentTypeError),
        ("json_schema", 3, errors.ArgumentTypeError),
        ("grammar", 3, errors.ArgumentTypeError),
        ("add_generation_prompt", 1, errors.ArgumentTypeError),
    ],
)
def test_render_refuses_wrong_values(
    chatml: ChatTemplate, keyword: str, value: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=keyword if keyword != "json_schema" else "schema"):
        chatml.render([USER], **{keyword: value})


def test_tools_whose_parameters_have_no_end(model: Model) -> None:
    template = vendored(model, "Qwen3-Coder")
    for parameters in (
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema"}}},
    ):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        with pytest.raises(errors.InvalidArgumentError, match="schema"):
            template.render([USER], tools=[tool])
        with pytest.raises(errors.InvalidArgumentError, match="schema"):
            template.apply([USER], tools=[tool])


def test_a_templates_subclass_that_was_never_made() -> None:
    class Broken(ChatTemplate):
        def __init__(self) -> None:
            pass

    for use in ("source", "capabilities"):
        with pytest.raises(errors.InvalidArgumentError, match="never made"):
            getattr(Broken(), use)
    with pytest.raises(errors.InvalidArgumentError, match="never made"):
        Broken().render([USER])
