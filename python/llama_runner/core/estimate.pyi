import os
from collections.abc import Sequence
from typing import Any

from llama_runner.measures import MemoryEstimate

def estimate_memory(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any
) -> MemoryEstimate: ...
