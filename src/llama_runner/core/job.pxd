from llama_runner._c.engine cimport lr_job
from llama_runner.core.sampler cimport SamplerChain
from llama_runner.core.vocab cimport Vocab


cdef class Job:
    cdef lr_job *ptr
    cdef readonly Vocab vocab  # held: the pieces of the tokens come from it
    cdef readonly SamplerChain chain  # held: the loop's thread samples with it
    cdef readonly tuple stop
    cdef readonly int max_tokens, logprobs
    cdef readonly bint running  # in a loop
    cdef bint sampling  # the chain is entered
    cdef object exception  # what a processor raised
    cdef object __weakref__

    cdef int begin(self) except -1
    cdef void end(self) noexcept
    cdef void let_go(self) noexcept
