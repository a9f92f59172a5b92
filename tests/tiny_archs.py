"""Tiny models of architectures that stand for a feature: learned positions, M-RoPE, encoder and decoder, a rerank head.

As in `tiny_models`, with random weights, and the same bytes for the same arguments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tiny_models import (
    Shape,
    TinyVocab,
    Weights,
    _bert,
    _common_metadata,
    _gated_ffn,
    _head_metadata,
    _llama,
    _write,
    spm_vocab,
    wpm_vocab,
)

HEADS = {"n_head": 2, "n_head_kv": 2, "head_dim": 32}


def write(path: Path, architecture: str, w: Weights, shape: Shape, vocab: TinyVocab, **extra: object) -> Path:
    """The file; keys of `extra` get the architecture in front, as those of every model do."""
    metadata = {"general.name": f"tiny-{architecture}", "general.file_type": 0, **vocab.as_metadata()}
    fields = _common_metadata(shape) | _head_metadata(shape) | extra
    metadata.update({f"{architecture}.{key}": value for key, value in fields.items()})
    return _write(path, architecture, metadata, w.tensors)


def gpt2(path: Path, n_ctx_train: int = 32) -> Path:
    """Positions are learned vectors, `n_ctx_train` of them."""
    vocab, w = spm_vocab(), Weights(1)
    shape = Shape(n_ctx_train=n_ctx_train, n_vocab=len(vocab.tokens), **HEADS)
    n = shape.n_embd
    w.normal("token_embd.weight", (shape.n_vocab, n), 1.0)
    w.normal("position_embd.weight", (n_ctx_train, n), 0.5)
    w.linear("output.weight", n, shape.n_vocab, gain=2.0)
    w.norm("output_norm.weight", n)
    w.bias("output_norm.bias", n)
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            w.norm(f"{prefix}.{name}.weight", n)
            w.bias(f"{prefix}.{name}.bias", n)
        for name, n_in, n_out in (
            ("attn_qkv", n, 3 * n),
            ("attn_output", n, n),
            ("ffn_up", n, shape.n_ff),
            ("ffn_down", shape.n_ff, n),
        ):
            w.linear(f"{prefix}.{name}.weight", n_in, n_out)
            w.bias(f"{prefix}.{name}.bias", n_out)
    return write(path, "gpt2", w, shape, vocab, **{"attention.layer_norm_epsilon": 1e-5})


def qwen2vl(path: Path) -> Path:
    """M-RoPE: a row of embeddings has four positions."""
    vocab, w = spm_vocab(), Weights(2)
    shape = Shape(n_ctx_train=512, n_vocab=len(vocab.tokens), **HEADS)
    _llama(shape, vocab, w)
    for layer in range(shape.n_layer):
        for name in ("q", "k", "v"):
            w.bias(f"blk.{layer}.attn_{name}.bias", shape.n_embd)
    return write(path, "qwen2vl", w, shape, vocab, **{"rope.dimension_sections": [4, 6, 6, 0]})


def t5(path: Path) -> Path:
    """An encoder, and a decoder that attends to what was encoded."""
    vocab, w = spm_vocab(), Weights(3)
    shape = Shape(n_ctx_train=128, n_vocab=len(vocab.tokens), **HEADS)
    n = shape.n_embd
    w.normal("token_embd.weight", (shape.n_vocab, n), 1.0)
    w.linear("output.weight", n, shape.n_vocab, gain=2.0)
    for side in ("enc", "dec"):
        w.norm(f"{side}.output_norm.weight", n)
        for layer in range(shape.n_layer):
            prefix = f"{side}.blk.{layer}"
            w.normal(f"{prefix}.attn_rel_b.weight", (32, shape.n_head), 0.5)
            for kind in ("attn", "cross_attn") if side == "dec" else ("attn",):
                w.norm(f"{prefix}.{kind}_norm.weight", n)
                for name in ("q", "k", "v", "o"):
                    w.linear(f"{prefix}.{kind}_{name}.weight", n, n)
            _gated_ffn(w, prefix, shape)
    return write(
        path, "t5", w, shape, vocab,
        **{"attention.relative_buckets_count": 32, "decoder_start_token_id": vocab.tokens.index("<pad>")},
    )  # fmt: skip


def reranker(path: Path, n_scores: int = 1) -> Path:
    """bert with a classification head."""
    vocab, w = wpm_vocab(), Weights(4)
    shape = Shape(n_ctx_train=512, n_vocab=len(vocab.tokens), pooling="mean", **HEADS)
    extra = _bert(shape, vocab, w).metadata | {"pooling_type": 4}
    w.linear("cls.weight", shape.n_embd, shape.n_embd)
    w.bias("cls.bias", shape.n_embd)
    w.linear("cls.output.weight", shape.n_embd, n_scores)
    w.bias("cls.output.bias", n_scores)
    if n_scores > 1:
        extra["classifier.output_labels"] = [f"label {i}" for i in range(n_scores)]
    return write(path, "bert", w, shape, vocab, **extra)


def token_embeddings(path: Path) -> np.ndarray:
    """The table that a model looks its tokens up in, float32 of shape (n_vocab, n_embd)."""
    import gguf

    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "token_embd.weight":
            return np.array(tensor.data, dtype=np.float32).reshape(tensor.shape[::-1])
    raise AssertionError("no token_embd.weight")
