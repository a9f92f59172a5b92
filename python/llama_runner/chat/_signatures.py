"""A function's signature as a JSON schema, and JSON arguments as what the function is called with (by pydantic)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from llama_runner.chat._docstrings import parse_docstring
from llama_runner.chat._problems import Problem, first_line, problem_at, unknown_argument
from llama_runner.chat._schemas import Schema, inline, plain
from llama_runner.chat._tool_context import ToolContext
from llama_runner.errors import ArgumentTypeError, MissingExtraError, ToolDefinitionError

__all__ = [
    "FunctionSignature",
    "context_parameters",
    "is_coroutine_function",
    "is_generator_function",
    "named",
]

_Kind = inspect.Parameter
# what the schema says already; other kinds of error have a text of their own
_TOLD = (
    "_type", "_parsing", "missing", "enum", "literal_error", "greater_than", "greater_than_equal", "less_than",
    "less_than_equal", "too_short", "too_long", "string_pattern_mismatch", "union_tag_not_found",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    adapter: Any
    kind: Any
    required: bool
    has_default: bool
    """Whether it has a default in the signature, so that it can be left out of the call."""


class FunctionSignature:
    """The parameters of one function. Raises ToolDefinitionError for what no JSON object can give."""

    def __init__(self, function: Callable[..., Any], tool: str):
        pydantic = import_pydantic()
        self.tool = tool
        self.signature = signature_of(function, tool)
        fixed = frozenset(function.keywords) if isinstance(function, functools.partial) else frozenset()
        hints = hints_of(function, self.signature, tool)
        self.description, self.told = parse_docstring(docstring_of(function))
        self.context_names = tuple(name for name, hint in hints.items() if is_context(hint))
        self.parameters: dict[str, _Parameter] = {}
        self.extra: Any = None
        for position, (name, parameter) in enumerate(self.signature.parameters.items()):
            if position == 0 and name in ("self", "cls") and parameter.annotation is _Kind.empty:
                raise ToolDefinitionError(
                    f"the tool {tool} has a parameter {name}: pass the bound method (obj.{tool}), not the class's"
                )
            if name in fixed or name in self.context_names:
                continue
            if parameter.kind is _Kind.VAR_POSITIONAL:
                raise ToolDefinitionError(
                    f"the tool {tool} takes *{name}: arguments come by name; make it a parameter of type list"
                )
            adapter, default = self.adapt(pydantic, name, hints.get(name, Any), parameter.default)
            if parameter.kind is _Kind.VAR_KEYWORD:
                self.extra = adapter
                continue
            self.parameters[name] = _Parameter(
                name,
                adapter,
                parameter.kind,
                default is _Kind.empty and adapter.get_default_value() is None,
                default is not _Kind.empty,
            )
        self.schema = self.make_schema(pydantic)

    def adapt(self, pydantic: Any, name: str, hint: Any, default: Any) -> tuple[Any, Any]:
        """What checks the parameter, and its default; ``x: int = Field(3, ge=0)`` is taken as pydantic does."""
        if isinstance(default, pydantic.fields.FieldInfo):
            hint, default = Annotated[hint, default], _Kind.empty
        for extra in getattr(hint, "__metadata__", ()):
            if getattr(extra, "alias", None) or getattr(extra, "validation_alias", None):
                raise ToolDefinitionError(
                    f"the tool {self.tool}: the alias of {name} is not supported; name the parameter so"
                )
        try:
            return pydantic.TypeAdapter(hint), default
        except Exception as error:  # of pydantic, or of a type's own schema
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ToolDefinitionError(
                f"the tool {self.tool}: the type of {name}, {hint!r}, cannot come from JSON: {reason}"
            ) from error

    def make_schema(self, pydantic: Any) -> Schema:
        adapters = {name: parameter.adapter for name, parameter in self.parameters.items()}
        if self.extra is not None:
            adapters[""] = self.extra
        try:
            found, rest = pydantic.TypeAdapter.json_schemas(
                [(name, "validation", adapter) for name, adapter in adapters.items()],
                ref_template="#/$defs/{model}",
            )
        except Exception as error:
            raise ToolDefinitionError(
                f"the tool {self.tool}: a type has no JSON schema: {str(error).splitlines()[0]}"
            ) from error
        properties = {name: dict(found[name, "validation"]) for name in self.parameters}
        for name, node in properties.items():
            if name in self.told:
                node.setdefault("description", self.told[name])
            default = self.signature.parameters[name].default
            if default is not _Kind.empty and not isinstance(default, pydantic.fields.FieldInfo):
                text = self.json_default(name, default)
                if text is not None:
                    node["default"] = json.loads(text)
        schema: Schema = {"type": "object", "properties": properties}
        required = [name for name, parameter in self.parameters.items() if parameter.required]
        if required:
            schema["required"] = required
        if self.extra is not None:
            schema["additionalProperties"] = dict(found["", "validation"]) or True
        if rest.get("$defs"):
            schema["$defs"] = rest["$defs"]
        return inline(plain(schema))

    def json_default(self, name: str, default: Any) -> str | None:
        """The default as JSON text; None where it has none: a sentinel, NaN."""
        try:
            text = self.parameters[name].adapter.dump_json(default, warnings=False).decode()
            json.dumps(json.loads(text), allow_nan=False)
        except Exception:
            return None
        return text if text != "null" or default is None else None  # NaN is written as null

    def check(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """The arguments in the parameters' types, and what is wrong with them."""
        checked: dict[str, Any] = {}
        problems: list[Problem] = []
        for name, value in arguments.items():
            adapter = self.parameters[name].adapter if name in self.parameters else self.extra
            if adapter is None or name in self.context_names:
                problems.append(unknown_argument((name,), tuple(self.parameters)))
                continue
            try:
                # as JSON: a model in strict mode takes a date or a tuple from it, which it would not from Python values
                checked[name] = adapter.validate_json(json.dumps(value))
            except sys.modules["pydantic"].ValidationError as error:
                problems += [
                    self.problem(arguments, name, found) for found in error.errors(include_url=False)
                ]
            except Exception as error:  # a validator of the user's that raises what pydantic does not expect
                problems.append(problem_at(self.schema, arguments, (name,), False, first_line(error)))
        for name, parameter in self.parameters.items():
            if parameter.required and name not in arguments:
                problems.append(problem_at(self.schema, arguments, (name,), True))
        return checked, problems

    def problem(self, arguments: dict[str, Any], name: str, found: Mapping[str, Any]) -> Problem:
        kind, path = found["type"], (name, *found["loc"])
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            return unknown_argument(path, ())
        why = "" if kind.endswith(_TOLD) else found["msg"].removeprefix("Value error, ")
        return problem_at(self.schema, arguments, path, kind.startswith("missing"), why)

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the call."""
        named_ = {**arguments, **dict.fromkeys(self.context_names, context)}
        for name, parameter in self.parameters.items():
            if name not in named_ and not parameter.has_default:
                named_[name] = parameter.adapter.get_default_value().value  # Field's own
        only = [p for p in self.signature.parameters.values() if p.kind is _Kind.POSITIONAL_ONLY]
        while only and only[-1].name not in named_:
            only.pop()
        positional = [named_.pop(item.name, item.default) for item in only]
        return positional, named_


def import_pydantic() -> Any:
    try:
        import pydantic
        import pydantic.fields
    except ImportError as error:
        raise MissingExtraError(
            'a tool made of a function needs pydantic: pip install "llama-runner[tools]" '
            "(or describe it by a JSON schema: Tool.from_schema)"
        ) from error
    return pydantic


# --- what a callable is


def innermost(function: Any) -> Any:
    """What a partial, or a partial of one, calls in the end."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _plain_functions(function: Any) -> tuple[Any, Any]:
    inner = innermost(function)
    return inner, getattr(type(inner), "__call__", None)  # noqa: B004 - the method itself is wanted


def is_coroutine_function(function: Any) -> bool:
    return any(inspect.iscoroutinefunction(item) for item in _plain_functions(function))


def is_generator_function(function: Any) -> bool:
    return any(
        inspect.isgeneratorfunction(item) or inspect.isasyncgenfunction(item)
        for item in _plain_functions(function)
    )


def named(function: Any) -> str:
    """The name that a callable goes by: its own, or its class's."""
    inner = innermost(function)
    name = getattr(inner, "__name__", None)
    return name if isinstance(name, str) else type(inner).__name__


def docstring_of(function: Any) -> str | None:
    inner = innermost(function)
    if inspect.isroutine(inner) or inspect.isclass(inner):
        return inspect.getdoc(inner)
    return inspect.getdoc(type(inner).__call__) or inspect.getdoc(type(inner))


def signature_of(function: Callable[..., Any], tool: str) -> inspect.Signature:
    if not callable(function):
        raise ArgumentTypeError(f"a tool is made of a function, not of {type(function).__name__}")
    try:
        return inspect.signature(function)
    except (ValueError, TypeError, NameError) as error:
        raise ToolDefinitionError(
            f"the signature of {tool} cannot be read ({error}): wrap it in a function with annotations, "
            "or describe it by Tool.from_schema"
        ) from error


def hints_of(function: Any, signature: inspect.Signature, tool: str) -> dict[str, Any]:
    """The parameters' annotations, those that are text evaluated where the function was written."""
    inner = innermost(function)
    if not inspect.isroutine(inner) and not inspect.isclass(inner):
        inner = type(inner).__call__
    inner = inspect.unwrap(getattr(inner, "__func__", inner))
    texts = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not _Kind.empty
    }

    def carrier() -> None: ...

    carrier.__annotations__ = texts
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    names: dict[str, Any] = getattr(inner, "__globals__", None) or (vars(module) if module else {})
    # types of the function around, and our own where it is imported for type checkers alone
    for scope in ({}, {"ToolContext": ToolContext} | _locals_around(inner) | _closure(inner)):
        try:
            return typing.get_type_hints(carrier, names, scope, include_extras=True)
        except NameError as problem:
            error: Exception = problem
        except Exception as problem:
            error = problem
            break
    raise ToolDefinitionError(f"the tool {tool}: an annotation cannot be evaluated: {error}") from error


def _closure(function: Any) -> dict[str, Any]:
    try:
        return dict(inspect.getclosurevars(function).nonlocals)
    except (TypeError, ValueError):
        return {}


def _locals_around(function: Any) -> dict[str, Any]:
    """The local names of the function that ``function`` was written in, as long as that one runs."""
    around = getattr(function, "__qualname__", "").rpartition(".<locals>")[0]
    frame: Any = sys._getframe() if around else None
    while frame is not None:
        if frame.f_code.co_qualname == around and frame.f_globals is getattr(function, "__globals__", None):
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def is_context(hint: Any) -> bool:
    """Whether a parameter so annotated is given the run's context: ``ToolContext``, also ``| None`` or Annotated."""
    if isinstance(hint, type):
        return issubclass(hint, ToolContext)
    return any(
        is_context(item) for item in typing.get_args(hint)[: 1 if hasattr(hint, "__metadata__") else None]
    )


def context_parameters(function: Any) -> tuple[str, ...]:
    """The parameters that are given the context, of a callable whose other ones are told by a schema."""
    try:
        signature = inspect.signature(function)
        hints = hints_of(function, signature, named(function))
    except (ValueError, TypeError, NameError):
        return ()
    return tuple(name for name, hint in hints.items() if is_context(hint))
