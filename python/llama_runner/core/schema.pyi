from typing import Any

def json_schema_to_grammar(
    schema: dict[str, Any] | bool | str | bytes, *, ignore_unsupported: bool = False, timeout: float = 10.0
) -> str: ...
