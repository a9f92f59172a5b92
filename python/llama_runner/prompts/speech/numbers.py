"""English words for numbers, of any size, in American and in British use."""

from __future__ import annotations

import functools

__all__ = ["AMERICAN", "BRITISH", "EnglishNumbers"]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = ("", "", *"twenty thirty forty fifty sixty seventy eighty ninety".split())
_SCALES = (
    "",
    *(
        "thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion "
        "decillion undecillion duodecillion tredecillion quattuordecillion quindecillion sexdecillion "
        "septendecillion octodecillion novemdecillion vigintillion"
    ).split(),
)
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_NAMED = 3 * len(_SCALES)  # beyond so many digits there is no name, and digits are said one by one
_PLAIN_RUN = 15  # so many digits without separators are still heard as one number


class EnglishNumbers:
    """Spoken English numbers; ``british`` puts the "and" into "one hundred and five", and the day before the month."""

    __slots__ = ("british",)

    def __init__(self, british: bool) -> None:
        self.british = british

    def cardinal(self, number: int) -> str:
        """``1234`` is "one thousand two hundred thirty-four"; more than 66 digits are said one by one."""
        if number < 0:
            return f"minus {self.cardinal(-number)}"
        if number < 1000:
            return self._below_thousand(number)
        if number >= 10**_NAMED:
            return self.digits(_decimal_digits(number))
        groups: list[str] = []
        for scale in _SCALES:
            number, group = divmod(number, 1000)
            if group:
                words = self._below_thousand(group)
                if self.british and not scale and group < 100:
                    words = f"and {words}"
                groups.append(f"{words} {scale}" if scale else words)
            if not number:
                break
        return " ".join(reversed(groups))

    def _below_thousand(self, number: int) -> str:
        return _below_thousand(number, self.british)

    def ordinal(self, number: int) -> str:
        """``21`` is "twenty-first"."""
        words = self.cardinal(number)
        cut = max(words.rfind(" "), words.rfind("-")) + 1
        last = words[cut:]
        if last in _ORDINALS:
            last = _ORDINALS[last]
        elif last.endswith("y"):
            last = last[:-1] + "ieth"
        else:
            last += "th"
        return words[:cut] + last

    def digits(self, text: str) -> str:
        """``"007"`` is "zero zero seven"; what is no digit is left out."""
        return " ".join(_ONES[ord(char) - 48] for char in text if "0" <= char <= "9")

    def year(self, year: int) -> str:
        """``1905`` is "nineteen oh five", ``2024`` "twenty twenty-four"."""
        if not 1000 < year < 10000 or year % 1000 == 0:
            return self.cardinal(year)
        century, rest = divmod(year, 100)
        if century % 10 == 0 and rest < 10:  # 2005; 1005
            return self.cardinal(year)
        return f"{self.cardinal(century)} {self.pair(rest)}"

    def pair(self, rest: int) -> str:
        """The two digits after others: 0 is "hundred", 5 "oh five", 24 "twenty-four"."""
        if rest == 0:
            return "hundred"
        return f"oh {_ONES[rest]}" if rest < 10 else self.cardinal(rest)

    def decade(self, year: int) -> str:
        """``1990`` is "nineteen nineties", ``90`` "nineties"."""
        if year % 100 == 0:
            words = self.cardinal(year // 1000) + " thousand" if year % 1000 == 0 else self.year(year)
            return f"{words}s"
        if year < 100:
            return _plural(self.cardinal(year))
        century, rest = divmod(year, 100)
        return f"{self.cardinal(century)} {_plural(self.cardinal(rest))}"

    def pairwise(self, number: int) -> str:
        """As designations are read: ``747`` is "seven forty-seven", ``8601`` "eighty-six oh one"."""
        if 100 < number < 1000 and number % 100:
            return f"{self.cardinal(number // 100)} {self.pair(number % 100)}"
        if 1000 < number < 10000 and number % 100:
            return f"{self.cardinal(number // 100)} {self.pair(number % 100)}"
        return self.cardinal(number)

    def literal(self, text: str) -> str:
        """A number as written: digits, with ``,`` between groups of them and ``.`` before decimals."""
        whole, point, decimals = text.replace(",", "").partition(".")
        if not whole and decimals:
            return f"point {self.digits(decimals)}"
        longest = _NAMED if "," in text else _PLAIN_RUN
        if len(whole) > longest or (len(whole) > 1 and whole[0] == "0"):
            words = self.digits(whole)
        else:
            words = self.cardinal(int(whole or "0"))
        return f"{words} point {self.digits(decimals)}" if point and decimals else words

    def fraction(self, numerator: int, denominator: int) -> str:
        """``3, 4`` is "three quarters"; beyond hundredths it is "three over two hundred"."""
        top = self.cardinal(numerator)
        if not 2 <= denominator <= 100 or numerator == 0:
            return f"{top} over {self.cardinal(denominator)}"
        part = {2: "half", 4: "quarter"}.get(denominator) or self.ordinal(denominator)
        if numerator == 1:
            return f"{top} {part}"
        return f"{top} {'halves' if part == 'half' else part + 's'}"

    def mixed(self, whole: int, numerator: int, denominator: int) -> str:
        """``2, 1, 2`` is "two and a half"."""
        part = self.fraction(numerator, denominator)
        if numerator == 1:
            part = ("an " if denominator in {8, 11, 18, 80} else "a ") + part.removeprefix("one ")
        return f"{self.cardinal(whole)} and {part}"


@functools.cache
def _below_thousand(number: int, british: bool) -> str:
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    words = _ONES[rest] if rest < 20 else f"{_TENS[tens]}-{_ONES[ones]}" if ones else _TENS[tens]
    if not hundreds:
        return words
    head = f"{_ONES[hundreds]} hundred"
    if not rest:
        return head
    return f"{head} and {words}" if british else f"{head} {words}"


def _plural(words: str) -> str:
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _decimal_digits(number: int) -> str:
    # Python refuses to write out very long integers at once.
    tail: list[str] = []
    while number >= 10**1000:
        number, low = divmod(number, 10**1000)
        tail.append(f"{low:01000d}")
    return str(number) + "".join(reversed(tail))


AMERICAN = EnglishNumbers(british=False)
BRITISH = EnglishNumbers(british=True)
