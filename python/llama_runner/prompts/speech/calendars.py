"""Dates and clock times in digits, in the languages other than English whose months are known."""

from __future__ import annotations

import re
from collections.abc import Callable

from .tape import Tape

__all__ = ["apply", "takes_n"]

_MONTHS = {
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "nl": "januari februari maart april mei juni juli augustus september oktober november december",
}
_FIRST = {"fr": "premier", "it": "primo", "pt": "primeiro"}
_ISO = re.compile(r"(?<![\w.,/-])([12][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(?![\w-])")
_NUMERIC = re.compile(
    r"(?<![\w.,/-])(0?[1-9]|[12][0-9]|3[01])([./-])(0?[1-9]|1[0-2])\2([12][0-9]{3})(?!\w|[./-][0-9])"
)
_CLOCK = re.compile(r"(?<![\w.,:])([01]?[0-9]|2[0-4]):([0-5][0-9])(?![\w:]|[.,][0-9])( Uhr(?!\w))?")

_OBLIQUE = re.compile(r"\b(?:am|vom|zum|im|beim|dem|den|des|ab) $")

Convert = Callable[[str, str], str]


def takes_n(found: re.Match[str]) -> bool:
    """Whether a German ordinal stands in an oblique case: am dritten."""
    return _OBLIQUE.search(found.string[max(0, found.start() - 6) : found.start()]) is not None


def apply(tape: Tape, language: str, convert: Convert) -> None:
    """``convert`` says a number as "cardinal", "ordinal" or "year"."""

    def date(found: re.Match[str], day: str, month: str, year: str) -> str:
        name = _MONTHS[language].split(" ")[int(month) - 1]
        said = convert(str(int(day)), "ordinal" if language == "de" else "cardinal")
        if language == "de":
            said += "n" if takes_n(found) else "r"  # am zwölften, zwölfter
        elif day.lstrip("0") == "1":
            said = _FIRST.get(language, said)
        joint = " de " if language in {"es", "pt"} else " "
        return f"{said}{joint}{name}{joint}{convert(year, 'year')}"

    def clock(match: re.Match[str]) -> str:
        hour, minute = convert(str(int(match[1])), "cardinal"), int(match[2])
        if match[3]:
            hour += " Uhr"
        return f"{hour} {convert(str(minute), 'cardinal')}" if minute else hour

    if language in _MONTHS:
        tape.sub(_ISO, lambda found: date(found, found[3], found[2], found[1]))
        tape.sub(_NUMERIC, lambda found: date(found, found[1], found[3], found[4]))
    tape.sub(_CLOCK, clock)
