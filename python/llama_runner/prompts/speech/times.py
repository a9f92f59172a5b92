"""Clock times and durations in English."""

from __future__ import annotations

import re

from .dates import clock
from .numbers import EnglishNumbers
from .tape import Tape

__all__ = ["apply"]

_HALF = r"(?:[AaPp]\.[Mm]\.|[AaPp][Mm](?![\w]))"
_TO = r" ?(?:[-–—]|to) ?"
_B = r"(?<![\w.,:/$£€-])"
_TWELVE = re.compile(rf"(?<![\w.,:$£€-])(1[0-2]|0?[1-9])(?:[:.]([0-5][0-9]))?(?::[0-5][0-9])? ?({_HALF})")
_TWELVE_RANGE = re.compile(
    rf"{_B}(1[0-2]|0?[1-9])(?::([0-5][0-9]))? ?({_HALF})?{_TO}(1[0-2]|0?[1-9])(?::([0-5][0-9]))? ?({_HALF})"
)
_RANGE = re.compile(
    rf"{_B}([01]?[0-9]|2[0-4]):([0-5][0-9])(?: ?[-–—] ?)([01]?[0-9]|2[0-4]):([0-5][0-9])(?![\w:]|\.[0-9])"
)
_WITH_SECONDS = re.compile(
    r"(?<![\w.:/-])([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])(?:\.[0-9]{1,6})?(?![\w:]|\.[0-9])"
)
_CLOCK = re.compile(rf"{_B}([01]?[0-9]|2[0-4]):([0-5][0-9])( ?h(?:rs)?)?(?![\w:%]|[.,][0-9])")
_MINUTES = re.compile(
    rf"{_B}(2[5-9]|[3-5][0-9]):([0-5][0-9])(?![\w:%]|[.,][0-9])"
)  # 35:12 is minutes and seconds
_AT = re.compile(r"\b(?:at|by|until|till|from|since|before|after|around) $", re.IGNORECASE)
_RATIO = re.compile(
    r"(?<![\w.,:])([0-9]{1,6}|[0-9]{1,3}(?:,[0-9]{3})+) ?: ?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,6})(?![\w:]|[.,][0-9])"
)
_PARTS = re.compile(
    r"(?<![\w.,])(?=[0-9])(?:([0-9]{1,3}) ?d(?:ays?)?,? ?)?(?:([0-9]{1,3}) ?h(?:rs?|"
    r"ours?)?,? ?)?(?:([0-9]{1,3}) ?m(?:in)?,? ?)?(?:([0-9]{1,3}) ?s(?:ec)?)?(?!\w)"
)
_OFFSET = re.compile(r"(?<!\w)(UTC|GMT) ?([+−-])([0-9]{1,2})(?::([0-5][0-9]))?(?!\w)")
_ALWAYS = re.compile(r"(?<![\w/])24/7(?![\w/])")


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Times of day first, then what has the form of one and is none: durations and ratios."""
    text = tape.text
    if not tape.has_digits:
        return

    def half(text: str) -> str:
        return " ".join(text.replace(".", "").upper())

    def twelve(match: re.Match[str]) -> str:
        return f"{_hour(match[1], match[2], say)} {half(match[3])}"

    def twelve_range(match: re.Match[str]) -> str:
        first = _hour(match[1], match[2], say) + (f" {half(match[3])}" if match[3] else "")
        return f"{first} to {_hour(match[4], match[5], say)} {half(match[6])}"

    if "m" in text.lower():
        tape.sub(_TWELVE_RANGE, twelve_range)
        tape.sub(_TWELVE, twelve)
    tape.sub(_ALWAYS, lambda _: f"{say.cardinal(24)} {say.cardinal(7)}")
    tape.sub(_OFFSET, lambda zone: _offset(zone, say))
    if ":" in text:
        tape.sub(
            _RANGE, lambda span: f"{clock(int(span[1]), span[2], say)} to {clock(int(span[3]), span[4], say)}"
        )
        tape.sub(_WITH_SECONDS, lambda time: _with_seconds(time, say))
        tape.sub(_CLOCK, lambda time: clock(int(time[1]), time[2], say) + (" hours" if time[3] else ""))
        tape.sub(_MINUTES, lambda time: f"{say.cardinal(int(time[1]))} {say.pair(int(time[2]))}")
        tape.sub(_RATIO, lambda ratio: f"{say.literal(ratio[1])} to {say.literal(ratio[2])}")
    tape.sub(_PARTS, lambda parts: _parts(parts, say))


def _hour(hour: str, minute: str | None, say: EnglishNumbers) -> str:
    said = say.cardinal(int(hour))
    return f"{said} {say.pair(int(minute))}" if minute and int(minute) else said


def _offset(match: re.Match[str], say: EnglishNumbers) -> str:
    sign = "plus" if match[2] == "+" else "minus"
    said = f"{' '.join(match[1])} {sign} {say.cardinal(int(match[3]))}"
    return f"{said} {say.pair(int(match[4]))}" if match[4] and int(match[4]) else said


def _with_seconds(match: re.Match[str], say: EnglishNumbers) -> str:
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3])
    before = match.string[max(0, match.start() - 8) : match.start()]
    if hours < 24 and _AT.search(before):
        said = clock(hours, match[2], say)
        return f"{said} and {_count(seconds, 'second', say)}" if seconds else said
    return _duration((hours, "hour"), (minutes, "minute"), (seconds, "second"), say=say)


def _parts(match: re.Match[str], say: EnglishNumbers) -> str | None:
    """2h 30m: at least two of the parts, for one alone could be metres."""
    given = [
        (int(text), unit)
        for text, unit in zip(match.groups(), ("day", "hour", "minute", "second"), strict=True)
        if text
    ]
    if len(given) < 2:
        return None
    trailing = " " if match[0].endswith(" ") else ""
    return _duration(*given, say=say) + trailing


def _duration(*parts: tuple[int, str], say: EnglishNumbers) -> str:
    said = [_count(number, unit, say) for number, unit in parts if number]
    if not said:
        return _count(0, parts[-1][1], say)
    if len(said) < 3:
        return " and ".join(said)
    return f"{', '.join(said[:-1])}, and {said[-1]}"


def _count(number: int, unit: str, say: EnglishNumbers) -> str:
    return f"{say.cardinal(number)} {unit}{'' if number == 1 else 's'}"
