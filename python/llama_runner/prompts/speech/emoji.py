"""Emoji: left out, or said by their names."""

from __future__ import annotations

import re
import unicodedata

from .numbers import AMERICAN
from .tape import Tape

__all__ = ["drop", "emoticons", "name"]

_PICTURE = (
    "\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_MODIFIERS = "\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff"
_EMOTICON = re.compile(r"(?<!\w)(?:[:;=]['’]?-?[)(DPpO|\]\[]|[:;]-?/(?!/)|<3(?=[\s.!,]*$)|\^_\^|XD|xD)(?!\w)")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
_KEYCAP = re.compile("([0-9#*])\ufe0f?\u20e3")
_SEQUENCE = re.compile(f"[{_PICTURE}][{_MODIFIERS}]*(?:\u200d[{_PICTURE}][{_MODIFIERS}]*)*")
_NUMBER = re.compile("[0-9]+")
_LEFT = re.compile(f"[\u200d{_MODIFIERS}]")
_NAMES = {
    "👍": "thumbs up", "👎": "thumbs down", "❤": "red heart", "😂": "face with tears of joy",
    "🤣": "rolling on the floor laughing",
    "😊": "smiling face", "😀": "grinning face", "🙂": "slightly smiling face", "😍": "smiling face with heart eyes",
    "🎉": "party popper", "🔥": "fire", "✅": "check mark", "✔": "check mark", "❌": "cross mark", "✖": "cross mark",
    "⚠": "warning",
    "⭐": "star", "✨": "sparkles", "🚀": "rocket", "💡": "light bulb", "🙏": "folded hands", "👏": "clapping hands",
    "💯": "one hundred points",
    "👋": "waving hand", "🤔": "thinking face", "😭": "loudly crying face", "😉": "winking face",
    "😎": "smiling face with sunglasses",
    "📌": "pushpin", "📝": "memo", "🏴": "black flag", "☕": "hot beverage", "☀": "sun", "☎": "telephone",
    "✏": "pencil", "➡": "right arrow",
    "💻": "laptop", "👨": "man", "👩": "woman", "🧑": "person",
}  # fmt: skip
_JOBS = {
    "💻": "technologist",
    "🚀": "astronaut",
    "🏫": "teacher",
    "🍳": "cook",
    "🚒": "firefighter",
    "🔬": "scientist",
    "🎨": "artist",
}


def drop(tape: Tape) -> None:
    """Without emoji."""
    if not tape.text.isascii():
        tape.rewrite(_KEYCAP, r"\1")
        tape.rewrite(_FLAG, " ")
        tape.rewrite(_SEQUENCE, " ")
        tape.rewrite(_LEFT, "")


def emoticons(tape: Tape) -> None:
    """Without faces made of signs, which no rule for signs should see."""
    tape.rewrite(_EMOTICON, " ")


def name(tape: Tape) -> None:
    """Each emoji by its English name, with a comma on either side of it."""
    if not tape.text.isascii():
        tape.rewrite(_KEYCAP, r"\1")
        tape.rewrite(_FLAG, lambda flag: f", {tape.hold(_flag(flag[0]))}, ")
        tape.rewrite(_SEQUENCE, lambda found: f", {tape.hold(_name(found[0]))}, ")
        tape.rewrite(_LEFT, "")


def _flag(letters: str) -> str:
    return "flag " + " ".join(chr(ord(letter) - 0x1F1E6 + ord("A")) for letter in letters)


def _name(sequence: str) -> str:
    members = [member.translate(_MODIFIER_TABLE) for member in sequence.split("\u200d")]
    if len(members) == 2 and members[1] in _JOBS and members[0] in {"👨", "👩", "🧑"}:
        return f"{_one(members[0])} {_JOBS[members[1]]}"
    names = [_one(member) for member in members if member and member not in "♀♂"]
    return " ".join(name for name in names if name) or "emoji"


_MODIFIER_TABLE = {0xFE0E: None, 0xFE0F: None, 0x20E3: None, **dict.fromkeys(range(0x1F3FB, 0x1F400))}


def _one(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    name = unicodedata.name(char, "").lower().removesuffix(" sign")
    return _NUMBER.sub(lambda number: f" {AMERICAN.literal(number[0])}", name).replace("- ", " ").strip()
