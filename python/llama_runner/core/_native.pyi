import logging
from typing import TypedDict, type_check_only

@type_check_only
class _BackendFacts(TypedDict, total=False):
    state: str
    reason: str
    version: str
    arch: str

@type_check_only
class _BuildFacts(TypedDict):
    llama_cpp_commit: str
    llama_cpp_release: str
    compiler: str
    system: str
    build_type: str
    portable: bool
    native: bool
    backends: dict[str, _BackendFacts]

@type_check_only
class _Device(TypedDict):
    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int

logger: logging.Logger

def live_objects() -> dict[str, int]: ...
def build_facts() -> _BuildFacts: ...
def devices() -> list[_Device]: ...
def system_info() -> str: ...
