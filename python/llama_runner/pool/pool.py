"""``RunnerPool``: runners by name, loaded when they are asked for and unloaded when there is no room."""

from __future__ import annotations

import asyncio
import copy as copying
import difflib
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from llama_runner._check import check_bool, check_float, check_int, check_process
from llama_runner._single import Single
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    InvalidArgumentError,
    LlamaRunnerError,
    OutOfMemoryError,
    PoolTimeoutError,
)
from llama_runner.measures import _size
from llama_runner.pool.checkout import AsyncCheckout, Checkout, PooledModel
from llama_runner.pool.copies import (
    Copy,
    Entry,
    State,
    Ticket,
    bytes_of,
    conversation_of,
    resume,
    room_for,
)
from llama_runner.pool.loader import Loader
from llama_runner.pool.spec import DownloadProgress, ModelSpec
from llama_runner.pool.worker_runner import WorkerRunner

__all__ = ["RunnerPool"]

LONGEST = 10 * 365 * 86400.0  # a timeout that a lock still takes


class RunnerPool(Single):
    """Several models, or several copies, in one place.

        pool = RunnerPool({"small": "smollm2-135m", "big": {"model": path, "n_ctx": 4096}}, memory_budget=8 << 30)
        with pool.get("small") as runner:
            print(runner.generate("The capital of France is", max_tokens=8).text)

    Parameters
    ----------
    models : names, and for each a model as ``LlamaRunner`` takes it, or a mapping with one under ``"model"`` and any
        option of ``LlamaRunner``, ``"copies"`` and ``"worker"`` for this one.
    memory_budget : bytes that everything loaded may take together, on the host and all devices; None for no bound.
        Counted by ``core.estimate_memory`` before a load: weights, keys and values, buffers for computing. Not in
        it: Python, what a worker process takes besides, and what ``host_cache_bytes`` allows a runner to keep.
    copies : how many runners of one model there may be at a time. In one process they share the weights, as do names
        with the same file and the same options for it.
    workers : whether each runner is in a process of its own, a ``WorkerRunner``, which may die without this one.
    max_restarts, restart_window : for workers, as ``WorkerRunner`` has them.
    download_progress : called with (what, bytes done, bytes in all or None) while a model is fetched.
    **options : options of ``LlamaRunner`` for all models.

    Any thread may call any method, and asyncio ``aget``. Nothing is loaded before it is asked for. Loading, fetching
    and closing happen outside of the pool's lock, in threads of its own: meanwhile other models can be taken. A load
    that fails raises its error to all who waited for it, and the next ``get`` tries again.

    When there is no room for a load, runners that nobody has are closed, the least recently used first; where that
    is not enough, the load waits until someone returns one. Of those who wait, the first for whom there is room goes
    first, so that a large model keeps no small one waiting, and may itself wait for as long as small ones are never
    all returned. Who takes a second runner while holding a first can wait for someone who does the same: use a
    timeout. What ``generate_stateful`` has said is kept, as tokens, when a runner is unloaded, and goes on in the
    copy that takes its place.

    In the child of a fork every method raises ForkedProcessError.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        *,
        memory_budget: int | None = None,
        copies: int = 1,
        workers: bool = False,
        max_restarts: int = 3,
        restart_window: float = 60.0,
        download_progress: DownloadProgress | None = None,
        **options: Any,
    ) -> None:
        self._closed = True
        self._pid = os.getpid()
        if not isinstance(models, Mapping):
            raise ArgumentTypeError(f"models is a mapping of names to models, not {type(models).__name__}")
        if not models:
            raise InvalidArgumentError("models is empty: a pool needs one at least")
        if memory_budget is not None:
            memory_budget = check_int("memory_budget", memory_budget, 1, 2**63 - 1)
        self.memory_budget = memory_budget
        check_int("copies", copies, 1, 1024)
        check_bool("workers", workers)
        check_int("max_restarts", max_restarts, 0, 2**31 - 1)
        check_float("restart_window", restart_window, 0.0)
        self._download_progress = download_progress
        specs = [
            ModelSpec.parse(name, given, copies=copies, workers=workers, options=options)
            for name, given in models.items()
        ]
        self._entries = {spec.name: Entry(spec) for spec in specs}
        self._tickets: list[Ticket] = []
        self._threads: set[threading.Thread] = set()
        self._clock = itertools.count(1)
        self._lock = threading.RLock()
        self._loader = Loader(
            self._lock,
            self._copies,
            lambda: self._closed,
            max_restarts=max_restarts,
            restart_window=restart_window,
        )
        self._changed = threading.Condition(self._lock)
        self._closed = False

    # --- taking a runner

    def get(self, name: str, *, timeout: float | None = None, exclusive: bool = False) -> Checkout:
        """A runner for a ``with`` block: ``with pool.get("small") as runner``.

        Any number of blocks may have the same runner, which batches what they generate; with ``exclusive`` nobody
        else has it meanwhile, and it waits until one is idle. Of several copies the least busy is given; when all
        are taken, one more is loaded, as far as ``copies`` and free memory allow.

        Entering the block raises what the load raises, OutOfMemoryError when the model can never fit into the budget
        (with both numbers), PoolTimeoutError after ``timeout`` seconds, ClosedError. InvalidArgumentError for an
        unknown name. After the block the runner may be closed at any time.
        """
        return Checkout(self, self._entry(name), check_timeout(timeout), check_bool("exclusive", exclusive))

    def aget(self, name: str, *, timeout: float | None = None, exclusive: bool = False) -> AsyncCheckout:
        """``get`` for asyncio: ``async with pool.aget("small") as runner``."""
        return AsyncCheckout(
            self, self._entry(name), check_timeout(timeout), check_bool("exclusive", exclusive)
        )

    def preload(self, *names: str, timeout: float | None = None) -> None:
        """Load these models now, one after another, if they are not; errors as for ``get``."""
        for entry in [self._entry(name) for name in names]:
            self._give_back(self._take(entry, check_timeout(timeout), False))

    def pin(self, name: str, *, timeout: float | None = None) -> None:
        """Load a model and never unload its copies to make room, until ``unpin``; errors as for ``get``."""
        entry = self._entry(name)
        copy = self._take(entry, check_timeout(timeout), False)
        with self._lock:
            entry.pinned = True
        self._give_back(copy)

    def unpin(self, name: str) -> None:
        """Let a model be unloaded again; no error where it was not pinned."""
        entry = self._entry(name)
        with self._lock:
            entry.pinned = False
            self._advance()

    def unload(self, name: str) -> int:
        """Close the copies of a model that nobody has, pinned or not; how many there were."""
        entry = self._entry(name)
        with self._lock:
            idle = [copy for copy in entry.copies if copy.idle]
        closed = 0
        try:
            for copy in idle:
                with self._lock:
                    if not copy.idle:
                        continue  # taken meanwhile
                    copy.state = State.CLOSING
                self._shut(copy)
                closed += 1
        finally:
            with self._lock:
                self._advance()
        return closed

    def info(self) -> tuple[PooledModel, ...]:
        """Each name and what is loaded of it, in the order in which they were given."""
        self._check_process()
        found = []
        with self._lock:
            before: list[Copy] = []
            for entry in self._entries.values():
                using = [copy for copy in entry.copies if copy.begun]
                size = bytes_of([*before, *using]) - bytes_of(before)
                before += using
                loaded = [copy for copy in entry.copies if copy.runner is not None]
                restarts = sum(c.runner.restarts for c in loaded if isinstance(c.runner, WorkerRunner))
                found.append(
                    PooledModel(
                        name=entry.name,
                        copies=len(loaded),
                        max_copies=entry.spec.copies,
                        checkouts=sum(copy.checkouts for copy in entry.copies),
                        waiting=sum(ticket.entry is entry for ticket in self._tickets),
                        bytes=size,
                        last_use=entry.last_use,
                        restarts=entry.restarts + restarts,
                        pinned=entry.pinned,
                        worker=entry.spec.worker,
                    )
                )
        return tuple(found)

    @property
    def memory_used(self) -> int:
        """Bytes of everything that is loaded, or being loaded, as the budget counts them."""
        self._check_process()
        with self._lock:
            return bytes_of(copy for copy in self._copies() if copy.begun)

    # --- tickets

    def _entry(self, name: str) -> Entry:
        self._check_open()
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name={name!r}: it is a str, not {type(name).__name__}")
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, self._entries))}"
            raise InvalidArgumentError(f"this RunnerPool has no model {name!r}: {hint}")
        return self._entries[name]

    def _enqueue(self, entry: Entry, exclusive: bool) -> Ticket:
        with self._lock:
            self._check_open()
            ticket = Ticket(entry, exclusive)
            self._tickets.append(ticket)
            self._advance()
            return ticket

    def _take(self, entry: Entry, timeout: float | None, exclusive: bool) -> Copy:
        ticket = self._enqueue(entry, exclusive)
        try:
            return ticket.future.result(timeout)
        except BaseException as error:
            late = self._abandon(ticket)
            if isinstance(error, TimeoutError) and late is not None:
                raise late from None
            raise

    async def _atake(self, entry: Entry, timeout: float | None, exclusive: bool) -> Copy:
        ticket = self._enqueue(entry, exclusive)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(ticket.future), timeout)
        except BaseException as error:
            late = self._abandon(ticket)
            if isinstance(error, TimeoutError) and late is not None:
                raise late from None
            raise

    def _abandon(self, ticket: Ticket) -> PoolTimeoutError | None:
        """Take back a ticket whose owner does not wait any more; the error for one who waited too long.

        None where the ticket's answer is an error. A copy that came in the last moment is returned.
        """
        with self._lock:
            future = ticket.future
            if ticket in self._tickets:
                self._tickets.remove(ticket)
                future.cancel()
            elif not future.cancelled():
                if future.exception() is not None:
                    return None
                self._give_back(future.result())
            return PoolTimeoutError(f"no runner for {ticket.entry.name!r} in time: {self._why(ticket)}")

    def _why(self, ticket: Ticket) -> str:
        """What a ticket waits for, for a message."""
        entry = ticket.entry
        if entry.measuring:
            return "the model is being found and measured"
        if ticket.load is not None or any(copy.state is State.LOADING for copy in entry.copies):
            return "the model is being loaded"
        if len(entry.copies) >= entry.spec.copies:
            taken = "taken" if ticket.exclusive else "taken with exclusive=True"
            return f"{len(entry.copies)} of {entry.spec.copies} copies are loaded, and all are {taken}"
        if self.memory_budget is None or entry.measured is None:
            return "it came too late"
        return (
            f"it takes {_size(entry.measured.total)}, and {_size(bytes_of(self._copies()))} of "
            f"{_size(self.memory_budget)} are used by runners that were not returned"
        )

    def _give_back(self, copy: Copy) -> None:
        if os.getpid() != self._pid:
            return  # the child of a fork leaves a block that its parent entered
        with self._lock:
            copy.checkouts -= 1
            copy.exclusive = copy.exclusive and copy.checkouts > 0
            self._touch(copy)
            self._advance()

    def _touch(self, copy: Copy) -> None:
        copy.last_use = next(self._clock)
        copy.entry.last_use = time.time()

    # --- what happens next; all of it under the lock, and none of it waits

    def _copies(self) -> list[Copy]:
        return [copy for entry in self._entries.values() for copy in entry.copies]

    def _advance(self) -> None:
        """Give everyone who waits what can be given now, in the order in which they came."""
        for copy in self._copies():
            if copy.idle and copy.runner is not None and copy.runner.closed:  # by who had it
                self._spawn(f"close-{copy.entry.name}", self._retire, copy)
                copy.state = State.CLOSING
        for ticket in list(self._tickets):
            if ticket.future.cancelled():
                self._tickets.remove(ticket)
            elif ticket.load is None:
                self._serve(ticket)
        self._changed.notify_all()

    def _serve(self, ticket: Ticket) -> None:
        entry = ticket.entry
        usable = [
            copy
            for copy in entry.copies
            if copy.state is State.READY
            and not copy.exclusive
            and not (ticket.exclusive and copy.checkouts)
            and copy.runner is not None
            and not copy.runner.closed
        ]
        best = min(usable, key=lambda copy: (copy.checkouts, copy.index), default=None)
        if best is not None and best.checkouts == 0:
            return self._grant(ticket, best)
        loading = [copy for copy in entry.copies if copy.state is State.LOADING]
        if not ticket.exclusive and loading:  # one at a time: the others share what there is
            if best is not None:
                return self._grant(ticket, best)
            ticket.load = loading[0]
            return None
        if len(entry.copies) < entry.spec.copies:
            self._load_for(ticket, optional=best is not None)
        if ticket.load is None and best is not None:
            self._grant(ticket, best)
        return None

    def _grant(self, ticket: Ticket, copy: Copy) -> None:
        self._tickets.remove(ticket)
        if ticket.future.set_running_or_notify_cancel():
            copy.checkouts += 1
            copy.exclusive = ticket.exclusive
            self._touch(copy)
            ticket.future.set_result(copy)

    def _refuse(self, ticket: Ticket, error: BaseException) -> None:
        self._tickets.remove(ticket)
        if ticket.future.set_running_or_notify_cancel():
            ticket.future.set_exception(again(error))

    def _load_for(self, ticket: Ticket, *, optional: bool) -> None:
        """Start to load a copy, if there is room. An optional one shares what is busy otherwise, and closes nothing."""
        entry = ticket.entry
        if entry.measured is None:
            if not entry.measuring:
                try:
                    self._spawn(f"measure-{entry.name}", self._measure, entry)
                    entry.measuring = True
                except OutOfMemoryError as error:
                    self._refuse(ticket, error)
            return
        copy = Copy(entry, entry.free_index(), entry.measured)
        if not optional and self.memory_budget is not None:
            pinned = [other for other in self._copies() if other.entry.pinned]
            if bytes_of([*pinned, copy]) > self.memory_budget:
                if entry.copies:
                    return  # one more can never be, and so it waits for one that is
                self._refuse(ticket, self._never_fits(entry, copy, pinned))
                return
        evicted = (
            [] if self.memory_budget is None else room_for(copy, self._copies(), self.memory_budget, optional)
        )
        if evicted is None:
            return
        for other in evicted:
            other.state = State.CLOSING
        entry.copies.append(copy)
        ticket.load = copy
        try:
            self._spawn(f"load-{entry.name}", self._load, copy, evicted)
        except OutOfMemoryError as error:
            for other in evicted:
                other.state = State.READY
            entry.copies.remove(copy)
            self._refuse(ticket, error)

    def _never_fits(self, entry: Entry, copy: Copy, pinned: list[Copy]) -> OutOfMemoryError:
        assert self.memory_budget is not None
        alone = bytes_of([copy])
        besides = f" besides the {bytes_of(pinned)} of what is pinned" if alone <= self.memory_budget else ""
        return OutOfMemoryError(
            f"{entry.name!r} takes {alone} bytes ({_size(alone)}) with n_ctx={copy.measured.n_ctx}, and the memory "
            f"budget is {self.memory_budget} ({_size(self.memory_budget)}): it can never fit{besides}"
        )

    # --- what takes its time, in threads of its own, without the lock

    def _spawn(self, what: str, target: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                target(*args)
            finally:
                with self._lock:
                    self._threads.discard(thread)
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name=f"llama-runner-{what}")
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.discard(thread)
            raise OutOfMemoryError(f"no thread can be started to {what}: {error}") from error

    def _measure(self, entry: Entry) -> None:
        measured, problem = None, None
        try:
            measured = entry.spec.measure(self._download_progress)
        except BaseException as error:
            problem = error
        with self._lock:
            entry.measuring = False
            entry.measured = measured
            if problem is not None:
                for ticket in [t for t in self._tickets if t.entry is entry and t.load is None]:
                    self._refuse(ticket, problem)
            self._advance()

    def _load(self, copy: Copy, evicted: list[Copy]) -> None:
        runner, problem = None, None
        try:
            for other in evicted:
                self._shut(other)
            with self._lock:
                copy.begun = True
            runner = self._loader.open(copy)
        except BaseException as error:
            problem = error
        with self._lock:
            for other in evicted:  # those that could not be closed are what they were
                if other.runner is not None and not other.runner.closed:
                    other.state = State.READY
            if runner is not None:
                copy.runner = runner
                copy.state = State.READY
                conversation = copy.entry.conversations.pop(copy.index, None)
                if conversation is not None:
                    resume(runner, conversation)
                self._touch(copy)
            else:
                self._forget(copy)
            for ticket in [ticket for ticket in self._tickets if ticket.load is copy]:
                ticket.load = None
                if problem is not None:
                    self._refuse(ticket, problem)
            self._advance()

    def _shut(self, copy: Copy) -> None:
        """Close a copy that is marked as closing, and take it from the books when it is gone."""
        runner = copy.runner
        assert runner is not None
        try:
            conversation = conversation_of(runner)
            self._loader.close(copy)
        except BaseException:
            with self._lock:
                copy.state = State.READY
            raise
        with self._lock:
            if isinstance(runner, WorkerRunner):
                copy.entry.restarts += runner.restarts
            if len(conversation):
                copy.entry.conversations[copy.index] = conversation
            self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        entry = copy.entry
        if copy in entry.copies:
            entry.copies.remove(copy)
        copy.runner = None
        if not entry.copies:
            entry.measured = None

    def _retire(self, copy: Copy) -> None:
        try:
            self._shut(copy)
        except LlamaRunnerError:
            return  # someone is inside of it still: when the books are looked at next, it is tried again
        with self._lock:
            self._advance()

    # --- lifetime

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has been called."""
        return self._closed

    def close(self, timeout: float | None = 0.0) -> None:
        """Close every runner and end every worker; closing twice is no error.

        From now on nothing more is given out, and who waits gets ClosedError. Runners that were not returned are
        waited for up to ``timeout`` seconds, None for as long as it takes, and then closed as they are: generations
        in them end, and their next call raises ClosedError. A load under way is cancelled, that of a worker waited
        for. In the child of a fork it does nothing.
        """
        check_timeout(timeout)
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            for ticket in list(self._tickets):
                self._refuse(ticket, ClosedError("this RunnerPool was closed"))
            if timeout != 0:
                self._changed.wait_for(
                    lambda: not any(copy.checkouts for copy in self._copies()),
                    timeout,
                )
            self._changed.wait_for(lambda: not (self._threads - {threading.current_thread()}))
            todo = [copy for copy in self._copies() if copy.state is State.READY]
            for copy in todo:
                copy.state = State.CLOSING
        problem = None
        for copy in todo:
            try:
                self._shut(copy)
            except Exception as error:  # the others are to be closed all the same
                problem = error
        if problem is not None:
            raise problem

    def _check_process(self) -> None:
        check_process(self._pid, "RunnerPool")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise ClosedError("this RunnerPool is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        if self._closed:
            return "<RunnerPool closed>"
        loaded = [entry.name for entry in self._entries.values() if entry.copies]
        return f"<RunnerPool of {', '.join(self._entries)}; loaded: {', '.join(loaded) or 'nothing'}>"


def check_timeout(value: float | None) -> float | None:
    """A timeout in seconds, or None."""
    return None if value is None else min(check_float("timeout", value, 0.0), LONGEST)


def again(error: BaseException) -> BaseException:
    """A copy of an error for each who gets it: raising one object in several threads would mix their tracebacks."""
    try:
        twin = copying.copy(error)
        twin.__cause__ = error.__cause__
        return twin if type(twin) is type(error) else error
    except Exception:
        return error
