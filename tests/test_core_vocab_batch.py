"""Many texts at once, texts that llama.cpp's splitter recurses on, Ctrl-C, and the whole vocabulary as arrays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Model, TokenAttr, Vocab
from llama_runner.core.vocab import frame_size, native_tokenize_seconds
from test_tokenizer_vectors import VECTORS, vocab_path


@pytest.fixture
def spm(tiny_model: TinyModelFactory) -> Iterator[Vocab]:
    with Model(tiny_model("llama"), vocab_only=True) as model:
        yield model.vocab


@pytest.fixture
def bpe(tiny_model: TinyModelFactory) -> Iterator[Vocab]:
    with Model(tiny_model("mamba"), vocab_only=True) as model:
        yield model.vocab


def child(code: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run what could kill the process in one of its own."""
    program = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=timeout, check=False)


# ---------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("name", VECTORS)
def test_upstreams_vectors_in_threads(name: str) -> None:
    texts = [text for text, _ in VECTORS[name]] * 40
    expected = [tokens for _, tokens in VECTORS[name]] * 40
    assert sum(len(text.encode()) for text in texts) > 16384  # else no thread is started
    with Model(vocab_path(name), vocab_only=True) as model:
        vocab = model.vocab
        for n_threads in (None, 1, 7):
            found = vocab.tokenize_many(texts, add_special=False, n_threads=n_threads)
            assert [ids.tolist() for ids in found] == expected
        one_by_one = [vocab.detokenize(tokens, unparse_special=True) for tokens in expected]
        assert vocab.detokenize_many(expected * 3, unparse_special=True, n_threads=7) == one_by_one * 3


def test_flat_tokens_and_offsets(spm: Vocab) -> None:
    texts = ["hello world", "", b"once upon a time", "é"]
    arrays = spm.tokenize_many(texts)
    tokens, offsets = spm.tokenize_many(texts, flat=True)
    assert (tokens.dtype, offsets.dtype) == (np.int32, np.int64)
    assert offsets.tolist() == [0, *np.cumsum([len(ids) for ids in arrays])]
    for i, ids in enumerate(arrays):
        assert ids.dtype == np.int32
        assert ids.base is None  # keeps nothing else in memory
        np.testing.assert_array_equal(tokens[offsets[i] : offsets[i + 1]], ids)
        np.testing.assert_array_equal(ids, spm.tokenize(texts[i]))


def test_no_texts_and_any_iterable(spm: Vocab) -> None:
    assert spm.tokenize_many([]) == []
    tokens, offsets = spm.tokenize_many(iter(()), flat=True)
    assert (tokens.shape, offsets.tolist()) == ((0,), [0])
    assert spm.detokenize_many([]) == spm.detokenize_bytes_many(()) == []
    found = spm.tokenize_many(text for text in ("the", "of"))
    assert [ids.tolist() for ids in found] == [spm.tokenize(text).tolist() for text in ("the", "of")]


def test_switches_reach_every_text(spm: Vocab) -> None:
    text = "<|im_start|>user"
    for add_special in (True, False):
        for parse_special in (True, False):
            expected = spm.tokenize(text, add_special, parse_special)
            for ids in spm.tokenize_many([text] * 3, add_special, parse_special):
                np.testing.assert_array_equal(ids, expected)
    ids = [spm.bos, *spm.tokenize(text, add_special=False, parse_special=True)]
    for remove in (True, False):
        for unparse in (True, False):
            expected = spm.detokenize_bytes(ids, remove, unparse)
            assert spm.detokenize_bytes_many([ids, [], np.array(ids)], remove, unparse) == [
                expected,
                b"",
                expected,
            ]


def test_broken_characters_as_bytes_and_as_text(bpe: Vocab) -> None:
    halves = [[token] for token in bpe.tokenize("é", add_special=False)]
    assert b"".join(bpe.detokenize_bytes_many(halves)) == "é".encode()
    assert bpe.detokenize_many(halves) == ["\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("ab\0", errors.InvalidArgumentError, r"texts\[2\] has a NUL"),
        ("ab\ud800", errors.InvalidArgumentError, r"texts\[2\] has a lone surrogate"),
        (b"\xff", errors.InvalidArgumentError, r"texts\[2\] is not UTF-8"),
        (None, errors.ArgumentTypeError, r"texts\[2\]"),
        (7, errors.ArgumentTypeError, r"texts\[2\]"),
        (["a"], errors.ArgumentTypeError, r"texts\[2\]"),
    ],
)
def test_the_first_bad_text_is_named(spm: Vocab, bad: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spm.tokenize_many(["a", "b", bad, None])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([1, 10**6], errors.IndexOutOfRangeError, r"token_lists\[1\]: tokens\[1\]=1000000"),
        ([-1], errors.IndexOutOfRangeError, r"token_lists\[1\]: tokens\[0\]=-1"),
        ("ab", errors.ArgumentTypeError, r"token_lists\[1\]"),
        (3, errors.ArgumentTypeError, r"token_lists\[1\]"),
        ([0.5], errors.ArgumentTypeError, r"token_lists\[1\]"),
    ],
)
def test_the_first_bad_list_is_named(spm: Vocab, bad: object, error: type[Exception], message: str) -> None:
    for call in (spm.detokenize_many, spm.detokenize_bytes_many):
        with pytest.raises(error, match=message):
            call([[1], bad, None])


def test_one_value_is_not_many(spm: Vocab) -> None:
    for bad in ("text", b"text", bytearray(b"x"), 3, None):
        with pytest.raises(errors.ArgumentTypeError, match="texts is a sequence"):
            spm.tokenize_many(bad)
        with pytest.raises(errors.ArgumentTypeError, match="token_lists is a sequence"):
            spm.detokenize_many(bad)
    with pytest.raises(errors.ArgumentTypeError, match=r"token_lists\[0\]"):
        spm.detokenize_many([1, 2, 3])


@pytest.mark.parametrize("bad", [0, -1, 513, 2**40])
def test_threads_out_of_range(spm: Vocab, bad: int) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="n_threads"):
        spm.tokenize_many(["a"], n_threads=bad)
    with pytest.raises(errors.InvalidArgumentError, match="n_threads"):
        spm.detokenize_many([[1]], n_threads=bad)


def test_threads_and_flat_of_the_wrong_type(spm: Vocab) -> None:
    for bad in ("2", 1.5, True):
        with pytest.raises(errors.ArgumentTypeError, match="n_threads"):
            spm.tokenize_many(["a"], n_threads=bad)
    with pytest.raises(errors.ArgumentTypeError, match="flat"):
        spm.tokenize_many(["a"], flat=1)


def test_an_iterable_that_fails_is_not_swallowed(spm: Vocab) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        spm.tokenize_many(texts())


def without_byte_tokens(tiny_model: TinyModelFactory) -> Path:
    with Model(tiny_model("llama"), vocab_only=True) as model:
        tokens = [model.vocab.text(i) for i in range(len(model.vocab))]
    kept = {"<0x0A>"}
    renamed = [
        f"byte {token}" if re.fullmatch("<0x..>", token) and token not in kept else token for token in tokens
    ]
    types = [1 if old != new else None for old, new in zip(tokens, renamed, strict=True)]
    with Model(tiny_model("llama"), vocab_only=True) as model:
        kinds = {TokenAttr.CONTROL: 3, TokenAttr.BYTE: 6, TokenAttr.UNKNOWN: 2}
        types = [
            kind or kinds.get(TokenAttr(int(attr)), 1)
            for kind, attr in zip(types, model.vocab.attrs, strict=True)
        ]
    return tiny_model(
        "llama", metadata={"tokenizer.ggml.tokens": renamed, "tokenizer.ggml.token_type": types}
    )


def test_a_character_without_a_token(tiny_model: TinyModelFactory) -> None:
    with Model(without_byte_tokens(tiny_model), vocab_only=True) as model:
        vocab = model.vocab
        fine = "the " * 3000
        with pytest.raises(
            errors.ModelCapabilityError, match="text has characters that this vocabulary has no token"
        ):
            vocab.tokenize("中")
        for n_threads in (1, 4):
            texts = [fine, fine, "中", fine, "文", fine]
            with pytest.raises(errors.ModelCapabilityError, match=r"texts\[2\] has characters"):
                vocab.tokenize_many(texts, n_threads=n_threads)
        assert vocab.tokenize(fine).size >= 3000


def test_a_bos_that_is_wanted_and_not_there(tiny_model: TinyModelFactory) -> None:
    changes = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.add_bos_token": True,
    }
    with Model(tiny_model("llama", vocab_only=True, metadata=changes), vocab_only=True) as model:
        assert model.vocab.bos is None
        assert model.vocab.add_bos is True
        for call in (model.vocab.tokenize, lambda text: model.vocab.tokenize_many([text])):
            with pytest.raises(errors.ModelCapabilityError, match="wants BOS"):
                call("the")
        assert model.vocab.tokenize("the", add_special=False).size


def test_a_vocabulary_that_llama_cpp_would_never_come_back_from(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", vocab_only=True, metadata={"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(errors.ModelFormatError, match="RWKV vocabulary"):
        Model(path, vocab_only=True)


def test_getters_and_batches_while_the_model_is_closed(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"), vocab_only=True)
    vocab = model.vocab
    wrong: list[BaseException] = []
    begun = threading.Barrier(5)
    calls = [
        lambda: (vocab.bos, vocab.eog_tokens, vocab.add_bos),
        lambda: (vocab.scores, vocab.attrs, vocab.pieces()),
        lambda: vocab.tokenize_many(["hello world " * 500] * 8, n_threads=2),
        lambda: (vocab.text(5), vocab.detokenize([5, 6, 7]), vocab.token_to_piece(5), vocab.special_tokens),
    ]

    def use(call) -> None:
        begun.wait()
        try:
            while True:
                call()
        except (errors.ClosedError, errors.ContextBusyError):
            pass
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait()
    while not model.closed:
        try:
            model.close()
        except errors.ContextBusyError:
            pass
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------------------------------------------- deep and long

RUNS = """
import json, sys, threading
from llama_runner import errors
from llama_runner.core import Model
with Model(sys.argv[1], vocab_only=True) as model:
    vocab = model.vocab
    for unit in json.loads(sys.argv[2]):
        text = unit * (40_000 // len(unit))
        ids = vocab.tokenize(text, add_special=False)
        assert b"".join(map(vocab.token_to_piece, ids.tolist())) == text.encode(), unit
        found = []
        threading.stack_size(128 * 1024)
        thread = threading.Thread(target=lambda: found.append(vocab.tokenize_many([text, "a", text], False)))
        thread.start()
        thread.join()
        assert [each.tolist() for each in found[0]] == [ids.tolist(), vocab.tokenize("a", False).tolist(), ids.tolist()]
print("done")
"""


@pytest.mark.parametrize(
    "name", ["deepseek-llm", "deepseek-coder", "falcon", "gpt-neox", "llama-bpe", "qwen2"]
)
def test_a_run_that_overflows_the_stack_in_llama_cpp(name: str) -> None:
    path = vocab_path(name)
    if not path.is_file():
        pytest.skip("no such vocabulary here")
    done = child(RUNS, path, json.dumps(["a", ".", " ", "中", "aB.", "7 "]))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-1500:]


@pytest.mark.parametrize("pre", ["exaone-moe", "tekken", "gpt-4o", "deepseek-v3", "bloom", "default"])
def test_a_run_in_other_splitters(tiny_model: TinyModelFactory, pre: str) -> None:
    path = tiny_model("mamba", vocab_only=True, metadata={"tokenizer.ggml.pre": pre})
    done = child(RUNS, path, json.dumps(["a", "aB", ".", "ab ", "\u0301", "😀"]))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-1500:]


def test_a_run_that_is_too_long_is_refused(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("mamba", vocab_only=True, metadata={"tokenizer.ggml.pre": "deepseek-v3"})
    with Model(path, vocab_only=True) as model:
        frame = frame_size(model.vocab)
        if frame == 0:
            pytest.skip("the C++ library's std::regex does not recurse here")
        longest = 512 * 2**20 // frame
        words = "word " * (longest // 4)
        with pytest.raises(errors.InvalidArgumentError, match=rf"text has a run of {longest + 1} characters"):
            model.vocab.tokenize("a" * (longest + 1))
        with pytest.raises(
            errors.InvalidArgumentError, match=rf"texts\[1\] has a run of .* at most {longest} "
        ):
            model.vocab.tokenize_many(["a", "a" * (longest + 100)])
        assert model.vocab.tokenize(words, add_special=False).size > len(words) // 5


def test_other_kinds_have_no_such_limit(spm: Vocab) -> None:
    assert frame_size(spm) == 0
    assert spm.tokenize("a" * 1_000_000, add_special=False).size > 10_000


def test_ten_megabytes_and_deep_marks(spm: Vocab, bpe: Vocab) -> None:
    for vocab in (spm, bpe):
        words = "the world of time " * 580_000
        ids = vocab.tokenize(words, add_special=False)
        assert vocab.detokenize(ids) == words
        marks = "e" + "\u0301" * 200_000
        assert vocab.detokenize(vocab.tokenize(marks, add_special=False)) == marks


def test_every_single_byte(spm: Vocab, bpe: Vocab) -> None:
    for vocab in (spm, bpe):
        for byte in range(256):
            data = bytes([byte])
            if 0 < byte < 0x80:
                assert vocab.detokenize_bytes(vocab.tokenize(data, add_special=False)) == data
            else:
                with pytest.raises(errors.InvalidArgumentError, match="NUL" if byte == 0 else "not UTF-8"):
                    vocab.tokenize(data)


INTERRUPTED = """
import signal, sys, time
from llama_runner import errors
from llama_runner.core import Model
model = Model(sys.argv[1], vocab_only=True)
slow = "7" * 9000 + "a" * 9000  # quadratic in llama.cpp: some seconds
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
start = time.monotonic()
try:
    model.vocab.tokenize(slow)
    sys.exit("was not interrupted")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 1.5)
try:
    model.close()
    sys.exit("closed under a thread that is inside")
except errors.ContextBusyError:
    print("busy")
print(model.vocab.tokenize("the of").size > 1)
if sys.argv[2] == "wait":
    while not model.closed:
        time.sleep(0.05)
        try:
            model.close()
        except errors.ContextBusyError:
            pass
print("ends")
"""


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="no timers that signal here")
@pytest.mark.parametrize("ending", ["wait", "leave"])
def test_ctrl_c_in_a_long_text(tiny_model: TinyModelFactory, ending: str) -> None:
    path = tiny_model("mamba", vocab_only=True, metadata={"tokenizer.ggml.pre": "superbpe"})
    done = child(INTERRUPTED, path, ending)
    assert (done.returncode, done.stdout.split("\n")) == (
        0,
        ["interrupted True", "busy", "True", "ends", ""],
    ), done.stderr[-1500:]


def test_the_native_measure_counts_the_same_tokens(spm: Vocab) -> None:
    text = "once upon a time " * 100
    count, seconds = native_tokenize_seconds(spm, text.encode())
    assert count == spm.tokenize(text).size
    assert 0 < seconds < 10


# ---------------------------------------------------------------------------------------------------- all tokens


@pytest.mark.parametrize("name", VECTORS)
def test_arrays_of_the_whole_vocabulary(name: str) -> None:
    with Model(vocab_path(name), vocab_only=True) as model:
        vocab = model.vocab
        n = len(vocab)
        scores, attrs = vocab.scores, vocab.attrs
        assert (scores.dtype, scores.shape, attrs.dtype, attrs.shape) == (np.float32, (n,), np.int32, (n,))
        some = [*np.random.default_rng(0).integers(0, n, 200).tolist(), 0, n - 1]
        for special in (False, True):
            pieces = vocab.pieces(special)
            data, offsets = vocab.pieces(special, flat=True)
            assert (len(pieces), data.dtype, offsets.dtype, len(offsets)) == (n, np.uint8, np.int64, n + 1)
            assert data.tobytes() == b"".join(pieces)
            for token in some:
                assert pieces[token] == vocab.token_to_piece(token, special)
                assert data[offsets[token] : offsets[token + 1]].tobytes() == pieces[token]
        for token in some:
            assert scores[token] == vocab.score(token)
            assert attrs[token] == vocab.attr(token)
            assert bool(attrs[token] & TokenAttr.CONTROL) == vocab.is_control(token)
        scores[:] = 7
        assert not (vocab.scores == 7).any()  # it was a copy
        assert len(vocab.eog_tokens) > 0


def test_attributes_have_names(spm: Vocab) -> None:
    assert spm.attr(spm.bos) is TokenAttr.CONTROL
    assert spm.attr(spm.nl) is TokenAttr.BYTE
    assert np.flatnonzero(spm.attrs & TokenAttr.CONTROL).tolist() == [
        token for token in range(len(spm)) if spm.is_control(token)
    ]


def test_attributes_are_those_of_the_header(llama_cpp_dir: Path) -> None:
    header = (llama_cpp_dir / "include" / "llama.h").read_text(encoding="utf-8")
    found = re.findall(r"LLAMA_TOKEN_ATTR_(\w+)\s*=\s*(\d+)(?:\s*<<\s*(\d+))?", header)
    theirs = {name: int(value) << int(shift or 0) for name, value, shift in found}
    assert len(theirs) > 8
    assert theirs == {name: member.value for name, member in TokenAttr.__members__.items()}


def test_special_tokens_by_name(spm: Vocab, llama_cpp_dir: Path) -> None:
    assert spm.special_tokens == {
        "bos": spm.bos, "eos": spm.eos, "eot": spm.eot, "pad": spm.pad, "nl": spm.nl,
    }  # fmt: skip
    with Model(llama_cpp_dir / "models" / "ggml-vocab-refact.gguf", vocab_only=True) as model:
        vocab = model.vocab
        named = {name: vocab.text(token) for name, token in vocab.special_tokens.items()}
        assert (named["fim_pad"], named["fim_rep"]) == ("<fim_pad>", "<reponame>")
        assert vocab.special_tokens["fim_rep"] == vocab.fim_rep
        assert vocab.special_tokens["fim_pad"] == vocab.fim_pad
        assert "fim_sep" not in named
        assert vocab.fim_sep is None


def test_every_special_token_spelled_in_text(spm: Vocab, llama_cpp_dir: Path) -> None:
    with Model(llama_cpp_dir / "models" / "ggml-vocab-llama-bpe.gguf", vocab_only=True) as model:
        vocab = model.vocab
        for token in np.flatnonzero(vocab.attrs & TokenAttr.CONTROL).tolist():
            text = vocab.text(token)
            assert vocab.tokenize(text, False, True).tolist() == [token]
            plain = vocab.tokenize(text, False, False)
            assert token not in plain
            assert vocab.detokenize(plain) == text


def test_suppressed_tokens(tiny_model: TinyModelFactory, spm: Vocab) -> None:
    assert spm.suppress_tokens.shape == (0,)
    path = tiny_model("llama", vocab_only=True, metadata={"tokenizer.ggml.suppress_tokens": [5, 7]})
    with Model(path, vocab_only=True) as model:
        assert model.vocab.suppress_tokens.dtype == np.int32
        assert model.vocab.suppress_tokens.tolist() == [5, 7]


def test_add_sep_comes_from_the_file(tiny_model: TinyModelFactory, spm: Vocab) -> None:
    assert spm.add_sep is False
    path = tiny_model("bert", metadata={"tokenizer.ggml.add_sep_token": True})
    with Model(path, vocab_only=True) as model:
        assert model.vocab.add_sep is True


def test_a_model_without_a_vocabulary_has_no_arrays(tiny_model: TinyModelFactory) -> None:
    drop = {f"tokenizer.ggml.{name}": None for name in ("tokens", "token_type", "scores", "pre")}
    none = {**drop, "tokenizer.ggml.model": "no_vocab"}
    with Model(tiny_model("llama", chat_template=False, metadata=none)) as model:
        vocab = model.vocab
        calls = [
            lambda: vocab.tokenize_many(["a"]), lambda: vocab.detokenize_many([[1]]), vocab.pieces,
            lambda: vocab.detokenize_bytes_many([[1]]), lambda: vocab.scores, lambda: vocab.attrs,
            lambda: vocab.suppress_tokens, lambda: vocab.special_tokens, lambda: vocab.add_sep,
            lambda: vocab.eog_tokens, lambda: vocab.fim_pad, lambda: frame_size(vocab),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(errors.ModelCapabilityError, match="no vocabulary"):
                call()


def test_one_vocab_is_made_once(tiny_model: TinyModelFactory, spm: Vocab) -> None:
    with (
        Model(tiny_model("mamba"), vocab_only=True) as other,
        pytest.raises(errors.InvalidArgumentError, match="made already"),
    ):
        spm.__init__(other)

    class Unmade(Vocab):
        def __init__(self) -> None:
            pass

    with pytest.raises(errors.InvalidArgumentError, match="never made"):
        Unmade().tokenize("a")
