"""Generation over one context: slots, prefix reuse, the step from token to text."""

from __future__ import annotations

from llama_runner.engine.generation import Generation
from llama_runner.engine.slots import Slot, Slots

__all__ = ["Generation", "Slot", "Slots"]
