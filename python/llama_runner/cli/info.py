"""``llama-runner info`` and ``llama-runner models``: what is built in, and what can be had by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_runner.cli.console import JsonOutput, print_json

__all__ = ["info", "models"]


def info(as_json: JsonOutput = False) -> None:
    """Show how llama.cpp was built, the devices found, and the features of this CPU."""
    from llama_runner import build_info

    facts = build_info()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)


def _rows(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """One row a fact; what is nested gets its path as name."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield from _list_rows(name, value)
        else:
            yield name, _word(value)


def _list_rows(name: str, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    if any(isinstance(value, Mapping) for value in values):
        for value in values:
            words = value.items() if isinstance(value, Mapping) else [("", value)]
            yield name, ", ".join(f"{key} {_word(word)}".strip() for key, word in words)
    else:
        yield name, ", ".join(map(_word, values)) or "none"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def models(as_json: JsonOutput = False) -> None:
    """List the models that go by a short name."""
    from llama_runner.models import short_names

    known = short_names()
    if as_json:
        print_json(
            {
                name: {
                    "source": model.source,
                    "bytes": model.size,
                    "license": model.license,
                    "description": model.description,
                    "sha256": model.sha256,
                }
                for name, model in known.items()
            }
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("license", no_wrap=True)
    table.add_column("description", overflow="fold")
    for name, model in known.items():
        size = f"{model.size / 1e6:.0f} MB"
        table.add_row(*map(Text, (name, size, model.license, model.description)))
    Console(highlight=False).print(table)
