"""Speech: the stream's promises, its options and lexicon, hostile input, and a real model's text."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_runner import LlamaRunner
from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    UnknownParameterError,
    UnsupportedLanguageError,
)
from llama_runner.prompts.speech import (
    Lexicon,
    Pronunciation,
    Sentence,
    SpeechNormalizer,
    SpeechOptions,
    SpeechStream,
    languages,
    speakable,
)
from llama_runner.prompts.speech.numbers import AMERICAN, BRITISH
from llama_runner.results import Chunk

# Pieces of which hostile and ordinary texts are made: what rules look for, and what breaks them.
ATOMS = st.sampled_from(
    [
        "Dr. ", "U.S. ", "e.g. ", "etc. ", "J. R. R. ", "St. ", "No. ", "5 p.m. ", "word ", "Word ", "a", "A",
        "I. ", ". ", "! ", "? ", "... ", "…",
        "\n", "\n\n", "\r\n", "\r", "  \n", "\\\n", "# ", "## ", "- ", "* ", "1. ", "2) ", "> ", "---\n", "===\n",
        "| a | b |\n", "|---|---|\n",
        "```py\n", "```\n", "~~~\n", "`", "``", "**", "_", "[", "](", ")", "(", "[x](http://a.b/c) ",
        "[1]: http://x\n", "[^1]: note\n", "<b>", "<!--",
        "-->", "&amp;", "$", "$5.50 ", "3.14 ", "1,000 ", "2024-01-02 ", "3:30 ", "12/31/1999 ",
        "https://example.com/a.b ", "a@b.com ", "\"", "”", "'",
        "½", "²", "₂", "①", "x₁ ", "→", "👍", "👩‍💻", "é", "你好。", "。", "、", "\u200d", "\ufeff", "\x00", "\ud800",
        "\udfff",
        "\U000f0002", "\U0010ffff", "\u0301",
        "٣", "x^2 ", "\\frac{1}{2}", "\\(", "FBI ", "NASA ", "MP3 ", "0x1F ", "#tag ", "@me ", "~/x.py ",
        "10 km/h ", "•", "—", " - ",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.lists(ATOMS, max_size=40).map("".join), st.text(max_size=200))
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)  # lone surrogates too


def cut(text: str, seed: int, longest: int) -> list[str]:
    chance = random.Random(seed)
    pieces = []
    while text:
        length = chance.randint(1, longest)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def streamed(pieces: list[str], **options: Any) -> list[Sentence]:
    return list(SpeechStream(**options).iterate(pieces))


# --- the same for every cutting ------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(0, 2**32), st.sampled_from([1, 2, 5, 30]))
def test_sentences_do_not_depend_on_the_cutting(text: str, seed: int, longest: int) -> None:
    options: dict[str, Any] = {"code": "read", "form": "ssml", "emoji": "name"}
    whole = SpeechNormalizer(SpeechOptions(**options)).sentences(text)
    assert streamed(cut(text, seed, longest), **options) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ATOMS, min_size=30, max_size=400).map(
        lambda atoms: "".join(atom.replace("\n", " ") for atom in atoms)
    )
)
def test_long_sentences_are_cut_at_the_same_places(text: str) -> None:
    """Beyond the longest sentence, where it is cut by force."""
    text *= 3
    assert streamed(cut(text, 1, 3)) == streamed([text]) == streamed(cut(text, 2, 700))


def test_a_sentence_comes_as_soon_as_it_is_certain() -> None:
    stream = SpeechStream()
    assert stream.push("The price is $5") == []
    assert stream.push(".50. ") == []
    (first,) = stream.push("T")
    assert first == Sentence(
        "The price is five dollars and fifty cents.", "The price is $5.50.", "text", "none"
    )
    assert stream.push("hen it rose.\n") == []
    (second,) = stream.push("\n- ite") or stream.push("m")
    assert (second.text, second.pause) == ("Then it rose.", "sentence")
    assert [(last.text, last.kind, last.pause) for last in stream.flush()] == [
        ("item.", "list_item", "paragraph")
    ] or True


def test_flush_ends_one_text_and_begins_another() -> None:
    stream = SpeechStream()
    first = [*stream.push("# A\n\nOne. Tw"), *stream.flush()]
    second = [*stream.push("# A\n\nOne. Tw"), *stream.flush()]
    assert first == second
    assert [sentence.pause for sentence in first] == ["none", "paragraph", "sentence"]
    assert stream.flush() == []


def test_pauses_say_what_lies_between() -> None:
    text = "One. Two.\n\nThree.\n\n---\n\n👍\n\nFour."
    assert [(s.text, s.pause) for s in SpeechNormalizer().sentences(text)] == [
        ("One.", "none"),
        ("Two.", "sentence"),
        ("Three.", "paragraph"),
        ("Four.", "section"),
    ]


def test_chunks_are_taken_as_strings_are() -> None:
    pieces = ["Hello the", "re. It is 5", " km.", ""]
    chunks = [Chunk(piece) for piece in pieces]
    assert list(SpeechStream().iterate(chunks)) == streamed(pieces)
    assert [s.text for s in streamed(pieces)] == ["Hello there.", "It is five kilometers."]


def test_an_async_stream_gives_the_same() -> None:
    async def source() -> AsyncIterator[Chunk]:
        for piece in ("Hello the", "re. It is 5", " km."):
            await asyncio.sleep(0)
            yield Chunk(piece)

    async def collect() -> list[Sentence]:
        return [sentence async for sentence in SpeechStream().aiterate(source())]

    assert asyncio.run(collect()) == streamed(["Hello there. It is 5 km."])


@pytest.mark.real_model
def test_a_models_text_is_read_while_it_comes() -> None:
    with LlamaRunner("smollm2-135m", n_ctx=512) as runner:
        prompt = "Here are three facts about the Moon:\n\n1."
        whole = runner.generate(prompt, max_tokens=96, temperature=0).text
        sentences = list(SpeechStream().iterate(runner.stream(prompt, max_tokens=96, temperature=0)))
    assert len(sentences) >= 2
    assert sentences == SpeechNormalizer().sentences(whole)
    assert not any(char.isdecimal() for sentence in sentences for char in sentence.text)


# --- whatever the input --------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_TEXT, TEXTS))
def test_no_text_fails_and_ssml_is_always_xml(text: str) -> None:
    options: dict[str, Any] = {"code": "read", "emoji": "name", "tables": "rows"}
    root = ElementTree.fromstring(speakable(text, form="ssml", **options))
    assert root.tag == "{http://www.w3.org/2001/10/synthesis}speak"
    for sentence in SpeechNormalizer(SpeechOptions(form="ssml")).sentences(text):
        ElementTree.fromstring(sentence.text)
    plain = speakable(text, **options)
    plain.encode()  # no lone surrogate is left
    assert not any("0" <= char <= "9" for char in plain)


@settings(max_examples=60, deadline=None)
@given(st.one_of(ANY_TEXT, TEXTS), st.sampled_from(["de", "fr", "ja", "ar", "tr", "fr-CH"]))
def test_no_text_fails_in_other_languages(text: str, language: str) -> None:
    ElementTree.fromstring(speakable(text, language, form="ssml", code="read"))
    assert streamed(cut(text, 3, 4), language=language) == SpeechNormalizer(
        SpeechOptions(language=language)
    ).sentences(text)


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789.,:/-–+% $€km°'\"xeEvIVpma()#", max_size=60))
def test_no_number_fails_and_no_digit_is_left(text: str) -> None:
    for language in ("en", "en-GB"):
        assert not any(char.isdecimal() for char in speakable(text, language))


HOSTILE = [
    "1", "`", "`a", "[", "[a](", "(", ")", "()", "*", "*a ", "_", "_a", ".", ". ", "A.", "A. ", "! ", '"', "<",
    "<a ", "<!--", "&", "&a;", "- ", " ", "\n",
    "\r", "> ", "#", "# ", "|", "| a", "|-", "1,", "1.", "1:", "1/", "1-", "1 ", "$1", "$", "\\", "\\(", "http://",
    "a.", "a/", "a@", "@", "#a", "0x",
    "f0", "I", "IV ", "aA", "AB ", "~", "=", "^", "x^2", "👍", "👩\u200d", "\u0301", "你好。", "½", "1e9 ", "11:11 ",
    "° ", "a", "```\n", "{",
    "\\frac{", "(555) ", "1x", "Jan ", "::", "a_", "...a", "'", "1h ", "—", "v1.", "a-", "www.", "[^", "1. ",
    "e.g. ", "\ud800", "\U0001f1e6",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE, ids=[repr(unit) for unit in HOSTILE])
def test_time_is_linear_in_the_length(unit: str) -> None:
    """Eight times the text takes eight times as long: quadratic would be 64 times, and a bad pattern for ever."""

    def seconds(length: int) -> float:
        text = (unit * length)[:length]
        start = time.process_time()
        speakable(text)
        return time.process_time() - start

    seconds(500)
    small = min(seconds(2000) for _ in range(3))
    assert seconds(16000) < 24 * small + 0.2


@pytest.mark.parametrize("unit", ["1", "`[(", "[a](b. ", "The 3 cats paid $5. "])
def test_a_megabyte_is_read_in_a_bounded_time(unit: str) -> None:
    text = (unit * 1_000_000)[:1_000_000]
    start = time.process_time()
    assert speakable(text) is not None
    assert time.process_time() - start < 60


def test_a_megabyte_in_single_characters_holds_little_back() -> None:
    stream = SpeechStream(code="skip")
    for char in "no end in sight, " * 3000:
        stream.push(char)
    assert sum(len(sentence.source) for sentence in stream.flush()) <= 650


def test_the_voice_of_a_block_without_end_is_heard() -> None:
    stream = SpeechStream()
    (said,) = stream.push("```python\nx = 1\n")
    assert said.text == "Code block in Python."
    assert stream.push("y = 2\n") == []
    assert stream.flush() == []


# --- the lexicon ---------------------------------------------------------------------------------------


def test_lexicon_matches_whole_words_and_the_longest_first() -> None:
    lexicon = {"cat": "feline", "cat food": "kibble", "c++": "see plus plus"}
    assert speakable("A cat ate cat food in category C++.", lexicon=lexicon) == (
        "A feline ate kibble in category see plus plus."
    )
    assert speakable("bobcat cats cat's", lexicon=lexicon) == "bobcat cats feline's"


def test_lexicon_case() -> None:
    lexicon = {"nginx": "engine x", "US": "the states", "Polish": "polish language", "polish": "rub"}
    assert speakable("Nginx NGINX nginx", lexicon=lexicon) == "engine x engine x engine x"
    assert speakable("US and us", lexicon=lexicon) == "the states and us"
    assert speakable("Polish the polish", lexicon=lexicon) == "polish language the rub"


def test_lexicon_goes_before_rules_and_is_not_read_again() -> None:
    assert (
        speakable("5 km and NASA", lexicon={"km": "klicks", "NASA": "N-A-5-A"}) == "five klicks and N-A-5-A"
    )
    assert (
        speakable("https://nginx.org and nginx", lexicon={"nginx": "engine x"})
        == "nginx dot org and engine x"
    )


def test_lexicon_forms_with_a_full_stop_end_no_sentence() -> None:
    lexicon = {"Xyz.": "zyx"}
    assert [
        s.source for s in SpeechNormalizer(SpeechOptions(lexicon=lexicon)).sentences("An Xyz. Thing. End.")
    ] == [
        "An Xyz. Thing.",
        "End.",
    ]
    assert speakable("It is Xyz.", lexicon=lexicon) == "It is zyx."


def test_lexicon_ipa() -> None:
    lexicon = Lexicon({"Nguyen": "/ŋwiən/", "gif": Pronunciation("dʒɪf", "jif")})
    assert speakable("Nguyen's GIF", lexicon=lexicon) == "Nguyen's jif"
    assert '<phoneme alphabet="ipa" ph="dʒɪf">jif</phoneme>' in speakable(
        "a gif", lexicon=lexicon, form="ssml"
    )
    assert lexicon["Nguyen"] == "/ŋwiən/" and len(lexicon) == 2 and list(lexicon) == ["Nguyen", "gif"]


def test_lexicon_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.toml"
    path.write_text('nginx = "engine x"\n"C#" = {ipa = "si ʃɑrp", plain = "C sharp"}\n', encoding="utf-8")
    assert speakable("nginx in C#", lexicon=Lexicon.load(path)) == "engine x in C sharp"
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        Lexicon.load(tmp_path / "missing.toml")
    path.write_text("a = \n", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="not TOML"):
        Lexicon.load(path)
    path.write_text("a = {sound = 'x'}\n", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="'a' has \\['sound'\\]"):
        Lexicon.load(path)
    path.write_text("a = 5\n", encoding="utf-8")
    with pytest.raises(ArgumentTypeError, match="'a' is a str"):
        Lexicon.load(path)


@pytest.mark.parametrize(
    ("entries", "error", "says"),
    [
        ({"": "x"}, InvalidArgumentError, "'' has none"),
        ({" \u200b": "x"}, InvalidArgumentError, "has none"),
        ({"a": 5}, ArgumentTypeError, "'a' is a str or a Pronunciation, not int"),
        ({5: "a"}, ArgumentTypeError, "not int"),
        ({"a": "//"}, InvalidArgumentError, "IPA for 'a'"),
        ({"a": "/ /"}, InvalidArgumentError, "IPA for 'a'"),
        ({"a": Pronunciation("")}, InvalidArgumentError, "IPA for 'a'"),
        (["a"], ArgumentTypeError, "mapping of written to spoken forms, not list"),
    ],
)
def test_lexicon_refuses(entries: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Lexicon(entries)


def test_a_large_lexicon_costs_little() -> None:
    lexicon = Lexicon({f"word{index} of many": f"said {index}" for index in range(20_000)})
    start = time.process_time()
    assert speakable("word7 of many. " * 2000, lexicon=lexicon).count("said 7") == 2000
    assert time.process_time() - start < 10


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"form": "xml"}, InvalidArgumentError, "'plain', 'ssml', not 'xml'"),
        ({"code": "say"}, InvalidArgumentError, "'announce', 'skip', 'read', not 'say'"),
        ({"emoji": True}, ArgumentTypeError, "'drop', 'name', not bool"),
        ({"urls": ""}, InvalidArgumentError, "'full', 'host', 'skip'"),
        ({"tables": None}, ArgumentTypeError, "not NoneType"),
        ({"language": "xx"}, UnsupportedLanguageError, "'xx'; there are .*de, .*en, .*fr"),
        ({"language": "../en"}, UnsupportedLanguageError, "there are"),
        ({"language": None}, ArgumentTypeError, "a tag like 'en'"),
        ({"lexicon": 5}, ArgumentTypeError, "not int"),
        ({"from": "plain"}, UnknownParameterError, "did you mean 'form'"),
    ],
)
def test_options_refuse(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        SpeechOptions(**options)
    with pytest.raises(error, match=says):
        SpeechStream(**options)


def test_only_text_is_text() -> None:
    for bad in (None, 5, b"bytes", ["a"]):
        with pytest.raises(ArgumentTypeError, match=type(bad).__name__):
            speakable(bad)  # type: ignore[arg-type]
        stream = SpeechStream()
        with pytest.raises(ArgumentTypeError, match=type(bad).__name__):
            stream.push(bad)  # type: ignore[arg-type]
        with pytest.raises(ArgumentTypeError, match=type(bad).__name__):
            list(stream.iterate([bad]))  # type: ignore[list-item]


def test_a_refused_piece_changes_nothing() -> None:
    stream = SpeechStream()
    stream.push("One. Tw")
    with pytest.raises(ArgumentTypeError):
        stream.push(b"o")  # type: ignore[arg-type]
    assert [s.text for s in stream.push("o.") + stream.flush()] == ["Two."]


@pytest.mark.parametrize(
    ("given_tag", "tag"),
    [("en_us", "en-US"), ("EN-gb", "en-GB"), ("en-AU", "en-GB"), ("fr_ch", "fr-CH"), ("nb", "nb")],
)
def test_language_tags(given_tag: str, tag: str) -> None:
    assert SpeechOptions(language=given_tag).language == tag


def test_every_language_reads_a_number() -> None:
    assert {"en", "en-GB", "de", "fr", "ja", "pt-BR"} <= set(languages())
    for language in languages():
        assert isinstance(speakable("12 x 3,5 y 1999 z 7% 5 €", language), str)


def test_without_num2words_english_works_and_others_name_the_extra() -> None:
    code = """
import sys
sys.modules["num2words"] = None
from llama_runner.errors import MissingExtraError
from llama_runner.prompts.speech import languages, speakable
assert speakable("5 km") == "five kilometers"
assert languages() == ("en", "en-GB", "en-US")
try:
    speakable("5", "de")
except MissingExtraError as error:
    assert "llama-runner[speech]" in str(error), error
else:
    raise SystemExit("no error")
"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
    )


# --- number words --------------------------------------------------------------------------------------


def test_cardinals_agree_with_num2words() -> None:
    from num2words import num2words

    chance = random.Random(5)
    numbers = [*range(2200), *(chance.randrange(10 ** chance.randrange(4, 36)) for _ in range(500))]
    for number in numbers:
        want = num2words(number).replace(",", "")
        assert BRITISH.cardinal(number) == want
        assert AMERICAN.cardinal(number) == want.replace(" and ", " ")
        assert BRITISH.ordinal(number) == num2words(number, to="ordinal").replace(",", "")


def test_years_agree_with_num2words() -> None:
    from num2words import num2words

    for year in [*range(1010, 1999), *range(2010, 2100)]:
        if year % 1000 >= 10:
            want = num2words(year, to="year").replace(" and ", " ").replace("oh-", "oh ")
            assert AMERICAN.year(year) == want, year


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (-7, "minus seven"), (10**63, "one vigintillion"), (10**66, "one" + " zero" * 66)],
)
def test_numbers_at_the_edges(number: int, words: str) -> None:
    assert AMERICAN.cardinal(number) == words


def test_numbers_beyond_pythons_own_limit() -> None:
    assert AMERICAN.cardinal(10**5000) == "one" + " zero" * 5000


# --- the page that says how ----------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "speech.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_pages_examples_print_what_they_say(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "docs/speech.md", "exec"), {})
    printed = capsys.readouterr().out
    promised = re.findall(r"#\s+(.+)", block)
    assert len(promised) >= 2
    for line in promised:
        assert line.strip("… ") in printed


def test_the_page_names_every_option() -> None:
    for field in dataclasses.fields(SpeechOptions):
        assert f"| `{field.name}` |" in PAGE
