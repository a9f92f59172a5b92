"""Parsers of C headers and of Cython declarations, and the comparison of the two.

They understand the plain C of llama.cpp's headers and nothing else, and raise on what they do not understand: silence
would look like agreement. ``test_header_drift.py`` uses them, and tests them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LLAMA_CPP: Final = ROOT / "vendor" / "llama.cpp"
HEADER_DIRS: Final = (LLAMA_CPP / "include", LLAMA_CPP / "ggml" / "include")


class ParseError(Exception):
    """The text holds something that these parsers do not understand."""


# ----------------------------------------------------------------------------------------------------
# What is declared


@dataclass(frozen=True)
class Function:
    """Canonical types; `renamed` where a pxd gives the C function another name."""

    returns: str
    params: tuple[str, ...]
    deprecated: bool = False
    renamed: bool = False


Fields = tuple[tuple[str, str], ...]  # (name, canonical type), in order; anonymous unions are flattened


@dataclass
class Declarations:
    """Everything one file declares, by C name. A struct without fields is opaque."""

    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    structs: dict[str, Fields] = field(default_factory=dict)
    typedefs: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def update(self, other: Declarations) -> None:
        self.enums.update(other.enums)
        for name, fields in other.structs.items():
            self.add_struct(name, fields)
        self.typedefs.update(other.typedefs)
        self.functions.update(other.functions)
        self.constants |= other.constants

    def add_struct(self, name: str, fields: Fields) -> None:
        """A forward declaration never replaces a definition."""
        if fields or name not in self.structs:
            self.structs[name] = fields


# ----------------------------------------------------------------------------------------------------
# Tokens and C declarators, shared by both languages

_TOKEN: Final = re.compile(
    r'\s*(?:([A-Za-z_]\w*|\d[\w.]*|"[^"\n]*"|\.\.\.|<<|>>|[-+*/(){}\[\],;=:<>|&~!?])|$)'
)
_NAME: Final = re.compile(r"[A-Za-z_]\w*\Z")

_TAGS: Final = frozenset({"struct", "enum", "union"})
_IGNORED: Final = frozenset(
    {"const", "volatile", "extern", "restrict", "GGML_RESTRICT", "GGML_NORETURN"}
    | {"LLAMA_API", "GGML_API", "GGML_BACKEND_API"}
)
_DEPRECATORS: Final = frozenset({"DEPRECATED", "GGML_DEPRECATED"})
# The words of a type that takes several; every other type is one name.
_WORDS: Final = frozenset({"unsigned", "signed", "long", "short", "int", "char", "double"})
_SYNONYMS: Final = {"unsigned": "unsigned int", "_Bool": "bool", "bint": "bool", "long int": "long"}
_CYTHON_TAIL: Final = frozenset({"except", "noexcept", "nogil", "with"})


def tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ParseError(f"unexpected character {text[at:].lstrip()[0]!r} before {text[at : at + 60]!r}")
        if match.group(1):
            tokens.append(match.group(1))
        at = match.end() if match.end() > at else len(text)
    return tokens


def split_at(tokens: Sequence[str], separator: str) -> list[list[str]]:
    """Split at separators outside every bracket; an empty last part is dropped."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in "([{") - (token in ")]}")
        if token == separator and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    if depth != 0:
        raise ParseError(f"unbalanced brackets in {' '.join(tokens)!r}")
    return parts if parts[-1] else parts[:-1]


def closing(tokens: Sequence[str], start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += (tokens[at] == "(") - (tokens[at] == ")")
        if depth == 0 and at > start:
            return at
    raise ParseError(f"no parentheses at {' '.join(tokens[start:]) or 'the end'!r}")


class Declarator:
    """Reads `specifiers declarator` into a name and a canonical type.

    Canonical: no const, no struct/enum/union tags, pointers as `*` after the base, arrays as `[n]`, function
    pointers as `ret(*)(params)`. `aliases` maps names that a pxd gave to C types back to theirs.
    """

    def __init__(self, tokens: Iterable[str], aliases: Mapping[str, str] | None = None) -> None:
        self.tokens = [token for token in tokens if token not in _IGNORED]
        self.aliases = aliases or {}
        self.at = 0
        self.params: tuple[str, ...] | None = None  # set when the declarator is a function
        self.c_name: str | None = None
        self.structs: list[str] = []  # named by their tag, which declares them

    def fail(self, why: str) -> ParseError:
        return ParseError(f"{why} in {' '.join(self.tokens)!r}")

    def peek(self, ahead: int = 0) -> str:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise self.fail(f"expected {expected or 'more'!r}, found {token or 'the end'!r}")
        self.at += 1
        return token

    def base(self) -> str:
        if self.peek() in _TAGS:
            tag, name = self.take(), self.name()
            self.structs += [name] if tag == "struct" else []
            return self.resolve(name)
        words: list[str] = []
        while self.peek() in _WORDS:
            words.append(self.take())
        return self.resolve(" ".join(words) if words else self.name())

    def resolve(self, name: str) -> str:
        name = self.aliases.get(name, name)
        return _SYNONYMS.get(name, name)

    def name(self) -> str:
        token = self.take()
        if not _NAME.match(token):
            raise self.fail(f"expected a name, found {token!r}")
        return token

    def brackets(self) -> list[str]:
        """The tokens inside the parentheses that open here."""
        start, self.at = self.at + 1, closing(self.tokens, self.at) + 1
        return self.tokens[start : self.at - 1]

    def pointers(self) -> str:
        stars = ""
        while self.peek() == "*":
            stars += self.take()
        return stars

    def arrays(self) -> str:
        extents = ""
        while self.peek() == "[":
            end = self.tokens.index("]", self.at)
            extents += "".join(self.tokens[self.at : end + 1])
            self.at = end + 1
        return extents

    def skip_cython_tail(self) -> None:
        if self.peek() in _CYTHON_TAIL:
            self.at = len(self.tokens)

    def function_pointer(self, returns: str) -> tuple[str, str]:
        self.take("(")
        stars = self.pointers()
        name = self.name() if self.peek() != ")" else ""
        self.take(")")
        params = parse_params(self.brackets(), self.aliases)
        return name, f"{returns}({stars})({','.join(params)})"

    def declarator(self, base: str) -> tuple[str, str]:
        kind = base + self.pointers()
        if self.peek() == "(" and self.peek(1) == "*":
            return self.function_pointer(kind)
        name = self.name() if _NAME.match(self.peek()) and self.peek() not in _CYTHON_TAIL else ""
        if self.peek().startswith('"'):
            self.c_name = untagged(self.take())
        if self.peek() == "(":
            self.params = parse_params(self.brackets(), self.aliases)
        return name, kind + self.arrays()

    def one(self) -> tuple[str, str]:
        """Exactly one declaration, to the end of the tokens."""
        name, kind = self.declarator(self.base())
        self.skip_cython_tail()
        if self.at != len(self.tokens):
            raise self.fail(f"did not expect {self.peek()!r}")
        return name, kind

    def several(self) -> list[tuple[str, str]]:
        """One base and any number of declarators: `int a, *b`."""
        base = self.base()
        found = [self.declarator(base)]
        while self.peek() == ",":
            self.take()
            found.append(self.declarator(base))
        self.skip_cython_tail()
        if self.at != len(self.tokens) or any(not name for name, _ in found):
            raise self.fail("not a declaration of fields")
        return found


def untagged(quoted: str) -> str:
    """`"enum llama_x"` as `llama_x`: a C name as Cython quotes it."""
    return quoted.strip('"').split()[-1]


def parse_params(tokens: Sequence[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    kinds: list[str] = []
    for part in split_at(tokens, ","):
        kind = "..." if part == ["..."] else Declarator(part, aliases).one()[1]
        kinds.append(re.sub(r"\[[^]]*\]\Z", "*", kind))  # an array parameter is a pointer
    return () if kinds == ["void"] else tuple(kinds)


def parse_function_or_constant(
    tokens: Sequence[str], into: Declarations, aliases: Mapping[str, str], deprecated: bool = False
) -> None:
    reader = Declarator(tokens, aliases)
    name, kind = reader.one()
    if not name:
        raise reader.fail("a declaration without a name")
    c_name = reader.c_name or name
    if reader.params is None:
        into.constants.add(c_name)
        return
    if c_name in into.functions:
        raise reader.fail(f"{c_name} is declared twice")
    renamed = c_name != name
    into.functions[c_name] = Function(kind, reader.params, deprecated=deprecated, renamed=renamed)


# ----------------------------------------------------------------------------------------------------
# C headers

_COMMENT_OR_STRING: Final = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
# Tested by these headers, and not so for a C compiler on a plain CPU. Other conditions may guard macros only.
_UNDEFINED: Final = frozenset({"__cplusplus", "__CUDACC__"})


def without_comments(text: str) -> str:
    return _COMMENT_OR_STRING.sub(lambda m: m.group() if m.group().startswith('"') else " ", text)


@dataclass
class Preprocessed:
    code: str
    includes: list[str]
    macros: set[str]


class Preprocessor:
    """Takes the directives out. Declarations under a condition that is not known raise."""

    def __init__(self) -> None:
        self.includes: list[str] = []
        self.macros: set[str] = set()
        self.states: list[bool | None] = []  # True: kept, False: dropped, None: unknown
        self.lines: list[str] = []

    def run(self, text: str) -> Preprocessed:
        for line in without_comments(text).replace("\\\n", " ").split("\n"):
            directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
            if directive:
                self.directive(directive.group(1), directive.group(2).strip())
            elif line.strip():
                self.code(line)
        if self.states:
            raise ParseError("a conditional without #endif")
        return Preprocessed("\n".join(self.lines), self.includes, self.macros)

    def code(self, line: str) -> None:
        if False in self.states:
            return
        if None in self.states:
            raise ParseError(f"a declaration under a condition that is not known: {line.strip()!r}")
        self.lines.append(line)

    def directive(self, word: str, rest: str) -> None:
        if word in {"if", "ifdef", "ifndef"}:
            self.states.append(self.condition(word, rest))
        elif word in {"else", "elif"}:
            state = self.states.pop()
            # After a branch that is dropped for certain, #else is kept for certain; #elif stays unknown.
            self.states.append(not state if word == "else" and state is not None else None)
        elif word == "endif":
            self.states.pop()
        elif word == "define":
            self.macros.add(re.split(r"\W", rest, maxsplit=1)[0])
        elif word == "include":
            if rest.startswith('"'):
                self.includes.append(rest.strip('"'))
        elif word not in {"pragma", "undef", "error"}:
            raise ParseError(f"unknown directive #{word} {rest}")

    def condition(self, word: str, rest: str) -> bool | None:
        if word == "ifdef" and rest in _UNDEFINED:
            return False
        if word == "ifndef" and (rest in _UNDEFINED or rest.endswith("_H")):  # _H: an include guard
            return True
        return None


def body_of(tokens: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(before, inside, after) the braces of a definition."""
    start = tokens.index("{")
    end = len(tokens) - 1 - list(reversed(tokens)).index("}")
    return list(tokens[:start]), list(tokens[start + 1 : end]), list(tokens[end + 1 :])


def parse_members(tokens: Sequence[str]) -> tuple[str, ...]:
    members: list[str] = []
    for part in split_at(tokens, ","):
        if not _NAME.match(part[0]) or (len(part) > 1 and part[1] != "=") or len(part) == 2:
            raise ParseError(f"not an enum member: {' '.join(part)!r}")
        members.append(part[0])
    return tuple(members)


def parse_fields(tokens: Sequence[str]) -> Fields:
    fields: list[tuple[str, str]] = []
    for part in split_at(tokens, ";"):
        if "{" not in part:
            fields.extend(Declarator(part).several())
            continue
        before, inside, after = body_of(part)
        if len(before) != 1 or before[0] not in {"union", "struct"} or len(after) > 1:
            raise ParseError(f"a nested type that has a name: {' '.join(part)!r}")
        nested = parse_fields(inside)
        if after:  # a field of a type without a name, which Cython could not declare under this one
            kind = ";".join(f"{kind} {name}" for name, kind in nested)
            fields.append((after[0], f"{before[0]}{{{kind}}}"))
        else:
            fields.extend(nested)
    return tuple(fields)


def parse_definition(tokens: Sequence[str], into: Declarations) -> None:
    """`struct x { … }` or `enum x { … }`, under a typedef or not."""
    before, inside, after = body_of(tokens)
    names = [token for token in before + after if token not in _TAGS | {"typedef"}]
    tags = [token for token in before if token in _TAGS]
    if len(tags) != 1 or any(not _NAME.match(name) for name in names):
        raise ParseError(f"not a definition: {' '.join(before)!r} … {' '.join(after)!r}")
    if tags[0] == "enum":
        members = parse_members(inside)
        into.enums.update(dict.fromkeys(names, members))
        into.constants.update(members)
        return
    fields = parse_fields(inside)
    for name in names:
        into.add_struct(name, fields)


def strip_macros(tokens: Sequence[str]) -> tuple[list[str], bool]:
    """Tokens without attribute macros, and whether the declaration is deprecated."""
    out: list[str] = []
    deprecated = False
    at = 0
    while at < len(tokens):
        if tokens[at] not in _DEPRECATORS | {"GGML_ATTRIBUTE_FORMAT"}:
            out.append(tokens[at])
            at += 1
            continue
        end = closing(tokens, at + 1)
        if tokens[at] in _DEPRECATORS:
            deprecated = True
            out.extend(split_at(tokens[at + 2 : end], ",")[0])
        at = end + 1
    return out, deprecated


def parse_typedef(tokens: Sequence[str], into: Declarations) -> None:
    reader = Declarator(tokens)
    name, kind = reader.one()
    if not name or reader.params is not None:
        raise reader.fail("not a typedef")
    into.typedefs[name] = kind
    for struct in reader.structs:  # `typedef struct x_impl * x;` is often all there is about x_impl
        into.add_struct(struct, ())


def parse_statement(statement: Sequence[str], into: Declarations) -> None:
    tokens, deprecated = strip_macros(statement)
    tokens = [token for token in tokens if token not in _IGNORED]
    if "{" in tokens:
        parse_definition(tokens, into)
    elif tokens[0] == "typedef":
        parse_typedef(tokens[1:], into)
    elif len(tokens) == 2 and tokens[0] in _TAGS:
        into.add_struct(tokens[1], ())
    elif tokens[0] == "static" and "=" in tokens:
        into.constants.add(Declarator(tokens[1 : tokens.index("=")]).one()[0])
    else:
        parse_function_or_constant(tokens, into, {}, deprecated)


def parse_header(text: str) -> tuple[Declarations, list[str]]:
    """The declarations of one header, and the headers it includes by quotes."""
    source = Preprocessor().run(text)
    found = Declarations(constants=set(source.macros))
    for statement in split_at(tokenize(source.code), ";"):
        parse_statement(statement, found)
    return found, source.includes


def header_path(name: str) -> Path | None:
    return next((folder / name for folder in HEADER_DIRS if (folder / name).is_file()), None)


def load_header(name: str, replaced: Mapping[str, str] | None = None) -> Declarations:
    """A header with all that it includes; `replaced` gives other text for some, to test ourselves."""
    merged = Declarations()
    pending, seen = [name], set[str]()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        path = header_path(current)
        if path is None:
            raise ParseError(f"{name} includes {current}, which is not in the vendored tree")
        text = (replaced or {}).get(current) or path.read_text(encoding="utf-8")
        found, includes = parse_header(text)
        merged.update(found)
        pending.extend(includes)
    return merged


# ----------------------------------------------------------------------------------------------------
# Cython declaration files

_EXTERN: Final = re.compile(r'cdef extern from "([^"]+)"(?: nogil)?:\Z')
_COMPOSITE: Final = re.compile(
    r'(?:ctypedef |cdef |cpdef )?(enum|struct|union)(?: (\w+))?(?: ("[^"]+"))?(:?)(.*)\Z'
)
_CIMPORT: Final = re.compile(r"(?:from [\w.]+ )?cimport (.+)\Z")


@dataclass
class Line:
    number: int
    indent: int
    text: str


def logical_lines(text: str) -> Iterator[Line]:
    """Lines without comments, those inside parentheses joined. Strings here never hold `#`."""
    pending, depth = Line(0, 0, ""), 0
    for number, raw in enumerate(text.split("\n"), start=1):
        content = raw.split("#", 1)[0].rstrip()
        if not content.strip():
            continue
        if '"""' in content:
            raise ParseError(f"line {number}: verbatim C is not compared, and does not belong here")
        if depth == 0:
            pending = Line(number, len(content) - len(content.lstrip()), "")
        pending.text = f"{pending.text} {content.strip()}".strip()
        depth += content.count("(") - content.count(")")
        if depth == 0:
            yield pending
    if depth:
        raise ParseError(f"line {pending.number}: a parenthesis is left open")


class PxdParser:
    """Reads the extern blocks of a pxd, by header."""

    def __init__(self, text: str) -> None:
        self.lines = list(logical_lines(text))
        self.at = 0
        self.aliases: dict[str, str] = {}
        self.blocks: dict[str, Declarations] = {}

    def block_below(self, indent: int) -> list[Line]:
        """The lines from here that are indented deeper."""
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at].indent > indent:
            self.at += 1
        return self.lines[start : self.at]

    def parse(self) -> dict[str, Declarations]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            extern = _EXTERN.match(line.text)
            if extern:
                self.extern_block(line, self.blocks.setdefault(extern.group(1), Declarations()))
            elif _CIMPORT.match(line.text):
                self.cimport(line.text)
            else:
                raise ParseError(f"line {line.number}: not understood: {line.text!r}")
        return self.blocks

    def cimport(self, text: str) -> None:
        """Remember renamed types: `from libcpp cimport bool as cpp_bool`."""
        for name, alias in re.findall(r"(\w+) as (\w+)", text):
            self.aliases[alias] = name

    def extern_block(self, opening: Line, into: Declarations) -> None:
        while self.at < len(self.lines) and self.lines[self.at].indent > opening.indent:
            line = self.lines[self.at]
            self.at += 1
            try:
                self.statement(line, into)
            except (ParseError, ValueError, IndexError) as error:
                raise ParseError(f"line {line.number}: {error}") from error

    def statement(self, line: Line, into: Declarations) -> None:
        composite = _COMPOSITE.match(line.text)
        if line.text == "pass":
            return
        if composite:
            self.composite(line, composite, into)
        elif line.text.startswith("ctypedef "):
            reader = Declarator(tokenize(line.text.removeprefix("ctypedef ")), self.aliases)
            name, kind = reader.one()
            into.typedefs[self.renamed(name, reader.c_name)] = kind
        else:
            parse_function_or_constant(tokenize(line.text.removeprefix("cdef ")), into, self.aliases)

    def renamed(self, name: str, c_name: str | None) -> str:
        if c_name:
            self.aliases[name] = c_name
        return c_name or name

    def composite(self, line: Line, match: re.Match[str], into: Declarations) -> None:
        word, name, quoted, colon, rest = match.groups()
        below = self.block_below(line.indent)
        if bool(colon) != bool(below or rest.strip()) or (rest.strip() and below):
            raise ParseError(f"not understood: {line.text!r}")
        body = [part.text for part in below if part.text != "pass"] + ([rest.strip()] if rest.strip() else [])
        if word == "enum":
            self.enum(name, quoted, body, into)
            return
        fields = [pair for text in body for pair in Declarator(tokenize(text), self.aliases).several()]
        c_name = self.renamed(name, untagged(quoted) if quoted else None)
        into.add_struct(c_name, tuple(fields))

    def enum(self, name: str | None, quoted: str | None, body: Sequence[str], into: Declarations) -> None:
        members = tuple(member for text in body for member in parse_members(tokenize(text)))
        if name is None:  # how a pxd declares macros
            into.constants.update(members)
            return
        into.enums[self.renamed(name, untagged(quoted) if quoted else None)] = members


# ----------------------------------------------------------------------------------------------------
# The comparison


def compare_names(what: str, ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Missing, extra, and, only where those are none, in another order."""
    report = [f"{what}: {name} of the header is missing" for name in theirs if name not in ours]
    report += [f"{what}: {name} is not in the header" for name in ours if name not in theirs]
    report += [f"{what}: {name} is listed twice" for name in dict.fromkeys(ours) if ours.count(name) > 1]
    if not report and list(ours) != list(theirs):
        here, there = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        report.append(f"{what}: {here} stands where the header has {there}")
    return report


def compare_struct(name: str, ours: Fields, theirs: Fields) -> list[str]:
    if not ours:  # opaque here: nobody reads its fields
        return []
    what = f"struct {name}"
    report = compare_names(what, [n for n, _ in ours], [n for n, _ in theirs])
    types = dict(theirs)
    for field_name, kind in ours:
        if field_name in types and types[field_name] != kind:
            report.append(f"{what}: {field_name} is {kind}, in the header {types[field_name]}")
    return report


def compare_function(name: str, ours: Function, header: Declarations) -> list[str]:
    theirs = header.functions.get(name)
    if theirs is None:
        return [f"function {name}: not in the header"]
    report: list[str] = []
    if theirs.deprecated:
        report.append(f"function {name}: deprecated in the header")
    # A function named like its own enum has to be renamed in Cython, and may then return that enum as int.
    int_for_enum = ours.renamed and ours.returns == "int" and theirs.returns in header.enums
    if ours.returns != theirs.returns and not int_for_enum:
        report.append(f"function {name}: returns {ours.returns}, in the header {theirs.returns}")
    if ours.params != theirs.params:
        here, there = ", ".join(ours.params), ", ".join(theirs.params)
        report.append(f"function {name}: takes ({here}), in the header ({there})")
    return report


def compare(ours: Declarations, header: Declarations) -> list[str]:
    """Every difference, in words."""
    report: list[str] = []
    for name, members in ours.enums.items():
        known = header.enums.get(name)
        if known is None:
            report.append(f"enum {name}: not in the header")
        else:
            report += compare_names(f"enum {name}", members, known)
    for name, fields in ours.structs.items():
        if name in header.structs:
            report += compare_struct(name, fields, header.structs[name])
        else:
            report.append(f"struct {name}: not in the header")
    for name, kind in ours.typedefs.items():
        if header.typedefs.get(name) != kind:
            report.append(f"typedef {name}: {kind}, in the header {header.typedefs.get(name, 'nothing')}")
    for name, function in ours.functions.items():
        report += compare_function(name, function, header)
    report += [f"constant {name}: not in the header" for name in sorted(ours.constants - header.constants)]
    return report


def drift(pxd_text: str, replaced: Mapping[str, str] | None = None) -> list[str]:
    """Every difference between a pxd and the headers that it names."""
    report: list[str] = []
    for header, ours in PxdParser(pxd_text).parse().items():
        if header_path(header) is None:
            report.append(f"extern from {header}: not a header of the vendored tree")
        else:
            report += compare(ours, load_header(header, replaced))
    return report
