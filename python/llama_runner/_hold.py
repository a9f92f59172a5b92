"""One at a time, without a lock that an interrupt could leave behind."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

from llama_runner._check import check_process
from llama_runner.errors import ContextBusyError

__all__ = ["Hold", "OneAtATime"]


class Hold:
    """Whose turn it is. It ends with its last reference, if not before: no interrupt leaves it taken for ever."""

    __slots__ = ("__weakref__",)


class OneAtATime:
    """What one holder has at a time; another gets ContextBusyError, which says ``refusal``."""

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._holder: weakref.ref[Hold] | None = None

    @property
    def busy(self) -> bool:
        return self._holder is not None and self._holder() is not None

    def take(self) -> Hold:
        """Have it, until ``release`` or the end of the hold."""
        check_process(self._pid, "conversation")
        hold = Hold()
        with self._guard:
            if self.busy:
                raise ContextBusyError(self._refusal)
            self._holder = weakref.ref(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """End a hold; ending it twice is no error. Waits for nothing: a finalizer may call it."""
        if self._holder is not None and self._holder() is hold:
            self._holder = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        hold = self.take()
        try:
            yield
        finally:
            self.release(hold)
