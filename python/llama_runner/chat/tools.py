"""Tools that a model can call: described, checked, run, and their results written for it."""

from llama_runner.chat._tool import Tool, tool
from llama_runner.chat._tool_context import CancelFlag, ToolContext
from llama_runner.chat._tool_results import MAX_RESULT_CHARS, ToolResult
from llama_runner.chat._tool_runs import abandoned_calls, arun_call, arun_calls, run_call, run_calls
from llama_runner.chat._tool_set import ToolChoice, ToolSet, ValidatedCall

__all__ = [
    "MAX_RESULT_CHARS",
    "CancelFlag",
    "Tool",
    "ToolChoice",
    "ToolContext",
    "ToolResult",
    "ToolSet",
    "ValidatedCall",
    "abandoned_calls",
    "arun_call",
    "arun_calls",
    "run_call",
    "run_calls",
    "tool",
]
