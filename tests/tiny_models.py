"""Tiny GGUF models with random weights, one of each memory kind of llama.cpp.

They are real models in every respect but sense: a usable vocabulary in which any text tokenizes, metadata
that the loader accepts, and weights scaled so that attention, state and logits all depend on the whole
context. A wrong position, a lost cell or a stale state therefore shows in the logits. Files are below 2 MB.

    kind    architecture     memory in llama.cpp                                    vocabulary
    llama   llama            llama_kv_cache (full attention, RoPE, GQA)             SPM with byte fallback
    swa     gemma3           llama_kv_cache_iswa (one sliding, one full layer)      SPM with byte fallback
    mamba   mamba            llama_memory_recurrent                                 byte-level BPE
    hybrid  jamba (or lfm2)  llama_memory_hybrid (recurrent and attention layers)   SPM with byte fallback
    bert    bert             none: non-causal, pooled embeddings                    WPM

The same arguments always give the same bytes. Nothing here imports from the vendored tree.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt

KINDS: Final = ("llama", "swa", "mamba", "hybrid", "bert")
DECODER_KINDS: Final = ("llama", "swa", "mamba", "hybrid")
ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "llama": ("llama",),
    "swa": ("gemma3",),
    "mamba": ("mamba",),
    "hybrid": ("jamba", "lfm2"),
    "bert": ("bert",),
}
VOCABS: Final = ("spm", "bpe", "wpm")
UNKNOWN_ARCHITECTURE: Final = "no-such-architecture"

CHATML_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_POOLING: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3}

# Frequent enough in test prompts that a prompt is a handful of tokens and not only bytes.
_TEXT: Final = """
    the of and to in is it you that he was for on are as with his they at be this have from or one had by word
    but not what all were we when your can said there use an each which she do how their if will up other
    about out many then them these so some her would make like him into time has look two more write go see
    hello world once upon capital france paris system user assistant
"""
_WORDS: Final = tuple(_TEXT.split())

_PRINTABLE: Final = tuple(chr(code) for code in range(0x21, 0x7F))

MetadataValue = str | bool | int | float | list[int] | list[float] | list[str]
Array = npt.NDArray[np.float32]


# ----------------------------------------------------------------------------------------------------
# Vocabularies


@dataclass
class TinyVocab:
    """Tokens with their types and scores, and the metadata that makes llama.cpp read them as meant."""

    metadata: dict[str, MetadataValue]
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)

    def add(self, text: str, kind: gguf.TokenType = gguf.TokenType.NORMAL, score: float = 0.0) -> int:
        self.tokens.append(text)
        self.types.append(int(kind))
        self.scores.append(score)
        return len(self.tokens) - 1

    def logit_scale(self) -> Array:
        """How strongly each token speaks in the output layer.

        Control tokens are silenced (logit 0, never the largest), so that no generation stops by chance; give
        them a logit bias to make one stop. Bytes speak at half strength, so that most of the text is legible.
        """
        loud = {
            int(gguf.TokenType.CONTROL): 0.0,
            int(gguf.TokenType.UNKNOWN): 0.0,
            int(gguf.TokenType.BYTE): 0.5,
        }
        return np.array([loud.get(kind, 1.0) for kind in self.types], dtype=np.float32)

    def as_metadata(self) -> dict[str, MetadataValue]:
        out = dict(self.metadata)
        out["tokenizer.ggml.tokens"] = self.tokens
        out["tokenizer.ggml.token_type"] = self.types
        if self.merges:
            out["tokenizer.ggml.merges"] = self.merges
        else:
            out["tokenizer.ggml.scores"] = self.scores
        return out


def _prefix_chains(marker: str) -> list[tuple[str, str]]:
    """(left, right) merges that build every word from its marker, character by character, without repeats."""
    seen: set[str] = set()
    chains: list[tuple[str, str]] = []
    for word in _WORDS:
        left = marker
        for char in word:
            if left + char not in seen:
                seen.add(left + char)
                chains.append((left, char))
            left += char
    return chains


def spm_vocab() -> TinyVocab:
    """SentencePiece with byte fallback: specials, 256 bytes, ASCII characters, words and their prefixes."""
    vocab = TinyVocab(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.add_space_prefix": True,
        }
    )
    ids = {"unknown": vocab.add("<unk>", gguf.TokenType.UNKNOWN)}
    for role, text in (("bos", "<s>"), ("eos", "</s>"), ("padding", "<pad>")):
        ids[role] = vocab.add(text, gguf.TokenType.CONTROL)
    vocab.add("<|im_start|>", gguf.TokenType.CONTROL)
    ids["eot"] = vocab.add("<|im_end|>", gguf.TokenType.CONTROL)
    for byte in range(256):
        vocab.add(f"<0x{byte:02X}>", gguf.TokenType.BYTE)
    for char in ("▁", *_PRINTABLE):
        vocab.add(char)
    for rank, (left, right) in enumerate(_prefix_chains("▁")):
        vocab.add(left + right, score=-float(rank + 1))
    vocab.metadata.update({f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items()})
    return vocab


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    table = {byte: chr(byte) for byte in plain}
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


def bpe_vocab() -> TinyVocab:
    """Byte-level BPE as in GPT-2: 256 byte symbols, words and their prefixes, specials."""
    vocab = TinyVocab(
        {
            "tokenizer.ggml.model": "gpt2",
            # Not "gpt-2": llama.cpp detokenizes that one without the space before a question mark.
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.add_bos_token": True,
        }
    )
    symbols = _byte_symbols()
    for symbol in symbols:
        vocab.add(symbol)
    for left, right in _prefix_chains(symbols[ord(" ")]):
        vocab.add(left + right)
        vocab.merges.append(f"{left} {right}")
    ids = {
        "bos": vocab.add("<|startoftext|>", gguf.TokenType.CONTROL),
        "eos": vocab.add("<|endoftext|>", gguf.TokenType.CONTROL),
        "padding": vocab.add("<|pad|>", gguf.TokenType.CONTROL),
    }
    vocab.add("<|im_start|>", gguf.TokenType.CONTROL)
    ids["eot"] = vocab.add("<|im_end|>", gguf.TokenType.CONTROL)
    vocab.metadata.update({f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items()})
    return vocab


def wpm_vocab() -> TinyVocab:
    """WordPiece as llama.cpp stores it: word starts carry U+2581, continuations carry nothing.

    Lower case only (the tokenizer lowers its input); what is not ASCII becomes [UNK].
    """
    vocab = TinyVocab({"tokenizer.ggml.model": "bert", "tokenizer.ggml.token_type_count": 2})
    roles = ("padding", "unknown", "cls", "seperator", "mask")  # "seperator" is the key's own spelling
    for role, text in zip(roles, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True):
        vocab.metadata[f"tokenizer.ggml.{role}_token_id"] = vocab.add(text, gguf.TokenType.CONTROL)
    vocab.metadata["tokenizer.ggml.bos_token_id"] = vocab.tokens.index("[CLS]")
    for char in (c for c in _PRINTABLE if c == c.lower()):
        vocab.add("▁" + char)
        vocab.add(char)
    known = set(vocab.tokens)
    for word in _WORDS:
        if "▁" + word not in known:
            vocab.add("▁" + word)
    return vocab


_VOCAB_MAKERS: Final[Mapping[str, Callable[[], TinyVocab]]] = {
    "spm": spm_vocab,
    "bpe": bpe_vocab,
    "wpm": wpm_vocab,
}
_DEFAULT_VOCAB: Final = {"llama": "spm", "swa": "spm", "mamba": "bpe", "hybrid": "spm", "bert": "wpm"}


# ----------------------------------------------------------------------------------------------------
# Weights


@dataclass(frozen=True)
class Shape:
    """The sizes of one tiny model. Heads of 64 fit every KV quantization's block, and GPU kernels."""

    n_ctx_train: int
    n_vocab: int
    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 128
    sliding_window: int = 32
    ssm_inner: int = 128  # llama.cpp accepts an expansion factor of 2 only
    ssm_state: int = 16
    ssm_conv: int = 4
    ssm_dt_rank: int = 4
    pooling: str = "mean"


class Weights:
    """Random tensors by name; each has a generator of its own, so that adding one leaves the others alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tensors: dict[str, Array] = {}

    def normal(self, name: str, shape: Sequence[int], std: float, mean: float = 0.0) -> Array:
        """A tensor of normal values; `shape` is NumPy's, the reverse of ggml's."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        self.tensors[name] = rng.normal(mean, std, size=tuple(shape)).astype(np.float32)
        return self.tensors[name]

    def linear(self, name: str, n_in: int, n_out: int, gain: float = 1.0) -> Array:
        """A matrix that gives outputs of standard deviation `gain` for inputs of standard deviation 1."""
        return self.normal(name, (n_out, n_in), gain / float(np.sqrt(n_in)))

    def norm(self, name: str, width: int) -> None:
        self.normal(name, (width,), 0.1, mean=1.0)

    def bias(self, name: str, width: int) -> None:
        self.normal(name, (width,), 0.02)


@dataclass(frozen=True)
class Blueprint:
    """What one architecture needs besides its vocabulary."""

    metadata: dict[str, MetadataValue]
    tensors: dict[str, Array]


def _common_metadata(shape: Shape, **extra: MetadataValue) -> dict[str, MetadataValue]:
    """Keys every architecture has; the caller prefixes them with its name."""
    base: dict[str, MetadataValue] = {
        "context_length": shape.n_ctx_train,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layer,
        "feed_forward_length": shape.n_ff,
        "vocab_size": shape.n_vocab,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    base.update({key.replace("__", "."): value for key, value in extra.items()})
    return base


def _head_metadata(shape: Shape) -> dict[str, MetadataValue]:
    return {
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
    }


def _ssm_metadata(shape: Shape) -> dict[str, MetadataValue]:
    return {
        "ssm.conv_kernel": shape.ssm_conv,
        "ssm.inner_size": shape.ssm_inner,
        "ssm.state_size": shape.ssm_state,
        "ssm.time_step_rank": shape.ssm_dt_rank,
    }


def _embedding_and_output(w: Weights, shape: Shape, vocab: TinyVocab, embd_std: float = 1.0) -> None:
    """Input table and an output head of its own, with logits of standard deviation about 2."""
    w.normal("token_embd.weight", (shape.n_vocab, shape.n_embd), embd_std)
    head = w.linear("output.weight", shape.n_embd, shape.n_vocab, gain=2.0)
    head *= vocab.logit_scale()[:, None]


def _attention(w: Weights, prefix: str, shape: Shape) -> None:
    """q, k, v and output projections. Scores have a spread of about 2, so that some tokens matter more."""
    w.linear(f"{prefix}.attn_q.weight", shape.n_embd, shape.n_head * shape.head_dim, gain=1.5)
    w.linear(f"{prefix}.attn_k.weight", shape.n_embd, shape.n_head_kv * shape.head_dim, gain=1.5)
    w.linear(f"{prefix}.attn_v.weight", shape.n_embd, shape.n_head_kv * shape.head_dim)
    # Averaging over the context shrinks the values: the gain restores their weight against the residual.
    w.linear(f"{prefix}.attn_output.weight", shape.n_head * shape.head_dim, shape.n_embd, gain=2.0)


def _gated_ffn(w: Weights, prefix: str, shape: Shape) -> None:
    w.norm(f"{prefix}.ffn_norm.weight", shape.n_embd)
    w.linear(f"{prefix}.ffn_gate.weight", shape.n_embd, shape.n_ff)
    w.linear(f"{prefix}.ffn_up.weight", shape.n_embd, shape.n_ff)
    w.linear(f"{prefix}.ffn_down.weight", shape.n_ff, shape.n_embd)


def _ssm(w: Weights, prefix: str, shape: Shape, *, inner_norms: bool) -> None:
    """One Mamba layer. A is negative (the state decays), and the time step is small enough to remember."""
    inner, state, rank = shape.ssm_inner, shape.ssm_state, shape.ssm_dt_rank
    w.linear(f"{prefix}.ssm_in.weight", shape.n_embd, 2 * inner)
    w.linear(f"{prefix}.ssm_conv1d.weight", shape.ssm_conv, inner)
    w.bias(f"{prefix}.ssm_conv1d.bias", inner)
    w.linear(f"{prefix}.ssm_x.weight", inner, rank + 2 * state, gain=2.0)
    w.linear(f"{prefix}.ssm_dt.weight", rank, inner, gain=0.5)
    w.normal(f"{prefix}.ssm_dt.bias", (inner,), 0.5, mean=-2.5)
    decay = -np.linspace(0.25, state / 4, state, dtype=np.float32)
    w.tensors[f"{prefix}.ssm_a"] = np.tile(decay, (inner, 1))
    w.norm(f"{prefix}.ssm_d", inner)
    w.linear(f"{prefix}.ssm_out.weight", inner, shape.n_embd, gain=2.0)
    if inner_norms:
        w.norm(f"{prefix}.ssm_dt_norm.weight", rank)
        w.norm(f"{prefix}.ssm_b_norm.weight", state)
        w.norm(f"{prefix}.ssm_c_norm.weight", state)


def _llama(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    _embedding_and_output(w, shape, vocab)
    w.norm("output_norm.weight", shape.n_embd)
    for layer in range(shape.n_layer):
        w.norm(f"blk.{layer}.attn_norm.weight", shape.n_embd)
        _attention(w, f"blk.{layer}", shape)
        _gated_ffn(w, f"blk.{layer}", shape)
    metadata = _common_metadata(shape) | _head_metadata(shape) | {"rope.dimension_count": shape.head_dim}
    return Blueprint(metadata, w.tensors)


def _gemma3(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    # The graph multiplies embeddings by sqrt(n_embd); undone here, or the token would drown its context.
    _embedding_and_output(w, shape, vocab, embd_std=1.0 / float(np.sqrt(shape.n_embd)))
    w.norm("output_norm.weight", shape.n_embd)
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        for name in ("attn_norm", "post_attention_norm", "post_ffw_norm"):
            w.norm(f"{prefix}.{name}.weight", shape.n_embd)
        for name in ("attn_q_norm", "attn_k_norm"):
            w.norm(f"{prefix}.{name}.weight", shape.head_dim)
        _attention(w, prefix, shape)
        _gated_ffn(w, prefix, shape)
    swa: dict[str, MetadataValue] = {
        "attention.sliding_window": shape.sliding_window,
        # A pattern of 2 makes even layers slide and odd layers see everything.
        "attention.sliding_window_pattern": 2,
        "rope.freq_base": 10000.0,
    }
    return Blueprint(_common_metadata(shape) | _head_metadata(shape) | swa, w.tensors)


def _mamba(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    _embedding_and_output(w, shape, vocab)
    w.norm("output_norm.weight", shape.n_embd)
    for layer in range(shape.n_layer):
        w.norm(f"blk.{layer}.attn_norm.weight", shape.n_embd)
        _ssm(w, f"blk.{layer}", shape, inner_norms=False)
    no_attention: dict[str, MetadataValue] = {"feed_forward_length": 0, "attention.head_count": 0}
    return Blueprint(_common_metadata(shape) | _ssm_metadata(shape) | no_attention, w.tensors)


def _hybrid_heads(shape: Shape) -> dict[str, MetadataValue]:
    """Even layers recurrent (no KV heads), odd layers attention."""
    per_layer = [shape.n_head_kv if layer % 2 else 0 for layer in range(shape.n_layer)]
    return _head_metadata(shape) | {"attention.head_count_kv": per_layer}


def _jamba(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    _embedding_and_output(w, shape, vocab)
    w.norm("output_norm.weight", shape.n_embd)
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        w.norm(f"{prefix}.attn_norm.weight", shape.n_embd)
        if layer % 2:
            _attention(w, prefix, shape)
        else:
            _ssm(w, prefix, shape, inner_norms=True)
        _gated_ffn(w, prefix, shape)
    return Blueprint(_common_metadata(shape) | _hybrid_heads(shape) | _ssm_metadata(shape), w.tensors)


def _lfm2(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    """Short convolutions and attention with RoPE: the hybrid whose attention half knows positions."""
    _embedding_and_output(w, shape, vocab)
    w.norm("token_embd_norm.weight", shape.n_embd)  # despite its name the norm before the output head
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        w.norm(f"{prefix}.attn_norm.weight", shape.n_embd)
        if layer % 2:
            _attention(w, prefix, shape)
            w.norm(f"{prefix}.attn_q_norm.weight", shape.head_dim)
            w.norm(f"{prefix}.attn_k_norm.weight", shape.head_dim)
        else:
            w.linear(f"{prefix}.shortconv.conv.weight", shape.ssm_conv, shape.n_embd)
            w.linear(f"{prefix}.shortconv.in_proj.weight", shape.n_embd, 3 * shape.n_embd)
            w.linear(f"{prefix}.shortconv.out_proj.weight", shape.n_embd, shape.n_embd)
        _gated_ffn(w, prefix, shape)
    metadata = _common_metadata(shape, shortconv__l_cache=shape.ssm_conv)
    return Blueprint(metadata | _hybrid_heads(shape), w.tensors)


def _bert(shape: Shape, vocab: TinyVocab, w: Weights) -> Blueprint:
    n_embd = shape.n_embd
    w.normal("token_embd.weight", (shape.n_vocab, n_embd), 1.0)
    w.normal("token_types.weight", (2, n_embd), 0.1)
    w.normal("position_embd.weight", (shape.n_ctx_train, n_embd), 0.5)
    w.norm("token_embd_norm.weight", n_embd)
    w.bias("token_embd_norm.bias", n_embd)
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        _attention(w, prefix, shape)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            w.bias(f"{prefix}.{name}.bias", n_embd)
        w.linear(f"{prefix}.ffn_up.weight", n_embd, shape.n_ff)
        w.bias(f"{prefix}.ffn_up.bias", shape.n_ff)
        w.linear(f"{prefix}.ffn_down.weight", shape.n_ff, n_embd)
        w.bias(f"{prefix}.ffn_down.bias", n_embd)
        for name in ("attn_output_norm", "layer_output_norm"):
            w.norm(f"{prefix}.{name}.weight", n_embd)
            w.bias(f"{prefix}.{name}.bias", n_embd)
    embedder: dict[str, MetadataValue] = {
        "attention.causal": False,
        "attention.layer_norm_epsilon": 1e-5,
        "pooling_type": _POOLING[shape.pooling],
    }
    return Blueprint(_common_metadata(shape) | _head_metadata(shape) | embedder, w.tensors)


_BUILDERS: Final[Mapping[str, Callable[[Shape, TinyVocab, Weights], Blueprint]]] = {
    "llama": _llama,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "jamba": _jamba,
    "lfm2": _lfm2,
    "bert": _bert,
}

# jamba, lfm2 and bert want the heads to fill the embedding exactly.
_HEADS: Final[Mapping[str, dict[str, int]]] = {
    "jamba": {"n_head": 1, "n_head_kv": 1, "head_dim": 64},
    "lfm2": {"n_head": 1, "n_head_kv": 1, "head_dim": 64},
    "bert": {"n_head": 2, "n_head_kv": 2, "head_dim": 32},
}


# ----------------------------------------------------------------------------------------------------
# Files


def _add(writer: gguf.GGUFWriter, key: str, value: MetadataValue) -> None:
    """Write one key with the type that llama.cpp's loader reads it as."""
    if isinstance(value, bool):  # before int, which it also is
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write(
    path: Path, architecture: str, metadata: Mapping[str, MetadataValue], tensors: Mapping[str, Array]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _template_metadata(chat_template: bool | str, vocab_name: str) -> dict[str, MetadataValue]:
    if isinstance(chat_template, str):
        return {"tokenizer.chat_template": chat_template}
    # WPM has no tokens for turns, and an embedder has no chat.
    return {"tokenizer.chat_template": CHATML_TEMPLATE} if chat_template and vocab_name != "wpm" else {}


def _check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")


def write_tiny_model(
    path: str | Path,
    kind: str = "llama",
    *,
    n_ctx_train: int = 512,
    seed: int = 0,
    chat_template: bool | str = True,
    vocab_only: bool = False,
    architecture: str | None = None,
    vocab: str | None = None,
    pooling: str = "mean",
    metadata: Mapping[str, MetadataValue | None] | None = None,
    **sizes: int,
) -> Path:
    """Write a tiny model of the given memory kind to `path` and return the path.

    `architecture` picks another architecture of the same kind (`ARCHITECTURES`), `vocab` another tokenizer
    (`VOCABS`); `vocab_only` leaves the tensors out. `chat_template` is True for ChatML, False for none, or a
    template. `pooling` is for bert. `sizes` replace fields of `Shape` (n_layer=4, sliding_window=64, …).
    `metadata` is written last and unchecked, None removes a key: the way to hostile headers.
    """
    _check_choice("kind", kind, KINDS)
    architecture = architecture or ARCHITECTURES[kind][0]
    _check_choice(f"architecture of kind {kind}", architecture, ARCHITECTURES[kind])
    vocab_name = vocab or _DEFAULT_VOCAB[kind]
    _check_choice("vocab", vocab_name, VOCABS)
    _check_choice("pooling", pooling, tuple(_POOLING))

    words = _VOCAB_MAKERS[vocab_name]()
    fields: dict[str, Any] = _HEADS.get(architecture, {}) | sizes
    model_shape = Shape(n_ctx_train=n_ctx_train, n_vocab=len(words.tokens), pooling=pooling, **fields)
    blueprint = _BUILDERS[architecture](model_shape, words, Weights(seed))

    merged: dict[str, MetadataValue | None] = {"general.name": f"tiny-{kind}", "general.file_type": 0}
    merged.update({f"{architecture}.{key}": value for key, value in blueprint.metadata.items()})
    merged.update(words.as_metadata())
    merged.update(_template_metadata(chat_template, vocab_name))
    merged.update(metadata or {})
    present = {key: value for key, value in merged.items() if value is not None}
    return _write(Path(path), architecture, present, {} if vocab_only else blueprint.tensors)


def write_with_vocab_of(path: str | Path, source: str | Path) -> Path:
    """Write a tiny llama with the vocabulary of another model, a byte-level BPE: its prompts, for less."""
    fields = gguf.GGUFReader(str(source)).fields
    found = {name: item.contents() for name, item in fields.items() if name.startswith("tokenizer.ggml.")}
    tokens, types, merges = (
        found.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")
    )
    words = TinyVocab(found, tokens, types, [0.0] * len(tokens), merges)
    blueprint = _llama(Shape(n_ctx_train=8192, n_vocab=len(tokens)), words, Weights(0))
    metadata: dict[str, MetadataValue] = {"general.name": "tiny-like", "general.file_type": 0}
    metadata |= {f"llama.{key}": value for key, value in blueprint.metadata.items()}
    return _write(Path(path), "llama", metadata | words.as_metadata(), blueprint.tensors)


def write_unknown_architecture(path: str | Path) -> Path:
    """Write a well-formed GGUF file whose architecture no llama.cpp knows."""
    vocab = spm_vocab()
    shape = Shape(n_ctx_train=512, n_vocab=len(vocab.tokens))
    blueprint = _llama(shape, vocab, Weights(0))
    metadata = {f"{UNKNOWN_ARCHITECTURE}.{key}": value for key, value in blueprint.metadata.items()}
    return _write(Path(path), UNKNOWN_ARCHITECTURE, metadata | vocab.as_metadata(), blueprint.tensors)


def write_truncated(path: str | Path, source: str | Path, n_bytes: int) -> Path:
    """Write the first `n_bytes` of `source` to `path`; a negative number counts from the end of the file."""
    data = Path(source).read_bytes()
    kept = data[:n_bytes]
    if len(kept) == len(data):
        raise ValueError(f"{n_bytes} bytes do not truncate a file of {len(data)}")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(kept)
    return target
