"""The engine's thread: it waits for what the native loop reports, and has the engine see to it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_runner.engine.engine import Engine

__all__ = ["Manager"]


class Manager(threading.Thread):
    """Holds the engine only while it does something for it: an engine that nobody has any more ends with its loop."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="llama-runner-engine", daemon=True)
        self._loop = loop = engine.loop
        pid = os.getpid()

        def wake(gone: object) -> None:
            if os.getpid() == pid:  # in the child of a fork there is nobody to wake
                loop.wake()

        self._engine = weakref.ref(engine, wake)
        self._let_go = engine.residency.tiers.close

    def run(self) -> None:
        timeout: float | None = None
        while True:
            events = self._loop.wait(timeout)
            engine = self._engine()
            if engine is None:
                self._loop.close()
                self._let_go()
                return
            if engine.closed:  # whoever closes it may hold its lock, and wait for this thread
                return
            try:
                timeout = engine.attend(events)
            except BaseException as error:
                # nobody would be answered any more: better that everybody hears of it
                if not engine.give_up(error):
                    raise
                return
            if "stopped" in events:
                return
            del engine
