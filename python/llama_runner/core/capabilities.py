"""``Capabilities``: what can be done with a model's memory, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_runner.errors import ModelCapabilityError

if TYPE_CHECKING:
    from llama_runner.core.context import Context
    from llama_runner.core.model import Model

__all__ = ["Capabilities", "look_at"]

MEMORY_KINDS = ("none", "attention", "sliding-window", "recurrent", "hybrid", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do in a context of default settings, as llama.cpp's own graph and memory say. Immutable.

    ``memory`` : what a context keeps of the past: ``"attention"`` (cells for every position), ``"sliding-window"`` (the
        same, and some layers look at the last positions only), ``"recurrent"`` (one state a sequence), ``"hybrid"``
        (both), ``"none"`` (encoders and diffusion models), ``"unknown"`` (a kind that this release has not heard of).
    ``memory_class`` : llama.cpp's name for it.
    ``has_encoder``, ``has_decoder`` : which of ``Context.encode`` and ``decode`` are part of the model's use.
    ``has_logits`` : whether there are logits; otherwise embeddings only.
    ``every_row`` : the model gives output for every row of a batch, and ``decode`` wants it asked for every row.
    ``causal`` : whether a token sees the earlier ones only.
    ``can_fork``, ``can_fork_part`` : ``Memory.seq_cp`` of a whole sequence, of a part.
    ``can_remove_tail``, ``can_remove_middle`` : ``Memory.seq_rm`` from a position to the end, and of a part with tokens
        after it, which keep what they computed while it was there.
    ``can_shift`` : ``Memory.seq_add``; ``no_shift`` says why not, None where it can.
    ``can_save_state`` : ``Context.state_seq_get`` and ``state_seq_set``.
    ``can_steer`` : ``Context.set_control_vector``.
    """

    memory: Literal["attention", "sliding-window", "recurrent", "hybrid", "none", "unknown"]
    memory_class: str
    has_encoder: bool
    has_decoder: bool
    has_logits: bool
    every_row: bool
    causal: bool
    can_fork: bool
    can_fork_part: bool
    can_remove_tail: bool
    can_remove_middle: bool
    can_shift: bool
    no_shift: str | None
    can_save_state: bool
    can_steer: bool

    @property
    def embeds_only(self) -> bool:
        """Whether it gives embeddings and no logits."""
        return not self.has_logits


def look_at(model: Model) -> Capabilities:
    """What a small context of the model says; the context is closed again."""
    from llama_runner.core.context import Context

    with Context(model, n_ctx=256, n_batch=32, n_ubatch=32, n_outputs_max=1, n_threads=1) as context:
        able: dict[str, Any] = context._able
        steers = can_steer(model, context)
    memory: Any = MEMORY_KINDS[able.pop("kind")]
    cells = memory in ("attention", "sliding-window")
    known = able.pop("known")  # a state is checked against the layout of the memory before it is read
    return Capabilities(
        memory=memory,
        has_encoder=model.has_encoder,
        has_decoder=model.has_decoder,
        can_fork=memory != "none",
        can_fork_part=cells,
        can_remove_tail=cells,
        can_remove_middle=cells,
        can_shift=able["no_shift"] is None,
        can_save_state=memory != "none" and known,
        can_steer=steers,
        **able,
    )


def can_steer(model: Model, context: Context) -> bool:
    """Whether the graph has a place for a control vector."""
    import numpy as np

    from llama_runner.core.control_vector import ControlVector

    if model.n_layer < 2:
        return False
    try:
        context.set_control_vector(ControlVector(np.zeros((1, model.n_embd))))
    except ModelCapabilityError:
        return False
    return True
