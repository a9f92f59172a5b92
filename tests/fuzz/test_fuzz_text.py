"""20,000 nasty texts through the tokenizers of several vocabularies, in this process: ids in range, no byte lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_runner.core import Detokenizer, Model, Vocab

MODELS: Final = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "models"
# Name, and what precedes the text in its joined pieces; None where text does not survive.
VOCABS: Final = {
    "llama-bpe": b"", "qwen2": b"", "deepseek-llm": b"", "falcon": b"", "gpt-2": b"", "starcoder": b"",
    "llama-spm": b" ", "phi-3": b" ", "bert-bge": None, "nomic-bert-moe": None,
}  # fmt: skip
A_BATCH: Final = 50
BATCHES: Final = 40

if not MODELS.is_dir():
    pytest.skip("vendor/llama.cpp is not here (a source distribution?)", allow_module_level=True)

EDGES: Final = [0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x10FFFF]
BLOCKS: Final = [
    (0x20, 0x7E), (0x01, 0x1F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0xEFF), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2580, 0x259F), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0xE0000, 0xE007F), (0x1, 0xD7FF),
    (0xE000, 0x10FFFF),
]  # fmt: skip
WORDS: Final = [
    "the",
    " of",
    "I'll",
    "it's",
    "naïve",
    "def f(x):\n",
    "\r\n",
    "\n\n\n",
    "    ",
    "\t",
    "1234567",
    "...",
    " '",
]


def nasty_text(dice: random.Random, specials: list[str]) -> str:
    """Words, odd characters, runs of one of them, and special tokens spelled out, whole or torn."""
    parts: list[str] = []
    for _ in range(dice.randrange(8)):
        kind = dice.randrange(6)
        if kind == 0:
            parts.append(dice.choice(WORDS))
        elif kind == 1:
            low, high = dice.choice(BLOCKS)
            parts.extend(chr(dice.randint(low, high)) for _ in range(dice.randrange(12)))
        elif kind == 2:
            low, high = dice.choice(BLOCKS)
            parts.append(chr(dice.randint(low, high)) * dice.randrange(120))
        elif kind == 3:
            parts.append(chr(dice.choice(EDGES)))
        elif kind == 4 and specials:
            name = dice.choice(specials)
            parts.append(name[: dice.choice([len(name), len(name), dice.randrange(len(name) + 1)])])
        else:
            parts.append(" " * dice.randrange(40))
    return "".join(parts)


@pytest.fixture(scope="module", params=VOCABS)
def vocab(request: pytest.FixtureRequest) -> Iterator[tuple[Vocab, list[str], bytes | None]]:
    with Model(MODELS / f"ggml-vocab-{request.param}.gguf", vocab_only=True) as model:
        specials = [
            model.vocab.text(int(token)) for token in np.flatnonzero(model.vocab.attrs & 0b11001)[:50]
        ]
        yield model.vocab, [name for name in specials if "\0" not in name], VOCABS[request.param]


@settings(
    max_examples=BATCHES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**64 - 1), add_special=st.booleans(), parse_special=st.booleans())
def test_fuzzed_text(
    vocab: tuple[Vocab, list[str], bytes | None], seed: int, add_special: bool, parse_special: bool
) -> None:
    words, specials, prefix = vocab
    dice = random.Random(seed)
    texts = [nasty_text(dice, specials) for _ in range(A_BATCH)]
    tokens, offsets = words.tokenize_many(texts, add_special, parse_special, n_threads=2, flat=True)
    assert ((tokens >= 0) & (tokens < len(words))).all()
    bare = tokens if not add_special else words.tokenize_many(texts, False, parse_special, flat=True)[0]
    if add_special:
        assert len(bare) <= len(tokens)
        offsets = words.tokenize_many(texts, False, parse_special, flat=True)[1]
    lists = [bare[a:b] for a, b in itertools.pairwise(offsets)]
    assert len(words.detokenize_many(lists)) == len(texts)
    if prefix is None:
        return
    singles = {piece for piece in words.pieces(special=True) if len(piece) == 1}
    missing = bytes(byte for byte in range(256) if bytes([byte]) not in singles)
    stream = Detokenizer(words, special=True)
    for text, ids in zip(texts, lists, strict=True):
        stream.reset()
        found = stream.push_many(ids) + stream.flush()
        if prefix == b"":
            # llama.cpp says nothing and leaves bytes out that the vocabulary has no token for
            kept = text.encode().translate(None, delete=missing)
            assert stream.bytes == kept
            assert found == kept.decode("utf-8", "replace")
        elif not parse_special:  # a space is added after each special token; U+2581 is this kind's own space
            assert found.replace("▁", " ") == (" " + text.replace("▁", " ") if text else "")
