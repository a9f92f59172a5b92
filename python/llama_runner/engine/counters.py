"""What an engine counts, and the times that its requests took."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from llama_runner.engine.residency import CacheCounters

__all__ = ["EngineCounters", "Latency"]

RECENT = 1024  # times that the median is of


@dataclass(frozen=True, slots=True)
class Latency:
    """Times in seconds: how many, their mean and the longest of all, and the median of the last 1,024."""

    count: int = 0
    mean: float = 0.0
    worst: float = 0.0
    median: float = 0.0


@dataclass(slots=True)
class Times:
    """Collects times for a ``Latency``."""

    count: int = 0
    total: float = 0.0
    worst: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.total += seconds
        self.worst = max(self.worst, seconds)
        self.recent.append(seconds)

    def latency(self) -> Latency:
        """What they come to."""
        if not self.count:
            return Latency()
        return Latency(self.count, self.total / self.count, self.worst, statistics.median(self.recent))


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """What an engine has done since it was made.

    ``requests`` were submitted, ``waiting`` and ``running`` are in it now, ``sharing`` of those that wait do so for a
    prompt that another is reading. ``queue`` and ``first_token`` are times from the submission on, ``inter_token`` the
    mean time between two tokens of each request, with the longest gap of all as its ``worst``. ``loop`` counts steps,
    rows, tokens and microseconds of the native loop, ``cache`` what the prefix tree did.
    """

    requests: int
    finished: int
    failed: int
    cancelled: int
    preemptions: int
    waiting: int
    sharing: int
    running: int
    queue: Latency
    first_token: Latency
    inter_token: Latency
    loop: dict[str, Any]
    cache: CacheCounters
