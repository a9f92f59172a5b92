"""How text is to be read: every choice in one immutable, checked value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, Never, get_args

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError, unknown_name

from .lexicon import Lexicon, Pronunciation
from .voices import check_language

__all__ = ["SpeechOptions"]

Form = Literal["plain", "ssml"]
CodeMode = Literal["announce", "skip", "read"]
EmojiMode = Literal["drop", "name"]
UrlMode = Literal["full", "host", "skip"]
TableMode = Literal["labels", "rows", "skip"]


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class SpeechOptions:
    """Checked when it is made; a wrong value raises ``ValueError`` or ``TypeError`` naming what would be right."""

    language: str
    """A tag as ``en``, ``en-GB``, ``de``; English says everything, others what num2words has."""
    lexicon: Lexicon
    """Pronunciations that go before every rule."""
    form: Form
    """``plain`` text, or ``ssml`` documents."""
    code: CodeMode
    """Fenced code: say that there is some, say nothing, or read it."""
    emoji: EmojiMode
    """Leave emoji out, or say their (English) names."""
    urls: UrlMode
    """Read addresses in full, only the host, or not at all."""
    tables: TableMode
    """Read each cell after its column's name, rows as they stand, or nothing."""

    def __init__(
        self,
        *,
        language: str = "en",
        lexicon: Lexicon | Mapping[str, str | Pronunciation] | None = None,
        form: Form = "plain",
        code: CodeMode = "announce",
        emoji: EmojiMode = "drop",
        urls: UrlMode = "full",
        tables: TableMode = "labels",
        **unknown: Never,
    ) -> None:
        for name in unknown:
            raise unknown_name(name, [field.name for field in dataclasses.fields(self)], "SpeechOptions")
        put = object.__setattr__
        put(self, "language", check_language(language))
        put(
            self,
            "lexicon",
            lexicon if isinstance(lexicon, Lexicon) else Lexicon({} if lexicon is None else lexicon),
        )
        put(self, "form", _one_of("form", form, get_args(Form)))
        put(self, "code", _one_of("code", code, get_args(CodeMode)))
        put(self, "emoji", _one_of("emoji", emoji, get_args(EmojiMode)))
        put(self, "urls", _one_of("urls", urls, get_args(UrlMode)))
        put(self, "tables", _one_of("tables", tables, get_args(TableMode)))


def _one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} is one of {', '.join(map(repr, known))}, not {type(value).__name__}")
    if value not in known:
        raise InvalidArgumentError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")
    return value
