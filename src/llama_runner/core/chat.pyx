"""``ChatTemplate``: messages to prompt text, by the model's own Jinja template."""

import json
import re
from collections.abc import Mapping

import cython

from libc.stdint cimport int64_t

from llama_runner._c.native cimport (
    lr_chat,
    lr_chat_apply,
    lr_chat_capabilities,
    lr_chat_free,
    lr_chat_new,
    lr_chat_render,
    lr_chat_source,
    lr_forked,
    lr_guard_end_shared,
)
from llama_runner.core._native cimport enter_shared, raise_for, take_string
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_bool, check_choice, check_float, check_text
from llama_runner._schema import check_any_schema, check_tools
from llama_runner._syntax import check_arguments, check_grammar, check_template
from llama_runner.chat_types import ChatPrompt

# an escaped NUL in JSON text: the backslash is not itself escaped
ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
cdef object MAX_REQUEST = 16 * 1024 * 1024
cdef tuple TOOL_CHOICES = ("auto", "required", "none")
cdef tuple REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
cdef tuple CONTINUATIONS = (True, False, "content", "reasoning_content")


@cython.no_gc_clear
cdef class ChatTemplate:
    """A Jinja chat template, run by llama.cpp's ``common`` library (``common_chat_templates_init``).

    ``source`` is Jinja text, or None for the model's own template. A template is a program that comes with a file: each
    call has ``timeout`` seconds of processor time and bounded stack and memory, and ends in InvalidArgumentError beyond
    them. Raises ModelCapabilityError when the model has no template, InvalidArgumentError when the template cannot be
    parsed. Any thread may use it, several at once.
    """

    cdef lr_chat *ptr
    cdef int64_t time_us
    cdef readonly Model model  # held: the template asks it for its special tokens

    def __init__(self, Model model not None, source=None, *, timeout=10.0):
        cdef char *error = NULL
        cdef bytes text
        cdef const char *c_text = NULL
        cdef int why
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this ChatTemplate is made already; make a new one")
        self.time_us = int(check_float("timeout", timeout, 0.0, 86400.0) * 1e6)
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
            with nogil:
                why = lr_chat_new(&self.ptr, model.ptr, c_text, self.time_us, &error)
        finally:
            lr_guard_end_shared(model.guard)
        raise_for(why, error, "the chat template cannot be parsed")
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

    @property
    def capabilities(self):
        """What llama.cpp found the template to support, a dict of bools: tools, parallel calls, a system role, …

        Wraps ``common_chat_templates_get_caps``.
        """
        self.check_made()
        return json.loads(take_string(lr_chat_capabilities(self.ptr)) or "{}")

    cdef str run(self, bint whole, dict request):
        """The prompt, or everything (`whole`) as JSON text."""
        cdef char *error = NULL
        cdef char *result = NULL
        cdef int why
        cdef bytes data = encode_request(request)
        cdef const char *c_data = data
        enter_shared(self.model.guard, "model")
        try:
            self.model.check_open()
            with nogil:
                if whole:
                    why = lr_chat_render(self.ptr, c_data, self.time_us, &result, &error)
                else:
                    why = lr_chat_apply(self.ptr, c_data, self.time_us, &result, &error)
        finally:
            lr_guard_end_shared(self.model.guard)
        raise_for(why, error, "the chat template refused the messages")
        return take_string(result)

    def apply(self, messages, *, tools=None, add_generation_prompt=True, enable_thinking=True, **template_kwargs):
        """The prompt text for a list of OpenAI-style messages. Wraps ``common_chat_templates_apply``, without the GIL.

        ``tools`` is a list of OpenAI-style tool descriptions; ``add_generation_prompt`` ends the text where the
        assistant's turn begins; other keywords reach the template as variables. Tokenize the result with
        ``parse_special=True``. Raises InvalidArgumentError for messages that the template refuses. ``render`` gives
        what is to be known about the answer as well.
        """
        self.check_made()
        return self.run(
            False, make_request(messages, tools, add_generation_prompt, enable_thinking, template_kwargs)
        )

    def render(
        self,
        messages,
        *,
        tools=None,
        tool_choice="auto",
        parallel_tool_calls=None,
        json_schema=None,
        grammar=None,
        reasoning_format="auto",
        enable_thinking=True,
        add_generation_prompt=True,
        continue_final_message=False,
        template_kwargs=None,
    ):
        """The prompt as a ``ChatPrompt``: text, grammar, triggers, stops, and a parser for the answer.

        Wraps ``common_chat_templates_apply``, without the GIL. ``messages`` and ``tools`` are as OpenAI has them;
        ``tool_choice`` is ``"auto"``, ``"required"`` or ``"none"``; ``parallel_tool_calls`` None means as the template
        can. ``json_schema`` binds the content, see ``json_schema_to_grammar`` for what it may hold; ``grammar`` (GBNF)
        likewise, and not together with tools. ``reasoning_format`` ``"none"`` leaves reasoning in the content.
        ``continue_final_message`` ends the prompt within the last message, an assistant's: True, or ``"content"`` or
        ``"reasoning_content"`` for the part to go on with. Keywords in tools' parameters that a grammar cannot express
        are left out. Raises InvalidArgumentError for what is refused; nothing is changed.
        """
        self.check_made()
        request = make_request(messages, tools, add_generation_prompt, enable_thinking, check_kwargs(template_kwargs))
        request["tool_choice"] = check_choice("tool_choice", tool_choice, TOOL_CHOICES)
        request["reasoning_format"] = check_choice("reasoning_format", reasoning_format, REASONING_FORMATS)
        if parallel_tool_calls is None:
            parallel_tool_calls = self.capabilities.get("supports_parallel_tool_calls", False)
        request["parallel_tool_calls"] = check_bool("parallel_tool_calls", parallel_tool_calls)
        if json_schema is not None and grammar is not None:
            raise errors.InvalidArgumentError("json_schema and grammar: only one of them can bind the answer")
        if json_schema is not None:
            request["json_schema"] = check_any_schema(json_schema)
        if grammar is not None:
            text = check_text("grammar", grammar)
            check_grammar(text)
            request["grammar"] = text.decode()
        if check_choice("continue_final_message", continue_final_message, CONTINUATIONS) is not False:
            check_continuation(request["messages"])
            request["continue_final_message"] = continue_final_message
            request["add_generation_prompt"] = False
        found = json.loads(self.run(True, request))
        if json_schema is not None and not request.get("tools") and found["notes"]:
            raise errors.InvalidArgumentError(f"json_schema: {found['notes'].strip()}")
        if grammar is not None:  # upstream leaves one of the caller's own to the caller
            found["grammar"] = request["grammar"]
        return ChatPrompt.from_description(found)


cdef dict check_kwargs(template_kwargs):
    if template_kwargs is None:
        return {}
    if not isinstance(template_kwargs, Mapping) or not all(isinstance(key, str) for key in template_kwargs):
        raise errors.ArgumentTypeError("template_kwargs is a dict with the names of the template's variables")
    return dict(template_kwargs)


cdef list listed(str name, given):
    try:
        each = iter(given)
    except TypeError:
        raise errors.ArgumentTypeError(f"{name} is a list of dicts, not {type(given).__name__}") from None
    return list(each)


cdef dict make_request(messages, tools, add_generation_prompt, enable_thinking, template_kwargs):
    request = {
        "messages": listed("messages", messages),
        "add_generation_prompt": check_bool("add_generation_prompt", add_generation_prompt),
        "enable_thinking": check_bool("enable_thinking", enable_thinking),
    }
    check_arguments(request["messages"])
    if tools is not None:
        request["tools"] = listed("tools", tools)
        check_tools(request["tools"])
    if template_kwargs:
        request["template_kwargs"] = template_kwargs
    return request


cdef bytes encode_request(dict request):
    try:
        text = json.dumps(request, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise errors.ArgumentTypeError(f"messages and tools are JSON values: {problem}") from None
    if ESCAPED_NUL.search(text):
        raise errors.InvalidArgumentError("a message has a NUL character: no model reads it; remove it")
    data = check_text("messages", text)
    if len(data) > MAX_REQUEST:
        raise errors.InvalidArgumentError(
            f"messages and tools are {len(data)} bytes of JSON: at most {MAX_REQUEST}"
        )
    return data


cdef int check_continuation(list messages) except -1:
    last = messages[len(messages) - 1] if messages else None  # no wraparound here
    if not isinstance(last, dict) or last.get("role") != "assistant" or last.get("tool_calls"):
        raise errors.InvalidArgumentError(
            "continue_final_message: the last message must be the assistant's, and hold no tool calls"
        )
    return 0
