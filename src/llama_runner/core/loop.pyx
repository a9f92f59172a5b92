"""``DecodeLoop``: the native thread that decodes many sequences of one context together."""

import atexit
import weakref

import cython

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from libcpp cimport bool

from llama_runner._c.engine cimport (
    lr_engine_adapters,
    lr_engine_adapters_changed,
    lr_engine_add,
    lr_engine_config,
    lr_engine_count,
    lr_engine_counters,
    lr_engine_ended,
    lr_engine_end,
    lr_engine_fail_next,
    lr_engine_follow,
    lr_engine_free,
    lr_engine_new,
    lr_engine_pause,
    lr_engine_poisoned,
    lr_engine_ready,
    lr_engine_resume,
    lr_engine_set_processor,
    lr_engine_start,
    lr_engine_stop,
    lr_engine_take_out,
    lr_engine_unstall,
    lr_engine_wait,
    lr_engine_wake,
    lr_job_place,
    lr_processed,
)
from llama_runner._c.llama cimport llama_adapter_lora
from llama_runner._c.native cimport LR_MEMORY_WINDOW, lr_forked
from llama_runner.core._native cimport check_process, drain_log, take_string
from llama_runner.core.adapter cimport AdapterUse
from llama_runner.core.context cimport Context
from llama_runner.core.job cimport Job

from llama_runner import errors
from llama_runner._check import check_float, check_int, check_text
from llama_runner.core.job import ENDS as _ENDS, ERRORS as _ERRORS

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil

cdef dict EVENTS = {"ended": 1, "output": 2, "room": 4, "wake": 8, "stopped": 16}
cdef int TAGS = 256

_live = weakref.WeakSet()


def _stop_all():
    """Before the interpreter ends: a native thread must not be in the library while that goes away."""
    for loop in list(_live):
        loop.close()


atexit.register(_stop_all)


cdef void on_rows(void *user, lr_processed *rows, int32_t n) noexcept with gil:
    (<Processors> user).run(rows, n)


cdef class Processors:
    """The Python functions that see logits before they are sampled from, and what the engine's thread calls."""

    cdef dict functions  # by number
    cdef dict jobs  # by tag: the loop's
    cdef int n_vocab
    cdef unsigned long thread  # that is in run()

    cdef void run(self, lr_processed *rows, int32_t n) noexcept:
        """Call each function once with all of its rows; what it fails at is told to the jobs of those rows."""
        cdef int32_t i
        groups = {}
        self.thread = PyThread_get_thread_ident()
        for i in range(n):
            groups.setdefault(rows[i].processor, []).append(i)
        for number, members in groups.items():
            try:
                self.call(rows, self.functions[number], members)
            except BaseException as error:
                for i in members:
                    rows[i].failed = True
                    job = self.jobs.get(rows[i].tag)
                    if job is not None:
                        (<Job> job).exception = error
        self.thread = 0

    cdef int call(self, lr_processed *rows, function, list members) except -1:
        cdef size_t size = self.n_vocab * sizeof(float)
        cdef Py_ssize_t k
        cdef int32_t i
        cdef int32_t[::1] ids
        logits = np.empty((len(members), self.n_vocab), np.float32)
        cdef float[:, ::1] view = logits
        tokens = []
        for k, i in enumerate(members):
            memcpy(&view[k, 0], rows[i].logits, size)
            ids = np.empty(rows[i].n_tokens, np.int32)
            memcpy(&ids[0], rows[i].tokens, rows[i].n_tokens * sizeof(int32_t))
            tokens.append(np.asarray(ids))
        changed = function(tokens, logits)
        if changed is not None and changed is not logits:
            if not isinstance(changed, np.ndarray) or changed.shape != logits.shape or changed.dtype.kind != "f":
                raise errors.ArgumentTypeError(
                    f"{function!r} returned {changed!r:.60}: it returns None, or a float array of shape {logits.shape}"
                )
            view = np.ascontiguousarray(changed, np.float32)
        for k, i in enumerate(members):
            memcpy(rows[i].out, &view[k, 0], size)
        return 0


@cython.no_gc_clear
cdef class DecodeLoop:
    """Decodes, samples, detokenizes and checks for ends, step after step, in a thread that takes no GIL.

    Each step has one row for every job that samples, and a slice of those that still read their tokens: as long as
    ``slice_seconds`` allows, and, for those that sampled before, as makes a step ``pace`` times its usual length. A job
    that reads alone on the CPU has slices of 2.5 times that, since the one under way is stopped when it is cancelled.

    The context belongs to the loop: use it only between ``pause()`` and ``resume()``, and close it after the loop. Any
    thread may call any method; one at a time may hold a pause.
    """

    def __init__(self, Context context not None, *, slice_seconds=0.1, pace=2.5):
        cdef lr_engine_config config
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this DecodeLoop is made already; make a new one")
        config.slice_us = <int32_t> (check_float("slice_seconds", slice_seconds, 0.001, 100) * 1e6)
        config.pace = check_float("pace", pace, 1, 1000)
        self.jobs = {}
        self.uses = {}
        context.enter()
        try:
            if context.mem == NULL:
                raise errors.ModelCapabilityError(f"{context.model!r} keeps no KV memory: it cannot generate")
            context.claim(self)
            # of a batch in several parts, a sliding window may lose what the first of them attend to
            window = context.memory_parts & LR_MEMORY_WINDOW
            config.n_batch = context.n_ubatch if window or not context.causal else context.n_batch
            config.n_outputs = context.facts.n_outputs_max
            config.every_row = context.able.every_row and context.able.has_logits
            if config.every_row:
                config.n_batch = min(config.n_batch, config.n_outputs)
            self.ptr = lr_engine_new(
                context.ptr, context.guard, context.abort_state, context.model.adapters, &config
            )
        finally:
            context.leave()
        if self.ptr == NULL:
            context.claim(None)
            raise MemoryError()
        self.context = context
        cdef Processors processors = Processors.__new__(Processors)
        processors.functions = self.functions = {}
        processors.jobs = self.jobs
        processors.n_vocab = context.n_vocab
        self.processors = processors
        lr_engine_set_processor(self.ptr, on_rows, <void *> processors)
        if lr_engine_start(self.ptr) != 0:
            context.claim(None)
            raise errors.OutOfMemoryError("the system gives no thread for the loop")
        _live.add(self)

    def __dealloc__(self):
        if self.ptr != NULL and not lr_forked():
            with nogil:
                lr_engine_free(self.ptr)

    def close(self):
        """Stop the thread; every job that is left ends with an error. Closing twice is no error."""
        if self.ptr == NULL or self.context is None or lr_forked():  # then it is the parent's
            return
        with nogil:
            lr_engine_stop(self.ptr)
        self.ended()
        for job in list(self.jobs.values()):
            (<Job> job).end()
        self.jobs.clear()
        self.note_poison()
        self.forget_adapters()
        self.context.claim(None)

    cdef int note_poison(self) except -1:
        """After an assertion inside llama.cpp: the context takes nothing but ``close`` from now on."""
        cdef bool stranded = False
        text = take_string(lr_engine_poisoned(self.ptr, &stranded))
        if text and self.context.poisoned is None:
            self.context.poisoned = text
            self.context.stranded = stranded
        return 0

    @property
    def inside(self):
        """Whether the calling thread is in a processor, so that the loop waits for it."""
        return (<Processors> self.processors).thread == PyThread_get_thread_ident()

    @property
    def usable(self):
        """Whether its context can still compute: False after a failed assertion inside llama.cpp."""
        self.note_poison()
        return self.context.poisoned is None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def pause(self):
        """Wait for the end of the step under way, without the GIL, and hold the next one back. Calls nest.

        Raises ContextBusyError in a processor, which the step waits for.
        """
        check_process()
        if self.inside:
            raise errors.ContextBusyError("this is a logits processor: the step that is to end waits for it")
        with nogil:
            lr_engine_pause(self.ptr)
        self.pauses += 1
        self.context.user = PyThread_get_thread_ident()

    def resume(self):
        """Go on after ``pause``. Arrays of the context's logits that are still held stay as they are."""
        if lr_forked():  # there is nothing that could go on
            return
        try:
            if self.context.ptr != NULL:  # the end of the interpreter closes it whoever has it
                self.context.enter()
                try:
                    self.context.keep_views()
                    self.context.n_outputs = 0
                finally:
                    self.context.leave()
        finally:
            self.pauses -= 1
            if self.pauses == 0:
                self.context.user = 0
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
        """While paused: take a job out where it stands, and the followers that still wait for its tokens to be fed.

        Returns those that were taken out, ``job`` first: none when it has ended meanwhile. A mark that it has not come
        to is gone.
        """
        cdef uint64_t tags[256]
        cdef int32_t n = lr_engine_take_out(self.ptr, job.ptr, tags), i
        taken = [self.jobs.pop(tags[i]) for i in range(n)]
        for member in taken:
            (<Job> member).end()
        return taken

    def place(self, Job job not None, seq_id, n_resident):
        """Say where the tokens of a job that was taken out are now, before it is added again."""
        if job.running:
            raise errors.InvalidArgumentError("the job is in a loop")
        lr_job_place(
            job.ptr, check_int("seq_id", seq_id, 0, self.context.n_seq_max - 1),
            check_int("n_resident", n_resident, 0, job.progress["n_tokens"] - (job.chain is not None)),
        )

    def end(self, Job job not None, how, error=None, why=""):
        """While paused: end a job that is in the loop, as ``Job.finish`` ends one that is not."""
        cdef bytes text = check_text("why", why)
        if how is None or how not in _ENDS or error not in _ERRORS:
            raise errors.InvalidArgumentError(f"how={how!r}, error={error!r}: one of {_ENDS[1:]}, and of {_ERRORS}")
        if job.progress["tag"] not in self.jobs:
            raise errors.InvalidArgumentError("the job is not in this loop: use Job.finish()")
        lr_engine_end(self.ptr, job.ptr, _ENDS.index(how), _ERRORS.index(error), text)

    def add_processor(self, function):
        """Make ``function(tokens, logits)`` a processor; returns its number, for ``Job``.

        It is called once a step, on the loop's thread, with a list of int32 arrays (all tokens of each job that names
        it) and their logits, float32 (n, n_vocab), which it changes, or returns others. What it raises ends those jobs.
        """
        if not callable(function):
            raise errors.ArgumentTypeError(f"a processor is a callable, not {function!r:.60}")
        for number, known in self.functions.items():
            if known is function:
                return number
        number = max(self.functions, default=-1) + 1
        self.functions[number] = function
        return number

    def remove_processor(self, number):
        """Forget a processor that no job in the loop names."""
        self.functions.pop(number, None)

    def set_adapters(self, number, uses):
        """While paused: what jobs with ``adapters=number`` are computed with: pairs of ``LoraAdapter`` and scale.

        They stay open while they are set; none takes the number away. 0 stands for none at all.
        """
        cdef int32_t n = <int32_t> len(uses), i
        cdef int code
        cdef int32_t c_number = check_int("number", number, 1, 2**31 - 1)
        cdef llama_adapter_lora **ptrs = <llama_adapter_lora **> malloc((n + 1) * sizeof(llama_adapter_lora *))
        cdef float *scales = <float *> malloc((n + 1) * sizeof(float))
        try:
            if ptrs == NULL or scales == NULL:
                raise MemoryError()
            held = tuple([AdapterUse(adapter, scale) for adapter, scale in uses])
            for i in range(n):
                ptrs[i] = (<AdapterUse> held[i]).adapter.ptr
                scales[i] = (<AdapterUse> held[i]).scale
            code = lr_engine_adapters(self.ptr, c_number, ptrs, scales, n)
        finally:
            free(ptrs)
            free(scales)
        if code != 0:
            raise MemoryError()
        if n:
            self.uses[number] = held
        else:
            self.uses.pop(number, None)
        return None

    cdef int forget_adapters(self) except -1:
        for number in list(self.uses):
            self.set_adapters(number, ())
        return 0

    def adapters_changed(self):
        """While paused: say that ``Context.set_adapters`` was used on the loop's context."""
        lr_engine_adapters_changed(self.ptr)

    def _fail_next(self, code, n=1):
        """For tests: let the next ``n`` decodes fail with a code of ``llama_decode`` in place of being made."""
        cdef int32_t c_code = code, c_n = n
        with nogil:
            lr_engine_fail_next(self.ptr, c_code, c_n)

    def unstall(self):
        """While paused: there may be room again for the jobs that were held back."""
        lr_engine_unstall(self.ptr)

    def wait(self, timeout=None):
        """Wait for events, without the GIL: a set of "ended", "output", "room", "wake" and "stopped".

        Empty when ``timeout`` seconds are over first.
        """
        cdef int64_t time_us = -1 if timeout is None else <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        cdef int events
        check_process()
        with nogil:
            events = lr_engine_wait(self.ptr, time_us)
        drain_log()
        return {name for name, bit in EVENTS.items() if events & bit}

    def wake(self):
        """Make ``wait`` return."""
        check_process()
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
                self.note_poison()
                return found

    def ready(self):
        """The jobs made with ``notify`` that have had output since it was last taken."""
        cdef uint64_t tags[256]
        cdef int32_t n, i
        found = {}
        while True:
            n = lr_engine_ready(self.ptr, tags, TAGS)
            for i in range(n):
                job = self.jobs.get(tags[i])
                if job is not None:
                    found[tags[i]] = job  # each once, however often it was taken from
            if n < TAGS:
                return list(found.values())

    @property
    def counters(self):
        """What was counted since the start: a dict of steps, rows, tokens, times in µs and failures."""
        cdef lr_engine_counters counters
        check_process()
        with nogil:
            lr_engine_count(self.ptr, &counters)
        return counters
