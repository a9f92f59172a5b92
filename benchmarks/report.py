"""What a benchmark found: one row each, and the table of all rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Row", "Spread", "Wanted", "table"]


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: the median, the least and the most."""

    median: float
    least: float
    most: float
    n: int = 1

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))

    def __str__(self) -> str:
        if self.n == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "least": self.least, "most": self.most, "n": self.n}


@dataclass(frozen=True)
class Wanted:
    """What a row is held to: ``at_least`` or ``at_most`` a number."""

    limit: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {number(self.limit)}"


def at_least(limit: float) -> Wanted:
    return Wanted(limit)


def at_most(limit: float) -> Wanted:
    return Wanted(limit, at_least=False)


@dataclass
class Row:
    """One line of the table. ``ratio`` is ours over native, or over what the name says; without one, ours is judged."""

    name: str
    unit: str
    ours: Spread
    native: Spread | None = None
    ratio: Spread | None = None
    wanted: Wanted | None = None
    peers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        """Whether the median is as wanted; None where nothing is."""
        judged = self.ours if self.ratio is None else self.ratio
        return None if self.wanted is None else self.wanted.met(judged.median)

    def __str__(self) -> str:
        judged = {None: "", True: ", met", False: ", MISSED"}[self.met]
        against = "" if self.native is None else f", native {self.native}"
        ratio = "" if self.ratio is None else f", ratio {self.ratio}"
        return f"{self.name}: {self.ours} {self.unit}{against}{ratio}, wanted {self.wanted}{judged}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "native": None if self.native is None else self.native.to_dict(),
            "ours": self.ours.to_dict(),
            "ratio": None if self.ratio is None else self.ratio.to_dict(),
            "wanted": None if self.wanted is None else str(self.wanted),
            "met": self.met,
            "peers": self.peers,
            "notes": self.notes,
        }


def number(value: float) -> str:
    """Three digits, and all of those before the point."""
    if value != value:
        return "nan"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}".rstrip("0")


def table(rows: Sequence[Row], peers: Sequence[str], missing: Mapping[str, str]) -> str:
    """The rows as a Markdown table, their notes below it."""
    head = ["benchmark", "unit", "native", "ours", "ratio", "wanted", *peers]
    body = []
    for at, row in enumerate(rows, 1):
        mark = "" if row.met is None else " met" if row.met else " MISSED"
        wanted = "" if row.wanted is None else f"{row.wanted}{mark}"
        cells = [f"{row.name} [{at}]" if row.notes else row.name, row.unit, row.native or "", row.ours]
        cells += [row.ratio or "", wanted, *(row.peers.get(peer, "") for peer in peers)]
        body.append([str(cell) for cell in cells])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, ["-" * width for width in widths], *body]
    ]
    for at, row in enumerate(rows, 1):
        lines += [f"[{at}] {note}" for note in row.notes]
    lines += [f"{name}: {why}" for name, why in missing.items()]
    return "\n".join(lines)
