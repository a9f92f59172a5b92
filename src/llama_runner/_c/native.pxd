# Declarations of native/llama_runner.h, the shim, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type
from llama_runner._c.llama cimport llama_batch, llama_context, llama_model


cdef extern from "llama_runner.h" nogil:
    void lr_free(void *ptr)

    void lr_runtime_init(const char *lib_dir) except +
    int lr_log_pop(char **text, int *mine)
    void lr_log_set_level(int level)
    const char *lr_build_facts()
    bool lr_is_abort(const char *what)

    ctypedef struct lr_guard:
        pass
    lr_guard *lr_guard_new()
    void lr_guard_free(lr_guard *guard)
    bool lr_guard_try_shared(lr_guard *guard)
    void lr_guard_end_shared(lr_guard *guard)
    bool lr_guard_try_exclusive(lr_guard *guard)
    void lr_guard_end_exclusive(lr_guard *guard)

    ctypedef int (*lr_poll_fn)(void *user_data) noexcept
    ctypedef struct lr_abort:
        pass
    lr_abort *lr_abort_new(lr_poll_fn poll, void *user_data)
    void lr_abort_free(lr_abort *abort)
    void lr_abort_attach(lr_abort *abort, llama_context *ctx)
    void lr_abort_arm(lr_abort *abort, bool with_poll, int64_t deadline_us)
    void lr_abort_request(lr_abort *abort)

    ggml_backend_buffer_t lr_outputs_swap(llama_context *ctx, ggml_backend_buffer_t spare)
    void lr_outputs_free(ggml_backend_buffer_t buffer)
    bool lr_flash_attn(const llama_context *ctx)
    void lr_memory_breakdown(const llama_context *ctx, size_t *model, size_t *context, size_t *compute) except +
    size_t lr_kv_bytes_per_cell(const llama_model *model, ggml_type type_k, ggml_type type_v) except +

    ctypedef struct lr_chat:
        pass
    lr_chat *lr_chat_new(const llama_model *model, const char *source, char **error)
    void lr_chat_free(lr_chat *chat)
    const char *lr_chat_source(const lr_chat *chat)
    char *lr_chat_apply(const lr_chat *chat, const char *request, char **error)

    cdef enum lr_memory_part:
        LR_MEMORY_FULL
        LR_MEMORY_WINDOW
        LR_MEMORY_STATE
        LR_MEMORY_LAYOUT_KNOWN
    int lr_memory_kind(const llama_context *ctx)
    int lr_memory_streams(const llama_context *ctx, int part)
    uint32_t lr_memory_window(const llama_context *ctx)
    void lr_memory_use(
        const llama_context *ctx, int part, int stream, uint32_t *size, uint32_t *used, uint32_t *end
    )
    void lr_memory_cells(
        const llama_context *ctx, int part, int stream, int words, int32_t *pos, uint64_t *seqs
    ) except +
    bool lr_memory_pending(const llama_context *ctx)
    int lr_memory_flush(llama_context *ctx, lr_abort *abort, char **error)
    int lr_memory_shared(const llama_context *ctx, int seq, int32_t p0, int32_t p1)
    int32_t lr_memory_first(const llama_context *ctx, int seq)
    bool lr_memory_same(const llama_context *ctx, int a, int b)
    bool lr_memory_window_holds(const llama_context *ctx, int seq, int32_t p0, int32_t end)
    bool lr_memory_move_holds(
        const llama_context *ctx, int seq, int32_t p0, int32_t p1, int32_t delta, int32_t divisor
    )
    void lr_memory_seq_div(llama_context *ctx, int seq, int32_t p0, int32_t p1, int32_t divisor) except +
    bool lr_memory_rolled_back(const llama_context *ctx, int seq)
    int lr_memory_batch_loses(llama_context *ctx, const llama_batch *batch, char **error)
    void lr_memory_tails(const llama_context *ctx, int32_t *tails)
    void lr_memory_take_back(
        llama_context *ctx, const int32_t *before, const int32_t *tails, bool computed, uint8_t *emptied
    ) except +

    int lr_state_check(
        const llama_context *ctx, const uint8_t *data, size_t size, bool whole, bool partial, int32_t *first,
        int32_t *last, char **error
    )
    bool lr_state_covers(const llama_context *ctx, int seq, int32_t first, int32_t last)
