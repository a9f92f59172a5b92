"""A user's own pronunciations: written form to spoken form, or to IPA."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

from .tape import Part, Phoneme, Tape, clean

__all__ = ["Lexicon", "Pronunciation"]

_TOKEN = re.compile(r"[^\W_]+|[^\w ]|_| +")


@dataclasses.dataclass(frozen=True, slots=True)
class Pronunciation:
    """IPA for SSML and, where the written form would be misread, what to say in plain text."""

    ipa: str
    """Without slashes."""
    plain: str | None = None
    """Said where there are no phonemes; None says the written form."""


class Lexicon(Mapping[str, "str | Pronunciation"]):
    """Maps written forms to spoken ones. Immutable.

    ``Lexicon({"nginx": "engine x", "Nguyen": "/ŋwiən/"})``. A spoken form between slashes is IPA: SSML has it as a
    ``<phoneme>``, plain text the written form; ``Pronunciation(ipa, plain)`` gives plain text a form of its own.

    Only whole words match, so ``cat`` is not found in ``category``. A written form without capitals matches every
    case (``nginx``, ``Nginx``, ``NGINX``); one with a capital matches only as it stands (``US`` is not ``us``). Of
    several that match at a place, the longest wins, and of two that are as long,
    the one whose case agrees. Spoken forms
    are said as they stand: no other rule reads them.
    """

    __slots__ = ("_entries", "_index")

    def __init__(self, entries: Mapping[str, str | Pronunciation] = {}) -> None:
        if not isinstance(entries, Mapping):
            raise ArgumentTypeError(
                f"a lexicon is a mapping of written to spoken forms, not {type(entries).__name__}"
            )
        self._entries: dict[str, str | Pronunciation] = {}
        self._index: dict[str, list[tuple[list[str], bool, Part]]] = {}
        for written, spoken in entries.items():
            self._add(written, spoken)
        for candidates in self._index.values():
            candidates.sort(key=lambda entry: (-len(entry[0]), -sum(map(len, entry[0])), entry[1]))

    @classmethod
    def load(cls, path: str | Path) -> Lexicon:
        """Read a TOML file of ``written = "spoken"`` and ``written = {ipa = "…", plain = "…"}`` lines.

        Raises ``FileNotFoundError`` where there is no file, ``ValueError`` where it is no such TOML.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LexiconNotFoundError(f"no lexicon at {str(path)!r}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"{str(path)!r} is not TOML: {error}") from error
        entries: dict[str, str | Pronunciation] = {}
        for written, value in data.items():
            spoken = value
            if isinstance(spoken, dict):
                if not spoken.keys() <= {"ipa", "plain"} or "ipa" not in spoken:
                    raise InvalidArgumentError(
                        f"lexicon entry {written!r} has {sorted(spoken)}; it takes ipa, and plain if need be"
                    )
                spoken = Pronunciation(**spoken)
            entries[written] = spoken
        return cls(entries)

    def _add(self, written: str, spoken: str | Pronunciation) -> None:
        if not isinstance(written, str):
            raise ArgumentTypeError(f"a written form is a str, not {type(written).__name__}: {written!r}")
        tokens = [token if token.strip() else " " for token in _TOKEN.findall(clean(written).strip())]
        if not tokens:
            raise InvalidArgumentError(
                f"a written form needs a character that can be seen, {written!r} has none"
            )
        self._entries[written] = spoken
        any_case = written == written.lower()
        if any_case:
            tokens = [token.lower() for token in tokens]
        candidates = self._index.setdefault(tokens[0].lower(), [])
        candidates.append((tokens, any_case, _part(written, spoken)))

    def __getitem__(self, written: str) -> str | Pronunciation:
        return self._entries[written]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Lexicon({self._entries!r})"

    @property
    def ending_with_stop(self) -> frozenset[str]:
        """The written forms whose last character is a full stop, which then ends no sentence."""
        return frozenset(written for written in self._entries if written.endswith("."))

    def apply(self, tape: Tape) -> None:
        """Take every written form out of ``tape``."""
        text = tape.text
        if not self._index or not text:
            return
        tokens = [token if token.strip() else " " for token in _TOKEN.findall(text)]
        out: list[str] = []
        at = 0
        while at < len(tokens):
            found = self._find(tokens, at)
            if found is None:
                out.append(tokens[at])
                at += 1
                continue
            length, part = found
            said = tape.hold(part)
            if tokens[at + length - 1] == "." and not "".join(tokens[at + length :]).strip("\"'”’)]» "):
                said += "."
            out.append(said)
            at += length
        tape.text = "".join(out)

    def _find(self, tokens: list[str], at: int) -> tuple[int, Part] | None:
        for written, any_case, part in self._index.get(tokens[at].lower(), ()):
            here = tokens[at : at + len(written)]
            if here == written or (any_case and [token.lower() for token in here] == written):
                return len(written), part
        return None


class LexiconNotFoundError(InvalidArgumentError, FileNotFoundError):
    """No lexicon file where one was named."""


def _part(written: str, spoken: object) -> Part:
    if isinstance(spoken, str) and len(spoken) > 1 and spoken.startswith("/") and spoken.endswith("/"):
        spoken = Pronunciation(spoken[1:-1])
    if isinstance(spoken, Pronunciation):
        given: tuple[object, object] = (spoken.ipa, written if spoken.plain is None else spoken.plain)
        ipa, plain = (clean(text).strip() if isinstance(text, str) else "" for text in given)
        if not ipa or not plain:
            raise InvalidArgumentError(
                f"the IPA for {written!r}, and its plain form, are texts that are not empty, not {spoken!r}"
            )
        return Phoneme(ipa, plain)
    if not isinstance(spoken, str):
        raise ArgumentTypeError(
            f"the spoken form of {written!r} is a str or a Pronunciation, not {type(spoken).__name__}"
        )
    return clean(spoken).strip()
