"""How an engine ends when it has to: an assertion inside llama.cpp, a fork, an interpreter that exits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine_truth import EXACT, Alone
from engine_use import wait_for
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, errors
from llama_runner.core import Context, Model
from llama_runner.engine import Engine, Request

TOKENS = np.arange(300, 320, dtype=np.int32)
PATIENCE = 30.0


def until_error(request: Request) -> None:
    """Read what there is; it ends with an error of the context."""
    with pytest.raises(errors.LlamaRuntimeError):
        list(iter(lambda: request.chunk(PATIENCE), None))
    assert request.ended, "nothing comes"


def until_ended(request: Request) -> None:
    deadline = time.monotonic() + PATIENCE
    while not request.ended:
        assert time.monotonic() < deadline, "it never ends"
        request.chunk(1.0)


def test_poison_ends_requests_and_not_the_process(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    for kind in ("llama", "mamba"):
        context = Context(Model(tiny_model(kind)), n_ctx=256, n_seq_max=6, **EXACT)
        engine = Engine(context, disk_cache=tmp_path)
        done = engine.submit(TOKENS, GenerationParams(max_tokens=4, ignore_eos=True))[0]
        while not done.ended:
            done.chunk(PATIENCE)
        with engine.paused():
            requests = engine.submit(TOKENS[5:], GenerationParams(max_tokens=100, ignore_eos=True), n=2)
            requests += engine.submit(TOKENS[3:], GenerationParams(max_tokens=100, ignore_eos=True))
            context._fail_next()
        for request in requests:
            until_error(request)
            assert request.job.progress["error"] == "poisoned"
        engine.close()
        with pytest.raises(errors.LlamaRuntimeError):
            context.memory.seq_rm(0)
        context.close()


FORK = """
import os, sys, numpy as np
from llama_runner import errors
from llama_runner.core import Context, DecodeLoop, Job, Model, SamplerChain
model = Model(sys.argv[1])
context = Context(model, n_ctx=256, n_seq_max=4, n_threads=1)
loop = DecodeLoop(context)
def job(tag): return Job(model.vocab, range(300, 320), chain=SamplerChain().greedy(), max_tokens=4, tag=tag)
first = job(1)
loop.add(first)
while first.end_reason is None: first.wait(1)
child = os.fork()
if child == 0:
    refused = 0
    for call in (loop.pause, lambda: loop.wait(0), lambda: job(2).wait(0)):
        try: call()
        except errors.LlamaRunnerError: refused += 1
    loop.close()
    del loop, first
    os._exit(refused)
_, status = os.waitpid(child, 0)
print("refused", os.waitstatus_to_exitcode(status))
loop.pause(); context.memory.clear(); loop.resume()
again = job(3)
loop.add(again)
while again.end_reason is None: again.wait(1)
print("parent", again.end_reason)
loop.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused_and_the_parent_goes_on(tiny_model: TinyModelFactory) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tiny_model("llama"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["refused 3", "parent length"], done


def test_a_loop_that_is_forgotten_stops_at_exit(tiny_model: TinyModelFactory) -> None:
    program = FORK.partition("child =")[0] + "\nsecond = job(2)\nloop.add(second)\nprint('over')"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model("llama"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "over\n"), done


@pytest.mark.parametrize("kind", ["llama", "mamba", "hybrid"])
@pytest.mark.parametrize("how", ["cancelled", "timeout"])
def test_a_slice_under_way_stops_for_the_one_that_reads_alone(
    tiny_model: TinyModelFactory, kind: str, how: str
) -> None:
    """Of the rest, one slice of many seconds, nothing is computed; what comes next is as if it had never been."""
    long = np.random.default_rng(0).integers(300, 400, 30_000, dtype=np.int32)
    context = Context(Model(tiny_model(kind)), n_ctx=32_768, n_batch=32_768, n_seq_max=4, **EXACT)
    greedy = GenerationParams(max_tokens=8, temperature=0, ignore_eos=True)
    with context, Engine(context, slice_seconds=100) as engine:
        request = engine.submit(long, greedy.replace(timeout=0.5 if how == "timeout" else None))[0]
        wait_for(lambda: engine.loop.counters["rows"] or request.job.end_reason)
        if how == "cancelled":
            time.sleep(0.1)
            engine.cancel(request)
        until_ended(request)
        assert request.completion().finish_reason == how
        assert (
            request.job.progress["n_computed"] == 64
        )  # the first slice, from which it learns what a row costs
        assert engine.loop.counters["failed_decodes"] == 1
        after = engine.submit(long[:100], greedy)[0]
        until_ended(after)
        alone = Alone(context.model)
        alone.check(long[:100], after.completion(), greedy=True)
        alone.close()


def test_a_slice_of_several_stops_for_one_of_them(tiny_model: TinyModelFactory) -> None:
    """The other reads its rows again, and says what it says alone."""
    rng = np.random.default_rng(1)
    long, short = (rng.integers(300, 400, n, dtype=np.int32) for n in (30_000, 400))
    context = Context(Model(tiny_model("llama")), n_ctx=32_768, n_batch=32_768, n_seq_max=4, **EXACT)
    greedy = GenerationParams(max_tokens=8, temperature=0, ignore_eos=True)
    with context, Engine(context, slice_seconds=100) as engine:
        with engine.paused():
            request = engine.submit(long, greedy)[0]
            other = engine.submit(short, greedy)[0]
        wait_for(lambda: engine.loop.counters["rows"])
        time.sleep(0.1)
        engine.cancel(request)
        until_ended(request)
        assert request.job.progress["n_computed"] < 64
        assert engine.loop.counters["failed_decodes"] == 1
        until_ended(other)
        assert other.usage().computed_tokens == 400
        alone = Alone(context.model)
        alone.check(short, other.completion(), greedy=True)
        alone.close()
