"""``AgentTemplate``: the prompt of one kind of agent, with typed variables, as a TOML file describes it."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    PromptFileError,
    PromptNotFoundError,
    StorageError,
    UsageError,
    unknown_name,
)
from llama_runner.params import GenerationParams
from llama_runner.prompts import _substitution as substitution
from llama_runner.prompts.variables import Variable

__all__ = ["AgentTemplate", "TemplateMessage"]

MAX_FILE = 1 << 20  # a prompt of a mebibyte fits no model; what is larger is another file
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_VARIABLE = re.compile(rf"{substitution.NAME}")
_KEYS = ("name", "description", "version", "system", "messages", "generation", "json_schema", "variables")


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateMessage:
    """A message that follows the system text: an example, or the request itself."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class AgentTemplate:
    """A checked prompt: immutable, and safe to share. Made by ``load``, ``from_file`` or ``from_toml``.

    Values are inserted as they are: tags within them stay text. Text of special tokens within them, such as
    ``<|im_end|>``, passes too: see :func:`llama_runner.prompts.special_tokens_in`.
    """

    name: str
    description: str
    version: str
    system: str
    """The system text, with its tags."""
    messages: tuple[TemplateMessage, ...]
    """What follows it: examples, and the request where the template has one."""
    variables: Mapping[str, Variable]
    generation: Mapping[str, Any]
    """Suggested keywords of ``GenerationParams``: ``runner.generate(prompt, **template.generation)``."""
    schema: Mapping[str, Any] | None
    """The JSON schema of the answer, with its tags; :meth:`json_schema` has values in their place."""
    path: str

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> AgentTemplate:
        """The template in a TOML file. Raises PromptNotFoundError, StorageError or PromptFileError."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_FILE:
                raise PromptFileError(f"{path}: it is larger than {MAX_FILE} bytes", str(path))
            data = path.read_bytes()
        except FileNotFoundError:
            raise PromptNotFoundError(f"there is no file {path}") from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise PromptFileError(f"{path}: line {line} is not UTF-8: {error.reason}", str(path)) from None
        return cls.from_toml(text, path=str(path), name=path.stem)

    @classmethod
    def from_toml(cls, text: str, *, path: str = "<text>", name: str | None = None) -> AgentTemplate:
        """The template that TOML text describes; ``path`` is named in errors, ``name`` is what its own must be."""
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise PromptFileError(f"{path}: it is no TOML: {error}", path) from None
        return _Reader(path, table).read(name)

    def render(self, /, **values: Any) -> list[dict[str, str]]:
        """The messages in OpenAI's form: the system text, and what follows it.

        Raises UnknownParameterError for a value that no variable takes, InvalidArgumentError and ArgumentTypeError for
        one that is missing or wrong.
        """
        checked = self.check(values)
        texts = [{"role": "system", "content": substitution.render(_parsed(self.system), checked)}]
        texts += [
            {"role": m.role, "content": substitution.render(_parsed(m.content), checked)}
            for m in self.messages
        ]
        return [message for message in texts if message["role"] != "system" or message["content"]]

    def json_schema(self, /, **values: Any) -> dict[str, Any] | None:
        """The schema of the answer for the same values as :meth:`render` takes; None where it is free text."""
        if self.schema is None:
            return None
        schema: dict[str, Any] = _filled(self.schema, self.check(values))
        return schema

    def params(self, **changes: Any) -> GenerationParams:
        """The suggested parameters, with ``changes`` laid over them."""
        return GenerationParams.from_kwargs(GenerationParams.from_dict(self.generation), changes)

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Every variable's value, checked, defaults filled in; what is optional and absent is None."""
        where = f"prompt {self.name!r}"
        for name in values:
            if name not in self.variables:
                raise unknown_name(name, self.variables, where)
        missing = [v for v in self.variables.values() if v.required and values.get(v.name) is None]
        if missing:
            listed = "; ".join(f"{v.name} ({v.type}): {v.description}" for v in missing)
            raise InvalidArgumentError(f"{where} needs {listed}")
        return {
            name: copy.copy(variable.default)
            if values.get(name) is None
            else variable.check(f"{where}: {name}", values[name])
            for name, variable in self.variables.items()
        }


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[substitution.Node, ...]:
    return substitution.parse(text)


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """JSON data with the values themselves, not their text, where a string is one tag and nothing else."""
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    tag = substitution.parse_tag(value) if isinstance(value, str) else None
    if tag is None:
        return value
    found = values[tag.name]
    if tag.filter == "names":
        return substitution.item_names(found)
    return list(found) if isinstance(found, list) else found


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string in JSON data, keys left out, with its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _strings(item, f"{where}[{i}]")


class _Reader:
    """One file's table on its way to an AgentTemplate; each error names the file and the key."""

    def __init__(self, path: str, table: dict[str, Any]):
        self.path = path
        self.table = table

    def fail(self, key: str, why: object) -> NoReturn:
        raise PromptFileError(f"{self.path}: {key}: {why}", self.path, key) from None

    def read(self, name: str | None) -> AgentTemplate:
        for key in self.table:
            self.known(key, key, _KEYS)
        template = AgentTemplate(
            name=self.name(name),
            description=self.text("description"),
            version=self.text("version"),
            system=self.text("system"),
            messages=self.messages(),
            variables=self.variables(),
            generation=self.generation(),
            schema=self.schema(),
            path=self.path,
        )
        self.check_tags(template)
        self.check_schema(template)
        return template

    def known(self, key: str, where: str, keys: Iterable[str]) -> None:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"right are {', '.join(keys)}"
            self.fail(where, f"there is no such key: {hint}")

    def text(self, key: str) -> str:
        value = self.table.get(key)
        if value is None:
            self.fail(key, "it is missing")
        if not isinstance(value, str) or not value.strip():
            self.fail(key, f"it is a text that is not empty, not {value!r}")
        if "\0" in value:
            self.fail(key, "it has a NUL character: no model reads it; remove it")
        return value.strip()

    def name(self, expected: str | None) -> str:
        name = self.text("name")
        if not NAME.fullmatch(name):
            self.fail(
                "name", f"{name!r}: it is a lower-case letter, then letters, digits, '_' or '-'; at most 64"
            )
        if expected is not None and name != expected:
            self.fail("name", f"{name!r}: it is the file's own, {expected!r}")
        return name

    def messages(self) -> tuple[TemplateMessage, ...]:
        found = self.table.get("messages", [])
        if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
            self.fail("messages", "it is a list of tables: [[messages]]")
        messages = []
        for i, message in enumerate(found):
            where = f"messages[{i}]"
            for key in message:
                self.known(key, f"{where}.{key}", ("role", "content"))
            role = ("user", "assistant")[i % 2]
            if message.get("role") != role:
                self.fail(
                    f"{where}.role",
                    f"{message.get('role')!r}: it must be {role!r} here, as they begin with a user's and alternate: "
                    "many models refuse anything else",
                )
            content = message.get("content")
            if not isinstance(content, str) or not content.strip() or "\0" in content:
                self.fail(f"{where}.content", f"it is a text that is not empty, not {content!r}")
            messages.append(TemplateMessage(role, content.strip()))
        return tuple(messages)

    def variables(self) -> dict[str, Variable]:
        found = self.table.get("variables", {})
        if not isinstance(found, dict):
            self.fail("variables", "it is a table of tables: [variables.NAME]")
        variables = {}
        for name, table in found.items():
            where = f"variables.{name}"
            if not _VARIABLE.fullmatch(name):
                self.fail(where, "a name is a lower-case letter, then lower-case letters, digits or '_'")
            if not isinstance(table, dict):
                self.fail(where, f"it is a table: [variables.{name}]")
            try:
                variables[name] = Variable.from_table(name, table)
            except UsageError as error:
                self.fail(where, error)
        return variables

    def generation(self) -> dict[str, Any]:
        found = self.table.get("generation", {})
        if not isinstance(found, dict):
            self.fail("generation", "it is a table: [generation]")
        try:
            GenerationParams.from_dict(found)
        except UsageError as error:
            self.fail("generation", error)
        return found

    def schema(self) -> Mapping[str, Any] | None:
        if "json_schema" not in self.table:
            return None
        text = self.text("json_schema")
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.fail("json_schema", f"it is no JSON: {error}")
        if not isinstance(schema, dict):
            self.fail("json_schema", f"it is a JSON object, not {type(schema).__name__}")
        return schema

    def check_tags(self, template: AgentTemplate) -> None:
        places = [("system", template.system)]
        places += [(f"messages[{i}].content", m.content) for i, m in enumerate(template.messages)]
        used: set[str] = set()
        for where, text in places:
            try:
                nodes = _parsed(text)
            except InvalidArgumentError as error:
                self.fail(where, error)
            for tag, within in substitution.inserts(nodes):
                used.add(tag.name)
                self.check_tag(where, tag, within, template.variables)
        for where, text in _strings(template.schema, "json_schema"):
            insert = substitution.parse_tag(text)
            if insert is not None:
                used.add(insert.name)
                self.check_tag(where, insert, frozenset(), template.variables)
                if insert.filter not in (None, "names"):
                    self.fail(
                        where, f"{insert.filter}: a schema takes the value itself; the only filter is 'names'"
                    )
        unused = [name for name in template.variables if name not in used]
        if unused:
            self.fail(f"variables.{unused[0]}", "no text uses it: use it, or take it out")

    def check_tag(
        self,
        where: str,
        tag: substitution.Insert | substitution.Section,
        within: frozenset[str],
        variables: Mapping[str, Variable],
    ) -> None:
        variable = variables.get(tag.name)
        if variable is None:
            near = difflib.get_close_matches(tag.name, variables, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declare it in [variables.{tag.name}]"
            self.fail(where, f"{{{{ {tag.name} }}}}: there is no such variable: {hint}")
        if isinstance(tag, substitution.Section):
            return
        filters = substitution.LIST_FILTERS if variable.type == "list[str]" else substitution.VALUE_FILTERS
        if tag.filter is not None and tag.filter not in filters:
            self.fail(
                where,
                f"{{{{ {tag.name} | {tag.filter} }}}}: the filters of a {variable.type} are {', '.join(filters)}",
            )
        if not variable.required and variable.default is None and tag.name not in within:
            self.fail(
                where,
                f"{{{{ {tag.name} }}}} may have no value: put it between {{{{# {tag.name} }}}} and "
                f"{{{{/ {tag.name} }}}}, or give it a default",
            )

    def check_schema(self, template: AgentTemplate) -> None:
        if template.schema is None:
            return
        from llama_runner.core import json_schema_to_grammar

        samples = {name: variable.sample() for name, variable in template.variables.items()}
        try:
            json_schema_to_grammar(_filled(template.schema, samples))
        except (InvalidArgumentError, ArgumentTypeError) as error:
            self.fail("json_schema", error)
