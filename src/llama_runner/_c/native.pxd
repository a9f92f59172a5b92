# Declarations of native/llama_runner.h, the shim, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type
from llama_runner._c.llama cimport llama_context, llama_context_params, llama_model


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
    int lr_memory_flush(llama_context *ctx, char **error)
    bool lr_flash_attn(const llama_context *ctx)
    void lr_memory_breakdown(const llama_context *ctx, size_t *model, size_t *context, size_t *compute) except +
    size_t lr_kv_bytes_per_cell(const llama_model *model, ggml_type type_k, ggml_type type_v) except +

    ctypedef struct lr_chat:
        pass
    lr_chat *lr_chat_new(const llama_model *model, const char *source, char **error)
    void lr_chat_free(lr_chat *chat)
    const char *lr_chat_source(const lr_chat *chat)
    char *lr_chat_apply(const lr_chat *chat, const char *request, char **error)

    llama_context *lr_context_new(llama_model *model, llama_context_params params) except +
    ctypedef struct lr_facts:
        int n_ctx, n_batch, n_ubatch, n_seq_max, n_outputs_max, n_vocab, pooling
        int n_embd_out
        int n_embd, n_embd_enc
        int n_pos
        int n_pos_max
        bool has_encoder, has_decoder
        bool reads_encoder
        bool needs_tokens
        bool one_seq_a_row
    void lr_context_facts(const llama_context *ctx, lr_facts *facts) except +
    bool lr_gave_logits(llama_context *ctx)
    int lr_rank_width(const llama_model *model)
    size_t lr_rs_bytes_per_seq(const llama_model *model) except +
    int lr_rope_scaling(const llama_model *model)

    ctypedef struct lr_rows:
        const float *data
        int64_t n_rows, n_columns
        int64_t stride
    enum lr_scores:
        LR_SCORES_OK
        LR_SCORES_NAN
        LR_SCORES_INFINITE
        LR_SCORES_NOTHING
        LR_SCORES_NO_MEMORY
    int64_t lr_first_not_finite(const float *data, int64_t n)
    int lr_log_softmax(const lr_rows *rows, float *out, int64_t out_stride, int n_threads, int64_t *bad_row)
    int lr_logprobs(const lr_rows *rows, const int32_t *tokens, float *out, int n_threads, int64_t *bad_row)
    int lr_top_logprobs(
        const lr_rows *rows, int64_t k, int32_t *ids, float *out, int n_threads, int64_t *bad_row)
    int lr_argmax(const lr_rows *rows, int32_t *ids, int n_threads, int64_t *bad_row)
