"""What the tests of sessions share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent.parent / "vendor" / "llama.cpp" / "models" / "templates"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


def with_tools() -> str:
    """A template of SmolLM2's own syntax that has a place for tools."""
    return (TEMPLATES / "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja").read_text("utf-8")


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def find_city(name: str) -> dict[str, Any]:
    """Find a city.

    Args:
        name: what it is called
    """
    return {"name": name, "people": 1000 + len(name)}
