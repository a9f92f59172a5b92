"""Tokens of a conversation that grows and changes: only what is new is tokenized, and they are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_runner.core import ChatTemplate, Model
from llama_runner.errors import InvalidArgumentError
from llama_runner.session.rendering import Options, Renderer, common_bytes
from session_use import TEMPLATES

VOCABS = (
    "bert-bge",
    "command-r",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
)
TEXTS = st.text(st.sampled_from("ab \n\t<|>_[]/.?1é漢🙂"), max_size=12) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>user\n", "</s>", " [INST] ", "<|eot_id|>", "<s>", "\n\n", "  "]
)
MESSAGES = st.lists(TEXTS, min_size=1, max_size=6)


def conversation(texts: list[str]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module", params=VOCABS)
def vocab_model(request: pytest.FixtureRequest, llama_cpp_dir: Path) -> Model:
    path = llama_cpp_dir / "models" / f"ggml-vocab-{request.param}.gguf"
    if not path.exists():
        pytest.fail(f"{path.name} is not vendored any more")
    return Model(path, vocab_only=True)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = "{% for m in messages %}<s> [INST] {{ m.content }} [/INST] </s>{% endfor %}"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("source", [CHATML, LLAMA], ids=["chatml", "llama"])
def test_tokens_are_those_of_the_whole(vocab_model: Model, source: str, data: st.DataObject) -> None:
    renderer = Renderer(ChatTemplate(vocab_model, source), vocab_model.vocab)
    texts: list[str] = []
    for _ in range(data.draw(st.integers(1, 5))):
        texts = texts[: data.draw(st.integers(0, len(texts)))] + data.draw(MESSAGES)
        text = renderer.render(conversation(texts), Options()).prompt
        found = renderer.tokens(text)
        whole = vocab_model.vocab.tokenize(text, add_special=True, parse_special=True)
        assert np.array_equal(found, whole)


def test_most_of_a_long_conversation_is_kept(smollm2: Path) -> None:
    model = Model(smollm2, vocab_only=True)
    renderer = Renderer(ChatTemplate(model), model.vocab)
    texts = [f"message {i}, and what it has to say" for i in range(60)]
    first = renderer.tokens(renderer.render(conversation(texts), Options()).prompt)
    text = renderer.render(conversation([*texts, "one more"]), Options()).prompt
    kept, at = renderer._reusable(text.encode())
    assert kept > len(first) - 40 and at > len(text) - 240
    assert np.array_equal(
        renderer.tokens(text), model.vocab.tokenize(text, add_special=True, parse_special=True)
    )
    fork = renderer.copy()
    assert np.array_equal(fork.tokens(text[:50]), model.vocab.tokenize(text[:50], True, True))
    assert np.array_equal(renderer.tokens(text), model.vocab.tokenize(text, True, True))


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=30))
def test_common_bytes(a: bytes, b: bytes, c: bytes) -> None:
    n = common_bytes(a + b, a + c)
    assert (a + b)[:n] == (a + c)[:n] and n >= len(a)
    assert n == min(len(a + b), len(a + c)) or (a + b)[n] != (a + c)[n]


def test_spans_cover_the_prompt(smollm2: Path) -> None:
    model = Model(smollm2, vocab_only=True)
    for name in ("Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "google-gemma-2-2b-it"):
        renderer = Renderer(
            ChatTemplate(model, (TEMPLATES / f"{name}.jinja").read_text("utf-8")), model.vocab
        )
        messages = conversation(["first words", "an answer", "assistant", "user", "the last words"])
        text = renderer.render(messages, Options()).prompt
        tokens = renderer.tokens(text)
        spans = renderer.spans(messages, text, tokens)
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert spans[-1][1] == len(tokens)
        for message, (start, stop) in zip(messages, spans, strict=True):
            part = model.vocab.detokenize(tokens[start:stop], unparse_special=True)
            assert message["content"] in part
    assert renderer.token_ids(["<|im_start|>", "no token of its own"]) == [
        model.vocab.tokenize("<|im_start|>", False, True)[0]
    ]


def test_tools_of_a_choice_do_not_change_the_prompt(smollm2: Path) -> None:
    model = Model(smollm2, vocab_only=True)
    renderer = Renderer(
        ChatTemplate(model, (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8")), model.vocab
    )
    tools = tuple(
        {
            "type": "function",
            "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        for name in ("left", "right")
    )
    both = renderer.render(conversation(["go"]), Options(tools=tools, tool_choice="required"))
    one = renderer.render(conversation(["go"]), Options(tools=tools, tool_choice="required", only=tools[1:]))
    assert both.prompt == one.prompt
    assert both.grammar is not None and one.grammar is not None
    assert "left" in both.grammar and "left" not in one.grammar and "right" in one.grammar


CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
CONVERSATIONS = {
    "plain": (conversation(["hello", "Hi.", "and?"]), ()),
    "answered": (conversation(["hello", "Hi."]), ()),
    "system": ([{"role": "system", "content": "Be kind."}, *conversation(["hello"])], ()),
    "thought": (
        [*conversation(["hello"]), {"role": "assistant", "content": "Hi.", "reasoning_content": "Hm."}],
        (),
    ),
    "tools": (conversation(["hello"]), (TOOL,)),
    "called": (
        [
            *conversation(["1?"]),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "name": "add", "content": "2"},
        ],
        (TOOL,),
    ),
}


def test_the_text_alone_is_the_prompt(smollm2: Path) -> None:
    """``text`` renders once where ``render`` does so twice or three times: the same comes of it, for every template."""
    model = Model(smollm2, vocab_only=True)
    rendered = 0
    for path in sorted(TEMPLATES.glob("*.jinja")):
        renderer = Renderer(ChatTemplate(model, path.read_text("utf-8")), model.vocab)
        for name, (messages, tools) in CONVERSATIONS.items():
            thinks = name != "plain"
            options = Options(tools=tools, enable_thinking=thinks, template_kwargs={} if thinks else {"x": 1})
            for generates in (True, False):
                try:
                    whole = renderer.render(messages, options, add_generation_prompt=generates).prompt
                except InvalidArgumentError:
                    continue
                assert renderer.text(messages, options, generates) == whole, (path.name, name)
                rendered += 1
    assert rendered > 600
    named = Options(template_kwargs={"enable_thinking": False})
    assert renderer.text(conversation(["hello"]), named, True)
