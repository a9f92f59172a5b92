"""What a pool is told about a model, checked; and what that model will take, measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_runner import runner as facade
from llama_runner._check import check_bool, check_int, check_name
from llama_runner.core import Model, estimate_memory
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError, unknown_name
from llama_runner.runner import CONTEXT_OPTIONS, DEFAULT_N_CTX, DEFAULT_N_SEQ_MAX, MODEL_OPTIONS

__all__ = ["Measured", "ModelSpec"]

SIZES = frozenset({"n_ctx", "n_seq_max"})
ENGINE_OPTIONS: frozenset[str] = getattr(facade, "ENGINE_OPTIONS", frozenset())
RUNNER_OPTIONS = CONTEXT_OPTIONS | MODEL_OPTIONS | ENGINE_OPTIONS | SIZES
POOL_OPTIONS = frozenset({"copies", "worker"})

DownloadProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's file, the sizes of its context, and the bytes that each part takes."""

    path: str
    key: tuple[object, ...] | None
    """What copies in this process that share their weights have in common; None for a worker, which shares nothing."""
    n_ctx: int
    n_seq_max: int
    weights: int
    context: int
    """Keys and values, and buffers for computing."""

    @property
    def total(self) -> int:
        return self.weights + self.context


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One name of a pool: the model behind it, and how it is to be opened."""

    name: str
    model: str | os.PathLike[str]
    copies: int
    worker: bool
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(
        cls, name: object, given: object, *, copies: int, workers: bool, options: Mapping[str, Any]
    ) -> ModelSpec:
        """From what ``RunnerPool`` was given for ``name``; the rest is for all models, and it may override it."""
        if not isinstance(name, str):
            raise ArgumentTypeError(f"models: a name is a str, not {type(name).__name__} {name!r}")
        if not name:
            raise InvalidArgumentError("models: a name must not be empty")
        check_name("a model's name", name)
        values: dict[str, Any] = {**options}
        if isinstance(given, Mapping):
            if "model" not in given:
                raise InvalidArgumentError(f"models[{name!r}] has no 'model': which one is it?")
            values.update(given)
            model = values.pop("model")
        else:
            model = given
        if not isinstance(model, (str, os.PathLike)):
            raise ArgumentTypeError(
                f"models[{name!r}]: a model is a path or a name, or a mapping with one under 'model', not "
                f"{type(model).__name__}"
            )
        for option in values:
            if option not in RUNNER_OPTIONS | POOL_OPTIONS:
                raise unknown_name(option, RUNNER_OPTIONS | POOL_OPTIONS | {"model"}, f"models[{name!r}]")
        copies = check_int(f"models[{name!r}]: copies", values.pop("copies", copies), 1, 1024)
        worker = check_bool(f"models[{name!r}]: worker", values.pop("worker", workers))
        for size, low, high in (("n_ctx", 1, 2**31 - 256), ("n_seq_max", 2, 256)):
            if values.get(size) is not None:
                check_int(f"models[{name!r}]: {size}", values[size], low, high)
        return cls(name, model, copies, worker, values)

    def measure(self, progress: DownloadProgress | None) -> Measured:
        """Find the model's file, fetching it if need be, and measure what it will take. Loads no weights.

        The sizes that a ``LlamaRunner`` would choose are chosen here, so that what is loaded is what was measured.
        """
        from llama_runner.models import resolve_model  # brings archives and locks along

        path = os.fspath(resolve_model(self.model, progress=progress))
        options = {
            name: value for name, value in self.options.items() if name in CONTEXT_OPTIONS | MODEL_OPTIONS
        }
        n_ctx, n_seq_max = self.options.get("n_ctx"), self.options.get("n_seq_max")
        if n_ctx is None:  # without one the estimate is for what the model was trained with
            n_ctx = min(estimate_memory(path, **options).n_ctx, DEFAULT_N_CTX)
        if n_seq_max is None:
            with Model(path, vocab_only=True) as model:
                countless = model.is_recurrent or model.is_hybrid
            n_seq_max = 4 if countless else max(2, min(DEFAULT_N_SEQ_MAX, n_ctx))
        estimate = estimate_memory(path, **options, n_ctx=n_ctx, n_seq_max=n_seq_max)
        key = None
        if not self.worker:
            status = os.stat(path)
            of_model = sorted((name, repr(value)) for name, value in options.items() if name in MODEL_OPTIONS)
            key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *of_model)
        return Measured(path, key, n_ctx, n_seq_max, estimate.weights, estimate.kv + estimate.compute)
