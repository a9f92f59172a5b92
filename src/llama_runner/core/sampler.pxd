from llama_runner._c.llama cimport llama_sampler, llama_token, llama_token_data
from llama_runner._c.native cimport lr_guard


cdef class SamplerChain:
    cdef llama_sampler *ptr
    cdef lr_guard *guard
    cdef llama_token_data *candidates  # scratch, n_candidates long
    cdef int n_candidates
    cdef list links  # names, in order
    cdef list held  # vocabularies that grammar links point into
    cdef str broken  # why it cannot go on, after a grammar link failed
    cdef bint selects  # whether the last link selects a token
    cdef int inside  # how many of `held` are kept from being closed now

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef object push(self, llama_sampler *link, str name, bint selects)
    cdef llama_token pick(self, const float *logits, int n_vocab) except? -1
    cdef int accept_token(self, llama_token token) except -1
