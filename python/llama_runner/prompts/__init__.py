"""Prompts: agents' templates, a builder of contexts that fit, and the chat format of models without a template.

``load``, ``library``, ``AgentTemplate``: prompts as TOML files with typed variables, several of them built in.
``ContextBuilder``: system text, memories, tool results and history within a number of tokens, on a prefix that stays.
``detect_format``: which chat format a vocabulary speaks for, and a Jinja template of it.
"""

from __future__ import annotations

from llama_runner.prompts.agent_template import AgentTemplate, TemplateMessage
from llama_runner.prompts.builder import ContextBuilder
from llama_runner.prompts.context_report import BuiltContext, ContextReport, Cut
from llama_runner.prompts.formats import DetectedFormat, detect_format, format_names, format_source
from llama_runner.prompts.special_tokens import special_tokens_in
from llama_runner.prompts.template_library import TemplateLibrary, load, names
from llama_runner.prompts.variables import Variable

__all__ = [
    "AgentTemplate",
    "BuiltContext",
    "ContextBuilder",
    "ContextReport",
    "Cut",
    "DetectedFormat",
    "TemplateLibrary",
    "TemplateMessage",
    "Variable",
    "detect_format",
    "format_names",
    "format_source",
    "load",
    "names",
    "special_tokens_in",
]
