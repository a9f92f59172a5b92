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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_float, check_int, check_process, check_prompts
from llama_runner._single import Single
from llama_runner.engine.stream import HomeEvent, waker
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    WorkerDiedError,
)
from llama_runner.params import GenerationParams
from llama_runner.pool.process import Call, Message, WorkerProcess
from llama_runner.pool.worker_session import WorkerSession
from llama_runner.pool.worker_stream import Progress, WorkerStream, exhaust
from llama_runner.results import Chunk, Completion, ContextInfo
from llama_runner.session.session import Tools, as_tool_set

__all__ = ["WorkerRunner"]

Prompt = str | bytes | Sequence[int] | npt.NDArray[np.integer[Any]]


class WorkerRunner(Single):
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
    kept here, as tokens, after each turn that succeeded, and so are sessions: the new worker reads them in again at
    the next turn, and they go on as if nothing had happened. A worker that died ``max_restarts`` times within the
    window stays down until some of that time is over: calls raise WorkerDiedError. The worker ends when this process
    does, however that ends.
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
        check_prompts(prompts)
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
        there = HomeEvent()
        notify = waker([there])
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

    def session(
        self,
        *,
        system: str | None = None,
        messages: Iterable[Mapping[str, Any]] = (),
        tools: Tools = (),
        template: str | None = None,
        params: GenerationParams | None = None,
        **options: Any,
    ) -> WorkerSession:
        """As ``LlamaRunner.session``: a conversation in the worker, which goes on when that dies."""
        offered = as_tool_set(tools)
        how = {
            "system": system, "messages": list(messages), "tools": offered.to_list(), "template": template,
            "params": params, **options,
        }  # fmt: skip
        return WorkerSession(self, self._living(), offered, params, "open", how)

    def load_session(
        self, path: str | os.PathLike[str], *, tools: Tools | None = None, kv: bool = True
    ) -> WorkerSession:
        """As ``LlamaRunner.load_session``: the worker reads the file."""
        offered = None if tools is None else as_tool_set(tools)
        how = {"tools": None if offered is None else offered.to_list(), "kv": kv}
        return WorkerSession(self, self._living(), offered, None, "load", os.fspath(path), how)

    async def aload_session(
        self, path: str | os.PathLike[str], *, tools: Tools | None = None, kv: bool = True
    ) -> WorkerSession:
        """``load_session`` for asyncio."""
        return await asyncio.to_thread(lambda: self.load_session(path, tools=tools, kv=kv))

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
        return WorkerRunner._answer(process.begin(Call(), kind, *content))

    @staticmethod
    def _answer(call: Call) -> Any:
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
