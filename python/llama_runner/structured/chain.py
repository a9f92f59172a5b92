"""What generation parameters ask for, as a link of a sampler chain."""

from __future__ import annotations

import json

from llama_runner.core import Constraint, SamplerChain, Vocab, json_schema_to_grammar
from llama_runner.errors import InvalidArgumentError, MissingExtraError
from llama_runner.params import GenerationParams
from llama_runner.structured.regex import regex_to_gbnf

__all__ = ["builtin_grammar", "constrain"]


def constrain(chain: SamplerChain, vocab: Vocab, params: GenerationParams) -> SamplerChain:
    """Add what ``params`` constrain the text to; by llguidance, or without it by the built-in grammar sampler.

    Raises ConstraintError for what is malformed or cannot be enforced, MissingExtraError for what needs llguidance.
    """
    kind = params.constraint
    if kind is None:
        return chain
    if params.ignore_eos and kind != "grammar":
        raise InvalidArgumentError(
            f"ignore_eos beside {kind}: what ends the text would be ruled out, where nothing else may follow"
        )
    if params.grammar is not None:
        return chain.grammar(vocab, params.grammar)
    try:
        return chain.constraint(compiled(vocab, params))
    except MissingExtraError as missing:
        return chain.grammar(vocab, builtin_grammar(params, missing))


def compiled(vocab: Vocab, params: GenerationParams) -> Constraint:
    if params.json_schema is not None:
        return Constraint.json_schema(vocab, params.json_schema)
    if params.regex is not None:
        return Constraint.regex(vocab, params.regex)
    if params.lark is not None:
        return Constraint.lark(vocab, params.lark)
    return Constraint.choices(vocab, params.choices)


def builtin_grammar(params: GenerationParams, missing: MissingExtraError | None = None) -> str:
    """The GBNF grammar of what ``params`` constrain the text to; MissingExtraError where GBNF cannot say it."""
    if params.grammar is not None:
        return params.grammar
    try:
        if params.json_schema is not None:
            return json_schema_to_grammar(params.json_schema)
        if params.regex is not None:
            return regex_to_gbnf(params.regex)
        if params.choices:
            return "root ::= " + " | ".join(literal(choice) for choice in params.choices)
        why = "a Lark grammar is llguidance's alone"
    except InvalidArgumentError as error:
        why = str(error)
    raise MissingExtraError(
        f"the built-in grammar sampler cannot enforce {params.constraint} ({why}), and "
        f"{missing or 'llguidance is not used: install llama-runner[structured]'}"
    )


def literal(text: str) -> str:
    """Text as a literal of GBNF."""
    return (
        json.dumps(text, ensure_ascii=False)
        .replace("\\/", "/")
        .replace("\\b", "\\x08")
        .replace("\\f", "\\x0C")
    )
