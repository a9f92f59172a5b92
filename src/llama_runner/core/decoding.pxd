from libc.stdint cimport int32_t

from llama_runner._c.llama cimport llama_batch, llama_context, llama_memory_t
from llama_runner._c.native cimport lr_facts
from llama_runner.core.batch cimport Batch


cdef int check_rows(Batch batch, const lr_facts *facts, bint encode, bint at_once, int n_outputs) except -1
cdef void note_positions(llama_memory_t mem, Batch batch, int32_t *before) noexcept
cdef int check_sharing(llama_context *ctx, Batch batch, bint unified, int memory_parts) except -1
cdef int check_window(llama_context *ctx, const llama_batch *batch, int n_ubatch) except -1
cdef tuple take_back(llama_context *ctx, llama_memory_t mem, const int32_t *before, const int32_t *tails, bint computed)
cdef object decode_error(int code, int n_rows, int n_ctx, tuple emptied)
