from llama_runner._c.native cimport lr_constraint, lr_guard
from llama_runner.core.vocab cimport Vocab


cdef class ConstraintVocab:
    cdef readonly Vocab vocab  # it owns what this is a view of


cdef class Constraint:
    cdef lr_constraint *ptr
    cdef lr_guard *guard
    cdef readonly Vocab vocab  # held: the matcher points into its model
    cdef readonly str kind, text
    cdef readonly tuple limits

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef object failure(self, str doing)
