"""Upstream's tokenizer vectors: every text beside a vendored vocabulary gives exactly upstream's tokens.

`models/ggml-vocab-X.gguf.inp` holds texts and `.out` their tokens, read as upstream's `test-tokenizer-0`
reads: a line of its own separates texts, each has one line of tokens, nothing special is added or parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from llama_runner.core import Model, Vocab

MODELS: Final = Path(__file__).resolve().parent.parent / "vendor" / "llama.cpp" / "models"
SEPARATOR: Final = "\n__ggml_vocab_test__\n"

if not MODELS.is_dir():
    pytest.skip("vendor/llama.cpp is not here (a source distribution?)", allow_module_level=True)

# The vocabularies with vectors at the pinned commit. Written down, so that a run over an empty or a partial
# checkout cannot pass for a complete one; a new one upstream fails until it is listed.
VOCABS: Final = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)

# WordPiece lowers the text and drops its spaces: no way back.
LOSSY: Final = frozenset({"bert-bge"})
# llama.cpp detokenizes these with clean_up_tokenization_spaces, whatever the text was.
CLEANED: Final = frozenset({"falcon", "gemma-4", "gpt-2", "llama-bpe", "mpt", "refact", "starcoder"})


def vocab_path(name: str) -> Path:
    return MODELS / f"ggml-vocab-{name}.gguf"


def read_exactly(path: Path) -> str:
    """The text of a file without newline translation, which would change the vectors."""
    return path.read_bytes().decode("utf-8")


def read_vectors(name: str) -> list[tuple[str, list[int]]]:
    """(text, tokens) pairs, read as upstream reads them."""
    path = vocab_path(name)
    texts = read_exactly(path.with_name(path.name + ".inp")).split(SEPARATOR)
    if not texts[-1]:  # the last text may end with a separator
        texts.pop()
    lines = read_exactly(path.with_name(path.name + ".out")).splitlines()
    if len(texts) != len(lines):
        raise ValueError(f"{name}: {len(texts)} texts, but {len(lines)} lines of tokens")
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


VECTORS: Final = {name: read_vectors(name) for name in VOCABS if vocab_path(name).is_file()}
CASES: Final = [
    pytest.param(name, text, tokens, id=f"{name}-{index:02d}")
    for name, vectors in VECTORS.items()
    for index, (text, tokens) in enumerate(vectors)
]
LOSSLESS_CASES: Final = [case for case in CASES if case.values[0] not in LOSSY]


class VocabShelf:
    """One vocabulary in memory at a time: the cases come vocabulary by vocabulary, and some are large."""

    def __init__(self) -> None:
        self.name = ""
        self.model: Model | None = None

    def get(self, name: str) -> Vocab:
        if self.model is None or self.name != name:
            self.close()
            self.model, self.name = Model(vocab_path(name), vocab_only=True), name
        return self.model.vocab

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
            self.model = None


@pytest.fixture(scope="module")
def shelf() -> Iterator[VocabShelf]:
    vocabs = VocabShelf()
    yield vocabs
    vocabs.close()


def pieces(vocab: Vocab, tokens: list[int]) -> str:
    """Tokens with their texts, for the message of a failure."""
    return " ".join(f"{token}:{detokenize(vocab, [token])!r}" for token in tokens)


def detokenize(vocab: Vocab, tokens: list[int]) -> str:
    """As upstream's `common_detokenize`: nothing removed, special tokens spelled out."""
    array = np.array(tokens, dtype=np.int32)
    return str(vocab.detokenize(array, remove_special=False, unparse_special=True))


def test_every_vocabulary_on_disk_is_tested() -> None:
    with_vectors = {
        path.name.removeprefix("ggml-vocab-").removesuffix(".gguf.inp")
        for path in MODELS.glob("ggml-vocab-*.inp")
    }
    assert with_vectors
    assert sorted(with_vectors) == sorted(VOCABS)
    assert sorted(VECTORS) == sorted(VOCABS)
    assert all(path.with_name(path.name + ".out").is_file() for path in map(vocab_path, VOCABS))


@pytest.mark.parametrize("name", VECTORS)
def test_every_vocabulary_has_vectors(name: str) -> None:
    assert len(VECTORS[name]) > 40
    assert sum(len(tokens) for _, tokens in VECTORS[name]) > 300


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_tokens_are_upstreams(shelf: VocabShelf, name: str, text: str, expected: list[int]) -> None:
    vocab = shelf.get(name)
    got = vocab.tokenize(text, add_special=False, parse_special=False).tolist()
    assert got == expected, (
        f"{name} tokenizes {text!r} differently:\n"
        f"  expected {pieces(vocab, expected)}\n"
        f"  got      {pieces(vocab, got)}"
    )


def cleaned(text: str) -> str:
    """What the clean-up leaves: of its rules the vectors meet this one only."""
    return re.sub(r" (?=[?!.,])", "", text)


@pytest.mark.parametrize(("name", "text", "tokens"), LOSSLESS_CASES)
def test_detokenized_tokens_are_the_text(shelf: VocabShelf, name: str, text: str, tokens: list[int]) -> None:
    got = detokenize(shelf.get(name), tokens)
    expected = cleaned(text) if name in CLEANED else text
    assert got == expected, f"{name} detokenizes {tokens} to {got!r} instead of {expected!r}"


@pytest.mark.parametrize(("name", "text", "tokens"), LOSSLESS_CASES)
def test_joined_pieces_are_the_text(shelf: VocabShelf, name: str, text: str, tokens: list[int]) -> None:
    """Streaming joins pieces, and these are never cleaned; SentencePiece starts with a space of its own."""
    vocab = shelf.get(name)
    got = b"".join(vocab.token_to_piece(token, special=True) for token in tokens).decode("utf-8")
    expected = f" {text}" if text and vocab.type == "spm" else text
    assert got == expected, f"{name}: the pieces of {tokens} join to {got!r} instead of {expected!r}"
