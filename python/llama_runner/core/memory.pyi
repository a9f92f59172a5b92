from typing import SupportsIndex

from typing_extensions import disjoint_base

from llama_runner.cells import CellTable
from llama_runner.core.context import Context

@disjoint_base
class Memory:
    def __init__(self, context: Context) -> None: ...
    @property
    def context(self) -> Context: ...
    def seq_rm(self, seq_id: SupportsIndex, p0: SupportsIndex = -1, p1: SupportsIndex = -1) -> bool: ...
    def seq_cp(
        self,
        seq_id_src: SupportsIndex,
        seq_id_dst: SupportsIndex,
        p0: SupportsIndex = -1,
        p1: SupportsIndex = -1,
    ) -> None: ...
    def seq_keep(self, seq_id: SupportsIndex) -> None: ...
    def seq_add(
        self,
        seq_id: SupportsIndex,
        p0: SupportsIndex,
        p1: SupportsIndex,
        delta: SupportsIndex,
        *,
        shared: bool = False,
    ) -> None: ...
    def seq_div(
        self,
        seq_id: SupportsIndex,
        p0: SupportsIndex,
        p1: SupportsIndex,
        d: SupportsIndex,
        *,
        shared: bool = False,
    ) -> None: ...
    def seq_pos_min(self, seq_id: SupportsIndex) -> int: ...
    def seq_pos_max(self, seq_id: SupportsIndex) -> int: ...
    def clear(self, data: bool = False) -> None: ...
    @property
    def can_shift(self) -> bool: ...
    def cells(self) -> list[CellTable]: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def n_used(self) -> int: ...
    @property
    def n_used_end(self) -> int: ...
