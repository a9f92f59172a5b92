"""Tools that a model can call, and the messages of a conversation."""

from llama_runner.chat.messages import check_messages, readable_arguments
from llama_runner.chat.tools import (
    CancelFlag,
    Tool,
    ToolChoice,
    ToolContext,
    ToolResult,
    ToolSet,
    ValidatedCall,
    abandoned_calls,
    arun_call,
    arun_calls,
    run_call,
    run_calls,
    tool,
)

__all__ = [
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
    "check_messages",
    "readable_arguments",
    "run_call",
    "run_calls",
    "tool",
]
