# Declarations of native/llama_runner.h, the shim, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libcpp cimport bool

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type
from llama_runner._c.llama cimport llama_adapter_lora, llama_context, llama_model


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

    ctypedef struct lr_rwlock:
        pass
    lr_rwlock *lr_rwlock_new()
    void lr_rwlock_free(lr_rwlock *lock)
    void lr_rwlock_lock_shared(lr_rwlock *lock)
    void lr_rwlock_unlock_shared(lr_rwlock *lock)
    void lr_rwlock_lock(lr_rwlock *lock)
    void lr_rwlock_unlock(lr_rwlock *lock)
    int lr_reserve(llama_context *ctx, lr_rwlock *adapters, char **error)
    bool lr_model_tensor(const llama_model *model, const char *name, int64_t *shape, int *type) except +
    const char *lr_model_output_name(const llama_model *model)
    int lr_adapter_used(const llama_context *ctx, const llama_adapter_lora *adapter, int *total) except +
    int lr_control_vector_used(llama_context *ctx) except +

    cdef enum lr_memory_kind:
        LR_MEMORY_KIND_NONE
        LR_MEMORY_KIND_ATTENTION
        LR_MEMORY_KIND_SLIDING
        LR_MEMORY_KIND_RECURRENT
        LR_MEMORY_KIND_HYBRID
        LR_MEMORY_KIND_UNKNOWN
    ctypedef struct lr_capabilities:
        int memory_kind
        const char *memory_class
        bool has_logits
        bool every_row
        const char *no_shift
    void lr_capabilities_of(const llama_context *ctx, lr_capabilities *out) except +
