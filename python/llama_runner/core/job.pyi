from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from llama_runner.core.sampler import SamplerChain
from llama_runner.core.vocab import Vocab

ENDS: tuple[str | None, ...]
ERRORS: tuple[str | None, ...]

@disjoint_base
class Job:
    def __init__(
        self,
        vocab: Vocab,
        tokens: Sequence[int] | npt.NDArray[np.integer[Any]],
        *,
        seq_id: int = 0,
        n_resident: int = 0,
        chain: SamplerChain | None = None,
        max_tokens: int = 0,
        ignore_eos: bool = False,
        stop: Iterable[str | bytes] = (),
        stop_tokens: Sequence[int] | npt.NDArray[np.integer[Any]] = (),
        shown_tokens: Sequence[int] | npt.NDArray[np.integer[Any]] = (),
        logprobs: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
        want: str | Iterable[str] = (),
        want_from: int = 1,
        notify: bool = False,
        processor: int = -1,
        adapters: int = 0,
        tag: int = 0,
    ) -> None: ...
    @property
    def vocab(self) -> Vocab: ...
    @property
    def chain(self) -> SamplerChain | None: ...
    @property
    def stop(self) -> tuple[str | bytes, ...]: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def logprobs(self) -> int: ...
    @property
    def running(self) -> bool: ...
    def finish(self, end: str, error: str | None = None, why: str = "") -> None: ...
    def cancel(self) -> None: ...
    def read_whole(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def take(
        self,
    ) -> tuple[bytes, list[int], list[tuple[float, list[tuple[int, float]]]] | None, str | None]: ...
    @property
    def progress(self) -> dict[str, Any]: ...
    @property
    def end_reason(self) -> str | None: ...
    def mark(self, at: int, seq_id: int) -> None: ...
    def watch(self, at: int) -> None: ...
    @property
    def raised(self) -> BaseException | None: ...
    @property
    def stop_match(self) -> str | bytes | None: ...
    @property
    def error_text(self) -> str: ...
    @property
    def tokens(self) -> npt.NDArray[np.int32]: ...
    def wanted(self, what: str) -> npt.NDArray[np.float32]: ...
