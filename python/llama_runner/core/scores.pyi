from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from llama_runner.core.batch import _Ints

__all__ = ["argmax", "log_softmax", "logprobs", "top_logprobs"]

_Out = TypeVar("_Out", bound=NDArray[np.float32])

@overload
def log_softmax(
    logits: NDArray[np.float32], out: None = None, *, n_threads: SupportsIndex | None = None
) -> NDArray[np.float32]: ...
@overload
def log_softmax(
    logits: NDArray[np.float32], out: _Out, *, n_threads: SupportsIndex | None = None
) -> _Out: ...
@overload
def logprobs(
    logits: NDArray[np.float32], tokens: int | np.integer[Any], *, n_threads: SupportsIndex | None = None
) -> float: ...
@overload
def logprobs(
    logits: NDArray[np.float32], tokens: _Ints, *, n_threads: SupportsIndex | None = None
) -> NDArray[np.float32]: ...
def top_logprobs(
    logits: NDArray[np.float32], k: SupportsIndex, *, n_threads: SupportsIndex | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
def argmax(
    logits: NDArray[np.float32], *, n_threads: SupportsIndex | None = None
) -> NDArray[np.int32] | int: ...
