"""Source code aloud: identifiers as words, signs by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .numbers import EnglishNumbers
from .tape import clean
from .web import read_address

__all__ = ["read_code"]

_SIGNS: Mapping[str, str] = {
    "==": "equals", "===": "equals", "!=": "does not equal", "!==": "does not equal", "<=": "less than or equal to",
    ">=": "greater than or equal to", "->": "arrow", "=>": "arrow", "&&": "and", "||": "or", "++": "plus plus",
    "--": "dash dash", "+=": "plus equals",
    "-=": "minus equals", "*=": "times equals", "::": "colon colon", "//": "slash slash", "**": "to the power of",
    "<<": "shift left", ">>": "shift right",
    "...": "dot dot dot", "=": "equals", "<": "less than", ">": "greater than", "+": "plus", "*": "star",
    "/": "slash", "%": "percent",
    "&": "and", "|": "pipe", "!": "not", "?": "question mark", "@": "at", "#": "hash", "$": "dollar", "^": "caret",
    "~": "tilde", "\\": "backslash",
    ".": "dot", ":": "colon", "-": "dash",
}  # fmt: skip
_DROPPED = frozenset("()[]{}\"'`;_")
_TOKEN = re.compile(
    r"[0-9]+(?:\.[0-9]+)*|[^\W\d_]+|\.\.\.|===|!==|==|!=|<=|>=|->|=>|&&|\|\||\+\+|--|\+=|-=|\*=|::|//|\*\*|<<|>>|"
    r",|\S| "
)


def read_code(text: str, say: EnglishNumbers) -> str:
    """What a programmer would say for it."""
    out: list[str] = []
    tokens = _TOKEN.findall(clean(text))
    for index, token in enumerate(tokens):
        if token == " " or token in _DROPPED:
            continue
        if token == ",":
            out.append(",")
        elif token[0].isdecimal():
            out.append(_number(token, say))
        elif token == ":" and _next(tokens, index) in {" ", ""}:
            out.append(",")
        elif token == "-" and index and tokens[index - 1] == " " and _next(tokens, index) == " ":
            out.append("minus")
        elif token == "*" and index and tokens[index - 1] == " " and _next(tokens, index) == " ":
            out.append("times")
        elif token in _SIGNS:
            out.append(_SIGNS[token])
        elif token[0].isalpha():
            out.append(read_address(token, say))
    return re.sub(r"(?: ?,)+", ",", " ".join(out)).strip(" ,")


def _next(tokens: list[str], index: int) -> str:
    return tokens[index + 1] if index + 1 < len(tokens) else ""


def _number(token: str, say: EnglishNumbers) -> str:
    if token.count(".") > 1:
        return " point ".join(say.literal(part) for part in token.split("."))
    return say.literal(token)
