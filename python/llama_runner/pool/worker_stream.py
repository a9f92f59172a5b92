"""``WorkerStream``: reading a generation in a worker process while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from llama_runner._single import Single
from llama_runner.errors import InvalidArgumentError
from llama_runner.pool.process import Call, Message, WorkerProcess
from llama_runner.results import Chunk, Completion

__all__ = ["Progress", "WorkerStream", "exhaust"]

Progress = Callable[[int, int], object]


class WorkerStream(Single, Iterator[Chunk]):
    """A generation under way in a worker: iterate over its chunks; ``completion`` is there at the end.

    ``close()``, leaving a ``with`` block, or dropping the last reference ends it early, in the worker too. One
    thread at a time. When the worker dies, ``next()`` raises WorkerDiedError after the chunks that had arrived.
    """

    def __init__(
        self, process: WorkerProcess, call: Call, progress: Progress | None = None, response_type: Any = None
    ) -> None:
        self._process, self._call = process, call
        self._response_type = response_type  # it stays here: the worker may not have it
        self._keeps = False  # of a session's reply that is closed: what has come
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
        self._keeps = True

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

    def cancel(self) -> None:
        """End the generation within a step, without waiting for that; what has come can still be read. Any thread."""
        if not self._ended:
            self._process.cancel(self._call)

    def close(self) -> None:
        """End the generation where it is, within a step; closing twice is no error."""
        if self._ended:
            return
        self._process.cancel(self._call, keep=self._keeps)
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


def exhaust(stream: WorkerStream) -> Completion:
    """Run a stream to its end."""
    with stream:
        for _ in stream:
            pass
    return stream.completion
