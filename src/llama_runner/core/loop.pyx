"""``DecodeLoop``: the native thread that decodes many sequences of one context together."""

import atexit
import weakref

import cython

from libc.stdint cimport int32_t, int64_t, uint64_t

from llama_runner._c.engine cimport (
    lr_engine,
    lr_engine_add,
    lr_engine_config,
    lr_engine_count,
    lr_engine_counters,
    lr_engine_ended,
    lr_engine_fail,
    lr_engine_follow,
    lr_engine_free,
    lr_engine_new,
    lr_engine_pause,
    lr_engine_ready,
    lr_engine_resume,
    lr_engine_start,
    lr_engine_stop,
    lr_engine_take_out,
    lr_engine_unstall,
    lr_engine_wait,
    lr_engine_wake,
    lr_job_place,
)
from llama_runner.core._native cimport drain_log
from llama_runner.core.context cimport Context
from llama_runner.core.job cimport Job

from llama_runner import errors
from llama_runner._check import check_float, check_int, check_text

cdef dict EVENTS = {"ended": 1, "output": 2, "room": 4, "wake": 8, "stopped": 16}
cdef dict ERROR_CODES = {"sampling": 1, "no_room": 2, "decode": 3, "closed": 4, "poisoned": 5, "memory": 6}
cdef int TAGS = 256

_live = weakref.WeakSet()


def _stop_all():
    """Before the interpreter ends: a native thread must not be in the library while that goes away."""
    for loop in list(_live):
        loop.close()


atexit.register(_stop_all)


@cython.no_gc_clear
cdef class DecodeLoop:
    """Decodes, samples, detokenizes and checks for ends, step after step, in a thread that takes no GIL.

    Each step has one row for every job that samples, and a slice of those that still read their tokens: as long as
    ``slice_seconds`` allows, and while others sample as much as makes a step ``pace`` times its usual length.

    The context belongs to the loop: use it only between ``pause()`` and ``resume()``, and close it after the loop. Any
    thread may call any method; one at a time may hold a pause.
    """

    cdef lr_engine *ptr
    cdef readonly Context context  # held: the thread decodes with it
    cdef dict jobs  # by tag: those in the loop, whose chains the thread uses
    cdef object __weakref__

    def __init__(self, Context context not None, *, slice_seconds=0.1, pace=2.5):
        cdef lr_engine_config config
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this DecodeLoop is made already; make a new one")
        config.slice_us = <int32_t> (check_float("slice_seconds", slice_seconds, 0.001, 100) * 1e6)
        config.pace = check_float("pace", pace, 1, 1000)
        self.jobs = {}
        context.enter()
        try:
            if context.mem == NULL:
                raise errors.ModelCapabilityError(f"{context.model!r} keeps no KV memory: it cannot generate")
            context.claim(self)
            config.n_batch = context.n_batch
            config.n_seq_max = context.n_seq_max
            config.n_cells = context.n_ctx
            self.ptr = lr_engine_new(context.ptr, context.guard, context.abort_state, &config)
        finally:
            context.leave()
        if self.ptr == NULL:
            context.claim(None)
            raise MemoryError()
        self.context = context
        if lr_engine_start(self.ptr) != 0:
            context.claim(None)
            raise errors.OutOfMemoryError("the system gives no thread for the loop")
        _live.add(self)

    def __dealloc__(self):
        if self.ptr != NULL:
            with nogil:
                lr_engine_free(self.ptr)

    def close(self):
        """Stop the thread; every job that is left ends with an error. Closing twice is no error."""
        if self.ptr == NULL or self.context is None:
            return
        with nogil:
            lr_engine_stop(self.ptr)
        self.ended()
        for job in list(self.jobs.values()):
            (<Job> job).end()
        self.jobs.clear()
        self.context.claim(None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def pause(self):
        """Wait for the end of the step under way, without the GIL, and hold the next one back. Calls nest."""
        with nogil:
            lr_engine_pause(self.ptr)

    def resume(self):
        """Go on after ``pause``. Arrays of the context's logits that are still held stay as they are."""
        try:
            self.context.enter()
            try:
                self.context.keep_views()
                self.context.n_outputs = 0
            finally:
                self.context.leave()
        finally:
            with nogil:
                lr_engine_resume(self.ptr)

    def add(self, Job job not None, followers=()):
        """Run a job; ``followers`` share its cells and its logits from where its tokens are fed.

        The tag must be unique among the jobs in the loop. A follower's tokens are its leader's, its ``seq_id`` its own.
        """
        cdef Job follower
        group = [job, *followers]
        begun = []
        try:
            for member in group:
                tag = (<Job> member).progress["tag"]
                if tag in self.jobs:
                    raise errors.InvalidArgumentError(f"tag={tag}: a job in the loop has that tag already")
                (<Job> member).begin()
                begun.append(member)
                self.jobs[tag] = member
        except errors.LlamaRunnerError:
            for member in begun:
                (<Job> member).end()
                self.jobs.pop(member.progress["tag"], None)
            raise
        for member in followers:
            follower = member
            lr_engine_follow(self.ptr, job.ptr, follower.ptr)
        lr_engine_add(self.ptr, job.ptr)

    def take_out(self, Job job not None):
        """While paused: take a job out where it stands; False when it has ended meanwhile."""
        cdef bint found
        found = lr_engine_take_out(self.ptr, job.ptr)
        if found:
            self.jobs.pop(job.progress["tag"], None)
            job.end()
        return found

    def place(self, Job job not None, seq_id, n_resident):
        """Say where the tokens of a job that was taken out are now, before it is added again."""
        if job.running:
            raise errors.InvalidArgumentError("the job is in a loop")
        lr_job_place(
            job.ptr, check_int("seq_id", seq_id, 0, self.context.n_seq_max - 1),
            check_int("n_resident", n_resident, 0, job.progress["n_tokens"] - 1),
        )

    def fail(self, Job job not None, error, why):
        """While paused: end a job with an error, ``"no_room"`` for one."""
        cdef bytes text = check_text("why", why)
        lr_engine_fail(self.ptr, job.ptr, ERROR_CODES[error], text)

    def unstall(self):
        """While paused: there may be room again for the jobs that were held back."""
        lr_engine_unstall(self.ptr)

    def wait(self, timeout=None):
        """Wait for events, without the GIL: a set of ``"ended"``, ``"output"``, ``"room"``, ``"wake"``, ``"stopped"``."""
        cdef int64_t time_us = -1 if timeout is None else <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        cdef int events
        with nogil:
            events = lr_engine_wait(self.ptr, time_us)
        drain_log()
        return {name for name, bit in EVENTS.items() if events & bit}

    def wake(self):
        """Make ``wait`` return."""
        lr_engine_wake(self.ptr)

    def ended(self):
        """The jobs that have ended since the last call."""
        cdef uint64_t tags[256]
        cdef int32_t n, i
        found = []
        while True:
            n = lr_engine_ended(self.ptr, tags, TAGS)
            for i in range(n):
                job = self.jobs.pop(tags[i], None)
                if job is not None:
                    (<Job> job).end()
                    found.append(job)
            if n < TAGS:
                return found

    def ready(self):
        """The jobs made with ``notify`` that have had output since it was last taken."""
        cdef uint64_t tags[256]
        cdef int32_t n, i
        found = []
        while True:
            n = lr_engine_ready(self.ptr, tags, TAGS)
            for i in range(n):
                job = self.jobs.get(tags[i])
                if job is not None:
                    found.append(job)
            if n < TAGS:
                return found

    @property
    def counters(self):
        """What was counted since the start: a dict of steps, rows, tokens, times in µs and failures."""
        cdef lr_engine_counters counters
        with nogil:
            lr_engine_count(self.ptr, &counters)
        return counters
