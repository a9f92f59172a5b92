// The C surface of our own part of the native library: what llama.h does not offer and the Cython layer needs.
// No exception crosses it. Strings returned through `char *` are malloc'ed and freed with lr_free.
#pragma once

#include "llama.h"

#ifdef _WIN32
#    ifdef LLAMA_BUILD
#        define LR_API __declspec(dllexport)
#    else
#        define LR_API __declspec(dllimport)
#    endif
#else
#    define LR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

LR_API void lr_free(void * ptr);

// --- runtime.cpp: start-up, logs, aborts ---------------------------------------------------------

// Loads the backends (from `lib_dir` where they are separate files) and starts llama.cpp. Runs once.
LR_API void lr_runtime_init(const char * lib_dir);

// Takes the oldest native log line. Returns its ggml_log_level and sets `*text` (lr_free it), or -1 when there is none.
// `*mine` tells whether the calling thread logged it.
LR_API int lr_log_pop(char ** text, int * mine);

// Lines below this ggml_log_level are dropped where they arise.
LR_API void lr_log_set_level(int level);

// Facts of the build as a JSON object, written by CMake.
LR_API const char * lr_build_facts(void);

// True when `what`, the text of a C++ exception, came from a GGML_ASSERT or GGML_ABORT that was caught on the calling
// thread: whatever object was being used is in an unknown state then.
LR_API bool lr_is_abort(const char * what);

// --- guard: one object, one thread ---------------------------------------------------------------

// 0: nobody is inside; n > 0: n readers; -1: one writer.
typedef struct lr_guard lr_guard;
LR_API lr_guard * lr_guard_new(void);
LR_API void       lr_guard_free(lr_guard * guard);
LR_API bool       lr_guard_try_shared(lr_guard * guard);
LR_API void       lr_guard_end_shared(lr_guard * guard);
LR_API bool       lr_guard_try_exclusive(lr_guard * guard);
LR_API void       lr_guard_end_exclusive(lr_guard * guard);

// --- abort: stopping a decode from outside -------------------------------------------------------

// `poll` is called on the decoding thread at most every `poll_us` microseconds; a return other than 0 stops the decode.
typedef int (*lr_poll_fn)(void * user_data);
typedef struct lr_abort lr_abort;
LR_API lr_abort * lr_abort_new(lr_poll_fn poll, void * user_data);
LR_API void       lr_abort_free(lr_abort * abort);
LR_API void       lr_abort_attach(lr_abort * abort, struct llama_context * ctx);
// Before each decode: forgets an earlier request. `deadline_us` is a llama_time_us() after which it stops; 0 for none.
LR_API void       lr_abort_arm(lr_abort * abort, bool with_poll, int64_t deadline_us);
LR_API void       lr_abort_request(lr_abort * abort);  // from any thread

// --- outputs.cpp: the host buffer that holds logits and embeddings -------------------------------

// Takes the output buffer out of `ctx` and puts `spare` (may be NULL; ownership passes) in its place. The pointers that
// llama_get_logits* returned stay valid until the buffer is freed; the next decode writes elsewhere.
LR_API ggml_backend_buffer_t lr_outputs_swap(struct llama_context * ctx, ggml_backend_buffer_t spare);
LR_API void                  lr_outputs_free(ggml_backend_buffer_t buffer);

// Applies pending shifts and copies of the KV memory, which llama.cpp otherwise leaves until the next decode.
// Returns 0, or -1 with *error set.
LR_API int lr_memory_flush(struct llama_context * ctx, char ** error);

// Whether flash attention is in use, AUTO resolved: it lays the cached values out differently.
LR_API bool lr_flash_attn(const struct llama_context * ctx);

// Bytes of model, KV memory and compute buffers that a context occupies, over all devices.
LR_API void lr_memory_breakdown(const struct llama_context * ctx, size_t * model, size_t * context, size_t * compute);

// Bytes of KV memory for each cell over all layers, by the model's own shape; 0 where the memory is not made of cells.
LR_API size_t lr_kv_bytes_per_cell(const struct llama_model * model, enum ggml_type type_k, enum ggml_type type_v);

// --- chat.cpp: Jinja chat templates --------------------------------------------------------------

typedef struct lr_chat lr_chat;

// `source` is a Jinja template, or NULL for the model's own. Returns NULL with *error set on failure; *error stays NULL
// when the model has no template.
LR_API lr_chat *    lr_chat_new(const struct llama_model * model, const char * source, char ** error);
LR_API void         lr_chat_free(lr_chat * chat);
LR_API const char * lr_chat_source(const lr_chat * chat);

// `request`: {"messages": [...], "tools": [...], "add_generation_prompt": bool, "enable_thinking": bool,
// "template_kwargs": {...}} with OpenAI's message form. Returns the rendered prompt or NULL with *error set.
LR_API char * lr_chat_apply(const lr_chat * chat, const char * request, char ** error);

// --- adapters.cpp: LoRA adapters and control vectors ---------------------------------------------

// Who may touch a model's list of adapters: laying out a graph reads it, loading and freeing an adapter change it.
// Nothing that runs under the lock calls Python.
typedef struct lr_rwlock lr_rwlock;
LR_API lr_rwlock * lr_rwlock_new(void);
LR_API void        lr_rwlock_free(lr_rwlock * lock);
LR_API void        lr_rwlock_lock_shared(lr_rwlock * lock);
LR_API void        lr_rwlock_unlock_shared(lr_rwlock * lock);
LR_API void        lr_rwlock_lock(lr_rwlock * lock);
LR_API void        lr_rwlock_unlock(lr_rwlock * lock);

// Lays the graph out again if something changed that calls for it, so that the next decode need not.
// Returns 0, or -1 with *error set: the next call tries again.
LR_API int lr_reserve(struct llama_context * ctx, lr_rwlock * adapters, char ** error);

// The four dimensions (ggml's order) and the ggml_type of a weight; false where the model has none of that name.
LR_API bool lr_model_tensor(const struct llama_model * model, const char * name, int64_t * shape, int * type);

// The name of the weight that makes the logits, that of the embeddings where both are one; NULL where there is none.
LR_API const char * lr_model_output_name(const struct llama_model * model);

// How many of the adapter's `*total` pairs of matrices the graph of the last layout reads.
LR_API int lr_adapter_used(const struct llama_context * ctx, const struct llama_adapter_lora * adapter, int * total);

// How many layers add their direction of the control vector in the graph of the last layout.
LR_API int lr_control_vector_used(struct llama_context * ctx);

// --- capabilities.cpp: what the memory and the graph of a context are like ------------------------

enum lr_memory_kind {
    LR_MEMORY_KIND_NONE,
    LR_MEMORY_KIND_ATTENTION,
    LR_MEMORY_KIND_SLIDING,
    LR_MEMORY_KIND_RECURRENT,
    LR_MEMORY_KIND_HYBRID,
    LR_MEMORY_KIND_UNKNOWN,
};

typedef struct lr_capabilities {
    int          memory_kind;
    const char * memory_class;
    bool         has_logits;
    bool         every_row;  // the graph has output for every row and does not pick those that were asked for
    const char * no_shift;   // why moving positions would not equal computing at the new ones; NULL where it does
} lr_capabilities;

// Right after the context was made: a key shift takes the place of the graph that is looked at.
LR_API void lr_capabilities_of(const struct llama_context * ctx, lr_capabilities * out);

#ifdef __cplusplus
}
#endif
