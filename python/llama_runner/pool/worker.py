"""``python -m llama_runner.pool.worker``: the program of a worker process, started by ``WorkerProcess`` alone.

It reads calls from its standard input and answers on what was its standard output. It ends when its input does,
which is when its parent closes it, or dies.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from llama_runner.errors import InvalidArgumentError, LlamaRuntimeError, UnknownMessageError
from llama_runner.pool import wire

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llama_runner.params import GenerationParams
    from llama_runner.runner import LlamaRunner, Stream
    from llama_runner.session import Branch, Session
    from llama_runner.session.store import Snapshot
    from llama_runner.session.turn import ReplyStream

CALLS = 128  # calls that run at a time, each in a thread; more wait
PARENT_SECONDS = 1.0  # how often it looks whether its parent still lives
CLOSE_SECONDS = 5.0  # what closing the runner may take
METHODS = frozenset({"apply_chat_template", "chat_tokens", "generate_many", "get_context_info"})
ACTIONS = frozenset(
    {
        "add", "checkout", "drop", "edit", "gc", "info", "pin", "plan", "prune", "rollback", "save", "sync", "unpin",
        "warm",
    }
)  # fmt: skip


class Cancelled(BaseException):
    """Raised in the thread of a call that is cancelled while its prompt is read."""


class Running:
    """A call in its thread."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.cancelled = False
        self.abandoned = False  # and nothing of it is to stay
        self.stream: Stream | ReplyStream | None = None

    def cancel(self, keep: bool = True) -> None:
        self.abandoned = self.abandoned or not keep
        self.cancelled = True
        # where a stream can be ended by another thread, it does not wait for its next chunk
        cancel = getattr(self.stream, "cancel", None)
        if cancel is not None:
            cancel()


class Worker:
    """The runner and the calls that are in it."""

    def __init__(self, inbox: BinaryIO, outbox: BinaryIO) -> None:
        self.inbox, self.outbox = inbox, outbox
        self.runner: LlamaRunner | None = None
        self.running: dict[int, Running] = {}
        self.threads = ThreadPoolExecutor(CALLS, thread_name_prefix="call")
        self.write_lock = threading.Lock()
        self.pinned: Any = None  # what the prefix cache keeps for the conversation
        self.sessions: dict[int, Session] = {}
        self.turns: dict[int, Running] = {}  # the last turn of each
        self.forgotten: set[int] = set()  # perhaps while they were made
        self.snapshots = itertools.count(1)
        self.snapshot_lock = threading.Lock()

    def send(self, *message: Any) -> None:
        data = wire.encode(message)
        try:
            with self.write_lock:
                self.outbox.write(data)
                self.outbox.flush()
        except OSError:
            os._exit(0)  # nobody reads it any more

    def run(self) -> None:
        first = wire.read_frame(self.inbox)
        if first is None:
            return
        _, parent, model, options = wire.decode(first)
        if hasattr(os, "getppid") and sys.platform != "win32":
            threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()
        reader = threading.Thread(target=self.read, name="reader")
        reader.start()
        try:
            from llama_runner.runner import LlamaRunner

            self.runner = LlamaRunner(model, **options)
        except BaseException as error:
            self.send(0, "error", wire.portable_error(error))
            os._exit(0)
        self.send(0, "ready")
        reader.join()

    def read(self) -> None:
        """Take calls until the parent hangs up; then end, whatever is under way."""
        while (data := wire.read_frame(self.inbox)) is not None:
            kind, call_id, *content = wire.decode(data)
            if kind == "cancel":
                call = self.running.get(call_id)
                if call is not None:
                    call.cancel(*content)
                continue
            if kind == "forget":
                self.forgotten.add(content[0])
                self.sessions.pop(content[0], None)
                self.turns.pop(content[0], None)
                continue
            self.running[call_id] = running = Running()
            self.threads.submit(self.serve, call_id, running, kind, content[0])
        runner = self.runner
        if runner is not None:
            timer = threading.Timer(CLOSE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()
            for call in list(self.running.values()):
                call.cancel()
            runner.close()
        os._exit(0)  # threads may still be in a call, and nobody waits for it

    def serve(self, call_id: int, running: Running, kind: str, content: bytes) -> None:
        """One call, in its own thread."""
        try:
            answer = getattr(self, f"do_{kind}")(call_id, running, *wire.unpack(content))
            self.send(call_id, *answer)
        except Cancelled:  # nobody waits for this
            self.send(
                call_id, "error", LlamaRuntimeError("the call was cancelled before it had generated anything")
            )
        except BaseException as error:
            self.send(call_id, "error", wire.portable_error(error))
        finally:
            self.running.pop(call_id, None)
            running.done.set()

    # --- what can be called

    def do_stream(
        self,
        call_id: int,
        running: Running,
        prompt: Any,
        params: GenerationParams,
        quiet: bool,
        progress: bool,
        routing: dict[str, Any],
    ) -> tuple[Any, ...]:
        """A generation; ``quiet`` sends no chunks but the last, for who wants the completion alone."""
        assert self.runner is not None
        if running.cancelled:  # while it waited for a thread
            raise Cancelled
        if progress:

            def report(done: int, total: int) -> None:
                if running.cancelled:
                    raise Cancelled
                self.send(call_id, "progress", done, total)

            routing = {**routing, "prefill_progress": report}
        last = None
        with self.runner.stream(prompt, params=params, **routing) as stream:
            running.stream = stream
            self.send(call_id, "started")
            if quiet:
                stream.read_whole()
            if running.cancelled:
                running.cancel()
            for chunk in stream:
                if chunk.finish_reason is not None:
                    last = chunk
                elif running.cancelled:
                    break
                elif not quiet:
                    self.send(call_id, "chunk", chunk)
        explain = getattr(stream, "explain", None)
        return ("end", last, stream.completion, None if explain is None else explain())

    def do_turn(
        self,
        call_id: int,
        running: Running,
        conversation: npt.NDArray[np.int32],
        prompt: Any,
        params: GenerationParams,
    ) -> tuple[Any, ...]:
        """A turn of the stateful conversation, which the parent keeps: here it is what the prefix cache has of it."""
        import numpy as np

        from llama_runner.core.vocab import as_tokens

        assert self.runner is not None
        vocab = self.runner.model.vocab
        if isinstance(prompt, (str, bytes)):
            new = vocab.tokenize(prompt, add_special=len(conversation) == 0, parse_special=False)
        else:
            new = as_tokens(prompt, vocab.n_tokens)
        if len(new) == 0:
            raise InvalidArgumentError(
                "the prompt is empty: there is nothing to continue; pass at least one token"
            )
        tokens = np.concatenate([conversation, new]).astype(np.int32)
        _, last, completion, explanation = self.do_stream(call_id, running, tokens, params, True, False, {})
        whole = np.concatenate([tokens, completion.tokens]).astype(np.int32)
        if completion.finish_reason != "cancelled":
            self.pin(whole)
        return ("end", last, completion, explanation, whole)

    def do_clear(self, call_id: int, running: Running) -> tuple[Any, ...]:
        import numpy as np

        assert self.runner is not None
        self.pin(np.empty(0, dtype=np.int32))
        self.runner.clear_context()
        return ("result", None)

    # --- sessions, each of which is answered with how it is then

    def do_open(self, call_id: int, running: Running, name: int, how: dict[str, Any]) -> tuple[Any, ...]:
        assert self.runner is not None
        return self.taken_in(name, self.runner.session(**how))

    def do_load(
        self, call_id: int, running: Running, name: int, path: str, how: dict[str, Any]
    ) -> tuple[Any, ...]:
        assert self.runner is not None
        return self.taken_in(name, self.runner.load_session(path, **how))

    def do_fork(self, call_id: int, running: Running, name: int, other: int) -> tuple[Any, ...]:
        return self.taken_in(name, self.session(other).fork())

    def do_restore(self, call_id: int, running: Running, name: int, taken: Snapshot) -> tuple[Any, ...]:
        """A session of a worker that died."""
        assert self.runner is not None
        return self.taken_in(name, self.runner._restored_session(taken))

    def session(self, name: int) -> Session:
        """A session, once a turn of it that was given up is over."""
        last = self.turns.get(name)
        if last is not None and last.cancelled:
            last.done.wait(CLOSE_SECONDS)
        return self.sessions[name]

    def taken_in(self, name: int, session: Session) -> tuple[Any, ...]:
        if name not in self.forgotten:
            self.sessions[name] = session
        return ("result", self.snapshot(session))

    def snapshot(self, session: Session) -> tuple[int, Snapshot]:
        """How it is now, with a number: what comes late with a smaller one is out of date."""
        with self.snapshot_lock:
            return next(self.snapshots), session._snapshot()

    def do_session(
        self,
        call_id: int,
        running: Running,
        name: int,
        action: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, ...]:
        assert action in ACTIONS, action
        session = self.session(name)
        if action == "checkout" and isinstance(args[0], tuple):
            args = (branch_of(session, args[0]),)
        value = getattr(session, action)(*args, **kwargs)
        if action == "warm":  # its handle stays here
            value = None
        return ("result", (value, self.snapshot(session)))

    def do_reply(
        self, call_id: int, running: Running, name: int, content: Any, options: dict[str, Any], quiet: bool
    ) -> tuple[Any, ...]:
        """A turn; ``quiet`` sends no chunks but the last, for who wants the reply alone."""
        session = self.session(name)
        if running.abandoned:  # while it waited for a thread
            raise Cancelled
        stream = session.stream(content, **options)
        self.turns[name] = running
        try:
            running.stream = stream
            self.send(call_id, "started")
            if running.cancelled:
                running.cancel()
            if quiet:
                stream._read_whole()
            last = None
            while not stream._turn.over:
                chunk = next(stream._stream)
                if running.abandoned:
                    raise Cancelled
                last = stream._read(chunk)
                if last.finish_reason is None and not quiet:
                    self.send(call_id, "chunk", last)
        except BaseException:
            stream._fail()
            raise
        return ("end", last, stream.reply, stream.reply.explanation, self.snapshot(session))

    def do_call(
        self, call_id: int, running: Running, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        assert method in METHODS, method
        return ("result", getattr(self.runner, method)(*args, **kwargs))

    def pin(self, tokens: npt.NDArray[np.int32]) -> None:
        """Keep the conversation in the cache, where there is a cache that evicts."""
        engine = getattr(self.runner, "engine", None)
        if engine is not None:
            self.pinned = engine.pin(tokens, self.pinned)


def branch_of(session: Session, trail: tuple[tuple[str, Any], ...]) -> Branch:
    """Where these messages are, one after another, in a session's tree."""
    stack = [session.branches]
    while stack:
        here = stack.pop()
        if tuple((message.id, message.data) for message in here.messages()) == trail:
            return here
        stack.extend(here)
    raise UnknownMessageError("this branch is no longer there: see branches")


def watch_parent(parent: int) -> None:
    """End when the parent is gone. The pipe tells so too, unless a process that it forked holds a copy of its end."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and decides
    # What writes to the standard output from here on, be it native code, is shown where errors are, and disturbs
    # nobody.
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    outbox.write(wire.HELLO)
    outbox.flush()
    Worker(inbox, outbox).run()


if __name__ == "__main__":
    main()
