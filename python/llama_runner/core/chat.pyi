from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from typing_extensions import disjoint_base

from llama_runner.chat_types import ChatPrompt
from llama_runner.core.model import Model
from llama_runner.core.vocab import _Text

@disjoint_base
class ChatTemplate:
    def __init__(self, model: Model, source: _Text | None = None, *, timeout: float = 10.0) -> None: ...
    @property
    def model(self) -> Model: ...
    @property
    def source(self) -> str: ...
    @property
    def capabilities(self) -> dict[str, bool]: ...
    def apply(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        **template_kwargs: Any,
    ) -> str: ...
    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Literal["auto", "required", "none"] = "auto",
        parallel_tool_calls: bool | None = None,
        json_schema: dict[str, Any] | bool | str | None = None,
        grammar: _Text | None = None,
        reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] = "auto",
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool | Literal["content", "reasoning_content"] = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatPrompt: ...
