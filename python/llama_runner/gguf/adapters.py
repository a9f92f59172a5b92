"""Adapter files: what llama.cpp would assert, or find out only while decoding, is checked before it opens them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from llama_runner.errors import ModelCapabilityError, ModelFormatError, ModelMismatchError
from llama_runner.gguf.files import storage_error
from llama_runner.gguf.header import GGUFArray, GGUFHeader, TensorInfo
from llama_runner.gguf.reader import read_gguf_header

__all__ = ["check_lora", "read_control_vector"]

#: Shape (ggml's order, four dimensions) and type of a weight of the model, or None.
Weight = Callable[[str], tuple[tuple[int, int, int, int], str] | None]

_EMBEDDINGS = "token_embd.weight"
_NO_MATRIX = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}  # types that ggml cannot multiply by
_MAX_VECTOR = 1 << 28  # numbers in a control vector: 4,000 layers of 65,536


def check_lora(
    header: GGUFHeader, architecture: str, weight: Weight, output: str | None
) -> tuple[list[str], list[str]]:
    """Names of the weights that a LoRA file changes, and of its tensors that llama.cpp ignores.

    ``output`` is the name of the weight that makes the logits. Raises ModelFormatError (no LoRA adapter, or a broken
    one), ModelMismatchError (made for another model), ModelCapabilityError (right, and still nothing llama.cpp can do).
    """
    _check_metadata(header, architecture)
    pairs, ignored = _pairs(header)
    if not pairs:
        raise ModelFormatError(
            f"{str(header.path)!r} has no pairs of tensors <weight>.lora_a and <weight>.lora_b"
        )
    for name, (a, b) in pairs.items():
        found = weight(name)
        if found is None:
            raise ModelMismatchError(
                f"{str(header.path)!r} changes {name!r}, which the model does not have: made for another one?",
                {name: ("a weight of the model", "none")},
            )
        _check_pair(header, name, a, b, *found)
        if name == _EMBEDDINGS == output:
            raise ModelCapabilityError(
                f"{str(header.path)!r} changes {name!r}, which this model uses for its logits as well: llama.cpp can "
                "adapt only one use of it, so leave it out of the adapter"
            )
    return list(pairs), ignored


def _check_metadata(header: GGUFHeader, architecture: str) -> None:
    path, kv = str(header.path), header.kv
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if kv.get(key) != wanted:
            raise ModelFormatError(
                f"{path!r} is no LoRA adapter: its {key} is {kv.get(key)!r}, not {wanted!r}"
            )
    if header.architecture != architecture:
        raise ModelMismatchError(
            f"{path!r} adapts models of architecture {header.architecture!r}; this one is {architecture!r}",
            {"general.architecture": (architecture, header.architecture)},
        )
    alpha = kv.get("adapter.lora.alpha")
    if alpha is not None and (
        header.kv_types["adapter.lora.alpha"] != "f32"
        or not isinstance(alpha, float)
        or not math.isfinite(alpha)
    ):
        raise ModelFormatError(f"{path!r} has adapter.lora.alpha={alpha!r}: it is a finite f32")
    tokens = kv.get("adapter.alora.invocation_tokens")
    if tokens is not None and not (isinstance(tokens, GGUFArray) and tokens.type == "u32"):
        raise ModelFormatError(
            f"{path!r} has adapter.alora.invocation_tokens={tokens!r}: it is an array of u32"
        )


def _pairs(header: GGUFHeader) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], list[str]]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    ignored = []
    for tensor in header.tensors:
        name, suffix = tensor.name[:-7], tensor.name[-7:]
        if suffix in (".lora_a", ".lora_b"):
            if ".lora_" in name:
                raise ModelFormatError(f"{str(header.path)!r} has a tensor of the odd name {tensor.name!r}")
            halves.setdefault(name, {})[suffix] = tensor
        elif tensor.name.endswith("_norm.weight"):
            ignored.append(tensor.name)
        else:
            raise ModelFormatError(
                f"{str(header.path)!r} has a tensor {tensor.name!r}: those of a LoRA end in .lora_a or .lora_b"
            )
    pairs = {}
    for name, half in halves.items():
        if len(half) != 2:
            raise ModelFormatError(f"{str(header.path)!r} has {name + min(half)!r} and not its other half")
        pairs[name] = half[".lora_a"], half[".lora_b"]
    return pairs, ignored


def _check_pair(
    header: GGUFHeader, name: str, a: TensorInfo, b: TensorInfo, shape: tuple[int, ...], kind: str
) -> None:
    """The shapes that ``a`` (n_in, rank) and ``b`` (rank, n_out) must have; those of the embeddings are swapped."""
    path = str(header.path)
    for tensor in (a, b):
        if tensor.type in _NO_MATRIX:
            raise ModelFormatError(
                f"{path!r} has {tensor.name!r} of type {tensor.type}, which cannot be multiplied by"
            )
    rank = (*b.shape, 1)[0]
    rest = shape[2:]
    first, second = (rank, shape[1], *rest), (rank, shape[0], *rest)
    if not name.endswith(_EMBEDDINGS):
        first, second = (shape[0], rank, *rest), (rank, shape[1], *rest)
    for tensor, wanted in ((a, first), (b, second)):
        if _four(tensor.shape) != wanted:
            raise ModelMismatchError(
                f"{path!r} has {tensor.name!r} of shape {tensor.shape}, and for a model whose {name!r} is {shape} "
                f"it has to be {wanted}: made for another model?",
                {tensor.name: (wanted, tensor.shape)},
            )
    if shape[1] == 1 and shape[0] > 1:
        raise ModelCapabilityError(f"{path!r} changes {name!r}, a vector: llama.cpp adapts matrices only")
    if kind.upper() == "NVFP4":
        raise ModelCapabilityError(
            f"{path!r} changes {name!r}, which is NVFP4: llama.cpp cannot adapt that type"
        )


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1, 1)[:4]


def read_control_vector(path: str) -> npt.NDArray[np.float32]:
    """The directions of a control vector file, (layers, n_embd): row 0 is ``direction.1``, absent ones are zero."""
    header = read_gguf_header(path)
    by_layer: Mapping[int, TensorInfo] = {_layer(header, tensor): tensor for tensor in header.tensors}
    if not by_layer:
        raise ModelFormatError(f"{path!r} has no tensors direction.1, direction.2, …: no control vector")
    if len(by_layer) != len(header.tensors):
        raise ModelFormatError(f"{path!r} names a layer twice")
    widths = {tensor.n_elements for tensor in by_layer.values()}
    if len(widths) != 1:
        raise ModelFormatError(f"{path!r} has directions of different widths: {sorted(widths)}")
    n_layers, width = max(by_layer), widths.pop()
    if n_layers * width > _MAX_VECTOR:
        raise ModelFormatError(f"{path!r} claims {n_layers} layers of {width}: more than any model has")
    directions = np.zeros((n_layers, width), np.float32)
    try:
        with open(path, "rb") as file:
            for layer, tensor in by_layer.items():
                file.seek(header.data_offset + tensor.offset)
                data = file.read(tensor.n_bytes)
                if len(data) != tensor.n_bytes:
                    raise ModelFormatError(f"{path!r} ends within {tensor.name!r}")
                directions[layer - 1] = np.frombuffer(data, "<f4")
    except OSError as error:
        raise storage_error(f"cannot read {path!r}", error) from error
    return directions


def _layer(header: GGUFHeader, tensor: TensorInfo) -> int:
    found = re.fullmatch(r"direction\.([1-9][0-9]{0,8})", tensor.name)
    if found is None:
        raise ModelFormatError(
            f"{str(header.path)!r} has a tensor {tensor.name!r}: a control vector has direction.1, direction.2, …"
        )
    if tensor.type != "F32" or len(tensor.shape) != 1:
        raise ModelFormatError(
            f"{str(header.path)!r} has {tensor.name!r} of type {tensor.type} and shape {tensor.shape}: "
            "it is a vector of F32"
        )
    return int(found[1])
