"""Everything that is read in English, in the order in which rules must see it."""

from __future__ import annotations

from . import (
    acronyms,
    code,
    counts,
    dates,
    emoji,
    inline,
    money,
    punctuation,
    scientific,
    symbols,
    times,
    units,
    web,
    words,
)
from .lexicon import Lexicon
from .numbers import AMERICAN, BRITISH
from .tape import Tape

__all__ = ["English"]


class English:
    """Reads sentences in English; ``british`` decides on "and", on the day's place in 1/2/2024 and on spellings."""

    __slots__ = ("_emoji", "_lexicon", "_say", "_urls")

    def __init__(self, british: bool, lexicon: Lexicon, emoji: str, urls: str) -> None:
        self._say = BRITISH if british else AMERICAN
        self._lexicon = lexicon
        self._emoji = emoji
        self._urls = urls

    def read(self, tape: Tape) -> None:
        """Turn the text of ``tape`` into what is said."""
        say = self._say
        inline.apply(tape, self.code)
        emoji.emoticons(tape)
        web.addresses(tape, say, self._urls)
        self._lexicon.apply(tape)
        # Names, codes and dates go before what would take them apart.
        acronyms.specials(tape)
        web.names(tape, say, self._urls)
        dates.apply(tape, say)
        counts.codes(tape, say)
        times.apply(tape, say)
        money.apply(tape, say)
        scientific.apply(tape, say)
        units.apply(tape, say)
        symbols.powers(tape)
        words.apply(tape, say)
        acronyms.apply(tape, say)
        counts.apply(tape, say)
        (emoji.name if self._emoji == "name" else emoji.drop)(tape)
        symbols.apply(tape)
        web.identifiers(tape, say)
        punctuation.apply(tape)

    def code(self, text: str) -> str:
        return code.read_code(text, self._say)

    def number(self, digits: str) -> str:
        return self._say.literal(digits)

    def code_block(self, language: str) -> str:
        """What announces a block of code."""
        name = _LANGUAGES.get(language.lower())
        if name is None:
            name = web.read_address(language, self._say)
        return f"Code block in {name}." if name else "Code block."

    def footnote(self, name: str) -> str:
        return f"Footnote {self._say.literal(name) if name.isdecimal() and name.isascii() else name}"

    @property
    def tag(self) -> str:
        return "en-GB" if self._say.british else "en-US"


_LANGUAGES = {
    "py": "Python", "python": "Python", "python3": "Python", "js": "JavaScript", "javascript": "JavaScript",
    "ts": "TypeScript",
    "typescript": "TypeScript", "sh": "shell", "bash": "bash", "shell": "shell", "console": "shell",
    "zsh": "shell", "json": "JSON", "yaml": "YAML",
    "yml": "YAML", "toml": "TOML", "html": "H T M L", "css": "C S S", "sql": "S Q L", "cpp": "C plus plus",
    "c++": "C plus plus", "cs": "C sharp",
    "csharp": "C sharp", "c": "C", "rs": "Rust", "rust": "Rust", "go": "Go", "java": "Java", "rb": "Ruby",
    "ruby": "Ruby", "xml": "X M L",
    "md": "Markdown", "markdown": "Markdown", "text": "", "txt": "", "plaintext": "", "diff": "diff",
    "kt": "Kotlin", "php": "P H P", "tex": "lay tech",
    "latex": "lay tech", "dockerfile": "Docker",
}  # fmt: skip
