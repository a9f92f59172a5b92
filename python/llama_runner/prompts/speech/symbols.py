"""Signs of mathematics and of typing, in English words."""

from __future__ import annotations

import re

from .numbers import AMERICAN as _SMALL
from .tape import HELD, Tape

__all__ = ["apply", "powers"]

_SIGNS = {
    "=": "equals", "≠": "does not equal", "≈": "is approximately", "≅": "is congruent to", "≡": "is equivalent to",
    "<": "is less than",
    ">": "is greater than", "≤": "is less than or equal to", "≥": "is greater than or equal to", "×": "times",
    "÷": "divided by",
    "±": "plus or minus", "∓": "minus or plus", "√": "the square root of", "∛": "the cube root of",
    "∞": "infinity", "∑": "the sum",
    "∏": "the product", "∫": "the integral", "∂": "partial", "∇": "nabla", "∈": "in", "∉": "not in",
    "⊂": "is a subset of",
    "⊆": "is a subset of", "∪": "union", "∩": "intersection", "∀": "for all", "∃": "there exists",
    "∅": "the empty set", "∧": "and", "∨": "or",
    "¬": "not", "∴": "therefore", "∵": "because", "∝": "is proportional to", "⇒": "implies", "⟹": "implies",
    "⇔": "if and only if",
    "→": "to", "⟶": "to", "←": "from", "↔": "to and from", "↑": "up", "↓": "down", "↦": "maps to", "⊕": "X or",
    "·": "times", "⋅": "times", "∗": "times",
    "°": "degrees", "©": "copyright", "§": "section", "¶": "paragraph", "&": "and", "@": "at", "%": "percent",
    "+": "plus",
    "€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees", "$": "dollars", "¢": "cents", "∠": "angle",
    "⊥": "is perpendicular to", "∥": "is parallel to",
    "ℝ": "the reals", "ℕ": "the naturals", "ℤ": "the integers", "ℂ": "the complex numbers", "ℚ": "the rationals",
    "−": "minus", "^": "to the power of",
}  # fmt: skip
_ASCII = {
    "<->": "↔", "<=>": "⇔", "==>": "⇒", "-->": "→", "<--": "←", "=>": "⇒", "->": "→", "<-": "←", "!=": "≠",
    "<=": "≤", ">=": "≥",
    "===": "=", "==": "=", ":=": "=", "+/-": "±", "+-": "±", "&&": "&", "~=": "≈",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "gamma", "Δ": "delta", "Θ": "theta", "Λ": "lambda", "Ξ": "xi", "Π": "pi",
    "Σ": "sigma", "Φ": "phi",
    "Ψ": "psi", "Ω": "omega",
}  # fmt: skip
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_COMPARED = re.compile(rf"^([<>≤≥≈~]) ?(?=[0-9.{HELD}$€£])|(?<=[ (])([<>≤≥≈~])(?=[0-9.{HELD}$€£])")
_COMPARED_WORDS = {
    "<": "less than ",
    ">": "more than ",
    "≤": "at most ",
    "≥": "at least ",
    "≈": "approximately ",
    "~": "about ",
}
_ASCII_USE = re.compile("|".join(re.escape(sign) for sign in sorted(_ASCII, key=len, reverse=True)))
_POWER = re.compile(
    rf"(?<=[\w){HELD}])(?:\^\{{?\(?([-−]?[\w{HELD}]+(?:\.[\w{HELD}]+)*)\)?\}}?|([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+))"
)
_SUBSCRIPT = re.compile("([₀₁₂₃₄₅₆₇₈₉]+)")
_TIMES = re.compile(rf"(?<=[\w){HELD}]) ?\* ?(?=[\w({HELD}])")
_MINUS = re.compile(
    rf"(?<=[{HELD})] )[-−](?= [0-9A-Za-z({HELD}])|(?<=\b[A-Za-z] )[-−](?= (?:[0-9a-z(]|[{HELD}])(?!\w))|"
    rf"(?<=[0-9{HELD}])-(?=[0-9{HELD}a-z])"
)
_EQUATION = re.compile(r"[=+×√≤≥≈]")
_UNARY = re.compile(rf"(?<![\w){HELD}])[-−](?=[a-z{HELD}0-9](?![a-z]))")
_PLUS = re.compile(rf"(?<=[0-9a-zA-Z{HELD}])\+(?![\w({HELD}+ ])(?!\+)")
_OVER = re.compile(rf"(?<=\)) ?/ ?(?=[\w{HELD}(])")
_DIVIDED = re.compile(rf"(?<=[{HELD})a-z]) ?/ ?(?=[{HELD}(a-z])")
_ABOUT = re.compile(rf"(?<!\w)~ ?(?=[0-9{HELD}])")
_FACTORIAL = re.compile(rf"(?<=[{HELD}])!(?= ?[=+×*/])")
_GREEK_USE = re.compile(
    r"(?<![\u0370-\u03ff\u1f00-\u1fff])[αβγδεζηθικλμµνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ](?![\u0370-\u03ff\u1f00-\u1fff])"
)
_OPERATOR = re.compile("([∑∏∫])(?! *from)")
_SIZES = re.compile(rf"(?<=[{HELD}]) ?x ?(?=[{HELD}])")
_PRODUCT = re.compile(
    rf"(?<== )[a-z]{{2}}(?=[,.;)]|$| ?[-+×*/=^{HELD}])|(?<=[+×*{HELD}] )[a-z]{{2}}(?= ?[-+×*/=^{HELD}])"
)
_SHORT_WORDS = frozenset("is if of to in on at by or so as we he it an be do go no us up my me am".split())
_ANY = re.compile(f"[{re.escape(''.join(_SIGNS))}]")
_SLASH = re.compile(rf"(?<=[\w{HELD}]) ?/ ?(?=[\w{HELD}])")


def apply(tape: Tape) -> None:
    """What is left of signs once numbers have been taken out."""
    text = tape.text
    if text.isascii() and not any(char in "<>=+*/-^&@%$~!" for char in text):
        return
    tape.rewrite(_ASCII_USE, lambda sign: _ASCII[sign[0]])
    tape.rewrite(_COMPARED, lambda sign: tape.hold(_COMPARED_WORDS[sign[1] or sign[2]]) + " ")
    tape.rewrite(_ABOUT, lambda _: tape.hold("about") + " ")
    if not text.isascii():
        tape.sub(_GREEK_USE, lambda letter: _GREEK[letter[0]])
    if "=" in text:
        tape.sub(_PRODUCT, lambda pair: None if pair[0] in _SHORT_WORDS else " ".join(pair[0]))
    tape.sub(_FACTORIAL, lambda _: "factorial")
    if _EQUATION.search(text):
        tape.sub(_MINUS, lambda _: "minus")
    tape.sub(_UNARY, lambda _: "minus")
    tape.sub(_TIMES, lambda _: "times")
    tape.sub(_OVER, lambda _: "over")
    if "=" in text:
        tape.sub(_DIVIDED, lambda _: "divided by")
    tape.sub(_PLUS, lambda _: "plus")
    tape.sub(_SIZES, lambda _: "by")
    tape.rewrite(_OPERATOR, r"\1 of ")
    tape.sub(_ANY, lambda sign: _SIGNS[sign[0]])
    tape.sub(_SLASH, lambda _: "slash")


def powers(tape: Tape) -> None:
    """Raised and lowered numbers, before they are taken for numbers of their own."""
    if not tape.text.isascii():
        tape.rewrite(_SUBSCRIPT, lambda digits: digits[1].translate(_LOWERED))
    if "^" in tape.text or not tape.text.isascii():
        tape.sub(_POWER, lambda power: _power(power[1] or power[2].translate(_RAISED)))


def _power(exponent: str) -> str:
    if exponent == "2":
        return "squared"
    if exponent == "3":
        return "cubed"
    sign = "minus " if exponent[0] in "-−" else ""
    digits = exponent.lstrip("-−+")
    if digits.isdecimal() and digits.isascii() and len(digits) < 4:
        number = _SMALL.cardinal(int(digits)) if sign else _SMALL.ordinal(int(digits))
        return f"to the {sign}{number}"
    return f"to the power of {sign}{_NUMBERS.sub(lambda number: f' {_SMALL.literal(number[0])} ', digits)}"
