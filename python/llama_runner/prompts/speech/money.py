"""Amounts of money in English."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import Tape

__all__ = ["MULTIPLIERS", "apply"]

# Symbol or code: unit, units, hundredth, hundredths; no hundredth where the currency has none in use.
_DOLLAR = ("dollar", "dollars", "cent", "cents")
_CURRENCIES: dict[str, tuple[str, str, str, str]] = {
    "$": _DOLLAR, "US$": ("U S dollar", "U S dollars", "cent", "cents"),
    "USD": ("U S dollar", "U S dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "CA$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "CAD": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "AUD": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "NZD": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "HKD": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "SGD": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "R$": ("real", "reais", "centavo", "centavos"),
    "BRL": ("Brazilian real", "Brazilian reais", "centavo", "centavos"),
    "€": ("euro", "euros", "cent", "cents"), "EUR": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "GBP": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""), "JPY": ("yen", "yen", "", ""), "CNY": ("yuan", "yuan", "", ""),
    "RMB": ("yuan", "yuan", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"), "INR": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""), "KRW": ("won", "won", "", ""), "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "RUB": ("ruble", "rubles", "kopeck", "kopecks"), "₺": ("lira", "lira", "kurus", "kurus"),
    "TRY": ("lira", "lira", "kurus", "kurus"),
    "₫": ("dong", "dong", "", ""), "VND": ("dong", "dong", "", ""),
    "₴": ("hryvnia", "hryvnias", "kopiyka", "kopiykas"),
    "UAH": ("hryvnia", "hryvnias", "kopiyka", "kopiykas"), "₪": ("shekel", "shekels", "agora", "agorot"),
    "ILS": ("shekel", "shekels", "agora", "agorot"), "฿": ("baht", "baht", "satang", "satang"),
    "THB": ("baht", "baht", "satang", "satang"),
    "₱": ("peso", "pesos", "centavo", "centavos"),
    "PHP": ("Philippine peso", "Philippine pesos", "centavo", "centavos"),
    "MXN": ("Mexican peso", "Mexican pesos", "centavo", "centavos"), "₦": ("naira", "naira", "kobo", "kobo"),
    "NGN": ("naira", "naira", "kobo", "kobo"), "CHF": ("Swiss franc", "Swiss francs", "rappen", "rappen"),
    "SEK": ("Swedish krona", "Swedish kronor", "öre", "öre"),
    "NOK": ("Norwegian krone", "Norwegian kroner", "øre", "øre"),
    "DKK": ("Danish krone", "Danish kroner", "øre", "øre"), "PLN": ("zloty", "zlotys", "grosz", "groszy"),
    "zł": ("zloty", "zlotys", "grosz", "groszy"), "CZK": ("koruna", "korunas", "", ""),
    "HUF": ("forint", "forints", "", ""),
    "ZAR": ("rand", "rand", "cent", "cents"), "₿": ("bitcoin", "bitcoins", "", ""),
    "BTC": ("bitcoin", "bitcoins", "", ""),
    "ETH": ("ether", "ether", "", ""), "AED": ("dirham", "dirhams", "fils", "fils"),
    "SAR": ("riyal", "riyals", "", ""),
}  # fmt: skip

MULTIPLIERS = {
    "k": "thousand", "K": "thousand", "thousand": "thousand", "m": "million", "M": "million", "mm": "million",
    "MM": "million",
    "mn": "million", "mil": "million", "million": "million", "B": "billion", "b": "billion", "bn": "billion",
    "Bn": "billion",
    "BN": "billion", "billion": "billion", "T": "trillion", "t": "trillion", "tn": "trillion", "Tn": "trillion",
    "trn": "trillion", "trillion": "trillion", "lakh": "lakh", "crore": "crore", "quadrillion": "quadrillion",
    "hundred": "hundred",
}  # fmt: skip

_SYMBOLS = sorted((sign for sign in _CURRENCIES if not sign[-1].isalpha()), key=len, reverse=True)
_CODES = [sign for sign in _CURRENCIES if sign[-1].isalpha()]
_SIGN = "|".join(map(re.escape, _SYMBOLS))
_CODE = "|".join(_CODES)
_NUMBER = (
    r"[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{2}(?![0-9])|[0-9]{1,3}(?:,[0-9]{2,3})+(?:\.[0-9]+)?|"
    r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
)
_TIMES = (
    r"(?:[ -]?(thousand|million|billion|trillion|quadrillion|lakh|crore)(?!\w)|"
    r"(mil|[Bb]n|BN|[Tt]n|trn|mn|mm|MM|[kKmMbBtT])(?!\w))?"
)
_PER = (
    r"(?:(?: ?/ ?| per )(month|mo|year|yr|hour|hr|h|day|week|wk|person|user|seat|GB|kg|lb|mile|token|1M tokens|"
    r"1K tokens|unit|"
    r"item|piece|night|share|ton|gallon|sq ft|kWh)(?!\w))?"
)
_RANGE = r"(?: ?(?:[-–—]|to) ?"
_PREFIXED = re.compile(
    rf"(?<![\w$€£¥.])(?:([-−+–])(?=\S))?({_SIGN}|(?:{_CODE})(?= ?[0-9.])) ?({_NUMBER}){_TIMES}"
    rf"(?:{_RANGE}(?:{_SIGN})?({_NUMBER}){_TIMES}))?{_PER}(?!\w)"
)
_SUFFIXED = re.compile(
    rf"(?<![\w.,$€£])([-−](?=\S))?({_NUMBER}){_TIMES}(?:{_RANGE}({_NUMBER}){_TIMES}))? ?({_SIGN}|{_CODE}){_PER}(?!\w)"
)
_COMMA_CENTS = re.compile(r"[0-9]+(?:\.[0-9]{3})*,[0-9]{2}")  # 19,99 €
_CENTS = re.compile(rf"(?<![\w.,])({_NUMBER}) ?¢(?!\w)")
_PENCE = re.compile(r"(?<![\w.,])([0-9]{1,3})p(?= (?:each|per|off|a |for |coin))")
_ARTICLE = re.compile(r"\b(?:an?|per|this|that|her|his|their|my|our) $", re.IGNORECASE)
_NOUN_AFTER = re.compile(
    r"[ -](?!(?:a|an|and|or|in|on|at|to|for|from|per|of|by|with|is|was|each|off|more|less)\b)[a-z]{3,}"
)
_PER_WORDS = {
    "mo": "month", "yr": "year", "hr": "hour", "h": "hour", "wk": "week", "GB": "gigabyte", "kg": "kilogram",
    "lb": "pound",
    "1M tokens": "one million tokens", "1K tokens": "one thousand tokens", "sq ft": "square foot",
    "kWh": "kilowatt hour",
}  # fmt: skip


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Prices with a symbol or a code before or after them."""
    text = tape.text
    if not tape.has_digits:
        return
    if any(sign in text for sign in _CURRENCIES):
        tape.sub(_PREFIXED, lambda found: _prefixed(found, say))
        tape.sub(_SUFFIXED, lambda found: _suffixed(found, say))
    if "¢" in text:
        tape.sub(_CENTS, lambda cents: f"{say.literal(cents[1])} cent{'' if cents[1] == '1' else 's'}")
    tape.sub(_PENCE, lambda pence: f"{say.literal(pence[1])} {'penny' if pence[1] == '1' else 'pence'}")


def _prefixed(match: re.Match[str], say: EnglishNumbers) -> str:
    sign, currency, first, word, letter, last, last_word, last_letter, per = match.groups()
    said = _amount(currency, (first, word or letter), (last, last_word or last_letter), match, say)
    sign_word = {"-": "minus ", "−": "minus ", "–": "minus ", "+": "plus "}.get(sign or "", "")
    return f"{sign_word}{said}{_per(per)}"


def _suffixed(match: re.Match[str], say: EnglishNumbers) -> str:
    sign, first, word, letter, last, last_word, last_letter, currency, per = match.groups()
    said = _amount(currency, (first, word or letter), (last, last_word or last_letter), match, say)
    return f"{'minus ' if sign else ''}{said}{_per(per)}"


def _per(unit: str | None) -> str:
    return f" per {_PER_WORDS.get(unit, unit)}" if unit else ""


def _amount(
    currency: str,
    first: tuple[str, str | None],
    last: tuple[str | None, str | None],
    match: re.Match[str],
    say: EnglishNumbers,
) -> str:
    one, many, cent, cents = _CURRENCIES[currency]
    number, times = first
    if _COMMA_CENTS.fullmatch(number):
        number = number.replace(".", "").replace(",", ".")
    if last[0]:
        ending = _number(last[0], last[1], say)
        return f"{_number(number, times, say)} to {ending} {many}"
    if times:
        return f"{_number(number, times, say)} {one if _attributive(match) else many}"
    whole, point, decimals = number.replace(",", "").partition(".")
    units = int(whole or "0")
    if not point or not cent or len(decimals) != 2:
        said = say.literal(number)
        return f"{said} {one if said == 'one' or _attributive(match) else many}"
    if not int(decimals):
        return f"{say.cardinal(units)} {one if units == 1 else many}"
    change = f"{say.cardinal(int(decimals))} {cent if int(decimals) == 1 else cents}"
    return change if not units else f"{say.cardinal(units)} {one if units == 1 else many} and {change}"


def _number(text: str, times: str | None, say: EnglishNumbers) -> str:
    said = say.literal(text)
    return f"{said} {MULTIPLIERS[times]}" if times else said


def _attributive(match: re.Match[str]) -> bool:
    """Whether the amount describes a noun: a $5 bill."""
    before = match.string[max(0, match.start() - 8) : match.start()]
    after = match.string[match.end() : match.end() + 16]
    return bool(_ARTICLE.search(before)) and bool(_NOUN_AFTER.match(after))
