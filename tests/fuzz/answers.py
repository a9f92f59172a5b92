"""What models answer, changed by chance: parsed whole and in pieces, which must come to the same."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

from llama_runner import errors
from llama_runner.chat_types import ChatMessage, ChatPrompt
from llama_runner.core import ChatTemplate, Model

VENDORED = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "models" / "templates"
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"type": "string"},
        "n": {"type": "integer"},
        "o": {"type": "object"},
        "l": {"type": "array", "items": {}},
    },
    "required": ["town"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": PARAMETERS}}
    for name in ("weather", "add")
]
TEMPLATES = [
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "Qwen-Qwen3-0.6B", "Qwen3-Coder",
    "meta-llama-Llama-3.1-8B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407",
    "mistralai-Ministral-3-14B-Reasoning-2512", "deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-V3.2",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "meetkai-functionary-medium-v3.2",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "openai-gpt-oss-120b", "moonshotai-Kimi-K2", "Kimi-K3",
    "google-gemma-4-31B-it", "MiniMax-M2", "MiniMax-M3", "GLM-4.6", "LFM2-8B-A1B", "Apertus-8B-Instruct",
    "ByteDance-Seed-OSS",
]  # fmt: skip
USER = {"role": "user", "content": "hi"}
ARGUMENTS = {"weather": '{"town": "Köln \\"x\\"", "n": 3}', "add": '{"town": "", "o": {"a": [1]}, "l": []}'}
CALLS = [
    {"type": "function", "id": f"call0000{i}", "function": {"name": name, "arguments": arguments}}
    for i, (name, arguments) in enumerate(ARGUMENTS.items())
]
ANSWERS = [
    {"role": "assistant", "content": "Hällo, wörld \U0001f600!\nWhat's <b>up</b>?"},
    {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.\n\nWell"},
    {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
    {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": CALLS},
]
PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "\\", ",", ":", "\n", " ", "<",
    ">", "|", "<|", "|>", "name", "arguments", "parameters", "weather", "add", "town", "null", "true", "1e5",
    "\\u00e9", "\\ud800", "é", "\U0001f600", "[[[[[[[[", '{"a":' * 9, "<function=", "</parameter>", "[TOOL_CALLS]",
    "<|channel|>", "<|message|>", "```json", "'", "\0",
]  # fmt: skip


@functools.cache
def load_model(path: str) -> Model:
    return Model(path)


@functools.cache
def prompts(path: str) -> list[tuple[ChatPrompt, tuple[str, ...]]]:
    """Prompts of many families, each with answers that its own template writes."""
    found = []
    for name in TEMPLATES:
        template = ChatTemplate(load_model(path), (VENDORED / f"{name}.jinja").read_text("utf-8"))
        prompt = template.render([USER], tools=TOOLS)
        answers = []
        for answer in ANSWERS:
            try:
                whole = template.apply([USER, answer], tools=TOOLS, add_generation_prompt=False)
            except errors.InvalidArgumentError:
                continue  # one call at a time, for this template
            answers.append(
                whole.removeprefix(prompt.prompt) if whole.startswith(prompt.prompt) else whole[-300:]
            )
        found.append((prompt, tuple(answers)))
    schema = ChatTemplate(load_model(path)).render([USER], json_schema={"type": ["object", "array"]})
    found.append((schema, ('{"a": [1, {"b": "c"}], "d": null}', "```json\n[1, 2]\n```")))
    return found


def make_answer(chance: random.Random, answers: tuple[str, ...]) -> bytes:
    text = chance.choice(answers) if answers else ""
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([1, 2, 5, 20]))
        text = [
            text[:start] + text[end:],
            text[:end] + text[start:],
            text[:start] + chance.choice(PIECES) + text[start:],
            text[:start] + "".join(chance.choices(PIECES, k=5)) + text[end:],
            text[:start],
        ][chance.randrange(5)]
    data = bytearray(text.encode())
    if data and chance.random() < 0.1:
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def try_input(seed: int, model: str) -> None:
    chance = random.Random(seed)
    prompt, answers = chance.choice(prompts(model))
    data = make_answer(chance, answers)
    whole: ChatMessage | None = None
    try:
        whole = prompt.parser().parse(data)
        prompt.parser().parse(data, partial=True)
    except errors.ResponseParseError as error:
        if error.position is not None and not 0 <= error.position <= len(data):
            raise AssertionError(f"position {error.position} of {data!r}") from error
    parser = prompt.parser()
    streamed = ChatMessage()
    step = chance.choice([1, 3, 10, 50, 1000])
    try:
        for start in range(0, len(data), step):
            for delta in parser.push(data[start : start + step]):
                streamed = delta.add_to(streamed)
            assert parser.message == streamed
        for delta in parser.finish():
            streamed = delta.add_to(streamed)
    except errors.ResponseParseError:
        assert parser.message == streamed  # what was given out holds
        return
    assert parser.message == streamed
    assert streamed == whole, (prompt.format, data, streamed, whole)
