"""What a constrained generation was asked for, and how its text becomes that: types, JSON, choices.

Types of the standard library are understood as they are; with pydantic installed every type is pydantic's affair, and
its own models are types as well.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from llama_runner._json_schema import plain_schema
from llama_runner.errors import ArgumentTypeError, ConstraintError, MissingExtraError, ResponseParseError

__all__ = ["Response", "is_type", "schema_of", "value_of"]

ENDED = ("eos", "stop")
_PLAIN: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    types.NoneType: {"type": "null"},
    Any: {},
    object: {},
    dict: {"type": "object"},
    list: {"type": "array"},
}
_LISTS = (list, abc.Sequence, abc.Iterable)
_DICTS = (dict, abc.Mapping)


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """The text of a constrained generation, and what it is to become."""

    kind: str
    """``json_schema``, ``regex``, ``choices``, ``lark`` or ``grammar``."""
    text: str
    finish_reason: str
    type: Any = None
    """The type that was asked for; None where it was a schema, whose values are dicts, lists and the like."""
    choices: tuple[str, ...] = ()

    def parse(self) -> Any:
        """The value; ResponseParseError where the text ended before it was one."""
        if self.kind == "json_schema":
            if self.finish_reason not in ENDED and not self.text.rstrip().endswith(("}", "]", '"')):
                raise self.cut_off()  # a number could have gone on
            try:
                return value_of(self.type, self.text) if self.type is not None else read_json(self.text)
            except ResponseParseError as error:
                if self.finish_reason not in ENDED and error.__cause__ is None:
                    raise self.cut_off(error.position) from None
                raise
        if self.finish_reason not in ENDED and not self.complete():
            raise self.cut_off()
        return self.text

    def complete(self) -> bool:
        """Whether no choice but this one begins like the text."""
        return [choice for choice in self.choices if choice.startswith(self.text)] == [self.text]

    def cut_off(self, position: int | None = None) -> ResponseParseError:
        why = {"length": "max_tokens", "timeout": "its timeout"}.get(self.finish_reason, self.finish_reason)
        return ResponseParseError(
            f"the answer was cut off by {why} before it was complete: {self.text[-60:]!r}",
            len(self.text) if position is None else position,
        )


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ResponseParseError(f"the answer is no JSON: {error}", getattr(error, "pos", None)) from None
    except RecursionError:
        raise ResponseParseError("the answer nests too deeply for Python's json") from None


def is_type(value: object) -> bool:
    """Whether ``value`` is a type to be had back, and not a schema."""
    return (
        isinstance(value, (type, types.UnionType, types.GenericAlias))
        or get_origin(value) is not None
        or value is Any
        or hasattr(value, "__supertype__")
        or type(value).__name__ == "TypeAliasType"
        or (type(value).__name__ == "TypeAdapter" and hasattr(value, "validate_json"))
    )


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type, with objects closed: what it does not name is not asked for.

    Raises ConstraintError where the type has none, MissingExtraError where only pydantic knows it.
    """
    adapter = adapter_of(kind)
    if adapter is None:
        return _Schema().whole(kind)
    try:
        schema = plain_schema(adapter.json_schema())
    except (ConstraintError, ArgumentTypeError):
        raise
    except Exception as error:  # pydantic's, of several classes
        raise ConstraintError(f"{name_of(kind)} has no JSON schema: {first_line(error)}") from error
    close(schema)
    return schema


def value_of(kind: Any, text: str) -> Any:
    """The value of a type that JSON text says; ResponseParseError where it says none."""
    adapter = adapter_of(kind)
    if adapter is None:
        return _Value().make(kind, read_json(text))
    read_json(text)  # where it is no JSON at all, pydantic's message is no help
    try:
        return adapter.validate_json(text)
    except Exception as error:  # its ValidationError, and whatever a validator of the type's own raises
        raise ResponseParseError(f"the answer is no {name_of(kind)}: {error}") from error


def name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else repr(kind)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def adapter_of(kind: Any) -> Any:
    """pydantic's TypeAdapter for a type; None where pydantic is not installed and not needed."""
    if type(kind).__name__ == "TypeAdapter" and hasattr(kind, "validate_json"):
        return kind
    try:
        return _adapter(kind)
    except (
        TypeError
    ):  # no type of the standard library is unhashable; what pydantic makes of it, it says itself
        return _new_adapter(kind)


def _new_adapter(kind: Any) -> Any:
    try:
        from pydantic import TypeAdapter
    except ImportError:
        return None
    try:
        return TypeAdapter(kind)
    except Exception as error:  # pydantic's, of several classes
        try:
            _Schema().whole(
                kind
            )  # such as a TypedDict of the standard library, which it wants to have from elsewhere
        except MissingExtraError:
            raise ConstraintError(f"{name_of(kind)} has no JSON schema: {first_line(error)}") from error
        return None


_adapter = functools.lru_cache(maxsize=256)(_new_adapter)


def close(node: Any) -> None:
    """Let objects have no other keys than those they name: a type has no place for others."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        for key, value in node.items():
            if key in ("properties", "$defs", "patternProperties"):
                for item in value.values():
                    close(item)
            elif key not in ("const", "enum", "default", "examples"):
                close(value)
    elif isinstance(node, list):
        for item in node:
            close(item)


# --- types of the standard library, without pydantic


def _fields(kind: type) -> tuple[dict[str, Any], set[str]] | None:
    """The names and types of a dataclass, TypedDict or NamedTuple, and which must be there; None for other types."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        missing = dataclasses.MISSING
        needed = {f.name for f in fields if f.default is missing and f.default_factory is missing}
        return {field.name: hints[field.name] for field in fields}, needed
    if typing.is_typeddict(kind):
        return typing.get_type_hints(kind, include_extras=True), set(kind.__required_keys__)  # type: ignore[attr-defined]
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind, include_extras=True)
        defaults: Mapping[str, Any] = getattr(kind, "_field_defaults", {})
        names: tuple[str, ...] = kind._fields
        return {name: hints.get(name, Any) for name in names}, set(names) - set(defaults)
    return None


def _unwrapped(kind: Any) -> Any:
    """Without ``NewType``, aliases, and the marks of a TypedDict's fields."""
    while True:
        if hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        elif get_origin(kind) in (typing.Required, typing.NotRequired):
            kind = get_args(kind)[0]
        elif get_origin(kind) is typing.Annotated and all(
            isinstance(note, str) for note in get_args(kind)[1:]
        ):
            kind = get_args(kind)[0]  # what else is noted may be a bound, and is pydantic's
        else:
            return kind


def _unknown(kind: Any) -> MissingExtraError:
    return MissingExtraError(
        f"{name_of(kind)} is no type of the standard library with a JSON form that is known here: install "
        "llama-runner[tools], which brings pydantic, or pass a JSON schema"
    )


class _Schema:
    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self.named: dict[type, str] = {}

    def whole(self, kind: Any) -> dict[str, Any]:
        schema = self.of(kind)
        return {"$defs": self.definitions, **schema} if self.definitions else schema

    def of(self, kind: Any) -> dict[str, Any]:
        kind = _unwrapped(kind)
        if isinstance(kind, abc.Hashable) and kind in _PLAIN:
            return dict(_PLAIN[kind])
        origin, inner = get_origin(kind), get_args(kind)
        if origin is typing.Literal:
            return {"enum": list(inner)}
        if origin in (typing.Union, types.UnionType):
            return {"anyOf": [self.of(item) for item in inner]}
        if origin in _LISTS:
            return {"type": "array", "items": self.of(inner[0])}
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            items = [self.of(item) for item in inner]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if origin is tuple and inner:
            return {"type": "array", "items": self.of(inner[0])}
        if origin in _DICTS and inner[0] is str:
            return {"type": "object", "additionalProperties": self.of(inner[1])}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [member.value for member in kind]}
        if isinstance(kind, type) and _fields(kind) is not None:
            return self.object(kind)
        raise _unknown(kind)

    def object(self, kind: type) -> dict[str, Any]:
        if kind not in self.named:
            name = (
                kind.__name__
                if kind.__name__ not in self.definitions
                else f"{kind.__name__}{len(self.named)}"
            )
            self.named[kind] = name
            self.definitions[name] = {}
            found = _fields(kind)
            assert found is not None
            fields, needed = found
            self.definitions[name] = {
                "type": "object",
                "properties": {field: self.of(inner) for field, inner in fields.items()},
                "required": [field for field in fields if field in needed],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{self.named[kind]}"}


class _Value:
    """From JSON's values to those of a type. A mismatch is told by the place at which it is."""

    def make(self, kind: Any, value: Any, path: str = "$") -> Any:
        kind = _unwrapped(kind)
        origin, inner = get_origin(kind), get_args(kind)
        plain = self.plain(kind)
        if plain is not None:
            return plain(value, path)
        if origin is typing.Literal:
            return self.one_of(inner, value, path)
        if origin in (typing.Union, types.UnionType):
            return self.first(inner, value, path)
        if origin in (*_LISTS, tuple):
            return self.sequence(origin, inner, value, path)
        if origin in _DICTS:
            items = self.expect(dict, value, path)
            return {key: self.make(inner[1], item, f"{path}.{key}") for key, item in items.items()}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            try:
                return kind(value)
            except ValueError as error:
                raise self.wrong(path, str(error)) from None
        found = _fields(kind) if isinstance(kind, type) else None
        if found is None:
            raise _unknown(kind)
        items = self.expect(dict, value, path)
        made = {
            name: self.make(found[0][name], item, f"{path}.{name}")
            for name, item in items.items()
            if name in found[0]
        }
        if missing := found[1] - made.keys():
            raise self.wrong(path, f"{', '.join(sorted(missing))} is missing")
        return kind(**made)

    def plain(self, kind: Any) -> Callable[[Any, str], Any] | None:
        if kind is float:
            return lambda value, path: float(self.expect((int, float), value, path))
        if kind in (str, bool, int, dict, list):
            return functools.partial(self.expect, kind)
        if kind in (None, types.NoneType):
            return functools.partial(self.expect, types.NoneType)
        return (lambda value, path: value) if kind in (Any, object) else None

    def expect(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(path, f"{value!r:.60} is no {getattr(kind, '__name__', 'number')}")
        return value

    def one_of(self, members: tuple[Any, ...], value: Any, path: str) -> Any:
        for member in members:
            if member == value and type(member) is type(value):
                return member
        raise self.wrong(path, f"{value!r:.60} is none of {members}")

    def first(self, kinds: tuple[Any, ...], value: Any, path: str) -> Any:
        for kind in kinds:
            try:
                return self.make(kind, value, path)
            except ResponseParseError:
                continue
        raise self.wrong(path, f"{value!r:.60} is none of {', '.join(map(name_of, kinds))}")

    def sequence(self, origin: Any, inner: tuple[Any, ...], value: Any, path: str) -> Any:
        items = self.expect(list, value, path)
        if origin is not tuple or inner[-1] is Ellipsis:
            made = [self.make(inner[0], item, f"{path}[{i}]") for i, item in enumerate(items)]
            return tuple(made) if origin is tuple else made
        if len(items) != len(inner):
            raise self.wrong(path, f"{len(items)} items, not {len(inner)}")
        pairs = zip(inner, items, strict=True)
        return tuple(self.make(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))

    def wrong(self, path: str, what: str) -> ResponseParseError:
        return ResponseParseError(f"the answer at {path}: {what}")
