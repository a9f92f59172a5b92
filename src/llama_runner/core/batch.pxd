from libc.stdint cimport int8_t, int32_t

from llama_runner._c.llama cimport llama_batch, llama_pos, llama_seq_id, llama_token
from llama_runner._c.native cimport lr_guard


cdef class Batch:
    cdef llama_batch c
    # exclusive while a decode reads it without the GIL
    cdef lr_guard *guard
    cdef llama_seq_id *seq_flat  # capacity * seq_width ids; c.seq_id points into it
    cdef readonly int capacity
    cdef int seq_width
    cdef readonly int n_outputs
    cdef readonly int n_embd  # width of a row of embeddings; 0 where the rows are tokens
    cdef bint wide  # whether a row was given four positions
    cdef int32_t *pos_rest  # capacity * 3: those after the first, for embeddings
    cdef int32_t *sections  # capacity * 4: all of them as llama.cpp wants them, once a decode asks

    cdef int _check_room(self, int n) except -1
    cdef int _check_kind(self, bint embeddings) except -1
    cdef int grow_rows(self, int width) except -1
    cdef void put(self, llama_token token, llama_pos pos, llama_seq_id seq_id, bint logits) noexcept
    cdef int add_shared(self, token, pos, seq_ids, logits) except -1
    cdef int append(self, rows, pos, seq_ids, logits) except -1
    cdef int check_ids(self, int n_vocab, int n_seq_max) except -1
    cdef int check_positions(self, const int32_t *before, int n_pos) except -1
    cdef llama_batch as_given(self, int n_pos) except *
