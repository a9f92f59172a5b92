"""What a program may do to a runner by mistake: it costs that program a typed error, and nobody else anything."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_use import GREEDY, make, prompt, read_all, slowly, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, LlamaRunner, RunnerPool, Session
from llama_runner.chat import CancelFlag
from llama_runner.core import SamplerChain, live_objects
from llama_runner.engine import Request, Stream
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ForkedProcessError,
    InvalidArgumentError,
    MessageError,
    ResponseParseError,
    SamplingError,
    UnknownMessageError,
)

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama", n_ctx_train=4096)


@pytest.fixture
def runner(path: Path) -> Iterator[LlamaRunner]:
    with make(path) as made:
        yield made


def goes_on(runner: LlamaRunner) -> bool:
    return len(runner.generate(prompt(10, 77), max_tokens=4, **GREEDY).tokens) == 4


def chat(runner: LlamaRunner) -> Session:
    return runner.session(template=PLAIN, seed=1)


# --- chains and snapshots of others ----------------------------------------------------------------------


def test_a_snapshot_of_another_vocabulary(runner: LlamaRunner, tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama", vocab="bpe")) as other:
        theirs, ours = other.sequence([1, 2, 3]), runner.sequence([1])
        assert other.model.vocab.n_tokens != runner.model.vocab.n_tokens
        theirs.generate(max_tokens=1, logit_bias={5: 1.0})
        with pytest.raises(InvalidArgumentError, match=r"vocabulary of \d+ tokens, and this one has 548"):
            ours.restore(theirs.snapshot())
        assert ours.tokens.tolist() == [1]
        chain = SamplerChain().logit_bias(other.model.vocab, {5: 1.0}).greedy()
        with pytest.raises(InvalidArgumentError, match="548 logits"):
            runner.engine.submit(prompt(5), GenerationParams(max_tokens=2), chain=chain)
        assert ours.generate(max_tokens=2, **GREEDY).tokens.size == 2
    assert goes_on(runner)


def test_a_chain_that_is_in_use_costs_its_own_request_alone(runner: LlamaRunner) -> None:
    chain = SamplerChain().greedy()
    params = GenerationParams(max_tokens=400, temperature=0, ignore_eos=True)
    bystander = runner.stream(prompt(10, 1), max_tokens=20, **GREEDY)
    (first,) = runner.engine.submit(prompt(10), params, chain=chain, logits_processor=slowly)
    wait_for(lambda: first.job.progress["n_sampled"])
    (second,) = runner.engine.submit(prompt(10, 2), params, chain=chain)
    stream = Stream(runner.engine, second)
    with pytest.raises(Exception, match="ContextBusyError"):
        list(stream)
    assert sum(len(chunk.tokens) for chunk in bystander) == 20
    Stream(runner.engine, first).close()
    wait_for(lambda: not runner.counters.running)
    runner.clear_context()
    assert runner.get_context_info().used == 0
    assert goes_on(runner)


# --- lookers ---------------------------------------------------------------------------------------------


def test_a_python_link_is_for_one_engine_at_a_time(runner: LlamaRunner, tiny_model: TinyModelFactory) -> None:
    """What another engine checks of a chain changes nothing under the one that samples with it."""
    sizes = set()

    refused = threading.Event()

    def see(logits: Any, tokens: Any) -> None:
        sizes.add(len(logits))
        if len(tokens) > 3:
            refused.wait(30)

    chain = SamplerChain().python(see).greedy()
    params = GenerationParams(max_tokens=60, temperature=0, ignore_eos=True)
    with make(tiny_model("llama", vocab="bpe")) as other:
        (first,) = other.engine.submit(prompt(5), params, chain=chain)
        wait_for(lambda: first.job.progress["n_sampled"])
        for i in range(5):
            (second,) = runner.engine.submit(prompt(5, i), params, chain=chain)
            with pytest.raises(Exception, match="ContextBusyError"):
                list(Stream(runner.engine, second))
        refused.set()
        assert sum(len(chunk.tokens) for chunk in Stream(other.engine, first)) == 60
        assert sizes == {other.model.vocab.n_tokens}
    assert goes_on(runner)


def test_a_pin_is_undone_once(runner: LlamaRunner) -> None:
    sequence = runner.sequence()
    sequence.pin()
    sequence.restore(runner.sequence(prompt(50)).snapshot())
    sequence.pin()
    sequence.unpin()
    runner.gc_context(0.0)
    assert runner.get_context_info().used == 0


@pytest.mark.parametrize("look", ["seq_pos_max", "cells", "n_used"])
def test_a_thread_that_looks_at_the_context(runner: LlamaRunner, look: str) -> None:
    """It may be refused, and the engine is not."""
    memory = runner.context.memory
    looks: dict[str, Callable[[], Any]] = {
        "seq_pos_max": lambda: memory.seq_pos_max(0),
        "cells": memory.cells,
        "n_used": lambda: memory.n_used,
    }
    stop, seen, refused = threading.Event(), 0, 0

    def watch() -> None:
        nonlocal seen, refused
        while not stop.is_set():
            try:
                looks[look]()
                seen += 1
            except ContextBusyError:
                refused += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        deadline, i = time.monotonic() + 30, 0
        while i < 40 or not (seen and refused):
            assert time.monotonic() < deadline, (seen, refused)
            assert len(runner.generate(prompt(30, i), max_tokens=4, **GREEDY).tokens) == 4
            i += 1
    finally:
        stop.set()
        thread.join()
    assert goes_on(runner)


# --- forks of the process --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_at_once(runner: LlamaRunner) -> None:
    """Also where the thread that held a lock at that moment is not in the child."""
    session, sequence, stop = chat(runner), runner.sequence([1, 2]), threading.Event()
    stream = runner.stream(prompt(5), max_tokens=900, logits_processor=slowly, **GREEDY)

    def look() -> None:
        while not stop.is_set():
            runner.get_context_info()

    calls: list[Callable[[], Any]] = [
        lambda: runner.counters, runner.get_context_info, runner.kv_map, runner.clear_context, runner.gc_context,
        runner.session, lambda: runner.generate("a"), lambda: runner.stream("a"), lambda: session.add("a"),
        lambda: session.send("a"), lambda: session.rollback(None), sequence.fork().generate, lambda: sequence.logits,
    ]  # fmt: skip
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                answered = 0
                for n, call in enumerate(calls, 1):
                    try:
                        call()
                        answered = n
                    except ForkedProcessError:
                        pass
                    except BaseException:
                        answered = n
                answered = answered or 100 * (repr(runner) != "<LlamaRunner of another process>")
                runner.close()
                os._exit(answered)
            assert (
                os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            )  # or the number of the call that was answered
    finally:
        stop.set()
        thread.join()
    stream.close()
    assert goes_on(runner)


# --- event loops -----------------------------------------------------------------------------------------


def test_a_stream_is_read_on_its_own_event_loop(runner: LlamaRunner) -> None:
    session = chat(runner)

    async def begin() -> Any:
        return session.astream("Hi", max_tokens=5)

    async def read(stream: Any) -> None:
        await asyncio.wait_for(anext(stream), 20)

    with pytest.raises(InvalidArgumentError, match="another event loop"):
        asyncio.run(read(asyncio.run(begin())))
    assert len(session) == 0
    assert session.send("Hi", max_tokens=2).tokens.size
    assert goes_on(runner)


# --- closing ---------------------------------------------------------------------------------------------


def test_closing_in_a_processor_changes_nothing(path: Path) -> None:
    runner = make(path)
    for close in (runner.close, runner.engine.close):

        def closing(tokens: Any, logits: Any, close: Any = close) -> None:
            close()

        with pytest.raises(SamplingError, match="ContextBusyError"):
            runner.generate(prompt(5), max_tokens=3, logits_processor=closing)
        assert not runner.closed
        assert not runner.engine.closed
        assert goes_on(runner)
    runner.close()
    assert (runner.closed, runner.engine.closed, runner.context.closed, runner.model.closed) == (True,) * 4


def test_an_interrupted_close_is_ended_by_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(path)
    stream = runner.stream(prompt(5), logits_processor=slowly, **LONG)
    next(stream)

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.engine, "_spill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.close()
    with pytest.raises(ClosedError):
        runner.generate(prompt(5))
    runner.close()
    assert (runner.context.closed, runner.model.closed) == (True, True)
    with pytest.raises(ClosedError):
        list(stream)


def test_threads_close_together(path: Path) -> None:
    for _ in range(5):
        runner = make(path)
        stream = runner.stream(prompt(5), logits_processor=slowly, **LONG)
        threads = [threading.Thread(target=runner.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert runner.context.closed
        with pytest.raises(ClosedError):
            list(stream)


def test_an_interrupted_close_leaves_nobody_waiting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(path, max_running=1)
    streams = [runner.stream(prompt(5, i), logits_processor=slowly, **LONG) for i in range(3)]
    next(streams[0])

    class Loop:
        """The loop, which is interrupted once as it is closed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        def close(self) -> None:
            runner.engine.loop = loop
            loop.close()
            raise KeyboardInterrupt

    loop, runner.engine.loop = runner.engine.loop, Loop()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        runner.close()
    runner.close()
    assert runner.model.closed
    for stream in streams:
        with pytest.raises(ClosedError):
            list(stream)


def test_a_close_waits_for_another_and_for_itself_not(path: Path, tmp_path: Path) -> None:
    """What is written to disk by one is not cut off by the other's, nor by a signal handler's."""
    runner = make(path, n_ctx=512, disk_cache=tmp_path)
    for i in range(6):
        runner.generate(prompt(200, i), max_tokens=2, **GREEDY)
    inside, residency = threading.Event(), runner.engine.residency
    spill = residency.spill

    def slow() -> None:
        inside.set()
        runner.close()  # as a signal handler would
        assert not runner.context.closed
        time.sleep(0.5)
        spill()

    residency.spill = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=runner.close)
    thread.start()
    assert inside.wait(30)
    runner.close()
    assert runner.context.closed
    thread.join(30)
    with make(path, n_ctx=512, disk_cache=tmp_path) as again:
        assert again.generate(prompt(200, 5), max_tokens=2, **GREEDY).usage.cached_tokens == 199


def test_what_is_dropped_without_close_is_freed(path: Path) -> None:
    gc.collect()
    before = live_objects()
    for i in range(3):
        dropped = make(path)
        dropped.generate(prompt(5, i), max_tokens=2)
        dropped.stream(prompt(5, i), **LONG)
    del dropped
    gc.collect()
    wait_for(lambda: live_objects() == before)


def test_a_request_holds_its_engine(path: Path) -> None:
    def asked(n: int) -> list[Request]:
        params = GenerationParams(max_tokens=5, temperature=0, ignore_eos=True)
        runner = make(path, max_running=1)
        return [runner.engine.submit(prompt(10, i), params, logits_processor=waits)[0] for i in range(n)]

    dropped = threading.Event()

    def waits(tokens: Any, logits: Any) -> None:
        dropped.wait(30)

    requests = asked(3)
    gc.collect()
    dropped.set()
    for request in requests:
        assert len(read_all(request)) == 5


def test_a_folder_of_its_own_goes_with_a_dropped_runner(path: Path, tmp_path: Path) -> None:
    with make(path, disk_cache=tmp_path):
        second = make(path, disk_cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        del second
        gc.collect()
        wait_for(lambda: len(list(tmp_path.iterdir())) == 1)


EXITS = {
    "dropped just before": "del runner",
    "dropped while it reads": "runner.session(system='long ' * 900).warm(); del runner",
    "reading": "chat = runner.session(system='long ' * 900); warmup = chat.warm()",
    "a stream": "sys.modules['keep'] = stream = runner.stream('a', max_tokens=900, ignore_eos=True); next(stream)",
    "a looker": "threading.Thread(target=look, daemon=True).start()\nrunner.generate('a', max_tokens=20)",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_drops_everything_is_silent(path: Path) -> None:
    script = f"""
import gc, os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from llama_runner import LlamaRunner
runner = LlamaRunner({str(path)!r}, n_ctx=4096, n_threads=1)
session = runner.session(template={PLAIN!r})
streams = [runner.stream("a", max_tokens=900, ignore_eos=True), session.stream("a", max_tokens=900, ignore_eos=True)]
next(streams[0]), next(streams[1])
pid = os.fork()
del runner, session, streams
gc.collect()
if pid:
    print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_keeps_everything_ends_at_once(path: Path) -> None:
    script = f"""
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from llama_runner import LlamaRunner
runner = LlamaRunner({str(path)!r}, n_ctx=4096, n_threads=1)
there = threading.Event()

def hold():
    with runner.engine.paused():
        there.set()
        time.sleep(2)

thread = threading.Thread(target=hold)
thread.start()
there.wait()
began = time.monotonic()
pid = os.fork()
if pid:
    print(os.waitpid(pid, 0)[1], time.monotonic() - began < 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 True\n", "")


@pytest.mark.parametrize("how", EXITS)
def test_the_end_of_the_interpreter_is_silent(path: Path, how: str) -> None:
    script = f"""
import sys, threading
from llama_runner import LlamaRunner
runner = LlamaRunner({str(path)!r}, n_ctx=4096, n_threads=1)

def look():
    while True:
        try:
            runner.context.memory.seq_pos_max(0)
        except Exception:
            pass

{EXITS[how].replace("session(", f"session(template={PLAIN!r}, ")}
"""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_there_is_one_of_has_no_copies(runner: LlamaRunner, act: Callable[[Any], Any]) -> None:
    """A copy would give back what the original still holds."""
    sequence = runner.sequence(prompt(40))
    sequence.extend(())
    sequence.pin()
    stream, session = runner.stream(prompt(5), logits_processor=slowly, **LONG), chat(runner)
    reply = session.stream("Hi", logits_processor=slowly, **LONG)
    next(stream), next(reply)
    with RunnerPool({"a": str(runner.model.path)}) as pool:
        for single in (runner, runner.engine, sequence, stream, session, reply, pool):
            with pytest.raises(
                ArgumentTypeError, match=f"a {type(single).__name__} is neither copied nor pickled"
            ):
                act(single)
    gc.collect()
    runner.gc_context(0.0)
    assert sequence.pinned
    assert runner.sequence(prompt(40)).extend(()) == 0
    assert next(stream).tokens
    assert next(reply).tokens
    stream.close()
    reply.close()


# --- replies that are cut --------------------------------------------------------------------------------


def test_a_reply_that_was_left_keeps_what_it_had(runner: LlamaRunner) -> None:
    session = chat(runner)
    stream = session.stream("x", max_tokens=50, ignore_eos=True, logprobs=2, logits_processor=slowly)
    chunks = [next(stream), next(stream)]
    stream.close()
    assert stream.reply.logprobs == tuple(entry for chunk in chunks for entry in chunk.logprobs)
    assert len(stream.reply.tokens) == len(stream.reply.logprobs) > 0
    stream = session.stream("x", max_tokens=50, grammar='root ::= "a"+', logits_processor=slowly)
    next(stream)
    stream.close()
    with pytest.raises(ResponseParseError, match="cancelled"):
        _ = stream.reply.parsed


def test_a_branch_of_another_session(runner: LlamaRunner) -> None:
    ours, theirs = chat(runner), chat(runner)
    ours.add("mine")
    theirs.add("theirs")
    mine = ours.branches.tips[0]
    with pytest.raises(UnknownMessageError, match="in no branch of this session"):
        ours.checkout(theirs.branches.tips[0])
    fork = ours.fork()
    fork.add("more")
    assert fork.checkout(mine).action == "checkout"
    assert [message.content for message in fork.messages] == ["mine"]
    assert [message.content for message in ours.messages] == ["mine"]
    ours.rollback(None)
    ours.checkout(mine)
    assert [message.content for message in ours.messages] == ["mine"]


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda r: chat(r).run("x", tools=[], cancel=threading.Event()), ArgumentTypeError, "cancel"),
        (lambda r: chat(r).run("x", tools=[], on_step=5), ArgumentTypeError, "on_step"),
        (lambda r: r.session(template=PLAIN, messages=5), MessageError, "list of dicts, not int"),
        (lambda r: r.session(template=PLAIN, messages=None), MessageError, "list of dicts, not NoneType"),
        (lambda r: chat(r).warm(5), MessageError, "list of dicts, not int"),
        (lambda r: chat(r).send(np.array(3)), MessageError, "list of dicts, not ndarray"),
        (lambda r: r.generate("x", adapters=5), ArgumentTypeError, "adapters=5"),
        (lambda r: r.generate("x", prefill_progress=5), ArgumentTypeError, "prefill_progress"),
        (lambda r: LlamaRunner(r.model, n_ctx=256, n_batch="x"), ArgumentTypeError, "n_batch='x'"),
        (lambda r: LlamaRunner(r.model, n_ctx=256, quotas=5), ArgumentTypeError, "quotas=5"),
        (lambda r: LlamaRunner(r.model, n_ctx=256, quotas={5: 5}), ArgumentTypeError, "each a str"),
        (lambda r: LlamaRunner(r.model, n_ctx=256, disk_cache=5), ArgumentTypeError, "disk_cache=5"),
        (lambda r: LlamaRunner(r.model, n_ctx=256, disk_cache="a\0"), InvalidArgumentError, "disk_cache"),
        (
            lambda r: r.session(template=PLAIN, template_kwargs={"a": "\ud800"}),
            InvalidArgumentError,
            "surrogate",
        ),
        (lambda r: r.generate("x", timeout=1e300), InvalidArgumentError, r"at most 3.4\d*e\+38, not 1e\+300"),
    ],
)
def test_a_wrong_argument_is_named(
    runner: LlamaRunner, call: Any, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        call(runner)
    wait_for(lambda: not runner.counters.running)
    assert goes_on(runner)


def test_messages_that_are_no_list(runner: LlamaRunner, tiny_model: TinyModelFactory) -> None:
    for call in (runner.chat_tokens, runner.apply_chat_template):
        with pytest.raises(ArgumentTypeError, match="messages is a list of dicts, not int"):
            call(5)  # type: ignore[operator]


def test_a_flag_that_is_one(runner: LlamaRunner) -> None:
    flag = CancelFlag()
    flag.set()
    assert chat(runner).run("x", tools=[], cancel=flag).why == "cancelled"
