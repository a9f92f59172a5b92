"""No abort of llama.cpp is overlooked: the pinned source is scanned, and docs/hazards.md says what the cases say."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostile.test_hazards  # noqa: F401  (registers the cases)
from c_declarations import LLAMA_CPP, ROOT
from hostile.hazard import HAZARDS
from hostile.table import render

SITE = re.compile(r"GGML_ASSERT\s*\(|GGML_ABORT\s*\(|\bthrow\b|std::abort")
# a definition at the left margin, or a member function in a class body of llama.cpp's
DEFINITION = re.compile(
    r"^(?!\s|#|//|\}|namespace|struct\s+\w+\s*\{|class\s)(?:[\w:<>,&*~\s\[\]]+?)(?:\b|(?=~))([\w:~]+)\s*\("
)
INVENTORY = tomllib.loads((Path(__file__).parent / "inventory.toml").read_text(encoding="utf-8"))["site"]


def sites() -> Iterator[str]:
    """``file::function`` of every function that has a site, more than once where it has several."""
    source = LLAMA_CPP / "src"
    for path in sorted([*source.glob("*.cpp"), *source.glob("*.h"), *source.glob("models/*.cpp")]):
        function = "?"
        for line in path.read_text(encoding="utf-8").split("\n"):
            if found := DEFINITION.match(line):
                function = found.group(1)
            if SITE.search(line.split("//")[0]):
                yield f"{path.relative_to(source).as_posix()}::{function}"


def entry_for(site: str) -> int | None:
    for i, entry in enumerate(INVENTORY):
        if any(fnmatch.fnmatchcase(site, pattern) for pattern in entry["sites"]):
            return i
    return None


def test_every_site_of_the_pinned_source_is_accounted_for() -> None:
    found = sorted(set(sites()))
    assert len(found) > 250
    unknown = [site for site in found if entry_for(site) is None]
    assert not unknown, (
        "say in tests/hostile/inventory.toml what keeps these from being reached:\n" + "\n".join(unknown)
    )


def test_no_entry_of_the_inventory_is_about_nothing() -> None:
    found = sorted(set(sites()))
    idle = [
        p for entry in INVENTORY for p in entry["sites"] if not any(fnmatch.fnmatchcase(s, p) for s in found)
    ]
    assert not idle, f"no site is called so any more: {idle}"


@pytest.mark.parametrize("entry", INVENTORY, ids=lambda entry: entry["why"][:40])
def test_the_inventory_names_cases_that_exist(entry: dict) -> None:
    assert set(entry.get("tests", [])) <= set(HAZARDS)


def test_the_page_of_hazards_says_what_the_cases_say() -> None:
    page = (ROOT / "docs" / "hazards.md").read_text(encoding="utf-8")
    assert page == render(), "write it anew: PYTHONPATH=tests python -m hostile.table"
