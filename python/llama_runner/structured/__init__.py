"""Structured output: from a type, a schema, a regular expression, choices or a grammar to a constraint, and back.

``constrain`` puts what generation parameters ask for into a sampler chain; ``Response`` makes a value of the text.
llguidance (the extra ``structured``) enforces it; without it the built-in grammar sampler does, as far as it can.
"""

from llama_runner._response import Response, is_type, schema_of, value_of
from llama_runner.structured.chain import builtin_grammar, constrain
from llama_runner.structured.regex import regex_to_gbnf

__all__ = ["Response", "builtin_grammar", "constrain", "is_type", "regex_to_gbnf", "schema_of", "value_of"]
