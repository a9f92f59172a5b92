"""GGUF headers in pure Python, so that a damaged or hostile file is refused before llama.cpp opens it."""

from __future__ import annotations

from llama_runner.gguf.adapters import check_lora, read_control_vector
from llama_runner.gguf.header import GGUFArray, GGUFHeader, TensorInfo
from llama_runner.gguf.reader import read_gguf_header
from llama_runner.gguf.sample import file_digest, sample_digest

__all__ = [
    "GGUFArray",
    "GGUFHeader",
    "TensorInfo",
    "check_lora",
    "file_digest",
    "read_control_vector",
    "read_gguf_header",
    "sample_digest",
]
