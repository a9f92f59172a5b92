"""The text of one sentence while rules rewrite it: what is decided is taken out, so that no later rule touches it."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

__all__ = ["HELD", "PAUSE_DASH", "PAUSE_DOTS", "Letters", "Part", "Pause", "Phoneme", "Tape", "clean"]


@dataclasses.dataclass(frozen=True, slots=True)
class Phoneme:
    """A word whose pronunciation is given; ``plain`` is what a form without phonemes says."""

    ipa: str
    plain: str


@dataclasses.dataclass(frozen=True, slots=True)
class Letters:
    """Characters that are spelt one by one; ``ending`` is what is said with the last of them: a plural's s."""

    text: str
    ending: str = ""

    @property
    def plain(self) -> str:
        return " ".join(self.text) + self.ending


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """A pause within the sentence."""

    strength: Literal["medium", "strong"]


Part = str | Phoneme | Letters | Pause

# One character of a private plane stands for each thing taken out. The input's own private characters are dropped
# before (they have no sound), so these can only be ours.
_FIRST = 0xF0000
_HOLDERS = 0xFFFD  # how many characters the plane has
PAUSE_DASH, PAUSE_DOTS = chr(_FIRST), chr(_FIRST + 1)
_FIXED: tuple[Part, ...] = (Pause("medium"), Pause("strong"))

HELD = "\U000f0002-\U000ffffd"
"""For a character class of a pattern: anything taken out, pauses apart."""

_HOLDER = re.compile("([\U000f0000-\U000ffffd])")
_DIGIT = re.compile("[0-9]")

_UNSPEAKABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff0-\uffff\U000e0000-\U0010ffff]+"
)
_SPACES = re.compile("[ \t\n\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_OTHER_DIGITS = re.compile(r"(?![0-9])\d")


def clean(text: str) -> str:
    """Without what has no sound and what XML forbids; every space is one blank, every decimal digit 0 to 9."""
    text = _SPACES.sub(" ", _UNSPEAKABLE.sub("", text))
    if not text.isascii():
        text = _OTHER_DIGITS.sub(lambda digit: str(unicodedata.digit(digit[0])), text)
    return text


class Tape:
    """``text`` with one character for each part taken out of it."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        self.text = clean(text)
        self._parts: list[tuple[Part, ...]] = [(part,) for part in _FIXED]

    @property
    def has_digits(self) -> bool:
        return _DIGIT.search(self.text) is not None

    def hold(self, *parts: Part) -> str:
        """Take ``parts`` out of the rules' reach; returns the character that stands for them in ``text``."""
        if len(self._parts) >= _HOLDERS:  # far beyond a sentence's length
            return ""
        self._parts.append(parts)
        return chr(_FIRST + len(self._parts) - 1)

    def sub(self, pattern: re.Pattern[str], say: Callable[[re.Match[str]], Part | None]) -> None:
        """Put what ``say`` returns in place of each match, out of reach; where it returns None the text stays.

        A full stop that ends both the match and the sentence ends the sentence still.
        """
        text = self.text
        if pattern.search(text) is None:
            return
        end = len(text.rstrip(" \"'”’)]»*_"))

        def put(match: re.Match[str]) -> str:
            said = say(match)
            if said is None:
                return match[0]
            stop = "." if match.end() == end and match[0].endswith(".") else ""
            return (self.hold(said) if said else "") + stop

        self.text = pattern.sub(put, text)

    def rewrite(self, pattern: re.Pattern[str], by: str | Callable[[re.Match[str]], str]) -> None:
        """Replace within the reach of the rules to come."""
        self.text = pattern.sub(by, self.text)

    def parts(self) -> list[Part]:
        """The sentence as it is to be said: spoken text and what is more than text, in order, spaces included."""
        out: list[Part] = []
        after = ""  # what ends at this point: a "word", a "part" taken out, or nothing that needs a blank
        for index, run in enumerate(_HOLDER.split(self.text)):
            if index % 2:
                for part in self._expand(ord(run) - _FIRST):
                    pause = isinstance(part, Pause)
                    if after and not pause:
                        _append(out, " ")
                    _append(out, part)
                    after = "" if pause else "part"
            elif run:
                if after == "part" and _is_word(run[0]):
                    _append(out, " ")
                _append(out, run)
                after = "word" if _is_word(run[-1]) else ""
        return out

    def _expand(self, index: int) -> list[Part]:
        """What a character stands for, with what its spoken text holds in turn."""
        done: list[Part] = []
        todo: list[Part] = list(reversed(self._parts[index]))
        while todo:
            part = todo.pop()
            if not isinstance(part, str):
                done.append(part)
                continue
            holder = _HOLDER.search(part)
            if holder is None:
                if part.strip():
                    done.append(part.strip())
                continue
            at = holder.start()
            todo.append(part[at + 1 :])
            todo.extend(reversed(self._parts[ord(part[at]) - _FIRST]))
            todo.append(part[:at])
        return done


def _is_word(char: str) -> bool:
    return char.isalnum() and not "\u2e80" <= char <= "\u9fff"  # Chinese and Japanese have no blanks


def _append(out: list[Part], part: Part) -> None:
    if isinstance(part, str) and out and isinstance(out[-1], str):
        out[-1] += part
    else:
        out.append(part)
