"""``Engine``: continuous batching over one context.

The native loop decodes and samples; this decides who gets into it, on which cells, and who gives way. A thread of its own
(the manager) waits for what the loop reports; everything else runs in the thread of the caller, under one lock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_runner.core import Context, DecodeLoop, Job
from llama_runner.engine.prefix import Match, Node
from llama_runner.engine.request import Request
from llama_runner.engine.residency import CacheCounters, Residency
from llama_runner.engine.sampling import sampler_chain
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    LlamaRunnerError,
)
from llama_runner.params import GenerationParams

__all__ = ["Engine", "EngineCounters"]

Tokens = npt.NDArray[np.int32]
UNBOUNDED_RESERVE = 256  # cells set aside for a generation without max_tokens; what is more is found when it comes to that


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done since it was made."""

    requests: int
    preemptions: int
    waiting: int
    running: int
    loop: dict[str, Any]
    cache: CacheCounters


class Engine:
    """Runs any number of generations over one context, which it owns until ``close()``.

    Any thread may call any method. ``max_waiting`` requests may queue; one more gets ContextBusyError. Up to
    ``host_cache_bytes`` of keys and values that had to leave the KV memory are kept in host memory, and then up to
    ``disk_cache_bytes`` in the folder ``disk_cache``. ``quotas`` is the most cells that an owner's requests may use.
    """

    def __init__(
        self,
        context: Context,
        *,
        max_waiting: int = 1024,
        host_cache_bytes: int = 256 << 20,
        disk_cache: str | os.PathLike[str] | None = None,
        disk_cache_bytes: int = 4 << 30,
        quotas: dict[str, int] | None = None,
        slice_seconds: float = 0.1,
        pace: float = 2.5,
    ) -> None:
        model = context.model
        self.context = context
        self.vocab = model.vocab
        self.max_waiting = max_waiting
        self.quotas = dict(quotas or {})
        folder = None if disk_cache is None else Path(disk_cache)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._countless = model.is_recurrent  # a state a sequence, however long it is
        states = model.is_recurrent or model.is_hybrid or (model.n_swa > 0 and not context.swa_full)
        self.residency = Residency(
            context,
            parts=not states,
            host_bytes=host_cache_bytes,
            disk_dir=folder,
            disk_bytes=disk_cache_bytes,
            cells_used=self._cells_used,
        )
        self._lock = threading.RLock()
        self._waiting: list[Request] = []
        self._running: dict[int, Request] = {}
        self._tags = itertools.count(1)
        self._requests = self._preemptions = 0
        self._closed = False
        self.loop = DecodeLoop(context, slice_seconds=slice_seconds, pace=pace)
        self._manager = threading.Thread(target=self._manage, name="llama-runner-engine", daemon=True)
        self._manager.start()

    # --- requests

    def submit(
        self,
        prompt: Tokens,
        params: GenerationParams,
        *,
        n: int = 1,
        priority: int = 0,
        owner: str | None = None,
        notify: Callable[[], None] | None = None,
        wait: bool = True,
    ) -> list[Request]:
        """Queue ``n`` generations that share one prompt, and start them if there is room.

        With ``wait`` false the manager starts them, so that this returns at once; else it takes up to a step.

        Raises ContextOverflowError for what can never fit, ContextBusyError when the queue is full.
        """
        n_ctx = self.context.n_ctx
        length = len(prompt)
        if length >= n_ctx:
            raise ContextOverflowError(
                f"the prompt has {length} tokens and the context holds {n_ctx}, one of which the answer needs: shorten "
                f"the prompt or make n_ctx at least {length + 1}",
                length,
                n_ctx,
            )
        limit = n_ctx - length if params.max_tokens is None else min(params.max_tokens, n_ctx - length)
        base = params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little")
        requests = []
        for i in range(n):
            seed = (base + i) % (2**32 - 1)
            chain = sampler_chain(params, self.vocab, seed, prompt)
            requests.append(
                Request(
                    self.vocab,
                    prompt,
                    params,
                    chain,
                    tag=next(self._tags),
                    seed=seed,
                    limit=limit,
                    priority=priority,
                    owner=owner,
                    notify=notify,
                )
            )
        leader = requests[0]
        leader.followers = requests[1:]
        for follower in leader.followers:
            follower.leader = leader
        self._enqueue(leader, wait)
        return requests

    def feed(
        self,
        tokens: Tokens,
        *,
        want: str = "",
        want_from: int = 1,
        priority: int = 0,
        owner: str | None = None,
        notify: Callable[[], None] | None = None,
        wait: bool = True,
    ) -> Request:
        """Bring tokens into the cache without sampling; ``want`` is what they are to leave, as for ``core.Job``."""
        if len(tokens) > self.context.n_ctx:
            raise ContextOverflowError(
                f"{len(tokens)} tokens, and the context holds {self.context.n_ctx}",
                len(tokens),
                self.context.n_ctx,
            )
        request = Request(
            self.vocab,
            tokens,
            GenerationParams(),
            None,
            tag=next(self._tags),
            limit=0,
            priority=priority,
            owner=owner,
            notify=notify,
            want=want,
            want_from=want_from,
        )
        self._enqueue(request, wait)
        return request

    def _enqueue(self, request: Request, wait: bool) -> None:
        with self._lock:
            self._check_open()
            if len(self._waiting) >= self.max_waiting:
                raise ContextBusyError(
                    f"{len(self._waiting)} requests are waiting already (max_waiting): try again when some are done"
                )
            self._requests += 1 + len(request.followers)
            self._waiting.append(request)
            self._waiting.sort(key=lambda other: (-other.priority, other.tag))
            if wait:
                self._admit()
        if not wait:
            self.loop.wake()

    def cancel(self, request: Request) -> None:
        """End a request where it is, within a step; what it has sampled stays. Returns at once. Any thread."""
        request.cancelled = True
        request.job.cancel()
        if not self._closed:
            self.loop.wake()

    def pin(self, tokens: Tokens, instead_of: Node | None = None) -> Node | None:
        """Keep what is cached of ``tokens`` from being evicted, and no longer what ``instead_of`` ends."""
        with self._lock:
            if instead_of is not None:
                instead_of.pins -= 1
            found = self.residency.tree.match(tokens)
            if found.length == 0:
                return None
            found.node.pins += 1
            return found.node

    @contextlib.contextmanager
    def paused(self) -> Iterator[Context]:
        """The context between two steps; the loop goes on afterwards. Wait for it no longer than a step."""
        with self._lock:
            self._check_open()
            self.loop.pause()
            try:
                yield self.context
            finally:
                self.loop.resume()

    # --- admission: by cells that are counted, never by hope

    def _cells_used(self) -> int:
        return 0 if self._countless else self.context.memory.n_used

    def _promised(self) -> int:
        """Cells that running requests have not taken yet, and may."""
        return sum(
            max(0, self._need(request) - request.job.progress["n_resident"])
            for request in self._running.values()
        )

    @staticmethod
    def _need(request: Request) -> int:
        bounded = request.params.max_tokens is not None
        return len(request.prompt) + (request.limit if bounded else min(request.limit, UNBOUNDED_RESERVE))

    def _admit(self) -> None:
        """Start what is waiting, in its order, as far as there is room."""
        if not self._waiting:
            return
        self.loop.pause()
        try:
            self._settle_ended()
            for request in list(self._waiting):
                if self._over_quota(request):
                    continue
                if not self._start(request):
                    break
                self._waiting.remove(request)
        finally:
            self.loop.resume()

    def _over_quota(self, request: Request) -> bool:
        quota = self.quotas.get(request.owner) if request.owner is not None else None
        if quota is None:
            return False
        used = sum(self._need(other) for other in self._running.values() if other.owner == request.owner)
        return used > 0 and used + self._need(request) > quota

    def _start(self, request: Request) -> bool:
        """Give a request its sequence and put it into the loop; False when it has to wait."""
        tokens = request.job.tokens
        tree = self.residency.tree
        found = tree.match(tokens)
        most = len(tokens) - 1 if request.preempted else request.most
        group = 1 + len(request.followers)
        need = len(tokens) - min(found.resident, most) + (self._need(request) - len(request.prompt)) * group
        found.node.pins += 1
        try:
            if not self._countless and not self._find_room(request, need):
                return self._give_up(request, need)
            seqs = [self.residency.take_seq() for _ in request.followers]
            attached = None if None in seqs else self.residency.attach(tokens, most)
            if attached is None:
                for seq_id in seqs:
                    if seq_id is not None:
                        self.residency.release(seq_id)
                return False
        finally:
            found.node.pins -= 1
        self._note(request, attached.n_resident, attached.restored, attached.match)
        request.seq_id = attached.seq_id
        self.residency.busy.add(attached.seq_id)
        self._pin(request)
        self.loop.place(request.job, attached.seq_id, attached.n_resident)
        for follower, seq_id in zip(request.followers, seqs, strict=True):
            assert seq_id is not None
            follower.seq_id = seq_id
            self.residency.busy.add(seq_id)
            follower.admitted = request.admitted
            follower.cached_tokens = follower.known_tokens = len(tokens)
            follower.reason = "it shares the prompt of another that was sampled with it"
            self.loop.place(follower.job, seq_id, 0)
            self._running[follower.tag] = follower
        self._running[request.tag] = request
        self.loop.add(request.job, [follower.job for follower in request.followers])
        request.followers = []
        return True

    def _pin(self, request: Request) -> None:
        """What the request shares with others must not be evicted while it runs."""
        assert request.seq_id is not None
        found = self.residency.tree.match(request.job.tokens)
        request.node = found.node
        found.node.pins += 1

    def _unpin(self, request: Request) -> None:
        if request.node is not None:
            request.node.pins -= 1
            request.node = None

    def _note(self, request: Request, cached: int, restored: int, found: Match) -> None:
        """What ``explain`` and ``usage`` will say; of a request that was preempted, what they said the first time."""
        if request.admitted:
            return
        request.admitted = time.perf_counter()
        request.cached_tokens, request.restored_tokens, request.known_tokens = cached, restored, found.length
        differs = found.differs_from
        if differs is not None:
            request.cache_differs_at = self.vocab.token_to_piece(differs, special=True).decode(
                errors="replace"
            )
        if cached == len(request.prompt) - 1:
            request.reason = "all of it was known; the last token is computed for its logits"
        elif cached < found.length:
            request.reason = "this memory cannot go back to the middle of what it holds, or a saved state was damaged"
        elif found.length == 0:
            request.reason = "nothing that is cached begins like it"
        elif differs is None:
            request.reason = "the rest is new"
        else:
            request.reason = "the cached text goes on differently"

    def _find_room(self, request: Request, need: int) -> bool:
        capacity = self.context.n_ctx - self._promised()
        if self.residency.make_room(need, capacity):
            return True
        for other in sorted(self._running.values(), key=lambda r: (r.priority, -r.tag)):
            if other.priority >= request.priority:
                break
            self._preempt(other)
            if self.residency.make_room(need, self.context.n_ctx - self._promised()):
                return True
        return False

    def _give_up(self, request: Request, need: int) -> bool:
        """Whether a request that finds no room is to wait: True when it has been ended instead."""
        if self._running:
            return False
        request.job.finish(
            "error",
            "no_room",
            f"{need} more cells are needed and the context has {self.context.n_ctx}, of which "
            f"{self._cells_used()} are in use: clear_context() frees the conversation's; or make n_ctx larger, or n and "
            "max_tokens smaller",
        )
        for follower in request.followers:
            follower.job.finish("error", "no_room", "the prompt that it shares does not fit")
        self._announce(request)
        return True

    def _preempt(self, request: Request) -> None:
        """Take a request out of the loop, its cells into host memory; it goes on later as if nothing had been."""
        if not self.loop.take_out(request.job):
            return
        del self._running[request.tag]
        self._settle(request)
        request.preempted += 1
        self._preemptions += 1
        self._waiting.append(request)
        self._waiting.sort(key=lambda other: (-other.priority, other.tag))

    def _settle(self, request: Request) -> None:
        """Write what the request's sequence holds into the tree, or give the sequence back."""
        assert request.seq_id is not None
        self.residency.busy.discard(request.seq_id)
        held = request.job.progress["n_resident"]
        last = self.context.memory.seq_pos_max(request.seq_id) + 1
        node = None
        if held and last == held:
            node = self.residency.settle(request.seq_id, request.job.tokens[:held])
        if node is None or not self.residency.holds(node, request.seq_id):
            self.residency.release(request.seq_id)
        request.seq_id = None
        self._unpin(request)

    # --- the manager

    def _manage(self) -> None:
        try:
            while True:
                events = self.loop.wait(self._until_deadline())
                with self._lock:
                    if self._closed:
                        return
                    self._expire()
                    self._collect(events)
                if "stopped" in events:
                    return
        except BaseException:
            # nobody would be answered any more: better that everybody hears of it
            self.close()
            raise

    def _until_deadline(self) -> float | None:
        with self._lock:
            times = [request.deadline for request in self._waiting if request.deadline is not None]
        return max(0.0, min(times) - time.perf_counter()) if times else None

    def _collect(self, events: set[str]) -> None:
        for job in self.loop.ready():
            request = self._running.get(job.progress["tag"])
            if request is not None:
                self._announce(request)
        if events & {"ended", "room"} or ("wake" in events and self._waiting):
            self.loop.pause()
            try:
                self._settle_ended()
                if "room" in events:
                    self._relieve()
                self._admit()
            finally:
                self.loop.resume()

    def _settle_ended(self) -> None:
        """While paused, so that whatever its reader has seen the end of is in the tree."""
        for job in self.loop.ended():
            request = self._running.pop(job.progress["tag"], None)
            if request is not None:
                self._settle(request)
                self._announce(request)

    def _announce(self, request: Request) -> None:
        if request.notify is not None:
            request.notify()

    def _relieve(self) -> None:
        """The memory is full in the middle of generations: evict, else the last to come gives way."""
        if not self.residency.evict_one():
            order = sorted(self._running.values(), key=lambda r: (r.priority, -r.tag))
            if len(order) > 1:
                self._preempt(order[0])
            elif order:
                self.loop.fail(
                    order[0].job,
                    "no_room",
                    f"the context of {self.context.n_ctx} cells is full and holds nothing else that could go",
                )
        self.loop.unstall()

    def _expire(self) -> None:
        now = time.perf_counter()
        for request in list(self._waiting):
            if request.cancelled:
                self._waiting.remove(request)
                self._end_waiting(request, "cancelled")
            elif request.deadline is not None and request.deadline <= now:
                self._waiting.remove(request)
                self._end_waiting(request, "timeout")

    def _end_waiting(self, request: Request, how: str) -> None:
        for member in [request, *request.followers]:
            member.job.finish(how)
            self._announce(member)
        request.followers = []

    # --- what there is

    @property
    def counters(self) -> EngineCounters:
        """What was counted since the start."""
        with self._lock:
            return EngineCounters(
                self._requests,
                self._preemptions,
                len(self._waiting),
                len(self._running),
                self.loop.counters,
                self.residency.counters,
            )

    def clear(self) -> None:
        """Forget every prefix that no request uses."""
        with self.paused():
            self.residency.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Engine is closed")

    def close(self) -> None:
        """End every request with ClosedError, promptly, and stop the threads; the context stays. Twice is no error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting, self._waiting = self._waiting, []
        self.loop.close()
        for request in waiting:
            for member in [request, *request.followers]:
                with contextlib.suppress(LlamaRunnerError):
                    member.job.finish("error", "closed", "the engine was closed before its turn came")
                self._announce(member)
        for request in self._running.values():
            self._announce(request)
        self._running.clear()
        if threading.current_thread() is not self._manager:
            self._manager.join(timeout=10)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
