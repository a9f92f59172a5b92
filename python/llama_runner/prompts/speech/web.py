"""Addresses of the net and of files: URLs, e-mail, paths, IP addresses, hashes, handles, hashtags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from .numbers import EnglishNumbers
from .tape import HELD, Part, Tape, clean

__all__ = ["ENGLISH_SIGNS", "addresses", "names", "read_address"]

ENGLISH_SIGNS: Mapping[str, str] = {
    ".": "dot", "/": "slash", "\\": "backslash", "-": "dash", "_": "underscore", "@": "at", ":": "colon",
    "~": "tilde",
    "?": "question mark", "=": "equals", "&": "and", "#": "hash", "%": "percent", "+": "plus", "*": "star",
    "$": "dollar",
    "!": "exclamation mark",
}  # fmt: skip

_URL = re.compile(
    r"(?<![\w@])((?:https?|ftps?|wss?|file|ssh|git)://|www\.)([^\s<>\"“”`{}|\\^]+)", re.IGNORECASE
)
_EMAIL = re.compile(
    r"(?<![\w.+-])(?:mailto:)?([\w.+-]{1,64})@([A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8})(?![\w-])"
)
_TLDS = (
    "com|org|net|edu|gov|mil|int|info|biz|dev|app|xyz|online|site|tech|blog|shop|cloud|io|ai|co|me|tv|fm|ly|gg|"
    "sh|so|uk|de|"
    "fr|es|it|nl|be|ch|at|se|no|dk|fi|pl|cz|eu|us|ca|au|nz|jp|cn|in|br|mx|ru|kr|za|ie|pt|gr"
)
_DOMAIN = re.compile(
    rf"(?<![\w@./-])((?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?\.){{1,5}}(?:{_TLDS}))(?![\w@-])(?!\.[a-z])"
    r"((?::[0-9]{1,5})?(?:/[^\s<>\"“”`{}|\\^]*)?)"
)
_COMMON_TLD = re.compile(r"\.(?:com|org|net|edu|gov|io|ai|co|dev|app|info|uk|de|fr|us|eu|ca|me|tv|ch|nl|jp)$")
_FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]{0,60})")
_SHORT_FLAG = re.compile(r"(?<=[a-z]{2} )-([A-Za-z])(?=\s|$)")
_UUID = re.compile(
    r"(?<![\w-])([0-9a-fA-F]{8})-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}(?![\w-])"
)
_HASH = re.compile(r"(?<![\w#.-])(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,128}(?![\w-])")
_UPPER_HASH = re.compile(r"(?<![\w#.-])(?=[0-9A-F]*[0-9])(?=[0-9A-F]*[A-F])[0-9A-F]{12,128}(?![\w-])")
_HEX = re.compile(r"(?<!\w)0[xX]([0-9a-fA-F]{1,64})(?!\w)")
_COLOUR = re.compile(r"(?<![\w&#])#((?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{6}|[a-fA-F]{6})(?!\w)")
_MAC = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![\w:])")
_IPV4 = re.compile(
    r"(?<![\w.])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?:/([0-9]{1,2}))?(?::([0-9]{2,5}))?(?!\w|\.[0-9])"
)
_IPV6 = re.compile(
    r"(?<![\w:])(?=[0-9a-fA-F:]*::|(?:[0-9a-fA-F]{1,4}:){7})(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])"
)
_PORT = re.compile(r"(?<![\w.])(localhost):([0-9]{2,5})(?!\w)")
_HASHTAG = re.compile(r"(?<![\w&/#])#([^\W\d_]\w{0,80})")
_HANDLE = re.compile(rf"(?<![\w.@{HELD}])@([A-Za-z0-9_](?:[\w.-]{{0,40}}[A-Za-z0-9_])?)")
_EXTENSIONS = (
    "py|pyi|pyx|js|mjs|ts|jsx|tsx|json|jsonl|yaml|yml|toml|ini|cfg|conf|md|txt|rst|csv|tsv|html|htm|css|scss|xml|"
    "svg|png|jpg|"
    "jpeg|gif|webp|mp3|mp4|wav|flac|avi|mkv|pdf|doc|docx|xls|xlsx|ppt|pptx|zip|tar|gz|tgz|bz2|xz|7z|rar|exe|dll|"
    "so|dylib|sh|"
    "bash|bat|ps1|c|cc|cpp|cxx|h|hpp|rs|go|java|kt|swift|rb|php|pl|lua|r|sql|db|sqlite|log|lock|env|gguf|bin|"
    "safetensors|"
    "ipynb|proto|cu|vue|whl|deb|rpm|iso|img|apk|dmg|ttf|woff|bak|tmp"
)
_WINDOWS_PATH = re.compile(r"(?<![\w\\])(?:[A-Za-z]:\\|\\\\)[^\s\"'“”<>|*?]{0,200}")
_UNIX_PATH = re.compile(
    r"(?<![\w/.:~<])(?:~|\.{1,2})?(?:/[\w.@+~%-]+){2,}/?(?:\?[\w=&%.+-]+)?|(?<![\w/.:~<])(?:~|\.{1,2})(?:/[\w.@+~%-]+)+/?|"
    r"(?<![\w/.:~<])/[a-zA-Z_][\w.+-]*/?(?![\w/])"
)
_FILE = re.compile(
    rf"(?<![\w/.@-])((?:[\w.+-]{{1,80}}/){{0,12}}[\w+-][\w.+-]{{0,80}}\.(?:{_EXTENSIONS}))(?![\w/-])(?!\.\w)"
)
_DOTFILE = re.compile(
    r"(?<![\w/.@)])\.(gitignore|env|bashrc|zshrc|profile|vimrc|dockerignore|editorconfig|npmrc|git|ssh|config)(?!\w)"
)

_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\W\d_]+|[^A-Za-z0-9]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Endings and labels that are words when they are said; other short ones without a vowel, and these, are letters.
_SPELT = frozenset(
    (
        "io ai tv fm gg sh uk us eu id ip py js ts md api html htm css xml svg png jpg gif pdf csv tsv sql php "
        "mp cc cpp cxx "
        "hpp rs rb kt db gz tgz bz xz zst exe dll gguf cfg ini url http https ssh ftp nlp llm llms sdk cli gpu "
        "cpu ui ux "
        "vm dns tcp udp tls ssl ssd usb rss cdn iso apk dmg ttf docx xls xlsx ppt pptx pyx ipynb jsx tsx ps yml "
        "rpm npm nyt "
        "bbc cnn mit fbi"
    ).split()
)
_WORDS = {
    "jpeg": "jay peg",
    "usr": "user",
    "src": "source",
    "lib": "lib",
    "wav": "wave",
    "sqlite": "S Q lite",
    "arxiv": "archive",
}
_TLD_LETTERS = frozenset(
    "io ai tv fm ly gg sh uk de fr es nl be ch se dk fi pl cz eu us ca au nz jp cn br mx ru kr za ie pt gr edu".split()
)


def read_address(text: str, say: EnglishNumbers, signs: Mapping[str, str] = ENGLISH_SIGNS) -> str:
    """An address piece by piece: words as words, known abbreviations spelt, signs by their names."""
    out: list[str] = []
    for piece in _PIECE.findall(text):
        if piece[0].isdecimal():
            out.append(say.digits(piece) if piece[0] == "0" or len(piece) > 4 else _short(piece, say))
        elif piece in signs:
            out.append(signs[piece])
        elif not piece.strip():
            continue
        else:
            out.extend(_word(word) for word in _CAMEL.split(piece))
    return " ".join(out)


def _short(piece: str, say: EnglishNumbers) -> str:
    number = int(piece)
    return say.year(number) if 1900 <= number <= 2099 else say.literal(piece)


def _word(word: str) -> str:
    lower = word.lower()
    if lower in _WORDS:
        return _WORDS[lower]
    if lower in _SPELT or (1 < len(word) <= 5 and not set("aeiouy") & set(lower) and word.isascii()):
        return " ".join(word.upper())
    return word


def _host(host: str, say: EnglishNumbers) -> str:
    labels = host.split(".")
    if all(label.isdecimal() for label in labels):
        return " dot ".join(map(say.digits, labels))
    out: list[str] = []
    for index, label in enumerate(labels):
        last = index == len(labels) - 1 and index > 0
        out.append(
            " ".join(label.upper()) if last and label.lower() in _TLD_LETTERS else read_address(label, say)
        )
    return " dot ".join(out)


def _read_url(rest: str, say: EnglishNumbers, short: bool) -> str:
    host, slash, path = rest.partition("/")
    host, query_mark, query = host.partition("?")
    host = host.rpartition("@")[2]
    host, _, port = host.partition(":")
    host = host.removeprefix("www.").removeprefix("WWW.")
    said = _host(host, say)
    if short:
        return said
    if port:
        said += f" port {say.digits(port)}"
    path = (slash + path).rstrip("/") if slash else query_mark + query
    return f"{said} {read_address(clean(unquote(path, errors='ignore')), say)}" if path else said


def _trim(url: str) -> tuple[str, str]:
    """An address and what of it belongs to the sentence around it."""
    end = len(url)
    while end and (
        url[end - 1] in ".,;:!?'\"*_~’”…"
        or (url[end - 1] in ")]" and url.count("(", 0, end) < url.count(")", 0, end) + url.count("]", 0, end))
    ):
        end -= 1
    return url[:end], url[end:]


def addresses(tape: Tape, say: EnglishNumbers, urls: str) -> None:
    """What no word of a lexicon may be found in: URLs and e-mail. ``urls`` is "full", "host" or "skip"."""
    text = tape.text
    if "://" in text or "www." in text.lower():

        def read(match: re.Match[str]) -> str:
            url, rest = _trim(match[2])
            if not url:
                return match[0]
            return ("" if urls == "skip" else tape.hold(_read_url(url, say, urls == "host"))) + rest

        tape.rewrite(_URL, read)
    if "@" in text:
        tape.sub(_EMAIL, lambda mail: f"{read_address(mail[1], say)} at {_host(mail[2], say)}")


def names(tape: Tape, say: EnglishNumbers, urls: str) -> None:
    """Hosts without a scheme, files, IP addresses, hashes, handles, hashtags."""
    text = tape.text
    if "-" in text:
        tape.sub(_SHORT_FLAG, lambda flag: f"dash {flag[1]}")
        tape.sub(_FLAG, lambda flag: f"dash dash {read_address(flag[1], say)}")
        tape.sub(_UUID, lambda uuid: f"U U I D starting with {_spell(uuid[1], say)}")
    if "#" in text:
        tape.sub(_COLOUR, lambda colour: f"hash {_spell(colour[1], say)}")
        tape.sub(_HASHTAG, lambda tag: f"hashtag {read_address(tag[1].replace('_', ' '), say)}")
    if "@" in text:
        tape.sub(_HANDLE, lambda handle: f"at {read_address(handle[1], say)}")
    if tape.has_digits:
        tape.sub(_HEX, lambda number: f"hex {_spell(number[1], say)}")
        if ":" in text:
            tape.sub(_MAC, lambda mac: _spell(mac[0], say))
            tape.sub(_IPV6, lambda address: _read_ipv6(address, say))
            tape.sub(_PORT, lambda port: f"localhost port {say.digits(port[2])}")
        tape.sub(_IPV4, lambda address: _read_ipv4(address, say))
        tape.sub(_HASH, lambda digest: _read_hash(digest[0], say))
        tape.sub(_UPPER_HASH, lambda digest: _read_hash(digest[0], say))
    if "." in text or "/" in text or "\\" in text:
        _paths(tape, say, urls)


def _paths(tape: Tape, say: EnglishNumbers, urls: str) -> None:
    def domain(match: re.Match[str]) -> str:
        rest, after = _trim(match[2])
        if not rest and not _COMMON_TLD.search(match[1]):
            return match[0]
        return tape.hold(_read_url(match[1] + rest, say, urls == "host")) + after

    def path(match: re.Match[str]) -> str:
        whole = match[0].rstrip(".,;:!?)")
        if len(whole) < 2:
            return match[0]
        return tape.hold(read_address(whole.rstrip("/") or whole, say)) + match[0][len(whole) :]

    tape.rewrite(_DOMAIN, domain)
    tape.rewrite(_WINDOWS_PATH, path)
    tape.rewrite(_FILE, path)
    tape.rewrite(_UNIX_PATH, path)
    tape.sub(_DOTFILE, lambda name: f"dot {read_address(name[1], say)}")


def _spell(text: str, say: EnglishNumbers) -> str:
    return " ".join(say.digits(char) if char.isdecimal() else char.upper() for char in text if char.isalnum())


def _read_hash(digest: str, say: EnglishNumbers) -> str:
    if len(digest) <= 12:
        return _spell(digest, say)
    return f"hash starting with {_spell(digest[:6], say)}"


def _read_ipv4(match: re.Match[str], say: EnglishNumbers) -> Part | None:
    parts = match[1].split(".")
    if any(int(part) > 255 for part in parts):
        return None
    said = " dot ".join(say.digits(part) for part in parts)
    if match[2]:
        said += f" slash {say.literal(match[2])}"
    return f"{said} port {say.digits(match[3])}" if match[3] else said


def _read_ipv6(match: re.Match[str], say: EnglishNumbers) -> str | None:
    if not any(char.isalnum() for char in match[0]):
        return None
    return " ".join("colon" if char == ":" else _spell(char, say) for char in match[0])


_IDENTIFIER = re.compile(r"(?<![\w])[^\W_]*(?:_+[^\W_]+)+_*(?:\(\))?")
_CAMEL_CASE = re.compile(r"(?<!\w)(?:[a-z]{2,}(?:[A-Z][a-z]+)+|(?:[A-Z][a-z]+){2,}(?=\(\)))(?:\(\))?(?!\w)")


def identifiers(tape: Tape, say: EnglishNumbers) -> None:
    """Names from source code that stand in running text: their words, without the signs between them."""
    if "_" in tape.text:
        tape.sub(_IDENTIFIER, lambda name: read_address(name[0].replace("_", " ").replace("()", ""), say))
    tape.sub(_CAMEL_CASE, lambda name: read_address(name[0].replace("()", ""), say))
