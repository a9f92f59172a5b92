"""Chat templates by jinja2, set up as ``transformers`` documents it: what llama.cpp's own engine is compared with."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llama_runner.core import ChatTemplate

Messages = list[dict[str, Any]]


class Refusal(Exception):
    """A template raised, or cannot render these messages."""


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``: marks what the assistant says, for training. Its body renders as it stands."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 types it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("say"), [], [], body).set_lineno(line)

    def say(self, caller: Callable[[], str]) -> str:
        return caller()


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(reason: str) -> None:
    raise Refusal(f"the template refuses: {reason}")


class Lenient(jinja2.Undefined):
    """Undefined as llama.cpp has it: nothing in a sum, where jinja2 raises."""

    def __add__(self, other: Any) -> Any:
        return other

    def __radd__(self, other: Any) -> Any:
        return other


def print_in_pieces(value: Any) -> Any:
    """What ``{{ value }}`` prints in llama.cpp: a list's items in a row, and nothing for a mapping or None."""
    if value is None or isinstance(value, dict):
        return ""
    return "".join(str(print_in_pieces(item)) for item in value) if isinstance(value, list) else value


def write_generators(value: Any, **options: Any) -> str:
    return to_json(list(value) if isinstance(value, Iterator) else value, **options)


@functools.cache
def environment(quirks: frozenset[str]) -> jinja2.sandbox.SandboxedEnvironment:
    """jinja2 as transformers sets it up, or with some of llama.cpp's ``quirks``."""
    sandbox = (
        jinja2.sandbox.SandboxedEnvironment
        if "lists-can-change" in quirks
        else jinja2.sandbox.ImmutableSandboxedEnvironment
    )
    made = sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, jinja2.ext.loopcontrols],
        undefined=Lenient if "undefined-is-nothing" in quirks else jinja2.Undefined,
        finalize=print_in_pieces if "printed-in-pieces" in quirks else None,
    )
    made.filters["tojson"] = write_generators if "generators-are-lists" in quirks else to_json
    if "safe-is-plain" in quirks:
        made.filters["safe"] = str
    if "numbers-written-out" in quirks:  # not by this filter
        made.filters["string"] = lambda value: (
            float.__repr__(value) if isinstance(value, float) else str(value)
        )
    made.globals["raise_exception"] = refuse
    return made


@functools.cache
def compiled(source: str, quirks: frozenset[str]) -> jinja2.Template:
    return environment(quirks).from_string(source)


def render(
    source: str,
    messages: Messages,
    *,
    bos: str,
    eos: str,
    now: datetime.datetime,
    tools: list[dict[str, Any]] | None = None,
    left_out: Collection[str] = (),
    quirks: frozenset[str] = frozenset(),
    **variables: Any,
) -> str:
    """The prompt; raises Refusal. Messages reach the template as they are; ``left_out`` stays undefined."""
    given = {"tools": tools, "documents": None, "bos_token": bos, "eos_token": eos, **variables}
    for name in left_out:
        del given[name]
    try:
        return compiled(source, quirks).render(messages=messages, strftime_now=now.strftime, **given)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as problem:
        raise Refusal(f"{type(problem).__name__}: {problem}") from problem


def same_day(render_native: Callable[[], str]) -> tuple[str, datetime.datetime]:
    """What is rendered, and the time at which: llama.cpp asks the clock, and midnight may come meanwhile."""
    while True:
        before = datetime.datetime.now()
        text = render_native()
        if before.date() == datetime.datetime.now().date():
            return text, before


def special_tokens(template: ChatTemplate) -> tuple[str, str]:
    """The texts of the begin and end tokens, as a template sees them."""
    vocab = template.model.vocab
    return tuple(  # type: ignore[return-value]
        "" if token is None else vocab.token_to_piece(token, special=True).decode()
        for token in (vocab.bos, vocab.eos)
    )
