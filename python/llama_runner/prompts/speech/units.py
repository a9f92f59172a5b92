"""Quantities with a unit in English."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import Tape

__all__ = ["SYMBOL", "apply", "unit_name"]

_PREFIXES = {
    "k": "kilo",
    "M": "mega",
    "G": "giga",
    "T": "tera",
    "P": "peta",
    "m": "milli",
    "µ": "micro",
    "n": "nano",
}


def _prefixed(symbol: str, singular: str, plural: str, prefixes: str) -> dict[str, tuple[str, str]]:
    return {
        prefix + symbol: (_PREFIXES[prefix] + singular, _PREFIXES[prefix] + plural) for prefix in prefixes
    }


def _regular(table: str) -> dict[str, tuple[str, str]]:
    entries = (entry.split("=") for entry in table.split(";"))
    return {symbol.strip(): (name.strip(), name.strip() + "s") for symbol, name in entries}


_UNITS: dict[str, tuple[str, str]] = {
    **_regular(
        "km=kilometer;m=meter;cm=centimeter;mm=millimeter;µm=micrometer;nm=nanometer;mi=mile;yd=yard;kg=kilogram;"
        "g=gram;"
        "mg=milligram;µg=microgram;mcg=microgram;t=ton;oz=ounce;lb=pound;lbs=pound;L=liter;l=liter;mL=milliliter;"
        "ml=milliliter;"
        "cl=centiliter;dl=deciliter;gal=gallon;qt=quart;pt=pint;tbsp=tablespoon;tsp=teaspoon;W=watt;V=volt;A=amp;"
        "J=joule;"
        "N=newton;Pa=pascal;Ω=ohm;cal=calorie;kcal=kilocalorie;dB=decibel;px=pixel;s=second;sec=second;"
        "secs=second;ms=millisecond;"
        "µs=microsecond;ns=nanosecond;min=minute;mins=minute;h=hour;hr=hour;hrs=hour;yr=year;yrs=year;wk=week;"
        "wks=week;mo=month;"
        "mos=month;B=byte;Ah=amp hour;mAh=milliamp hour;Wh=watt hour;kWh=kilowatt hour;MWh=megawatt hour;"
        "GWh=gigawatt hour;"
        "TWh=terawatt hour;acre=acre;ha=hectare;mol=mole;eV=electron volt;bpm=beat per minute;kph=kilometer per hour;"
        "rpm=revolution per minute;fps=frame per second;deg=degree;tok=token;kt=knot;MP=megapixel;atm=atmosphere;"
        "bit=bit;ch=channel"
    ),
    **_prefixed("B", "byte", "bytes", "kMGTP"), "KB": ("kilobyte", "kilobytes"),
    "KiB": ("kibibyte", "kibibytes"), "MiB": ("mebibyte", "mebibytes"), "GiB": ("gibibyte", "gibibytes"),
    "TiB": ("tebibyte", "tebibytes"),
    "kb": ("kilobit", "kilobits"), "Kb": ("kilobit", "kilobits"), "Mb": ("megabit", "megabits"),
    "Gb": ("gigabit", "gigabits"),
    "Mbit": ("megabit", "megabits"), "Gbit": ("gigabit", "gigabits"), "kbit": ("kilobit", "kilobits"),
    "kbps": ("kilobit per second", "kilobits per second"), "Mbps": ("megabit per second", "megabits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"), "bps": ("bit per second", "bits per second"),
    "mph": ("mile per hour", "miles per hour"), "mpg": ("mile per gallon", "miles per gallon"),
    "bpm": ("beat per minute", "beats per minute"), "rpm": ("revolution per minute", "revolutions per minute"),
    "fps": ("frame per second", "frames per second"), "kph": ("kilometer per hour", "kilometers per hour"),
    "km/h": ("kilometer per hour", "kilometers per hour"), "kmh": ("kilometer per hour", "kilometers per hour"),
    "psi": ("P S I", "P S I"), "dpi": ("D P I", "D P I"), "ppi": ("P P I", "P P I"),
    "ppm": ("part per million", "parts per million"),
    **dict.fromkeys(("m/s²", "m/s^2", "m/s2"), ("meter per second squared", "meters per second squared")),
    **_prefixed("F", "farad", "farads", "mµn"), "pF": ("picofarad", "picofarads"),
    "Hz": ("hertz", "hertz"), **_prefixed("Hz", "hertz", "hertz", "kMGT"), "bar": ("bar", "bar"),
    "mbar": ("millibar", "millibars"),
    **_prefixed("W", "watt", "watts", "kMGTmµ"), **_prefixed("V", "volt", "volts", "kMmµ"),
    **_prefixed("A", "amp", "amps", "kmµ"),
    **_prefixed("Pa", "pascal", "pascals", "kMG"), **_prefixed("J", "joule", "joules", "kMG"),
    **_prefixed("N", "newton", "newtons", "kM"),
    **_prefixed("Ω", "ohm", "ohms", "kM"), **_prefixed("eV", "electron volt", "electron volts", "kMG"),
    **_prefixed("bit/s", "bit per second", "bits per second", "kMG"),
    "mmHg": ("millimeter of mercury", "millimeters of mercury"), "ft": ("foot", "feet"), "in.": ("inch", "inches"),
    "″": ("inch", "inches"), "′": ("foot", "feet"),
    "fl oz": ("fluid ounce", "fluid ounces"), "sq ft": ("square foot", "square feet"),
    "sq mi": ("square mile", "square miles"), "sq m": ("square meter", "square meters"),
    "sq km": ("square kilometer", "square kilometers"), "cu ft": ("cubic foot", "cubic feet"),
    "hp": ("horsepower", "horsepower"),
    "GHz": ("gigahertz", "gigahertz"), "MHz": ("megahertz", "megahertz"), "FLOPS": ("flops", "flops"),
    "TFLOPS": ("teraflops", "teraflops"),
    "PFLOPS": ("petaflops", "petaflops"), "GFLOPS": ("gigaflops", "gigaflops"), "TOPS": ("tops", "tops"),
    "vCPU": ("V C P U", "V C P U's"),
    "°C": ("degree Celsius", "degrees Celsius"), "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "℃": ("degree Celsius", "degrees Celsius"),
    "℉": ("degree Fahrenheit", "degrees Fahrenheit"), "ºC": ("degree Celsius", "degrees Celsius"),
    "ºF": ("degree Fahrenheit", "degrees Fahrenheit"), "°": ("degree", "degrees"), "K": ("kelvin", "kelvin"),
    "light-yr": ("light year", "light years"), "lm": ("lumen", "lumens"), "lx": ("lux", "lux"),
    "cd": ("candela", "candelas"), "Sv": ("sievert", "sieverts"), "mSv": ("millisievert", "millisieverts"),
}  # fmt: skip
_POWERS = {"²": "square", "³": "cubic", "^2": "square", "^3": "cubic", "2": "square", "3": "cubic"}
_POWERED = ("km", "m", "cm", "mm", "ft", "mi", "in", "yd")
_INCH = ("inch", "inches")
# A letter or two that are words or multipliers too are units only after a blank: 5 K, but a 5K run.
_SPACED_ONLY = frozenset({"K", "ch", "mo", "cd", "TOPS", "t", "A", "N", "J", "pt", "MP", "B", "kt"})
_ATTACHED_ONLY = frozenset({"B", "ch"})

_ALTERNATIVES = "|".join(
    re.escape(symbol) for symbol in sorted(_UNITS, key=len, reverse=True) if symbol not in _ATTACHED_ONLY
)
_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_FRACTION = r"(?:[0-9]+ )?[1-9]/[1-9][0-9]?|[0-9]*[½¼¾⅓⅔⅛]"
_POWER_UNIT = rf"(?:{'|'.join(_POWERED)})(?:[²³]|\^?[23](?![0-9]))"
_PER = (
    r"(?:/|⁄| per )(s|sec|second|h|hr|hour|min|day|m[²2³3]|m|km|mile|kg|L|mL|ml|"
    r"l|g|mg|year|yr|week|mol|cm[²2³3]|ft|lb|mo|month|dL|user|token|kWh)(?![\w²³])"
)
SYMBOL = rf"(?:{_POWER_UNIT}|{_ALTERNATIVES})(?:{_PER})?(?![\w²³])"
_QUANTITY = re.compile(
    rf"(?<![\w.,/^$€£])(?:([-−–+±~≈])(?=[0-9.]))?({_FRACTION}|{_NUMBER})(?:(?: ?(?:[-–—]|to|×|"
    rf"x) ?)([-−]?(?:{_NUMBER})))?"
    rf"([ -]?)({_POWER_UNIT}|{_ALTERNATIVES})(?:{_PER})?(?![\w²³]|\.?/[a-zA-Z])(\.(?= [a-z0-9]|[,;:)]))?"
)
_FEET_INCHES = re.compile(r"(?<![\w.,])([0-9]{1,3})['’′] ?([0-9]{1,2}(?:\.[0-9]|½)?)(?:\"|”|″|''|(?![\w'’]))")
_FEET_MARK = re.compile(r"(?<![\w.'’])([0-9]{1,2})['′](?![\w'’])")
_PRESSURE = re.compile(r"(?<![\w.,/])([0-9]{2,3})/([0-9]{2,3})(?: ?mm ?Hg)?(?![\w/])")
_BLOOD = re.compile(r"\bBP\b|[Pp]ressure")
_INCHES_MARK = re.compile(
    rf"(?<![\w.,/])((?:{_FRACTION})|[0-9]{{1,3}}(?:\.[0-9]{{1,2}})?)[\"″](?= [a-z]|-[a-z])"
)
_INCHES = re.compile(
    rf"(?<![\w.,])({_NUMBER}) ?in(?:\.(?= [a-z])|(?= (?:wide|long|tall|deep|high|thick|x|by|diameter)\b))"
)
_LATITUDE = re.compile(
    r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]+)?)° ?(?:"
    r"([0-9]{1,2})[′'] ?)?(?:([0-9]{1,2}(?:\.[0-9]+)?)[″\"] ?)?([NSEW])(?!\w)"
)
_PER_WORDS = {
    "s": "second", "sec": "second", "h": "hour", "hr": "hour", "min": "minute", "m": "meter", "km": "kilometer",
    "kg": "kilogram",
    "L": "liter", "l": "liter", "mL": "milliliter", "ml": "milliliter", "dL": "deciliter", "g": "gram",
    "mg": "milligram",
    "yr": "year", "mol": "mole", "ft": "foot", "lb": "pound", "mo": "month", "kWh": "kilowatt hour",
}  # fmt: skip
_VULGAR = {"½": (1, 2), "¼": (1, 4), "¾": (3, 4), "⅓": (1, 3), "⅔": (2, 3), "⅛": (1, 8)}
_ARTICLE = re.compile(r"\b(?:an?|this|that|her|his|their|my|our|its|every|each|the) $", re.IGNORECASE)
_NOUN_AFTER = re.compile(
    r" (?!(?:a|an|and|or|in|on|at|to|for|from|per|of|by|with|is|was|each|off|more|less|away|long|wide|tall|deep|"
    r"high|before|"
    r"after|later|ago|above|below|he|she|it|they|we|that|which|were|are|than|as|if|but|so|had|has|will|would|can|"
    r"could)\b)[a-z]{3,}"
)
_SIGNS = {
    "-": "minus ",
    "−": "minus ",
    "–": "minus ",
    "+": "plus ",
    "±": "plus or minus ",
    "~": "about ",
    "≈": "approximately ",
}
_COMPASS = {"N": "north", "S": "south", "E": "east", "W": "west"}


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Numbers followed by the symbol of a unit."""
    text = tape.text
    if not tape.has_digits and (text.isascii() or not any(char in _VULGAR for char in text)):
        return
    tape.text = tape.text.replace("μ", "µ")
    if "°" in text:
        tape.sub(_LATITUDE, lambda place: _latitude(place, say))
    if "'" in text or "’" in text or "′" in text:
        tape.sub(_FEET_INCHES, lambda height: _feet_inches(height, say))
        tape.sub(_FEET_MARK, lambda size: None if _quoted(size) else f"{say.literal(size[1])} feet")
    if "/" in text:
        tape.sub(_PRESSURE, lambda found: _pressure(found, say))
    tape.sub(_INCHES_MARK, lambda size: _inch_mark(size, say))
    tape.sub(_INCHES, lambda size: f"{say.literal(size[1])} {'inch' if size[1] == '1' else 'inches'}")
    tape.sub(_QUANTITY, lambda quantity: _quantity(quantity, say))


def _quantity(match: re.Match[str], say: EnglishNumbers) -> str | None:
    sign, number, last, gap, symbol, per, _stop = match.groups()
    if (symbol in _SPACED_ONLY and gap != " ") or (symbol in {"in.", "A", "t", "h"} and gap == "-"):
        return None
    after = match.string[match.end(5) : match.end(5) + 3]
    if symbol in _COMPASS and re.match(r"\. ?[0-9A-Z]", after):  # 221 W. 34th St.
        return None
    if symbol == "K" and per:
        return None
    if gap == " " and symbol == "A" and re.match(r" [a-z]", match.string[match.end() : match.end() + 2]):
        return None
    singular, plural = _names(symbol)
    one = not last and (number in {"1", "1/2", "½"} or (gap == "-") or _attributive(match, symbol))
    said = _SIGNS.get(sign or "", "") + _number(number, say)
    if last:
        joint = " by " if re.search(r"[0-9] ?[×x]", match[0]) else " to "
        said += joint + ("minus " if last[0] in "-−" else "") + say.literal(last.lstrip("-−"))
    if number in {"1/2", "½"}:
        said = "half a" if singular[0] not in "aeiou" else "half an"
        said = "half an" if singular.startswith("hour") else said
    said += " " + (singular if one else plural)
    if per:
        said += f" per {_per(per)}"
    if say.british:
        said = re.sub(r"(meter|liter)(s?)(?= |$)", lambda unit: unit[1][:-2] + "re" + unit[2], said)
    return said


def _names(symbol: str) -> tuple[str, str]:
    if symbol in _UNITS:
        return _UNITS[symbol]
    found = re.match(r"([a-z]+)(.*)", symbol)
    if found is None:
        return symbol, symbol
    singular, plural = _INCH if found[1] == "in" else _UNITS[found[1]]
    power = _POWERS[found[2]]
    return f"{power} {singular}", f"{power} {plural}"


def unit_name(text: str) -> str:
    """The plural of a unit, as it is written: ``m/s`` is "meters per second"."""
    if text in _UNITS:
        return _UNITS[text][1]
    symbol, slash, per = text.partition("/")
    return f"{_names(symbol)[1]} per {_per(per)}" if slash else _names(symbol)[1]


def _per(symbol: str) -> str:
    if symbol[-1] in "²2³3":
        return _names(symbol)[0]
    return _PER_WORDS.get(symbol, symbol)


def _number(text: str, say: EnglishNumbers) -> str:
    if text[-1] in _VULGAR:
        part = _VULGAR[text[-1]]
        return say.mixed(int(text[:-1]), *part) if text[:-1] else say.fraction(*part)
    if "/" in text:
        whole, _, fraction = text.rpartition(" ")
        top, bottom = (int(digits) for digits in fraction.split("/"))
        return say.mixed(int(whole), top, bottom) if whole else say.fraction(top, bottom)
    return say.literal(text)


def _attributive(match: re.Match[str], symbol: str) -> bool:
    """Whether the quantity describes a noun: a 5 km run."""
    if symbol in {"°C", "°F"}:
        return False
    before = match.string[max(0, match.start() - 8) : match.start()]
    after = match.string[match.end() : match.end() + 16]
    return bool(_ARTICLE.search(before)) and bool(_NOUN_AFTER.match(after))


def _feet_inches(match: re.Match[str], say: EnglishNumbers) -> str:
    feet = f"{say.literal(match[1])} {'foot' if match[1] == '1' else 'feet'}"
    if match[2].endswith("½"):
        return f"{feet} {say.mixed(int(match[2][:-1]), 1, 2)} inches"
    return f"{feet} {say.literal(match[2])} {'inch' if match[2] == '1' else 'inches'}"


def _pressure(match: re.Match[str], say: EnglishNumbers) -> str | None:
    unit = " millimeters of mercury" if match[0].endswith("g") else ""
    if not unit and not (
        _BLOOD.search(match.string) and 70 <= int(match[1]) <= 260 and 40 <= int(match[2]) <= 160
    ):
        return None
    return f"{say.literal(match[1])} over {say.literal(match[2])}{unit}"


def _quoted(match: re.Match[str]) -> bool:
    """Whether an apostrophe before may have opened a quotation that the match closes."""
    return bool(re.search(r"(?:^|[\s(])['‘]", match.string[: match.start()]))


def _inch_mark(match: re.Match[str], say: EnglishNumbers) -> str | None:
    if match.string.count('"', 0, match.start()) % 2:  # it closes a quotation
        return None
    return f"{_number(match[1], say)} inch"


def _latitude(match: re.Match[str], say: EnglishNumbers) -> str:
    said = f"{say.literal(match[1])} {'degree' if match[1] == '1' else 'degrees'}"
    for number, unit in ((match[2], "minute"), (match[3], "second")):
        if number:
            said += f" {say.literal(number)} {unit}{'' if number == '1' else 's'}"
    return f"{said} {_COMPASS[match[4]]}"
