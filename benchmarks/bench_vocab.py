"""Tokenizing: 1 MB of text against llama_tokenize itself; and many texts in threads against one after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.native import describe, ratios
from llama_runner.core import Model, Vocab
from llama_runner.core.vocab import native_tokenize_seconds

ROOT = Path(__file__).parent.parent
VOCABS = ("llama-bpe", "qwen2", "deepseek-llm", "phi-3", "bert-bge")


def megabyte() -> str:
    """1 MB of prose and code: the project's own documents and llama.cpp's, over and over."""
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "vendor" / "llama.cpp" / "src" / "llama-vocab.cpp",
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(files))
    return (text * (1_000_000 // len(text) + 1))[:1_000_000]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture(params=VOCABS)
def vocab(request: pytest.FixtureRequest):
    path = ROOT / "vendor" / "llama.cpp" / "models" / f"ggml-vocab-{request.param}.gguf"
    with Model(path, vocab_only=True) as model:
        model.vocab.tokenize(" " * 200)  # what is measured once for each vocabulary
        yield model.vocab


@pytest.mark.benchmark(group="tokenize 1 MB")
def bench_tokenize(benchmark, vocab: Vocab):
    text = megabyte()
    data = text.encode()
    assert vocab.tokenize(text).size == native_tokenize_seconds(vocab, data)[0]
    found = ratios(
        lambda: 1 / seconds(lambda: vocab.tokenize(text)),
        lambda: 1 / native_tokenize_seconds(vocab, data)[1],
        rounds=11,
    )
    benchmark.extra_info.update(rate_over_llama_tokenize=describe(found), target=0.95)
    benchmark.pedantic(vocab.tokenize, args=(text,), rounds=3)


@pytest.mark.benchmark(group="tokenize 1000 texts")
def bench_tokenize_many(benchmark, vocab: Vocab):
    text = megabyte()
    texts = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    found = ratios(
        lambda: 1 / seconds(lambda: vocab.tokenize_many(texts)),
        lambda: 1 / sum(native_tokenize_seconds(vocab, one.encode())[1] for one in texts),
    )
    benchmark.extra_info.update(rate_over_llama_tokenize=describe(found))
    benchmark.pedantic(vocab.tokenize_many, args=(texts,), rounds=3)


@pytest.mark.benchmark(group="tokenize a short text")
def bench_short(benchmark, vocab: Vocab):
    text = "The quick brown fox jumps over the lazy dog."
    data = text.encode()
    mine = statistics.median(seconds(lambda: vocab.tokenize(text)) for _ in range(2000))
    theirs = statistics.median(native_tokenize_seconds(vocab, data)[1] for _ in range(2000))
    benchmark.extra_info.update(microseconds_more=round((mine - theirs) * 1e6, 2))
    benchmark(vocab.tokenize, text)
