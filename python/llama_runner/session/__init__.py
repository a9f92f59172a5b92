"""Conversations whose messages are spans of a sequence in the KV cache."""

from llama_runner.session.message import Branch, Message
from llama_runner.session.reply import Reply, ReplyChunk
from llama_runner.session.session import Session

__all__ = ["Branch", "Message", "Reply", "ReplyChunk", "Session"]
