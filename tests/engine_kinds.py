"""The memory kinds that engines are driven on, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine_truth import Tokens

__all__ = ["KINDS", "Kind", "pool"]


@dataclass(frozen=True)
class Kind:
    """A memory to be driven."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    parts: bool = False


KINDS = {
    "full": Kind("llama", parts=True),
    "window in full": Kind("swa", {}, {"swa_full": True}),
    "moving window": Kind("swa", {}, {"swa_full": False}),
    "state": Kind("mamba"),
    "jamba": Kind("hybrid"),
    "lfm2": Kind("hybrid", {"architecture": "lfm2"}),
}


def pool(seed: int) -> list[Tokens]:
    """Prompts with beginnings in common."""
    rng = np.random.default_rng(seed)
    trunk = rng.integers(270, 340, 60)
    found = [trunk[:n] for n in (1, 9, 20, 41, 60)]
    for start in (9, 20, 20, 41):
        found.append(np.concatenate([trunk[:start], rng.integers(270, 340, int(rng.integers(1, 40)))]))
    found.append(rng.integers(270, 340, 50))
    return [np.ascontiguousarray(prompt, np.int32) for prompt in found]
