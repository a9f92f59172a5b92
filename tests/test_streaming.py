"""TextAssembler against an oracle that sees the whole text at once."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError
from llama_runner.streaming import TextAssembler


def oracle(data: bytes, stops: tuple[str, ...]) -> tuple[str, str | None]:
    text = data.decode(errors="replace")
    found = [(text.index(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def assemble(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    assembler = TextAssembler(stops)
    emitted = [assembler.push(piece) for piece in pieces]
    emitted.append(assembler.flush())
    return emitted, assembler.stopped


# Few letters, so that stop strings overlap, repeat and begin inside each other all the time.
letters = st.text(alphabet="abé€😀\ufffd", max_size=40)
# Characters of two, three and four bytes, torn and mixed with bytes that are never valid.
dirty = st.lists(
    st.sampled_from([b"a", b"b", "é".encode(), "😀".encode(), b"\xf0\x9f", b"\xff", b"\x80"]), max_size=20
)
data_strategy = letters.map(str.encode) | dirty.map(b"".join) | st.binary(max_size=40)
stop_strategy = st.lists(st.text(alphabet="abé€😀\ufffd", min_size=1, max_size=6), max_size=5).map(tuple)
places_strategy = st.lists(st.integers(0, 200), max_size=30)


@settings(max_examples=1500, deadline=None)
@given(data_strategy, stop_strategy, places_strategy)
def test_same_text_and_stop_however_the_bytes_are_cut(
    data: bytes, stops: tuple[str, ...], places: list[int]
) -> None:
    expected, stop = oracle(data, stops)
    emitted, stopped = assemble(cut(data, places), stops)
    assert "".join(emitted) == expected
    assert stopped == stop


@settings(max_examples=300, deadline=None)
@given(data_strategy, stop_strategy)
def test_byte_by_byte_is_always_a_prefix_and_never_ahead(data: bytes, stops: tuple[str, ...]) -> None:
    assembler = TextAssembler(stops)
    emitted = ""
    for index in range(len(data)):
        emitted += assembler.push(data[index : index + 1])
        # Whatever follows, what was shown stays right: it is a prefix of every possible ending.
        for ending in (b"", b"a", b"ab", *(stop.encode() for stop in stops)):
            assert oracle(data[: index + 1] + ending, stops)[0].startswith(emitted)
        if assembler.stopped is not None:
            break
    assert emitted + assembler.flush() == oracle(data, stops)[0]


@settings(max_examples=300, deadline=None)
@given(data_strategy, stop_strategy, places_strategy)
def test_nothing_is_held_back_without_need(data: bytes, stops: tuple[str, ...], places: list[int]) -> None:
    """What is held is either bytes of one character, or text that some stop string goes on from."""
    assembler = TextAssembler(stops)
    emitted, seen = "", b""
    for piece in cut(data, places):
        emitted += assembler.push(piece)
        seen += piece
        if assembler.stopped is not None:
            return
        # Up to three bytes at the end may be the beginning of a character; without them all is text.
        held_choices = [
            whole[len(emitted) :]
            for tail in range(min(3, len(seen)) + 1)
            if (whole := seen[: len(seen) - tail].decode(errors="replace")).startswith(emitted)
        ]
        assert any(not held or any(stop.startswith(held) for stop in stops) for held in held_choices)


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        (("END",), [b"one E", b"N", b"D two"], "one ", "END"),
        (("END",), [b"one EN", b"OUGH"], "one ENOUGH", None),
        (("b", "abc"), [b"a", b"b", b"d"], "a", "b"),  # abc could have started earlier, and did not
        (("b", "abc"), [b"a", b"b", b"c"], "", "abc"),
        (("ab", "abc"), [b"xab", b"c"], "x", "abc"),  # the same start: the longest
        (("ab", "abc"), [b"xab"], "x", "ab"),  # the end came first
        (("aab",), [b"a", b"a", b"a", b"b"], "a", "aab"),
        (("é",), [b"caf\xc3", b"\xa9 noir"], "caf", "é"),
        (("😀",), [b"\xf0\x9f", b"\x98\x80"], "", "😀"),
        (("\ufffd",), [b"a\xf0\x9f"], "a", "\ufffd"),  # torn at the very end
        (("^", "]", "-", "\\"), [b"a]b"], "a", "]"),
        (("\0",), [b"a\0b"], "a", "\0"),
    ],
)
def test_examples(stops: tuple[str, ...], pieces: list[bytes], text: str, stopped: str | None) -> None:
    emitted, found = assemble(pieces, stops)
    assert ("".join(emitted), found) == (text, stopped)


def test_holds_half_a_character_and_a_possible_stop() -> None:
    assembler = TextAssembler(("<|end|>",))
    assert assembler.push(b"caf\xc3") == "caf"
    assert assembler.push(b"\xa9 <|e") == "é "
    assert assembler.push(b"x") == "<|ex"
    assert assembler.push(b"<|end|>never") == ""
    assert assembler.stopped == "<|end|>"
    assert assembler.push(b"shown") == ""
    assert assembler.flush() == ""


def test_torn_end_is_one_replacement_character() -> None:
    assembler = TextAssembler()
    assert assembler.push(b"a\xf0\x9f\x98") == "a"
    assert assembler.flush() == "\ufffd"
    assert assembler.flush() == ""


def test_one_string_is_one_stop() -> None:
    assembler = TextAssembler("ab")
    assert assembler.push(b"a_ab") == "a_"
    assert assembler.stopped == "ab"


def test_refuses_what_is_no_stop_string() -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        TextAssembler(("a", ""))
    with pytest.raises(ArgumentTypeError, match="int"):
        TextAssembler((1,))  # type: ignore[arg-type]


def seconds(stop: str, text: bytes) -> float:
    assembler = TextAssembler((stop,))
    start = time.perf_counter()
    for byte in text:
        assembler.push(bytes((byte,)))
    assembler.flush()
    return time.perf_counter() - start


def test_cost_grows_with_the_text_alone() -> None:
    """Each character opens a match of half the stop string, and the next one fails it."""
    text = b"a" * 20_000
    short = min(seconds("a" * 10 + "b", text) for _ in range(3))
    long = min(seconds("a" * 5_000 + "b", text) for _ in range(3))
    assert long < 5 * short  # a scan anew for every piece would make it about 500
