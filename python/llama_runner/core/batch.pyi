from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from llama_runner.core.vocab import _Tokens

_Ints: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer[Any]]
_Rows: TypeAlias = _Tokens | Sequence[Sequence[float]] | NDArray[np.floating[Any]]
_Output: TypeAlias = Literal["last", "all", "none"]

@disjoint_base
class Batch:
    def __init__(self, capacity: SupportsIndex, *, n_embd: SupportsIndex | None = None) -> None: ...
    @classmethod
    def from_arrays(
        cls,
        rows: _Rows,
        pos: SupportsIndex | _Ints = 0,
        seq_ids: SupportsIndex | _Ints = 0,
        logits: _Output | Sequence[bool] | NDArray[np.bool_] = "last",
    ) -> Self: ...
    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...
    @property
    def embeddings(self) -> NDArray[np.float32]: ...
    @property
    def pos(self) -> NDArray[np.int32]: ...
    @property
    def seq_ids(self) -> NDArray[np.int32]: ...
    @property
    def wants_output(self) -> NDArray[np.bool_]: ...
    def clear(self) -> None: ...
    def add(
        self,
        token: SupportsIndex,
        pos: SupportsIndex,
        seq_ids: SupportsIndex | Iterable[SupportsIndex],
        logits: bool = False,
    ) -> int: ...
    def add_sequence(
        self,
        tokens: _Tokens,
        pos: SupportsIndex = 0,
        seq_id: SupportsIndex = 0,
        logits: _Output = "last",
    ) -> int: ...
    def add_rows(
        self,
        rows: _Rows,
        pos: SupportsIndex | _Ints = 0,
        seq_ids: SupportsIndex | _Ints = 0,
        logits: _Output | Sequence[bool] | NDArray[np.bool_] = "last",
    ) -> int: ...
    def set(
        self,
        rows: _Rows,
        pos: SupportsIndex | _Ints = 0,
        seq_ids: SupportsIndex | _Ints = 0,
        logits: _Output | Sequence[bool] | NDArray[np.bool_] = "last",
    ) -> int: ...
