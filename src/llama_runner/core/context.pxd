from libc.stdint cimport int8_t, int32_t

from llama_runner._c.llama cimport llama_context, llama_context_params, llama_memory_t
from llama_runner._c.native cimport lr_abort, lr_guard
from llama_runner.core.batch cimport Batch
from llama_runner.core.model cimport Model
from llama_runner.core.outputs cimport Outputs


cdef class Context:
    cdef llama_context *ptr
    cdef llama_memory_t mem  # NULL for models that keep none (encoders)
    cdef lr_guard *guard  # exclusive in every call: one context, one thread
    cdef lr_abort *abort_state
    cdef readonly Model model  # held: the context reads its weights
    cdef Outputs outputs, retired
    cdef object interrupt  # what a signal handler raised in the middle of a decode
    cdef str poisoned  # why the context is unusable, after an abort inside llama.cpp
    cdef int8_t *wants_output  # of the last decoded batch, a flag a row
    cdef readonly int n_ctx, n_batch, n_ubatch, n_seq_max, n_vocab
    cdef readonly int n_outputs  # rows of output of the last successful decode
    cdef int n_rows, pooling
    cdef bint embeds, unified
    cdef int n_outputs_max
    cdef object _memory
    cdef dict _settings, _fingerprint
    cdef bint reserved
    cdef object owner  # weak: the loop that decodes with this context
    cdef object __weakref__

    cdef int enter(self) except -1
    cdef int claim(self, object owner) except -1
    cdef void leave(self) noexcept
    cdef int check_batch(self, Batch batch, bint encode) except -1
    cdef int note_facts(self, Model model, llama_context_params params) except -1
    cdef int _create(self, Model model, llama_context_params params) except -1
    cdef void note_positions(self, Batch batch, int32_t *before) noexcept
    cdef int fail(self, Batch batch, int32_t *before, int code) except -1
    cdef int run(self, Batch batch, bint encode, object timeout) except -1
    cdef int keep_views(self) except -1
    cdef int take_back(self, Batch batch, int32_t *before) except -1
    cdef float *logits_row(self, int i) except NULL
    cdef int output_index(self, int i) except -1
    cdef object view(self, float *data, Py_ssize_t rows, Py_ssize_t columns)
    cdef int check_seq(self, seq_id) except -1
