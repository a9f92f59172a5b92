"""Several models, or several copies, in one place: loaded when they are needed, unloaded when there is no room.

``RunnerPool`` keeps runners within a budget of memory; ``WorkerRunner`` is a runner in a process of its own.
"""

from __future__ import annotations

from llama_runner.pool.checkout import AsyncCheckout, Checkout, PooledModel
from llama_runner.pool.pool import RunnerPool
from llama_runner.pool.worker_runner import WorkerRunner
from llama_runner.pool.worker_session import WorkerSession
from llama_runner.pool.worker_stream import WorkerStream

__all__ = [
    "AsyncCheckout", "Checkout", "PooledModel", "RunnerPool", "WorkerRunner", "WorkerSession", "WorkerStream",
]  # fmt: skip
