"""What a pool gives out, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llama_runner.errors import InvalidArgumentError
from llama_runner.pool.copies import Copy, Entry, Runner

if TYPE_CHECKING:
    from llama_runner.pool.pool import RunnerPool

__all__ = ["AsyncCheckout", "Checkout", "PooledModel"]


@dataclass(frozen=True, slots=True)
class PooledModel:
    """One name of a pool, as ``RunnerPool.info`` found it."""

    name: str
    copies: int
    """Copies that are loaded."""
    max_copies: int
    checkouts: int
    waiting: int
    """Who waits for a copy now."""
    bytes: int
    """What its copies take. Weights that names share are with the first of them: the sum of all is what is used."""
    last_use: float | None
    """When a copy was last taken or returned, as ``time.time()`` has it; None where none ever was."""
    restarts: int
    """How many times a worker that died was started again."""
    pinned: bool
    worker: bool

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Checkout:
    """A runner for as long as a ``with`` block lasts; what ``get`` returns.

    It is taken when the block is entered.
    """

    def __init__(self, pool: RunnerPool, entry: Entry, timeout: float | None, exclusive: bool) -> None:
        self._pool, self._entry = pool, entry
        self._timeout, self._exclusive = timeout, exclusive
        self._copy: Copy | None = None

    def __enter__(self) -> Runner:
        if self._copy is not None:
            raise InvalidArgumentError("this checkout is in use: call get() for another one")
        self._copy = self._pool._take(self._entry, self._timeout, self._exclusive)
        assert self._copy.runner is not None
        return self._copy.runner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            self._pool._give_back(copy)


class AsyncCheckout:
    """As ``Checkout``, for ``async with``: waiting and loading never block the event loop."""

    def __init__(self, pool: RunnerPool, entry: Entry, timeout: float | None, exclusive: bool) -> None:
        self._pool, self._entry = pool, entry
        self._timeout, self._exclusive = timeout, exclusive
        self._copy: Copy | None = None

    async def __aenter__(self) -> Runner:
        if self._copy is not None:
            raise InvalidArgumentError("this checkout is in use: call aget() for another one")
        self._copy = await self._pool._atake(self._entry, self._timeout, self._exclusive)
        assert self._copy.runner is not None
        return self._copy.runner

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            self._pool._give_back(copy)
