"""Every vendored chat template renders as jinja2 does with transformers' settings; what differs is listed, and why."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from chat import differences, oracle
from chat.causes import CAUSES
from chat.conversations import ASK, CONVERSATIONS, TOOLS, assistant
from chat.differences import BOTH_REFUSE, REFUSED, SEPARATOR, Pair
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import ChatTemplate, Model

NAMES = differences.template_names()
LISTED = differences.read()


@pytest.fixture(scope="module")
def model(tiny_model: TinyModelFactory) -> Model:
    return differences.load_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def adds_bos(tiny_model: TinyModelFactory) -> Model:
    return Model(tiny_model("llama"), vocab_only=True)


def test_there_is_something_to_compare() -> None:
    assert len(NAMES) >= 60
    assert len(CONVERSATIONS) >= 30
    assert LISTED.keys() <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_as_jinja2_renders_it(model: Model, name: str) -> None:
    template = differences.load_template(model, name)
    listed = {key: causes for causes, keys in LISTED.get(name, {}).items() for key in keys}
    assert listed.keys() <= CONVERSATIONS.keys()
    for key, conversation in CONVERSATIONS.items():
        pair = Pair(template, conversation)
        if key in listed:
            assert pair.holds(listed[key]), f"{key} is not explained by {listed[key]!r}, but {reason(pair)!r}"
        else:
            assert pair.ours == pair.by_jinja2() is not None, f"{key}: {reason(pair)}; {pair.refusal}"


def reason(pair: Pair) -> str:
    try:
        return pair.explain()
    except LookupError as problem:
        return str(problem)


def test_each_cause_is_one() -> None:
    """What explains nothing any more goes; what is listed is known, once for each prompt."""
    used = {c for by_causes in LISTED.values() for causes in by_causes for c in causes.split(SEPARATOR)}
    assert used == CAUSES.keys() | REFUSED.keys() | {BOTH_REFUSE}
    for by_causes in LISTED.values():
        keys = [key for keys in by_causes.values() for key in keys]
        assert len(keys) == len(set(keys))


def test_the_page_says_the_same() -> None:
    page = differences.PAGE.read_text("utf-8")
    assert page == differences.page_with(LISTED), "run tests/chat/differences.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_begin_token_is_left_to_the_tokenizer(model: Model, adds_bos: Model, name: str) -> None:
    conversation = CONVERSATIONS["turns"]
    whole = differences.apply(differences.load_template(model, name), conversation)
    cut = differences.apply(differences.load_template(adds_bos, name), conversation)
    assert model.vocab.token_to_piece(model.vocab.bos, special=True) == b"<s>"
    assert cut == whole.removeprefix("<s>")


# ----------------------------------------------------------------------------------------------- the generation prompt


@pytest.mark.parametrize("name", ["upstage-Solar-Open-100B", "llama-cpp-rwkv-world"])
def test_no_generation_prompt_where_a_template_takes_it_for_granted(model: Model, name: str) -> None:
    template = differences.load_template(model, name)
    with_prompt, without = template.apply([ASK]), template.apply([ASK], add_generation_prompt=False)
    assert with_prompt.startswith(without) and "ssistant" in with_prompt.removeprefix(without)
    prompt = template.render([ASK], add_generation_prompt=False)
    assert prompt.prompt == without
    asked = template.render(
        [ASK], template_kwargs={"add_generation_prompt": True}, add_generation_prompt=False
    )
    assert asked.prompt == with_prompt


def test_a_continued_answer_has_one_beginning(model: Model) -> None:
    template = differences.load_template(model, "upstage-Solar-Open-100B")
    prompt = template.render([ASK, assistant("Four")], continue_final_message=True).prompt
    assert prompt.endswith("Four")
    assert (
        prompt.removeprefix(template.apply([ASK], add_generation_prompt=False)).count("<|begin|>assistant")
        == 1
    )


# -------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_keep_their_digits(model: Model) -> None:
    """llama.cpp writes six digits; a coordinate in a call would be another one in the next prompt."""
    values = [54.4765432, 1234567.25, 4.0, 0.0, -0.0, 1e-5, 1e-4, 1e16, 9999999999999998.0, 1e22, 5e-324]
    random = Random(1)
    values += [random.uniform(-1, 1) * 10 ** random.uniform(-300, 300) for _ in range(500)]
    source = "{{ x|tojson }}|{{ x[5]|string }}|{% for v in x %}{{ v }} {% endfor %}|{{ x[0] + 0.25 > 54.7 }}"
    as_json, as_text, printed, is_more = ChatTemplate(model, source).apply([ASK], x=values).split("|")
    assert (as_json, as_text) == (json.dumps(values), "1e-05")
    assert [float(text) for text in printed.split()] == values
    assert all("." in text and "e" not in text for text in printed.split())
    assert is_more == "True"


# --------------------------------------------------------------------------------------------------------- no template


def test_a_model_without_a_template(tiny_model: TinyModelFactory) -> None:
    bare = Model(tiny_model("llama", chat_template=False), vocab_only=True)
    with pytest.raises(errors.ModelCapabilityError) as caught:
        ChatTemplate(bare)
    assert str(bare.path) in str(caught.value)
    assert "no chat template" in str(caught.value) and "pass one as Jinja text" in str(caught.value)
    source = (differences.TEMPLATES / "Qwen3-Coder.jinja").read_text("utf-8")
    assert "sound_depth" in ChatTemplate(bare, source).apply([ASK], tools=TOOLS)


# ----------------------------------------------------------------------------------------------------- the oracle


def test_the_oracle_is_transformers_way(model: Model) -> None:
    """What transformers adds to jinja2, each seen at work: a mute oracle would agree with anything."""
    source = (
        "{%- for m in messages -%}\n    {%- if loop.index > 1 -%}{%- break -%}{%- endif -%}\n"
        "    {% generation %}{{ {'a': 'ö<'} | tojson }}{{ {'a': [1]} | tojson(indent=2) }}{% endgeneration %}\n"
        "{%- endfor -%}\n{{ bos_token + eos_token + strftime_now('%Y') }}"
    )
    template = ChatTemplate(model, source)
    text, now = oracle.same_day(lambda: template.apply([ASK, ASK]))
    bos, eos = oracle.special_tokens(template)
    assert (bos, eos) == ("<s>", "</s>")
    expected = '{"a": "ö<"}{\n  "a": [\n    1\n  ]\n}' + f"<s></s>{now.year}"
    assert oracle.render(source, [ASK, ASK], bos=bos, eos=eos, now=now) == expected
    assert text == expected
    with pytest.raises(oracle.Refusal, match="only one"):
        oracle.render("{{ raise_exception('only one') }}", [ASK], bos=bos, eos=eos, now=now)


def test_folder_of_the_templates(llama_cpp_dir: Path) -> None:
    assert llama_cpp_dir / "models" / "templates" == differences.TEMPLATES
