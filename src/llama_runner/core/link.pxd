from libc.stddef cimport size_t

from llama_runner._c.llama cimport llama_token_data
from llama_runner._c.native cimport lr_picker
from llama_runner.core.vocab cimport Vocab


cdef class PythonLink:
    cdef object callable, clone_with
    cdef object raised  # what the callable raised, until the call that ran it raises it again
    cdef lr_picker *picker  # of the chain that holds this
    cdef int n_vocab  # of the row that is being sampled

    cdef int call(self, llama_token_data *data, size_t n) except -1
    cdef PythonLink copy(self)


cdef class Link:
    cdef str name
    cdef tuple arguments  # all of them, in the type that C was given
    cdef object seed
    cdef Vocab vocab  # held while the native link points into it
    cdef int n_vocab  # 0: any
    cdef list biased  # tokens that a logit_bias names
    cdef PythonLink python


cdef Link describe(str name, tuple arguments=*, seed=*, int n_vocab=*)
cdef int on_link(void *user, llama_token_data *data, size_t n) noexcept with gil
