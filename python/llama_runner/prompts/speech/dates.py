"""Dates, years, decades and clock times in English."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import HELD, Tape

__all__ = ["apply"]

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MONTH = (
    r"(January|February|March|April|May|June|July|August|September|October|November|December|"
    r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)(?!\w)\.?)"
)
_DAYS = {
    "mon": "Monday", "tue": "Tuesday", "tues": "Tuesday", "wed": "Wednesday", "thu": "Thursday", "thur": "Thursday",
    "thurs": "Thursday", "fri": "Friday", "sat": "Saturday", "sun": "Sunday",
}  # fmt: skip
_DAY_NAME = r"(Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)"
_SUFFIX = r"(?:st|nd|rd|th)?"
_DAY = rf"([0-9]{{1,2}}){_SUFFIX}"
_YEAR = r"([12][0-9]{3})"
_B = r"(?<![\w./,-])"  # not within a longer number or word
_E = r"(?!\w|[./,-][0-9])"
_TO = r" ?[-–—] ?"

_ISO = re.compile(
    rf"{_B}([0-9]{{4}})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"(?:(?:T|,? )([0-2]?[0-9]):([0-5][0-9])(?::([0-5][0-9])(?:\.[0-9]{1,9})?)?(Z|"
    r"[+-][0-2][0-9]:?[0-5][0-9])?)?(?![\w-])"
)
_ISO_MONTH = re.compile(rf"{_B}((?:19|20)[0-9]{{2}})-(0[1-9]|1[0-2]){_E}")
_SLASHED = re.compile(rf"{_B}([0-9]{{1,2}})/([0-9]{{1,2}})/([0-9]{{4}}|[0-9]{{2}}){_E}")
_YEAR_FIRST = re.compile(rf"{_B}([12][0-9]{{3}})/(0?[1-9]|1[0-2])/(0?[1-9]|[12][0-9]|3[01]){_E}")
_DOTTED = re.compile(rf"{_B}(0?[1-9]|[12][0-9]|3[01])\.(0?[1-9]|1[0-2])\.([12][0-9]{{3}}){_E}")
_MONTH_DAYS = re.compile(rf"(?<!\w){_MONTH} {_DAY}(?:{_TO}(?:{_MONTH} )?{_DAY})?(?:,? {_YEAR})?{_E}(?! ?%)")
_DAYS_MONTH = re.compile(rf"{_B}(the )?{_DAY}(?:{_TO}{_DAY})?(?: of)? {_MONTH}(?:,? {_YEAR})?{_E}")
_DASHED = re.compile(rf"{_B}{_DAY}-{_MONTH}-([12][0-9]{{3}}|[0-9]{{2}}){_E}")
_MONTH_YEAR = re.compile(rf"(?<!\w){_MONTH},? (?:(?:of )?{_YEAR}|['’]([0-9]{{2}})){_E}")
_DAY_BEFORE_DATE = re.compile(rf"(?<!\w){_DAY_NAME}\.?(?=,? (?:{_MONTH}|[0-9{HELD}]|at [0-9]))")
_DAY_RANGE = re.compile(rf"(?<!\w){_DAY_NAME}\.?{_TO}{_DAY_NAME}(?!\w)")
_DAY_NAMES_RANGE = re.compile(r"(?<!\w)([A-Z][a-z]+day)[-–]([A-Z][a-z]+day)(?!\w)")
_MONTH_RANGE = re.compile(rf"(?<!\w){_MONTH} ?[-–] ?{_MONTH}(?!\w)")
_DAY_ALONE = re.compile(rf"(?<=[Oo]n ){_DAY_NAME}\.(?!\w)")
_MONTH_ALONE = re.compile(r"(?<!\w)(Jan|Feb|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\.(?!\w)")
_DECADE = re.compile(r"(?<![\w.,'’])(['’]?)([0-9]{2}|[12][0-9]{2}0)['’]?s(?!\w)")
_ESTABLISHED = re.compile(r"(?<!\w)[Ee]st\. (?=[12][0-9]{3}(?!\w))")
_SHORT_YEAR = re.compile(r"(?<!\w)['’]([0-9]{2})(?![\w'’])")
_ERA = re.compile(
    r"(?<![\w.,$£€])([0-9]{1,4})(?:[-–]([0-9]{1,4}))? ?(BCE|CE|BC|AD|B\.C\.(?:E\.)?|A\.D\.|C\.E\.)(?![\w])"
)
_AD = re.compile(rf"(?<!\w)(AD|A\.D\.) ([0-9]{{1,4}}){_E}")
_YEAR_SPAN = re.compile(
    r"(?<![\w.,$£€#-])([12][0-9]{3})(?:[-–—]| [–—] )([12][0-9]{3}|[0-9]{2})(?![\w,%-]|\.[0-9])"
)
_SLASHED_YEARS = re.compile(r"(?<![\w.,/$£€-])((?:19|20)[0-9]{2})/([0-9]{2})(?![\w/]|[.,][0-9])")
_BARE_YEAR = re.compile(r"(?<![\w.,$£€¥₹#/-])([12][0-9]{3})(?!\w|[.,/:][0-9]|[-–][0-9]|[%°$€£¥₹])")
_BEFORE_YEAR = re.compile(
    r"(?:\b(?:in|since|by|until|till|from|of|year|years|circa|around|before|after|during|for|late|early|mid|and|"
    r"to|to|through|"
    r"summer|winter|spring|autumn|fall|season|class|copyright|©|between|or|born|died|c\.|ca\.|q[1-4]|fy|election|"
    r"olympics|edition)|"
    r"[(©—–])[ ]?$",
    re.IGNORECASE,
)
_QUANTITY_AFTER = re.compile(
    r"[ -](?!(?:was|is|has|this|as|us|his|its|thus|series|times|news|elections|olympics|games|words)\b)"
    r"(?:[a-z]+s|people|men|women|children|percent|feet|fish|sheep|more|of|or more|other|different|new|small|large)\b"
)
_PLACE_PREPOSITION = re.compile(
    r"\b(?:in|since|by|until|till|during|circa|year|late|early|summer|winter|spring|autumn|fall)[ ]$",
    re.IGNORECASE,
)


def _month(name: str) -> str:
    key = name[:3].lower()
    return next(month for month in _MONTHS if month[:3].lower() == key)


def _full_year(text: str) -> int:
    year = int(text)
    if len(text) > 2:
        return year
    return year + (2000 if year < 50 else 1900)


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Everything that names a day, a month, a year or a decade."""
    text = tape.text
    digits = tape.has_digits
    if digits:
        tape.rewrite(_ESTABLISHED, "established ")
        _numeric(tape, say)
        _named(tape, say)
    if "-" in text or "–" in text:
        tape.sub(_DAY_RANGE, lambda days: f"{_DAYS[days[1].lower()]} to {_DAYS[days[2].lower()]}")
        tape.sub(_DAY_NAMES_RANGE, lambda days: f"{days[1]} to {days[2]}")
        tape.sub(_MONTH_RANGE, lambda months: f"{_month(months[1])} to {_month(months[2])}")
    if digits:
        tape.sub(_DAY_BEFORE_DATE, lambda day: _DAYS[day[1].lower()])
    if "." in text:
        tape.sub(_DAY_ALONE, lambda day: _DAYS[day[1].lower()])
        tape.sub(_MONTH_ALONE, lambda month: _month(month[1]))
    if digits:
        _years(tape, say)


def _date(day: int, month: str, year: int | None, say: EnglishNumbers) -> str | None:
    if not 1 <= day <= 31:
        return None
    said = f"the {say.ordinal(day)} of {month}" if say.british else f"{month} {say.ordinal(day)}"
    return said if year is None else f"{said}, {say.year(year)}"


def _numeric(tape: Tape, say: EnglishNumbers) -> None:
    def iso(match: re.Match[str]) -> str | None:
        said = _date(int(match[3]), _MONTHS[int(match[2]) - 1], int(match[1]), say)
        if match[4] and int(match[4]) < 24:
            said = f"{said}, at {clock(int(match[4]), match[5], say)}"
            if match[6] and int(match[6]):
                said += f" and {say.cardinal(int(match[6]))} second{'s' * (int(match[6]) != 1)}"
            if match[7]:
                said += f" {_zone(match[7], say)}"
        return said

    def slashed(match: re.Match[str]) -> str | None:
        first, second = int(match[1]), int(match[2])
        day, month = (first, second) if say.british else (second, first)
        if month > 12:
            day, month = month, day
        if not 1 <= month <= 12:
            return None
        return _date(day, _MONTHS[month - 1], _full_year(match[3]), say)

    tape.sub(_ISO, iso)
    tape.sub(_ISO_MONTH, lambda date: f"{_MONTHS[int(date[2]) - 1]} {say.year(int(date[1]))}")
    tape.sub(_YEAR_FIRST, lambda date: _date(int(date[3]), _MONTHS[int(date[2]) - 1], int(date[1]), say))
    tape.sub(_SLASHED, slashed)
    tape.sub(_DOTTED, lambda date: _date(int(date[1]), _MONTHS[int(date[2]) - 1], int(date[3]), say))


def _zone(text: str, say: EnglishNumbers) -> str:
    if text == "Z":
        return "U T C"
    hours, minutes = int(text[1:3]), int(text[-2:])
    said = f"U T C {'plus' if text[0] == '+' else 'minus'} {say.cardinal(hours)}"
    return f"{said} {say.pair(minutes)}" if minutes else said


def clock(hour: int, minute: str, say: EnglishNumbers) -> str:
    """A time of the 24-hour clock: "fourteen thirty", "nine oh five", "three o'clock", "fourteen hundred"."""
    if int(minute):
        return f"{say.cardinal(hour)} {say.pair(int(minute))}"
    if hour == 0:
        return "midnight"
    return f"{say.cardinal(hour)} o'clock" if hour <= 12 else f"{say.cardinal(hour)} hundred"


def _named(tape: Tape, say: EnglishNumbers) -> None:
    def month_days(match: re.Match[str]) -> str | None:
        first, last = int(match[2]), int(match[4]) if match[4] else None
        if not 1 <= first <= 31 or (last is not None and not 1 <= last <= 31):
            return None
        said = f"{_month(match[1])} {say.ordinal(first)}"
        if last is not None:
            said += f" to {_month(match[3]) + ' ' if match[3] else ''}{say.ordinal(last)}"
        return f"{said}, {say.year(int(match[5]))}" if match[5] else said

    def days_month(match: re.Match[str]) -> str | None:
        first, last = int(match[2]), int(match[3]) if match[3] else None
        if not 1 <= first <= 31 or (last is not None and not 1 <= last <= 31):
            return None
        said = f"the {say.ordinal(first)}"
        if last is not None:
            said += f" to the {say.ordinal(last)}"
        said += f" of {_month(match[4])}"
        return f"{said}, {say.year(int(match[5]))}" if match[5] else said

    def month_year(match: re.Match[str]) -> str:
        year = int(match[2]) if match[2] else _full_year(match[3])
        return f"{_month(match[1])} {say.year(year)}"

    tape.sub(_DASHED, lambda date: _date(int(date[1]), _month(date[2]), _full_year(date[3]), say))
    tape.sub(_DAYS_MONTH, days_month)
    tape.sub(_MONTH_DAYS, month_days)
    tape.sub(_MONTH_YEAR, month_year)


def _years(tape: Tape, say: EnglishNumbers) -> None:
    def decade(match: re.Match[str]) -> str | None:
        year = int(match[2])
        if len(match[2]) == 2 and (year % 10 or not year):
            return "two thousands" if match[2] == "00" else None
        return say.decade(year)

    def era(match: re.Match[str]) -> str:
        letters = " ".join(match[3].replace(".", ""))
        span = f" to {say.year(int(match[2]))}" if match[2] else ""
        return f"{say.year(int(match[1]))}{span} {letters}"

    def span(match: re.Match[str]) -> str | None:
        first = int(match[1])
        if len(match[2]) == 2:
            last = int(match[2])
            if last <= first % 100:
                return None
            return f"{say.year(first)} to {say.pair(last)}"
        if not first < int(match[2]) < first + 1000:
            return None
        return f"{say.year(first)} to {say.year(int(match[2]))}"

    tape.sub(_DECADE, decade)
    tape.sub(_SHORT_YEAR, lambda year: say.pair(int(year[1])) if int(year[1]) else None)
    tape.sub(_ERA, era)
    tape.sub(_AD, lambda date: f"A D {say.year(int(date[2]))}")
    tape.sub(_YEAR_SPAN, span)
    tape.sub(_SLASHED_YEARS, lambda years: f"{say.year(int(years[1]))} {say.pair(int(years[2]))}")
    tape.sub(_BARE_YEAR, lambda year: _bare_year(year, say))


def _bare_year(match: re.Match[str], say: EnglishNumbers) -> str | None:
    """A number that could be a year, or could count something."""
    year = int(match[1])
    before = match.string[max(0, match.start() - 16) : match.start()]
    after = match.string[match.end() : match.end() + 24]
    if _QUANTITY_AFTER.match(after) and not _PLACE_PREPOSITION.search(before):
        return None
    if 1900 <= year <= 2099 or (1066 <= year < 2100 and _BEFORE_YEAR.search(before)):
        return say.year(year)
    return None
