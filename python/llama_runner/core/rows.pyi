from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from llama_runner.core.context import Context
from llama_runner.core.sampler import SamplerChain

def sample_rows(
    ctx: Context,
    chains: Iterable[SamplerChain],
    rows: Iterable[SupportsIndex] | None = None,
    *,
    processor: Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.floating[Any]] | None]
    | None = None,
    n_threads: SupportsIndex | None = None,
) -> NDArray[np.int32]: ...
def apply_rows(
    logits: NDArray[np.float32], chains: Iterable[SamplerChain], *, n_threads: SupportsIndex | None = None
) -> NDArray[np.int32]: ...
