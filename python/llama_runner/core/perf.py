"""What llama.cpp measured, as plain values."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ContextPerf"]


class ContextPerf(NamedTuple):
    """``llama_perf_context_data``: milliseconds and counts, as ``Context.perf`` returns them."""

    t_start_ms: float
    """When counting began, on llama.cpp's own clock."""
    t_load_ms: float
    """From loading the model to the end of the first decode."""
    t_p_eval_ms: float
    """Spent in decodes of several rows: prompts."""
    t_eval_ms: float
    """Spent in decodes of one row: generation."""
    n_p_eval: int
    """Rows of decodes of several rows."""
    n_eval: int
    """Decodes of one row."""
    n_reused: int
    """Decodes that could use the graph of the one before."""
