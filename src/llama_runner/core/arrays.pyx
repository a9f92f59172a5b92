"""What a caller gives as arrays, read through the buffer protocol: fast for the right type, checked for any other."""

import numpy as np

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int32_t

from llama_runner import errors

cdef object ndarray = np.ndarray
cdef int MAX_COLUMNS = 1 << 20


cdef class Column:
    """Rows of one type that lie one after another, held in place while this lives."""

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)


cdef Column plain(array, Py_ssize_t itemsize, bytes formats):
    """The array's memory, or None where it is of another type or does not lie in one piece."""
    if type(array) is not ndarray:
        return None
    cdef Column column = Column.__new__(Column)
    try:
        PyObject_GetBuffer(array, &column.buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    except (ValueError, BufferError):
        return None
    column.held = True
    cdef Py_buffer *buffer = &column.buffer
    if buffer.itemsize != itemsize or buffer.format[0] not in formats or buffer.format[1] != 0:
        return None
    if not (buffer.ndim == 1 or buffer.ndim == 2 and buffer.shape[1] <= MAX_COLUMNS):
        return None
    column.rows = buffer.shape[0]
    column.columns = <int> buffer.shape[1] if buffer.ndim == 2 else 1
    column.ints = <const int32_t *> buffer.buf
    column.floats = <const float *> buffer.buf
    column.bytes = <const int8_t *> buffer.buf
    return column


cdef object as_array(str name, value, str kinds, str wanted):
    """Anything else that NumPy makes a flat or two-dimensional array of such numbers of."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise errors.ArgumentTypeError(f"{name} is {wanted}, not {type(value).__name__}") from None
    if array.size == 0 and array.ndim == 1:
        return array[:0].astype(np.int32)
    if array.dtype.kind not in kinds or not 1 <= array.ndim <= 2:
        raise errors.ArgumentTypeError(
            f"{name} is {wanted}, not {type(value).__name__} of shape {array.shape}, dtype {array.dtype}"
        )
    return array


cdef Column int_column(str name, value, Py_ssize_t rows, int most_columns):
    """Integers of shape (n,) or (n, k); ``rows`` is what n must be, or -1."""
    cdef Column column = plain(value, 4, b"il")
    if column is None:
        array = as_array(name, value, "iu", "an array of integers")
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < -(2**31) or high >= 2**31:
            raise errors.InvalidArgumentError(f"{name} has {low if low < -(2**31) else high}: it does not fit 32 bits")
        column = plain(np.ascontiguousarray(array, dtype=np.int32), 4, b"il")
    if column is None or not 1 <= column.columns <= most_columns:
        most = f"(n,) or (n, k) with k up to {most_columns}" if most_columns > 1 else "(n,)"
        raise errors.InvalidArgumentError(f"{name} has shape {np.shape(value)}: it must be {most}")
    return same_rows(name, column, rows)


cdef Column bool_column(str name, value, Py_ssize_t rows):
    """Bools of shape (n,)."""
    cdef Column column = plain(value, 1, b"?")
    if column is None:
        array = as_array(name, value, "b", "a bool array, or 'last', 'all' or 'none'")
        column = plain(np.ascontiguousarray(array, dtype=np.bool_), 1, b"?")
    if column is None or column.buffer.ndim != 1:
        raise errors.InvalidArgumentError(f"{name} has shape {np.shape(value)}: it must be (n,)")
    return same_rows(name, column, rows)


cdef Column float_rows(str name, value, int columns):
    """Floats of shape (n, columns)."""
    cdef Column column = plain(value, 4, b"f")
    if column is None:
        array = as_array(name, value, "fiu", "a float array of embeddings")
        with np.errstate(over="ignore"):  # what becomes infinite is refused by its row
            column = plain(np.ascontiguousarray(array, dtype=np.float32), 4, b"f")
    if column is None or column.buffer.ndim != 2 or column.columns != columns:
        raise errors.InvalidArgumentError(f"{name} has shape {np.shape(value)}: it must be (n, {columns})")
    return column


cdef Column same_rows(str name, Column column, Py_ssize_t rows):
    if rows >= 0 and column.rows != rows:
        raise errors.InvalidArgumentError(f"{name} has {column.rows} rows: there are {rows}")
    return column
