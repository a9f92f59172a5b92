"""Text that a model would read as its own special tokens."""

from __future__ import annotations

from llama_runner._check import check_text
from llama_runner.core import TokenAttr, Vocab

__all__ = ["special_tokens_in"]


def special_tokens_in(text: str, vocab: Vocab) -> list[str]:
    """Which control tokens ``text`` holds, such as ``<|im_end|>``, each once and in order.

    A rendered conversation is tokenized with ``parse_special=True``, so such text in a value or a message ends turns
    and begins others. Nothing here takes it out: that is for the one who knows whether it belongs there.
    """
    check_text("text", text)
    if not text:
        return []
    tokens = vocab.tokenize(text, add_special=False, parse_special=True)
    control = (int(t) for t in tokens if vocab.attr(int(t)) & TokenAttr.CONTROL)
    return list(dict.fromkeys(vocab.text(token) for token in control))
