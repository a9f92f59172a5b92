"""GGUF headers in pure Python, so that a damaged or hostile file is refused before llama.cpp opens it."""

from __future__ import annotations

from llama_runner.gguf.adapters import check_lora, read_control_vector
from llama_runner.gguf.header import GGUFArray, GGUFHeader, TensorInfo
from llama_runner.gguf.overrides import check_overrides
from llama_runner.gguf.parts import ModelFile, read_model_file
from llama_runner.gguf.plausible import check_metadata
from llama_runner.gguf.reader import read_gguf_header
from llama_runner.gguf.sample import file_digest, sample_digest

__all__ = [
    "GGUFArray",
    "GGUFHeader",
    "ModelFile",
    "TensorInfo",
    "check_lora",
    "check_metadata",
    "check_overrides",
    "file_digest",
    "read_control_vector",
    "read_gguf_header",
    "read_model_file",
    "sample_digest",
]
