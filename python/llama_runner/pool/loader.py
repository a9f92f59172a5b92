"""``Loader``: opens and closes the runners of a pool, and loads weights that copies share once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llama_runner.core import Model
from llama_runner.errors import ClosedError, ContextBusyError
from llama_runner.pool.copies import Copy, Runner
from llama_runner.pool.worker_runner import WorkerRunner
from llama_runner.runner import MODEL_OPTIONS, LlamaRunner

__all__ = ["Loader"]


class Weights:
    """A model in this process, loaded once for all copies with the same key."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # taken before the pool's, never while that is held
        self.model: Model | None = None


class Loader:
    """What takes its time. Called without the pool's lock, by several threads at once."""

    def __init__(
        self,
        lock: threading.RLock,
        copies: Callable[[], list[Copy]],
        cancelled: Callable[[], bool],
        *,
        max_restarts: int,
        restart_window: float,
    ) -> None:
        self._lock = lock
        self._copies = copies
        self._cancelled = cancelled
        self._max_restarts, self._restart_window = max_restarts, restart_window
        self._weights: dict[tuple[object, ...], Weights] = {}

    def open(self, copy: Copy) -> Runner:
        """Load a copy that is in the books already, so that its memory is set aside."""
        spec, measured = copy.entry.spec, copy.measured
        options = {**spec.options, "n_ctx": measured.n_ctx, "n_seq_max": measured.n_seq_max}
        if measured.key is None:
            return WorkerRunner(
                measured.path,
                name=spec.name,
                max_restarts=self._max_restarts,
                restart_window=self._restart_window,
                **options,
            )
        for_model = {name: options.pop(name) for name in MODEL_OPTIONS & options.keys()}
        with self._lock:
            weights = self._weights.setdefault(measured.key, Weights())
        try:
            with weights.lock:
                if weights.model is None:
                    # returning False cancels: nobody wants it any more
                    weights.model = Model(
                        measured.path, progress=lambda _: not self._cancelled(), **for_model
                    )
                model = weights.model
            return LlamaRunner(model, **options)
        except BaseException as error:
            self._let_go(copy)
            if self._cancelled():
                raise ClosedError("this RunnerPool was closed while the model was being loaded") from error
            raise

    def close(self, copy: Copy) -> None:
        """Close a copy's runner, and free its weights if no other copy in the books has them."""
        assert copy.runner is not None
        copy.runner.close()
        self._let_go(copy)

    def _let_go(self, copy: Copy) -> None:
        key = copy.measured.key
        weights = None if key is None else self._weights.get(key)
        if weights is None:
            return
        with weights.lock:
            with self._lock:
                shared = any(other is not copy and other.measured.key == key for other in self._copies())
            if not shared and weights.model is not None:
                model, weights.model = weights.model, None
                try:
                    model.close()
                except ContextBusyError:
                    pass  # someone has kept its vocabulary: it is freed when they let go
