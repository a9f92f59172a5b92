"""Numbers in scientific notation, with the unit that may follow them."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import Tape
from .units import SYMBOL, unit_name

__all__ = ["apply"]

_E = r"(?![\w]|[.,][0-9])"
_UNIT = rf"(?: ?({SYMBOL}))?"
_DIGITS = {
    "²": "2",
    "³": "3",
    "⁰": "0",
    "¹": "1",
    "⁴": "4",
    "⁵": "5",
    "⁶": "6",
    "⁷": "7",
    "⁸": "8",
    "⁹": "9",
    "⁻": "-",
    "ⁿ": "n",
}
_SCIENTIFIC = re.compile(rf"(?<![\w.,])([-−+])?([0-9]+(?:\.[0-9]+)?)[eE]([-−+]?)([0-9]{{1,4}}){_UNIT}{_E}")
_TIMES_TEN = re.compile(
    rf"(?<![\w.,])([-−])?([0-9]+(?:\.[0-9]+)?) ?[×x·*] ?10(?:\^\(?\{{?([-−]?[0-9]{{1,4}})\}}?\)?|"
    rf"([⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)){_UNIT}{_E}"
)
_TEN_TO = re.compile(r"(?<![\w.,])([0-9]+)(?:\^\(?\{?([-−]?[0-9]{1,4})\}?\)?(?![\w.])|([⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))")


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Powers of ten, and other numbers with an exponent."""
    text = tape.text
    if not tape.has_digits:
        return
    if "e" in text or "E" in text:
        tape.sub(_SCIENTIFIC, lambda found: _power(found[1], found[2], found[3] + found[4], found[5], say))
    if "10" in text:
        tape.sub(
            _TIMES_TEN,
            lambda found: _power(found[1], found[2], found[3] or _lowered(found[4]), found[5], say),
        )
    if "^" in text or not text.isascii():
        tape.sub(
            _TEN_TO, lambda found: f"{say.literal(found[1])}{_exponent(found[2] or _lowered(found[3]), say)}"
        )


def _lowered(superscript: str | None) -> str:
    return "".join(_DIGITS.get(char, char) for char in superscript or "")


def _exponent(power: str, say: EnglishNumbers) -> str:
    power = power.replace("−", "-").lstrip("+")
    number = int(power)
    if number == 2:
        return " squared"
    if number == 3:
        return " cubed"
    if number < 0:
        return f" to the minus {say.cardinal(-number)}"
    return f" to the {say.ordinal(number)}"


def _power(sign: str | None, base: str, power: str, unit: str | None, say: EnglishNumbers) -> str:
    number = int(power.replace("−", "-").replace("--", "-"))
    exponent = f"the minus {say.cardinal(-number)}" if number < 0 else f"the {say.ordinal(number)}"
    minus = "minus " if sign and sign != "+" else ""
    return f"{minus}{say.literal(base)} times ten to {exponent}" + (f" {unit_name(unit)}" if unit else "")
