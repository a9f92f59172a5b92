"""Log-probabilities of many rows of logits at once, without the GIL and in several threads where that pays.

All take float32 logits of shape (n_vocab,) or (n, n_vocab), such as ``Context.logits_matrix`` gives; the numbers of a
row lie side by side, the rows may be any distance apart. Sums are made in double precision. Any thread.
"""

import numpy as np

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT32_MAX, int32_t, int64_t

from llama_runner._c.native cimport (
    LR_SCORES_INFINITE,
    LR_SCORES_NAN,
    LR_SCORES_NO_MEMORY,
    LR_SCORES_NOTHING,
    LR_SCORES_OK,
    lr_argmax,
    lr_log_softmax,
    lr_logprobs,
    lr_rows,
    lr_top_logprobs,
)
from llama_runner.core.arrays cimport Column, int_column

from llama_runner import errors
from llama_runner._check import check_int
from llama_runner.system import usable_physical_cores

__all__ = ["argmax", "log_softmax", "logprobs", "top_logprobs"]

cdef int MAX_THREADS = 512
cdef object ndarray = np.ndarray
cdef object processors = None  # asked once: it reads the system's files


cdef class Rows:
    """The rows of an array, held in place while this lives."""

    cdef Py_buffer buffer
    cdef bint held
    cdef lr_rows c

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef int hold(self, str name, array, int flags) except -1:
        if not isinstance(array, ndarray):
            raise errors.ArgumentTypeError(f"{name} is a float32 array, not {type(array).__name__}")
        try:
            PyObject_GetBuffer(array, &self.buffer, PyBUF_STRIDES | PyBUF_FORMAT | flags)
        except (ValueError, BufferError) as error:
            raise errors.InvalidArgumentError(f"{name} of dtype {array.dtype} cannot be used: {error}") from None
        self.held = True
        cdef Py_buffer *buffer = &self.buffer
        if buffer.format[0] != b"f" or buffer.format[1] != 0:
            raise errors.ArgumentTypeError(f"{name} is a float32 array, not one of dtype {array.dtype}")
        cdef int last = buffer.ndim - 1
        if not 1 <= buffer.ndim <= 2 or not 1 <= buffer.shape[last] <= INT32_MAX:
            raise errors.InvalidArgumentError(f"{name} has shape {array.shape}: it must be (n_vocab,) or (n, n_vocab)")
        if buffer.shape[last] > 1 and buffer.strides[last] != sizeof(float) or (
            last and buffer.strides[0] % sizeof(float)
        ):
            raise errors.InvalidArgumentError(f"{name} has strides {array.strides}: a row must lie in one piece")
        self.c.data = <const float *> buffer.buf
        self.c.n_rows = buffer.shape[0] if last else 1
        self.c.n_columns = buffer.shape[last]
        self.c.stride = buffer.strides[0] // <Py_ssize_t> sizeof(float) if last else 0
        return 0


cdef Rows rows_of(logits):
    cdef Rows rows = Rows.__new__(Rows)
    rows.hold("logits", logits, 0)
    return rows


cdef int threads(n_threads) except -1:
    global processors
    if n_threads is not None:
        return check_int("n_threads", n_threads, 1, MAX_THREADS)
    if processors is None:
        processors = usable_physical_cores()
    return processors


cdef int check_result(int code, int64_t row) except -1:
    if code == <int> LR_SCORES_OK:
        return 0
    if code == <int> LR_SCORES_NO_MEMORY:
        raise errors.OutOfMemoryError("out of memory for the scores")
    raise errors.InvalidArgumentError(f"row {row} of logits " + {
        <int> LR_SCORES_NAN: "has a NaN",
        <int> LR_SCORES_INFINITE: "has +inf, which has no log-probability",
        <int> LR_SCORES_NOTHING: "is -inf throughout: no token is possible",
    }[code])


def log_softmax(logits, out=None, *, n_threads=None):
    """Log-probability of every token: a float32 array of the shape of ``logits``.

    ``out`` is a float32 array of that shape to write to, which may be ``logits`` itself, and is returned. ``n_threads``
    is 1 to 512, None for the physical cores. Where a logit is -inf, so is the result. Raises InvalidArgumentError for a
    row with NaN or +inf, or of -inf throughout; ``out`` is undefined then.
    """
    cdef Rows rows = rows_of(logits), target = Rows.__new__(Rows)
    cdef int64_t bad = 0
    cdef int n = threads(n_threads), code
    if out is None:
        out = np.empty(logits.shape, dtype=np.float32)
    target.hold("out", out, PyBUF_WRITABLE)
    if out.shape != logits.shape:
        raise errors.InvalidArgumentError(f"out has shape {out.shape}: it must be that of logits, {logits.shape}")
    same = target.c.data == rows.c.data and (target.c.stride == rows.c.stride or rows.c.n_rows == 1)
    if not same and np.may_share_memory(out, logits) or (
        target.c.n_rows > 1 and -target.c.n_columns < target.c.stride < target.c.n_columns
    ):
        raise errors.InvalidArgumentError("out overlaps logits, or itself: it must be logits or memory of its own")
    with nogil:
        code = lr_log_softmax(&rows.c, <float *> target.c.data, target.c.stride, n, &bad)
    check_result(code, bad)
    return out


def logprobs(logits, tokens, *, n_threads=None):
    """Log-probability of one given token a row: a float32 array of shape (n,), or a float for a single row.

    ``tokens`` is an int array of shape (n,), or one id. Errors as for ``log_softmax``, and IndexOutOfRangeError for a
    token that the rows do not have.
    """
    cdef Rows rows = rows_of(logits)
    cdef int64_t bad = 0
    cdef int n = threads(n_threads), code
    cdef bint single = rows.buffer.ndim == 1
    if single:
        tokens = [check_int("tokens", tokens, -(2**31), 2**31 - 1)]
    cdef Column ids = int_column("tokens", tokens, rows.c.n_rows, 1)
    check_tokens(ids, rows.c.n_columns)
    found = np.empty(rows.c.n_rows, dtype=np.float32)
    cdef float[::1] out = found
    if rows.c.n_rows:
        with nogil:
            code = lr_logprobs(&rows.c, ids.ints, &out[0], n, &bad)
        check_result(code, bad)
    return float(found[0]) if single else found


cdef int check_tokens(Column ids, int64_t n_vocab) except -1:
    cdef Py_ssize_t i
    for i in range(ids.rows):
        if not 0 <= ids.ints[i] < n_vocab:
            raise errors.IndexOutOfRangeError(f"tokens[{i}]={ids.ints[i]}: the rows have ids from 0 to {n_vocab - 1}")
    return 0


def top_logprobs(logits, k, *, n_threads=None):
    """The ``k`` likeliest tokens of each row: ids (int32) and log-probabilities (float32), each of shape (n, k).

    Likeliest first, the lower id first where two are equal; of shape (k,) for a single row. ``k`` is 1 to n_vocab; the
    log-probabilities are over all tokens. Errors as for ``log_softmax``.
    """
    cdef Rows rows = rows_of(logits)
    cdef int64_t bad = 0, best = check_int("k", k, 1, rows.c.n_columns)
    cdef int n = threads(n_threads), code
    ids = np.empty((rows.c.n_rows, best), dtype=np.int32)
    scores = np.empty((rows.c.n_rows, best), dtype=np.float32)
    cdef int32_t[:, ::1] ids_view = ids
    cdef float[:, ::1] scores_view = scores
    if rows.c.n_rows:
        with nogil:
            code = lr_top_logprobs(&rows.c, best, &ids_view[0, 0], &scores_view[0, 0], n, &bad)
        check_result(code, bad)
    return (ids[0], scores[0]) if rows.buffer.ndim == 1 else (ids, scores)


def argmax(logits, *, n_threads=None):
    """The likeliest token of each row, the lowest id where several are: an int32 array of shape (n,), or an int.

    0 for a row of -inf throughout. Raises InvalidArgumentError for a row with NaN.
    """
    cdef Rows rows = rows_of(logits)
    cdef int64_t bad = 0
    cdef int n = threads(n_threads), code
    found = np.empty(rows.c.n_rows, dtype=np.int32)
    cdef int32_t[::1] out = found
    if rows.c.n_rows:
        with nogil:
            code = lr_argmax(&rows.c, &out[0], n, &bad)
        check_result(code, bad)
    return int(found[0]) if rows.buffer.ndim == 1 else found
