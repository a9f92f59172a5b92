"""What a decode computed: the memory that logits and embeddings are in, and the views of it that Python holds."""

import cython
import numpy as np

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from libc.stdint cimport int8_t
from libc.stdlib cimport free

from llama_runner._c.ggml cimport ggml_backend_buffer_t
from llama_runner._c.llama cimport (
    LLAMA_POOLING_TYPE_RANK,
    llama_get_embeddings,
    llama_get_embeddings_ith,
    llama_get_embeddings_seq,
    llama_get_logits,
    llama_get_logits_ith,
    llama_model_n_cls_out,
    llama_synchronize,
)
from llama_runner._c.native cimport (
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_guard_try_exclusive,
    lr_guard_try_shared,
    lr_outputs_free,
    lr_outputs_swap,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, enter_waiting
from llama_runner.core.arrays cimport small_int

from llama_runner import errors
from llama_runner._check import check_int

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil

cdef char *FLOAT_FORMAT = b"f"


@cython.no_gc_clear  # __dealloc__ still needs what it holds
cdef class Outputs:
    """The host buffer with the logits and embeddings of a decode, for as long as a view looks at it."""

    def __cinit__(self):
        self.views = lr_guard_new()
        if self.views == NULL:
            raise MemoryError()

    cdef bint unused(self) noexcept:
        if not lr_guard_try_exclusive(self.views):
            return False
        lr_guard_end_exclusive(self.views)
        return True

    def __dealloc__(self):
        if self.taken != NULL and not lr_forked():
            lr_outputs_free(self.taken)
        lr_guard_free(self.views)


@cython.no_gc_clear
cdef class OutputView:
    """Exports rows of an ``Outputs`` through the buffer protocol; every NumPy array made of it keeps it alive."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        buffer.buf = self.data
        buffer.obj = self
        buffer.itemsize = sizeof(float)
        buffer.len = self.shape[0] * self.shape[1] * sizeof(float)
        buffer.readonly = 0
        buffer.ndim = self.ndim
        buffer.format = FLOAT_FORMAT if flags & PyBUF_FORMAT else NULL
        buffer.shape = (&self.shape[1] if self.ndim == 1 else self.shape) if flags & PyBUF_ND else NULL
        buffer.strides = (&self.strides[1] if self.ndim == 1 else self.strides) if flags & PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __dealloc__(self):
        if self.outputs is not None:
            lr_guard_end_shared(self.outputs.views)


@cython.no_gc_clear
cdef class ContextOutputs:
    """The half of ``Context`` that the results of its last decode are read from; not made by itself."""

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.wants_output)
        lr_guard_free(self.guard)

    cdef int enter(self) except -1:
        if self.user != 0 and self.user == PyThread_get_thread_ident():
            # others may look at what is not theirs: whoever it is lent to waits for them, and for himself not
            if self.used:
                enter_exclusive(self.guard, "context")
            else:
                enter_waiting(self.guard, "context")
            self.used = True
        else:
            enter_exclusive(self.guard, "context")
        if self.ptr == NULL or self.poisoned is not None:
            self.leave()
            if self.ptr == NULL:
                raise errors.ClosedError("this Context is closed")
            raise errors.LlamaRuntimeError(
                "this Context is unusable since llama.cpp failed an assertion; close it and make another: "
                f"{self.poisoned}"
            )
        return 0

    cdef void leave(self) noexcept:
        self.used = False
        lr_guard_end_exclusive(self.guard)

    cdef int check_seq(self, seq_id) except -1:
        try:
            return check_int("seq_id", seq_id, 0, self.n_seq_max - 1)
        except errors.InvalidArgumentError:
            raise errors.IndexOutOfRangeError(
                f"seq_id={int(seq_id)}: this context has sequences 0 to {self.n_seq_max - 1} (n_seq_max)"
            ) from None

    cdef int keep_views(self) except -1:
        """Before the output buffer is written again: leave it to the views that still look at it."""
        cdef ggml_backend_buffer_t spare = NULL
        if self.outputs is None or self.outputs.unused():
            return 0
        # two buffers take turns in the usual loop, where a row is kept until the next one is there
        if self.retired is not None and self.retired.unused():
            spare = self.retired.taken
            self.retired.taken = NULL
        self.outputs.taken = lr_outputs_swap(self.ptr, spare)
        self.retired = self.outputs
        self.outputs = None
        return 0

    cdef object view(self, float *data, Py_ssize_t rows, Py_ssize_t columns):
        """An array over the output buffer, which it keeps: flat for ``rows`` -1, a matrix otherwise."""
        if self.outputs is None:
            self.outputs = Outputs()
        cdef OutputView view = OutputView.__new__(OutputView)
        view.data = data
        view.ndim = 1 if rows < 0 else 2
        view.shape[0] = 1 if rows < 0 else rows
        view.shape[1] = columns
        view.strides[0] = columns * sizeof(float)
        view.strides[1] = sizeof(float)
        lr_guard_try_shared(self.outputs.views)
        view.outputs = self.outputs
        return np.asarray(view)

    cdef int any_output(self) except -1:
        if self.n_outputs == 0:
            raise errors.IndexOutOfRangeError("there is no output: no decode yet, or the last asked for none or failed")
        return 0

    cdef int output_index(self, int i) except -1:
        """Check a row index as ``llama_get_logits_ith`` takes it: a row of the batch, or negative from the end."""
        self.any_output()
        if i < 0:
            if i < -self.n_outputs:
                raise errors.IndexOutOfRangeError(f"i={i}: the last decode has {self.n_outputs} rows of output")
        elif i >= self.n_rows or not self.wants_output[i]:
            raise errors.IndexOutOfRangeError(
                f"i={i}: not a row with output; the last decode had {self.n_rows} rows, {self.n_outputs} with output"
            )
        return 0

    cdef int check_logits(self) except -1:
        if self.n_outputs and not self.gave_logits:
            raise errors.ModelCapabilityError(
                "there are no logits: the last call was encode(), or this model gives embeddings in their place"
            )
        return 0

    cdef int check_sampled(self, int i) except -1:
        """Whether the logits of the row have stayed in the graph, which sampled from them; ``Context`` knows."""
        return 0

    cdef int check_embeddings(self) except -1:
        if self.facts.pooling > 0 or not (self.embeds or self.gave_embeddings):
            raise errors.ModelCapabilityError(
                "no embeddings of single rows: make the context with embeddings=True, pooling='none'"
            )
        if self.n_outputs and not self.gave_embeddings:
            raise errors.IndexOutOfRangeError("there are no embeddings: they were switched on after the last decode")
        return 0

    cdef float *logits_row(self, int i) except NULL:
        """The row's logits; the caller is inside."""
        cdef float *row
        if not self.able.has_logits:
            raise errors.ModelCapabilityError(f"{self.model!r} is an encoder: it has embeddings and no logits")
        self.check_logits()
        self.output_index(i)
        self.check_sampled(i)
        with nogil:
            row = llama_get_logits_ith(self.ptr, i)
        if row == NULL:
            raise errors.IndexOutOfRangeError(f"i={i}: llama.cpp has no logits for it").with_log(drain_log())
        return row

    def logits(self, i=-1):
        """Logits of row ``i`` of the last decode: a float32 array of shape (n_vocab,), a view without a copy.

        ``i`` is what ``Batch.add`` returned, or negative: -1 is the last output. Wraps ``llama_get_logits_ith``.
        The array stays valid and unchanged after later decodes and after ``close()``. Raises IndexOutOfRangeError for a
        row without output.
        """
        cdef int index
        if not small_int(i, &index):
            index = check_int("i", i, -(2**31), 2**31 - 1)
        self.enter()
        try:
            return self.view(self.logits_row(index), -1, self.n_vocab)
        finally:
            self.leave()

    def logits_matrix(self):
        """Logits of all outputs of the last decode: a float32 view of shape (n_outputs, n_vocab), without a copy.

        The rows are in the batch's order; ``output_rows`` says which they are. Wraps ``llama_get_logits``; lifetime as
        for ``logits``. Raises IndexOutOfRangeError when there is no output.
        """
        cdef float *rows
        cdef int i
        self.enter()
        try:
            self.check_logits()
            self.any_output()
            for i in range(self.n_outputs):
                self.check_sampled(-1 - i)
            with nogil:
                rows = llama_get_logits(self.ptr)
            return self.view(rows, self.n_outputs, self.n_vocab)
        finally:
            self.leave()

    def embeddings(self, i=-1):
        """Embedding of row ``i`` of the last decode: a float32 array of shape (n_embd,), a view without a copy.

        Wraps ``llama_get_embeddings_ith``; lifetime and indices as for ``logits``. Raises ModelCapabilityError unless
        the context was made with ``embeddings=True`` and without pooling.
        """
        cdef int index
        if not small_int(i, &index):
            index = check_int("i", i, -(2**31), 2**31 - 1)
        cdef float *row
        self.enter()
        try:
            self.check_embeddings()
            self.output_index(index)
            with nogil:
                row = llama_get_embeddings_ith(self.ptr, index)
            if row == NULL:
                raise errors.IndexOutOfRangeError(f"i={i}: llama.cpp has no embedding for it").with_log(drain_log())
            return self.view(row, -1, self.facts.n_embd_out)
        finally:
            self.leave()

    def embeddings_matrix(self):
        """Embeddings of all rows of the last decode: a float32 view of shape (n_outputs, n_embd), without a copy.

        Wraps ``llama_get_embeddings``; order and lifetime as for ``logits_matrix``, errors as for ``embeddings``.
        """
        cdef float *rows
        self.enter()
        try:
            self.check_embeddings()
            self.any_output()
            with nogil:
                rows = llama_get_embeddings(self.ptr)
            return self.view(rows, self.n_outputs, self.facts.n_embd_out)
        finally:
            self.leave()

    def embeddings_seq(self, seq_id=0):
        """Pooled embedding, or rerank scores, of a sequence of the last decode: a float32 array, copied.

        Shape (n_embd,), or (n_cls_out,) with ``pooling="rank"``. Wraps ``llama_get_embeddings_seq``. Raises
        ModelCapabilityError without pooling, IndexOutOfRangeError for a sequence that the last decode did not have.
        """
        cdef float *row
        cdef int seq
        self.enter()
        try:
            seq = self.check_seq(seq_id)
            if not (self.embeds or self.gave_embeddings) or self.facts.pooling <= 0:
                raise errors.ModelCapabilityError(
                    "no pooled embeddings: make the context with embeddings=True and a pooling"
                )
            with nogil:
                llama_synchronize(self.ptr)  # they are copied out while the decode may still be going on
                row = llama_get_embeddings_seq(self.ptr, seq)
            if row == NULL or self.n_outputs == 0:
                raise errors.IndexOutOfRangeError(f"seq_id={seq}: the last decode had no such sequence")
            n = llama_model_n_cls_out(self.model.ptr) if self.facts.pooling == <int> LLAMA_POOLING_TYPE_RANK else (
                self.facts.n_embd_out
            )
            # a plain copy: upstream keeps these in vectors that the next decode clears
            return np.asarray(<float[:n]> row).copy()
        finally:
            self.leave()

    @property
    def output_rows(self):
        """The batch's rows that the last decode gave output for, in order: a new int32 array of shape (n_outputs,)."""
        self.enter()
        try:
            if self.n_outputs == 0:
                return np.empty(0, dtype=np.int32)
            return np.flatnonzero(np.asarray(<int8_t[:self.n_rows]> self.wants_output)).astype(np.int32)
        finally:
            self.leave()
