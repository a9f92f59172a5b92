from llama_runner._c.llama cimport llama_token
from llama_runner.core.model cimport Model


cdef class Vocab:
    # held, since the vocabulary lives inside the model
    cdef readonly Model model
    cdef readonly int n_tokens
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef llama_token check_token(self, token) except? -1
    cdef bytes piece(self, llama_token token, int lstrip, bint special)
