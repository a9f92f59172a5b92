"""Where a sentence ends, decided while the text still arrives.

Text is taken character by character as far as decisions go,
and each decision depends on nothing but the characters up
to it. So the sentences are the same however the text is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .abbreviations import SplitRules

__all__ = ["MAX_SENTENCE", "SentenceSplitter"]

MAX_SENTENCE = 600
"""Characters after which a text without a sentence's end is cut all the same, at a comma or a blank if there is one."""

_RIGHT_CONTEXT = 48  # so much of what follows is looked at, at most
_BRACKET_REACH = 300  # an opening bracket or backtick that is not closed within this was none

_STOPS = ".!?…‽⁇⁈⁉؟۔।॥።"
_WIDE_STOPS = "。！？｡．"  # no blank follows these
_CLOSERS = "\"'”’»›)]}*_~）」』】"
_OPENERS = "\"'“‘«‹([{*_`~¿¡„‚（「『【<"
_EVENT = re.compile(f"[{re.escape(_STOPS + _WIDE_STOPS)}`()\\[\\]]")
_BREAKS = ("; ", ", ", ": ", " – ", " — ")


class SentenceSplitter:
    """Cuts the running text of one block into sentences and hands each, as written, to ``emit``.

    ``emit`` gets the text and whether it was cut for its length.
    """

    __slots__ = ("_buffer", "_code", "_depth", "_emit", "_gap", "_mark", "_open_at", "_rules")

    def __init__(self, rules: SplitRules, emit: Callable[[str, bool], None]) -> None:
        self._rules = rules
        self._emit = emit
        self._reset()

    def _reset(self) -> None:
        self._buffer = ""
        self._mark = -1  # where a sentence may end, or -1
        self._gap = False  # whether a blank came after that
        self._depth = 0  # open brackets
        self._code = False  # within backticks
        self._open_at = 0  # where the outermost of them opened

    def feed(self, text: str) -> None:
        """Take the next characters."""
        # What a decision puts back is taken before the rest: a stack of what is left to read.
        todo = [(text, 0)]
        while todo:
            text, at = todo.pop()
            back = ""
            while at < len(text) and not back:
                if self._mark < 0:
                    at = self._run(text, at)
                else:
                    back = self._weigh(text[at])
                    at += 1
                if len(self._buffer) >= MAX_SENTENCE and not back:
                    back = self._cut()
            if at < len(text):
                todo.append((text, at))
            if back:
                todo.append((back, 0))

    def finish(self) -> None:
        """End the block: what is left is its last sentence, or several where a decision was still open."""
        while self._buffer:
            right = self._right() if self._mark >= 0 else ""
            back = self._resolve(right, True) if right else None
            if back is None:
                self._flush(self._buffer, False)
            else:
                self.feed(back)
        self._reset()

    def _flush(self, text: str, cut: bool) -> None:
        self._reset()
        text = text.strip()
        if text:
            self._emit(text, cut)

    # --- no end in sight -----------------------------------------------------------------------------

    def _run(self, text: str, at: int) -> int:
        """Take text up to and with the next character that matters; returns how far it came."""
        if not self._buffer:
            while at < len(text) and text[at].isspace():
                at += 1
        limit = min(len(text), at + MAX_SENTENCE - len(self._buffer))
        found = _EVENT.search(text, at, limit)
        if not found:
            self._buffer += text[at:limit]
            return limit
        char = found[0]
        place = len(self._buffer) + found.start() - at
        self._buffer += text[at : found.end()]
        if char == "`":
            if place == 0 or self._buffer[place - 1] != "`":
                self._code = not self._code
                if self._code and not self._depth:
                    self._open_at = place
        elif char in "([":
            if not self._code and self._buffer[place - 1 : place] not in {":", ";"}:
                if not self._depth:
                    self._open_at = place
                self._depth += 1
        elif char in ")]":
            if not self._code:
                self._depth = max(0, self._depth - 1)
                inside = self._buffer[:place].rstrip(_CLOSERS)[-1:]
                if not self._depth and inside and inside in _STOPS:  # (A sentence in brackets.)
                    self._mark = place + 1
        elif not (self._code or self._depth) or place - self._open_at > _BRACKET_REACH:
            self._mark = place + 1
        return found.end()

    def _cut(self) -> str:
        """The sentence is too long: end it at the best place, and return what comes after."""
        buffer = self._buffer
        if self._mark >= 0:
            place = self._mark
        else:
            half = MAX_SENTENCE // 2
            place = max(buffer.rfind(mark, half, MAX_SENTENCE) + len(mark) - 1 for mark in _BREAKS)
            if place < half:
                place = max(buffer.rfind(blank, half, MAX_SENTENCE) for blank in " \n\t")
            if place < half:
                place = MAX_SENTENCE
        rest = buffer[place:]
        self._flush(buffer[:place], True)
        return rest

    # --- a sentence may have ended -------------------------------------------------------------------

    def _weigh(self, char: str) -> str:
        """Take a character after a possible end; returns text to be read again, once that is decided."""
        buffer = self._buffer
        if not self._gap:
            if char in _STOPS or char in _WIDE_STOPS or char in _CLOSERS:
                self._buffer = buffer + char
                self._mark += 1
                return ""
            if char.isspace():
                self._buffer = buffer + char
                self._gap = True
                return ""
            if self._wide_stop():
                self._flush(buffer, False)
            else:  # 3.14, example.com, U.S.A
                self._mark = -1
            return char
        if char.isspace() and buffer[-1].isspace():
            return ""
        self._buffer = buffer + char
        return self._resolve(self._right(), False) or ""

    def _wide_stop(self) -> bool:
        ended = self._buffer.rstrip(_CLOSERS)
        return bool(ended) and ended[-1] in _WIDE_STOPS

    def _right(self) -> str:
        return self._buffer[self._mark :].lstrip()

    def _resolve(self, right: str, complete: bool) -> str | None:
        """Decide with what is known of the text after; None while it takes more of it."""
        complete = complete or len(right) >= _RIGHT_CONTEXT
        left = self._buffer[: self._mark]
        follows = right.lstrip(_OPENERS)
        if not follows and not complete:
            return None
        ends = self._wide_stop() or self._rules.ends(left, right, follows, complete)
        if ends is None:
            return None
        rest = self._buffer[self._mark :]
        if ends:
            self._flush(left, False)
            return rest.lstrip()
        self._buffer = left
        self._mark = -1
        self._gap = False
        return rest
