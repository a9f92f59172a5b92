"""``Scheduler``: who gets into the loop, on which cells, and who gives way.

Every method wants the engine's lock held; those that touch the KV memory say that they want the loop paused as well.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from llama_runner.core import DecodeLoop
from llama_runner.engine.counters import Times
from llama_runner.engine.demand import Demand
from llama_runner.engine.prefix import Match, common_length
from llama_runner.engine.request import Request
from llama_runner.engine.residency import Attached, Residency
from llama_runner.errors import LlamaRunnerError

__all__ = ["Scheduler"]

Tokens = npt.NDArray[np.int32]
WORTH_WAITING = 16  # tokens that another is about to compute for both
WORTH_A_MARK = 16  # tokens that a checkpoint saves the next prompt that begins alike


class Scheduler:
    """The queue of an engine, what runs, and the admission of the one to the other: by cells that are counted."""

    def __init__(
        self,
        loop: DecodeLoop,
        residency: Residency,
        quotas: dict[str, int],
        *,
        countless: bool,
        max_running: int,
    ) -> None:
        self.loop = loop
        self.residency = residency
        self.memory = residency.memory
        self.n_ctx = loop.context.n_ctx
        self.max_running = max_running
        self.waiting: list[Request] = []
        self.running: dict[int, Request] = {}
        self.demand = Demand(residency, self.running, quotas, countless=countless)
        self._last_turns: dict[str | None, int] = {}  # of owners that have something waiting or running
        self._n_turns = 0
        self._ended: list[Request] = []
        self._failed = 0  # decodes, when it was last looked what they had cost
        self.preemptions = self.finished = self.failed = self.cancelled = 0
        self.queue, self.first_token, self.inter_token = Times(), Times(), Times()

    # --- the queue

    def push(self, request: Request) -> None:
        """Have a request, or one that gave way, wait for its turn."""
        self.waiting.append(request)

    def next_deadline(self) -> float | None:
        """When the first of those that wait runs out of time, by ``time.perf_counter``."""
        return min((r.deadline for r in self.waiting if r.deadline is not None), default=None)

    def expire(self) -> bool:
        """End those that wait and are cancelled, or out of time; whether there were any."""
        now = time.perf_counter()
        n_ended = len(self._ended)
        for request in list(self.waiting):
            late = request.deadline is not None and request.deadline <= now
            if not late and not any(member.cancelled for member in request.group):
                continue
            self.waiting.remove(request)
            left = []
            for member in request.group:
                if late or member.cancelled:
                    self.end(member, "timeout" if late else "cancelled")
                else:
                    left.append(member)
            if left:
                left[0].lead(left[1:])
                self.push(left[0])
        return len(self._ended) > n_ended

    def end(self, request: Request, how: str, error: str | None = None, why: str = "") -> None:
        """End a request that is not in the loop."""
        request.job.finish(how, error, why)
        self.note_end(request)

    # --- room

    def _make_room(self, cells: int) -> bool:
        most = self.n_ctx - self.demand.promised() - cells
        if self.demand.used() <= most:
            return True
        if not self.demand.could_hold(cells):
            return False
        while self.demand.used() > most:
            if not self.residency.evict_one():
                return False
        return True

    def _find_room(self, request: Request, cells: int) -> bool:
        if self.demand.countless or self._make_room(cells):
            return True
        weaker = self._weaker(request)
        if not weaker or not self.demand.could_hold(cells, weaker):
            return False
        for other in weaker:
            self.preempt(other)
            if self._make_room(cells):
                return True
        return False

    def _weaker(self, request: Request) -> list[Request]:
        """Those running that give way to a request, the first to do so first."""
        return self._in_turn(other for other in self.running.values() if other.priority < request.priority)

    @staticmethod
    def _in_turn(requests: Iterable[Request]) -> list[Request]:
        """The lowest priority gives way first, and of these the last to come."""
        return sorted(requests, key=lambda request: (request.priority, -request.tag))

    # --- admission, while the loop is paused

    def admit(self) -> None:
        """Start what is waiting, each in its turn, as far as there is room."""
        failed = self.loop.counters["failed_decodes"]
        if failed != self._failed and not self.residency.parts:
            self._failed = failed
            self.residency.drop_lost()
        self._admit()
        while self.waiting and not self.running:
            # what gave way for the sake of one that ended: nothing that runs will bring the manager back here
            self._admit()

    def _turns(self) -> Iterator[Request]:
        """Those that wait: of the largest priority one whose owner has the fewest running.

        Of these one whose owner's last turn is the longest ago, and of its own the oldest.
        """
        running = Counter(request.owner for request in self.running.values())
        here = {*running, *(request.owner for request in self.waiting)}
        last = self._last_turns = {owner: turn for owner, turn in self._last_turns.items() if owner in here}

        def place(request: Request) -> tuple[int, int, int, int]:
            return -request.priority, running[request.owner], last.get(request.owner, 0), request.tag

        turns = [(place(request), request) for request in self.waiting]
        heapq.heapify(turns)
        while turns:
            found, request = heapq.heappop(turns)
            if found != place(request):  # another of its owner's has been started since
                heapq.heappush(turns, (place(request), request))
                continue
            yield request
            if request.tag in self.running:
                running[request.owner] += len(request.group)
                self._n_turns += 1
                last[request.owner] = self._n_turns

    def _admit(self) -> None:
        for request in self._turns():
            if self.demand.over_quota(request):
                continue
            weaker = self._in_the_way(request)
            if weaker is None:
                break
            if self._shares_soon(request):
                continue
            for other in weaker:
                self.preempt(other)
            self.waiting.remove(request)
            try:
                started = self._start(request)
            except BaseException as error:  # nobody else knows of the request now
                if (
                    request.tag not in self.running
                    and isinstance(error, LlamaRunnerError)
                    and self.loop.usable
                ):
                    for member in request.group:
                        self.end(member, "error", "decode", f"{type(error).__name__}: {error}")
                    continue
                if request.tag not in self.running:
                    self.push(request)  # so that it is answered when the engine closes
                raise
            if not started:
                self.push(request)
                break

    def _in_the_way(self, request: Request) -> list[Request] | None:
        """Where as many run as may, those of a lower priority that make place for it; None where there are too few.

        None as well where there would be no room for it with all of them out.
        """
        too_many = len(self.running) + len(request.group) - self.max_running
        if too_many <= 0 or not self.running:
            return []
        weaker = self._weaker(request)
        if len(weaker) < too_many:
            return None
        if not self.demand.countless:
            cached, restored, *_ = self.foresee(request.job.tokens, request.key, self._most(request))
            if not self.demand.could_hold(self.demand.need_together(request) - cached + restored, weaker):
                return None
        return weaker[:too_many]

    def _known(self, request: Request, tokens: Tokens) -> Match:
        """What is known of a request's tokens, what running ones have read until now included."""
        found = self.residency.tree.match(tokens, request.key)
        best, longest = None, found.resident
        for other in self.running.values() if self.residency.parts else ():
            if other.key != request.key:
                continue
            held = other.n_resident
            common = common_length(other.prompt[:held], tokens)
            if common == len(other.prompt) < held:
                common = common_length(other.job.tokens[:held], tokens)
            if common > longest:
                best, longest = other, common
        if best is None:
            return found
        assert best.seq_id is not None
        self.residency.publish(best.seq_id, best.job.tokens[: best.n_resident], request.key)
        self._pin(best)
        return self.residency.tree.match(tokens, request.key)

    def foresee(self, tokens: Tokens, key: Hashable, most: int) -> tuple[int, int, int, int | None]:
        """What a prompt would find, now: tokens cached, of those restored, tokens known, and where that differs.

        The loop is paused; nothing is changed.
        """
        found = self.residency.tree.match(tokens, key)
        cached, resident = self.residency.usable(found, most)
        known, differs = found.length, found.differs_from
        for other in self.running.values() if self.residency.parts else ():
            if other.key == key:
                log = other.job.tokens[: other.n_resident]
                common = common_length(log, tokens)
                if common > known:
                    known, differs = common, int(log[common]) if common < len(log) else None
                cached, resident = max(cached, min(common, most)), max(resident, min(common, most))
        return cached, cached - resident, known, differs if known < len(tokens) else None

    def _shares_soon(self, request: Request) -> bool:
        """Whether another is about to read what this one begins with: it is computed once, for both."""
        request.sharing = False
        tokens = request.job.tokens
        most = request.most
        known, _ = self.residency.usable(self.residency.tree.match(tokens, request.key), most)
        alike = [
            (other, min(common_length(other.prompt, tokens), most))
            for other in self.running.values()
            if other.key == request.key and not self.demand.is_read_for(other)
        ]
        if self.residency.parts:
            known = max([known, *(min(common, other.n_resident) for other, common in alike)])
        for other, common in alike:
            if other.priority < request.priority or common - max(other.n_resident, known) < WORTH_WAITING:
                continue
            if not self.residency.parts and not self._mark(other, common):
                continue
            other.job.watch(common)
            request.sharing = True
            return True
        return False

    def _mark(self, request: Request, at: int) -> bool:
        """Let a running request leave a checkpoint after ``at`` tokens; whether it does."""
        if request.mark is not None:
            return request.mark[0] == at
        if self.residency.n_free == 0:
            return False
        seq_id = self.residency.take_seq()
        if seq_id is None:
            return False
        self.residency.busy.add(seq_id)
        request.mark = (at, seq_id)
        request.job.mark(at, seq_id)
        return True

    def _mark_where_others_left(self, request: Request, known: int, held: int) -> None:
        """Leave a checkpoint where this prompt goes another way than a known one: a third may come."""
        others = [
            common_length(other.prompt, request.prompt)
            for other in self.running.values()
            if other is not request and other.key == request.key and other.leader is not request
        ]
        at = min(max([known, *others]), request.most)
        if at - held >= WORTH_A_MARK:
            self._mark(request, at)

    def _start(self, request: Request) -> bool:
        """Give a request its sequence and put it into the loop; False when it has to wait."""
        tokens = request.job.tokens
        most = self._most(request)
        found = self._known(request, tokens)
        differs = found.differs_from
        ready: tuple[list[int], Attached] | str = ""
        endless = not self.demand.bounded(request)
        # where nothing runs that could make room, even what it would have been spared has to go; and what has no end
        # goes on for as long as there is room
        for keep, least in ((True, False), (False, False), (True, True), (False, True)):
            if least and not endless:
                break
            ready = self._prepare(request, tokens, most, keep=keep, least=least)
            if not isinstance(ready, str):
                break
            if self.running:
                return False
        if isinstance(ready, str):
            for member in request.group:
                if endless and member.job.progress["n_sampled"]:
                    self.end(member, "length")
                else:
                    self.end(member, "error", "no_room", ready)
            return True
        seqs, attached = ready
        followers = request.followers
        request.note(attached.n_resident, attached.restored, found.length, differs)
        self._place(request, attached.seq_id, attached.n_resident)
        for follower, seq_id in zip(followers, seqs[1:], strict=True):
            follower.note_shared(request)
            self._place(follower, seq_id, 0)
        self._pin(request)
        if not self.residency.parts:
            self._mark_where_others_left(request, found.length, attached.n_resident)
        try:
            self.loop.add(request.job, [follower.job for follower in followers])
        except BaseException:  # such as a chain that somebody else uses: the request's own error
            for member in request.group:
                del self.running[member.tag]
                self._settle(member)
            raise
        request.lead([])
        return True

    @staticmethod
    def _most(request: Request) -> int:
        """How many of its tokens at most may be taken from the cache."""
        if not request.preempted:
            return request.most
        most = request.n_tokens - 1
        # what it has not read itself it has not scored
        return min(most, max(request.most, request.n_resident)) if request.scores else most

    def _prepare(
        self, request: Request, tokens: Tokens, most: int, *, keep: bool, least: bool
    ) -> tuple[list[int], Attached] | str:
        """Room and sequences for a request and its followers, what is known attached to the first; or why not.

        ``keep``: what it may use is not evicted for its sake. ``least``: room for a token each is enough.
        """
        found = self.residency.tree.match(tokens, request.key)
        usable = self.residency.usable(found, most)[1] if keep else 0
        anchor = self.residency.anchor(found, most) if keep else self.residency.tree.root(request.key)
        anchor.pins += 1
        seqs: list[int] = []
        try:
            want = self.demand.least_together if least else self.demand.need_together
            cells = want(request) - usable
            if not self._find_room(request, cells):
                return (
                    f"{cells} more cells are needed and the context has {self.n_ctx}, of which "
                    f"{self.demand.used()} are in use and pinned: clear_context() frees the conversation's; or make "
                    "n_ctx larger, or n and max_tokens smaller"
                )
            for _ in request.group:
                seq_id = self.residency.take_seq()
                if seq_id is None:
                    self._release(seqs)
                    return (
                        f"{len(request.group)} sequences are needed and too few of "
                        f"{self.residency.context.n_seq_max} are not "
                        "pinned: make n_seq_max larger, or pin fewer"
                    )
                seqs.append(seq_id)
            # it may have been cut in two meanwhile, or gone
            found = self.residency.tree.match(tokens, request.key)
            try:
                return seqs, self.residency.attach(seqs[0], found, most)
            except BaseException:
                self._release(seqs[1:])
                raise
        finally:
            self.residency.unpin(anchor)

    def _release(self, seqs: list[int]) -> None:
        for seq_id in seqs:
            self.residency.release(seq_id)

    def _place(self, request: Request, seq_id: int, n_resident: int) -> None:
        request.seq_id = seq_id
        self.residency.busy.add(seq_id)
        self.loop.place(request.job, seq_id, n_resident)
        self.running[request.tag] = request
        self.demand.grant(request)
        if not request.queued:
            request.queued = True
            self.queue.add(request.admitted - request.submitted)

    def _pin(self, request: Request) -> None:
        """What the request shares with others must not be evicted while it runs."""
        self._unpin(request)
        if self.residency.parts:
            tokens = request.job.tokens
            request.node = self.residency.anchor(self.residency.tree.match(tokens, request.key), len(tokens))
            request.node.pins += 1

    def _unpin(self, request: Request) -> None:
        if request.node is not None:
            self.residency.unpin(request.node)
            request.node = None

    # --- out of the loop, while it is paused

    def preempt(self, request: Request) -> None:
        """Take a request out of the loop, its cells into the tiers; it goes on later as if nothing had been.

        Those that wait for it to read their prompt come along; one of these alone loses the others.
        """
        taken = [self.running.pop(job.progress["tag"]) for job in self.loop.take_out(request.job)]
        if not taken:
            return
        request.lead(taken[1:])
        self.push(request)  # before what may fail: closing answers those that wait
        for member in taken:
            member.note_preempted()
            member.preempted += 1
            self.preemptions += 1
            self._settle(member)
            member.announce()  # what it has to say the loop will not tell any more

    def _settle(self, request: Request) -> None:
        """Write what the request's sequence holds into the tree, or give the sequence back."""
        assert request.seq_id is not None
        self._settle_mark(request)
        seq_id, request.seq_id = request.seq_id, None
        request.grant = None
        self.residency.busy.discard(seq_id)
        held = request.n_resident
        sound = held > 0 and self.memory.seq_pos_max(seq_id) + 1 == held
        self.residency.settle(seq_id, request.job.tokens[: held if sound else 0], request.key)
        self._unpin(request)

    def _settle_mark(self, request: Request) -> None:
        """Make the checkpoint that a request left part of the tree, or give its sequence back."""
        if request.mark is None:
            return
        (at, seq_id), request.mark = request.mark, None
        self.residency.busy.discard(seq_id)
        marked = bool(request.job.progress["marked"])
        self.residency.settle(seq_id, request.job.tokens[: at if marked else 0], request.key)

    def settle_marks(self) -> None:
        """Checkpoints that running requests have left meanwhile."""
        for request in self.running.values():
            if request.mark is not None and request.job.progress["marked"]:
                self._settle_mark(request)

    def settle_ended(self) -> None:
        """What has ended: into the tree, so that whoever has seen the end of it finds it there."""
        for job in self.loop.ended():
            request = self.running.pop(job.progress["tag"], None)
            if request is not None:
                try:
                    self._settle(request)
                finally:
                    self.note_end(request)

    def relieve(self) -> None:
        """See to those that are held back: by their owner's quota, or since the memory is full."""
        if not self.loop.counters["n_stalled"]:
            return  # whatever wanted room has been seen to since, or has ended
        asking = [r for r in self.running.values() if r.grant is not None and r.n_tokens > r.grant]
        for request in asking:
            self._grant(request)
        if not asking:
            self._relieve_memory()
        self.loop.unstall()

    def _grant(self, request: Request) -> None:
        """Let it have more of its owner's quota; where that is used up, the last of the owner's to come gives way."""
        owned = self._in_turn(other for other in self.running.values() if other.owner == request.owner)
        for last in owned:
            if request.tag not in self.running or self.demand.grant(request):
                return
            self.preempt(last)

    def _relieve_memory(self) -> None:
        """Evict, else the last to come gives way."""
        if self.residency.evict_one():
            return
        # those that wait for another to read their prompt hold nothing, and come along with that
        order = self._in_turn(r for r in self.running.values() if not self.demand.is_read_for(r))
        if len(order) > 1:
            self.preempt(order[0])
        elif order and not self._tries_again(order[0]):
            self._end_full(order[0])

    @staticmethod
    def _tries_again(request: Request) -> bool:
        """Whether it has not been held back here before: what has gone since it was may have left room."""
        progress = request.job.progress
        come = int(progress["n_computed"] + progress["n_sampled"])
        again, request.held_back_at = request.held_back_at != come, come
        return again

    def _end_full(self, request: Request) -> None:
        """It has the memory to itself, with what is pinned, and that is full: the end of the context has come early."""
        if request.job.progress["n_sampled"] and not self.demand.bounded(request):
            self.loop.end(request.job, "length")
        else:
            why = f"the context of {self.n_ctx} cells is full and holds nothing else that could go"
            self.loop.end(request.job, "error", "no_room", why)

    def drop(self, request: Request) -> None:
        """After the loop has stopped: let go of a request, and keep what it held as a prefix."""
        del self.running[request.tag]
        self._settle(request)

    # --- what is counted

    def note_end(self, request: Request) -> None:
        """Count a request that has ended, and tell whoever reads it."""
        progress = request.job.progress
        self.finished += 1
        self.failed += progress["end"] == "error"
        self.cancelled += progress["end"] == "cancelled"
        if progress["first_us"] and request.admitted:
            waited = request.admitted - request.submitted
            self.first_token.add(waited + max(0, progress["first_us"] - progress["added_us"]) / 1e6)
            if progress["n_sampled"] > 1:
                span = (progress["last_us"] - progress["first_us"]) / 1e6
                self.inter_token.add(span / (progress["n_sampled"] - 1))
                self.inter_token.worst = max(self.inter_token.worst, progress["worst_gap_us"] / 1e6)
        self._ended.append(request)
        request.engine = None
        request.announce()

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended
