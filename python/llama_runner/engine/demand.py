"""``Demand``: how many cells requests hold, are promised, and may come to want.

Every method wants the engine's lock held and the loop paused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from llama_runner.engine.request import Request
from llama_runner.engine.residency import Residency

__all__ = ["Demand"]

# cells set aside for a generation without max_tokens, always that many ahead of it: what is more is found when it comes
# to that, or another gives way
UNBOUNDED_RESERVE = 256
WORTH_A_GRANT = 16  # cells of a quota; for fewer an owner's other request gives way


class Demand:
    """Counts cells for the scheduler, whose ``running`` requests it looks at."""

    def __init__(
        self, residency: Residency, running: Mapping[int, Request], quotas: dict[str, int], *, countless: bool
    ) -> None:
        self.residency = residency
        self.n_ctx = residency.context.n_ctx
        self.running = running
        self.quotas = quotas
        self.countless = countless  # a state a sequence, however long it is: cells do not count

    # --- one request

    def bounded(self, request: Request) -> bool:
        """Whether it said how many tokens it wants, and not just as many as the context holds."""
        most = request.params.max_tokens
        return not request.endless and most is not None and len(request.prompt) + most <= self.n_ctx

    def need(self, request: Request) -> int:
        """Cells that a request may come to hold; of one without an end, before it asks for more."""
        return request.grant if request.grant is not None else self._wanted(request)

    def _wanted(self, request: Request) -> int:
        whole = len(request.prompt) + request.limit
        if self.bounded(request):
            return whole
        fair = max(1, (self.n_ctx - len(request.prompt)) // request.siblings)
        return min(whole, request.n_tokens + min(UNBOUNDED_RESERVE, fair))

    def need_together(self, request: Request) -> int:
        """Cells that a request and its followers, which share its prompt, may come to hold."""
        each = self.need(request) - len(request.prompt)
        return len(request.prompt) + each * len(request.group)

    def least_together(self, request: Request) -> int:
        """The same, with room for one token each that is not there yet."""
        return request.n_tokens + len(request.group)

    # --- those that run

    def used(self) -> int:
        """Cells that hold something."""
        return 0 if self.countless else int(self.residency.memory.n_used)

    def promised(self, among: Collection[Request] | None = None) -> int:
        """Cells that running requests, or those ``among`` them, have not taken yet, and may."""
        requests = list(self.running.values()) if among is None else among
        cells = 0
        for request in requests:
            shared = len(request.prompt) if self.is_read_for(request, requests) else 0
            cells += max(0, self.need(request) - request.n_resident - shared)
        return cells

    def is_read_for(self, request: Request, among: Collection[Request] | None = None) -> bool:
        """Whether another reads the prompt of a follower: its leader, or its heir, the first that is left."""
        if not request.unread:
            return False
        return any(
            other is request.leader
            or (other.leader is request.leader and (not other.unread or other.tag < request.tag))
            for other in (self.running.values() if among is None else among)
        )

    def could_hold(self, cells: int, without: Collection[Request] = ()) -> bool:
        """Whether there is room for as many, with all evicted that can be, and some running requests out."""
        out = {request.tag for request in without}
        kept = [request for tag, request in self.running.items() if tag not in out]
        pins = Counter(request.node for request in without)
        return self.residency.n_kept(kept, pins) + self.promised(kept) + cells <= self.n_ctx

    # --- quotas

    def over_quota(self, request: Request) -> bool:
        """Whether the owner's running requests leave no room for this one."""
        quota = self.quota(request.owner)
        if quota is None:
            return False
        return self._of_owner(request) + self.need(request) * len(request.group) > quota

    def grant(self, request: Request) -> bool:
        """Let a generation without an end have more of its owner's quota; False where too little is left of that."""
        quota = self.quota(request.owner)
        if quota is None or self.bounded(request):
            return True
        wanted = self._wanted(request)
        left = quota - self._of_owner(request) - request.n_tokens
        if left < min(WORTH_A_GRANT, wanted - request.n_tokens):
            return False
        request.grant = min(wanted, request.n_tokens + left)
        # the last token that it has is in no cell; at its limit it ends by itself
        request.job.hold(request.grant + 1)
        return True

    def quota(self, owner: str | None) -> int | None:
        """Cells that an owner's running requests may hold together; None where nobody said."""
        return None if owner is None else self.quotas.get(owner)

    def _of_owner(self, request: Request) -> int:
        """Cells that the others of its owner that run may come to hold."""
        return sum(
            self.need(other)
            for other in self.running.values()
            if other.owner == request.owner and other is not request
        )
