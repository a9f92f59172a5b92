"""Continuous batching over one context: requests, the prefix tree, who goes first and who gives way."""

from __future__ import annotations

from llama_runner.engine.engine import Engine, EngineCounters
from llama_runner.engine.prefix import Node, PrefixCache
from llama_runner.engine.request import Explanation, Request
from llama_runner.engine.stream import AsyncStream, Stream, exhaust

__all__ = [
    "AsyncStream",
    "Engine",
    "EngineCounters",
    "Explanation",
    "Node",
    "PrefixCache",
    "Request",
    "Stream",
    "exhaust",
]
