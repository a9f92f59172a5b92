"""Each method that waits has a twin for asyncio with the same signature, and what the docstrings promise of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.engine import Sequence
from llama_runner.pool import WorkerSession

# those that return at once, or are about asyncio or lifetime themselves
AT_ONCE = {
    LlamaRunner: {
        "apply_chat_template", "chat_tokens", "close", "closed", "counters", "sequence", "session", "stream", "auto_gc",
    },
    Session: {
        "add", "branches", "fork", "load", "messages", "n_tokens", "pin", "prune", "stream", "to_messages", "tokens",
        "unpin", "info", "busy",
    },
    WorkerSession: {"branches", "messages", "n_tokens", "stream", "to_messages", "tokens"},
    Sequence: {
        "fork", "pinned", "snapshot", "text", "tokens", "truncate", "unpin", "pin", "restore",
    },
}  # fmt: skip
NAMES = {"sync": "async_"}


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def methods(kind: type) -> list[str]:
    found = public(kind)
    twins = {NAMES.get(name, f"a{name}") for name in found}
    return sorted(name for name in found if name not in AT_ONCE[kind] and name not in twins)


CASES = [(kind, name) for kind in AT_ONCE for name in methods(kind)]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name in CASES])
def test_it_has_a_twin(kind: type, name: str) -> None:
    own = public(kind)[name]
    twin = public(kind).get(NAMES.get(name, f"a{name}"))
    assert twin is not None, f"{kind.__name__}.{name} waits, and has no twin for asyncio"
    assert inspect.iscoroutinefunction(twin)
    if isinstance(own, property):
        return
    mine, its = (inspect.signature(function).parameters for function in (own, twin))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in its.values()):
        assert set(its) <= set(mine)  # what it passes on is checked by what it passes it to
        assert {n: p.default for n, p in its.items()} == {n: mine[n].default for n in its}
    else:
        assert [(p.name, p.kind, p.default) for p in mine.values()] == [
            (p.name, p.kind, p.default) for p in its.values()
        ]


def test_a_session_in_a_worker_has_the_methods_of_one_here() -> None:
    missing = public(Session).keys() - public(WorkerSession).keys()
    assert missing == {"busy", "load"}  # a file is loaded by the runner
    for name in public(Session).keys() - missing - {"warm", "awarm"}:
        here, there = public(Session)[name], public(WorkerSession)[name]
        if callable(here):
            assert list(inspect.signature(here).parameters) == list(inspect.signature(there).parameters), name


def test_streams_have_twins() -> None:
    for kind in (LlamaRunner, Session, WorkerSession):
        assert "astream" in public(kind)
    assert {name for _, name in CASES} >= {
        "generate",
        "generate_many",
        "send",
        "sync",
        "plan",
        "run",
        "extend",
        "score",
    }
