"""The blocks of a Markdown text while it arrives: paragraphs, headings, list items, tables, fenced code."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from .abbreviations import SplitRules
from .sentences import MAX_SENTENCE, SentenceSplitter

__all__ = ["BlockReader", "Kind", "Segment"]

Kind = Literal["text", "heading", "list_item", "table_row", "code"]

_HELD_LINE = 4000  # a table's row or a fence's first line that is longer is running text
_RULE_LINE = 200
_LINE_END = re.compile(r"[\r\n]")
_BLANKS = " \t\xa0\u3000"

_HEADING = re.compile(r"#{1,6}(?=[ \t]|$)")
_FENCE = re.compile(r"(`{3,}|~{3,})")
_CLOSING_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*$")
_RULE = re.compile(r"(?:[-*_][ \t]*){3,}$|=+[ \t]*$|-+[ \t]*$")
_MARKS_ONLY = re.compile(r"[-*+_=] ?(?:[-*_=+ \t])*$")
_BULLET = re.compile(r"[-*+•‣◦▪●–][ \t]+(?:\[[ xX]\][ \t]+)?")
_MAYBE_BULLET = re.compile(r"[-*+•‣◦▪●–](?:[ \t]+(?:\[(?:[ xX](?:\](?:[ \t]+)?)?)?)?)?$")
_NUMBERED = re.compile(r"([0-9]{1,3})[.)][ \t]+(?=\S)")
_MAYBE_NUMBERED = re.compile(r"[0-9]{1,3}(?:[.)][ \t]*)?$")
_DEFINITION = re.compile(r"\[([^\]\n]{1,80})\]:")
_LINK_TARGET = re.compile(r"\[[^\]\n]{1,80}\]:[ \t]*\S+(?:[ \t]+[\"'(].*)?[ \t]*$")
_MAYBE_DEFINITION = re.compile(r"\[[^\]\n]{0,80}\]?$")
_TABLE_RULE = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_CELL = re.compile(r"(?<!\\)\|")
_INFO = re.compile(r"[\w+#.-]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A sentence as written, or one thing else that is said by itself."""

    kind: Kind
    text: str
    block: int
    """Segments of one paragraph, heading, item or row have the same number."""
    section: bool = False
    """Whether a thematic break came before the block."""
    label: str = ""
    """An item's number; of code, the language that its fence names."""
    cut: bool = False
    """Whether the sentence goes on in the next segment, having been too long."""
    header: tuple[str, ...] = ()
    """Of a table's row: the columns' names; empty where the row is the header itself, or there is none."""
    cells: tuple[str, ...] = ()


class BlockReader:
    """Takes text in pieces of any length; gives the segments that are certain, the same for every cutting."""

    __slots__ = (
        "_after_cr",
        "_block",
        "_fence",
        "_first_row",
        "_header",
        "_kind",
        "_label",
        "_line",
        "_long",
        "_mode",
        "_out",
        "_section",
        "_splitter",
        "_tail",
    )

    def __init__(self, rules: SplitRules) -> None:
        self._splitter = SentenceSplitter(rules, self._sentence)
        self._out: list[Segment] = []
        self._reset()

    def _reset(self) -> None:
        self._mode: Literal["start", "text", "held", "fence"] = "start"
        self._line = ""  # what of a line is not decided yet
        self._tail = ""  # how the line of text ends so far
        self._kind: Kind | None = None  # of the open block; None between blocks
        self._label = ""
        self._block = 0
        self._section = False
        self._fence = ""  # what opened the code
        self._long = False  # whether parts of its line have been given already
        self._first_row: tuple[str, ...] | None = None
        self._header: tuple[str, ...] | None = None  # of the open table; empty where it has none
        self._after_cr = False

    def push(self, piece: str) -> list[Segment]:
        """Take the next piece; return what is complete with it."""
        at = 0
        while at < len(piece):
            if self._after_cr and piece[at] == "\n":  # the second half of a line's end
                at += 1
                self._after_cr = False
                continue
            self._after_cr = False
            if self._mode == "start":
                at = self._start(piece, at)
            else:
                found = _LINE_END.search(piece, at)
                stop = found.start() if found else len(piece)
                self._within(piece[at:stop])
                at = stop
                if found:
                    self._end_line()
                    at += 1
            if at and piece[at - 1] == "\r":
                self._after_cr = True
        out, self._out = self._out, []
        return out

    def flush(self) -> list[Segment]:
        """End the text; the reader is ready for another."""
        if self._mode == "start" and self._line:
            self._classify(complete=True)
        if self._mode == "held":
            self._end_line()
        self._close()
        out, self._out = self._out, []
        self._reset()
        return out

    # --- the beginning of a line ---------------------------------------------------------------------

    def _start(self, piece: str, at: int) -> int:
        """Take characters until it is known what the line is; returns how far it came."""
        while at < len(piece) and self._mode == "start":
            char = piece[at]
            at += 1
            if char in "\r\n":
                self._classify(complete=True)
                if self._mode != "start":
                    self._end_line()
                return at
            if not self._line and char in _BLANKS:
                continue
            self._line += char
            self._classify(complete=False)
        return at

    def _classify(self, complete: bool) -> None:
        """Decide what the line is by how it begins, if that is enough; a complete line is always decided."""
        line = self._line
        while line.startswith(">"):  # a quotation's text is text like any other
            line = line[1:].lstrip(_BLANKS)
        self._line = line
        if not line:
            if complete:
                self._close()
            return
        first = line[0]
        if first == "#":
            self._classify_heading(line, complete)
        elif first in "`~":
            self._classify_fence(line, complete)
        elif first == "|":
            self._mode = "held"
        elif first == "[":
            self._classify_definition(line, complete)
        elif "0" <= first <= "9":
            self._classify_numbered(line, complete)
        elif first in "-*+_=•‣◦▪●–":
            self._classify_marks(line, complete)
        else:
            self._text(line)
            return
        if complete and self._mode == "start" and self._line:
            self._text(self._line)

    def _classify_heading(self, line: str, complete: bool) -> None:
        found = _HEADING.match(line)
        if found and (found.end() < len(line) or complete):
            self._open("heading")
            self._text(line[found.end() :].lstrip(_BLANKS))
        elif line != "#" * min(len(line), 6):
            self._text(line)

    def _classify_fence(self, line: str, complete: bool) -> None:
        if _FENCE.match(line):
            self._mode = "held"
        elif line.strip(line[0]):
            self._text(line)

    def _classify_definition(self, line: str, complete: bool) -> None:
        found = _DEFINITION.match(line)
        if found and found[1].startswith("^"):
            self._open("list_item", f"^{found[1][1:]}")
            self._text(line[found.end() :].lstrip(_BLANKS))
        elif found:
            self._mode = "held"
        elif not _MAYBE_DEFINITION.match(line):
            self._text(line)

    def _classify_numbered(self, line: str, complete: bool) -> None:
        found = _NUMBERED.match(line)
        if found and (self._kind != "text" or found[1] == "1"):
            self._open("list_item", found[1])
            self._text(line[found.end() :])
        elif found or not _MAYBE_NUMBERED.match(line):
            self._text(line)

    def _classify_marks(self, line: str, complete: bool) -> None:
        if _MARKS_ONLY.match(line) and len(line) < _RULE_LINE:
            if complete and _RULE.match(line):
                if not line.startswith("=") and (
                    self._kind is None or line.strip() != "-" * len(line.strip())
                ):
                    self._section = True
                self._close()
                self._line = ""
            elif complete and len(line.strip()) == 1 and self._kind is None:
                self._line = ""
            return
        if _MAYBE_BULLET.match(line) and len(line) < _RULE_LINE and not complete:
            return
        found = _BULLET.match(line)
        if found and found.end() < len(line):
            self._open("list_item")
            self._text(line[found.end() :])
        else:
            self._text(line)

    # --- within a line -------------------------------------------------------------------------------

    def _text(self, text: str) -> None:
        """The line is running text and begins with ``text``."""
        if self._kind is None:
            self._open("text")
        elif self._mode == "start":
            self._end_table()
        self._mode = "text"
        self._line = ""
        self._within(text)

    def _within(self, text: str) -> None:
        if self._mode == "text":
            self._splitter.feed(text)
            self._tail = (self._tail + text[-2:])[-2:]
            return
        self._line += text
        if self._mode == "fence":
            if len(self._line) > MAX_SENTENCE:
                self._long_code_line()
        elif len(self._line) > _HELD_LINE:
            self._mode = "start"
            self._text(self._line)

    def _end_line(self) -> None:
        if self._mode == "fence":
            if self._closes_fence():
                self._fence = ""
                self._mode = "start"
                self._kind = None
            else:
                self._code_line()
            self._line = ""
            return
        if self._mode == "held":
            line, self._line = self._line, ""
            self._mode = "start"
            if not self._is_text(line):
                return
        self._mode = "start"
        if self._kind == "heading":
            self._close()
        elif self._tail.endswith(("  ", "\\")):
            self._splitter.finish()
        else:
            self._splitter.feed("\n")
        self._tail = ""

    def _is_text(self, line: str) -> bool:
        """Take a whole line of those that are only understood as a whole; whether it was running text after all."""
        if line.startswith("|"):
            self._row(line)
        elif line.startswith("["):
            if not _LINK_TARGET.match(line):
                self._text(line)
                return True
            self._close()
        else:
            fence = _FENCE.match(line)
            if fence is None or ("`" in fence[0] and "`" in line[fence.end() :]) or len(line) > _RULE_LINE:
                self._text(line)
                return True
            info = _INFO.search(line, fence.end())
            self._open("code", info[0] if info else "")
            self._emit(Segment("code", "", self._block, self._take_section(), self._label))
            self._fence = fence[0]
            self._mode = "fence"
        return False

    def _closes_fence(self) -> bool:
        if self._long or len(self._line) > _RULE_LINE:
            return False
        found = _CLOSING_FENCE.match(self._line)
        return found is not None and found[1].startswith(self._fence)

    def _long_code_line(self) -> None:
        line = self._line
        at = 0
        while len(line) - at > MAX_SENTENCE:
            self._code(line[at : at + MAX_SENTENCE])
            at += MAX_SENTENCE
        self._line = line[at:]
        self._long = True

    def _code_line(self) -> None:
        self._code(self._line)
        self._line = ""
        self._long = False

    def _code(self, text: str) -> None:
        if text.strip():
            self._emit(Segment("code", text, self._block, False, self._label))

    # --- tables --------------------------------------------------------------------------------------

    def _row(self, line: str) -> None:
        if self._kind != "table_row":
            self._open("table_row")
        if _TABLE_RULE.match(line) and "-" in line:
            if self._first_row is not None:
                self._header, self._first_row = self._first_row, None
                self._emit_row(self._header, ())
            return
        cells = tuple(cell.strip().replace("\\|", "|") for cell in _CELL.split(line.strip().strip("|")))
        if self._header is None and self._first_row is None:
            self._first_row = cells
            return
        self._end_first_row()
        self._emit_row(cells, self._header or ())

    def _end_first_row(self) -> None:
        """The row that could have been a header was none."""
        if self._first_row is not None:
            row, self._first_row, self._header = self._first_row, None, ()
            self._emit_row(row, ())

    def _emit_row(self, cells: tuple[str, ...], header: tuple[str, ...]) -> None:
        self._block += 1
        label = "header" if cells is self._header else ""
        self._emit(Segment("table_row", "", self._block, self._take_section(), label, False, header, cells))

    def _end_table(self) -> None:
        if self._kind == "table_row":
            self._close()
            self._open("text")

    # --- blocks --------------------------------------------------------------------------------------

    def _open(self, kind: Kind, label: str = "") -> None:
        self._close()
        self._kind = kind
        self._label = label
        self._block += 1

    def _close(self) -> None:
        """End the open block, if there is one."""
        if self._mode == "fence":
            if not self._closes_fence():
                self._code_line()
            self._line = self._fence = ""
            self._mode = "start"
        self._end_first_row()
        self._splitter.finish()
        self._kind = self._header = None
        self._label = self._tail = ""

    def _sentence(self, text: str, cut: bool) -> None:
        label, self._label = self._label, ""
        self._emit(Segment(self._kind or "text", text, self._block, self._take_section(), label, cut))

    def _take_section(self) -> bool:
        section, self._section = self._section, False
        return section

    def _emit(self, segment: Segment) -> None:
        self._out.append(segment)
