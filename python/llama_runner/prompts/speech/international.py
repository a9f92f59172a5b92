"""Languages other than English: numbers by num2words, and the rules that hold in any language."""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Mapping
from urllib.parse import unquote

from . import calendars, emoji, inline, punctuation
from .lexicon import Lexicon
from .tape import HELD, Tape, clean

__all__ = ["International"]

_SYMBOLS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB"}
_CODES = "EUR|USD|GBP|JPY|CHF|PLN|SEK|NOK|DKK|CZK|RUB|INR|CNY|BRL"
_MOST_DIGITS = 15  # what is longer is said digit by digit

# Where a comma is the decimal sign. Elsewhere it groups thousands, as in English.
_COMMA = frozenset(
    "de fr es it pt nl pl ru uk cs sk da sv no nb nn fi tr ro hu sl sr lt lv is id vi ca be az kk eo".split()
)
_POINT_AFTER_ALL = frozenset("es-MX es-GT es-NI de-CH".split())
# What is said, in the order of _NAMES: of signs, between the ends of a range, before code and a footnote.
_SAID = {
    "de": "Prozent|minus|plus|gleich|Punkt|Schrägstrich|ät|Strich|Grad|bis|Codeblock|Fußnote|und",
    "fr": "pour cent|moins|plus|égale|point|barre oblique|arobase|tiret|degrés|à|Bloc de code|Note|et",
    "es": "por ciento|menos|más|igual a|punto|barra|arroba|guion|grados|a|Bloque de código|Nota|y",
    "it": "per cento|meno|più|uguale|punto|barra|chiocciola|trattino|gradi|a|Blocco di codice|Nota|e",
    "pt": "por cento|menos|mais|igual a|ponto|barra|arroba|hífen|graus|a|Bloco de código|Nota|e",
    "nl": "procent|min|plus|is gelijk aan|punt|schuine streep|apenstaartje|streepje|graden|tot|Codeblok|Voetnoot|en",
    "pl": "procent|minus|plus|równa się|kropka|ukośnik|małpa|myślnik|stopni|do|Blok kodu|Przypis|i",
    "ru": "процентов|минус|плюс|равно|точка|косая черта|собака|дефис|градусов|до|Блок кода|Сноска|и",
    "sv": "procent|minus|plus|lika med|punkt|snedstreck|snabel-a|bindestreck|grader|till|Kodblock|Fotnot|och",
    "da": "procent|minus|plus|lig med|punktum|skråstreg|snabel-a|bindestreg|grader|til|Kodeblok|Fodnote|og",
}
_NAMES = ("%", "-", "+", "=", ".", "/", "@", "dash", "°", "to", "code", "footnote", "&")

_URL = re.compile(r"(?<![\w@])(?:(?:https?|ftps?|wss?)://|www\.)([^\s<>\"“”`{}|\\^]+)", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.+-])([\w.+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])")
_HOST = re.compile(
    r"(?<![\w@./-])((?:[A-Za-z0-9-]{1,63}\.){1,4}(?:com|org|net|de|fr|es|it|pt|nl|pl|ru|at|ch|be|br|mx|eu|"
    r"io))(?![\w@-])((?:/[^\s<>\"]*)?)"
)
_PIECE = re.compile(r"[^\W\d_]+|[0-9]+|[^\w\s]|_")


class International:
    """Reads sentences of a language that num2words knows; what only English rules would say stays as written."""

    __slots__ = ("_base", "_lexicon", "_name", "_number", "_ordinal", "_patterns", "_said", "_urls", "tag")

    def __init__(self, tag: str, name: str, lexicon: Lexicon, urls: str) -> None:
        self.tag = tag
        self._name = name
        self._base = tag.partition("-")[0]
        self._lexicon = lexicon
        self._urls = urls
        said = _SAID.get(self._base)
        self._said: Mapping[str, str] = dict(zip(_NAMES, said.split("|"), strict=True)) if said else {}
        comma = self._base in _COMMA and tag not in _POINT_AFTER_ALL
        group, decimal = ("[. '’]", ",") if comma else ("[,'’]", r"\.")
        if tag == "de-CH":
            group = "['’]"
        number = (
            rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?:{decimal}[0-9]+)?(?![0-9])|[0-9]+(?:{decimal}[0-9]+)?"
        )
        self._patterns = {
            "number": re.compile(rf"(?<![0-9])(?:{number})"),
            "price": re.compile(
                rf"(?<![\w.,])(-)?(?:([€$£¥₹₽]) ?({number})|({number}) ?([€$£¥₹₽]|(?:{_CODES})(?!\w)))(?!\w)"
            ),
            "percent": re.compile(rf"(?<![\w.,])([-−+])?({number}) ?%"),
            "degrees": re.compile(rf"(?<![\w.,])([-−+])?({number}) ?°( ?[CF](?!\w))?"),
            "signed": re.compile(rf"(?<![\w.,{HELD})-])([-−+])({number})(?!\w)"),
            "range": re.compile(rf"(?<![\w.,-])({number})(?:-| ?– ?)({number})(?![\w.,]-|[0-9-])"),
            "year": re.compile(r"(?<![\w.,])(1[1-9][0-9]{2}|20[0-9]{2})(?![\w%]|[.,][0-9]| ?[€$£°])"),
        }
        self._ordinal = _ORDINALS.get(self._base)

    def read(self, tape: Tape) -> None:
        inline.apply(tape, self.code)
        tape.rewrite(_URL, lambda url: self._address(tape, url[1]))
        tape.sub(
            _EMAIL, lambda mail: f"{self._spell(mail[1])} {self._said.get('@', '@')} {self._spell(mail[2])}"
        )
        self._lexicon.apply(tape)
        tape.rewrite(_HOST, lambda host: self._address(tape, host[1] + host[2]))
        if tape.has_digits:
            self._numbers(tape)
        emoji.drop(tape)
        self._signs(tape)
        punctuation.apply(tape)

    def code(self, text: str) -> str:
        return self._spell(text.replace("_", " ").replace("()", ""))

    def number(self, digits: str) -> str:
        return self._cardinal(digits)

    def code_block(self, language: str) -> str:
        if "code" not in self._said:
            return ""
        return f"{self._said['code']}: {language}." if language else f"{self._said['code']}."

    def footnote(self, name: str) -> str:
        word = self._said.get("footnote", "")
        return f"{word} {self._cardinal(name) if name.isdecimal() and name.isascii() else name}".strip()

    # --- numbers -------------------------------------------------------------------------------------

    def _numbers(self, tape: Tape) -> None:
        patterns, said = self._patterns, self._said

        def sign(char: str | None) -> str:
            return {"-": said.get("-", "-"), "−": said.get("-", "-"), "+": said.get("+", "+")}.get(
                char or "", ""
            ) + " "

        calendars.apply(tape, self._base, self._convert)
        if self._ordinal:
            tape.sub(self._ordinal, self._ordinal_word)
        tape.sub(patterns["price"], self._price)
        if "%" in said:
            tape.sub(
                patterns["percent"], lambda found: f"{sign(found[1])}{self._cardinal(found[2])} {said['%']}"
            )
        if "°" in said:
            scale = {"C": " Celsius", "F": " Fahrenheit", "": ""}
            tape.sub(
                patterns["degrees"],
                lambda found: (
                    f"{sign(found[1])}{self._cardinal(found[2])} {said['°']}{scale[(found[3] or '').strip()]}"
                ),
            )
        if "to" in said:
            tape.sub(
                patterns["range"], lambda found: f"{self._year(found[1])} {said['to']} {self._year(found[2])}"
            )
        tape.sub(patterns["year"], lambda found: self._year(found[1]))
        if "-" in said:
            tape.sub(patterns["signed"], lambda found: f"{sign(found[1])}{self._cardinal(found[2])}")
        tape.sub(patterns["number"], lambda found: self._cardinal(found[0]))

    def _plain(self, text: str) -> str:
        """The number as Python writes it."""
        if self._base in _COMMA and self.tag not in _POINT_AFTER_ALL:
            return re.sub("[. '’]", "", text).replace(",", ".")
        return re.sub("[,'’]", "", text)

    def _cardinal(self, text: str) -> str:
        plain = self._plain(text)
        whole, _, decimals = plain.partition(".")
        if len(whole) > _MOST_DIGITS or len(decimals) > _MOST_DIGITS or (len(whole) > 1 and whole[0] == "0"):
            return " ".join(self._convert(digit, "cardinal") for digit in plain if digit != ".")
        return self._convert(plain, "cardinal")

    def _year(self, text: str) -> str:
        if re.fullmatch(r"1[1-9][0-9]{2}|20[0-9]{2}", text):
            return self._convert(text, "year")
        return self._cardinal(text)

    def _convert(self, plain: str, to: str) -> str:
        return _words(self._name, plain, to)

    def _ordinal_word(self, match: re.Match[str]) -> str:
        said = self._convert(match[1], "ordinal")
        return said + "n" if self._base == "de" and said.endswith("e") and calendars.takes_n(match) else said

    def _price(self, match: re.Match[str]) -> str | None:
        import num2words  # type: ignore[import-untyped]

        minus, sign, first, last, suffix = match.groups()
        plain = self._plain(first or last)
        code = _SYMBOLS.get(sign or suffix, suffix)
        if len(plain) > _MOST_DIGITS:
            return None
        whole = "." not in plain or not int(plain.partition(".")[2])
        try:
            said = num2words.num2words(
                decimal.Decimal(plain).quantize(decimal.Decimal("0.01")),
                lang=self._name,
                to="currency",
                currency=code,
            )
            if whole:  # "five euros and zero cents"
                said = _without_cents(
                    said,
                    num2words.num2words(
                        decimal.Decimal("0.00"), lang=self._name, to="currency", currency=code
                    ),
                )
        except Exception:
            return None
        prefix = f"{self._said.get('-', '-')} " if minus else ""
        return prefix + clean(said).strip()

    # --- signs and addresses -------------------------------------------------------------------------

    def _signs(self, tape: Tape) -> None:
        for sign in "=+&%":
            if sign in self._said:
                tape.text = (
                    tape.text.replace(sign, f" {tape.hold(self._said[sign])} ")
                    if sign in tape.text
                    else tape.text
                )

    def _address(self, tape: Tape, url: str) -> str:
        trimmed = url.rstrip(".,;:!?'\"*_~’”)]")
        rest = url[len(trimmed) :]
        host, slash, path = trimmed.removeprefix("www.").partition("/")
        if self._urls == "skip":
            return rest
        said = self._spell(host)
        if path and self._urls == "full" and "/" in self._said:
            said += " " + self._spell(slash + unquote(path, errors="ignore").rstrip("/"))
        return (tape.hold(said) if said else "") + rest

    def _spell(self, text: str) -> str:
        out: list[str] = []
        for piece in _PIECE.findall(clean(text)):
            if piece[0].isdecimal():
                out.append(
                    self._cardinal(piece)
                    if len(piece) <= 4
                    else " ".join(self._convert(digit, "cardinal") for digit in piece)
                )
            elif piece == "-":
                out.append(self._said.get("dash", ""))
            elif piece == "." and not self._said:
                out.append(".")
            elif piece.isalpha():
                out.append(piece)
            else:
                out.append(self._said.get(piece, ""))
        return " ".join(piece for piece in out if piece) if self._said else "".join(out)


@functools.lru_cache(maxsize=4096)
def _words(language: str, plain: str, to: str) -> str:
    """What num2words says, or the digits where it says nothing: it has gaps, in each language other ones."""
    import num2words

    number = decimal.Decimal(plain) if "." in plain else int(plain)
    for kind in (to, "cardinal"):
        try:
            said = num2words.num2words(number, lang=language, to=kind)
        except Exception:
            continue
        if isinstance(said, str) and said.strip():
            return clean(said).strip()
    return plain


def _without_cents(said: str, nothing: str) -> str:
    """``five euros and zero cents`` without what it has in common with the end of ``zero euros and zero cents``."""
    ours, theirs = said.split(" "), nothing.split(" ")
    common = 0
    while common < min(len(ours), len(theirs)) and ours[-1 - common] == theirs[-1 - common]:
        common += 1
    for at in range(len(ours) - common, len(ours)):
        if ours[at].endswith(",") or (at > 0 and ours[at - 1].endswith(",")):
            return " ".join(ours[: at + 1] if ours[at].endswith(",") else ours[:at]).rstrip(",")
    for word in ("und", "et", "con", "y", "e", "en", "i", "og", "och", "ja", "și"):
        if word in ours[1:]:
            place = len(ours) - 1 - ours[::-1].index(word)
            if place >= len(ours) - 4:
                return " ".join(ours[:place])
    return said


# How a language writes ordinals in digits.
_ORDINALS: dict[str, re.Pattern[str]] = {
    "de": re.compile(r"(?<![\w.,])(?<!Nr\. )([0-9]{1,2})\.(?= [A-ZÄÖÜ]?[a-zäöü])"),
    "fr": re.compile(r"(?<![\w.,])([0-9]{1,4})(?:ers?|[èe]mes?|es?|re|nd|nde)(?!\w)"),
    "es": re.compile(r"(?<![\w.,])([0-9]{1,4})\.?[ºªo°](?!\w)"),
    "it": re.compile(r"(?<![\w.,])([0-9]{1,4})[º°ª](?! ?[CF])(?!\w)"),
    "pt": re.compile(r"(?<![\w.,])([0-9]{1,4})\.?[ºª°o](?!\w)"),
    "nl": re.compile(r"(?<![\w.,])([0-9]{1,4})(?:e|ste|de)(?!\w)"),
    "sv": re.compile(r"(?<![\w.,])([0-9]{1,4}):(?:a|e)(?!\w)"),
}
