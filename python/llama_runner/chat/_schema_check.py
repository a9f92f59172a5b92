"""Arguments held against a JSON schema (by jsonschema), for tools that are described by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from llama_runner._schema import check_schema
from llama_runner.chat._problems import Problem, problem_at, unknown_argument
from llama_runner.chat._schemas import Schema, offered
from llama_runner.chat._signatures import context_parameters
from llama_runner.chat._tool_context import ToolContext
from llama_runner.errors import MissingExtraError, ToolDefinitionError, UsageError

__all__ = ["SchemaSignature", "checked_parameters"]

# what names arguments by other means than "properties"
_OPEN = (
    "additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf",
    "propertyNames",
)  # fmt: skip
# what describing the schema tells already
_TOLD = (
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "minItems", "maxItems", "pattern", "anyOf", "oneOf",
)  # fmt: skip


def checked_parameters(tool: str, schema: Any) -> Schema:
    """A copy of a tool's parameters, which are to be the schema of an object.

    Raises ToolDefinitionError for what is no JSON schema, and for one that no grammar can be made of.
    """
    if not isinstance(schema, Mapping):
        raise ToolDefinitionError(
            f"the parameters of the tool {tool} are a JSON schema, a dict, not {type(schema).__name__}"
        )
    schema = {"type": "object", **schema}
    if schema["type"] != "object":
        raise ToolDefinitionError(
            f"the parameters of the tool {tool} have the type {schema['type']!r}: arguments are an 'object'"
        )
    schema.setdefault("properties", {})
    try:
        check_schema(offered(schema), strict=False)
        validator_of(tool, schema, required=False)
        return copy.deepcopy(schema)
    except UsageError as error:
        raise ToolDefinitionError(f"the parameters of the tool {tool}: {error}") from error
    except RecursionError:
        raise ToolDefinitionError(f"the parameters of the tool {tool} nest without end") from None


def validator_of(tool: str, schema: Schema, required: bool) -> Any:
    """jsonschema's validator; None where it is not installed and not ``required``."""
    try:
        import jsonschema  # type: ignore[import-untyped]
    except ImportError as error:
        if not required:
            return None
        raise MissingExtraError(
            f'checking the arguments of {tool} needs jsonschema: pip install "llama-runner[tools]"'
        ) from error
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, ("#", *error.absolute_path)))
        raise ToolDefinitionError(
            f"the parameters of the tool {tool} at {place}: {error.message[:300]}"
        ) from None
    return kind(schema)


class SchemaSignature:
    """The parameters of a tool that is described by a JSON schema."""

    def __init__(self, tool: str, schema: Schema, call: Callable[..., Any] | None):
        self.tool = tool
        self.schema = schema
        self.context_names = context_parameters(call) if call is not None else ()
        self.validator: Any = None  # made at the first call: jsonschema takes a while to import

    def check(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """The arguments as they are, and what is wrong with them."""
        if self.validator is None:
            self.validator = validator_of(self.tool, self.schema, required=True)
        names = tuple(self.schema["properties"])
        problems: list[Problem] = []
        if not any(key in self.schema for key in _OPEN):  # then a grammar made of it allows no others either
            problems += [unknown_argument((name,), names) for name in arguments if name not in names]
        try:
            for error in self.validator.iter_errors(arguments):
                problems += self.problems(arguments, error)
        except RecursionError:
            problems.append(Problem((), arguments, "arguments that nest less deeply"))
        return arguments, problems

    def problems(self, arguments: dict[str, Any], error: Any) -> list[Problem]:
        path = tuple(error.absolute_path)
        if error.validator == "required":
            absent = [name for name in error.validator_value if name not in error.instance]
            return [problem_at(self.schema, arguments, (*path, name), True) for name in absent]
        if error.validator == "additionalProperties" and error.validator_value is False:
            known = tuple(error.schema.get("properties", ()))
            return [unknown_argument((*path, name), known) for name in error.instance if name not in known]
        why = "" if error.validator in _TOLD else error.message[:200]
        return [problem_at(self.schema, arguments, path, False, why)]

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the call."""
        return [], {**arguments, **dict.fromkeys(self.context_names, context)}
