"""A llama of one layer in NumPy: the logits of tokens at any positions, gaps and duplicates included.

The keys and values of a first layer know their token and its position alone, so that what an edited KV memory must
answer with can be computed without one. Reads the tiny models of ``tiny_models``; nothing in it comes from llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class OneLayerLlama:
    """The model in a GGUF file with one layer and F32 weights."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.w = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
        assert "blk.1.attn_q.weight" not in self.w
        facts = {
            name: reader.get_field(f"llama.{name}")
            for name in ("attention.head_count", "attention.key_length")
        }
        self.n_head, self.head = (int(field.contents()) for field in facts.values() if field is not None)

    def logits(self, tokens: npt.ArrayLike, positions: npt.ArrayLike) -> Array:
        """What follows the last of the tokens, which attends to those at its own position and before."""
        w, pos = self.w, np.asarray(positions)
        x = w["token_embd.weight"][np.asarray(tokens)]
        normed = rms(x) * w["blk.0.attn_norm.weight"]
        k = self.rotate((normed @ w["blk.0.attn_k.weight"].T).reshape(len(x), -1, self.head), pos)
        v = (normed @ w["blk.0.attn_v.weight"].T).reshape(len(x), -1, self.head)
        q = self.rotate((normed[-1:] @ w["blk.0.attn_q.weight"].T).reshape(1, -1, self.head), pos[-1:])[0]
        group = self.n_head // k.shape[1]
        out = []
        for head in range(self.n_head):
            scores = k[:, head // group] @ q[head] / np.sqrt(self.head)
            scores[pos > pos[-1]] = -np.inf
            weights = np.exp(scores - scores.max())
            out.append(weights @ v[:, head // group] / weights.sum())
        x = x[-1] + np.concatenate(out) @ w["blk.0.attn_output.weight"].T
        normed = rms(x) * w["blk.0.ffn_norm.weight"]
        gate = normed @ w["blk.0.ffn_gate.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (normed @ w["blk.0.ffn_up.weight"].T))
            @ w["blk.0.ffn_down.weight"].T
        )
        return np.asarray(rms(x) * w["output_norm.weight"] @ w["output.weight"].T)

    def rotate(self, x: Array, pos: npt.NDArray[np.integer]) -> Array:
        """RoPE over neighbouring pairs."""
        angle = pos[:, None, None] * 10000.0 ** (-np.arange(0, self.head, 2) / self.head)
        even, odd = x[..., ::2], x[..., 1::2]
        turned = np.stack(
            [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], -1
        )
        return turned.reshape(x.shape)


def rms(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5))
