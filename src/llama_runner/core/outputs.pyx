"""The memory that logits and embeddings are read from, and the views of it that Python holds."""

import cython

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES

from llama_runner._c.native cimport (
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_guard_try_exclusive,
    lr_outputs_free,
)

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
