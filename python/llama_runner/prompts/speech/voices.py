"""Which languages there are, and what reads each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llama_runner.errors import ArgumentTypeError, MissingExtraError, UnsupportedLanguageError

from .tape import Tape

if TYPE_CHECKING:
    from .lexicon import Lexicon

__all__ = ["Voice", "check_language", "languages", "voice"]


class Voice(Protocol):
    """What reads the sentences of one language."""

    def read(self, tape: Tape) -> None: ...
    def code(self, text: str) -> str: ...
    def number(self, digits: str) -> str: ...
    def code_block(self, language: str) -> str: ...
    def footnote(self, name: str) -> str: ...
    @property
    def tag(self) -> str: ...


def languages() -> tuple[str, ...]:
    """The tags that can be asked for here: English always, the others where the ``speech`` extra is installed."""
    tags = {"en", "en-US", "en-GB"}
    try:
        tags |= {name.replace("_", "-") for name in _converters()}
    except MissingExtraError:
        pass
    return tuple(sorted(tags))


def _converters() -> frozenset[str]:
    try:
        import num2words  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            "languages other than English need num2words: pip install 'llama-runner[speech]'"
        ) from error
    return frozenset(num2words.CONVERTER_CLASSES)


def check_language(language: object) -> str:
    """The tag, normalized: ``en_gb`` is ``en-GB``.

    Raises ``UnsupportedLanguageError`` naming the languages there are,
    ``MissingExtraError`` where num2words is missing.
    """
    if not isinstance(language, str):
        raise ArgumentTypeError(f"language is a tag like 'en' or 'de', not {type(language).__name__}")
    base, _, region = language.strip().replace("_", "-").partition("-")
    base, region = base.lower(), region.upper()
    tag = f"{base}-{region}" if region else base
    if base == "en":
        return tag if region in {"", "US", "GB"} else "en-GB" if region in _BRITISH_REGIONS else "en"
    if base.isalpha() and converter(tag):
        return tag
    raise UnsupportedLanguageError(
        f"no rules for the language {language!r}; there are {', '.join(languages())}"
    )


_BRITISH_REGIONS = frozenset("UK AU NZ IE ZA IN SG HK MT KE NG".split())


def converter(tag: str) -> str | None:
    """The name that num2words has for a language: the region's, or that of the language."""
    known = _converters()
    base, _, region = tag.partition("-")
    for name in (f"{base}_{region}", _ALIASES.get(base, base)):
        if name in known:
            return name
    return None


_ALIASES = {"kk": "kz", "nb": "no", "nn": "no"}  # num2words goes by the country here


def voice(language: str, lexicon: Lexicon, emoji: str, urls: str) -> Voice:
    """What reads the language of a checked tag."""
    if language.startswith("en"):
        from .english import English

        return English(language == "en-GB", lexicon, emoji, urls)
    from .international import International

    return International(language, converter(language) or language, lexicon, urls)
