"""Bytes of GGUF files, sound and damaged, built by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

VENDOR = Path(__file__).parents[1] / "vendor" / "llama.cpp"
VOCABS = sorted((VENDOR / "models").glob("ggml-vocab-*.gguf"))
SMALL_VOCAB = VENDOR / "models" / "ggml-vocab-bert-bge.gguf"


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, kind, offset)


def image(
    pairs: list[bytes], tensors: tuple[bytes, ...] = (), data: int = 0, version: int = 3, align: int = 32
) -> bytes:
    head = (
        b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    )
    return head + b"\0" * (-len(head) % align) + b"\1" * data if tensors else head


def make_model(path: Path) -> Path:
    """A small model file, written by the gguf package: every scalar type, arrays, three tensor types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(512)
    for kind, value in (
        ("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768), ("uint32", 2**32 - 1),
        ("int32", -(2**31)), ("float32", 0.5), ("bool", True), ("string", "naïve"), ("uint64", 2**64 - 1),
        ("int64", -(2**63)), ("float64", 0.1),
    ):  # fmt: skip
        getattr(writer, f"add_{kind}")(f"t.{kind}", value)
    writer.add_array("a.short", [1, 2, 3])
    writer.add_array("a.long", list(range(5000)))
    writer.add_array("a.words", [f"w{i}" for i in range(3000)])
    writer.add_array("a.flags", [True, False, True])
    rng = np.random.default_rng(0)
    writer.add_tensor("f32", rng.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("f16", rng.normal(size=(7,)).astype(np.float16))
    quantized = gguf.quantize(rng.normal(size=(4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
