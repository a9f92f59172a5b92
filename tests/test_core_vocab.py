"""``Vocab``: text to tokens and back, special tokens, and what it refuses."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Model, Vocab

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
PROPERTIES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@cache
def vocab_of(path: Path) -> Vocab:
    return Model(path, vocab_only=True).vocab


@pytest.fixture
def spm(tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model("llama"))


@pytest.fixture
def bpe(tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model("mamba"))


@pytest.fixture
def wpm(tiny_model: TinyModelFactory) -> Vocab:
    return vocab_of(tiny_model("bert"))


# ---------------------------------------------------------------------------------------------------- there and back


@PROPERTIES
@given(text=TEXTS)
@example(text="")
@example(text="hello  world\n\t the \U0001f600 é")
def test_byte_level_text_survives(bpe: Vocab, text: str) -> None:
    ids = bpe.tokenize(text, add_special=False)
    assert ids.dtype == np.int32
    assert bpe.detokenize_bytes(ids) == text.encode()
    assert b"".join(bpe.token_to_piece(token) for token in ids) == text.encode()


@PROPERTIES
@given(text=TEXTS)
@example(text=" leading and trailing ")
def test_sentencepiece_text_survives(spm: Vocab, text: str) -> None:
    # this vocabulary puts one space before the text and takes it away again; U+2581 is its own sign for a space
    ids = spm.tokenize(text, add_special=False)
    assert spm.detokenize(ids) == text.replace("▁", " ")
    with_bos = spm.tokenize(text)
    np.testing.assert_array_equal(with_bos, [spm.bos, *ids])


@PROPERTIES
@given(text=TEXTS)
def test_bytes_and_str_are_the_same(spm: Vocab, text: str) -> None:
    expected = spm.tokenize(text)
    np.testing.assert_array_equal(spm.tokenize(text.encode()), expected)
    np.testing.assert_array_equal(spm.tokenize(bytearray(text.encode())), expected)


def test_words_are_single_tokens(spm: Vocab) -> None:
    ids = spm.tokenize("hello world", add_special=False)
    assert [spm.text(int(token)) for token in ids] == ["▁hello", "▁world"]


def test_add_special(spm: Vocab) -> None:
    assert spm.add_bos is True
    assert spm.add_eos is False
    assert spm.tokenize("the")[0] == spm.bos
    assert spm.bos not in spm.tokenize("the", add_special=False)
    assert spm.tokenize("", add_special=False).shape == (0,)


def test_parse_special_only_when_asked(spm: Vocab) -> None:
    text = "<|im_start|>user"
    read = spm.tokenize(text, add_special=False, parse_special=True)
    plain = spm.tokenize(text, add_special=False)
    start = next(i for i in range(len(spm)) if spm.text(i) == "<|im_start|>")
    assert start in read
    assert start not in plain
    assert spm.detokenize(plain).strip() == text
    assert "<|im_start|>" not in spm.detokenize(read)
    assert "<|im_start|>" in spm.detokenize(read, unparse_special=True)
    assert spm.token_to_piece(start) == b""
    assert spm.token_to_piece(start, special=True) == b"<|im_start|>"


def test_remove_special(spm: Vocab) -> None:
    ids = [spm.bos, *spm.tokenize("the", add_special=False)]
    assert spm.detokenize(ids, remove_special=True, unparse_special=True).strip() == "the"
    assert spm.detokenize(ids, unparse_special=True).startswith("<s>")


def test_half_a_character_is_replaced_in_text_and_kept_in_bytes(bpe: Vocab) -> None:
    ids = bpe.tokenize("é", add_special=False)
    assert len(ids) == 2
    assert bpe.detokenize_bytes(ids[:1]) == "é".encode()[:1]
    assert bpe.detokenize(ids[:1]) == "\ufffd"


def test_lstrip(spm: Vocab) -> None:
    token = int(spm.tokenize("hello", add_special=False)[0])
    assert spm.token_to_piece(token) == b" hello"
    assert spm.token_to_piece(token, lstrip=1) == b"hello"
    assert spm.token_to_piece(token, lstrip=2**31 - 1) == b"hello"


def test_long_text_needs_no_second_look(spm: Vocab) -> None:
    words = "the world of time " * 20_000
    ids = spm.tokenize(words, add_special=False)
    assert len(ids) > 60_000
    assert spm.detokenize(ids) == words


def test_a_piece_longer_than_the_small_buffer(tiny_model: TinyModelFactory) -> None:
    name = "<|" + "very_long_" * 40 + "|>"
    vocab = Model(tiny_model("mamba"), vocab_only=True).vocab
    tokens = [vocab.text(i) for i in range(len(vocab))]
    tokens[tokens.index("<|im_start|>")] = name
    other = Model(tiny_model("mamba", metadata={"tokenizer.ggml.tokens": tokens}), vocab_only=True).vocab
    token = int(other.tokenize(name, add_special=False, parse_special=True)[0])
    assert other.token_to_piece(token, special=True) == name.encode()
    assert other.detokenize([token] * 50, unparse_special=True) == name * 50


def test_many_threads_tokenize_at_once(spm: Vocab) -> None:
    text = "hello world once upon a time " * 2000
    expected = spm.tokenize(text)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(spm.tokenize(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(ids, expected) for ids in found)


# ---------------------------------------------------------------------------------------------------- facts


def test_types_and_length(spm: Vocab, bpe: Vocab, wpm: Vocab) -> None:
    assert [v.type for v in (spm, bpe, wpm)] == ["spm", "bpe", "wpm"]
    for vocab in (spm, bpe, wpm):
        assert len(vocab) == vocab.n_tokens > 200
        assert vocab.type in repr(vocab)


def test_special_tokens(spm: Vocab, wpm: Vocab) -> None:
    assert spm.text(spm.bos) == "<s>"
    assert spm.text(spm.eos) == "</s>"
    assert spm.text(spm.eot) == "<|im_end|>"
    assert spm.text(spm.pad) == "<pad>"
    assert (spm.sep, spm.mask, spm.fim_pre, spm.fim_suf, spm.fim_mid) == (None,) * 5
    assert spm.token_to_piece(spm.nl) == b"\n"
    assert wpm.text(wpm.sep) == "[SEP]"
    assert wpm.text(wpm.mask) == "[MASK]"
    assert wpm.text(wpm.bos) == "[CLS]"


def test_fill_in_the_middle_tokens(llama_cpp_dir: Path) -> None:
    vocab = vocab_of(llama_cpp_dir / "models" / "ggml-vocab-starcoder.gguf")
    assert [vocab.text(t) for t in (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid)] == [
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
    ]


def test_end_of_generation_and_control(spm: Vocab) -> None:
    ends = {i for i in range(len(spm)) if spm.is_eog(i)}
    assert {spm.eos, spm.eot} <= ends
    assert spm.eog_tokens == sorted(ends)
    controls = {spm.text(i) for i in range(len(spm)) if spm.is_control(i)}
    assert controls == {"<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"}
    assert spm.is_eog(np.int64(spm.eos)) is True


def test_scores_and_attributes_come_from_the_file(spm: Vocab) -> None:
    ids = spm.tokenize("hello", add_special=False)
    prefixes = [i for i in range(len(spm)) if spm.score(i) < 0]
    assert int(ids[0]) in prefixes
    assert spm.score(spm.bos) == 0.0
    kinds = {spm.attr(i) for i in (spm.bos, int(ids[0]), spm.nl)}
    assert len(kinds) == 3  # control, normal, byte


def test_one_object_for_one_model(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    vocab = model.vocab
    assert model.vocab is vocab
    assert vocab.model is model


@pytest.mark.real_model
def test_the_real_vocabulary(smollm2: Path) -> None:
    vocab = vocab_of(smollm2)
    assert len(vocab) == 49152
    ids = vocab.tokenize("<|im_start|>user\nHello", parse_special=True)
    assert ids[0] == vocab.bos == 1
    assert (
        vocab.detokenize(vocab.tokenize("naïve café \U0001f600"), remove_special=True)
        == "naïve café \U0001f600"
    )


# ---------------------------------------------------------------------------------------------------- refusals


def test_text_that_no_model_reads(spm: Vocab) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="NUL character at byte 2"):
        spm.tokenize("ab\0c")
    with pytest.raises(errors.InvalidArgumentError, match="lone surrogate"):
        spm.tokenize("ab\ud800c")
    with pytest.raises(errors.InvalidArgumentError, match="not UTF-8"):
        spm.tokenize(b"ab\xffc")
    for bad in (None, 3, 1.5, [], ["a"], object(), np.array([1])):
        with pytest.raises(errors.ArgumentTypeError, match="text"):
            spm.tokenize(bad)
    assert spm.tokenize("abc").size > 1


@pytest.mark.parametrize("flag", ["no", 1, None, np.array([1, 2])])
def test_switches_are_bools(spm: Vocab, flag: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="add_special"):
        spm.tokenize("the", add_special=flag)
    with pytest.raises(errors.ArgumentTypeError, match="parse_special"):
        spm.tokenize("the", parse_special=flag)


@pytest.mark.parametrize("name", ["token_to_piece", "is_eog", "is_control", "text", "score", "attr"])
def test_token_ids_outside_the_vocabulary(spm: Vocab, name: str) -> None:
    call = getattr(spm, name)
    call(0)
    call(len(spm) - 1)
    for bad in (-1, len(spm), 2**31, 2**70, -(2**70)):
        with pytest.raises(errors.IndexOutOfRangeError, match="token"):
            call(bad)
    for wrong in (None, True, 1.0, "1", [1], float("nan")):
        with pytest.raises(errors.ArgumentTypeError, match="token"):
            call(wrong)


@pytest.mark.parametrize("bad", [[-1], [10**6], [1, 2, 2**40], np.array([2**63], np.uint64)])
def test_detokenize_names_the_first_bad_id(spm: Vocab, bad: list[int]) -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match=rf"tokens\[{len(bad) - 1}\]"):
        spm.detokenize(bad)


@pytest.mark.parametrize(
    "bad", [None, 3, "abc", [None], [1.5], [True], [[1, 2]], [[1], [2, 3]], {1: 2}, [2**70], object()]
)
def test_detokenize_wants_a_flat_sequence_of_ints(spm: Vocab, bad: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="tokens"):
        spm.detokenize(bad)


def test_detokenize_takes_any_int_array(spm: Vocab) -> None:
    ids = spm.tokenize("hello world the of", add_special=False)
    expected = spm.detokenize(ids)
    assert spm.detokenize(ids.tolist()) == expected
    assert spm.detokenize(tuple(ids)) == expected
    assert spm.detokenize(ids.astype(np.uint16)) == expected
    assert spm.detokenize(np.repeat(ids, 2)[::2]) == expected
    frozen = ids.copy()
    frozen.flags.writeable = False
    assert spm.detokenize(frozen) == expected
    assert spm.detokenize([]) == ""


def test_a_model_without_a_vocabulary(tiny_model: TinyModelFactory) -> None:
    names = ("tokens", "token_type", "scores", "pre")
    drop = {f"tokenizer.ggml.{name}": None for name in names}
    model = Model(
        tiny_model("llama", chat_template=False, metadata={**drop, "tokenizer.ggml.model": "no_vocab"})
    )
    vocab = model.vocab
    assert vocab.type == "none"
    calls = {
        "tokenize": ("a",), "detokenize": ([1],), "token_to_piece": (1,), "is_eog": (1,), "is_control": (1,),
        "text": (1,), "score": (1,), "attr": (1,),
    }  # fmt: skip
    for name, arguments in calls.items():
        with pytest.raises(errors.ModelCapabilityError, match="no vocabulary"):
            getattr(vocab, name)(*arguments)
    with pytest.raises(errors.ModelCapabilityError):
        _ = vocab.bos
