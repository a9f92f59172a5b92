"""What of a model's metadata ends the process inside llama.cpp's loader, which checks the rest itself."""

from __future__ import annotations

from llama_runner.errors import ModelFormatError
from llama_runner.gguf.header import GGUFArray, GGUFHeader
from llama_runner.gguf.vocabulary import check_vocabulary

__all__ = ["check_metadata"]

# keys that llama.cpp divides by, of the architectures that it does so for; in other files 0 stands for none
_STATES = ("ssm.group_count", "ssm.time_step_rank")
_DIVISORS = {
    "mamba2": _STATES,
    "granitehybrid": _STATES,
    "falcon-h1": _STATES,
    "nemotron_h": _STATES,
    "nemotron_h_moe": _STATES,
    "qwen3next": _STATES,
    "qwen35": _STATES,
    "qwen35moe": _STATES,
    "grovemoe": ("experts_per_group",),
}
# and those that must be there at all
_NEEDED = {
    "phimoe": ("attention.head_count",),
    "olmo2": ("attention.head_count",),
    "ernie4_5-moe": ("interleave_moe_layer_step",),
}


def check_metadata(header: GGUFHeader) -> None:
    """Raise ModelFormatError for metadata that a division by zero or an endless loop would come of."""
    check_vocabulary(header)
    prefix = header.architecture
    for name in _DIVISORS.get(prefix, ()):
        if header.kv.get(f"{prefix}.{name}", 1) == 0:
            raise ModelFormatError(f"{str(header.path)!r} has {prefix}.{name} of 0")
    for name in _NEEDED.get(prefix, ()):
        if first(header, f"{prefix}.{name}") == 0:
            raise ModelFormatError(f"{str(header.path)!r} has no {prefix}.{name}, or one of 0")


def first(header: GGUFHeader, key: str) -> int:
    """The number under ``key``, of an array the first one; 0 where there is none."""
    value = header.kv.get(key)
    if isinstance(value, GGUFArray):
        value = None if value.values is None or len(value.values) == 0 else value.values[0]
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0
