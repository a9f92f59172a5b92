"""detect_format: what a vocabulary speaks for; and templates, held to Jinja, to llama.cpp, and to text written out."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import gguf
import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest

import llama_runner.core
from fixtures_models import TinyModelFactory
from llama_runner import errors, prompts
from llama_runner.core import ChatTemplate, Model
from tiny_models import bpe_vocab, spm_vocab, write_tiny_model

VENDOR = Path(__file__).resolve().parent.parent / "vendor" / "llama.cpp" / "models"
FORMATS = prompts.format_names()

USER = {"role": "user", "content": "What is 2+2?"}
ANSWER = {"role": "assistant", "content": "Four. \n"}
MORE = {"role": "user", "content": " And <3+3>? é\n{{ x }}"}
SYSTEM = {"role": "system", "content": "Be terse.\n"}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, MORE],
    "all": [SYSTEM, USER, ANSWER, MORE],
}

# ------------------------------------------------------------------------------------------- the vendored vocabularies

EXPECTED: dict[str, tuple[str, float] | None] = {
    "aquila": None,
    "baichuan": None,
    "bert-bge": None,
    "command-r": ("command-r", 1.0),
    # it has <|User|> and <|EOT|>, as the base model too has them, and nothing says that it was taught to chat
    "deepseek-coder": None,
    "deepseek-llm": None,
    "falcon": None,
    "gemma-4": ("gemma4", 0.85),
    "gpt-2": None,
    "gpt-neox": None,
    "llama-bpe": ("llama3", 0.85),
    "llama-spm": None,
    "mpt": None,
    "nomic-bert-moe": None,
    "phi-3": ("phi3", 0.85),
    "qwen2": ("chatml", 0.85),
    "qwen35": ("chatml", 0.85),
    "refact": None,
    "starcoder": None,
}


def test_each_vendored_vocabulary_has_an_expectation() -> None:
    assert sorted(EXPECTED) == sorted(
        path.stem.removeprefix("ggml-vocab-") for path in VENDOR.glob("ggml-vocab-*.gguf")
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_vendored_vocabularies(name: str) -> None:
    with Model(VENDOR / f"ggml-vocab-{name}.gguf", vocab_only=True) as model:
        found = prompts.detect_format(model)
        assert (found and (found.name, found.confidence)) == EXPECTED[name]
        if found is None:
            return
        assert found.evidence[0].startswith("the vocabulary has the special tokens ")
        end, family = (
            "end token" in " ".join(found.evidence[1:]),
            found.evidence[-1].startswith(("the name", "the arch")),
        )
        assert found.confidence == round(0.8 + 0.15 * end + 0.05 * family, 2)
        assert found.stops == () and found.stop_tokens == ()
        # what is rendered tokenizes to special tokens, and the end of an answer ends a generation
        template = ChatTemplate(model, found.source)
        ids = model.vocab.tokenize(template.apply([USER, ANSWER, MORE]), parse_special=True)
        assert sum(model.vocab.is_eog(int(i)) for i in ids) >= (1 if name in ("phi-3", "command-r") else 3)
        own = model.chat_template()
        if own is not None and name != "gemma-4":  # its own has a thinking block, see below
            apply = ChatTemplate(model).apply
            # Qwen's own puts a system text in where there is none
            before = [{"role": "system", "content": "s"}] if name.startswith("qwen") else []
            for turns in ([USER], [USER, {"role": "assistant", "content": "4"}, USER]):
                messages = [*before, *turns]
                assert template.apply(messages) == apply(messages)


@pytest.mark.real_model
def test_the_real_model(smollm2: Path) -> None:
    with Model(smollm2, vocab_only=True) as model:
        found = prompts.detect_format(model)
        assert found is not None
        assert (found.name, found.confidence) == ("chatml", 1.0)
        assert found.evidence[1] == "the end token is <|im_end|>"
        assert "smollm2" in found.evidence[2].lower()
        messages = [SYSTEM, USER, ANSWER, MORE]
        assert ChatTemplate(model, found.source).apply(messages) == ChatTemplate(model).apply(messages)


# ------------------------------------------------------------------------------------------- vocabularies made for it


@pytest.fixture
def vocabulary(tmp_path: Path) -> Callable[..., Model]:
    """A model of nothing but a vocabulary, with these special tokens, end token and name."""

    def make(tokens: tuple[str, ...] = (), *, kind: str = "spm", eos: str = "</s>", **metadata: Any) -> Model:
        words = {"spm": spm_vocab, "bpe": bpe_vocab}[kind]()
        for i, text in enumerate(("<|im_start|>", "<|im_end|>")):  # which are no part of what is tested
            words.tokens[words.tokens.index(text)] = f"<other{i}>"
        words.metadata["tokenizer.ggml.eot_token_id"] = None  # type: ignore[assignment]
        for text in (*tokens, eos):
            if text not in words.tokens:
                words.add(text, gguf.TokenType.CONTROL)
        words.metadata["tokenizer.ggml.eos_token_id"] = words.tokens.index(eos)
        names = {f"general.{key}": value for key, value in ({"name": "x"} | metadata).items()}
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        write_tiny_model(
            path, vocab=kind, vocab_only=True, chat_template=False, metadata={**words.as_metadata(), **names}
        )
        return Model(path, vocab_only=True)

    return make


CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MISTRAL = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")
MISTRAL_7 = (*MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
DEEPSEEK_BASE = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK_CODER = (*DEEPSEEK_BASE, "<｜fim▁hole｜>", "<|User|>", "<|Assistant|>", "<|EOT|>")
COMMAND = tuple(f"<|{t}_TOKEN|>" for t in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"))
KIMI = ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
EXAONE = ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]")

CASES: list[tuple[dict[str, Any], tuple[str, float] | None]] = [
    # by tokens
    ({"tokens": CHATML, "eos": "<|im_end|>"}, ("chatml", 0.95)),
    ({"tokens": CHATML, "name": "Qwen2.5 7B Instruct", "eos": "<|im_end|>"}, ("chatml", 1.0)),
    ({"tokens": CHATML, "kind": "bpe", "eos": "<|endoftext|>"}, ("chatml", 0.8)),
    ({"tokens": LLAMA3, "kind": "bpe", "eos": "<|eot_id|>", "name": "Llama 3.2 1B Instruct"}, ("llama3", 1.0)),
    ({"tokens": ("<|header_start|>", "<|header_end|>", "<|eot|>"), "kind": "bpe", "eos": "<|eot|>"}, ("llama4", 0.95)),
    ({"tokens": MISTRAL}, ("mistral-v3", 0.95)),
    ({"tokens": MISTRAL, "kind": "bpe", "name": "Mistral Nemo Instruct 2407"}, ("mistral-v3-tekken", 1.0)),
    ({"tokens": MISTRAL_7}, ("mistral-v7", 0.95)),
    ({"tokens": MISTRAL_7, "kind": "bpe"}, ("mistral-v7-tekken", 0.95)),
    ({"tokens": ("<start_of_turn>", "<end_of_turn>"), "eos": "<eos>", "name": "Gemma 2 2b It"}, ("gemma", 0.85)),
    ({"tokens": ("<|turn>", "<turn|>"), "kind": "bpe", "eos": "<turn|>"}, ("gemma4", 0.95)),
    ({"tokens": PHI, "eos": "<|end|>"}, ("phi3", 0.95)),
    ({"tokens": PHI, "kind": "bpe", "eos": "<|endoftext|>", "name": "Phi 4 Mini Instruct"}, ("phi4-mini", 0.85)),
    ({"tokens": (*CHATML, "<|im_sep|>"), "kind": "bpe", "eos": "<|im_end|>", "name": "Phi 4"}, ("phi4", 1.0)),
    ({"tokens": (*DEEPSEEK_BASE, "<｜User｜>", "<｜Assistant｜>"), "eos": DEEPSEEK_BASE[1]}, ("deepseek", 0.95)),
    ({"tokens": DEEPSEEK_CODER, "eos": "<|EOT|>"}, ("deepseek-coder", 0.95)),
    ({"tokens": DEEPSEEK_CODER, "eos": DEEPSEEK_BASE[1], "name": "DeepSeek Coder Instruct"}, ("deepseek-coder", 0.85)),
    ({"tokens": ("<|end_of_turn|>",), "eos": "<|end_of_turn|>"}, ("openchat", 0.95)),
    ({"tokens": COMMAND, "kind": "bpe", "eos": COMMAND[1]}, ("command-r", 0.95)),
    ({"tokens": ("<|start_of_role|>", "<|end_of_role|>"), "eos": "<|end_of_text|>", "kind": "bpe"}, ("granite", 0.95)),
    ({"tokens": GLM, "eos": "<|user|>"}, ("chatglm4", 0.95)),
    ({"tokens": EXAONE, "kind": "bpe", "eos": "[|endofturn|]", "name": "EXAONE 3.5"}, ("exaone3", 1.0)),
    ({"tokens": KIMI, "kind": "bpe", "eos": "<|im_end|>"}, ("kimi-k2", 0.95)),
    ({"tokens": ("<seed:bos>", "<seed:eos>"), "kind": "bpe", "eos": "<seed:eos>"}, ("seed-oss", 0.95)),
    # by name
    ({"name": "Llama 2 7b Chat Hf"}, ("llama2", 0.7)),
    ({"name": "LLaMA v2", "basename": "llama-v2", "finetune": "chat"}, None),
    ({"name": "Mistral 7B Instruct v0.2"}, ("mistral-v1", 0.7)),
    ({"name": "mixtral-8x7b-instruct-v0.1"}, ("mistral-v1", 0.7)),
    ({"name": "zephyr-7b-beta"}, ("zephyr", 0.7)),
    ({"name": "TinyLlama 1.1B Chat v1.0"}, ("zephyr", 0.7)),
    ({"name": "vicuna-13b-v1.5"}, ("vicuna", 0.7)),
    ({"name": "chavinlo_alpaca-native"}, ("alpaca", 0.7)),
    ({"tokens": DEEPSEEK_BASE, "eos": DEEPSEEK_BASE[1], "name": "DeepSeek LLM 7B Chat"}, ("deepseek-llm", 0.7)),
    # not enough
    ({}, None),
    ({"kind": "bpe", "eos": "<|endoftext|>"}, None),
    ({"name": "Llama 2 7b"}, None),
    ({"name": "Mistral 7B v0.1"}, None),
    ({"name": "vicuna", "kind": "bpe", "eos": "<|endoftext|>"}, None),
    ({"name": "vicuna alpaca merge"}, None),
    ({"tokens": ("<|im_start|>",), "name": "Qwen2.5 7B Instruct"}, None),
    ({"tokens": DEEPSEEK_CODER, "eos": DEEPSEEK_BASE[1]}, None),
    ({"tokens": DEEPSEEK_BASE, "eos": DEEPSEEK_BASE[1], "name": "deepseek-llm-7b-base"}, None),
    ({"tokens": ("<|end_of_turn|>",)}, None),
    ({"tokens": PHI, "kind": "bpe", "eos": "<|endoftext|>"}, None),
    ({"tokens": PHI[:3]}, None),
    ({"tokens": (*CHATML, "<end_of_utterance>"), "eos": "<end_of_utterance>"}, None),
    ({"tokens": CHATML, "kind": "bpe", "eos": "<|endoftext|>", "name": "Qwen2.5 7B Base"}, None),
    ({"tokens": ("<start_of_turn>", "<end_of_turn>"), "eos": "<eos>", "name": "gemma-2b-pt"}, None),
    # two formats at once: only what ends the text can tell
    ({"tokens": (*CHATML, *LLAMA3), "kind": "bpe", "eos": "<|im_end|>"}, ("chatml", 0.95)),
    ({"tokens": (*CHATML, *LLAMA3), "kind": "bpe", "eos": "<|eot_id|>"}, ("llama3", 0.95)),
    ({"tokens": (*CHATML, *LLAMA3), "kind": "bpe", "eos": "<|endoftext|>"}, None),
    ({"tokens": (*CHATML, *LLAMA3), "name": "vicuna"}, None),
    ({"tokens": (*CHATML, *MISTRAL), "eos": "<|im_end|>"}, ("chatml", 0.95)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i][1] and CASES[i][1][0]}")
def test_vocabularies(vocabulary: Callable[..., Model], case: int) -> None:
    given, expected = CASES[case]
    with vocabulary(**given) as model:
        found = prompts.detect_format(model)
        assert (found and (found.name, found.confidence)) == expected
        if found is None:
            return
        assert found.source == prompts.format_source(found.name)
        assert "What is 2+2?" in ChatTemplate(model, found.source).apply([SYSTEM, USER])
        # an answer ends by itself, by a token, or by a text; a name alone gives an end token as evidence
        end = model.vocab.eos
        assert model.vocab.is_eog(end) or end in found.stop_tokens
        if found.name in ("vicuna", "alpaca"):
            assert found.stops


def test_every_format_can_be_detected() -> None:
    assert {expected[0] for _, expected in CASES if expected} == set(FORMATS)


def test_an_end_token_that_llama_cpp_does_not_know(vocabulary: Callable[..., Model]) -> None:
    with vocabulary(("<seed:bos>", "<seed:eos>"), kind="bpe", eos="<|endoftext|>") as model:
        found = prompts.detect_format(model)
        assert found is not None
        (end,) = found.stop_tokens
        assert model.vocab.text(end) == "<seed:eos>"


def test_text_that_only_looks_like_a_token(vocabulary: Callable[..., Model], tmp_path: Path) -> None:
    """ "<|im_start|>" in many tokens, or as a word like any other, is none."""
    words = spm_vocab()
    for text in CHATML:
        words.types[words.tokens.index(text)] = int(gguf.TokenType.NORMAL)
    path = write_tiny_model(
        tmp_path / "n.gguf", vocab_only=True, chat_template=False,
        metadata={**words.as_metadata(), "tokenizer.ggml.eot_token_id": None},
    )  # fmt: skip
    with Model(path, vocab_only=True) as model:
        assert prompts.detect_format(model) is None


def test_a_model_without_a_template_can_chat(tiny_model: TinyModelFactory) -> None:
    with Model(tiny_model("llama", chat_template=False)) as model:
        with pytest.raises(errors.ModelCapabilityError):
            ChatTemplate(model)
        found = prompts.detect_format(model)
        assert found is not None and found.name == "chatml"
        built = (
            prompts.ContextBuilder(ChatTemplate(model, found.source), 400).system("s").history([USER]).build()
        )
        assert built.prompt.endswith("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n")


def test_bad_arguments(tiny_model: TinyModelFactory) -> None:
    with pytest.raises(errors.ArgumentTypeError, match=r"model is a llama_runner\.core\.Model, not str"):
        prompts.detect_format("model.gguf")  # type: ignore[arg-type]
    with pytest.raises(errors.UnknownParameterError, match="'chat-ml': did you mean 'chatml'"):
        prompts.format_source("chat-ml")
    model = Model(tiny_model("llama"))
    model.close()
    with pytest.raises(errors.ClosedError):
        prompts.detect_format(model)


# ------------------------------------------------------------------------------------------- templates


@functools.cache
def shared_model() -> Model:
    """For its special tokens: the BOS is <|startoftext|>, the EOS <|endoftext|>."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return Model(write_tiny_model(Path(folder) / "m.gguf", "mamba"))


def by_jinja(
    source: str, messages: list[dict[str, str]], *, bos: str = "<|startoftext|>", **values: Any
) -> str:
    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
    return environment.from_string(source).render(
        messages=messages,
        bos_token=bos,
        eos_token="<|endoftext|>",
        **{"add_generation_prompt": True} | values,
    )


@functools.cache
def library() -> ctypes.CDLL:
    folder = Path(llama_runner.core.__file__).parent.parent / "lib"
    (path,) = (p for p in folder.iterdir() if p.name.startswith(("libllama-runner.", "llama-runner.")))
    return ctypes.CDLL(str(path))


class NativeMessage(ctypes.Structure):
    _fields_ = (("role", ctypes.c_char_p), ("content", ctypes.c_char_p))


def by_llama_cpp(name: str, messages: list[dict[str, str]], generation: bool) -> str:
    """``llama_chat_apply_template`` with one of the templates that are compiled in."""
    chat = (NativeMessage * len(messages))(*((m["role"].encode(), m["content"].encode()) for m in messages))
    buffer = ctypes.create_string_buffer(1 << 16)
    n = library().llama_chat_apply_template(
        name.encode(), chat, ctypes.c_size_t(len(messages)), ctypes.c_bool(generation), buffer, len(buffer)
    )
    assert 0 < n < len(buffer)
    return buffer.raw[:n].decode()


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_templates_are_rendered_as_jinja_renders_them(name: str, conversation: str, generation: bool) -> None:
    messages = CONVERSATIONS[conversation]
    source = prompts.format_source(name)
    expected = by_jinja(source, messages, add_generation_prompt=generation)
    assert ChatTemplate(shared_model(), source).apply(messages, add_generation_prompt=generation) == expected
    for message in messages:
        assert message["content"].strip() in expected


# llama.cpp's name for the same, and what it writes for </s>
NATIVE = {
    "chatml": "chatml",
    "llama3": "llama3",
    "llama4": "llama4",
    "mistral-v1": "mistral-v1",
    "mistral-v3": "mistral-v3",
    "mistral-v3-tekken": "mistral-v3-tekken",
    "mistral-v7": "mistral-v7",
    "mistral-v7-tekken": "mistral-v7-tekken",
    "gemma": "gemma",
    "phi3": "phi3",
    "phi4": "phi4",
    "zephyr": "zephyr",
    "deepseek": "deepseek3",
    "deepseek-llm": "deepseek2",
    "deepseek-coder": "deepseek",
    "openchat": "openchat",
    "command-r": "command-r",
    "granite": "granite",
    "chatglm4": "chatglm4",
    "exaone3": "exaone3",
    "kimi-k2": "kimi-k2",
    "seed-oss": "seed_oss",
}


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NATIVE)
def test_templates_say_what_llama_cpp_says(name: str, conversation: str, generation: bool) -> None:
    messages = CONVERSATIONS[conversation]
    if name == "deepseek" and messages[0]["role"] == "system":
        # llama.cpp puts a blank line there that DeepSeek's own template has not
        messages = [{**SYSTEM, "content": SYSTEM["content"] + "\n\n"}, *messages[1:]]
        expected = by_llama_cpp(NATIVE[name], [SYSTEM, *messages[1:]], generation)
    else:
        expected = by_llama_cpp(NATIVE[name], messages, generation)
    found = by_jinja(prompts.format_source(name), messages, add_generation_prompt=generation)
    for eos in ("</s>", "<｜end▁of▁sentence｜>") if name.startswith(("mistral", "deepseek")) else ():
        expected = expected.replace(eos, "<|endoftext|>")
        found = found.replace(eos, "<|endoftext|>")
    assert found == expected


# vendored template, and what it is given besides
VENDORED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phi3": ("microsoft-Phi-3.5-mini-instruct", "all", {}),
    "chatml": ("Qwen-Qwen2.5-7B-Instruct", "all", {}),
    "mistral-v3-tekken": ("mistralai-Mistral-Nemo-Instruct-2407", "system", {}),
    "mistral-v7-tekken": ("Mistral-Small-3.2-24B-Instruct-2506", "all", {}),
    "gemma": ("google-gemma-2-2b-it", "turns", {}),
    # with a generation prompt it would put an empty thought first
    "gemma4": ("google-gemma-4-31B-it", "all", {"add_generation_prompt": False}),
    "granite": ("ibm-granite-granite-3.3-2B-Instruct", "all", {"controls": {}}),
    "kimi-k2": ("Kimi-K2-Instruct", "all", {}),
    "deepseek": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "all", {"add_generation_prompt": False}),
    "seed-oss": ("ByteDance-Seed-OSS", "all", {}),
}


@pytest.mark.parametrize("name", VENDORED)
def test_templates_say_what_the_models_own_say(name: str) -> None:
    file, conversation, values = VENDORED[name]
    source = (VENDOR / "templates" / f"{file}.jinja").read_text("utf-8")
    messages = CONVERSATIONS[conversation]
    if conversation == "system":
        messages = messages[:2]
    expected = by_jinja(source, messages, bos="", **values)
    assert by_jinja(prompts.format_source(name), messages, bos="", **values) == expected


WRITTEN_OUT = {
    "llama2": (
        "[INST] <<SYS>>\nBe terse.\n\n<</SYS>>\n\nWhat is 2+2? [/INST] Four. <|endoftext|>"
        "<|startoftext|>[INST] And <3+3>? é\n{{ x }} [/INST]"
    ),
    "vicuna": (
        "Be terse.\n USER: What is 2+2? ASSISTANT: Four. \n<|endoftext|>USER:  And <3+3>? é\n{{ x }} ASSISTANT:"
    ),
    "alpaca": (
        "Be terse.\n\n\n### Instruction:\nWhat is 2+2?\n\n### Response:\nFour. \n\n\n"
        "### Instruction:\n And <3+3>? é\n{{ x }}\n\n### Response:\n"
    ),
    "phi4-mini": (
        "<|system|>Be terse.\n<|end|><|user|>What is 2+2?<|end|><|assistant|>Four. \n<|end|>"
        "<|user|> And <3+3>? é\n{{ x }}<|end|><|assistant|>"
    ),
    "zephyr": (
        "<|system|>\nBe terse.\n<|endoftext|>\n<|user|>\nWhat is 2+2?<|endoftext|>\n"
        "<|assistant|>\nFour. \n<|endoftext|>\n"
        "<|user|>\n And <3+3>? é\n{{ x }}<|endoftext|>\n<|assistant|>\n"
    ),
    "deepseek": (
        "Be terse.\n<｜User｜>What is 2+2?<｜Assistant｜>Four. \n<｜end▁of▁sentence｜>"
        "<｜User｜> And <3+3>? é\n{{ x }}<｜Assistant｜>"
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_templates_written_out(name: str) -> None:
    template = ChatTemplate(shared_model(), prompts.format_source(name))
    assert template.apply(CONVERSATIONS["all"]) == WRITTEN_OUT[name]


def test_every_template_is_held_to_something_else_than_itself() -> None:
    assert set(FORMATS) == set(NATIVE) | set(VENDORED) | set(WRITTEN_OUT)


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_without_text(name: str) -> None:
    messages = [USER, {"role": "assistant", "content": None}, USER]
    assert "None" not in by_jinja(prompts.format_source(name), messages)  # type: ignore[arg-type]
