"""What is left of a sentence's marks: those that a synthesizer hears stay, the others become pauses or nothing."""

from __future__ import annotations

import re
import unicodedata

from .tape import HELD, PAUSE_DASH, PAUSE_DOTS, Tape

__all__ = ["apply"]

_DASH = re.compile(r" ?(?:—|―|⸺|(?<!-)-{2,3}(?!-)) ?| [–‒-] ")
_JOINED = re.compile(rf"(?<=[{HELD}])-(?=[{HELD}])")
_EN_DASH = re.compile(r"[–‒‐‑]")
_DOTS = re.compile(r" ?(?:\.\.\.+|…)(?: ?\.)*(?:…)*")
_LONE_HYPHEN = re.compile(rf"(?<![\w{HELD}])[-−]+|[-−]+(?![\w{HELD}])")
_OPEN_BRACKET = re.compile(r" ?[(（] ?")
_CLOSE_BRACKET = re.compile(r" ?[)）] ?")
_APOSTROPHE = re.compile(rf"(?<=[\w{HELD}])[’'ʼ](?=\w)|(?<=s)[’'](?= )")
_KEPT = "\ue000"  # not a character of any text that has been cleaned
_SILENT = re.compile(r"[\"'“”„‟‘’‚‛«»‹›`´*_~|\\\[\]{}<>^#•‣◦▪●■□◆◇★☆®™℠†‡¤¦¨¯¸ªº=+/]+")
_KNOWN = re.compile(rf"[^\w\s{HELD}{PAUSE_DASH}{PAUSE_DOTS}{_KEPT}.,;:!?…。！？、，；：।॥؟،؛¿¡。·'’&%@$€£-]")
_MARKS = re.compile(
    f"[ ,;:{PAUSE_DASH}{PAUSE_DOTS}]*[,;:{PAUSE_DASH}{PAUSE_DOTS}][ ,;:{PAUSE_DASH}{PAUSE_DOTS}]*"
)
_BEFORE_END = re.compile(f"[ ,;:{PAUSE_DASH}{PAUSE_DOTS}]+(?=[.!?])")
_ENDS = re.compile(r"([.!?])(?: ?[.!?])+")
_EDGE = f" ,;:.{PAUSE_DASH}{PAUSE_DOTS}"


def apply(tape: Tape) -> None:
    """Quotes and brackets go, dashes and ellipses become pauses, nothing is doubled."""
    text = tape.text
    if not text.replace(" ", "").isalnum():
        text = _APOSTROPHE.sub(_KEPT, text)
        text = _DASH.sub(PAUSE_DASH, text)
        text = _DOTS.sub(_dots, text)
        text = _JOINED.sub(" ", text)
        text = _EN_DASH.sub("-", text)
        text = _LONE_HYPHEN.sub(" ", text)
        text = _OPEN_BRACKET.sub(", ", text)
        text = _CLOSE_BRACKET.sub(", ", text)
        text = _SILENT.sub(" ", text)
        text = _KNOWN.sub(_unknown, text)
        text = text.replace(_KEPT, "'")
        text = _MARKS.sub(_strongest, text)
        text = _BEFORE_END.sub("", text)
        text = _ENDS.sub(lambda marks: "?" if "?" in marks[0] else "!" if "!" in marks[0] else ".", text)
    text = re.sub(" +", " ", text)
    text = re.sub(r" +(?=[,.;:!?。！？])", "", text).strip()
    text = text.lstrip(_EDGE + "!?") if any(char.isalnum() or char >= "\U000f0002" for char in text) else ""
    tape.text = text


def _dots(match: re.Match[str]) -> str:
    rest = match.string[match.end() :].strip(" \"'”’»)]*_")
    return PAUSE_DOTS if rest else "."


def _unknown(match: re.Match[str]) -> str:
    return match[0] if _is_letter_or_mark(match[0]) else " "


def _is_letter_or_mark(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def _strongest(match: re.Match[str]) -> str:
    """Of several marks in a row, the one that is heard most."""
    marks = match[0]
    if match.end() == len(match.string):
        return ":" if ":" in marks else ""
    for mark, by in ((PAUSE_DOTS, PAUSE_DOTS), (PAUSE_DASH, PAUSE_DASH), (";", "; "), (":", ": ")):
        if mark in marks:
            return by
    return ", "
