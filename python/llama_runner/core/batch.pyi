from collections.abc import Iterable
from typing import Literal, SupportsIndex

from typing_extensions import disjoint_base

from llama_runner.core.vocab import _Tokens

@disjoint_base
class Batch:
    def __init__(self, capacity: SupportsIndex) -> None: ...
    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
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
        logits: Literal["last", "all", "none"] = "last",
    ) -> int: ...
