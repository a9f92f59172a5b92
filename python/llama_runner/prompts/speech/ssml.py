"""What a sentence is made of, as plain text or as SSML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

from .tape import Part, Pause, Phoneme

__all__ = ["document", "fragment", "pause", "plain"]

_NAMESPACE = "http://www.w3.org/2001/10/synthesis"
_BLANKS = re.compile(" {2,}")
_BEFORE = re.compile(r" +([,.;:!?…])")
_STRENGTHS = {"sentence": "medium", "paragraph": "strong", "section": "x-strong"}


def plain(parts: Iterable[Part]) -> str:
    """The sentence as text: a pause is a comma, a phoneme what its lexicon entry has for plain text."""
    out: list[str] = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Pause):
            out.append(", ")
        else:
            out.append(part.plain)
    return _tidy("".join(out))


def fragment(parts: Iterable[Part]) -> str:
    """The sentence as the content of an ``<s>`` element."""
    out: list[str] = []
    for part in parts:
        if isinstance(part, str):
            out.append(escape(part))
        elif isinstance(part, Pause):
            out.append(f' <break strength="{part.strength}"/> ')
        elif isinstance(part, Phoneme):
            written = escape(part.plain)
            out.append(f'<phoneme alphabet="ipa" ph={quoteattr(part.ipa)}>{written}</phoneme>')
        else:
            out.append(f'<say-as interpret-as="characters">{escape(part.text)}</say-as>{escape(part.ending)}')
    return _tidy("".join(out))


def pause(kind: str) -> str:
    """The ``<break>`` that stands between two things; nothing where ``kind`` is "none"."""
    return f'<break strength="{_STRENGTHS[kind]}"/>' if kind in _STRENGTHS else ""


def document(content: Sequence[str], language: str) -> str:
    """A complete SSML document."""
    return (
        f'<speak version="1.1" xmlns="{_NAMESPACE}" xml:lang={quoteattr(language)}>{"".join(content)}</speak>'
    )


def _tidy(text: str) -> str:
    return _BEFORE.sub(r"\1", _BLANKS.sub(" ", text)).strip()
