"""Prompts: templates of agents."""

from __future__ import annotations

from llama_runner.prompts.agent_template import AgentTemplate, TemplateMessage
from llama_runner.prompts.library import TemplateLibrary, library, load, names
from llama_runner.prompts.special_tokens import special_tokens_in
from llama_runner.prompts.variables import Variable

__all__ = [
    "AgentTemplate",
    "TemplateLibrary",
    "TemplateMessage",
    "Variable",
    "library",
    "load",
    "names",
    "special_tokens_in",
]
