"""Running tools: none can hang, end or break what called it."""

from __future__ import annotations

from collections.abc import Iterable

from llama_runner.chat._tool_context import ToolContext
from llama_runner.chat._tool_results import MAX_RESULT_CHARS, ToolResult
from llama_runner.chat._tool_set import ValidatedCall

__all__ = ["abandoned_calls", "arun_call", "arun_calls", "run_call", "run_calls"]


def run_call(
    call: ValidatedCall,
    *,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> ToolResult:
    """Run one call and wait for it. Never raises what the tool raises: see ``ToolResult.error``."""
    raise NotImplementedError


async def arun_call(
    call: ValidatedCall,
    *,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> ToolResult:
    """``run_call`` on the running event loop; cancelling it cancels the tool."""
    raise NotImplementedError


def run_calls(
    calls: Iterable[ValidatedCall],
    *,
    parallel: bool = True,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> list[ToolResult]:
    """Run the calls of one message; results in their order. ``timeout`` is for all of them together."""
    raise NotImplementedError


async def arun_calls(
    calls: Iterable[ValidatedCall],
    *,
    parallel: bool = True,
    timeout: float | None = None,
    context: ToolContext | None = None,
    max_result_chars: int = MAX_RESULT_CHARS,
) -> list[ToolResult]:
    """``run_calls`` on the running event loop."""
    raise NotImplementedError


def abandoned_calls() -> int:
    """How many tools run on, now, that nobody waits for: past their time, or cancelled."""
    raise NotImplementedError
