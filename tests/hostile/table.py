"""Writes docs/hazards.md from the cases and the inventory: ``PYTHONPATH=tests python -m hostile.table``."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hostile.hazard import HAZARDS
from hostile.test_hazards import CASES, importlib

PAGE = Path(__file__).parents[2] / "docs" / "hazards.md"
HEAD = """# Where llama.cpp ends a process, and what keeps it from that

`llama.h` trusts its caller: a bad value is an assertion, a crash, a C++ exception or a wrong number. Each row is one
such place, what provokes it, which check of ours comes before it, and the test that provokes it in a child process,
sees a Python exception and an exit code of 0, and uses the object afterwards. `tests/hostile/table.py` writes the page.

Two things stand behind the checks. After loading, `native/model_check.cpp` refuses hyperparameters and tensor types
that ggml would assert on a worker thread. And a last net turns an assertion that fails on the calling thread into a
typed error; a context that it happened in refuses every call but `close()`. No net catches a worker thread, and none a
segmentation fault: it is no substitute for a check.
"""


def code(text: str) -> str:
    return ", ".join(f"`{part.strip()}`" for part in text.split(","))


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def render() -> str:
    lines = [HEAD]
    for module, names in CASES.items():
        title = (importlib.import_module(module).__doc__ or "").rstrip(".\n")
        lines += [f"## {title}\n", "| site | provoked by | check | test |", "| --- | --- | --- | --- |"]
        for name in names:
            h = HAZARDS[name]
            lines.append(f"| {code(h.site)} | {cell(h.provoked_by)} | {cell(h.check)} | `{name}` |")
        lines.append("")
    lines += [
        "## Every other assertion, abort and throw of `src/`\n",
        "`tests/hostile/inventory.toml` assigns each function that has one to a line below; a test scans the pinned",
        "source and fails on a function that is not assigned.\n",
        "| what keeps it from being reached | tests |", "| --- | --- |",
    ]  # fmt: skip
    inventory = tomllib.loads((Path(__file__).parent / "inventory.toml").read_text(encoding="utf-8"))["site"]
    for entry in inventory:
        lines.append(f"| {cell(entry['why'])} | {', '.join(f'`{t}`' for t in entry.get('tests', ()))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
