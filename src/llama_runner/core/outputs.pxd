from libc.stdint cimport int8_t

from llama_runner._c.ggml cimport ggml_backend_buffer_t
from llama_runner._c.llama cimport llama_context, llama_memory_t
from llama_runner._c.native cimport lr_capabilities, lr_facts, lr_guard
from llama_runner.core.model cimport Model


cdef class Outputs:
    cdef ggml_backend_buffer_t taken  # NULL while the context still owns the buffer
    cdef lr_guard *views  # counts the views; exclusive when there is none

    cdef bint unused(self) noexcept


cdef class OutputView:
    cdef Outputs outputs  # held: the memory behind `data`
    cdef float *data
    cdef int ndim  # 1: a row, 2: a matrix, of one row too
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]


cdef class ContextOutputs:
    cdef llama_context *ptr
    cdef llama_memory_t mem  # NULL for models that keep none (encoders)
    cdef lr_guard *guard  # exclusive in every call: one context, one thread
    cdef unsigned long user  # the thread that holds the pause of the loop that the context belongs to; 0: none
    cdef bint used  # that thread is inside
    cdef readonly Model model  # held: the context reads its weights
    cdef str poisoned  # why the context is unusable, after an abort inside llama.cpp
    cdef lr_facts facts
    cdef lr_capabilities able
    cdef readonly int n_seq_max, n_vocab
    cdef Outputs outputs, retired
    cdef int8_t *wants_output  # of the last decoded batch, a flag a row
    cdef readonly int n_outputs  # rows of output of the last successful decode
    cdef int n_rows
    cdef bint embeds
    cdef bint gave_logits, gave_embeddings  # what the last decode gave

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int check_seq(self, seq_id) except -1
    cdef int keep_views(self) except -1
    cdef object view(self, float *data, Py_ssize_t rows, Py_ssize_t columns)
    cdef int any_output(self) except -1
    cdef int output_index(self, int i) except -1
    cdef int check_logits(self) except -1
    cdef int check_sampled(self, int i) except -1
    cdef int check_embeddings(self) except -1
    cdef float *logits_row(self, int i) except NULL
