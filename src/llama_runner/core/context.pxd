from libc.stdint cimport int8_t, int32_t, int64_t

from llama_runner._c.llama cimport llama_context, llama_context_params, llama_memory_t
from llama_runner._c.native cimport lr_abort, lr_capabilities, lr_facts, lr_guard
from llama_runner.core.batch cimport Batch
from llama_runner.core.context_state cimport ContextState
from llama_runner.core.model cimport Model
from llama_runner.core.outputs cimport Outputs


cdef class Context(ContextState):
    cdef llama_context *ptr
    cdef llama_memory_t mem  # NULL for models that keep none (encoders)
    cdef int memory_parts  # bits of lr_memory_part
    cdef lr_guard *guard  # exclusive in every call: one context, one thread
    cdef lr_abort *abort_state
    cdef readonly Model model  # held: the context reads its weights
    cdef Outputs outputs, retired
    cdef object interrupt  # what a signal handler raised in the middle of a decode
    cdef str poisoned  # why the context is unusable, after an abort inside llama.cpp
    cdef lr_facts facts
    cdef int8_t *wants_output  # of the last decoded batch, a flag a row
    cdef int8_t encoded[256]  # which sequences the last encode() had
    cdef readonly int n_ctx, n_batch, n_ubatch, n_seq_max, n_vocab
    cdef readonly int n_outputs  # rows of output of the last successful decode
    cdef int n_rows
    cdef bint embeds, causal, unified, timed
    cdef bint gave_logits, gave_embeddings  # what the last decode gave
    cdef lr_capabilities able
    cdef object _memory
    cdef dict _settings, _fingerprint
    cdef tuple _adapters  # core.adapter.AdapterUse: each keeps its adapter from being closed
    cdef object _control_vector, _control_digest
    cdef bint reserved
    cdef dict samplers  # sequence: the chain that the graph samples with; held, since the graph points to it
    cdef dict sampled_rows  # row of the last decode: the sequence that it was sampled for; None for none
    cdef bint stranded  # other threads of ggml still look at it: never freed
    cdef object __weakref__

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int check_batch(self, Batch batch, bint encode) except -1
    cdef int note_facts(self, Model model, llama_context_params params) except -1
    cdef int _create(self, Model model, llama_context_params params) except -1
    cdef void poison(self, Batch batch, str why) noexcept
    cdef int reserve_graph(self) except -1
    cdef int run(self, Batch batch, bint encode, object timeout) except -1
    cdef int compute(self, Batch batch, bint encode, int32_t *before, int64_t deadline) except -1
    cdef void note_output(self, Batch batch, bint encode) noexcept
    cdef int keep_views(self) except -1
    cdef int settle(self) except -1
    cdef int any_output(self) except -1
    cdef int check_logits(self) except -1
    cdef int check_embeddings(self) except -1
    cdef float *logits_row(self, int i) except NULL
    cdef int output_index(self, int i) except -1
    cdef object view(self, float *data, Py_ssize_t rows, Py_ssize_t columns)
    cdef int check_seq(self, seq_id) except -1
