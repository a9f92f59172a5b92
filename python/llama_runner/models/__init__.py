"""Where models come from, in pure Python: nothing here loads llama.cpp."""

from __future__ import annotations

from llama_runner.models.metadata import Metadata
from llama_runner.models.registry import ShortName, short_names
from llama_runner.models.sources import ModelSource, resolve_model

__all__ = ["Metadata", "ModelSource", "ShortName", "resolve_model", "short_names"]
