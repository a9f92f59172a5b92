"""Prompts: templates of agents."""

from __future__ import annotations

from llama_runner.prompts.agent_template import AgentTemplate, TemplateMessage
from llama_runner.prompts.builder import ContextBuilder
from llama_runner.prompts.context_report import BuiltContext, ContextReport, Cut
from llama_runner.prompts.formats import DetectedFormat, detect_format, format_names, format_source
from llama_runner.prompts.library import TemplateLibrary, library, load, names
from llama_runner.prompts.special_tokens import special_tokens_in
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
    "library",
    "load",
    "names",
    "special_tokens_in",
]
