"""What a docstring says of a function and of each parameter: Google's, NumPy's and Sphinx's styles."""

from __future__ import annotations

import inspect
import re

__all__ = ["parse_docstring"]

_PARAMETERS = {
    "args",
    "arguments",
    "parameters",
    "params",
    "keyword args",
    "keyword arguments",
    "other parameters",
}
_SECTIONS = _PARAMETERS | {
    "attributes", "example", "examples", "exceptions", "methods", "note", "notes", "raises", "receives", "references",
    "return", "returns", "see also", "todo", "warning", "warnings", "warns", "yield", "yields",
}  # fmt: skip
# notes and warnings are of use to who calls
_KEPT = {"note", "notes", "warning", "warnings"}
_FIELD = re.compile(r":(\w+)\s*([^:]*):\s*(.*)")
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")
_NUMPY_ITEM = re.compile(r"\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*\s*(?::.*)?$")


def parse_docstring(text: str | None) -> tuple[str, dict[str, str]]:
    """The description, without the sections on parameters and results, and the parameters' descriptions by name."""
    lines = inspect.cleandoc(text or "").splitlines()
    found: dict[str, str] = {}
    description: list[str] = []
    i = 0
    while i < len(lines):
        field = _FIELD.fullmatch(lines[i])
        if field is not None:
            i, body = _block(lines, i + 1, indent=1)
            if field[1] in ("param", "parameter", "arg", "argument", "key", "keyword") and field[2].split():
                found[field[2].split()[-1].lstrip("*")] = _joined([field[3], *body])
            continue
        title = lines[i].strip().rstrip(":").lower()
        if title in _SECTIONS and i + 1 < len(lines):
            if re.fullmatch(r"-{3,}|={3,}", lines[i + 1].strip()):
                end = _numpy_end(lines, i + 2)
                if title in _PARAMETERS:
                    found |= _numpy_items(lines[i + 2 : end])
                elif title in _KEPT:
                    description += [f"{lines[i].strip()}:", *lines[i + 2 : end]]
                i = end
                continue
            if lines[i].rstrip().endswith(":") and (
                not lines[i + 1].strip() or lines[i + 1].startswith((" ", "\t"))
            ):
                start = i
                i, body = _block(lines, i + 1, indent=1)
                if title in _PARAMETERS:
                    found |= _google_items(body)
                elif title in _KEPT:
                    description += lines[start:i]
                continue
        description.append(lines[i])
        i += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(description)).strip(), found


def _block(lines: list[str], start: int, indent: int) -> tuple[int, list[str]]:
    """Where the lines from ``start`` that are indented by ``indent`` or empty end, and those lines."""
    end = start
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) >= indent):
        end += 1
    return end, lines[start:end]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> str:
    return " ".join(part for part in (line.strip() for line in lines) if part)


def _google_items(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    level = min((_indent(line) for line in lines if line.strip()), default=0)
    i = 0
    while i < len(lines):
        item = _GOOGLE_ITEM.fullmatch(lines[i].strip())
        if not lines[i].strip() or item is None:
            i += 1
            continue
        i, body = _block(lines, i + 1, indent=level + 1)
        found[item[1]] = _joined([item[2], *body])
    return found


def _numpy_end(lines: list[str], start: int) -> int:
    """Where the section ends: at the next underlined title."""
    for i in range(start, len(lines) - 1):
        if re.fullmatch(r"-{3,}|={3,}", lines[i + 1].strip()) and lines[i].strip():
            return i
    return len(lines)


def _numpy_items(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        if _indent(line) or not _NUMPY_ITEM.fullmatch(line.strip()):
            continue
        i, body = _block(lines, i, indent=1)
        for name in line.split(":")[0].split(","):
            found[name.strip().lstrip("*")] = _joined(body)
    return found
