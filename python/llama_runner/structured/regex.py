"""Regular expressions as GBNF grammars, for where llguidance is not installed."""

from __future__ import annotations

import re

from llama_runner.errors import ConstraintError

__all__ = ["regex_to_gbnf"]

MAX_DEPTH = 100
MAX_COUNT = 2000
_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_", "s": r" \t\n\r\x0B\x0C"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0", "a": "\a"}
_COUNT = re.compile(r"\{(\d{1,9})(,?)(\d{0,9})\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|x\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})")


def regex_to_gbnf(pattern: str) -> str:
    r"""A GBNF grammar of the text that ``pattern`` matches as a whole.

    Literals, ``.``, classes, groups, ``|``, the greedy quantifiers, and ``\d \w \s`` (of ASCII) with their opposites.
    ConstraintError names what else there is: look-around, references, flags, anchors in the middle.
    """
    return "root ::= " + _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.depth = 0

    def problem(self, what: str) -> ConstraintError:
        return ConstraintError(f"the regular expression at {self.at}: {what}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def whole(self) -> str:
        if self.peek() == "^":
            self.at += 1
        made = self.alternatives()
        if self.at < len(self.text):
            raise self.problem("an unmatched )")
        return made

    def alternatives(self) -> str:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.problem(f"it nests more than {MAX_DEPTH} groups")
        made = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            made.append(self.sequence())
        self.depth -= 1
        return " | ".join(made)

    def sequence(self) -> str:
        parts = []
        while self.peek() not in ("", "|", ")"):
            if self.peek() == "$" and self.at + 1 == len(self.text):
                self.at += 1
                continue
            parts.append(self.atom() + self.quantifier())
        return " ".join(parts) or '""'

    def atom(self) -> str:
        char = self.peek()
        if char == "(":
            return self.group()
        if char == "[":
            return self.set()
        if char in "*+?{":
            raise self.problem(f"{char!r} repeats nothing")
        if char in "^$":
            raise self.problem(f"the anchor {char!r} stands only at the ends")
        self.at += 1
        if char == ".":
            return r"[^\n]"
        if char == "\\":
            return self.escape()
        return f"[{in_class(char)}]"

    def group(self) -> str:
        self.at += 1
        if self.text.startswith("?:", self.at):
            self.at += 2
        elif self.peek() == "?":
            raise self.problem("only plain groups and (?:…) are supported")
        made = self.alternatives()
        if self.peek() != ")":
            raise self.problem("a ) is missing")
        self.at += 1
        return f"({made})"

    def escape(self) -> str:
        char = self.peek()
        if char and char in "dws":
            self.at += 1
            return f"[{_CLASSES[char]}]"
        if char and char in "DWS":
            self.at += 1
            return f"[^{_CLASSES[char.lower()]}]"
        return f"[{in_class(self.character())}]"

    def character(self) -> str:
        """The character that an escape stands for; the backslash is behind."""
        found = _HEX.match(self.text, self.at)
        if found:
            code = int(next(part for part in found.groups() if part), 16)
            self.at = found.end()
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self.problem(f"{code:x} is no character")
            return chr(code)
        char = self.peek()
        if not char:
            raise self.problem("a backslash at the end")
        if char.isalnum() and char not in _CONTROLS:
            raise self.problem(f"\\{char} is not supported")
        self.at += 1
        return _CONTROLS.get(char, char)

    def set(self) -> str:
        self.at += 1
        made = "["
        if self.peek() == "^":
            self.at += 1
            made += "^"
        parts: list[str] = []
        while self.peek() != "]" or not parts:
            if self.text.startswith(("[", "&&", "--", "~~"), self.at):
                raise self.problem("classes within classes are not supported")
            parts.append(self.member(made))
        self.at += 1
        return made + "".join(parts) + "]"

    def member(self, opening: str) -> str:
        first = self.one(opening)
        if len(first) > 1 or not (
            self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "")
        ):
            return first if len(first) > 1 else in_class(first)
        self.at += 1
        last = self.one(opening)
        if len(last) > 1 or last < first:
            raise self.problem(f"a range from {first!r} to {last!r}")
        return f"{in_class(first)}-{in_class(last)}"

    def one(self, opening: str) -> str:
        """A character of a class, or what a class within it holds."""
        char = self.peek()
        if not char:
            raise self.problem("a ] is missing")
        self.at += 1
        if char != "\\":
            return char
        name = self.peek()
        if name and name in "dws":
            self.at += 1
            return _CLASSES[name]
        if name and name in "DWS":
            raise self.problem(f"\\{name} within {opening}…] is not supported")
        return self.character()

    def quantifier(self) -> str:
        char = self.peek()
        found = _COUNT.match(self.text, self.at)
        if char and char in "*+?":
            self.at += 1
            made = char
        elif found:
            low, comma, high = found.groups()
            if max(int(low), int(high or 0)) > MAX_COUNT or (high and int(low) > int(high)):
                raise self.problem(f"{found[0]} counts backwards, or beyond {MAX_COUNT}")
            self.at = found.end()
            made = f"{{{low}{comma}{high}}}"
        elif char == "{":
            raise self.problem("{ begins a count")
        else:
            return ""
        if self.peek() in ("*", "+", "{"):
            raise self.problem("a repetition of a repetition")
        if self.peek() == "?":  # which of the matches is found first is of no matter to which text matches
            self.at += 1
        return made


def in_class(char: str) -> str:
    """A character within a class of GBNF."""
    if char == "\0":
        raise ConstraintError("the regular expression has a NUL: no model writes it")
    if char in ']\\^-["' or not char.isprintable():
        code = ord(char)
        return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
    return char
