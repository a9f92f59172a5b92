"""From written text to what a synthesizer should say, one sentence at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Literal, Never, Protocol

from llama_runner.errors import ArgumentTypeError

from . import ssml
from .abbreviations import split_rules
from .blocks import BlockReader, Kind, Segment
from .lexicon import Lexicon, Pronunciation
from .options import CodeMode, EmojiMode, Form, SpeechOptions, TableMode, UrlMode
from .tape import Part, Tape
from .voices import voice

__all__ = ["Sentence", "SpeechNormalizer", "SpeechStream", "speakable"]

PauseBefore = Literal["none", "sentence", "paragraph", "section"]


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """One thing to hand to a synthesizer. Equal however the text was cut into pieces."""

    text: str
    """What is said: plain text, or a complete SSML document that begins with the pause, if there is one."""
    source: str
    """The sentence as written, Markdown included; empty where there is none, as for an announcement."""
    kind: Kind
    pause: PauseBefore
    """What separates it from the sentence before."""

    def __str__(self) -> str:
        return self.text


class _HasText(Protocol):
    @property
    def text(self) -> str: ...


class SpeechNormalizer:
    """Reads texts by the same options. Immutable, so threads may share it."""

    __slots__ = ("_voice", "options")

    def __init__(self, options: SpeechOptions | None = None) -> None:
        self.options = SpeechOptions() if options is None else options
        self._voice = voice(
            self.options.language, self.options.lexicon, self.options.emoji, self.options.urls
        )

    def speakable(self, text: str) -> str:
        """The whole text: a blank between sentences, a line break between paragraphs; or one SSML document."""
        paragraphs: list[list[str]] = []
        pauses: list[str] = []
        for sentence, said in self._sentences(_segments(self.options, text)):
            if not paragraphs or sentence.pause in {"paragraph", "section"}:
                paragraphs.append([])
                pauses.append(ssml.pause("section") if sentence.pause == "section" else "")
            paragraphs[-1].append(said)
        if self.options.form == "plain":
            return "\n".join(" ".join(sentences) for sentences in paragraphs)
        content = [
            f"{pause}<p>{''.join(f'<s>{said}</s>' for said in sentences)}</p>"
            for pause, sentences in zip(pauses, paragraphs, strict=True)
        ]
        return ssml.document(content, self._voice.tag)

    def sentences(self, text: str) -> list[Sentence]:
        """The whole text, sentence by sentence."""
        return [sentence for sentence, _ in self._sentences(_segments(self.options, text))]

    def stream(self) -> SpeechStream:
        """A stream that reads by these options."""
        return SpeechStream._of(self)

    def _sentences(
        self, segments: Iterable[Segment], state: _Place | None = None
    ) -> Iterator[tuple[Sentence, str]]:
        """Each sentence and what is said in it without the document around it."""
        place = _Place() if state is None else state
        for segment in segments:
            parts = self._parts(segment)
            plain = ssml.plain(parts)
            if not any(char.isalnum() for char in plain) and not any(
                not isinstance(part, str) for part in parts
            ):
                place.section |= segment.section
                continue
            pause = place.before(segment)
            text = said = plain
            if self.options.form == "ssml":
                said = ssml.fragment(parts)
                text = ssml.document([ssml.pause(pause), f"<s>{said}</s>"], self._voice.tag)
            yield Sentence(text, _source(segment), segment.kind, pause), said

    def _parts(self, segment: Segment) -> list[Part]:
        if segment.kind == "code":
            return self._code(segment)
        if segment.kind == "table_row":
            return self._row(segment)
        label = segment.label
        tape = Tape(segment.text)
        self._voice.read(tape)
        if segment.kind in {"heading", "list_item"} and not segment.cut:
            tape.text = _ended(tape.text)
        parts = tape.parts()
        if label and tape.text:
            said = self._voice.footnote(label[1:]) if label.startswith("^") else self._voice.number(label)
            parts.insert(0, f"{said}: ")
        return parts

    def _code(self, segment: Segment) -> list[Part]:
        if self.options.code == "skip" or (self.options.code == "announce" and segment.text):
            return []
        if not segment.text:
            return [self._voice.code_block(segment.label)]
        said = self._voice.code(segment.text)
        return [_ended(said)] if said else []

    def _row(self, segment: Segment) -> list[Part]:
        if self.options.tables == "skip" or (segment.label == "header" and self.options.tables == "labels"):
            return []
        parts: list[Part] = []
        for index, cell in enumerate(segment.cells):
            said = self._read(cell)
            if not said:
                continue
            if parts:
                parts.append("; " if segment.header and self.options.tables == "labels" else ", ")
            if self.options.tables == "labels" and index < len(segment.header):
                name = self._read(segment.header[index])
                parts += [*name, ": "] if name else []
            parts += said
        if parts:
            parts.append(".")
        return parts

    def _read(self, text: str) -> list[Part]:
        parts: list[Part] = []
        for at in range(0, len(text), _CELL_LIMIT):
            tape = Tape(text[at : at + _CELL_LIMIT])
            self._voice.read(tape)
            tape.text = tape.text.rstrip(".,;:")
            parts += tape.parts()
        return parts


_CELL_LIMIT = 600


class _Place:
    """Where a text has come to: what pause the next sentence has before it."""

    __slots__ = ("block", "section")

    def __init__(self) -> None:
        self.block = -1
        self.section = False

    def before(self, segment: Segment) -> PauseBefore:
        first, same = self.block < 0, self.block == segment.block
        section = self.section or segment.section
        self.block, self.section = segment.block, False
        if first:
            return "none"
        return "section" if section else "sentence" if same else "paragraph"


def _segments(options: SpeechOptions, text: str) -> list[Segment]:
    if not isinstance(text, str):
        raise ArgumentTypeError(f"the text to speak is a str, not {type(text).__name__}")
    reader = _reader(options)
    return reader.push(text) + reader.flush()


def _reader(options: SpeechOptions) -> BlockReader:
    return BlockReader(split_rules(options.language.partition("-")[0], options.lexicon.ending_with_stop))


def _source(segment: Segment) -> str:
    return " | ".join(segment.cells) if segment.kind == "table_row" else segment.text


_END = re.compile(r"[.!?:;…。！？।]$")


def _ended(text: str) -> str:
    """With a full stop where a heading or an item has none, so that a synthesizer lets the voice fall."""
    return text if not text or _END.search(text) else text + "."


class SpeechStream:
    """Takes a text as it is generated and gives each sentence as soon as it is certain where it ends.

    That takes a few characters of what follows. The sentences are the same however the text is cut.
    One thread at a time.
    """

    __slots__ = ("_normalizer", "_place", "_reader")

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
        options = SpeechOptions(
            language=language,
            lexicon=lexicon,
            form=form,
            code=code,
            emoji=emoji,
            urls=urls,
            tables=tables,
            **unknown,
        )
        self._begin(SpeechNormalizer(options))

    @classmethod
    def _of(cls, normalizer: SpeechNormalizer) -> SpeechStream:
        self = cls.__new__(cls)
        self._begin(normalizer)
        return self

    def _begin(self, normalizer: SpeechNormalizer) -> None:
        self._normalizer = normalizer
        self._reader = _reader(normalizer.options)
        self._place = _Place()

    def push(self, piece: str) -> list[Sentence]:
        """Take the next piece of any length; return the sentences that are complete with it."""
        if not isinstance(piece, str):
            raise ArgumentTypeError(f"a piece of text is a str, not {type(piece).__name__}")
        return self._read(self._reader.push(piece))

    def flush(self) -> list[Sentence]:
        """End the text: return what was held back. The stream is then ready for another text."""
        sentences = self._read(self._reader.flush())
        self._place = _Place()
        return sentences

    def _read(self, segments: list[Segment]) -> list[Sentence]:
        return [sentence for sentence, _ in self._normalizer._sentences(segments, self._place)]

    def iterate(self, pieces: Iterable[str | _HasText]) -> Iterator[Sentence]:
        """The sentences of ``pieces``: strings, or ``Chunk`` objects, as ``LlamaRunner.stream`` gives them."""
        for piece in pieces:
            yield from self.push(_text(piece))
        yield from self.flush()

    async def aiterate(self, pieces: AsyncIterable[str | _HasText]) -> AsyncIterator[Sentence]:
        """As :meth:`iterate`, of what ``LlamaRunner.astream`` gives."""
        async for piece in pieces:
            for sentence in self.push(_text(piece)):
                yield sentence
        for sentence in self.flush():
            yield sentence


def _text(piece: object) -> str:
    text = piece if isinstance(piece, str) else getattr(piece, "text", None)
    if not isinstance(text, str):
        raise ArgumentTypeError(
            f"a piece is a str or has a text, as a Chunk does; {type(piece).__name__} has none"
        )
    return text


def speakable(
    text: str,
    language: str = "en",
    lexicon: Lexicon | Mapping[str, str | Pronunciation] | None = None,
    form: Form = "plain",
    *,
    code: CodeMode = "announce",
    emoji: EmojiMode = "drop",
    urls: UrlMode = "full",
    tables: TableMode = "labels",
) -> str:
    """``text`` as a synthesizer should get it: numbers, dates, abbreviations and markup in words.

    ``"Dr. Smith paid $5 on 2024-03-01."`` becomes "Doctor Smith paid five dollars on March first, twenty twenty-four."
    Never fails on any ``str``. See :class:`SpeechOptions` for the options; each wrong one raises its error.
    """
    options = SpeechOptions(
        language=language, lexicon=lexicon, form=form, code=code, emoji=emoji, urls=urls, tables=tables
    )
    return SpeechNormalizer(options).speakable(text)
