"""``ChatParser``: from the text that a model answers to content, reasoning and tool calls."""

import json

import cython

from libc.stddef cimport size_t
from libc.stdint cimport int64_t

from llama_runner._c.native cimport (
    LR_WHY_NO_STACK,
    LR_WHY_OK,
    lr_guard,
    lr_guard_end_exclusive,
    lr_guard_free,
    lr_guard_new,
    lr_parser,
    lr_parser_free,
    lr_parser_message,
    lr_parser_new,
    lr_parser_parse,
    lr_parser_push,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, raise_for, take_string

from llama_runner import errors
from llama_runner._check import check_bool, check_float
from llama_runner.chat_types import ChatDelta, ChatMessage, ChatPrompt


@cython.no_gc_clear
cdef class ChatParser:
    """Reads one answer to a ``ChatPrompt``, whole (``parse``) or as it comes (``push``, ``finish``).

    Wraps ``common_chat_parse`` and ``common_chat_msg_diff``. The text is the model's, with the prompt's
    ``preserved_tokens`` in it and without its end token. Each call has ``timeout`` seconds of processor time and
    bounded stack and memory. ``parse`` may run on any thread; ``push`` and ``finish`` on one at a time, a second gets
    ContextBusyError.
    """

    cdef lr_parser *ptr
    cdef lr_guard *guard
    cdef int64_t time_us
    cdef bint finished

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise errors.OutOfMemoryError("out of memory while making a ChatParser")

    def __init__(self, prompt, *, timeout=10.0):
        cdef char *error = NULL
        cdef int why
        cdef bytes description
        cdef const char *c_description
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this ChatParser is made already; make a new one")
        if not isinstance(prompt, ChatPrompt):
            raise errors.ArgumentTypeError(f"prompt is a ChatPrompt, not {type(prompt).__name__}")
        self.time_us = int(check_float("timeout", timeout, 0.0, 86400.0) * 1e6)
        description = encode_text(prompt.parser_description)
        if b"\0" in description:
            raise errors.InvalidArgumentError("prompt.parser_description has a NUL character")
        c_description = description
        with nogil:
            why = lr_parser_new(&self.ptr, c_description, self.time_us, &error)
        raise_for(why, error, "the prompt's parser cannot be read")

    def __dealloc__(self):
        lr_parser_free(self.ptr)
        lr_guard_free(self.guard)

    cdef int check_made(self) except -1:
        if self.ptr == NULL:  # a subclass that did not call __init__
            raise errors.InvalidArgumentError("this ChatParser was never made: call ChatParser.__init__")
        return 0

    def parse(self, text, *, partial=False):
        """The ``ChatMessage`` that a whole answer is, or a beginning of one (``partial``). Wraps ``common_chat_parse``.

        ``text`` is a str, or bytes, in which what is no UTF-8 reads as U+FFFD. An answer that ends early, within a tool
        call, gives what there is of it, also when it is not ``partial``; a ``partial`` one shows a call from its first
        argument on, as its name may still grow. Independent of ``push``. Raises ResponseParseError when the text has
        another form.
        """
        cdef char *error = NULL
        cdef char *message = NULL
        cdef int64_t position = -1
        cdef int why
        cdef bytes data = encode_text(text)
        cdef const char *c_data = data
        cdef size_t size = len(data)
        cdef bint is_partial = check_bool("partial", partial)
        self.check_made()
        with nogil:
            why = lr_parser_parse(self.ptr, c_data, size, is_partial, self.time_us, &message, &position, &error)
        raise_for_answer(why, error, position)
        return ChatMessage.from_description(json.loads(take_string(message)))

    def push(self, text):
        """What ``text`` adds to the answer: a list of ``ChatDelta``, often empty. Wraps ``common_chat_msg_diff``.

        Text that may turn out to be part of a tag or a tool call is held back, and so are the bytes of a character that
        is not complete. The answer is parsed from its beginning each time. Raises ResponseParseError when it cannot be
        parsed, or turns out to mean something else than was given out; the text is kept, and the next call tries
        again.
        """
        return self.advance(text, False)

    def finish(self):
        """The last list of ``ChatDelta``: what was held back. Afterwards ``message`` is the whole answer.

        Raises ResponseParseError as ``push`` does, InvalidArgumentError when called twice.
        """
        deltas = self.advance(b"", True)
        self.finished = True
        return deltas

    @property
    def message(self):
        """The ``ChatMessage`` that the deltas so far add up to, together with a message that the prompt continues."""
        self.check_made()
        enter_exclusive(self.guard, "ChatParser")
        try:
            text = take_string(lr_parser_message(self.ptr))
        finally:
            lr_guard_end_exclusive(self.guard)
        return ChatMessage.from_description(json.loads(text))

    cdef list advance(self, text, bint last):
        cdef char *error = NULL
        cdef char *deltas = NULL
        cdef int64_t position = -1
        cdef int why
        cdef bytes data = encode_text(text)
        cdef const char *c_data = data
        cdef size_t size = len(data)
        self.check_made()
        if self.finished:
            raise errors.InvalidArgumentError("this answer is finished: make a ChatParser for the next one")
        enter_exclusive(self.guard, "ChatParser")
        try:
            with nogil:
                why = lr_parser_push(self.ptr, c_data, size, last, self.time_us, &deltas, &position, &error)
        finally:
            lr_guard_end_exclusive(self.guard)
        raise_for_answer(why, error, position)
        return [ChatDelta(**delta) for delta in json.loads(take_string(deltas))]


cdef bytes encode_text(text):
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidArgumentError(f"text has a lone surrogate at index {error.start}") from None
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise errors.ArgumentTypeError(f"text is a str or bytes, not {type(text).__name__}")


cdef int raise_for_answer(int why, char *error, int64_t position) except -1:
    if why == LR_WHY_OK or why == LR_WHY_NO_STACK:
        return raise_for(why, error, "")
    problem = take_string(error)
    lines = drain_log()
    place = None
    if position >= 0:
        place = position
        problem = f"{problem}, from character {place} on"
    raise errors.ResponseParseError(f"the answer cannot be parsed: {problem}", place).with_log(lines)
