"""``Variable``: what a value of a prompt may be, and the check that it is."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from llama_runner._check import check_text
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["TYPES", "Variable"]

TYPES = ("str", "int", "float", "bool", "list[str]", "choice")
_BOUNDS: Mapping[str, tuple[str, ...]] = {
    "str": ("max_length",),
    "int": ("minimum", "maximum"),
    "float": ("minimum", "maximum"),
    "bool": (),
    "list[str]": ("max_length",),
    "choice": ("values",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """One value that a prompt takes."""

    name: str
    type: str
    """One of ``str``, ``int``, ``float``, ``bool``, ``list[str]``, ``choice``."""
    description: str
    required: bool = True
    default: Any = None
    """What stands in where no value is given; None: nothing."""
    values: tuple[str, ...] = ()
    """What a ``choice`` may be."""
    max_length: int | None = None
    """Most characters of a ``str``, most items of a ``list[str]``."""
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> Variable:
        """From ``[variables.NAME]`` of a file. Raises InvalidArgumentError or ArgumentTypeError, naming the key."""
        kind = table.get("type")
        if kind not in TYPES:
            raise InvalidArgumentError(f"type={kind!r}: it is one of {', '.join(TYPES)}")
        allowed = ("type", "description", "required", "default", *_BOUNDS[kind])
        for key in table:
            if key not in allowed:
                raise InvalidArgumentError(f"{key}: a {kind} has {', '.join(allowed)}, and nothing else")
        description = table.get("description")
        if not isinstance(description, str) or not description.strip():
            raise InvalidArgumentError("description is missing: say in one line what the value is")
        required = table.get("required", "default" not in table)
        if not isinstance(required, bool):
            raise ArgumentTypeError(f"required={required!r}: it is true or false")
        if required and "default" in table:
            raise InvalidArgumentError("required = true and a default: only one of them can be meant")
        variable = cls(
            name,
            kind,
            description.strip(),
            required,
            values=_choices(table) if kind == "choice" else (),
            max_length=_length(table.get("max_length")),
            minimum=_bound("minimum", kind, table.get("minimum")),
            maximum=_bound("maximum", kind, table.get("maximum")),
        )
        if (
            variable.minimum is not None
            and variable.maximum is not None
            and variable.minimum > variable.maximum
        ):
            raise InvalidArgumentError(f"minimum={variable.minimum} is above maximum={variable.maximum}")
        if "default" not in table:
            return variable
        return dataclasses.replace(variable, default=variable.check("default", table["default"]))

    def check(self, where: str, value: Any) -> Any:
        """``value`` as plain Python data. Errors (ArgumentTypeError, InvalidArgumentError) begin with ``where``."""
        if self.type == "str":
            return self._text(where, value)
        if self.type == "list[str]":
            return self._list(where, value)
        if self.type == "bool":
            if not isinstance(value, bool):
                raise ArgumentTypeError(f"{where}={_shown(value)}: it is True or False")
            return value
        if self.type == "choice":
            if not isinstance(value, str) or value not in self.values:
                kind = InvalidArgumentError if isinstance(value, str) else ArgumentTypeError
                raise kind(f"{where}={_shown(value)}: it is one of {', '.join(map(repr, self.values))}")
            return str(value)
        return self._number(where, value)

    def sample(self) -> Any:
        """Some value that :meth:`check` accepts."""
        if self.default is not None:
            return self.default
        if self.type == "str":
            return "a"
        if self.type == "list[str]":
            return ["a"]
        if self.type == "choice":
            return self.values[0]
        if self.type == "bool":
            return True
        low, high = self.minimum, self.maximum
        number = low if low is not None and low > 0 else high if high is not None and high < 1 else 1
        return int(number) if self.type == "int" else float(number)

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise ArgumentTypeError(f"{where}={_shown(value)}: it is a str, not {type(value).__name__}")
        text = check_text(where, value).decode()
        if self.required and not text.strip():
            raise InvalidArgumentError(f"{where} is empty: {self.description}")
        if self.max_length is not None and len(text) > self.max_length:
            raise InvalidArgumentError(f"{where} has {len(text)} characters: at most {self.max_length}")
        return text

    def _list(self, where: str, value: Any) -> list[str]:
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            hint = f"; for one item write [{_shown(value)}]" if isinstance(value, str) else ""
            raise ArgumentTypeError(f"{where}={_shown(value)}: it is a list of str{hint}")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise ArgumentTypeError(
                    f"{where}[{i}]={_shown(item)}: it is a str, such as 'search: finds pages', "
                    f"not {type(item).__name__}"
                )
        if self.required and not value:
            raise InvalidArgumentError(f"{where} is empty: {self.description}")
        if self.max_length is not None and len(value) > self.max_length:
            raise InvalidArgumentError(f"{where} has {len(value)} items: at most {self.max_length}")
        return [check_text(f"{where}[{i}]", item).decode() for i, item in enumerate(value)]

    def _number(self, where: str, value: Any) -> int | float:
        wanted = numbers.Integral if self.type == "int" else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            kind = "an int" if self.type == "int" else "a number"
            raise ArgumentTypeError(f"{where}={_shown(value)}: it is {kind}, not {type(value).__name__}")
        try:
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
            finite = math.isfinite(number)
        except OverflowError:
            finite = False
        if not finite:
            raise InvalidArgumentError(f"{where}={_shown(value)}: it must be a finite number")
        if self.minimum is not None and number < self.minimum:
            raise InvalidArgumentError(f"{where}={number}: it must be {self.minimum} or more")
        if self.maximum is not None and number > self.maximum:
            raise InvalidArgumentError(f"{where}={number}: it must be {self.maximum} or less")
        return number


def _choices(table: Mapping[str, Any]) -> tuple[str, ...]:
    values = table.get("values")
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise InvalidArgumentError(
            f"values={values!r}: it is a list of what the choice may be, such as ['a', 'b']"
        )
    if len(set(values)) != len(values):
        raise InvalidArgumentError(f"values={values!r}: one of them stands there twice")
    return tuple(values)


def _length(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidArgumentError(f"max_length={value!r}: it is an int, 1 or more")
    return value


def _bound(name: str, kind: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind == "float" else int):
        raise ArgumentTypeError(f"{name}={value!r}: it is {'a number' if kind == 'float' else 'an int'}")
    if not abs(value) <= 1e300:  # a NaN is not, either
        raise InvalidArgumentError(f"{name}={_shown(value)}: it must be a finite number")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
