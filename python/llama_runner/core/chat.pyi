from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_runner.core.model import Model
from llama_runner.core.vocab import _Text

class ChatTemplate:
    def __init__(self, model: Model, source: _Text | None = None) -> None: ...
    @property
    def model(self) -> Model: ...
    @property
    def source(self) -> str: ...
    def apply(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        **template_kwargs: Any,
    ) -> str: ...
