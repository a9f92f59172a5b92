"""How to sample and when to stop: one immutable, checked value that any number of calls can share."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Never, Self

import numpy as np

from ._json_schema import schema_text
from ._response import Response, is_type, schema_of
from .errors import ArgumentTypeError, InvalidArgumentError, unknown_name

__all__ = ["GenerationParams"]

_INT32_MAX = 2**31 - 1
# llama.cpp reads 2**32 - 1 (LLAMA_DEFAULT_SEED) as "draw one", so it is no seed that could be repeated.
_SEED_MAX = 2**32 - 2
# llama.cpp allocates the whole window at once; this is beyond every context and still only 4 MiB.
_PENALTY_WINDOW_MAX = 2**20
_LOGPROBS_MAX = 100
# The values end up in C floats, where anything larger would turn into infinity.
_FLOAT32_MAX = float(np.finfo(np.float32).max)

_LogitBias = Mapping[int, float] | Iterable[tuple[int, float]]
Constraint = Literal["json_schema", "regex", "choices", "lark", "grammar"]


class _Typed:
    """What rides along with parameters, and is none of them: neither compared nor stored."""

    __slots__ = ("response_type",)

    response_type: Any
    """The type that json_schema was made of: what ``Completion.parsed`` is to be."""


@dataclasses.dataclass(frozen=True, slots=True, init=False, repr=False)
class GenerationParams(_Typed):
    """Sampling and stopping parameters, all optional, all checked when the object is made.

    Built by keywords, ``GenerationParams(temperature=0.2, stop="\\n")``, or step by step,
    ``GenerationParams().with_temperature(0.2).with_stop("\\n")``; both give equal, hashable objects.
    """

    max_tokens: int | None
    """Most tokens to generate; ``None`` goes on until the context is full."""
    temperature: float
    """Divides the logits; 0 is greedy: always the likeliest token."""
    top_k: int
    """Sample among the k likeliest; 0 is off."""
    top_p: float
    """Sample among the likeliest that together reach this probability; 1 is off."""
    min_p: float
    """Drop what is less likely than this times the likeliest; 0 is off."""
    typical_p: float
    """Locally typical sampling; 1 is off."""
    repeat_penalty: float
    """Divides the logit of a token seen in the window; 1 is off."""
    frequency_penalty: float
    """Subtracted once for each time that a token occurs in the window; 0 is off."""
    presence_penalty: float
    """Subtracted from each token that occurs in the window; 0 is off."""
    penalty_last_n: int
    """The window of the three penalties, in tokens; 0 is off."""
    seed: int | None
    """Repeats a generation; ``None`` draws one, and the ``Completion`` tells which."""
    stop: tuple[str, ...]
    """Strings that end the text; they are not part of it."""
    stop_tokens: tuple[int, ...]
    """Tokens that end the text; they are not part of it."""
    echo: bool
    """Put the prompt's text before the answer's."""
    ignore_eos: bool
    """Rule out the tokens that end a generation."""
    logprobs: int | None
    """``None`` is off, 0 gives the chosen token's log-probability, n the n likeliest besides."""
    logit_bias: tuple[tuple[int, float], ...]
    """Added to the logits of these tokens, as sorted pairs of token and bias."""
    json_schema: str | None
    """The text is JSON that fits this schema, kept as JSON text; given as a dict, as JSON text, or as a type."""
    regex: str | None
    """The text is what this regular expression matches as a whole."""
    choices: tuple[str, ...]
    """The text is one of these."""
    lark: str | None
    """A Lark grammar, in llguidance's variant, that the text must follow."""
    grammar: str | None
    """A GBNF grammar that the text must follow."""
    timeout: float | None
    """Seconds after which the generation ends with what it has."""

    # Written by hand since each parameter accepts more than is stored: a lone string as stop, a
    # mapping as bias. Never is for type checkers, which then refuse a misspelt keyword themselves.
    def __init__(
        self,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        stop_tokens: int | Iterable[int] = (),
        echo: bool = False,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        logit_bias: _LogitBias | None = (),
        json_schema: Any = None,
        regex: str | None = None,
        choices: Iterable[str] | None = (),
        lark: str | None = None,
        grammar: str | None = None,
        timeout: float | None = None,
        **unknown: Never,
    ) -> None:
        for name in unknown:
            raise unknown_name(name, _NAMES, "GenerationParams")
        put = object.__setattr__
        none = None  # keeps the table below in columns
        put(self, "max_tokens", none if max_tokens is none else _int("max_tokens", max_tokens, 1, _INT32_MAX))
        put(self, "temperature", _float("temperature", temperature, 0.0))
        put(self, "top_k", _int("top_k", top_k, 0, _INT32_MAX, "0 turns it off"))
        put(self, "top_p", _float("top_p", top_p, 0.0, 1.0))
        put(self, "min_p", _float("min_p", min_p, 0.0, 1.0))
        put(self, "typical_p", _float("typical_p", typical_p, 0.0, 1.0))
        put(self, "repeat_penalty", _float("repeat_penalty", repeat_penalty, 0.0, above=True))
        put(self, "frequency_penalty", _float("frequency_penalty", frequency_penalty))
        put(self, "presence_penalty", _float("presence_penalty", presence_penalty))
        put(self, "penalty_last_n", _int("penalty_last_n", penalty_last_n, 0, _PENALTY_WINDOW_MAX))
        put(self, "seed", none if seed is none else _int("seed", seed, 0, _SEED_MAX, "None draws one"))
        put(self, "stop", _stops(stop))
        put(self, "stop_tokens", _tokens("stop_tokens", stop_tokens))
        put(self, "echo", _bool("echo", echo))
        put(self, "ignore_eos", _bool("ignore_eos", ignore_eos))
        put(self, "logprobs", none if logprobs is none else _int("logprobs", logprobs, 0, _LOGPROBS_MAX))
        put(self, "logit_bias", _bias(logit_bias))
        put(self, "response_type", json_schema if is_type(json_schema) else none)
        put(self, "json_schema", none if json_schema is none else _json_schema(json_schema))
        put(
            self,
            "regex",
            none if regex is none else _source("regex", regex, "a regular expression", "[0-9]+"),
        )
        put(self, "choices", _choices(choices))
        put(
            self,
            "lark",
            none if lark is none else _source("lark", lark, "a Lark grammar", 'start: "yes" | "no"'),
        )
        put(self, "grammar", none if grammar is none else _grammar(grammar))
        _one_constraint([name for name in _CONSTRAINTS if getattr(self, name)])
        put(self, "timeout", none if timeout is none else _float("timeout", timeout, 0.0, above=True))

    @classmethod
    def from_kwargs(
        cls, params: GenerationParams | None, kwargs: Mapping[str, Any], *, where: str = "GenerationParams"
    ) -> GenerationParams:
        """``params`` (or the defaults) with ``kwargs`` laid over them; ``where`` is named in errors."""
        if params is None:
            params = _DEFAULTS
        elif not isinstance(params, GenerationParams):
            raise ArgumentTypeError(f"params must be a GenerationParams, not {_shown(params)}")
        if not kwargs:
            return params
        for name in kwargs:
            if name not in _NAMES:
                raise unknown_name(name, _NAMES, where)
        kept = {name: getattr(params, name) for name in _NAMES}
        if params.response_type is not None:
            kept["json_schema"] = params.response_type
        return cls(**kept | dict(kwargs))

    def replace(self, **changes: Any) -> GenerationParams:
        """A copy with these values changed, checked anew."""
        return self.from_kwargs(self, changes)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that no seed matters."""
        return self.temperature == 0.0

    @property
    def constraint(self) -> Constraint | None:
        """Which of its parameters says what form the text has; None where none does."""
        return next((name for name in _CONSTRAINTS if getattr(self, name)), None)

    def response(self, text: str, finish_reason: str) -> Response | None:
        """What ``text``, generated with these, is to become; None where it is text and no more."""
        kind = self.constraint
        if kind is None:
            return None
        return Response(kind, text, finish_reason, self.response_type, self.choices)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # nothing of it can be changed

    def __reduce__(self) -> tuple[Any, ...]:
        # the type may be one that another process does not have; who sends parameters there keeps it
        return _from_pickle, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; token ids of the bias become strings, as JSON wants.

        A type is left out: the schema that was made of it is there.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in _NAMES}
        values["choices"] = list(self.choices)
        values["stop"] = list(self.stop)
        values["stop_tokens"] = list(self.stop_tokens)
        values["logit_bias"] = {str(token): bias for token, bias in self.logit_bias}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationParams:
        """The reverse of :meth:`to_dict`; names that are missing keep their defaults."""
        if not isinstance(values, Mapping):
            raise ArgumentTypeError(f"from_dict takes a mapping of names to values, not {_shown(values)}")
        given = dict(values)
        bias = given.get("logit_bias")
        if isinstance(bias, Mapping):
            given["logit_bias"] = {_token_from_json(token): value for token, value in bias.items()}
        if given.get("choices") == []:  # as to_dict writes none
            given["choices"] = ()
        return cls.from_kwargs(None, given)

    def __repr__(self) -> str:
        # Two dozen values, most of them untouched, would hide the one that matters.
        changed = (n for n in _NAMES if getattr(self, n) != getattr(_DEFAULTS, n))
        return f"GenerationParams({', '.join(f'{n}={getattr(self, n)!r}' for n in changed)})"

    # One method a field, written out: type checkers and editors see neither generated methods nor
    # keywords that pass through **kwargs.
    def with_max_tokens(self, value: int | None) -> GenerationParams:
        return self.replace(max_tokens=value)

    def with_temperature(self, value: float) -> GenerationParams:
        return self.replace(temperature=value)

    def with_top_k(self, value: int) -> GenerationParams:
        return self.replace(top_k=value)

    def with_top_p(self, value: float) -> GenerationParams:
        return self.replace(top_p=value)

    def with_min_p(self, value: float) -> GenerationParams:
        return self.replace(min_p=value)

    def with_typical_p(self, value: float) -> GenerationParams:
        return self.replace(typical_p=value)

    def with_repeat_penalty(self, value: float) -> GenerationParams:
        return self.replace(repeat_penalty=value)

    def with_frequency_penalty(self, value: float) -> GenerationParams:
        return self.replace(frequency_penalty=value)

    def with_presence_penalty(self, value: float) -> GenerationParams:
        return self.replace(presence_penalty=value)

    def with_penalty_last_n(self, value: int) -> GenerationParams:
        return self.replace(penalty_last_n=value)

    def with_seed(self, value: int | None) -> GenerationParams:
        return self.replace(seed=value)

    def with_stop(self, *values: str | Sequence[str]) -> GenerationParams:
        """``with_stop("a", "b")``, ``with_stop(["a", "b"])``; ``with_stop()`` takes all stops away."""
        return self.replace(stop=values[0] if len(values) == 1 else values)

    def with_stop_tokens(self, *values: int | Iterable[int]) -> GenerationParams:
        """``with_stop_tokens(1, 2)``, ``with_stop_tokens([1, 2])``; ``with_stop_tokens()`` takes all away."""
        return self.replace(stop_tokens=values[0] if len(values) == 1 else values)

    def with_echo(self, value: bool = True) -> GenerationParams:
        return self.replace(echo=value)

    def with_ignore_eos(self, value: bool = True) -> GenerationParams:
        return self.replace(ignore_eos=value)

    def with_logprobs(self, value: int | None = 0) -> GenerationParams:
        return self.replace(logprobs=value)

    def with_logit_bias(self, value: _LogitBias | None) -> GenerationParams:
        return self.replace(logit_bias=value)

    def with_json_schema(self, value: Any) -> GenerationParams:
        return self.replace(json_schema=value)

    def with_regex(self, value: str | None) -> GenerationParams:
        return self.replace(regex=value)

    def with_choices(self, *values: str | Iterable[str]) -> GenerationParams:
        """``with_choices("yes", "no")``, ``with_choices(["yes", "no"])``; ``with_choices()`` takes them away."""
        one = values[0] if len(values) == 1 and not isinstance(values[0], str) else values
        return self.replace(choices=one)

    def with_lark(self, value: str | None) -> GenerationParams:
        return self.replace(lark=value)

    def with_grammar(self, value: str | None) -> GenerationParams:
        return self.replace(grammar=value)

    def with_timeout(self, value: float | None) -> GenerationParams:
        return self.replace(timeout=value)


# --- checks: each returns the plain Python value to store ------------------------------------------


def _shown(value: object) -> str:
    """A value for an error message: its type, and itself as far as it is short."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _range(low: float, high: float) -> str:
    if low == -_FLOAT32_MAX:
        return "a finite number"
    if high == _FLOAT32_MAX:
        return f"a finite number, {low:g} or more"
    return f"{low} or more" if high == _INT32_MAX else f"from {low:g} to {high:.12g}"


def _int(name: str, value: object, low: int, high: int, hint: str = "") -> int:
    # bool is an int to Python, but top_k=True is a mistake. NumPy's integers register as Integral.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentTypeError(f"{name} must be an int, not {_shown(value)}")
    number = int(value)
    if not low <= number <= high:
        end = f" ({hint})" if hint else ""
        raise InvalidArgumentError(f"{name} must be {_range(low, high)}{end}, not {number}")
    return number


def _float(
    name: str, value: object, low: float = -_FLOAT32_MAX, high: float = _FLOAT32_MAX, *, above: bool = False
) -> float:
    """``above`` leaves ``low`` itself out."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(f"{name} must be a number, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number <= high or (above and number == low):  # a NaN fails the first comparison
        right = f"above {low:g} and at most {high:g}" if above else _range(low, high)
        raise InvalidArgumentError(f"{name} must be {right}, not {number}")
    return number + 0.0  # -0.0 becomes 0.0, so that equal parameters look and hash alike


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{name} {_shown(text)} has a lone surrogate at {error.start}: no valid text contains one"
        ) from None
    return str(text)  # numpy.str_ and other subclasses become plain strings


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | Mapping):
        raise ArgumentTypeError(f"stop must be a string or several, not {_shown(value)}")
    stops: dict[str, None] = {}  # a set that keeps the order
    for stop in value:
        if not isinstance(stop, str):
            raise ArgumentTypeError(f"stop must hold strings only, not {_shown(stop)}")
        if not stop:
            raise InvalidArgumentError("stop must not hold an empty string: it would end every text at once")
        stops[_encodable("stop", stop)] = None
    return tuple(stops)


def _tokens(name: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, numbers.Integral):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise ArgumentTypeError(f"{name} must be a token id or several, not {_shown(value)}")
    ids = [_int(f"a token id in {name}", token, 0, _INT32_MAX) for token in value]
    return tuple(dict.fromkeys(ids))


def _bias(value: object) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        pairs: Iterable[object] = value.items()
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        pairs = value
    else:
        raise ArgumentTypeError(f"logit_bias must map token ids to numbers, not {_shown(value)}")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise ArgumentTypeError(f"logit_bias must hold pairs of token id and number, not {_shown(pair)}")
        token = _int("a token id in logit_bias", pair[0], 0, _INT32_MAX)
        if token in biases:
            raise InvalidArgumentError(f"logit_bias must name each token once, not {token} twice")
        biases[token] = _float(f"logit_bias[{token}]", pair[1])
    return tuple(sorted(biases.items()))


def _grammar(value: object) -> str:
    return _source("grammar", value, "GBNF text", 'root ::= "yes" | "no"')


def _source(name: str, value: object, what: str, example: str) -> str:
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be {what}, not {_shown(value)}")
    if not value.strip():
        raise InvalidArgumentError(f"{name} must be {what} such as {example!r}, not empty")
    if "\0" in value:  # C would read up to there and silently apply half a grammar
        raise InvalidArgumentError(f"{name} must not contain a NUL, which is at {value.index(chr(0))}")
    return _encodable(name, value)


def _json_schema(value: object) -> str:
    return schema_text(schema_of(value) if is_type(value) else value)


def _choices(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise ArgumentTypeError(f"choices must be several strings, not {_shown(value)}")
    choices: dict[str, None] = {}
    for choice in value:
        if not isinstance(choice, str):
            raise ArgumentTypeError(f"choices must hold strings only, not {_shown(choice)}")
        if not choice or "\0" in choice:
            raise InvalidArgumentError("choices must not hold an empty string, nor one with a NUL")
        choices[_encodable("choices", choice)] = None
    if not choices and not isinstance(value, tuple):  # the default is an empty tuple
        raise InvalidArgumentError("choices is empty: no text is one of none; None takes the parameter away")
    return tuple(choices)


def _one_constraint(names: Sequence[str]) -> None:
    if len(names) > 1:
        raise InvalidArgumentError(
            f"{names[0]} and {names[1]} both say what form the text has: at most one of {', '.join(_CONSTRAINTS)}"
        )


def _from_pickle(values: Mapping[str, Any]) -> GenerationParams:
    return GenerationParams.from_dict(values)


def _token_from_json(key: object) -> object:
    """A JSON object has string keys; anything else is left for the check of the field to judge."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key


_CONSTRAINTS: tuple[Constraint, ...] = ("json_schema", "regex", "choices", "lark", "grammar")
_NAMES = tuple(field.name for field in dataclasses.fields(GenerationParams))
_DEFAULTS = GenerationParams()
