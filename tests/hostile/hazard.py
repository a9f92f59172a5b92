"""What a hazard case is made of: the decorator that registers it, and the world it runs in."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_runner import errors
from llama_runner.core import Batch, Context, Model
from tiny_models import write_tiny_model


@dataclass(frozen=True)
class Hazard:
    """One row of docs/hazards.md, and the function that provokes it."""

    site: str  # function of llama.cpp; several are separated by a comma
    provoked_by: str
    check: str  # where ours is
    run: Callable[[World], None]

    @property
    def name(self) -> str:
        return self.run.__name__


HAZARDS: dict[str, Hazard] = {}


def hazard(
    site: str, provoked_by: str, check: str
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a case. It makes the bad call, says what is raised, and shows that the object works on."""

    def register(run: Callable[[World], None]) -> Callable[[World], None]:
        assert run.__name__ not in HAZARDS, run.__name__
        HAZARDS[run.__name__] = Hazard(site, provoked_by, check, run)
        return run

    return register


def rows(n: int = 8, pos: int = 0, seq_id: int = 0, capacity: int | None = None) -> Batch:
    """``n`` tokens from ``pos`` on; the last one has logits."""
    batch = Batch(capacity or n)
    batch.add_sequence(np.arange(pos, pos + n) % 100 + 300, pos, seq_id)
    return batch


class World:
    """Models and contexts for cases, and what they all check."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.paths: dict[str, Path] = {}
        self.models: dict[str, Model] = {}

    def path(self, kind: str = "llama", **options: Any) -> Path:
        key = f"{kind}{sorted(options.items())}"
        if key not in self.paths:
            self.paths[key] = write_tiny_model(self.folder / f"{len(self.paths)}.gguf", kind, **options)
        return self.paths[key]

    def model(self, kind: str = "llama", **options: Any) -> Model:
        key = f"{kind}{sorted(options.items())}"
        if key not in self.models or self.models[key].closed:
            self.models[key] = Model(self.path(kind, **options))
        return self.models[key]

    def context(self, kind: str = "llama", **options: Any) -> Context:
        return Context(self.model(kind), **{"n_ctx": 256, "n_seq_max": 2, "n_threads": 1, **options})

    def fed(self, kind: str = "llama", n: int = 8, **options: Any) -> Context:
        """A context with ``n`` tokens in sequence 0."""
        ctx = self.context(kind, **options)
        ctx.decode(rows(n))
        return ctx

    @contextlib.contextmanager
    def refuses(self, kind: type[errors.LlamaRunnerError], words: str = "") -> Iterator[None]:
        """The body raises an error of exactly this type whose text has ``words``."""
        try:
            yield
        except errors.LlamaRunnerError as error:
            assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
            assert words in str(error), f"{words!r} is not in: {error}"
            return
        raise AssertionError(f"no {kind.__name__}")

    def works(self, ctx: Context) -> None:
        """The context still computes, and computes what a new one does."""
        ctx.memory.clear()
        ctx.decode(rows())
        with self.context_like(ctx) as other:
            other.decode(rows())
            np.testing.assert_allclose(ctx.logits(), other.logits(), atol=2e-2)
            assert np.ptp(ctx.logits()) > 1

    def works_roughly(self, ctx: Context) -> None:
        """The context computes; its numbers are those of another element type."""
        ctx.decode(rows())
        assert np.isfinite(ctx.logits()).all()
        ctx.close()

    def context_like(self, ctx: Context) -> Context:
        return Context(ctx.model, n_ctx=256, n_seq_max=ctx.n_seq_max, n_threads=1)
