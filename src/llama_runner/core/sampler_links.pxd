from libc.stdint cimport uint32_t

from llama_runner._c.llama cimport llama_sampler
from llama_runner._c.native cimport lr_guard, lr_picker
from llama_runner.core.link cimport Link
from llama_runner.core.vocab cimport Vocab


cdef class SamplerLinks:
    cdef llama_sampler *ptr
    cdef lr_guard *guard
    cdef lr_picker *picker
    cdef list chain  # a Link for each, in order
    cdef str broken  # why it cannot go on, after a link failed
    cdef bint perf_on
    cdef bint attached  # to a context as a backend sampler
    cdef bint spent  # was attached: upstream cannot undo what that does to the links
    cdef bint selects  # whether the last link selects a token
    cdef int n_vocab  # 0: any
    cdef list inside  # vocabularies whose models are kept from being closed now

    cdef int enter(self) except -1
    cdef int admit(self, bint broken, bint spent) except -1
    cdef int hold(self) except -1
    cdef void leave(self) noexcept
    cdef int check_free(self, str what) except -1
    cdef object push(self, llama_sampler *link, Link made)
    cdef int check_fits(self, Link made) except -1
    cdef int replan(self) except -1
    cdef int rotate(self) except -1
    cdef str native_name(self, int i)
    cdef object add_grammar(self, Vocab vocab, grammar, root, bint lazy, list patterns, list tokens)


cdef uint32_t check_seed(seed) except? 0
