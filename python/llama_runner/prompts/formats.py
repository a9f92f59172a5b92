"""``detect_format``: the chat format of a model that comes without a template, as its vocabulary and name tell it."""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from llama_runner.core import Model, TokenAttr, Vocab
from llama_runner.errors import ArgumentTypeError, unknown_name

__all__ = ["DetectedFormat", "detect_format", "format_names", "format_source"]

# How sure each kind of evidence makes. Nothing below TOKENS_OR_NAME is ever said.
BY_NAME = 0.7
BY_TOKENS = 0.8
END_AGREES = 0.15
FAMILY_AGREES = 0.05
SPECIAL = TokenAttr.CONTROL | TokenAttr.USER_DEFINED
NAME_KEYS = ("general.name", "general.basename", "general.finetune")
BASE = re.compile(r"\b(base|pt|pretrained)\b")


@dataclasses.dataclass(frozen=True, slots=True)
class DetectedFormat:
    """A chat format that a model's file speaks for."""

    name: str
    description: str
    confidence: float
    """0.7 where only the model's name says so, 0.8 where its special tokens do, up to 1 where all agrees."""
    evidence: tuple[str, ...]
    source: str
    """Jinja text for ``llama_runner.core.ChatTemplate(model, source)``."""
    stops: tuple[str, ...]
    """Texts that end an answer besides the model's end tokens: for ``GenerationParams.stop``."""
    stop_tokens: tuple[int, ...]
    """A token that ends an answer, where llama.cpp does not count it among the end tokens already."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """One table of ``formats.toml``, which says what its entries are."""

    title: str
    description: str
    template: str
    tokens: tuple[str, ...]
    end: str
    without: tuple[str, ...] = ()
    vocab: str = ""
    hint: bool = False
    name: str = ""
    family: str = ""
    stops: tuple[str, ...] = ()


@functools.cache
def _formats() -> Mapping[str, _Format]:
    text = resources.files("llama_runner.prompts").joinpath("formats.toml").read_text("utf-8")
    tables = tomllib.loads(text)
    lists = ("tokens", "without", "stops")
    formats = {}
    for title, table in tables.items():
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in table.items()}
        formats[title] = _Format(title=title, **values)
    return MappingProxyType(formats)


def format_names() -> list[str]:
    """The chat formats that there are, sorted."""
    return sorted(_formats())


def format_source(name: str) -> str:
    """The Jinja template of a format, for ``ChatTemplate(model, source)``. Raises UnknownParameterError."""
    if name not in _formats():
        raise unknown_name(str(name), _formats(), "format_source")
    return _formats()[name].template


def detect_format(model: Model) -> DetectedFormat | None:
    """The chat format of ``model``, or None where nothing speaks for one, or for two alike.

    Looked at are the special tokens of its vocabulary, its end token, its architecture and its name; not a template
    that it may have, which is the better answer where there is one. Base models often have the special tokens of their
    chat siblings: this tells in which form to speak to them, and not how well they answer.
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"model is a llama_runner.core.Model, not {type(model).__name__}")
    return _Detector(model).detect()


class _Detector:
    def __init__(self, model: Model):
        self.vocab: Vocab = model.vocab
        metadata = model.metadata
        self.architecture = model.architecture
        names = [metadata[key] for key in NAME_KEYS if metadata.get(key)]
        self.shown_name = ", ".join(dict.fromkeys(names))
        self.name = " ".join("-".join(re.findall(r"[a-z0-9]+", name.lower())) for name in names)
        eos = self.vocab.eos
        self.eos = "" if eos is None else self.vocab.text(eos)

    def token(self, text: str) -> int | None:
        """The special token that is this text, if there is one."""
        tokens = self.vocab.tokenize(text, add_special=False, parse_special=True)
        # a tokenizer of SentencePiece may write a space of its own before a special token
        special = [int(t) for t in tokens if self.vocab.attr(int(t)) & SPECIAL]
        return special[0] if len(special) == 1 and self.vocab.text(special[0]) == text else None

    def fits(self, form: _Format) -> bool:
        if form.vocab and form.vocab != self.vocab.type:
            return False
        if any(self.token(text) is None for text in form.tokens):
            return False
        return all(self.token(text) is None for text in form.without)

    def detect(self) -> DetectedFormat | None:
        fitting = [form for form in _formats().values() if self.fits(form)]
        by_tokens = [self.by_tokens(form) for form in fitting if form.tokens and not form.name]
        # one whose tokens are all among another's says less than that
        sure = [
            (form, found)
            for form, found in by_tokens
            if found and not any(set(form.tokens) < set(other.tokens) for other, also in by_tokens if also)
        ]
        if len(sure) > 1:  # a vocabulary that was extended: what ends the text is what was trained last
            sure = [(form, found) for form, found in sure if form.end == self.eos]
        if not sure and not any(found for _, found in by_tokens):
            named = [(form, self.by_name(form)) for form in fitting if form.name]
            sure = [(form, found) for form, found in named if found]
        if len(sure) != 1:
            return None
        form, found = sure[0]
        confidence, evidence = found
        end = self.token(form.end) if form.end != "eos" else None
        return DetectedFormat(
            name=form.title,
            description=form.description,
            confidence=confidence,
            evidence=evidence,
            source=form.template,
            stops=form.stops,
            stop_tokens=(end,) if end is not None and not self.vocab.is_eog(end) else (),
        )

    def by_tokens(self, form: _Format) -> tuple[_Format, tuple[float, tuple[str, ...]] | None]:
        """How sure the special tokens make, and why; None: not sure enough."""
        confidence = BY_TOKENS
        evidence = [f"the vocabulary has the special tokens {' '.join(form.tokens)}"]
        if self.eos == form.end:
            confidence += END_AGREES
            evidence.append(f"the end token is {self.eos}")
        for what, shown, words in (
            ("name", repr(self.shown_name), self.name),
            ("architecture", self.architecture, self.architecture),
        ):
            if form.family and re.search(form.family, words):
                confidence += FAMILY_AGREES
                evidence.append(f"the {what} is {shown}")
                break
        says_base = BASE.search(self.name) is not None and self.eos != form.end
        if says_base or (form.hint and len(evidence) == 1):
            return form, None
        return form, (round(confidence, 2), tuple(evidence))

    def by_name(self, form: _Format) -> tuple[float, tuple[str, ...]] | None:
        """How sure the name makes, where the special tokens are not against it."""
        if not re.search(form.name, self.name) or form.end not in ("eos", self.eos):
            return None
        if form.end == "eos" and not self.eos:
            return None
        return BY_NAME, (f"the name is {self.shown_name!r}", f"the end token is {self.eos}")
