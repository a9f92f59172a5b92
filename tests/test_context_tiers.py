"""What there is in the context, making room by hand and by itself, and forgetting."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.errors import ArgumentTypeError, ContextOverflowError, InvalidArgumentError

GREEDY = {"temperature": 0, "ignore_eos": True}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


def prompt(n: int, first: int = 300) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return (np.arange(n, dtype=np.int32) + first) % 500


def test_what_there_is(path: Path) -> None:
    with LlamaRunner(path, n_ctx=512) as runner:
        assert runner.get_context_info().next_to_go == ()
        for i in range(3):
            runner.generate(prompt(40, 10 + 100 * i), max_tokens=5, **GREEDY)
        chat = runner.session(template=PLAIN, owner="me")
        chat.send("hello", max_tokens=4, **GREEDY)
        empty = runner.session(template=PLAIN)
        info = runner.get_context_info()
        assert (info.capacity, info.used) == (512, runner.context.memory.n_used)
        assert info.ratio == info.used / 512
        assert len(info.sessions) == 1 and info.sessions[0].owner == "me"
        assert (info.sessions[0].n_messages, info.sessions[0].n_tokens) == (2, chat.n_tokens)
        assert info.sessions[0].resident_tokens == chat.n_tokens - 1
        # the least recently used goes first, and all that goes is what nobody uses
        assert [going.n_tokens for going in info.next_to_go][:3] == [44, 44, 44]
        assert info.next_to_go[0].idle_seconds > info.next_to_go[2].idle_seconds
        assert sum(going.n_cells for going in info.next_to_go) == info.used
        assert json.loads(json.dumps(info.to_dict()))["sessions"][0]["n_messages"] == 2
        assert asyncio.run(runner.aget_context_info()).used == info.used
        del empty


def test_gc_evicts_what_nobody_uses(path: Path) -> None:
    with LlamaRunner(path, n_ctx=512) as runner:
        for i in range(4):
            runner.generate(prompt(60, 10 + 100 * i), max_tokens=5, **GREEDY)
        used = runner.get_context_info().used
        receipt = runner.gc_context(0.3)
        assert (
            receipt.tokens_before == used
            and receipt.tokens_after == runner.get_context_info().used <= 0.3 * 512
        )
        assert receipt.dropped == used - receipt.tokens_after and "evicted" in receipt.reason
        # the oldest went, to host memory, and comes back when it is asked for
        again = runner.generate(prompt(60, 10), max_tokens=5, **GREEDY)
        assert again.usage.cached_tokens == 59 and again.explain().restored_tokens > 0
        assert asyncio.run(runner.agc_context(0.0)).tokens_after == 0
        pinned = runner.sequence(prompt(50))
        pinned.pin()
        receipt = runner.gc_context(0.0)
        assert receipt.tokens_after == 50 and "pinned" in receipt.reason
        for wrong in (-1, 2, "half"):
            with pytest.raises((InvalidArgumentError, ArgumentTypeError)):
                runner.gc_context(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="policy"):
            runner.gc_context(policy="all")  # type: ignore[arg-type]
        asyncio.run(runner.aclear_context())
        assert asyncio.run(runner.akv_map()).cells_of("prefix") == 50


def test_gc_drops_the_oldest_turns_of_the_conversation(path: Path) -> None:
    with LlamaRunner(path, n_ctx=512) as runner:
        for i in range(6):
            runner.generate_stateful(prompt(30, 10 + 30 * i), 10, **GREEDY)
        assert len(runner._stateful) == 240
        kept = runner.gc_context(0.25, policy="idle")
        assert kept.tokens_after > 200 and len(runner._stateful) == 240
        receipt = runner.gc_context(0.25)
        assert receipt.tokens_after <= 128 and len(runner._stateful) == 120
        assert runner._stateful.starts == [0, 40, 80]
        assert runner._stateful.tokens[:30].tolist() == prompt(30, 10 + 90).tolist()
        runner.generate_stateful(prompt(5), 5, **GREEDY)
        assert len(runner._stateful) == 130


def test_it_runs_by_itself(path: Path) -> None:
    with LlamaRunner(path, n_ctx=256) as runner:
        for i in range(12):
            runner.generate_stateful(prompt(30, 10 + 30 * i), 10, **GREEDY)
            assert len(runner._stateful) - 10 <= 0.8 * 256
        receipt = runner.last_gc
        assert receipt is not None and receipt.action == "gc" and receipt.dropped > 0 and receipt.pending > 0
        assert receipt.kept + receipt.dropped == receipt.tokens_before
        before = runner._stateful.tokens.tolist()
        with pytest.raises(ContextOverflowError):
            runner.generate_stateful(prompt(300), 5)
        assert runner._stateful.tokens.tolist() == before and runner.last_gc is receipt
        told = asyncio.run(runner.agenerate_stateful(prompt(3), 3, **GREEDY))
        assert isinstance(told, str) and len(runner._stateful) > 6
        assert asyncio.run(runner.agenerate_stateless(prompt(3), 3, **GREEDY)) == runner.generate_stateless(
            prompt(3), 3, **GREEDY
        )
    with LlamaRunner(path, n_ctx=256, auto_gc=None) as runner:
        for i in range(6):
            runner.generate_stateful(prompt(30, 10 + 30 * i), 10, **GREEDY)
        with pytest.raises(ContextOverflowError):
            runner.generate_stateful(prompt(30), 10, **GREEDY)
        assert len(runner._stateful) == 240 and runner.last_gc is None
    for wrong in (0, 1.5, "half"):
        with pytest.raises((InvalidArgumentError, ArgumentTypeError)):
            LlamaRunner(path, auto_gc=wrong)  # type: ignore[arg-type]


def test_nothing_of_a_stateless_call_is_visible_to_the_next(path: Path) -> None:
    with LlamaRunner(path, n_ctx=512) as runner:
        alone = runner.generate_stateless(prompt(20), 10, **GREEDY)
        chat = runner.session(template=PLAIN)
        chat.send("something else", max_tokens=5, **GREEDY)
        runner.generate_stateful(prompt(20), 10, **GREEDY)
        assert runner.generate_stateless(prompt(20), 10, **GREEDY) == alone
        runner.clear_context()
        assert runner.generate_stateless(prompt(20), 10, **GREEDY) == alone
        # a session that was forgotten computes its messages anew
        assert chat.send("more", max_tokens=5, **GREEDY).usage.cached_tokens == 0
