from libc.stddef cimport size_t

from llama_runner._c.native cimport lr_text_job
from llama_runner.core.model cimport Model


cdef class TextJob:
    cdef lr_text_job *ptr
    cdef Model model
    cdef object vocab  # held, with its model, for as long as native threads read them
    cdef list borrowed  # held: the texts and tokens that they read
    cdef size_t count, size
    cdef bint left  # its caller was interrupted

    @staticmethod
    cdef TextJob of(lr_text_job *ptr, vocab)
    cdef int add_text(self, bytes text) except -1
    cdef int add_tokens(self, ids) except -1
    cdef int run(self, n_threads, str what) except -1
    cdef int wait(self) except -1
    cdef object tokens(self, size_t index)
    cdef tuple flat_tokens(self)
    cdef bytes data(self, size_t index)
    cdef str text(self, size_t index)
