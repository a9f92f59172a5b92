from llama_runner._c.ggml cimport ggml_backend_buffer_t
from llama_runner._c.native cimport lr_guard


cdef class Outputs:
    cdef ggml_backend_buffer_t taken  # NULL while the context still owns the buffer
    cdef lr_guard *views  # counts the views; exclusive when there is none

    cdef bint unused(self) noexcept


cdef class OutputView:
    cdef Outputs outputs  # held: the memory behind `data`
    cdef float *data
    cdef int ndim  # 1: a row, 2: a matrix, of one row too
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]
