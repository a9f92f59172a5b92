"""``Detokenizer``: text out of tokens as they come, never broken, never different from the whole."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Detokenizer, Model, Vocab
from llama_runner.streaming import TextAssembler
from test_tokenizer_vectors import VECTORS, vocab_path

PROPERTIES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FRACTIONS = st.lists(st.floats(0, 1, exclude_max=True), max_size=40)


@cache
def vocab_of(path: Path) -> Vocab:
    return Model(path, vocab_only=True).vocab


@pytest.fixture
def bpe(tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model("mamba"))


@pytest.fixture
def spm(tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model("llama"))


@pytest.fixture(params=["mamba", "llama", "bert"])
def any_vocab(request: pytest.FixtureRequest, tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model(request.param))


def whole(vocab: Vocab, tokens: list[int], special: bool) -> bytes:
    return b"".join(vocab.token_to_piece(token, special) for token in tokens)


@PROPERTIES
@given(fractions=FRACTIONS, cuts=st.lists(st.integers(0, 40), max_size=4), special=st.booleans())
def test_any_tokens_give_the_text_of_the_whole(
    any_vocab: Vocab, fractions: list[float], cuts: list[int], special: bool
) -> None:
    tokens = [int(fraction * len(any_vocab)) for fraction in fractions]
    data = whole(any_vocab, tokens, special)
    expected = data.decode("utf-8", "replace")

    single = Detokenizer(any_vocab, special=special)
    parts = [single.push(token) for token in tokens]
    assert single.bytes == data
    assert data.endswith(single.pending)
    assert "".join(parts) + single.flush() == expected

    grouped = Detokenizer(any_vocab, special=special)
    edges = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    parts = [grouped.push_many(tokens[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(parts) + grouped.flush() == expected


@PROPERTIES
@given(
    text=st.text(st.sampled_from("aé€😀\u0301 "), max_size=20),
    broken=st.lists(st.integers(0, 80), max_size=5),
)
def test_torn_characters(bpe: Vocab, text: str, broken: list[int]) -> None:
    """Single bytes of characters, some of them lost: what is held back and what is replaced are Python's own."""
    tokens = [int(token) for token in bpe.tokenize(text, add_special=False)]
    for place in broken:
        if tokens:
            tokens.pop(place % len(tokens))
    stream = Detokenizer(bpe)
    seen = ""
    for i, token in enumerate(tokens):
        seen += stream.push(token)
        data = whole(bpe, tokens[: i + 1], False)
        assert len(stream.pending) <= 3
        assert seen == data[: len(data) - len(stream.pending)].decode("utf-8", "replace")
    assert seen + stream.flush() == whole(bpe, tokens, False).decode("utf-8", "replace")


@pytest.mark.parametrize("name", VECTORS)
def test_upstreams_vectors_as_a_stream(name: str) -> None:
    with Model(vocab_path(name), vocab_only=True) as model:
        vocab = model.vocab
        stream = Detokenizer(vocab, special=True)
        assembler = TextAssembler()
        for _, tokens in VECTORS[name]:
            stream.reset()
            text = "".join(map(stream.push, tokens)) + stream.flush()
            assert text == whole(vocab, tokens, True).decode("utf-8", "replace")
            pieces = [assembler.push(vocab.token_to_piece(token, True)) for token in tokens]
            assert text == "".join(pieces) + assembler.flush()


def test_a_character_is_held_back_until_it_is_whole(bpe: Vocab) -> None:
    first, second = bpe.tokenize("é", add_special=False)
    stream = Detokenizer(bpe)
    assert stream.push(first) == ""
    assert stream.pending == "é".encode()[:1]
    assert stream.push(np.int64(second)) == "é"
    assert stream.pending == b""
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"
    assert stream.pending == b""
    assert stream.flush() == ""
    assert stream.bytes == "é".encode() + "é".encode()[:1]


def test_special_tokens_only_when_asked(spm: Vocab) -> None:
    ids = spm.tokenize("<|im_start|>user", add_special=False, parse_special=True)
    assert Detokenizer(spm).push_many(ids) == " user"
    stream = Detokenizer(spm, special=True)
    assert stream.special is True
    assert stream.push_many(ids) == "<|im_start|> user"


def test_a_clone_goes_its_own_way(bpe: Vocab) -> None:
    first, second = bpe.tokenize("é", add_special=False)
    stream = Detokenizer(bpe)
    stream.push(first)
    other = stream.clone()
    assert (other.vocab, other.special, other.pending, other.bytes) == (
        bpe,
        False,
        stream.pending,
        stream.bytes,
    )
    assert other.push(second) == "é"
    assert stream.push_many(bpe.tokenize("a", add_special=False)) == "\ufffda"
    assert (stream.bytes, other.bytes) == ("é".encode()[:1] + b"a", "é".encode())


def test_reset_forgets(bpe: Vocab) -> None:
    stream = Detokenizer(bpe)
    stream.push(bpe.tokenize("é", add_special=False)[0])
    stream.reset()
    assert (stream.pending, stream.bytes, stream.flush()) == (b"", b"", "")
    assert stream.push_many([]) == ""
    assert "0 bytes" in repr(stream)


def test_what_it_refuses_changes_nothing(spm: Vocab) -> None:
    stream = Detokenizer(spm)
    stream.push(spm.nl)
    for bad in (-1, len(spm), 2**40):
        with pytest.raises(errors.IndexOutOfRangeError):
            stream.push(bad)
        with pytest.raises(errors.IndexOutOfRangeError):
            stream.push_many([spm.nl, bad])
    for wrong in (None, 1.5, "a", True):
        with pytest.raises(errors.ArgumentTypeError):
            stream.push(wrong)
    for wrong in (None, 1.5, "ab", [[1]], [None]):
        with pytest.raises(errors.ArgumentTypeError):
            stream.push_many(wrong)
    assert stream.bytes == b"\n"
    with pytest.raises(errors.ArgumentTypeError, match="special"):
        Detokenizer(spm, special=1)
    with pytest.raises(TypeError):
        Detokenizer(None)
    with pytest.raises(errors.InvalidArgumentError, match="made already"):
        stream.__init__(spm)

    class Unmade(Detokenizer):
        def __init__(self) -> None:
            pass

    with pytest.raises(errors.InvalidArgumentError, match="never made"):
        Unmade().push(1)


def test_a_closed_model_and_one_without_vocabulary(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"), vocab_only=True)
    stream = Detokenizer(model.vocab)
    stream.push(model.vocab.nl)
    model.close()
    with pytest.raises(errors.ClosedError):
        stream.push(1)
    with pytest.raises(errors.ClosedError):
        stream.push_many([1])
    assert stream.bytes == b"\n"
    drop = {f"tokenizer.ggml.{name}": None for name in ("tokens", "token_type", "scores", "pre")}
    none = {**drop, "tokenizer.ggml.model": "no_vocab"}
    with Model(tiny_model("llama", chat_template=False, metadata=none)) as empty:
        with pytest.raises(errors.ModelCapabilityError):
            Detokenizer(empty.vocab).push(1)
        with pytest.raises(errors.ModelCapabilityError):
            Detokenizer(empty.vocab).push_many([1])


def test_one_thread_at_a_time(spm: Vocab) -> None:
    """A second thread is turned away from a long push, or comes after it; nothing is torn."""
    stream = Detokenizer(spm)
    tokens = np.full(3_000_000, int(spm.tokenize("hello", add_special=False)[0]), np.int32)
    begun, turned_away = threading.Event(), []

    def work() -> None:
        begun.set()
        stream.push_many(tokens)

    def busy() -> Iterator[None]:
        while thread.is_alive():
            try:
                _ = stream.pending
            except errors.ContextBusyError as error:
                turned_away.append(error)
            yield

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    for _ in busy():
        pass
    thread.join()
    assert turned_away
    assert len(stream.bytes) == len(tokens) * len(b" hello")
