"""What is wrong with a call's arguments, told so that a small model can write them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from llama_runner.chat._json import compact, shown
from llama_runner.chat._schemas import Path, Schema, describe, example, follow
from llama_runner.errors import ToolArgumentError

__all__ = ["MISSING", "UNKNOWN", "Problem", "argument_error", "first_line", "problem_at", "unknown_argument"]

MISSING: Final = object()
UNKNOWN: Final = object()
_MOST = 5
_EXAMPLE_CHARS = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One place in the arguments: what is there (or MISSING, or UNKNOWN where it should not be), what is wanted."""

    path: Path
    got: Any
    wanted: str

    def __str__(self) -> str:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        place = place.lstrip(".") or "the arguments"
        if self.got is UNKNOWN:
            return f"{place}: there is no such argument, {self.wanted}"
        if self.got is MISSING:
            return f"{place}: missing, want {self.wanted}"
        return f"{place}: got {shown(self.got)}, want {self.wanted}"


def problem_at(schema: Schema, arguments: Any, path: Path, missing: bool, why: str = "") -> Problem:
    """The problem at ``path``, or as near to it as the schema can be followed; ``why`` if the schema does not say."""
    node, depth = follow(schema, path)
    place = path[:depth]
    value: Any = arguments
    for part in place:
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = MISSING
            break
    wanted = describe(node, schema)
    return Problem(
        place, MISSING if missing and depth == len(path) else value, f"{wanted} ({why})" if why else wanted
    )


def unknown_argument(path: Path, names: Sequence[str]) -> Problem:
    allowed = f"only {', '.join(names)}" if names else "it takes none"
    return Problem(path, UNKNOWN, allowed)


def argument_error(
    tool: str, schema: Schema, arguments: dict[str, Any], problems: Sequence[Problem]
) -> ToolArgumentError:
    """The error for ``problems``, of which there is at least one."""
    every = list(dict.fromkeys(map(str, problems)))  # a union reports one place several times
    lines, more = every[:_MOST], len(every) - _MOST
    if more > 0:
        lines.append(f"and {more} more")
    told = "\n- ".join(("", *lines))
    return ToolArgumentError(
        f"{tool}: {'; '.join(lines)}",
        tool,
        f"Error: {tool} was not run, its arguments are wrong:{told}\n"
        f"Call {tool} again with arguments such as {repaired(schema, arguments, problems)}",
    )


def repaired(schema: Schema, arguments: dict[str, Any], problems: Sequence[Problem]) -> str:
    """Arguments that would do: the model's own where they are right, made up where they are not."""
    properties = schema.get("properties", {})
    wrong = dict.fromkeys(problem.path[0] for problem in problems if problem.path)
    kept = {name: value for name, value in arguments.items() if name not in wrong}
    made = example(schema, schema)
    made = made if isinstance(made, dict) else {}
    for name in wrong:
        if name in properties and name in arguments:
            made[str(name)] = example(properties[name], schema)
    text = compact({**made, **kept})
    return text if len(text) <= _EXAMPLE_CHARS else compact(made)[:_EXAMPLE_CHARS]


def first_line(error: BaseException, most: int = 300) -> str:
    """What an exception says, in one line; its class where it says nothing, or cannot."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
