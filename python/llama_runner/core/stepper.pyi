from typing import SupportsFloat, SupportsIndex

from typing_extensions import disjoint_base

from llama_runner.core.context import Context
from llama_runner.core.sampler import SamplerChain
from llama_runner.core.vocab import Vocab

@disjoint_base
class Stepper:
    def __init__(
        self, context: Context, chain: SamplerChain, vocab: Vocab, seq_id: SupportsIndex = 0
    ) -> None: ...
    @property
    def context(self) -> Context: ...
    @property
    def chain(self) -> SamplerChain: ...
    @property
    def vocab(self) -> Vocab: ...
    @property
    def seq_id(self) -> int: ...
    def advance(
        self, token: SupportsIndex, pos: SupportsIndex, timeout: SupportsFloat | None = None
    ) -> tuple[int, bytes, bool]: ...
    def select(self, i: SupportsIndex = -1) -> tuple[int, bytes, bool]: ...
