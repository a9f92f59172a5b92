"""``Capabilities``: what can be done with a model's memory, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Capabilities"]


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
