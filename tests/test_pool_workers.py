"""Runners in worker processes: the same answers, and what happens when a process dies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import llama_runner.errors
from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, LlamaRunner, RunnerPool, WorkerRunner
from llama_runner.core import estimate_memory
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    ForkedProcessError,
    InvalidArgumentError,
    LlamaRunnerError,
    ModelFormatError,
    ModelNotFoundError,
    UnknownParameterError,
    WorkerDiedError,
)
from llama_runner.pool import wire
from llama_runner.pool.process import told_exit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc")

OPTIONS = {"n_ctx": 1024, "n_seq_max": 8, "n_threads": 1, "n_batch": 128}
GREEDY = {"temperature": 0, "seed": 1, "ignore_eos": True}
LONG = {
    **OPTIONS,
    "n_ctx": 16384,
}  # the tiny model writes some thousand tokens a second: room to be interrupted
PARIS = "The capital of France is"
TALK = ["The red box holds 17 coins.", " The blue box holds 4 coins.", " The red box holds", " And the blue"]


@pytest.fixture(scope="module")
def tiny(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama", n_ctx_train=16384)


@pytest.fixture(scope="module")
def in_process(smollm2: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(smollm2, **OPTIONS) as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(smollm2: Path) -> Iterator[WorkerRunner]:
    with WorkerRunner(smollm2, name="shared", max_restarts=1000, **OPTIONS) as runner:
        yield runner


@pytest.fixture
def worker(shared: WorkerRunner) -> WorkerRunner:
    shared.clear_context()
    return shared


@pytest.fixture(scope="module")
def tiny_here(tiny: Path) -> Iterator[LlamaRunner]:
    """The tiny model in this process. Its weights are F32: how rows are put into batches changes none of its tokens."""
    with LlamaRunner(tiny, **LONG) as runner:
        yield runner


@pytest.fixture
def tiny_worker(tiny: Path) -> Iterator[WorkerRunner]:
    with WorkerRunner(tiny, name="tiny", **LONG) as runner:
        yield runner


def kill(worker: WorkerRunner, number: int = signal.SIGKILL) -> None:
    os.kill(worker.pid, number)
    wait_until(lambda: worker._process.dead)


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.005)


def is_there(pid: int) -> bool:
    """Whether a process is there, a zombie included."""
    return Path(f"/proc/{pid}").exists()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_idle(pid: int) -> bool:
    """Whether a process uses no processor time for a while, as one that generates does all the time."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(0.25)
    return used() - before <= 2


def start(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes, **options)


# --- the same as in one process ----------------------------------------------------------------------


@pytest.mark.real_model
def test_it_says_what_a_runner_in_this_process_says(worker, in_process):
    params = GenerationParams(max_tokens=24, logprobs=2, **GREEDY)
    in_process.clear_context()
    expected = in_process.generate(PARIS, params=params)
    assert expected.text.startswith(" Paris")
    assert worker.generate(PARIS, params=params) == expected
    stream = worker.stream(PARIS, params=params)
    chunks = list(stream)
    assert stream.completion.tokens.tolist() == expected.tokens.tolist()
    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert len(chunks) > 10
    assert [chunk.finish_reason for chunk in chunks][-2:] == [None, "length"]
    with pytest.raises(StopIteration):
        next(stream)
    assert worker.generate_stateless(PARIS, 24, **GREEDY) == expected.text
    seeded = {"max_tokens": 12, "seed": 7, "temperature": 0.9}
    assert worker.generate(PARIS, **seeded).text == in_process.generate(PARIS, **seeded).text
    tokens = in_process.model.vocab.tokenize(PARIS)
    assert worker.generate(tokens, params=params).tokens.tolist() == expected.tokens.tolist()
    messages = [{"role": "user", "content": "Why?"}]
    assert worker.apply_chat_template(messages) == in_process.apply_chat_template(messages)
    assert worker.chat_tokens(messages).tolist() == in_process.chat_tokens(messages).tolist()


def test_the_conversation_is_the_same_and_survives_a_death(tiny_worker, tiny_here):
    tiny_here.clear_context()
    expected = [tiny_here.generate_stateful(prompt, 12, **GREEDY) for prompt in TALK]
    tiny_here.clear_context()
    assert tiny_here.generate_stateful(TALK[3], 12, **GREEDY) != expected[3]  # what was said before matters
    assert [tiny_worker.generate_stateful(prompt, 12, **GREEDY) for prompt in TALK] == expected
    tiny_worker.clear_context()
    answers = []
    for turn, prompt in enumerate(TALK):
        answers.append(tiny_worker.generate_stateful(prompt, 12, **GREEDY))
        if turn in (1, 2):
            before = tiny_worker.pid
            kill(tiny_worker)
    assert answers == expected
    assert tiny_worker.pid != before
    assert tiny_worker.restarts == 2


def test_killed_in_the_middle_of_everything(tiny_worker, tiny_here):
    tiny_here.clear_context()
    expected = [tiny_here.generate_stateful(prompt, 12, **GREEDY) for prompt in TALK[:2]]
    assert tiny_worker.generate_stateful(TALK[0], 12, **GREEDY) == expected[0]
    restarts, pid = tiny_worker.restarts, tiny_worker.pid
    stream = tiny_worker.stream("Once", max_tokens=100_000, **GREEDY)
    seen = [next(stream) for _ in range(3)]
    with ThreadPoolExecutor(2) as threads:
        others = [
            threads.submit(tiny_worker.generate, "There", max_tokens=100_000, **GREEDY),
            threads.submit(tiny_worker.generate_stateful, TALK[1], 100_000, **GREEDY),
        ]
        wait_until(lambda: len(tiny_worker._process._calls) == 3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=f"'tiny' .pid {pid}. was killed by SIGKILL") as caught:
            list(stream)
        for other in others:
            assert isinstance(other.exception(20), WorkerDiedError)
    assert (caught.value.exit_code, caught.value.signal, caught.value.pid) == (-9, 9, pid)
    assert len(seen) == 3
    with pytest.raises(WorkerDiedError):
        _ = stream.completion
    assert not is_there(pid)  # and no zombie
    assert tiny_worker.restarts == restarts
    # the turn that died is as if it had never been
    assert tiny_worker.generate_stateful(TALK[1], 12, **GREEDY) == expected[1]
    assert tiny_worker.restarts == restarts + 1


def test_threads_share_one_worker(tiny_worker, tiny_here):
    prompts = [f"The number {n} is" for n in range(5)]
    expected = [tiny_here.generate(prompt, max_tokens=10, **GREEDY).tokens.tolist() for prompt in prompts]
    with ThreadPoolExecutor(5) as threads:
        found = list(
            threads.map(lambda prompt: tiny_worker.generate(prompt, max_tokens=10, **GREEDY), prompts)
        )
    assert [completion.tokens.tolist() for completion in found] == expected
    many = tiny_worker.generate_many(prompts, max_tokens=10, **GREEDY)
    assert [completion.tokens.tolist() for completion in many] == expected
    # they run together: each of three has something before any of them is done
    streams = [tiny_worker.stream(prompt, max_tokens=100_000, **GREEDY) for prompt in prompts[:3]]
    first = [next(stream) for stream in streams]
    assert [chunk.finish_reason for chunk in first] == [None] * 3
    for stream in streams:
        stream.close()
        assert stream.completion.finish_reason == "cancelled"
    with pytest.raises(ContextOverflowError):
        tiny_worker.generate_many([PARIS, "word " * 20_000], max_tokens=500, **GREEDY)
    wait_until(lambda: not tiny_worker._process._calls)


def test_prefill_is_reported_and_what_it_raises_ends_it(tiny_worker):
    prompt, seen = list(range(10, 410)), []
    tiny_worker.generate(
        prompt, max_tokens=2, prefill_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (400, 400)
    assert seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tiny_worker.generate(prompt[::-1], max_tokens=2, prefill_progress=stop)
    wait_until(lambda: not tiny_worker._process._calls)
    assert tiny_worker.generate("hello", max_tokens=4, **GREEDY).tokens.size == 4
    assert tiny_worker.restarts == 0


def test_the_context(tiny_worker):
    assert os.getpgid(tiny_worker.pid) != os.getpgid(
        0
    )  # a terminal's Ctrl-C is not for it, even while it starts
    info = tiny_worker.get_context_info()
    assert (info.n_ctx, info.used, info.n_seq_max) == (16384, 0, 8)
    tiny_worker.generate_stateful("hello world", 8, **GREEDY)
    assert tiny_worker.get_context_info().used > 8
    tiny_worker.clear_context()
    assert tiny_worker.get_context_info().used == 0


# --- asyncio -----------------------------------------------------------------------------------------


def test_asyncio(tiny_worker, tiny_here):
    prompts = [f"The number {n} is" for n in range(4)]
    expected = [tiny_here.generate(prompt, max_tokens=10, **GREEDY).text for prompt in prompts]

    async def main() -> None:
        work = [tiny_worker.agenerate(prompt, max_tokens=10, **GREEDY) for prompt in prompts]
        assert [out.text for out in await asyncio.gather(*work)] == expected
        chunks = [chunk async for chunk in tiny_worker.astream(prompts[0], max_tokens=10, **GREEDY)]
        assert "".join(chunk.text for chunk in chunks) == expected[0]
        assert chunks[-1].finish_reason == "length"
        with pytest.raises(ContextOverflowError):
            await tiny_worker.agenerate("word " * 20_000)
        with pytest.raises(UnknownParameterError, match="max_tokens"):
            await tiny_worker.agenerate("word", max_tokns=3)
        task = asyncio.create_task(tiny_worker.agenerate("Once", max_tokens=100_000, **GREEDY))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in tiny_worker.astream("Once", max_tokens=100_000, **GREEDY):
            break
        while tiny_worker._process._calls:  # both are cancelled in the worker too
            await asyncio.sleep(0.01)
        task = asyncio.create_task(tiny_worker.agenerate("Once", max_tokens=100_000, **GREEDY))
        await asyncio.sleep(0.1)
        os.kill(tiny_worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            await task
        # the restart leaves the loop alone
        ticks = 0
        task = asyncio.create_task(tiny_worker.agenerate(prompts[1], max_tokens=10, **GREEDY))
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert (await task).text == expected[1]
        assert ticks > 5

    asyncio.run(asyncio.wait_for(main(), 60))


# --- cancelling --------------------------------------------------------------------------------------


@pytest.mark.real_model
@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_what_nobody_wants_is_not_computed(worker, how):
    stream = worker.stream("Once upon a time", max_tokens=100_000, **GREEDY)
    next(stream)
    if how == "close":
        stream.close()
        assert stream.completion.finish_reason == "cancelled"
        assert 1 <= stream.completion.tokens.size < 100
    elif how == "with":
        with stream:
            pass
    else:
        del stream
    wait_until(lambda: not worker._process._calls, 5)
    assert is_idle(worker.pid)


@pytest.mark.real_model
def test_ctrl_c_of_a_terminal_ends_the_call_and_not_the_worker(smollm2):
    # a process group of its own, as a terminal gives to a job, and the signal for all of it
    script = """
        import signal, sys
        from llama_runner import WorkerRunner
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with WorkerRunner(sys.argv[1], n_ctx=1024, n_threads=1) as worker:
            first = worker.generate_stateful("My name is Ada.", 4, temperature=0)
            pid = worker.pid
            try:
                print("ready", flush=True)
                worker.generate_stateful(" Again", 900, temperature=0, ignore_eos=True)
            except KeyboardInterrupt:
                print("interrupted", len(worker._process._calls))
            print(worker.generate_stateful(" And my name", 4, temperature=0) != "")
            print(worker.pid == pid, worker.restarts)
    """
    child = start(script, smollm2, start_new_session=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (out.split("\n"), err) == (["interrupted 0", "True", "True 0", ""], "")


# --- death -------------------------------------------------------------------------------------------


def test_restarts_are_bounded(tiny):
    began = time.monotonic()
    WorkerRunner(tiny, **OPTIONS).close()
    window = max(3.0, 10 * (time.monotonic() - began))
    with WorkerRunner(tiny, name="t", max_restarts=2, restart_window=window, **OPTIONS) as worker:
        for number in (signal.SIGKILL, signal.SIGABRT):
            kill(worker, number)
            assert worker.generate("hello", max_tokens=2).tokens.size
        began = time.monotonic()
        kill(worker, signal.SIGTERM)
        for _ in range(2):
            with pytest.raises(
                WorkerDiedError, match=r"killed by SIGTERM, .* 2 times .*max_restarts=2"
            ) as caught:
                worker.generate("hello", max_tokens=2)
            assert caught.value.signal == signal.SIGTERM
        assert worker.restarts == 2
        assert "dead" in repr(worker)
        # a window later there is a new try
        wait_until(lambda: time.monotonic() - began > window, window + 20)
        assert worker.generate("hello", max_tokens=2).tokens.size
        assert worker.restarts == 3


def test_no_restarts_at_all(tiny):
    with WorkerRunner(tiny, max_restarts=0, **OPTIONS) as worker:
        kill(worker)
        with pytest.raises(WorkerDiedError, match="max_restarts=0"):
            worker.get_context_info()


def test_a_restart_that_fails_says_why_and_the_next_tries_again(tiny, tmp_path):
    file = tmp_path / "model.gguf"
    file.symlink_to(tiny)
    with WorkerRunner(file, **OPTIONS) as worker:
        file.unlink()
        kill(worker)
        with pytest.raises(ModelNotFoundError, match=r"model\.gguf"):
            worker.generate("hello")
        file.symlink_to(tiny)
        assert worker.generate("hello", max_tokens=2).tokens.size


def test_many_threads_restart_it_once(tiny_worker):
    kill(tiny_worker)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: tiny_worker.generate("hello", max_tokens=3, **GREEDY), range(6)))
    assert len({tuple(completion.tokens.tolist()) for completion in found}) == 1
    assert tiny_worker.restarts == 1


def test_a_worker_that_hangs_is_killed_when_it_is_closed(tiny, monkeypatch):
    monkeypatch.setattr("llama_runner.pool.process.END_SECONDS", 0.3)
    worker = WorkerRunner(tiny, **OPTIONS)
    os.kill(worker.pid, signal.SIGSTOP)
    worker.close()
    assert not is_there(worker.pid)


ORPHAN = """
    import os, sys, threading, time
    from llama_runner import WorkerRunner
    worker = WorkerRunner(sys.argv[1], n_ctx=16384, n_threads=1)
    if sys.argv[2] == "fork":  # a child that has everything its parent had open
        child = os.fork()
        if child == 0:
            os.close(1), os.close(2)  # but what this test waits for
            time.sleep(60)
            os._exit(0)
        print(child, end=" ")
    if sys.argv[2] == "busy":
        stream = worker.stream("Once", max_tokens=100_000, ignore_eos=True)
        next(stream)
    print(worker.pid, flush=True)
    if sys.argv[2] == "exit":
        sys.exit()
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["idle", "busy", "fork", "exit"])
def test_the_worker_ends_with_its_parent(tiny, how):
    parent = start(ORPHAN, tiny, how)
    *children, pid = map(int, parent.stdout.readline().split())
    try:
        if how != "exit":
            assert runs(pid)
            parent.kill()
        _, err = parent.communicate(timeout=20)
        wait_until(lambda: not runs(pid), 8)
        assert err == "" or "DeprecationWarning" in err  # 3.12 warns of forks with threads
        assert all(runs(child) for child in children)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_nothing_is_printed(tiny):
    script = """
        import os, sys
        from llama_runner import RunnerPool
        with RunnerPool({"a": sys.argv[1]}, workers=True, n_threads=1) as pool:
            with pool.get("a") as worker:
                worker.generate("hello", max_tokens=4)
                os.kill(worker.pid, 9)
                while "dead" not in repr(worker):
                    pass
                worker.generate_stateful("hello", 4)
        print("done")
    """
    child = start(script, tiny)
    assert child.communicate(timeout=30) == ("done\n", "")


def test_what_else_is_printed_there_is_no_message(tiny, tmp_path):
    site = """
        import os, sys, threading, time
        print("a greeting that nobody asked for")
        def speak():
            for _ in range(500):  # until the pipe is not its standard output any more
                time.sleep(0.01)
                if os.path.sameopenfile(1, 2):
                    break
            os.write(1, b"native code has something to say\\n")
        if "llama_runner.pool.worker" in sys.orig_argv:
            threading.Thread(target=speak, daemon=True).start()
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(site))
    script = """
        import sys, time
        from llama_runner import WorkerRunner
        with WorkerRunner(sys.argv[1], n_ctx=256, n_threads=1) as worker:
            for pause in (0.2, 0):
                print(worker.generate("hello", max_tokens=4, ignore_eos=True).tokens.size)
                time.sleep(pause)
            print(worker.restarts)
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    child = start(script, tiny, env={**os.environ, "PYTHONPATH": path})
    out, err = child.communicate(timeout=30)
    assert out == "a greeting that nobody asked for\n4\n4\n0\n"
    assert (
        err == "native code has something to say\n"
    )  # where errors go, and no part of what is said to the parent


def test_nothing_leaks(tiny):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def children() -> set[int]:
        lines = [Path(f"/proc/self/task/{task}/children") for task in os.listdir("/proc/self/task")]
        found: set[int] = set()
        for line in lines:
            with contextlib.suppress(
                FileNotFoundError, ProcessLookupError
            ):  # a thread that has ended meanwhile
                found |= {int(pid) for pid in line.read_text().split()}
        return found

    def once() -> None:
        with WorkerRunner(tiny, **LONG) as worker:
            stream = worker.stream("hello", max_tokens=100_000, ignore_eos=True)
            next(stream)
            kill(worker)
            worker.generate("hello", max_tokens=2)
        dropped = WorkerRunner(tiny, **OPTIONS)
        pid = dropped.pid
        del dropped
        wait_until(lambda: not is_there(pid))

    once()
    wait_until(lambda: not [t for t in threading.enumerate() if "llama-runner-worker-tiny" in t.name])
    gc.collect()  # what other tests left behind is not counted as ours, nor may its going hide a leak
    before, parented, threads = descriptors(), children(), threading.active_count()
    once()
    wait_until(lambda: threading.active_count() <= threads)
    gc.collect()
    assert descriptors() <= before
    assert children() <= parented


# --- errors ------------------------------------------------------------------------------------------


def test_errors_arrive_as_what_they_are(tiny_worker, tiny, tmp_path):
    with pytest.raises(ContextOverflowError) as caught:
        tiny_worker.generate(list(range(10, 200)) * 200)
    assert (caught.value.n_tokens, caught.value.n_ctx) == (38000, 16384)
    with pytest.raises(InvalidArgumentError, match="empty"):
        tiny_worker.generate([])
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        tiny_worker.stream("\ud800")
    with pytest.raises(InvalidArgumentError, match="grammar"):
        tiny_worker.generate("hello", grammar="this is no grammar ::=")
    with pytest.raises(UnknownParameterError, match="max_tokens"):
        tiny_worker.generate("hello", max_tokns=4)
    with pytest.raises(ArgumentTypeError, match="cannot be sent to a worker"):
        tiny_worker.generate(token for token in (1, 2))
    with pytest.raises(InvalidArgumentError, match="n=0"):
        tiny_worker.generate_many(["hello"], n=0)
    tiny_worker.generate_stateful("hello", 4, **GREEDY)
    conversation = tiny_worker._conversation.tolist()
    with pytest.raises(InvalidArgumentError, match="empty"):
        tiny_worker.generate_stateful([], 4)
    with pytest.raises(ContextOverflowError):
        tiny_worker.generate_stateful(list(range(10, 200)) * 200, 4)
    assert tiny_worker._conversation.tolist() == conversation
    assert tiny_worker.restarts == 0
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and no more")
    for model, options, kind, named in (
        (broken, {}, ModelFormatError, "broken"),
        (tmp_path / "absent.gguf", {}, ModelNotFoundError, "absent"),
        (tiny, {"n_cxt": 5}, UnknownParameterError, "n_ctx"),
        (tiny, {"n_threads": "x"}, ArgumentTypeError, "n_threads='x'"),
        (tiny, {"progress": lambda done: True}, ArgumentTypeError, "cannot be sent"),
        (tiny, {"max_restarts": -1}, InvalidArgumentError, "max_restarts=-1"),
        (tiny, {"restart_window": -1}, InvalidArgumentError, "restart_window=-1"),
    ):
        with pytest.raises(kind, match=named):
            WorkerRunner(model, **options)


def test_every_error_of_the_package_can_cross():
    kinds = [
        kind
        for kind in vars(llama_runner.errors).values()
        if isinstance(kind, type) and issubclass(kind, LlamaRunnerError)
    ]
    assert len(kinds) > 25
    for kind in kinds:
        error = kind("what happened").with_log(["a line", "another"])
        assert wire.portable_error(error) is error
        twin = pickle.loads(pickle.dumps(error))
        assert (type(twin), str(twin), vars(twin)) == (kind, str(error), vars(error))
    assert vars(pickle.loads(pickle.dumps(ContextOverflowError("m", 7, 5)))) == {"n_tokens": 7, "n_ctx": 5}

    class Local(Exception):
        """Nobody can import it."""

    told = wire.portable_error(Local("odd"))
    assert (type(told), str(told)) == (
        llama_runner.errors.LlamaRuntimeError,
        "in the worker process: Local: odd",
    )
    assert "In the worker process" in wire.portable_error(KeyError("x")).__notes__[0]


def test_exit_codes_are_told():
    assert told_exit(3) == "ended with exit code 3"
    assert told_exit(-6) == "was killed by SIGABRT"
    assert told_exit(-250) == "was killed by signal 250"


def test_closed(tiny):
    worker = WorkerRunner(tiny, **LONG)
    stream = worker.stream("hello", max_tokens=100_000, ignore_eos=True)
    next(stream)
    pid = worker.pid
    worker.close()
    worker.close()
    assert worker.closed
    assert not is_there(pid)
    stream.close()  # no error, and nothing to wait for
    for call in (worker.generate, worker.stream, worker.generate_stateful):
        with pytest.raises(ClosedError):
            call("hello")
    for call in (worker.get_context_info, worker.clear_context, worker.__enter__):
        with pytest.raises(ClosedError):
            call()
    assert "closed" in repr(worker)


@pytest.mark.real_model
def test_one_turn_at_a_time(worker):
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(worker.generate_stateful, "Count: 1, 2,", 60, **GREEDY)
        wait_until(lambda: worker._process._calls)
        with pytest.raises(ContextBusyError, match="one turn"):
            worker.generate_stateful("meanwhile", 4)
        worker.clear_context()  # leaves a turn under way alone
        assert first.result(30)
    assert len(worker._conversation) > 60


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_leaves_it_alone(tiny_worker):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            for call in (tiny_worker.generate, tiny_worker.stream, tiny_worker.generate_stateful):
                with pytest.raises(ForkedProcessError):
                    call("hello")
            tiny_worker.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert tiny_worker.generate("hello", max_tokens=4, **GREEDY).tokens.size == 4
    assert tiny_worker.restarts == 0


# --- in a pool ---------------------------------------------------------------------------------------


def test_a_pool_of_workers(tiny, tiny_model):
    other = tiny_model("llama", n_ctx_train=16384, seed=5)
    size = estimate_memory(tiny, **OPTIONS).total
    models = {"a": tiny, "b": other, "here": {"model": tiny, "worker": False}}
    with LlamaRunner(tiny, **OPTIONS) as alone:
        expected = [alone.generate_stateful(prompt, 8, **GREEDY) for prompt in ("hello", " you", " world")]
    with RunnerPool(models, workers=True, memory_budget=2 * size, **OPTIONS) as pool:
        with pool.get("a") as worker:
            assert isinstance(worker, WorkerRunner)
            pid = worker.pid
            answers = [worker.generate_stateful("hello", 8, **GREEDY)]
            kill(worker)
            answers.append(worker.generate_stateful(" you", 8, **GREEDY))
            assert pool.info()[0].restarts == 1
        with pool.get("here") as runner:
            assert isinstance(runner, LlamaRunner)
        assert pool.memory_used == 2 * size  # a process of its own shares nothing
        pid = worker.pid
        pool.preload("b")  # there is room for two
        assert not is_there(pid)
        assert [info.copies for info in pool.info()] == [0, 1, 1]
        assert pool.info()[0].restarts == 1
        with pool.get("a") as worker:
            answers.append(worker.generate_stateful(" world", 8, **GREEDY))
        pids = [worker.pid]
    assert answers == expected
    assert not any(is_there(pid) for pid in pids)


def test_copies_are_processes(tiny):
    size = estimate_memory(tiny, **OPTIONS).total
    with RunnerPool({"a": tiny}, workers=True, copies=2, **OPTIONS) as pool:
        with pool.get("a") as one, pool.get("a") as two:
            assert one.pid != two.pid
            kill(one)
            assert two.generate("hello", max_tokens=3).tokens.size
            assert one.generate("hello", max_tokens=3).tokens.size
        assert pool.memory_used == 2 * size
