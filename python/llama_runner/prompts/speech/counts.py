"""Numbers that are no date, time, price or quantity: telephone numbers, versions, scores, ranges, and plain ones."""

from __future__ import annotations

import re

from .money import MULTIPLIERS
from .numbers import EnglishNumbers
from .tape import HELD, Tape

__all__ = ["apply", "codes"]

_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_B = r"(?<![\w.,])"
_E = r"(?![\w]|[.,][0-9])"

_PHONES = (
    re.compile(rf"(?<![\w.,+-])(\+[0-9]{{1,3}}(?:[ .-]?\(?[0-9]{{1,5}}\)?){{2,6}}){_E}"),
    re.compile(rf"(?<![\w.,+-])((?:1[ .-])?\([0-9]{{3}}\) ?[0-9]{{3}}[ .-][0-9]{{4}}){_E}"),
    re.compile(rf"(?<![\w.,+-])((?:1[ .-])?[0-9]{{3}}([ .-])[0-9]{{3}}\2[0-9]{{4}}){_E}"),
    re.compile(r"(?<![\w.,+-])([0-9]{3}-[0-9]{4})(?![\w-]|[.,][0-9])"),
    re.compile(rf"(?<![\w.,+-])(0[0-9]{{2,4}}[ -][0-9]{{3,4}}[ -]?[0-9]{{3,4}}){_E}"),
)
_GROUPED_CODES = re.compile(
    rf"(?<![\w.,-])([0-9]{{4}}([ -])[0-9]{{4}}\2[0-9]{{4}}\2[0-9]{{4}}|[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}}){_E}"
)
_CALL = re.compile(
    r"(?<!\w)((?:[Cc]all(?:ed|ing|s)?|[Dd]ial(?:ed|ing|s)?|[Tt]ext) )([0-9]{3,5})(?!\w|[.,:-][0-9])"
)
_CODE_WORD = re.compile(
    r"(?<!\w)((?:[Pp][Ii][Nn]|[Cc]ode|ZIP|[Zz]ip(?: code)?|[Pp]asscode|OTP|[Ee]xt(?:ension|\.)?|[Ee]rror|HTTP|"
    r"[Ss]tatus(?: code)?)(?: is| was|:)? )([0-9]{3,8})(?!\w|[.,:-][0-9])"
)
_ZIP = re.compile(r"(?<=[A-Z]{2} )([0-9]{5})(?:-([0-9]{4}))?(?!\w|[.,][0-9])")
_VERSION = re.compile(
    r"(?<![\w.,-])[vV]\.? ?([0-9]+(?:\.[0-9]+){0,4})(?:[-+.]?(alpha|beta|rc|dev|post|a|b)[.-]?([0-9]+)?)?(?![\w]|"
    r"\.[0-9])"
)
_DOTTED = re.compile(
    r"(?<![\w.,-])([0-9]+(?:\.[0-9]+){2,5})(?:[-+.]?(alpha|beta|rc|dev|post|a|b)[.-]?([0-9]+)?)?(?![\w]|\.[0-9])"
)
_PRODUCT = re.compile(
    r"(?<!\w)(([Vv]ersions?|[Rr]elease|Python|Node(?:\.js)?|Java|Ruby|Go|Rust|PHP|Ubuntu|Debian|Fedora|Android|"
    r"iOS|iPadOS|macOS|"
    r"Windows|CUDA|GCC|gcc|Clang|clang|LLVM|Django|Rails|React|Angular|Vue|Kubernetes|Docker|Postgres(?:QL)?|"
    r"MySQL|Redis|NumPy|"
    r"PyTorch|TensorFlow|CMake|OpenGL|Vulkan|DirectX|USB|Bluetooth|TLS|HTML|HTTP|Linux|kernel|Swift|Kotlin|Scala|"
    r"Perl|Lua|"
    r"Chapter|[Ss]ection|§) ?)([0-9]+\.[0-9]+)(?!\w|\.[0-9]|%)"
)
_SECTION = re.compile(r"§+ ?(?=[0-9])")
_DESIGNATED = re.compile(
    r"(?<!\w)(Boeing|Airbus|Flight|[Rr]oom|Route|Highway|Interstate|Area|Bus|bus|Line|Peugeot|Porsche|BMW|ISO|"
    r"RFC|IEEE|PEP|DIN|Apollo|Suite|Studio|channel|Channel|Form|form) ([0-9]{3,5})(?!\w|[.,][0-9])"
)
_LETTERED = re.compile(
    r"(?<!\w)(Apt\.|[Aa]partment|[Rr]oom|[Gg]ate|[Uu]nit|[Ss]uite|[Ss]eat|[Rr]ow|[Bb]uilding|[Tt]erminal|[Pp]latform|"
    r"[Ss]ection|[Ff]igure|[Tt]able|[Aa]ppendix|[Ff]loor) ([0-9]{1,4})([A-Z])(?!\w)"
)
_PERCENT_RANGE = re.compile(rf"(?<![\w.,])({_NUMBER})%? ?(?:[-–—]|to) ?({_NUMBER}) ?(?:%|percent\b)")
_PERCENT = re.compile(rf"(?<![\w.,])(?:([-−–+±~≈<>≤≥])(?=[0-9.]))?({_NUMBER}) ?(%|‰|pp(?!\w)|bps(?!\w))")
_TIMES = re.compile(
    rf"(?<![\w.,])({_NUMBER})(?:[-–]({_NUMBER}))?[x×](?![\w]| ?[0-9]|\.[0-9]| ?[-+=^)*] ?[0-9a-z({HELD}])"
)
_BY = re.compile(rf"(?<![\w.,])({_NUMBER}) ?[x×] ?({_NUMBER})(?: ?[x×] ?({_NUMBER}))?(?![\w])")
_WORD_BETWEEN = re.compile(
    r"(?<![\w.,-])([0-9]{1,4})-(for|of|to|by|in|on|and|out-of|over)-([0-9]{1,4})(?![\w-])"
)
_LINES = re.compile(r"(?<![\w.,])([0-9]{3,4})([pi])(?!\w)")
_SCALED = re.compile(
    rf"(?<![\w.,$€£])(?:([-−–+~≈±])(?=[0-9.]))?({_NUMBER})(?:([-–])({_NUMBER}))?(?:(k|M|m(?=[ ]users)|B|T|bn|mn|"
    rf"tn)\+?(?!\w)|[ -](thousand|million|billion|trillion|hundred|dozen)(?!\w))"
)
_ORDINAL = re.compile(r"(?<![\w.])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?:st|nd|rd|th|ST|ND|RD|TH)(?!\w)")
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,4}) ([1-9])/([2-9]|10|12|16|32|64)(?![\w/])")
_VULGAR = re.compile(r"(?<![\w.,])([0-9]*)([½¼¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_FRACTION = re.compile(r"(?<![\w.,/])([0-9]{1,6})[/⁄]([0-9]{1,6})(?![\w/]|\.[0-9])")
_SLASHED = re.compile(r"(?<![\w.,/])[0-9]{1,6}(?:/[0-9]{1,6}){2,}(?![\w/])")
_VULGARS = {
    "½": (1, 2), "¼": (1, 4), "¾": (3, 4), "⅓": (1, 3), "⅔": (2, 3), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip
_RANGE = re.compile(rf"(?<![\w.,/$€£-])({_NUMBER})(?:-| ?[–—−] ?)({_NUMBER})(?![\w-]|[.,/][0-9]| ?=)")
_LEADING_SIGN = re.compile(rf"(?<![\w.,)\]{HELD}%])([-−+±~≈])({_NUMBER})(?![\w]|[.,][0-9])")
_LEADING_SIGN_SPACED = re.compile(rf"(?<=[=(<>≤≥±×÷*/,] )([-−])({_NUMBER})(?![\w]|[.,][0-9])")
_AFTER_NUMBER_SIGN = re.compile(r"#(?=[0-9])")
_PLAIN = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+")
_INDIAN = re.compile(r"(?<![\w.,])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![\w]|[,][0-9])")
_SPACED_GROUPS = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:[ _'’][0-9]{3})+(?![\w'’]|[ ][0-9])")
_SUBTRACTION = re.compile(r"(?<=[0-9)]) [-−] (?=[0-9(])")
_PLURAL = re.compile(r"(?<![\w.,])([0-9]+)['’]?s(?!\w)")
_SIGN_WORDS = {
    "-": "minus ", "−": "minus ", "–": "minus ", "+": "plus ", "±": "plus or minus ", "~": "about ",
    "≈": "approximately ",
    "<": "less than ", ">": "more than ", "≤": "at most ", "≥": "at least ", "": "",
}  # fmt: skip


def codes(tape: Tape, say: EnglishNumbers) -> None:
    """What is said digit by digit, before anything takes it for a number or a date."""
    if not tape.has_digits:
        return
    tape.rewrite(_WORD_BETWEEN, r"\1 \2 \3")
    tape.sub(_GROUPED_CODES, lambda code: _groups(code[1], say))
    for pattern in _PHONES:
        tape.sub(pattern, lambda phone: _phone(phone[1], say))
    tape.rewrite(_CALL, lambda call: call[1] + tape.hold(say.digits(call[2])))
    tape.rewrite(_CODE_WORD, lambda code: code[1] + tape.hold(_code(code[2], say)))
    tape.sub(_ZIP, lambda code: say.digits(code[1]) + (f" dash {say.digits(code[2])}" if code[2] else ""))
    tape.rewrite(_SECTION, "section ")
    tape.sub(_VERSION, lambda version: f"version {_dotted(version[1], version[2], version[3], say)}")
    tape.sub(_DOTTED, lambda version: _dotted(version[1], version[2], version[3], say))
    tape.rewrite(_PRODUCT, lambda version: version[1] + tape.hold(_dotted(version[3], None, None, say)))
    tape.rewrite(_LETTERED, lambda name: f"{name[1]} {tape.hold(f'{say.literal(name[2])} {name[3]}')}")
    tape.rewrite(_DESIGNATED, lambda name: f"{name[1]} {tape.hold(_designation(name[2], say))}")


def _groups(text: str, say: EnglishNumbers) -> str:
    return ", ".join(say.digits(group) for group in re.findall("[0-9]+", text))


def _phone(text: str, say: EnglishNumbers) -> str | None:
    if not 7 <= sum(char.isdecimal() for char in text) <= 16:
        return None
    plus = "plus " if text.startswith("+") else ""
    return plus + _groups(text, say)


def _code(digits: str, say: EnglishNumbers) -> str:
    if len(digits) == 3 and digits[0] != "0" and digits != "404":
        number = int(digits)
        return say.cardinal(number) if number % 100 == 0 else say.digits(digits)
    return say.digits(digits)


def _designation(digits: str, say: EnglishNumbers) -> str:
    if digits[0] == "0" or len(digits) > 4:
        return say.digits(digits)
    return say.pairwise(int(digits))


def _dotted(numbers: str, stage: str | None, count: str | None, say: EnglishNumbers) -> str:
    parts = numbers.split(".")
    said = " point ".join(
        say.digits(part) if (len(part) > 1 and part[0] == "0") or len(part) > 4 else say.cardinal(int(part))
        for part in parts
    )
    if stage:
        said += " " + {"rc": "R C", "a": "alpha", "b": "beta"}.get(stage, stage)
        said += f" {say.cardinal(int(count[:9]))}" if count else ""
    return said


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """All other numbers."""
    text = tape.text
    if not tape.has_digits:
        if any(char in _VULGARS for char in text):
            tape.sub(_VULGAR, lambda found: _vulgar(found, say))
        return
    if "%" in text or "percent" in text:
        tape.sub(_PERCENT_RANGE, lambda span: f"{say.literal(span[1])} to {say.literal(span[2])} percent")
    tape.sub(_PERCENT, lambda found: _percent(found, say))
    tape.sub(_BY, lambda sizes: _sizes(sizes, say))
    tape.sub(
        _TIMES,
        lambda found: say.literal(found[1]) + (f" to {say.literal(found[2])}" if found[2] else "") + " times",
    )
    tape.sub(_LINES, lambda lines: f"{say.pairwise(int(lines[1]))} {lines[2].upper()}")
    tape.sub(_SCALED, lambda found: _scaled(found, say))
    tape.sub(_ORDINAL, lambda ordinal: say.ordinal(int(ordinal[1].replace(",", ""))))
    tape.sub(_MIXED, lambda number: say.mixed(int(number[1]), int(number[2]), int(number[3])))
    tape.sub(_VULGAR, lambda found: _vulgar(found, say))
    if "/" in text or "⁄" in text:
        tape.sub(
            _SLASHED, lambda chain: " slash ".join(_chained(piece, say) for piece in chain[0].split("/"))
        )
        tape.sub(_FRACTION, lambda found: _fraction(found, say))
    tape.sub(_INDIAN, lambda number: say.cardinal(int(number[0].replace(",", ""))))
    tape.sub(_SPACED_GROUPS, lambda number: say.cardinal(int(re.sub("[^0-9]", "", number[0]))))
    if "=" not in text:
        tape.sub(_RANGE, lambda span: _range(span[1], span[2], say))
    tape.sub(_LEADING_SIGN, lambda number: _SIGN_WORDS[number[1]] + say.literal(number[2]))
    tape.sub(_LEADING_SIGN_SPACED, lambda number: _SIGN_WORDS[number[1]] + say.literal(number[2]))
    tape.rewrite(_AFTER_NUMBER_SIGN, "number ")
    tape.rewrite(_SUBTRACTION, f" {tape.hold('minus')} ")
    tape.sub(_PLURAL, lambda number: _plural(say.literal(number[1])))
    tape.sub(_PLAIN, lambda number: say.literal(number[0]))


def _percent(match: re.Match[str], say: EnglishNumbers) -> str:
    unit = {"%": "percent", "‰": "per mille", "pp": "percentage points", "bps": "basis points"}[match[3]]
    return f"{_SIGN_WORDS[match[1] or '']}{say.literal(match[2])} {unit}"


def _chained(text: str, say: EnglishNumbers) -> str:
    return say.year(int(text)) if len(text) == 4 and text[:2] in {"19", "20"} else say.literal(text)


def _sizes(match: re.Match[str], say: EnglishNumbers) -> str | None:
    if " × " in match[0] and not match[3] and len(match[1]) < 3:  # a product
        return None
    return " by ".join(_size(size, match[1], say) for size in match.groups() if size)


def _size(text: str, first: str, say: EnglishNumbers) -> str:
    return (
        say.pairwise(int(text))
        if len(first) >= 3 and text.isdecimal() and text[0] != "0"
        else say.literal(text)
    )


def _scaled(match: re.Match[str], say: EnglishNumbers) -> str | None:
    sign, number, dash, last, letter, word = match.groups()
    if letter == "B" and re.match(
        " [A-Z][a-z]", match.string[match.end() : match.end() + 3]
    ):  # 221B Baker Street
        return None
    scale = word or MULTIPLIERS[letter]
    said = f"{_SIGN_WORDS[sign or '']}{say.literal(number)}"
    if dash:
        said += f" to {say.literal(last)}"
    return f"{said} {scale}" + (" plus" if match[0].endswith("+") else "")


def _vulgar(match: re.Match[str], say: EnglishNumbers) -> str:
    top, bottom = _VULGARS[match[2]]
    return say.mixed(int(match[1]), top, bottom) if match[1] else say.fraction(top, bottom)


def _fraction(match: re.Match[str], say: EnglishNumbers) -> str:
    top, bottom = int(match[1]), int(match[2])
    if top + bottom == 100 or match[0] == "9/11":  # 50/50, the 80/20 rule
        return f"{say.cardinal(top)} {say.cardinal(bottom)}"
    before = match.string[max(0, match.start() - 12) : match.start()]
    if re.search(
        r"\b(?:step|page|part|day|slide|question|level|lesson|week|round|chapter) $", before, re.IGNORECASE
    ):
        return f"{say.cardinal(top)} of {say.cardinal(bottom)}"
    if bottom == 100 and top > 1:
        return f"{say.cardinal(top)} out of {say.cardinal(bottom)}"
    if re.search(r"\b(?:score[ds]?:?|got|rated|rating|it|this|gets?|is|a|an) $", before) and bottom in {
        5,
        10,
        20,
        100,
    }:
        if re.search(r"\b(?:a|an|is) $", before) and bottom != 10:
            return say.fraction(top, bottom)
        return f"{say.cardinal(top)} out of {say.cardinal(bottom)}"
    if top > bottom and bottom <= 12 and top >= 20:
        return f"{say.cardinal(top)} over {say.cardinal(bottom)}"
    return say.fraction(top, bottom)


def _range(first: str, last: str, say: EnglishNumbers) -> str:
    joint = " " if first == last else " to "  # 20-20 vision
    return say.literal(first) + joint + say.literal(last)


def _plural(words: str) -> str:
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith(("x", "s")) else "s")
