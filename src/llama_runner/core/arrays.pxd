from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int8_t, int32_t


cdef class Column:
    cdef Py_buffer buffer
    cdef bint held
    cdef const int32_t *ints
    cdef const float *floats
    cdef const int8_t *bytes
    cdef Py_ssize_t rows
    cdef int columns


cdef inline bint small_int(value, int *out) noexcept:
    """Whether it is a plain int that fits 32 bits, and which: what most calls pass, without a call into Python."""
    cdef int overflow = 0
    cdef long long number
    if type(value) is not int:
        return False
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    out[0] = <int> number
    return overflow == 0 and out[0] == number


cdef Column int_column(str name, value, Py_ssize_t rows, int most_columns)
cdef Column bool_column(str name, value, Py_ssize_t rows)
cdef Column float_rows(str name, value, int columns)
