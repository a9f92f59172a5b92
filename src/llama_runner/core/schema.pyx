"""JSON schemas as grammars."""

import json

from libc.stdint cimport int64_t

from llama_runner._c.native cimport lr_grammar_check, lr_schema_to_grammar
from llama_runner.core._native cimport raise_for, take_string

from llama_runner import errors
from llama_runner._check import check_bool, check_float
from llama_runner._schema import check_schema
from llama_runner._syntax import check_grammar, check_repeats


def json_schema_to_grammar(schema, *, ignore_unsupported=False, timeout=10.0):
    """The GBNF grammar of JSON text that fits a schema. Wraps ``json_schema_to_grammar`` of llama.cpp's ``common``.

    ``schema`` is a dict, a bool, or JSON text. Every keyword that restricts values and that the grammar would not keep
    is an InvalidArgumentError naming it and its place, unless ``ignore_unsupported``; docs/schemas.md lists them.
    References stay within the schema; nesting, counts and ``timeout`` (seconds of processor time) are bounded. The
    result is what ``SamplerChain.grammar`` takes. Any thread.
    """
    cdef char *error = NULL
    cdef char *grammar = NULL
    cdef char *notes = NULL
    cdef int why
    cdef int64_t time_us = int(check_float("timeout", timeout, 0.0, 86400.0) * 1e6)
    strict = not check_bool("ignore_unsupported", ignore_unsupported)
    cdef bytes data = json.dumps(check_schema(schema, strict)).encode()
    cdef const char *c_data = data
    with nogil:
        why = lr_schema_to_grammar(c_data, time_us, &grammar, &notes, &error)
    text, left_out = take_string(grammar), take_string(notes)
    raise_for(why, error, "the schema cannot be made a grammar")
    if left_out and strict:
        raise errors.InvalidArgumentError(f"the schema cannot be made a grammar: {left_out.strip()}")
    data = text.encode()
    check_grammar(data)
    check_repeats(data)
    c_data = data
    with nogil:
        why = lr_grammar_check(c_data, time_us, &error)
    raise_for(why, error, "the schema's grammar cannot be used")
    return text
