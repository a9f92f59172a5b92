"""What the header of a GGUF file holds, once :func:`read_gguf_header` has checked it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_runner.gguf.tables import FILE_TYPE_GUESSED, FILE_TYPES

__all__ = ["GGUFArray", "GGUFHeader", "TensorInfo", "Value"]


@dataclass(frozen=True, eq=False)
class GGUFArray:
    """An array value: ``values`` is None where it was skipped, a NumPy array, or a tuple of strings."""

    type: str
    length: int
    values: npt.NDArray[np.generic] | tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.length


Value = int | float | bool | str | GGUFArray


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` as ggml has it (innermost first), ``offset`` counted from the data section."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class GGUFHeader:
    """What a GGUF file says about itself.

    ``kv_types`` has the GGUF type of each key (``"u32"``, ``"arr"``); ``required_size`` is the file size
    that the tensors need.
    """

    path: Path
    version: int
    file_size: int
    kv: Mapping[str, Value] = field(repr=False)
    kv_types: Mapping[str, str] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    alignment: int
    data_offset: int
    required_size: int

    @property
    def tensor_count(self) -> int:
        return len(self.tensors)

    @property
    def architecture(self) -> str:
        """``general.architecture``, which every header that was read has."""
        return str(self.kv["general.architecture"])

    @property
    def name(self) -> str | None:
        """``general.name``, or None."""
        value = self.kv.get("general.name")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> int | None:
        """``general.file_type`` (an ``enum llama_ftype``), or None."""
        value = self._integer("general.file_type")
        return None if value is None else value & ~FILE_TYPE_GUESSED

    @property
    def quantization(self) -> str | None:
        """``"Q4_1"`` and the like: the name of the file type; without one, the type of most weights."""
        if self.file_type is not None:
            return FILE_TYPES.get(self.file_type)
        weight: Counter[str] = Counter()
        for tensor in self.tensors:
            weight[tensor.type] += tensor.n_elements
        return weight.most_common(1)[0][0] if weight else None

    @property
    def context_length(self) -> int | None:
        """The context that the model was trained for, or None."""
        return self._integer(f"{self.architecture}.context_length")

    @property
    def vocab_only(self) -> bool:
        """Whether there are no weights: no tensors, in a file that is not the first part of several."""
        return not self.tensors and self.split_count == 1

    @functools.cached_property
    def n_params(self) -> int:
        """Elements of all tensors of this file."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def split_count(self) -> int:
        """Files that the model is split into; 1 for a whole one."""
        return max(1, self._integer("split.count") or 1)

    def _integer(self, key: str) -> int | None:
        value = self.kv.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None
