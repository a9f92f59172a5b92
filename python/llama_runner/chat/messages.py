"""Conversations as lists of messages in OpenAI's form: checked, and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["check_messages"]


def check_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """``messages`` as new dicts in OpenAI's form. Raises MessageError, which names the message."""
    raise NotImplementedError
