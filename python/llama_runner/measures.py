"""What a model takes: memory while it runs, bytes on disk. Immutable, and plain to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["DeviceMemory", "MemoryEstimate", "QuantizeResult"]


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes that a model and its context occupy on one device, or on the host."""

    name: str
    weights: int
    kv: int
    """The KV memory, and the states of recurrent layers."""
    compute: int
    """Buffers for intermediate results of the largest graph."""
    free: int
    """What is free there now. On the host: what the system and a container's limits leave to this process."""
    memory_total: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv + self.compute

    @property
    def fits(self) -> bool:
        return self.total <= self.free

    def __str__(self) -> str:
        return (
            f"{self.name}: {_size(self.total)} (weights {_size(self.weights)}, KV {_size(self.kv)}, "
            f"compute {_size(self.compute)}) of {_size(self.free)} free"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "total": self.total, "fits": self.fits}


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a model and one context will occupy, by llama.cpp's own allocators: exact, before anything is loaded.

    ``weights``, ``kv``, ``compute`` and ``total`` are sums over the host and all devices. Not in it: Python, the row
    buffer for logits, and what a GPU's driver takes for itself.
    """

    host: DeviceMemory
    devices: tuple[DeviceMemory, ...]
    """The devices that layers are offloaded to; empty without a GPU."""
    n_ctx: int
    """The context's size that this is for."""

    @property
    def weights(self) -> int:
        return sum(place.weights for place in (self.host, *self.devices))

    @property
    def kv(self) -> int:
        return sum(place.kv for place in (self.host, *self.devices))

    @property
    def compute(self) -> int:
        return sum(place.compute for place in (self.host, *self.devices))

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute

    @property
    def fits(self) -> bool:
        """Whether the host and every device have that much free now. Mapped weights count, though the system can drop
        them and read them again."""
        return all(place.fits for place in (self.host, *self.devices))

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        lines = [f"{_size(self.total)} for n_ctx={self.n_ctx}: {verdict}"]
        return "\n  ".join([*lines, *map(str, (*self.devices, self.host))])

    def to_dict(self) -> dict[str, Any]:
        return {
            "host": self.host.to_dict(),
            "devices": [device.to_dict() for device in self.devices],
            "n_ctx": self.n_ctx,
            "weights": self.weights,
            "kv": self.kv,
            "compute": self.compute,
            "total": self.total,
            "fits": self.fits,
        }


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class QuantizeResult:
    """What ``quantize`` did, or with ``dry_run`` would do."""

    paths: tuple[str, ...]
    """The files written, in order; empty after a dry run."""
    types: Mapping[str, str]
    """The type of each tensor by its name, such as ``"Q4_K"``."""
    bytes_before: int
    """Bytes of the tensors that were kept, as they were."""
    bytes_after: int

    def __str__(self) -> str:
        return f"{len(self.types)} tensors, {_size(self.bytes_before)} -> {_size(self.bytes_after)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "paths": list(self.paths),
            "types": dict(self.types),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def _size(n: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} B"
