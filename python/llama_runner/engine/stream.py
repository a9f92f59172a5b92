"""``Stream`` and ``AsyncStream``: reading a generation while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Literal, Self

from llama_runner._single import Single
from llama_runner.engine.engine import Engine
from llama_runner.engine.request import Request
from llama_runner.errors import ContextBusyError, InvalidArgumentError, LlamaRunnerError
from llama_runner.results import Chunk, Completion, Explanation

__all__ = ["AsyncStream", "Stream", "drain", "exhaust"]

PROGRESS_SECONDS = 0.05  # how often the progress of a prompt is reported


class Stream(Single, Iterator[Chunk]):
    """A generation under way: iterate over its chunks; ``completion`` is there at the end.

    ``close()``, leaving a ``with`` block, or dropping the last reference ends it early; ``completion`` then holds what
    there is, with the finish reason ``"cancelled"``. One thread at a time.
    """

    def __init__(
        self, engine: Engine, request: Request, progress: Callable[[int, int], object] | None = None
    ) -> None:
        self._engine = engine
        self._request = request
        if progress is not None:
            try:
                self._report(progress)
            except BaseException:
                self.close()
                raise

    def _report(self, progress: Callable[[int, int], object]) -> None:
        """Call ``progress`` until the prompt is read."""
        job = self._request.job
        done = -1
        while True:
            read = job.wait(PROGRESS_SECONDS)
            todo = len(self._request.prompt) - self._request.cached_tokens
            computed = int(job.progress["n_computed"])
            if computed != done and (computed or read):
                done = computed
                progress(min(done, todo), todo)
            if read:
                return

    def __next__(self) -> Chunk:
        if self._request.ended:
            raise StopIteration
        if self._engine.waits_for_caller:
            raise ContextBusyError(
                "nothing is computed as long as this thread is inside paused(), or in a logits processor: read it later"
            )
        try:
            chunk = self._request.chunk()
        except LlamaRunnerError:
            raise
        except BaseException:
            self.close()
            raise
        assert chunk is not None
        return chunk

    def read_whole(self) -> None:
        """Say that its text is wanted at its end alone: it is one chunk then, and has no pace for others to keep."""
        self._request.job.read_whole()

    def cancel(self) -> None:
        """End the generation within a step, without waiting for that; what has come can still be read."""
        if not self._request.ended:
            self._engine.cancel(self._request)

    def close(self) -> None:
        """End the generation where it is, within a step; closing twice is no error."""
        if self._request.ended:
            return
        self._engine.cancel(self._request)
        if self._engine.waits_for_caller:  # it ends once this thread lets it
            return
        with contextlib.suppress(LlamaRunnerError):  # what ended it is told by completion
            while not self._request.ended:
                self._request.chunk()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # nobody will read it: tell the engine, and wait for nothing
        if hasattr(self, "_request") and not self._request.ended:
            self._engine.cancel(self._request)

    @property
    def completion(self) -> Completion:
        """The result, once the stream is exhausted or closed; InvalidArgumentError before; its error if it failed."""
        if not self._request.ended:
            raise InvalidArgumentError("the stream is not finished: exhaust it or close() it first")
        return self._request.completion()

    def explain(self) -> Explanation:
        """Which part of the prompt was cached, and why the rest was not."""
        return self._request.explain()


class AsyncStream(Single, AsyncIterator[Chunk]):
    """A generation under way, for asyncio: ``async with`` ends it when it is left. Never blocks the event loop.

    ``submit`` is called with what is to be called when there is something to read, and returns the request.
    """

    def __init__(self, engine: Engine, submit: Callable[[Callable[[], None]], Request]) -> None:
        self._there = HomeEvent()
        self._engine = engine
        self._request = submit(waker([self._there]))

    @classmethod
    def of_group(
        cls, engine: Engine, submit: Callable[[Callable[[], None]], list[Request]]
    ) -> list[AsyncStream]:
        """A stream for each of several requests that are submitted together."""
        events: list[asyncio.Event] = []
        streams = []
        for request in submit(waker(events)):
            stream = cls.__new__(cls)
            stream._there, stream._engine, stream._request = HomeEvent(), engine, request
            events.append(stream._there)
            streams.append(stream)
        return streams

    async def __anext__(self) -> Chunk:
        self._there.check()
        while not self._request.ended:
            self._there.clear()
            chunk = self._request.chunk(0)
            if chunk is not None:
                return chunk
            await self._there.wait()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def read_whole(self) -> None:
        """Say that its text is wanted at its end alone: it is one chunk then, and has no pace for others to keep."""
        self._request.job.read_whole()

    def cancel(self) -> None:
        """End the generation within a step; returns at once."""
        if not self._request.ended:
            self._engine.cancel(self._request)

    async def result(self) -> Request:
        """Read to the end; a cancelled task ends the generation. Returns the request."""
        self.read_whole()
        try:
            async for _ in self:
                pass
        finally:
            self.cancel()
        return self._request

    @property
    def completion(self) -> Completion:
        """The result, once it has been read to its end."""
        if not self._request.ended:
            raise InvalidArgumentError("the stream is not finished: exhaust it first")
        return self._request.completion()


class HomeEvent(asyncio.Event):
    """An event that belongs to the loop that it is made on: nothing would wake whoever waited for it on another."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()

    def check(self) -> None:
        """InvalidArgumentError where another loop runs."""
        if asyncio.get_running_loop() is not self._home:
            raise InvalidArgumentError(
                "this was begun on another event loop, which alone it tells of what comes: read it there"
            )

    async def wait(self) -> Literal[True]:
        self.check()
        return await super().wait()


def waker(events: list[asyncio.Event]) -> Callable[[], None]:
    """A function for any thread that sets the events on the running event loop."""
    loop = asyncio.get_running_loop()

    def set_all() -> None:
        for event in events:
            event.set()

    def notify() -> None:
        # the loop may be closed by now, and then nobody listens
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(set_all)

    return notify


def drain(engine: Engine, request: Request) -> Request:
    """Wait for the end of a request whose output nobody wants; an interrupt ends it."""
    with Stream(engine, request) as stream:
        _read_all(stream)
    return request


def exhaust(stream: Stream) -> Completion:
    """Run a stream to its end."""
    with stream:
        _read_all(stream)
    return stream.completion


def _read_all(stream: Stream) -> None:
    stream.read_whole()
    for _ in stream:
        pass
