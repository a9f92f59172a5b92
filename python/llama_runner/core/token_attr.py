"""``TokenAttr``: what a token of a vocabulary is."""

from __future__ import annotations

import enum

__all__ = ["TokenAttr"]


class TokenAttr(enum.IntFlag):
    """The bits of ``Vocab.attr`` and ``Vocab.attrs``. Wraps ``llama_token_attr``."""

    UNDEFINED = 0
    UNKNOWN = 1 << 0
    UNUSED = 1 << 1
    NORMAL = 1 << 2
    CONTROL = 1 << 3
    USER_DEFINED = 1 << 4
    BYTE = 1 << 5
    NORMALIZED = 1 << 6
    LSTRIP = 1 << 7
    RSTRIP = 1 << 8
    SINGLE_WORD = 1 << 9
