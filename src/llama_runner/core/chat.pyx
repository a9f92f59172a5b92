"""``ChatTemplate``: messages to prompt text, by the model's own Jinja template."""

import json
import re

import cython

from llama_runner._c.native cimport (
    lr_chat,
    lr_chat_apply,
    lr_chat_free,
    lr_chat_new,
    lr_chat_source,
    lr_forked,
    lr_guard_end_shared,
)
from llama_runner.core._native cimport drain_log, enter_shared, take_string
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_bool, check_text
from llama_runner._syntax import check_template

# an escaped NUL in JSON text: the backslash is not itself escaped
ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@cython.no_gc_clear
cdef class ChatTemplate:
    """A Jinja chat template, run by llama.cpp's ``common`` library (``common_chat_templates_init``).

    ``source`` is Jinja text, or None for the model's own template. Raises ModelCapabilityError when the model has none,
    InvalidArgumentError when the template cannot be parsed. Any thread may use it, several at once.
    """

    cdef lr_chat *ptr
    cdef readonly Model model  # held: the template asks it for its special tokens

    def __init__(self, Model model not None, source=None):
        cdef char *error = NULL
        cdef bytes text
        cdef const char *c_text = NULL
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this ChatTemplate is made already; make a new one")
        if source is None:
            own = model.chat_template()
            if own is not None:
                check_template(own.encode())
        else:
            text = check_text("source", source)
            check_template(text)
            c_text = text
        enter_shared(model.guard, "model")
        try:
            model.check_open()
            self.ptr = lr_chat_new(model.ptr, c_text, &error)
        finally:
            lr_guard_end_shared(model.guard)
        problem = take_string(error)
        lines = drain_log()
        if problem:
            raise errors.InvalidArgumentError(f"the chat template cannot be parsed: {problem}").with_log(lines)
        if self.ptr == NULL:
            raise errors.ModelCapabilityError(
                f"{model.path} has no chat template: pass one as Jinja text, or use a plain prompt"
            )
        self.model = model

    def __dealloc__(self):
        if not lr_forked():
            lr_chat_free(self.ptr)

    cdef int check_made(self) except -1:
        if self.ptr == NULL:  # a subclass that did not call __init__
            raise errors.InvalidArgumentError("this ChatTemplate was never made: call ChatTemplate.__init__")
        return 0

    @property
    def source(self):
        """The template's Jinja text."""
        self.check_made()
        return lr_chat_source(self.ptr).decode("utf-8", "replace")

    def apply(self, messages, *, tools=None, add_generation_prompt=True, enable_thinking=True, **template_kwargs):
        """The prompt text for a list of OpenAI-style messages. Wraps ``common_chat_templates_apply``, without the GIL.

        ``tools`` is a list of OpenAI-style tool descriptions; ``add_generation_prompt`` ends the text where the
        assistant's turn begins; other keywords reach the template as variables. Tokenize the result with
        ``parse_special=True``. Raises InvalidArgumentError for messages that the template refuses.
        """
        cdef char *error = NULL
        cdef char *prompt
        self.check_made()
        request = {
            "messages": list(messages),
            "add_generation_prompt": check_bool("add_generation_prompt", add_generation_prompt),
            "enable_thinking": check_bool("enable_thinking", enable_thinking),
        }
        if tools is not None:
            request["tools"] = list(tools)
        if template_kwargs:
            request["template_kwargs"] = template_kwargs
        try:
            text = json.dumps(request, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as problem:
            raise errors.ArgumentTypeError(f"messages and tools are JSON values: {problem}") from None
        if ESCAPED_NUL.search(text):
            raise errors.InvalidArgumentError("a message has a NUL character: no model reads it; remove it")
        cdef bytes data = check_text("messages", text)
        cdef const char *c_data = data
        enter_shared(self.model.guard, "model")
        try:
            self.model.check_open()
            with nogil:
                prompt = lr_chat_apply(self.ptr, c_data, &error)
        finally:
            lr_guard_end_shared(self.model.guard)
        problem = take_string(error)
        if prompt == NULL:
            raise errors.InvalidArgumentError(
                f"the chat template refused the messages: {problem}"
            ).with_log(drain_log())
        drain_log()
        return take_string(prompt)
