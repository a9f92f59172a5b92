"""What of a tokenizer's metadata would end the process inside llama.cpp's loader, which checks the rest itself."""

from __future__ import annotations

from llama_runner.errors import ModelFormatError
from llama_runner.gguf.header import GGUFArray, GGUFHeader

__all__ = ["check_vocabulary"]


def check_vocabulary(header: GGUFHeader) -> None:
    """Raise ModelFormatError for a list of tokens that is empty: some tokenizers divide by its length."""
    tokens = header.kv.get("tokenizer.ggml.tokens")
    if isinstance(tokens, GGUFArray) and len(tokens) == 0:
        raise ModelFormatError(f"{str(header.path)!r} has a vocabulary of no tokens")
