"""LoRA adapters and control vectors for the tiny models, and the models that a LoRA amounts to once it is merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from llama_runner.gguf import GGUFHeader, read_gguf_header
from tiny_models import MetadataValue, _add

Array = npt.NDArray[np.generic]
Pairs = dict[str, tuple[Array, Array]]


def matrices(model: Path) -> list[str]:
    """Names of the weights of a tiny llama that an adapter can change."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = [tensor.name for tensor in read_gguf_header(model).tensors]
    return [name for name in names if name == "output.weight" or name.split(".")[-2] in parts]


def random_pairs(
    model: Path, names: Iterable[str] | None = None, *, rank: int = 4, seed: int = 0, gain: float = 0.3
) -> Pairs:
    """Matrices A (rank, n_in) and B (n_out, rank) for each weight, swapped for the embeddings as llama.cpp wants it."""
    rng = np.random.default_rng(seed)
    shapes = {tensor.name: tensor.shape for tensor in read_gguf_header(model).tensors}
    pairs: Pairs = {}
    for name in names if names is not None else matrices(model):
        n_in, n_out, *rest = shapes[name]
        if name.endswith("token_embd.weight"):
            a, b = (n_out, rank), (n_in, rank)
        else:
            a, b = (rank, n_in), (n_out, rank)
        scale = gain / np.sqrt(rank * n_in)
        pairs[name] = (
            rng.normal(0, 1, (*rest, *a)).astype(np.float32),
            rng.normal(0, scale, (*rest, *b)).astype(np.float32),
        )
    return pairs


def write_lora(
    path: Path,
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    architecture: str = "llama",
    alpha: float | None = None,
    metadata: Mapping[str, MetadataValue | None] | None = None,
    extra: Mapping[str, Array] | None = None,
) -> Path:
    """Write an adapter file. `metadata` and `extra` tensors go in last and unchecked; None removes a key."""
    merged: dict[str, MetadataValue | None] = {"general.type": "adapter", "adapter.type": "lora"}
    if alpha is not None:
        merged["adapter.lora.alpha"] = alpha
    merged.update(metadata or {})
    tensors: dict[str, Array] = {}
    for name, (a, b) in pairs.items():
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a, b
    return write(path, architecture, merged, tensors | dict(extra or {}))


def write_control_vector(path: Path, directions: Mapping[str, Array]) -> Path:
    """Write a control vector file with tensors of these names."""
    return write(path, "controlvector", {"controlvector.model_hint": "llama"}, directions)


def write(
    path: Path, architecture: str, metadata: Mapping[str, MetadataValue | None], tensors: Mapping[str, Array]
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):  # the writer takes element types from a list of Python numbers only
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
        elif value is not None:
            _add(writer, key, value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_merged(path: Path, model: Path, pairs: Pairs, scale: float = 1.0) -> Path:
    """A copy of an F32 model with ``scale`` times B A added to each weight."""
    data = bytearray(model.read_bytes())
    header: GGUFHeader = read_gguf_header(model)
    for tensor in header.tensors:
        if tensor.name not in pairs:
            continue
        a, b = pairs[tensor.name]
        start = header.data_offset + tensor.offset
        weight = np.frombuffer(data, "<f4", tensor.n_elements, start).reshape(tensor.shape[::-1])
        delta = a @ b.T if tensor.name == "token_embd.weight" else b @ a
        merged = (weight + scale * delta).astype("<f4")
        data[start : start + tensor.n_bytes] = merged.tobytes()
    path.write_bytes(data)
    return path
