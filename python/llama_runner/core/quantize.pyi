import os
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsIndex

import numpy.typing as npt

from llama_runner.measures import QuantizeResult

def quantize(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    type: str = "Q4_K_M",
    *,
    n_threads: SupportsIndex | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_types: Mapping[str, str] | None = None,
    imatrix: Mapping[str, npt.ArrayLike] | None = None,
    kv_overrides: Mapping[str, int | float | bool | str] | None = None,
    prune_layers: Iterable[SupportsIndex] | None = None,
    allow_requantize: bool = False,
    quantize_output_tensor: bool = True,
    only_copy: bool = False,
    pure: bool = False,
    keep_split: bool = False,
    dry_run: bool = False,
    max_buf_size: SupportsIndex | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> QuantizeResult: ...
