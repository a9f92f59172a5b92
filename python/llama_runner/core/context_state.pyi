from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

from llama_runner.core.outputs import ContextOutputs
from llama_runner.core.state import DeviceState

_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
_Tokens: TypeAlias = Sequence[int] | NDArray[np.integer]

@disjoint_base
class ContextState(ContextOutputs):
    def __init__(self) -> None: ...
    def state_seq_size(
        self, seq_id: SupportsIndex, *, tokens: _Tokens | None = None, partial: bool = False
    ) -> int: ...
    @overload
    def state_seq_get(
        self,
        seq_id: SupportsIndex,
        *,
        tokens: _Tokens | None = None,
        partial: bool = False,
        on_device: Literal[False] = False,
    ) -> bytes: ...
    @overload
    def state_seq_get(
        self, seq_id: SupportsIndex, *, tokens: None = None, partial: bool = False, on_device: Literal[True]
    ) -> DeviceState: ...
    def state_seq_get_into(
        self,
        seq_id: SupportsIndex,
        buffer: Buffer,
        *,
        tokens: _Tokens | None = None,
        partial: bool = False,
    ) -> int: ...
    def state_seq_set(
        self, seq_id: SupportsIndex, blob: Buffer | DeviceState
    ) -> NDArray[np.int32] | None: ...
    def state_seq_save(
        self,
        path: _Path,
        seq_id: SupportsIndex,
        *,
        tokens: _Tokens | None = None,
        partial: bool = False,
    ) -> int: ...
    def state_seq_load(self, path: _Path, seq_id: SupportsIndex) -> NDArray[np.int32] | None: ...
    def state_size(self, *, tokens: Mapping[int, _Tokens] | None = None) -> int: ...
    def state_get(self, *, tokens: Mapping[int, _Tokens] | None = None) -> bytes: ...
    def state_get_into(self, buffer: Buffer, *, tokens: Mapping[int, _Tokens] | None = None) -> int: ...
    def state_set(self, blob: Buffer) -> dict[int, NDArray[np.int32]]: ...
    def state_save(self, path: _Path, *, tokens: Mapping[int, _Tokens] | None = None) -> int: ...
    def state_load(self, path: _Path) -> dict[int, NDArray[np.int32]]: ...
