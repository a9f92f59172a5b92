# Declarations of native/llama_runner.h, the shim, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libcpp cimport bool

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type
from llama_runner._c.llama cimport llama_context, llama_model


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
    enum lr_why:
        LR_WHY_OK
        LR_WHY_REFUSED
        LR_WHY_EXCEEDED
        LR_WHY_NO_STACK
    int lr_chat_new(lr_chat **chat, const llama_model *model, const char *source, int64_t time_us, char **error)
    void lr_chat_free(lr_chat *chat)
    const char *lr_chat_source(const lr_chat *chat)
    int lr_chat_apply(const lr_chat *chat, const char *request, int64_t time_us, char **prompt, char **error)
    int lr_chat_render(const lr_chat *chat, const char *request, int64_t time_us, char **description, char **error)
    char *lr_chat_capabilities(const lr_chat *chat)

    ctypedef struct lr_parser:
        pass
    int lr_parser_new(lr_parser **parser, const char *description, int64_t time_us, char **error)
    void lr_parser_free(lr_parser *parser)
    int lr_parser_parse(const lr_parser *parser, const char *text, size_t size, bool partial, int64_t time_us,
                        char **message, int64_t *position, char **error)
    int lr_parser_push(lr_parser *parser, const char *text, size_t size, bool last, int64_t time_us, char **deltas,
                       int64_t *position, char **error)
    char *lr_parser_message(const lr_parser *parser)

    int lr_schema_to_grammar(const char *schema, int64_t time_us, char **grammar, char **notes, char **error)
    int lr_grammar_check(const char *grammar, int64_t time_us, char **error)
