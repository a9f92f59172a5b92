"""What a running tool may know of the run that called it, and how it learns that nobody waits for it any more."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["CancelFlag", "ToolContext"]


class CancelFlag:
    """A ``threading.Event`` that, once set, stays set, and sets those made from it; any thread may use it."""

    def __init__(self, parent: CancelFlag | None = None):
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._unlink = parent.subscribe(self.set) if parent is not None else None

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; whether it is."""
        return self._event.wait(timeout)

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called once it is set, at once where it is; returns what takes that back."""
        key = object()
        with self._lock:
            if not self._event.is_set():
                self._callbacks[key] = callback
                return lambda: self._forget(key)
        callback()
        return lambda: None

    def unlink(self) -> None:
        """Hear no more of the parent: what is over must not be kept by what goes on."""
        if self._unlink is not None:
            self._unlink()

    def _forget(self, key: object) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def __repr__(self) -> str:
        return f"CancelFlag({'set' if self.is_set() else 'not set'})"


@dataclasses.dataclass(frozen=True, slots=True)
class ToolContext:
    """Given to a tool's parameter that is annotated with it, and not shown to the model."""

    session: Any = None
    """Whose call it is: a ``Session``, or None."""
    step: int = 0
    """The step of the run, from 0."""
    call_id: str = ""
    """The id of the call."""
    deadline: float | None = None
    """When the call's time is over, as ``time.monotonic()`` has it."""
    cancelled: CancelFlag = dataclasses.field(default_factory=CancelFlag)
    """Set when nobody waits for the result any more: a tool that looks at it can stop."""

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None where there is no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def for_call(self, call_id: str, deadline: float | None) -> ToolContext:
        """One call's own: its flag is set with this one's, and its deadline is the earlier one."""
        both = [moment for moment in (deadline, self.deadline) if moment is not None]
        return dataclasses.replace(
            self, call_id=call_id, deadline=min(both, default=None), cancelled=CancelFlag(self.cancelled)
        )
