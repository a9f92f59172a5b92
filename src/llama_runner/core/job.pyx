"""``Job``: one sequence's work in a ``DecodeLoop``."""

import threading

import cython
import numpy as np

from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from llama_runner._c.engine cimport (
    LR_WANT_EMBEDDINGS,
    LR_WANT_LAST,
    LR_WANT_LOGPROBS,
    lr_job_cancel,
    lr_job_read_whole,
    lr_job_end_now,
    lr_job_error_text,
    lr_job_free,
    lr_job_hold,
    lr_job_look,
    lr_job_mark,
    lr_job_new,
    lr_job_output,
    lr_job_progress,
    lr_job_spec,
    lr_job_stop_index,
    lr_job_take,
    lr_job_tokens,
    lr_job_wait,
    lr_job_wanted,
    lr_job_watch,
)
from llama_runner._c.llama cimport llama_time_us
from llama_runner.core._native cimport check_process, take_string
from llama_runner.core.sampler cimport SamplerChain
from llama_runner.core.vocab cimport Vocab

from llama_runner import errors
from llama_runner._check import check_bool, check_float, check_int, check_text
from llama_runner.core.vocab import as_tokens

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    unsigned long PyThread_get_thread_ident() nogil

ENDS = (None, "eos", "stop", "length", "cancelled", "timeout", "fed", "error")
ERRORS = (None, "sampling", "no_room", "decode", "closed", "poisoned", "memory")
cdef int64_t SIGNAL_US = 50000  # how promptly Ctrl-C is felt while waiting
cdef unsigned long main_thread_ident = threading.main_thread().ident
cdef int64_t FOREVER_US = 3600000000


@cython.no_gc_clear
cdef class Job:
    """Feed the tokens of one sequence, then sample until an end; what a ``DecodeLoop`` runs.

    Parameters
    ----------
    tokens : the whole sequence so far, at least one token; the first ``n_resident`` of them are in the KV memory.
    chain : samples the tokens that follow, and belongs to the job while it runs; None to feed only.
    max_tokens : most tokens to sample. ``ignore_eos`` : go on where the model would end.
    stop : strings (or bytes) that end the text; ``stop_tokens`` : ids that do.
    shown_tokens : ids of special tokens that are written out in the text, where others have none.
    logprobs : None, or how many best alternatives to report with each token's log-probability.
    priority : larger goes first. ``timeout`` : seconds from now.
    want : any of ``"logits"`` (a copy of the last fed token's), ``"logprobs"`` (of each fed token from ``want_from``
        on) and ``"embedding"``.
    notify : tell ``DecodeLoop.ready()`` when there is output.
    processor : a number of ``DecodeLoop.processors``, or -1: who sees its logits before they are sampled from.
    adapters : a number of ``DecodeLoop.set_adapters``, or 0: what it is computed with.
    tag : an int of the caller's, which ``ended()`` and ``ready()`` return.

    ``take``, ``wait``, ``cancel`` and the properties may be used by any thread.
    """

    def __init__(
        self, Vocab vocab not None, tokens, *, seq_id=0, n_resident=0, SamplerChain chain=None, max_tokens=0,
        ignore_eos=False, stop=(), stop_tokens=(), shown_tokens=(), logprobs=None, priority=0, timeout=None, want=(),
        want_from=1, notify=False, processor=-1, adapters=0, tag=0,
    ):
        cdef lr_job_spec spec
        cdef const int32_t[::1] view, stop_view, shown_view
        cdef int32_t i
        if self.ptr != NULL:
            raise errors.InvalidArgumentError("this Job is made already; make a new one")
        memset(&spec, 0, sizeof(spec))
        ids = as_tokens(tokens, vocab.n_tokens)
        if len(ids) == 0:
            raise errors.InvalidArgumentError("tokens is empty: a job has at least one token")
        view = ids
        spec.tokens = &view[0]
        spec.n_tokens = <int32_t> len(ids)
        spec.seq_id = check_int("seq_id", seq_id, 0, 255)
        spec.n_resident = check_int("n_resident", n_resident, 0, len(ids) - (chain is not None))
        spec.max_tokens = check_int("max_tokens", max_tokens, 0 if chain is None else 1, INT32_MAX)
        if chain is None and spec.max_tokens:
            raise errors.InvalidArgumentError(f"max_tokens={max_tokens} without a chain to sample with")
        spec.ignore_eos = check_bool("ignore_eos", ignore_eos)
        spec.n_logprobs = -1 if logprobs is None else check_int("logprobs", logprobs, 0, vocab.n_tokens)
        spec.priority = check_int("priority", priority, -INT32_MAX, INT32_MAX)
        if timeout is not None:
            spec.deadline_us = llama_time_us() + <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        spec.want = wanted_bits(want)
        spec.want_from = check_int("want_from", want_from, 1, INT32_MAX)
        spec.notify = check_bool("notify", notify)
        spec.processor = check_int("processor", processor, -1, INT32_MAX)
        spec.adapters = check_int("adapters", adapters, 0, INT32_MAX)
        spec.tag = check_int("tag", tag, 0, 2**64 - 1)
        stop_ids = as_tokens(stop_tokens, vocab.n_tokens)
        stop_view = stop_ids
        if len(stop_ids):
            spec.stop_tokens = &stop_view[0]
            spec.n_stop_tokens = <int32_t> len(stop_ids)
        shown_ids = as_tokens(shown_tokens, vocab.n_tokens)
        shown_view = shown_ids
        if len(shown_ids):
            spec.shown_tokens = &shown_view[0]
            spec.n_shown_tokens = <int32_t> len(shown_ids)
        self.stop = tuple(stop)
        stops = [s.encode() if isinstance(s, str) else bytes(s) for s in self.stop]
        if not all(stops):
            raise errors.InvalidArgumentError("a stop string must not be empty: it would end every text at once")
        cdef const char **c_stops = <const char **> malloc((len(stops) + 1) * sizeof(char *))
        cdef size_t *sizes = <size_t *> malloc((len(stops) + 1) * sizeof(size_t))
        try:
            if c_stops == NULL or sizes == NULL:
                raise MemoryError()
            for i in range(<int32_t> len(stops)):
                c_stops[i] = stops[i]
                sizes[i] = len(stops[i])
            spec.stops = c_stops
            spec.stop_sizes = sizes
            spec.n_stops = <int32_t> len(stops)
            vocab.check_open()
            if chain is not None:
                if not chain.selects or chain.n_vocab not in (0, vocab.n_tokens):
                    chain.check_row(vocab.n_tokens)  # says so; of one that fits it is begin()'s, since it is used
                spec.picker = chain.picker
            self.ptr = lr_job_new(&spec, vocab.model.vocab_ptr)
        finally:
            free(c_stops)
            free(sizes)
        if self.ptr == NULL:
            raise MemoryError()
        self.vocab = vocab
        self.chain = chain
        self.max_tokens = spec.max_tokens
        self.logprobs = spec.n_logprobs

    def __dealloc__(self):
        lr_job_free(self.ptr)

    def __repr__(self):
        progress = self.progress
        state = progress["end"] or "not ended"
        return f"<Job {state} {progress['n_resident']} of {progress['n_tokens']} tokens resident>"

    cdef int begin(self) except -1:
        """The loop takes the job: nobody else may use the chain now."""
        if self.running:
            raise errors.InvalidArgumentError("this job is in a loop already")
        if self.chain is not None:
            self.chain.enter()
            try:
                self.chain.check_free("use")
                self.chain.check_row(self.vocab.n_tokens)
            except BaseException:
                self.chain.leave()
                raise
        self.running = self.sampling = True
        return 0

    cdef void end(self) noexcept:
        self.running = False
        self.let_go()

    cdef void let_go(self) noexcept:
        """It has ended, or is in the loop no more: the chain is the caller's again."""
        if self.sampling:
            self.sampling = False
            if self.chain is not None:
                if self.exception is None:
                    self.exception = self.chain.take_raised()
                self.chain.leave()

    def finish(self, end, error=None, why=""):
        """End a job that is in no loop: ``end`` as ``take`` has it, and the kind of error where it is ``"error"``."""
        cdef bytes text = check_text("why", why)
        if self.running:
            raise errors.InvalidArgumentError("the job is in a loop: cancel() it, or use DecodeLoop.fail()")
        if end is None or end not in ENDS or error not in ERRORS:
            raise errors.InvalidArgumentError(f"end={end!r}, error={error!r}: one of {ENDS[1:]}, and of {ERRORS}")
        lr_job_end_now(self.ptr, ENDS.index(end), ERRORS.index(error), text)

    def cancel(self):
        """End it before the next step; what it has sampled stays. Any thread."""
        lr_job_cancel(self.ptr)

    def read_whole(self):
        """Say that nobody reads it before its end, so that ``wait`` waits for that. Any thread.

        It has no pace to keep then: once it has begun to sample it waits for those that came with it and still read,
        and prompts that come later are read in larger slices.
        """
        lr_job_read_whole(self.ptr)

    def wait(self, timeout=None):
        """Wait, without the GIL, until there is something to take; False when ``timeout`` seconds are over first.

        A signal handler's exception, such as KeyboardInterrupt, is raised from here.
        """
        cdef int64_t left, slice
        cdef int64_t deadline = 0
        cdef bint found
        # signals are handled by the main thread alone, and do not end a native wait
        cdef int64_t most = SIGNAL_US if PyThread_get_thread_ident() == main_thread_ident else FOREVER_US
        if timeout is not None:
            deadline = llama_time_us() + <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        check_process()
        while True:
            left = most if timeout is None else max(0, deadline - llama_time_us())
            slice = min(left, most)
            with nogil:
                found = lr_job_wait(self.ptr, slice)
            if found:
                return True
            PyErr_CheckSignals()
            if timeout is not None and llama_time_us() >= deadline:
                return False

    def take(self):
        """What has come since the last call: ``(text as bytes, tokens as a list, logprobs, end)``.

        The text is whole characters. ``logprobs`` is None, or a list with ``(logprob, [(id, logprob), …])`` for each
        token. ``end`` is None until all has been taken, then ``"eos"``, ``"stop"``, ``"length"``, ``"cancelled"``,
        ``"timeout"``, ``"fed"`` or ``"error"``.
        """
        cdef lr_job_output out
        cdef int failed, i, k
        check_process()
        with nogil:
            failed = lr_job_take(self.ptr, &out)
        if failed:
            raise MemoryError()
        if out.end:
            self.let_go()  # whoever reads the end may go on with the chain, before the loop's owner has heard of it
        try:
            tokens = [out.tokens[i] for i in range(out.n_tokens)]
            scores = None
            if self.logprobs >= 0:
                scores = [
                    (out.logprobs[i], [
                        (out.top_ids[i * out.n_top + k], out.top_logprobs[i * out.n_top + k]) for k in range(out.n_top)
                    ])
                    for i in range(out.n_tokens)
                ]
            if out.end != 0:
                self.end()  # the loop's thread has no use for the chain any more
            return out.text[:out.text_size], tokens, scores, ENDS[out.end]
        finally:
            free(out.text)
            free(out.tokens)
            free(out.logprobs)
            free(out.top_ids)
            free(out.top_logprobs)

    @property
    def progress(self):
        """Where it is: a dict of counts, of times in µs (0 when it has not come to that), ``end`` and ``error``."""
        cdef lr_job_progress progress
        check_process()
        with nogil:
            lr_job_look(self.ptr, &progress)
        cdef dict found = progress
        found["end"] = ENDS[progress.end]
        found["error"] = ERRORS[progress.error]
        return found

    @property
    def end_reason(self):
        """Why it ended, or None."""
        cdef lr_job_progress progress
        check_process()
        with nogil:
            lr_job_look(self.ptr, &progress)
        return ENDS[progress.end]

    def mark(self, at, seq_id):
        """Once its first ``at`` tokens are resident, ``seq_id`` gets a copy of its sequence.

        Before it is added, or while the loop is paused. For memories that cannot be cut back later; ``"marked"`` of
        ``progress`` says that it came to that.
        """
        lr_job_mark(self.ptr, check_int("at", at, 1, INT32_MAX), check_int("seq_id", seq_id, 0, 255))

    def watch(self, at):
        """Before it is added, or while the loop is paused: wake the loop's ``wait`` once ``at`` tokens are resident."""
        lr_job_watch(self.ptr, check_int("at", at, 1, INT32_MAX))

    def hold(self, at):
        """Before it is added, or while the loop is paused: hold it back once it has ``at`` tokens; 0: never.

        The loop's ``wait`` says "room" then, as where there is none. The last of the tokens is not in the memory.
        """
        lr_job_hold(self.ptr, check_int("at", at, 0, INT32_MAX))

    @property
    def raised(self):
        """What a Python processor or link raised, where that ended it; else None."""
        return self.exception

    @property
    def stop_match(self):
        """The stop string that ended it, or None."""
        cdef int index = lr_job_stop_index(self.ptr)
        return None if index < 0 else self.stop[index]

    @property
    def error_text(self):
        """What went wrong, where it ended with an error."""
        return take_string(lr_job_error_text(self.ptr))

    @property
    def tokens(self):
        """All tokens so far, fed and sampled: an int32 array, copied."""
        cdef int32_t room = lr_job_tokens(self.ptr, NULL, 0) + 16  # it may grow meanwhile
        ids = np.empty(room, dtype=np.int32)
        cdef int32_t[::1] view = ids
        return ids[:min(lr_job_tokens(self.ptr, &view[0], room), room)]

    def wanted(self, what):
        """What ``want`` asked for, a float32 array; empty where it has not come to that."""
        cdef int bit = wanted_bits((what,))
        cdef int64_t n = lr_job_wanted(self.ptr, bit, NULL, 0)
        values = np.empty(n, dtype=np.float32)
        cdef float[::1] view = values
        if n:
            lr_job_wanted(self.ptr, bit, &view[0], n)
        return values


cdef int wanted_bits(want) except -1:
    cdef int bits = 0
    known = {"logits": <int> LR_WANT_LAST, "logprobs": <int> LR_WANT_LOGPROBS, "embedding": <int> LR_WANT_EMBEDDINGS}
    for name in ((want,) if isinstance(want, str) else want):
        if name not in known:
            raise errors.InvalidArgumentError(f"want={name!r}: it is one of {', '.join(known)}")
        bits |= known[name]
    return bits
