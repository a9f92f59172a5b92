"""``TextJob``: texts or tokens on their way through the native library, with an ear for Ctrl-C. Internal."""

import atexit

import cython
import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from llama_runner._c.native cimport (
    LR_TEXT_ARGUMENT,
    LR_TEXT_CAPABILITY,
    LR_TEXT_MEMORY,
    LR_TEXT_OK,
    lr_guard_end_shared,
    lr_text_job,
    lr_text_job_add,
    lr_text_job_error,
    lr_text_job_free,
    lr_text_job_item,
    lr_text_job_leave,
    lr_text_job_start,
    lr_text_job_wait,
)
from llama_runner.core._native cimport enter_shared

from llama_runner import errors
from llama_runner._check import check_int
from llama_runner.system import usable_physical_cores

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef int MAX_THREADS = 512
cdef size_t WORTH_THREADS = 16384  # bytes or tokens
cdef int64_t POLL_US = 50000  # how promptly Ctrl-C is felt
cdef dict ERRORS = {
    <int> LR_TEXT_ARGUMENT: errors.InvalidArgumentError,
    <int> LR_TEXT_CAPABILITY: errors.ModelCapabilityError,
    <int> LR_TEXT_MEMORY: errors.OutOfMemoryError,
}

_running = set()  # jobs with native threads, those included whose caller was interrupted


def _sweep():
    """Let go of the jobs whose callers were interrupted and that have ended since."""
    cdef TextJob job
    for job in list(_running):
        if job.left and lr_text_job_wait(job.ptr, 0):
            try:
                _running.remove(job)
            except KeyError:  # another thread was quicker
                continue
            Py_DECREF(job)


def _end_all():
    """Before the interpreter ends: the native library goes with it, and must not be in use then."""
    cdef TextJob job
    cdef bint ended
    for job in list(_running):
        lr_text_job_leave(job.ptr, NULL)
        ended = False
        while not ended:
            PyErr_CheckSignals()
            with nogil:
                ended = lr_text_job_wait(job.ptr, POLL_US)


atexit.register(_end_all)


@cython.no_gc_clear  # native threads read what it holds
cdef class TextJob:
    """The inputs of one call. Native threads work on them without the GIL, inside the model's shared guard."""

    @staticmethod
    cdef TextJob of(lr_text_job *ptr, vocab):
        """A job around ``ptr``, which it owns."""
        if ptr == NULL:
            raise MemoryError()
        cdef TextJob job = TextJob.__new__(TextJob)
        job.ptr = ptr
        job.vocab = vocab
        job.model = vocab.model
        job.borrowed = []
        return job

    def __dealloc__(self):
        # One that was left is in _running until it has ended, and referenced once more: only the end of the
        # interpreter takes it out of there too early.
        if self.ptr != NULL:
            with nogil:
                lr_text_job_free(self.ptr)

    cdef int add_text(self, bytes text) except -1:
        if not lr_text_job_add(self.ptr, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)):
            raise MemoryError()
        self.borrowed.append(text)
        self.size += PyBytes_GET_SIZE(text)
        self.count += 1
        return 0

    cdef int add_tokens(self, ids) except -1:
        cdef const int32_t[::1] view = ids
        if not lr_text_job_add(self.ptr, &view[0] if view.shape[0] else NULL, view.shape[0]):
            raise MemoryError()
        self.borrowed.append(ids)
        self.size += view.shape[0]
        self.count += 1
        return 0

    cdef int run(self, n_threads, str what) except -1:
        """Work on all inputs; the error of the first bad one names it as ``what``, formatted with its index.

        On KeyboardInterrupt the threads end by themselves and the model is in use until then.
        """
        cdef int threads = 1
        cdef size_t index
        cdef const char *problem
        if n_threads is not None:
            threads = check_int("n_threads", n_threads, 1, MAX_THREADS)
        elif self.count > 1 and self.size >= WORTH_THREADS:
            threads = usable_physical_cores()
        if _running:
            _sweep()
        enter_shared(self.model.guard, "model")
        try:
            self.model.check_open()
            with nogil:
                lr_text_job_start(self.ptr, threads)
            if not lr_text_job_wait(self.ptr, 0):
                self.wait()
        finally:
            if not self.left:
                lr_guard_end_shared(self.model.guard)
        code = lr_text_job_error(self.ptr, &index, &problem)
        if code != <int> LR_TEXT_OK:
            message = f"{what.format(index)} {problem.decode('utf-8', 'replace')}"
            raise ERRORS.get(code, errors.LlamaRuntimeError)(message)
        return 0

    cdef int wait(self) except -1:
        cdef bint ended = False
        _running.add(self)
        try:
            while not ended:
                with nogil:
                    ended = lr_text_job_wait(self.ptr, POLL_US)
                PyErr_CheckSignals()
        finally:
            # an exception of a signal handler, KeyboardInterrupt first of all: nothing stops llama.cpp in a text
            if not ended and lr_text_job_leave(self.ptr, self.model.guard):
                self.left = True
                Py_INCREF(self)
            else:
                _running.discard(self)
        return 0

    cdef object tokens(self, size_t index):
        """The tokens of one text, an int32 array of its own."""
        cdef size_t size
        cdef const void *data = lr_text_job_item(self.ptr, index, &size)
        cdef int32_t[::1] view
        ids = np.empty(size, dtype=np.int32)
        if size:
            view = ids
            memcpy(&view[0], data, size * sizeof(int32_t))
        return ids

    cdef tuple flat_tokens(self):
        """The tokens of all texts in one int32 array, and where each text begins in it, the end included."""
        cdef size_t i, size, total = 0
        cdef const void *data
        cdef int32_t[::1] view
        offsets = np.empty(self.count + 1, dtype=np.int64)
        cdef int64_t[::1] starts = offsets
        for i in range(self.count):
            starts[i] = total
            lr_text_job_item(self.ptr, i, &size)
            total += size
        starts[self.count] = total
        ids = np.empty(total, dtype=np.int32)
        view = ids
        for i in range(self.count):
            data = lr_text_job_item(self.ptr, i, &size)
            if size:
                memcpy(&view[starts[i]], data, size * sizeof(int32_t))
        return ids, offsets

    cdef bytes data(self, size_t index):
        """The bytes that one list of tokens stands for."""
        cdef size_t size
        cdef const char *data = <const char *> lr_text_job_item(self.ptr, index, &size)
        return PyBytes_FromStringAndSize(data, size)

    cdef str text(self, size_t index):
        """The same as text; what is no UTF-8 becomes U+FFFD."""
        cdef size_t size
        cdef const char *data = <const char *> lr_text_job_item(self.ptr, index, &size)
        return PyUnicode_DecodeUTF8(data, size, "replace")
