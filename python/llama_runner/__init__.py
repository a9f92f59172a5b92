"""llama.cpp inside Python, with the KV cache in your hands.

>>> from llama_runner import LlamaRunner
>>> with LlamaRunner("smollm2-135m") as runner:
...     print(runner.generate("The capital of France is", max_tokens=8).text)

``import llama_runner`` loads nothing native; the first use of a class does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_runner import core, errors, models, quick
    from llama_runner._info import __version__, build_info
    from llama_runner.chat.tools import Tool, tool
    from llama_runner.params import GenerationParams
    from llama_runner.pool import RunnerPool, WorkerRunner
    from llama_runner.receipts import Plan, Receipt
    from llama_runner.results import Chunk, Completion, ContextInfo, Timings, TokenLogprob, Usage
    from llama_runner.runner import LlamaRunner, Stream
    from llama_runner.session import Message, Reply, Session

__all__ = [
    "Chunk",
    "Completion",
    "ContextInfo",
    "GenerationParams",
    "LlamaRunner",
    "Message",
    "Plan",
    "Receipt",
    "Reply",
    "RunnerPool",
    "Session",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tool",
    "Usage",
    "WorkerRunner",
    "__version__",
    "build_info",
    "core",
    "errors",
    "models",
    "quick",
    "tool",
]

_HOMES = {
    "Chunk": "results",
    "Completion": "results",
    "ContextInfo": "results",
    "GenerationParams": "params",
    "LlamaRunner": "runner",
    "Message": "session",
    "Plan": "receipts",
    "Receipt": "receipts",
    "Reply": "session",
    "RunnerPool": "pool",
    "Session": "session",
    "Stream": "runner",
    "Tool": "chat.tools",
    "Timings": "results",
    "TokenLogprob": "results",
    "Usage": "results",
    "WorkerRunner": "pool",
    "__version__": "_info",
    "build_info": "_info",
    "tool": "chat.tools",
}
_MODULES = frozenset({"core", "errors", "models", "quick"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"llama_runner.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'llama_runner' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llama_runner.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
