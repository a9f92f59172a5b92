"""``WorkerProcess``: one child process with a runner in it, from its start to its end."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from llama_runner.errors import (
    ClosedError,
    LlamaRunnerError,
    LlamaSystemError,
    WorkerDiedError,
)
from llama_runner.pool import wire

__all__ = ["Call", "WorkerProcess"]

END_SECONDS = 10.0  # what a worker may take to end when it is told to, before it is killed
DEATH_SECONDS = 2.0  # between the end of its pipe and its end as a process

Message = tuple[Any, ...]


class Call:
    """One request under way, and what has come back for it, oldest first."""

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self.id = 0
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._notify = notify

    def put(self, message: Message) -> None:
        self.messages.put(message)
        if self._notify is not None:
            self._notify()


class WorkerProcess:
    """A child that loads a model and answers calls, any number at a time. Any thread may use it.

    Two threads of the parent serve it, one for each direction. So a caller that is interrupted leaves no half
    message in the pipe, and cancelling from a finalizer never waits.
    """

    def __init__(self, name: str, model: str, options: dict[str, Any]) -> None:
        self.name = name
        self.ready = False
        self.exit_code: int | None = None  # as subprocess has it: a signal is negative
        self._dead = False
        self._broken: Exception | None = None  # why nothing more is read from it
        self._asked_to_end = False
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        # SimpleQueue, since its put() may be interrupted by a finalizer that puts too
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._start = Call()
        self._parent = os.getpid()
        load = wire.encode(
            ("load", self._parent, model, options)
        )  # may fail, and then nothing is to be ended
        self._popen = self._spawn(name)
        self.pid = self._popen.pid
        _processes.add(self)
        self._calls[0] = self._start
        self._outbox.put(load)
        self._threads = [
            threading.Thread(target=target, name=f"llama-runner-worker-{name}", daemon=True)
            for target in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _spawn(name: str) -> subprocess.Popen[bytes]:
        # It imports what we import: our sys.path, and not the current directory on top (-P).
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        extra: dict[str, Any] = {}
        if sys.platform == "win32":
            extra["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            extra["start_new_session"] = True  # Ctrl-C in a terminal is for us, and we tell the worker
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "llama_runner.pool.worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                **extra,
            )
        except OSError as error:
            raise LlamaSystemError(f"a worker process for {name!r} cannot be started: {error}") from error

    @property
    def dead(self) -> bool:
        return self._dead

    def wait_ready(self) -> None:
        """Wait until the model is loaded; raises what the load raised, or WorkerDiedError."""
        try:
            kind, *rest = self._start.messages.get()
            if kind == "error":
                raise rest[0]
        except BaseException:
            self.end()
            raise
        self.ready = True

    # --- calls

    def begin(self, call: Call, kind: str, *content: Any) -> Call:
        """Send a call; its answers come to ``call``. WorkerDiedError when the worker is no more."""
        call.id = next(self._ids)
        data = wire.encode((kind, call.id, wire.pack(content)))
        with self._lock:
            if self._dead:
                raise self.death()
            self._calls[call.id] = call
        self._outbox.put(data)
        return call

    def cancel(self, call: Call, *, keep: bool = True) -> None:
        """Have a call end where it is. Returns at once, and may be called by a finalizer.

        Without ``keep`` a reply that it ends is no part of its session.
        """
        self._outbox.put(wire.encode(("cancel", call.id, keep)))

    def forget(self, session: int) -> None:
        """Tell it that nobody has a session any more. Returns at once, and may be called by a finalizer."""
        self._outbox.put(wire.encode(("forget", 0, session)))

    @property
    def fate(self) -> str:
        """How it ended, for a message."""
        end = told_exit(self.exit_code)
        if self._broken is not None:
            end = f"sent what cannot be read ({self._broken}), and was killed"
        return f"the worker process of {self.name!r} (pid {self.pid}) {end}"

    def death(self) -> LlamaRunnerError:
        """The error for a call that the worker's end ended, or came after."""
        if self._asked_to_end:
            return ClosedError(f"the worker process of {self.name!r} was closed")
        return WorkerDiedError(f"{self.fate}; the next call starts a new one", self.exit_code, self.pid)

    # --- its two threads

    def _write(self) -> None:
        pipe = cast("BinaryIO", self._popen.stdin)
        try:
            while (data := self._outbox.get()) is not None:
                pipe.write(data)
                pipe.flush()
        except OSError:
            pass  # it is dead, and the reader will find out
        try:
            pipe.close()
        except OSError:
            pass

    def _read(self) -> None:
        pipe = cast("BinaryIO", self._popen.stdout)
        try:
            if wire.skip_to_hello(pipe):
                while (data := wire.read_frame(pipe)) is not None:
                    self._deliver(wire.decode(data))
        except Exception as error:  # nothing that it says can be trusted from here on
            self._broken = error
            self._popen.kill()
        self._bury()
        pipe.close()

    def _deliver(self, message: Message) -> None:
        call_id, kind = message[:2]
        with self._lock:
            if kind in ("end", "result", "error", "ready"):
                call = self._calls.pop(call_id, None)
            else:
                call = self._calls.get(call_id)
        if call is not None:
            call.put(message[1:])

    def _bury(self) -> None:
        """Take its exit status, so that no zombie is left, and tell everyone who waits."""
        try:
            code = self._popen.wait(END_SECONDS if self._asked_to_end else DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        with self._lock:
            self.exit_code = code
            self._dead = True
            calls = list(self._calls.values())
            self._calls.clear()
        self._outbox.put(None)
        for call in calls:
            call.put(("error", self.death()))

    # --- the end

    def hang_up(self) -> None:
        """Tell it to end, and wait for nothing: for finalizers."""
        if os.getpid() == self._parent:
            self._asked_to_end = True
            self._outbox.put(None)

    def end(self) -> None:
        """Tell it to end, wait until it has, and kill it if it does not. Twice is no error."""
        if os.getpid() != self._parent:
            return
        self._asked_to_end = True
        self._outbox.put(None)
        try:
            self._popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def told_exit(code: int | None) -> str:
    """What an exit status means, for a message."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


_processes: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _let_go() -> None:
    """In the child of a fork: its copies of the pipes would keep a worker alive that has lost its parent.

    They are pointed elsewhere and not closed, so that no later file gets their numbers.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for process in list(_processes):
        for pipe in (process._popen.stdin, process._popen.stdout):
            try:
                if pipe is not None:
                    os.dup2(null, pipe.fileno(), inheritable=False)
            except (OSError, ValueError):
                pass  # closed already
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
