"""``WorkerRunner``: a ``LlamaRunner`` in a process of its own, which may die without taking this one along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_float, check_int
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    InvalidArgumentError,
    WorkerDiedError,
)
from llama_runner.params import GenerationParams
from llama_runner.pool.process import Call, Message, WorkerProcess, check_process
from llama_runner.results import Chunk, Completion, ContextInfo

__all__ = ["WorkerRunner", "WorkerStream"]

Prompt = str | bytes | Sequence[int] | npt.NDArray[np.integer[Any]]
Progress = Callable[[int, int], object]


class WorkerStream(Iterator[Chunk]):
    """A generation under way in a worker: iterate over its chunks; ``completion`` is there at the end.

    ``close()``, leaving a ``with`` block, or dropping the last reference ends it early, in the worker too. One
    thread at a time. When the worker dies, ``next()`` raises WorkerDiedError after the chunks that had arrived.
    """

    def __init__(
        self, process: WorkerProcess, call: Call, progress: Progress | None = None, response_type: Any = None
    ) -> None:
        self._process, self._call = process, call
        self._response_type = response_type  # it stays here: the worker may not have it
        self._ended = False
        self._completion: Completion | None = None
        self._explanation: Any = None
        self._error: BaseException | None = None
        self.tokens: npt.NDArray[np.int32] | None = None  # of a turn: the conversation after it
        try:
            while (message := call.messages.get())[0] != "started":
                if message[0] == "progress":
                    if progress is not None:
                        progress(*message[1:])
                else:
                    self._take(message)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Chunk:
        chunk = None
        while chunk is None:
            if self._ended:
                raise StopIteration
            try:
                message = self._call.messages.get()
            except BaseException:  # Ctrl-C
                self.close()
                raise
            chunk = self._take(message)
        return chunk

    def _take(self, message: Message) -> Chunk | None:
        kind, *rest = message
        if kind == "chunk":
            return cast("Chunk", rest[0])
        if kind == "error":
            self._ended = True
            self._error = rest[0]
            raise rest[0]
        if kind == "end":
            self._ended = True
            chunk, self._completion, self._explanation, *more = rest
            self.tokens = more[0] if more else None
            return cast("Chunk | None", chunk)
        return None  # a late report of progress

    def close(self) -> None:
        """End the generation where it is, within a step; closing twice is no error."""
        if self._ended:
            return
        self._process.cancel(self._call)
        while not self._ended:
            try:
                self._take(self._call.messages.get())
            except Exception:  # it is kept for ``completion``
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # nobody will read it: tell the worker, and wait for nothing
        if not getattr(self, "_ended", True):
            self._process.cancel(self._call)

    @property
    def completion(self) -> Completion:
        """The result, once the stream is exhausted or closed; InvalidArgumentError before; its error if it failed."""
        if not self._ended:
            raise InvalidArgumentError("the stream is not finished: exhaust it or close() it first")
        if self._completion is None:
            assert self._error is not None
            raise self._error
        return self._completion.as_type(self._response_type)

    def explain(self) -> Any:
        """What ``Stream.explain()`` tells, once the stream has ended."""
        if self._explanation is None:
            raise InvalidArgumentError("the stream is not finished, or has failed: nothing explains it yet")
        return self._explanation


class WorkerRunner:
    """A ``LlamaRunner`` in a process of its own.

        with WorkerRunner("smollm2-135m", n_ctx=4096) as runner:
            print(runner.generate("The capital of France is", max_tokens=8).text)

    Parameters
    ----------
    model, n_ctx, n_seq_max, **options : as for ``LlamaRunner``, but what cannot leave a process (a ``Model``,
        ``progress``).
    name : for messages, and for the list of processes.
    max_restarts : how many times within ``restart_window`` seconds a worker that died is started again.
    download_progress : called with (what, bytes done, bytes in all or None) while the model is fetched, in this
        process.

    Any thread may call it, and asyncio; calls that come together are one batch in the worker. What the worker raises
    is raised here as the same class with the same attributes. Cancelling (closing a stream, Ctrl-C, a cancelled
    task) is felt in the worker too; only ``generate_many`` with ``n`` above 1 goes on there to its end.

    When the worker dies, every call that is in it raises WorkerDiedError, and none is repeated: it may have been the
    reason. The next call starts a new worker and waits for its model. The conversation of ``generate_stateful`` is
    kept here, as tokens, after each turn that succeeded: the new worker reads it in again at the next turn, and it
    goes on as if nothing had happened. A worker that died ``max_restarts`` times within the window stays down until
    some of that time is over: calls raise WorkerDiedError. The worker ends when this process does, however that ends.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        name: str | None = None,
        max_restarts: int = 3,
        restart_window: float = 60.0,
        download_progress: Callable[[str, int, int | None], None] | None = None,
        **options: Any,
    ) -> None:
        self._closed = True
        self._pid_here = os.getpid()
        self._max_restarts = check_int("max_restarts", max_restarts, 0, 2**31 - 1)
        self._window = check_float("restart_window", restart_window, 0.0)
        from llama_runner.models import resolve_model  # brings archives and locks along

        self._path = os.fspath(resolve_model(model, progress=download_progress))
        self._name = os.path.basename(self._path) if name is None else name
        self._options = options
        self._restarts: deque[float] = deque()
        self._n_restarts = 0
        self._restart_lock = threading.Lock()
        self._turn = threading.Lock()
        self._conversation = np.empty(0, dtype=np.int32)
        self._closed = False
        # a list, so that the finalizer finds the process of the day without holding the runner
        self._processes = [WorkerProcess(self._name, self._path, options)]
        weakref.finalize(self, _hang_up, self._processes)
        try:
            self._process.wait_ready()
        except BaseException:
            self.close()
            raise

    # --- the process

    @property
    def _process(self) -> WorkerProcess:
        return self._processes[0]

    @property
    def pid(self) -> int:
        """The worker's process id; another one after a restart."""
        return self._process.pid

    @property
    def restarts(self) -> int:
        """How many times a worker that died was started again."""
        return self._n_restarts

    def _living(self) -> WorkerProcess:
        """The worker, started again if it died."""
        self._check_open()
        process = self._process
        if process.ready and not process.dead:
            return process
        with self._restart_lock:
            self._check_open()
            if self._process.ready and not self._process.dead:
                return self._process  # another thread did it
            now = time.monotonic()
            while self._restarts and now - self._restarts[0] > self._window:
                self._restarts.popleft()
            if len(self._restarts) >= self._max_restarts:
                raise WorkerDiedError(
                    f"{self._process.fate}, and was started again {len(self._restarts)} times in {self._window:g} s "
                    f"(max_restarts={self._max_restarts}): it stays down for now",
                    self._process.exit_code,
                    self._process.pid,
                )
            self._restarts.append(now)
            self._n_restarts += 1
            self._processes[0] = process = WorkerProcess(self._name, self._path, self._options)
            if self._closed:  # meanwhile
                process.end()
            process.wait_ready()
            return process

    async def _aliving(self) -> WorkerProcess:
        process = self._process
        if process.ready and not process.dead and not self._closed:
            check_process(self._pid_here, "WorkerRunner")
            return process
        return await asyncio.to_thread(self._living)

    # --- generating

    def stream(
        self,
        prompt: Prompt,
        *,
        params: GenerationParams | None = None,
        prefill_progress: Progress | None = None,
        priority: int = 0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> WorkerStream:
        """Generate, a ``Chunk`` at a time; parameters and errors as for ``LlamaRunner.stream``, and WorkerDiedError."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="stream()")
        return self._stream(prompt, settings, False, prefill_progress, priority, owner)

    def generate(
        self,
        prompt: Prompt,
        *,
        params: GenerationParams | None = None,
        prefill_progress: Progress | None = None,
        priority: int = 0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> Completion:
        """Generate to the end; parameters and errors as for ``stream``."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="generate()")
        return exhaust(self._stream(prompt, settings, True, prefill_progress, priority, owner))

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        params: GenerationParams | None = None,
        n: int = 1,
        priority: int = 0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> list[Completion]:
        """Generate for many prompts together; as ``LlamaRunner.generate_many``."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="generate_many()")
        check_int("n", n, 1, 2**31 - 1)
        if n > 1:
            given = {"params": settings, "n": n, **routing(priority, owner)}
            found = cast("list[Completion]", self._call("generate_many", list(prompts), **given))
            return [completion.as_type(settings.response_type) for completion in found]
        streams: list[WorkerStream] = []
        try:
            for prompt in prompts:
                streams.append(self._stream(prompt, settings, True, None, priority, owner))
            return [exhaust(stream) for stream in streams]
        except BaseException:
            for stream in streams:
                stream.close()
            raise

    def _stream(
        self,
        prompt: Prompt,
        params: GenerationParams,
        quiet: bool,
        progress: Progress | None,
        priority: int,
        owner: str | None,
    ) -> WorkerStream:
        process = self._living()
        where = routing(priority, owner)
        call = process.begin(Call(), "stream", prompt, params, quiet, progress is not None, where)
        return WorkerStream(process, call, progress, params.response_type)

    async def astream(
        self,
        prompt: Prompt,
        *,
        params: GenerationParams | None = None,
        priority: int = 0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Chunk]:
        """``stream`` for asyncio: never blocks the event loop. Leaving the loop, or cancelling the task, ends it."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="astream()")
        messages = self._astream(prompt, settings, False, priority, owner)
        async with contextlib.aclosing(messages):
            async for _, chunk, *_ in messages:
                if chunk is not None:
                    yield chunk

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        params: GenerationParams | None = None,
        priority: int = 0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> Completion:
        """``generate`` for asyncio: ``asyncio.gather`` over several of them is one batch."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="agenerate()")
        messages = self._astream(prompt, settings, True, priority, owner)
        async with contextlib.aclosing(messages):
            async for _, _, completion, *_ in messages:
                return cast("Completion", completion).as_type(settings.response_type)
        raise AssertionError("a generation has an end")

    async def _astream(
        self, prompt: Prompt, params: GenerationParams, quiet: bool, priority: int, owner: str | None
    ) -> AsyncGenerator[Message, None]:
        """What comes back for a generation: chunks, if not ``quiet``, and the end."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(there.set)
            except RuntimeError:
                pass  # the loop is closed, and nobody listens

        process = await self._aliving()
        where = routing(priority, owner)
        call = process.begin(Call(notify), "stream", prompt, params, quiet, False, where)
        ended = False
        try:
            while not ended:
                there.clear()
                try:
                    message = call.messages.get_nowait()
                except queue.Empty:
                    await there.wait()
                    continue
                ended = message[0] in ("end", "error")
                if message[0] == "error":
                    raise message[1]
                if message[0] != "started":
                    yield message
        finally:
            if not ended:
                process.cancel(call)

    def generate_stateless(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows ``prompt``; nothing of the call is visible to the next one."""
        return self.generate(prompt, max_tokens=max_tokens, **kwargs).text

    def generate_stateful(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows all earlier stateful prompts and answers, and now ``prompt``.

        The conversation is kept here as tokens, and in the worker's KV cache: only what is new is computed, and
        after a worker's death all of it once. ``clear_context()`` forgets it. After an error it is as it was before
        the call. A second thread gets ContextBusyError.
        """
        params = kwargs.pop("params", None)
        settings = GenerationParams.from_kwargs(
            params, {"max_tokens": max_tokens, **kwargs}, where="generate_stateful()"
        )
        if not self._turn.acquire(blocking=False):
            raise ContextBusyError(
                "another thread is in generate_stateful(): the conversation takes one turn at a time"
            )
        try:
            process = self._living()
            call = process.begin(Call(), "turn", self._conversation, prompt, settings)
            stream = WorkerStream(process, call)
            completion = exhaust(stream)
            assert stream.tokens is not None
            self._conversation = stream.tokens
            return completion.text
        finally:
            self._turn.release()

    # --- chat

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """As ``LlamaRunner.apply_chat_template``."""
        given = {"add_generation_prompt": add_generation_prompt, **kwargs}
        return cast("str", self._call("apply_chat_template", messages, **given))

    def chat_tokens(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> npt.NDArray[np.int32]:
        """As ``LlamaRunner.chat_tokens``."""
        given = {"add_generation_prompt": add_generation_prompt, **kwargs}
        return cast("npt.NDArray[np.int32]", self._call("chat_tokens", messages, **given))

    # --- the context

    def get_context_info(self) -> ContextInfo:
        """How full the worker's context is; that of a new worker is empty until the next turn."""
        return cast("ContextInfo", self._call("get_context_info"))

    def clear_context(self) -> None:
        """Forget the conversation of ``generate_stateful`` and every cached prompt; generations under way go on."""
        self._check_open()
        if self._turn.acquire(blocking=False):
            try:
                self._conversation = np.empty(0, dtype=np.int32)
                if not self._process.dead:  # a new one would be empty
                    self._result(self._living(), "clear")
            finally:
                self._turn.release()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._result(self._living(), "call", method, args, kwargs)

    @staticmethod
    def _result(process: WorkerProcess, kind: str, *content: Any) -> Any:
        call = process.begin(Call(), kind, *content)
        answer, value = call.messages.get()
        if answer == "error":
            raise value
        return value

    # --- lifetime

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has been called."""
        return self._closed

    def close(self) -> None:
        """End the worker, and calls in it with ClosedError; closing twice is no error.

        It is killed when it has not ended after ten seconds. In the child of a fork this does nothing to it.
        """
        if self._closed:
            return
        self._closed = True
        self._process.end()

    def _check_open(self) -> None:
        check_process(self._pid_here, "WorkerRunner")
        if self._closed:
            raise ClosedError("this WorkerRunner is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "dead" if self._process.dead else f"pid {self.pid}"
        return f"<WorkerRunner {self._name!r} {state}, {self._n_restarts} restarts>"


def exhaust(stream: WorkerStream) -> Completion:
    """Run a stream to its end."""
    with stream:
        for _ in stream:
            pass
    return stream.completion


def routing(priority: int, owner: str | None) -> dict[str, Any]:
    """The keywords for the engine's queue, as far as they say anything."""
    given: dict[str, Any] = {}
    if priority:
        given["priority"] = priority
    if owner is not None:
        given["owner"] = owner
    return given


def _hang_up(processes: list[WorkerProcess]) -> None:
    for process in processes:
        process.hang_up()
