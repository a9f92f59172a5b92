"""Counting the tokens of texts and of rendered conversations, and shortening a text to a number of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_runner.core import ChatTemplate
from llama_runner.errors import InvalidArgumentError
from llama_runner.prompts._conversation import Message, digest

__all__ = ["TokenCounter"]

MOST_COUNTS = 1 << 15
MOST_TEXTS = 256


class TokenCounter:
    """Counts with the model's own tokenizer and chat template; what was counted once is remembered."""

    def __init__(self, template: ChatTemplate, template_kwargs: Mapping[str, Any]):
        self.template = template
        self.vocab = template.model.vocab
        self.template_kwargs = dict(template_kwargs)
        self._counts: dict[bytes, int] = {}
        self._short: dict[tuple[bytes, int], str] = {}
        self._overhead: int | None = None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] | None
    ) -> tuple[str, NDArray[np.int32]]:
        """The prompt and its tokens."""
        prompt = self.template.apply(messages, tools=tools, **self.template_kwargs)
        return prompt, self.vocab.tokenize(prompt, add_special=True, parse_special=True)

    def rendered(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> int:
        """How many tokens a conversation is; for short ones that come again."""
        key = hashlib.blake2b(
            b"".join(map(digest, messages)) + b"|" + b"".join(map(digest, tools or ()))
        ).digest()
        if key not in self._counts:
            self._remember(key, len(self.render(messages, tools)[1]))
        return self._counts[key]

    def text(self, text: str) -> int:
        """How many tokens a text is by itself."""
        if not text:
            return 0
        key = _key(text)
        if key not in self._counts:
            self._remember(key, len(self.vocab.tokenize(text, add_special=False, parse_special=True)))
        return self._counts[key]

    def message_overhead(self) -> int:
        """About what the template writes around one message; for planning, never for an account."""
        if self._overhead is None:
            turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
            try:
                more = self.rendered(turns, None) - self.rendered(turns[:1], None)
                self._overhead = max(1, more // 2 - self.text("x"))
            except InvalidArgumentError:  # a template that refuses these; the account does not depend on it
                self._overhead = 4
        return self._overhead

    def shorten(self, text: str, limit: int) -> str:
        """``text``, or its beginning and end around a marker in at most ``limit`` tokens.

        The marker alone takes some, so a lower limit gives that, or the text where it is no longer than the marker.
        """
        if self.text(text) <= limit:
            return text
        key = (_key(text), limit)
        if key not in self._short:
            if len(self._short) >= MOST_TEXTS:
                self._short.clear()
            low, high = 0, min(len(text), 4 * limit)  # characters kept: `low` is known to fit
            while high < len(text) and self._fits(_middle_out(text, high), limit):
                low, high = high, min(len(text), 2 * high)
            while low < high - 1:
                kept = (low + high) // 2
                if self._fits(_middle_out(text, kept), limit):
                    low = kept
                else:
                    high = kept
            short = _middle_out(text, low)
            self._short[key] = short if self.text(short) < self.text(text) else text
        return self._short[key]

    def _fits(self, text: str, limit: int) -> bool:
        return len(self.vocab.tokenize(text, add_special=False, parse_special=True)) <= limit

    def _remember(self, key: bytes, count: int) -> None:
        if len(self._counts) >= MOST_COUNTS:
            self._counts.clear()
        self._counts[key] = count


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _middle_out(text: str, kept: int) -> str:
    """``kept`` characters of ``text``, two thirds of them from its beginning, and how many are missing."""
    tail = kept // 3
    head = kept - tail
    marker = f"[… {len(text) - kept} characters left out …]"
    return "\n".join(part for part in (text[:head], marker, text[len(text) - tail :] if tail else "") if part)
