from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

from llama_runner.core.model import Model
from llama_runner.core.vocab import _Text

@disjoint_base
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
