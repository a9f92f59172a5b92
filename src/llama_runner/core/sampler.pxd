from llama_runner._c.llama cimport llama_token
from llama_runner.core.context cimport Context
from llama_runner.core.sampler_links cimport SamplerLinks


cdef class SamplerChain(SamplerLinks):
    cdef object __weakref__

    cdef int check_row(self, int n_vocab) except -1
    cdef llama_token pick(self, const float *logits, int n_vocab) except? -1
    cdef llama_token pick_output(self, Context ctx, int i) except? -1
    cdef object take_raised(self)
    cdef int fail(self, int code) except -1
    cdef int accept_token(self, llama_token token) except -1
    cdef int restart(self) except -1
    cdef int adopt(self, SamplerChain source) except -1
    cdef int after_copy(self, SamplerChain source) except -1
    cdef int check_accepted(self) except -1
    cdef int check_same(self, SamplerChain source) except -1
