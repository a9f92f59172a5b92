from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from llama_runner.core.constraint import Constraint
from llama_runner.core.vocab import Vocab, _Text

@disjoint_base
class SamplerLinks:
    def __init__(self, *, perf: bool = False) -> None: ...
    def __len__(self) -> int: ...
    @property
    def links(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def remove(self, i: SupportsIndex) -> None: ...
    def greedy(self) -> Self: ...
    def dist(self, seed: SupportsIndex | None = None) -> Self: ...
    def mirostat(
        self,
        vocab: Vocab,
        tau: SupportsFloat = 5.0,
        eta: SupportsFloat = 0.1,
        m: SupportsIndex = 100,
        seed: SupportsIndex | None = None,
    ) -> Self: ...
    def mirostat_v2(
        self, tau: SupportsFloat = 5.0, eta: SupportsFloat = 0.1, seed: SupportsIndex | None = None
    ) -> Self: ...
    def adaptive_p(
        self, target: SupportsFloat, decay: SupportsFloat = 0.9, seed: SupportsIndex | None = None
    ) -> Self: ...
    def top_k(self, k: SupportsIndex) -> Self: ...
    def top_p(self, p: SupportsFloat, min_keep: SupportsIndex = 1) -> Self: ...
    def min_p(self, p: SupportsFloat, min_keep: SupportsIndex = 1) -> Self: ...
    def typical(self, p: SupportsFloat, min_keep: SupportsIndex = 1) -> Self: ...
    def top_n_sigma(self, n: SupportsFloat) -> Self: ...
    def xtc(
        self,
        p: SupportsFloat,
        threshold: SupportsFloat,
        min_keep: SupportsIndex = 1,
        seed: SupportsIndex | None = None,
    ) -> Self: ...
    def temp(self, t: SupportsFloat) -> Self: ...
    def temp_ext(self, t: SupportsFloat, delta: SupportsFloat, exponent: SupportsFloat = 1.0) -> Self: ...
    def infill(self, vocab: Vocab) -> Self: ...
    def penalties(
        self,
        vocab: Vocab,
        last_n: SupportsIndex = 64,
        repeat: SupportsFloat = 1.0,
        frequency: SupportsFloat = 0.0,
        presence: SupportsFloat = 0.0,
    ) -> Self: ...
    def dry(
        self,
        vocab: Vocab,
        multiplier: SupportsFloat,
        base: SupportsFloat = 1.75,
        allowed_length: SupportsIndex = 2,
        last_n: SupportsIndex = 1024,
        breakers: Iterable[_Text] = (),
    ) -> Self: ...
    def logit_bias(
        self, vocab: Vocab, bias: Mapping[int, float] | Iterable[tuple[SupportsIndex, SupportsFloat]]
    ) -> Self: ...
    def grammar(self, vocab: Vocab, grammar: _Text, root: _Text = "root") -> Self: ...
    def grammar_lazy(
        self,
        vocab: Vocab,
        grammar: _Text,
        root: _Text = "root",
        *,
        patterns: Iterable[_Text] = (),
        tokens: Iterable[SupportsIndex] = (),
    ) -> Self: ...
    def constraint(self, constraint: Constraint) -> Self: ...
    def python(
        self,
        function: Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.floating[Any]] | None],
        *,
        clone: Callable[[Any], Any] | None = None,
    ) -> Self: ...
