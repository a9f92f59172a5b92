from libc.stdint cimport int64_t, uint32_t

from llama_runner.core.context cimport Context


cdef class Memory:
    cdef readonly Context context  # held: the memory lives inside it
    cdef int parts  # bits of lr_memory_part
    cdef object __weakref__

    cdef int enter(self) except -1
    cdef int check_free(self, int dst, int low, int high) except -1
    cdef int check_whole(self, int src, int low, int high) except -1
    cdef int need_shift(self) except -1
    cdef bint can_cut(self, int seq, int low, int high) noexcept
    cdef int check_shift(self, int seq, int low, int high, int64_t delta) except -1
    cdef int check_move(self, int seq, int low, int high, int delta, int divisor, bint together) except -1
    cdef bint has_states(self) noexcept
    cdef object table(self, int part, str name, int stream)
    cdef int use(self, uint32_t *size, uint32_t *used, uint32_t *end) except -1
