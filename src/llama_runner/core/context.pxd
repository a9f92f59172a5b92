from libc.stdint cimport int8_t, int32_t, int64_t

from llama_runner._c.llama cimport llama_context_params
from llama_runner._c.native cimport lr_abort
from llama_runner.core.batch cimport Batch
from llama_runner.core.context_state cimport ContextState
from llama_runner.core.model cimport Model


cdef class Context(ContextState):
    cdef int memory_parts  # bits of lr_memory_part
    cdef lr_abort *abort_state
    cdef object interrupt  # what a signal handler raised in the middle of a decode
    cdef int8_t encoded[256]  # which sequences the last encode() had
    cdef readonly int n_ctx, n_batch, n_ubatch
    cdef readonly bint swa_full, kv_unified
    cdef bint causal, unified, timed
    cdef object _memory
    cdef dict _settings, _fingerprint
    cdef tuple _adapters  # core.adapter.AdapterUse: each keeps its adapter from being closed
    cdef object _control_vector, _control_digest
    cdef bint reserved
    cdef dict samplers  # sequence: the chain that the graph samples with; held, since the graph points to it
    cdef dict sampled_rows  # row of the last decode: the sequence that it was sampled for; None for none
    cdef bint stranded  # other threads of ggml still look at it: never freed

    cdef object owner  # weak: the loop that decodes with this context
    cdef object __weakref__

    cdef int enter(self) except -1
    cdef int claim(self, object owner) except -1
    cdef void leave(self) noexcept
    cdef int check_batch(self, Batch batch, bint encode) except -1
    cdef int note_facts(self, Model model, llama_context_params params) except -1
    cdef int _create(self, Model model, llama_context_params params) except -1
    cdef void poison(self, Batch batch, str why) noexcept
    cdef int reserve_graph(self) except -1
    cdef int run(self, Batch batch, bint encode, object timeout) except -1
    cdef int compute(self, Batch batch, bint encode, int32_t *before, int64_t deadline) except -1
    cdef void note_output(self, Batch batch, bint encode) noexcept
    cdef int settle(self) except -1
    cdef int check_sampled(self, int i) except -1
