"""The one-liner."""

from __future__ import annotations

import os
from typing import Any

from llama_runner.runner import LlamaRunner

__all__ = ["generate_once"]


def generate_once(model: str | os.PathLike[str], prompt: str, max_tokens: int = 256, **kwargs: Any) -> str:
    """Load ``model``, generate, free everything, and return the text.

    ``model`` is anything that ``LlamaRunner`` takes; keywords are those of ``GenerationParams``. Loading takes longer
    than a short answer: for more than one prompt keep a ``LlamaRunner``.
    """
    with LlamaRunner(model, n_seq_max=2) as runner:
        return runner.generate_stateless(prompt, max_tokens, **kwargs)
