"""``Engine``: continuous batching over one context.

The native loop decodes and samples; the scheduler decides who gets into it; a thread of the engine's own (the manager)
waits for what the loop reports. Everything else runs in the thread of the caller, under one lock.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_float, check_int, check_path, check_process
from llama_runner._single import Single
from llama_runner.core import Context, DecodeLoop, SamplerChain
from llama_runner.engine.adapter_sets import Adapters, AdapterSets
from llama_runner.engine.counters import EngineCounters
from llama_runner.engine.kv_map import KvMap, Owner
from llama_runner.engine.manager import Manager
from llama_runner.engine.prefix import Node
from llama_runner.engine.request import Request, why_computed
from llama_runner.engine.residency import Residency
from llama_runner.engine.sampling import sampler_chain
from llama_runner.engine.scheduler import Scheduler
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    LlamaRunnerError,
    LlamaRuntimeError,
)
from llama_runner.params import GenerationParams
from llama_runner.results import Explanation, IdlePrefix

__all__ = ["Adapters", "Engine", "LogitsProcessor"]

Tokens = npt.NDArray[np.int32]
_live: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the interpreter, before the loops and contexts go away under their engines."""
    for engine in list(_live):
        if not engine.forked and engine._own_lock.acquire(
            timeout=10
        ):  # a daemon thread may be inside paused() for ever
            engine._own_lock.release()
            engine.close(spill=False)


atexit.register(_close_all)
LogitsProcessor = Callable[[list[Tokens], npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]


class Engine(Single):
    """Runs any number of generations over one context, which it owns until ``close()``. Any thread may call any method.

    Parameters
    ----------
    context : with ``kv_unified`` and at least two sequences. Use it only inside ``paused()``.
    max_waiting : requests that may queue; one more gets ContextBusyError.
    max_running : how many generate together; None for as many as the context has sequences.
    host_cache_bytes : host memory for keys and values that had to leave the KV memory.
    disk_cache, disk_cache_bytes : a folder for what had to leave that, and for what is cached when the engine is
        closed; the next engine of the same model and shape of context finds it there.
    quotas : the most cells that an owner's running requests may use together.
    slice_seconds : how long a step may take, and with that how promptly a cancel is felt.
    pace : how many times its usual length a step may take for the sake of reading prompts while others generate.
    """

    def __init__(
        self,
        context: Context,
        *,
        max_waiting: int = 4096,
        max_running: int | None = None,
        host_cache_bytes: int = 256 << 20,
        disk_cache: str | os.PathLike[str] | None = None,
        disk_cache_bytes: int = 4 << 30,
        quotas: Mapping[str, int] | None = None,
        slice_seconds: float = 0.1,
        pace: float = 2.5,
    ) -> None:
        self._closed = True
        self.pid = os.getpid()  # the process that it works in
        check_int("n_seq_max", context.n_seq_max, 2, 256)
        self.context = context
        self.vocab = context.model.vocab
        self.max_waiting = check_int("max_waiting", max_waiting, 1, 2**31 - 1)
        running = context.n_seq_max - 1 if max_running is None else max_running
        check_int("max_running", running, 1, context.n_seq_max - 1)
        limits = checked_quotas({} if quotas is None else quotas)
        check_float("slice_seconds", slice_seconds, 0.001, 100)
        check_float("pace", pace, 1, 1000)
        able = context._able
        kind = MEMORY_KINDS[able["kind"]]
        # a window, even one that is held in full, loses cells of its own that its end attends to no more: llama.cpp
        # lets the next batch have them, and what begins in its middle could not be computed any more
        parts = kind == "attention"
        self.memory_kind = kind
        self._own_lock = threading.RLock()
        self._paused_by = 0  # the thread that is inside paused()
        self._tags = itertools.count(1)
        self._requests = 0
        self._inbox_lock = threading.Lock()
        self._inbox: deque[Request] = deque()
        self._unpinned: deque[Node] = deque()
        self._processors: dict[int, int] = {}  # how many requests use each
        check_int("host_cache_bytes", host_cache_bytes, 0, 2**62)
        folder = "" if disk_cache is None else check_path(disk_cache, "disk_cache", absolute=False)
        check_int("disk_cache_bytes", disk_cache_bytes, 0, 2**62)
        self.fingerprint = context.fingerprint
        """What a saved state has to fit: model, KV types, rope settings. Asked for before the loop has the context."""
        self.loop = DecodeLoop(context, slice_seconds=slice_seconds, pace=pace)
        try:
            context.memory.clear()  # what an earlier engine, or its owner, left there is nobody's
            self.residency = Residency(
                context,
                parts=parts,
                can_save=bool(able["known"]),
                host_bytes=host_cache_bytes,
                disk=None if disk_cache is None else Path(folder).expanduser(),
                disk_bytes=disk_cache_bytes,
                fingerprint=json.dumps(self.fingerprint, sort_keys=True),
            )
        except BaseException:
            self.loop.close()
            raise
        self.adapter_sets = AdapterSets(self.loop)
        self.scheduler = Scheduler(
            self.loop, self.residency, limits, countless=kind == "recurrent", max_running=running
        )
        self._closed = False
        self._closing = threading.RLock()
        self._closer = 0  # the thread that is at it
        self.ended = False
        """Whether all that closing does has been done."""
        self._manager = Manager(self)
        self._manager.start()
        _live.add(self)

    # --- requests

    def submit(
        self,
        prompt: Tokens,
        params: GenerationParams,
        *,
        n: int = 1,
        priority: int = 0,
        owner: str | None = None,
        logits_processor: LogitsProcessor | None = None,
        adapters: Adapters | None = None,
        notify: Callable[[], None] | None = None,
        chain: SamplerChain | None = None,
        shown_tokens: Sequence[int] = (),
        endless: bool = False,
    ) -> list[Request]:
        """Queue ``n`` generations that share one prompt; returns at once.

        ``chain`` is a sampler to go on with, in place of a new one; it is the engine's until the generation has ended.
        ``shown_tokens`` are special tokens that are written out in the text, where others have none.
        With ``endless`` it gets its cells as it comes to them, as one without ``max_tokens`` does.
        Raises ContextOverflowError for what can never fit, ContextBusyError when the queue is full.
        """
        n_ctx, length = self.context.n_ctx, len(prompt)
        if length >= n_ctx:
            raise ContextOverflowError(
                f"the prompt has {length} tokens and the context holds {n_ctx}, one of which the answer needs: shorten "
                f"the prompt or make n_ctx at least {length + 1}",
                length,
                n_ctx,
            )
        check_int("n", n, 1, self.scheduler.max_running)
        self._check_open()
        limit = self._limit(length, params.max_tokens, owner, n, endless)
        base = params.seed if params.seed is not None else self.new_seed()
        seeds = [(base + i) % (2**32 - 1) for i in range(n)]
        chains = (
            [sampler_chain(params, self.vocab, seed, prompt) for seed in seeds] if chain is None else [chain]
        )
        key, adapter_set = self._adapter_set(adapters, n)
        with self._given_back(key, n), self._inbox_lock:
            processor = -1 if logits_processor is None else self.loop.add_processor(logits_processor)
            requests = [
                Request(
                    self.vocab, prompt, params, each, tag=next(self._tags), seed=seed, n_ctx=n_ctx, limit=limit,
                    priority=priority, owner=owner, notify=notify, processor=processor, adapters=adapter_set, key=key,
                    shown_tokens=shown_tokens, endless=endless,
                )
                for seed, each in zip(seeds, chains, strict=True)
            ]  # fmt: skip
            requests[0].lead(requests[1:])
            try:
                self._enqueue(requests[0])
            except BaseException:
                if processor >= 0 and processor not in self._processors:
                    self.loop.remove_processor(processor)
                raise
        return requests

    def _limit(self, length: int, max_tokens: int | None, owner: str | None, n: int, endless: bool) -> int:
        """Most tokens to sample: what was asked for, as far as the context goes, and else as far as the quota does."""
        room = self.context.n_ctx - length
        if max_tokens is not None and max_tokens <= room:
            if not endless:
                return max_tokens
            room = max_tokens
        quota = self.scheduler.demand.quota(owner) if isinstance(owner, str) else None
        return room if quota is None else max(1, min(room, quota // n - length))

    def feed(
        self,
        tokens: Tokens,
        *,
        want: str = "",
        want_from: int = 1,
        priority: int = 0,
        owner: str | None = None,
        adapters: Adapters | None = None,
        timeout: float | None = None,
        notify: Callable[[], None] | None = None,
    ) -> Request:
        """Bring tokens into the cache without sampling; ``want`` is what they are to leave, as for ``core.Job``."""
        if len(tokens) > self.context.n_ctx:
            raise ContextOverflowError(
                f"{len(tokens)} tokens, and the context holds {self.context.n_ctx}",
                len(tokens),
                self.context.n_ctx,
            )
        self._check_open()
        key, adapter_set = self._adapter_set(adapters, 1)
        with self._given_back(key, 1), self._inbox_lock:
            request = Request(
                self.vocab, tokens, GenerationParams(timeout=timeout), None, tag=next(self._tags),
                n_ctx=self.context.n_ctx, limit=0, priority=priority, owner=owner, notify=notify, want=want,
                want_from=want_from, adapters=adapter_set, key=key,
            )  # fmt: skip
            self._enqueue(request)
        return request

    def _enqueue(self, request: Request) -> None:
        """Hand a request to the manager; the caller holds the lock of the inbox."""
        scheduler, demand = self.scheduler, self.scheduler.demand
        if request.owner is not None and not isinstance(request.owner, str):
            raise ArgumentTypeError(
                f"owner={request.owner!r:.60}: it is a str, the name that a quota goes by"
            )
        quota = demand.quota(request.owner)
        cells = demand.need(request) * len(request.group)
        if quota is not None and cells > quota:
            raise ContextOverflowError(
                f"it may come to {cells} cells, and the quota of {request.owner!r} is {quota}: make max_tokens smaller",
                cells,
                quota,
            )
        together = demand.need_together(request)
        if together > self.context.n_ctx and not demand.countless:
            raise ContextOverflowError(
                f"{len(request.group)} generations of a prompt of {len(request.prompt)} tokens may come to {together} "
                f"cells, and the context has {self.context.n_ctx}: make n or max_tokens smaller, or n_ctx larger",
                together,
                self.context.n_ctx,
            )
        waiting = len(scheduler.waiting) + len(self._inbox)
        if waiting >= self.max_waiting:
            raise ContextBusyError(
                f"{waiting} requests are waiting already (max_waiting): try again when some are done"
            )
        self._check_open()
        self._requests += len(request.group)
        if request.processor >= 0:
            self._processors[request.processor] = self._processors.get(request.processor, 0) + len(
                request.group
            )
        for member in request.group:
            member.engine = self
        self._inbox.append(request)
        self.loop.wake()

    def prefix_key(self, adapters: Adapters | None) -> Hashable:
        """Prefixes are shared among requests with the same: None without adapters, else their digests and scales."""
        return self.adapter_sets.key(adapters)

    @staticmethod
    def new_seed() -> int:
        """A seed that nobody chose."""
        return int.from_bytes(os.urandom(4), "little") % (2**32 - 1)

    def foresee(
        self, tokens: Tokens, *, generates: bool = True, adapters: Adapters | None = None
    ) -> Explanation:
        """What ``submit`` (or, without ``generates``, ``feed``) would find cached, and why the rest would be computed.

        Nothing is computed or changed. True as long as nobody else comes; takes up to a step.
        """
        key = self.prefix_key(adapters)
        most = len(tokens) - generates
        with self.paused():
            cached, restored, known, differs = self.scheduler.foresee(tokens, key, most)

        def text(token: int | None) -> str:
            return (
                ""
                if token is None
                else self.vocab.token_to_piece(token, special=True).decode(errors="replace")
            )

        return Explanation(
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            restored_tokens=restored,
            computed_tokens=len(tokens) - cached,
            known_tokens=known,
            prompt_differs_at=text(int(tokens[known]) if known < len(tokens) else None),
            cache_differs_at=text(differs),
            reason=why_computed(cached, most, known, differs),
        )

    def cancel(self, request: Request) -> None:
        """End a request where it is, within a step; what it has sampled stays. Returns at once. Any thread."""
        request.cancelled = True
        request.job.cancel()
        if not self._closed and not self.forked:
            self.loop.wake()

    def pin(self, tokens: Tokens, instead_of: Node | None = None, key: Hashable = None) -> Node | None:
        """Keep what is cached of ``tokens`` from being evicted, and no longer what ``instead_of`` ends."""
        with self._lock:
            try:
                if len(tokens) and not self._closed:
                    with self._paused():  # what has ended is to be found
                        pass
                tree = self.residency.tree
                found = tree.match(tokens, key)
                if found.length == 0:
                    return None
                node = found.node
                if found.inside < len(node.tokens) and self.residency.parts:
                    node = tree.split(node, found.inside)
                node.pins += 1
                return node
            finally:
                if instead_of is not None:
                    self.residency.unpin(instead_of)
                    if self.scheduler.waiting and not self._closed:
                        self.loop.wake()

    def unpin_soon(self, node: Node) -> None:
        """Undo a pin, without waiting for anything: for what is collected in the middle of no matter what."""
        self._unpinned.append(node)
        if not self._closed and not self.forked:
            self.loop.wake()

    def _unpin_dropped(self) -> bool:
        """Undo these pins; whether there were any."""
        any_there = bool(self._unpinned)
        while self._unpinned:
            self.residency.unpin(self._unpinned.popleft())
        return any_there

    @contextlib.contextmanager
    def _paused(self) -> Iterator[Context]:
        paused: list[None] = []
        try:
            # a single call of C: whenever an interrupt comes, it is known whether there is something to resume
            paused.extend(itertools.starmap(self.loop.pause, [()]))
            self.scheduler.settle_ended()  # what has ended is a prefix by now, whoever looks
            yield self.context
        finally:
            if paused:
                self.loop.resume()

    @property
    def waits_for_caller(self) -> bool:
        """Whether the calling thread holds the engine up, and would wait for itself if it waited for a result."""
        return self.loop.inside or self._paused_by == threading.get_ident()

    @contextlib.contextmanager
    def paused(self) -> Iterator[Context]:
        """The context between two steps; the loop goes on afterwards. Wait for it no longer than a step.

        What is changed in its memory meanwhile, the engine does not know of: look, and leave it as it is.
        """
        with self._lock:
            self._check_open()
            with self._paused() as context:
                self._unpin_dropped()
                outer, self._paused_by = self._paused_by, threading.get_ident()
                try:
                    yield context
                finally:
                    self._paused_by = outer

    # --- the manager

    def attend(self, events: set[str]) -> float | None:
        """See to what the loop has reported; returns the seconds to the next deadline of what waits. The manager's."""
        with self._lock:
            if self._closed:
                return None
            freed = self._unpin_dropped()
            expired = self.scheduler.expire()
            self._collect(events, freed or expired)
            first = self.scheduler.next_deadline()
        return None if first is None else max(0.0, first - time.perf_counter())

    def give_up(self, error: BaseException) -> bool:
        """Close after an error of the manager's own; whether everybody concerned hears of it, so that it need not."""
        if type(error) is LlamaRuntimeError:
            # an assertion failed inside llama.cpp: the context takes nothing any more
            self._close("poisoned", str(error))
            return True
        told = self._closed  # it is being closed under the manager, as at the end of the interpreter
        self.close()
        return told

    def _collect(self, events: set[str], room: bool) -> None:
        """``room``: whether there may be some for what waits, whatever the events."""
        scheduler = self.scheduler
        for job in self.loop.ready():
            request = scheduler.running.get(job.progress["tag"])
            if request is not None:
                request.announce()
        new = self._take_inbox()
        if new or events & {"ended", "room"} or ((room or "wake" in events) and scheduler.waiting):
            with self._paused():
                scheduler.settle_marks()
                if "room" in events:
                    scheduler.relieve()
                scheduler.admit()
        for request in scheduler.take_ended():
            self._give_back(request)

    def _take_inbox(self) -> bool:
        """Put what was submitted into the queue; whether there was anything."""
        any_new = False
        while self._inbox:
            self.scheduler.push(self._inbox.popleft())
            any_new = True
        if any_new:
            self.scheduler.expire()  # what was cancelled before it came here
        return any_new

    def _give_back(self, request: Request) -> None:
        """Let go of adapters and processors that no request names any more."""
        if request.processor >= 0:
            with self._inbox_lock:
                self._processors[request.processor] -= 1
                if not self._processors[request.processor]:
                    del self._processors[request.processor]
                    self.loop.remove_processor(request.processor)
        self._release_set(request.key, 1)

    def _adapter_set(self, adapters: Adapters | None, n: int) -> tuple[Hashable, int]:
        lock = self._lock
        if self.adapter_sets.key(adapters) is None:
            return (
                None,
                0,
            )  # who holds the lock may wait for a step's end: those that come together are to be read together
        with lock:
            return self.adapter_sets.take(adapters, n, self._paused)

    def _release_set(self, key: Hashable, n: int) -> None:
        if key is not None:
            with self._lock:
                self.adapter_sets.release(key, n, self._paused)

    @contextlib.contextmanager
    def _given_back(self, key: Hashable, n: int) -> Iterator[None]:
        """What a submission that fails has named is not in use."""
        try:
            yield
        except BaseException:
            self._release_set(key, n)
            raise

    # --- what there is

    @property
    def counters(self) -> EngineCounters:
        """What was counted since the start."""
        with self._lock:
            scheduler = self.scheduler
            return EngineCounters(
                requests=self._requests,
                finished=scheduler.finished,
                failed=scheduler.failed,
                cancelled=scheduler.cancelled,
                preemptions=scheduler.preemptions,
                waiting=len(scheduler.waiting),
                sharing=sum(request.sharing for request in scheduler.waiting),
                running=len(scheduler.running),
                queue=scheduler.queue.latency(),
                first_token=scheduler.first_token.latency(),
                inter_token=scheduler.inter_token.latency(),
                loop=self.loop.counters,
                cache=self.residency.snapshot(),
            )

    def kv_map(self) -> KvMap:
        """Who owns each cell of the KV memory, and since when it has not been of use; takes up to a step."""
        with self.paused() as context:
            now = time.monotonic()
            owners = {}
            for request in self.scheduler.running.values():
                assert request.seq_id is not None
                held = request.n_resident
                owners[request.seq_id] = Owner("request", request.owner, request.tag, held, 0.0, True)
                if request.mark is not None:
                    owners[request.mark[1]] = Owner("checkpoint", request.owner, request.tag, 0, 0.0, True)
            for seq_id, node in self.residency.holders():
                if seq_id not in owners:
                    pinned = node.pins > 0
                    owners[seq_id] = Owner("prefix", None, None, node.end, now - node.used_at, pinned)
            return KvMap(tuple(context.memory.cells()), owners)

    def export(self, tokens: Tokens, *, adapters: Adapters | None = None) -> bytes:
        """The state of cached tokens, as bytes for ``adopt``, in this process or another; computes them where needed.

        Raises StateError for a memory whose state cannot be saved, ContextOverflowError.
        """
        key = self.prefix_key(adapters)
        for _ in range(3):  # in between, they may have been evicted
            request = self.feed(tokens, adapters=adapters)
            while not request.ended:
                request.chunk()
            with self.paused():
                blob = self.residency.export(tokens, key)
            if blob is not None:
                return blob
        raise ContextOverflowError(
            f"the {len(tokens)} tokens do not stay in the cache for as long as it takes to save them: "
            f"n_ctx={self.context.n_ctx} is too small for all that runs",
            len(tokens),
            self.context.n_ctx,
        )

    def adopt(self, tokens: Tokens, blob: bytes | memoryview, *, adapters: Adapters | None = None) -> bool:
        """Have a saved state in the cache; False where there is no room. StateError for one that does not fit."""
        key = self.prefix_key(adapters)
        with self.paused():
            return self.residency.adopt(tokens, blob, key)

    def next_to_go(self, most: int = 32) -> list[IdlePrefix]:
        """Prefixes that nobody uses, the least recently used first; at most ``most`` of them."""
        with self.paused():
            now = time.monotonic()
            found = []
            for node in self.residency.leaves()[:most]:
                tail = self.vocab.detokenize(node.tokens[-16:], unparse_special=True)
                found.append(IdlePrefix(node.end, len(node.tokens), now - node.used_at, tail[-60:]))
            return found

    def evict_down_to(self, cells: int) -> tuple[int, int]:
        """Evict prefixes that nobody uses until at most ``cells`` are used; cells used before and after."""
        with self.paused():
            before = after = self.scheduler.demand.used()
            while after > cells and self.residency.evict_one():
                after = self.scheduler.demand.used()
            return before, after

    def forget(self, tokens: Tokens, *, adapters: Adapters | None = None) -> None:
        """Let go of what is cached of ``tokens`` and of nothing else."""
        key = self.prefix_key(adapters)
        with self.paused():
            self.residency.forget(tokens, key)

    def clear(self) -> None:
        """Forget every prefix that no request uses and nothing pins, in every tier."""
        with self.paused():
            self.residency.clear()

    @property
    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        """One lock for all of it, which a thread may take again, and a logits processor not at all.

        Take it in a ``with`` statement: no interrupt comes between taking this very object and the block.
        """
        check_process(self.pid, "Engine")  # there a thread that is gone may hold it for ever
        if self.loop.inside:
            raise ContextBusyError("this is a logits processor: the engine waits for it and answers nothing")
        return self._own_lock

    def _check_open(self) -> None:
        check_process(self.pid, "Engine")
        if self._closed:
            raise ClosedError("this Engine is closed")

    @property
    def forked(self) -> bool:
        """Whether it is another process's: this one was forked off that."""
        return os.getpid() != self.pid

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has been called."""
        return self._closed

    def close(self, *, spill: bool = True) -> None:
        """End every request with ClosedError, promptly, and stop the threads; the context stays. Twice is no error.

        With a ``disk_cache``, what is cached is written there first, unless ``spill`` is false. What an interrupt has
        broken off is done by the next call. Raises ContextBusyError in a logits processor, with nothing closed.
        """
        self._close("closed", "the engine was closed before its turn came", spill)

    def _close(self, error: str, why: str, spill: bool = False) -> None:
        if self.forked:  # it is the parent's
            self._closed = True
            return
        # whoever is at it waits for the manager, and for who holds the lock: these two must not wait for him. A signal
        # handler may come in anywhere
        waits = threading.current_thread() is self._manager or self._own_lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            self._closed = True
        if self._closer == threading.get_ident():
            return
        if not waits:
            with self._closing:
                self._end_once(error, why, spill)
        elif self._closing.acquire(blocking=False):
            try:
                self._end_once(error, why, spill)
            finally:
                self._closing.release()

    def _end_once(self, error: str, why: str, spill: bool) -> None:
        try:
            self._closer = threading.get_ident()
            if not self.ended:
                self._end(error, why, spill)
                self.ended = True
        finally:
            self._closer = 0

    def _end(self, error: str, why: str, spill: bool) -> None:
        with self._lock, self._inbox_lock:
            waiting = [*self.scheduler.waiting, *self._inbox]
            for member in (each for request in waiting for each in request.group):
                member.job.finish("error", error, why)
        self.loop.close()
        with self._lock, self._inbox_lock:
            for request in self.scheduler.running.values():
                if not request.job.progress["end"]:  # it had not come to the loop yet, or was out of it
                    request.job.finish("error", error, why)
            ended = [each for request in waiting for each in request.group]
            for member in (*ended, *self.scheduler.running.values()):
                member.engine = None
                member.announce()
            self.scheduler.waiting = []
            self._inbox.clear()
        if threading.current_thread() is not self._manager:
            self._manager.join(timeout=10)
        with self._lock:
            if spill:
                self._spill()
            self.residency.tiers.close()
            self.scheduler.running.clear()

    def _spill(self) -> None:
        """What is cached goes to disk; requests that were cut off count as well."""
        if not self.residency.tiers.disk_limit:
            return
        try:
            _ = self.context.memory.n_used
        except LlamaRunnerError:  # it is closed, or unusable
            return
        for request in list(self.scheduler.running.values()):
            self.scheduler.drop(request)
        self.residency.spill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def checked_quotas(quotas: Any) -> dict[str, int]:
    """Cells by owner."""
    if not isinstance(quotas, Mapping) or not all(isinstance(owner, str) for owner in quotas):
        raise ArgumentTypeError(f"quotas={quotas!r:.60}: a dict of owners, each a str, and cells")
    return {owner: check_int(f"quotas[{owner!r}]", n, 1, 2**62) for owner, n in quotas.items()}


MEMORY_KINDS = ("none", "attention", "sliding-window", "recurrent", "hybrid", "unknown")
