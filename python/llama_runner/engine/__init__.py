"""Continuous batching over one context: requests, the prefix tree, who goes first and who gives way."""

from __future__ import annotations

from llama_runner.engine.counters import EngineCounters, Latency
from llama_runner.engine.engine import Adapters, Engine, LogitsProcessor
from llama_runner.engine.kv_map import KvMap, Owner
from llama_runner.engine.prefix import PrefixCache
from llama_runner.engine.request import Request
from llama_runner.engine.residency import CacheCounters
from llama_runner.engine.sequence import Sequence, Snapshot
from llama_runner.engine.stream import AsyncStream, Stream, exhaust

__all__ = [
    "Adapters",
    "AsyncStream",
    "CacheCounters",
    "Engine",
    "EngineCounters",
    "KvMap",
    "Latency",
    "LogitsProcessor",
    "Owner",
    "PrefixCache",
    "Request",
    "Sequence",
    "Snapshot",
    "Stream",
    "exhaust",
]
