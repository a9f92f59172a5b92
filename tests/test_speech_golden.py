"""What a careful reader would say: every golden case, whole, and cut at every character."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llama_runner.prompts.speech import Lexicon, SpeechNormalizer, SpeechOptions, speakable

DATA = Path(__file__).parent / "speech"

Case = tuple[str, Any, dict[str, Any]]


def load(name: str) -> list[Any]:
    table = tomllib.loads((DATA / name).read_text(encoding="utf-8"))
    return [
        pytest.param(case[0], case[1], case[2] if len(case) > 2 else {}, id=f"{category}-{index}")
        for category, cases in table.items()
        for index, case in enumerate(cases)
    ]


ENGLISH = load("golden_en.toml")
SENTENCES = load("golden_sentences.toml")
SSML = load("golden_ssml.toml")
OTHER = load("golden_other.toml")


@pytest.mark.parametrize(
    ("cases", "least"),
    [(ENGLISH, 500), (SENTENCES, 50), (SSML, 30), (OTHER, 30)],
    ids=["en", "sentences", "ssml", "other"],
)
def test_there_are_enough_cases_and_none_twice(cases: list[Any], least: int) -> None:
    assert len(cases) >= least
    assert len({(case.values[0], str(case.values[2])) for case in cases}) == len(cases)


def every_cut(written: str, options: dict[str, Any]) -> None:
    """In two pieces at each place, and in single characters: always the sentences of the whole."""
    normalizer = SpeechNormalizer(SpeechOptions(**options))
    whole = normalizer.sentences(written)
    stream = normalizer.stream()
    for cut in range(1, len(written)):
        assert stream.push(written[:cut]) + stream.push(written[cut:]) + stream.flush() == whole, written[
            :cut
        ]
    assert [sentence for char in written for sentence in stream.push(char)] + stream.flush() == whole


@pytest.mark.parametrize(("written", "spoken", "options"), ENGLISH)
def test_english(written: str, spoken: str, options: dict[str, Any]) -> None:
    assert speakable(written, **options) == spoken
    every_cut(written, options)


@pytest.mark.parametrize(("written", "spoken", "options"), OTHER)
def test_other_languages(written: str, spoken: str, options: dict[str, Any]) -> None:
    assert speakable(written, **options) == spoken
    every_cut(written, options)


@pytest.mark.parametrize(("written", "sentences", "options"), SENTENCES)
def test_sentences(written: str, sentences: list[str], options: dict[str, Any]) -> None:
    assert [sentence.source for sentence in SpeechNormalizer().sentences(written)] == sentences
    every_cut(written, options)


@pytest.mark.parametrize(("written", "content", "options"), SSML)
def test_ssml(written: str, content: str, options: dict[str, Any]) -> None:
    said = speakable(written, form="ssml", **options)
    head, _, rest = said.partition(">")
    assert head == '<speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en-US"'
    assert rest.removesuffix("</speak>") == content
    ElementTree.fromstring(said)
    every_cut(written, {**options, "form": "ssml"})


@pytest.mark.parametrize("cases", [ENGLISH], ids=["en"])
def test_english_says_no_digit_and_no_markup(cases: list[Any]) -> None:
    for case in cases:
        spoken = speakable(case.values[0], **case.values[2])
        assert not set(spoken) & set('0123456789*`#|<>[]{}()_\\"“”$€£%'), spoken


@pytest.mark.parametrize("cases", [ENGLISH, SENTENCES], ids=["en", "sentences"])
def test_ssml_says_what_plain_text_says(cases: list[Any]) -> None:
    """Without its markup, and with letters as letters, the one form is the other, but for the marks of pauses."""
    for case in cases:
        written, _, options = case.values
        plain = speakable(written, **options)
        root = ElementTree.fromstring(speakable(written, **{**options, "form": "ssml"}))
        words: list[str] = []
        for element in root.iter():
            text = element.text or ""
            spelt = element.tag.endswith("say-as")
            words.append(" ".join(text) if spelt else text)
            words.append(element.tail or "")
        assert _bare("".join(words)) == _bare(plain), written


def _bare(text: str) -> str:
    return "".join(char for char in text if char.isalnum())


def test_lexicon_of_goldens_is_a_lexicon() -> None:
    for case in SSML:
        if lexicon := case.values[2].get("lexicon"):
            assert dict(Lexicon(lexicon)) == lexicon
