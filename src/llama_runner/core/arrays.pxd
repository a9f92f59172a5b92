from libc.stdint cimport int8_t, int32_t


cdef class Column:
    cdef Py_buffer buffer
    cdef bint held
    cdef const int32_t *ints
    cdef const float *floats
    cdef const int8_t *bytes
    cdef Py_ssize_t rows
    cdef int columns


cdef Column int_column(str name, value, Py_ssize_t rows, int most_columns)
cdef Column bool_column(str name, value, Py_ssize_t rows)
cdef Column float_rows(str name, value, int columns)
