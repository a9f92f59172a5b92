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
LR_API int lr_log_pop(char ** text);

// Takes the oldest of the last warnings and errors that the calling thread caused (lr_free it), or NULL.
LR_API char * lr_log_pop_mine(void);

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
// After an assertion that unwound out of a computation with several threads: the others still wait for this one, so it must
// not compute again, and what they look at must not be freed. The thread is marked for good.
LR_API void       lr_thread_strand(void);
LR_API bool       lr_thread_stranded(void);
// For tests: the next decode fails an assertion, on the thread that called it.
LR_API void       lr_abort_fail(lr_abort * abort);

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

// --- model_check.cpp: what a loaded model may still hide ------------------------------------------

// Looks for hyperparameters and tensor types that ggml would assert on a worker thread, where no net catches it.
// Returns 0, or -1 with *error set.
LR_API int lr_model_check(const struct llama_model * model, char ** error);

// --- live.cpp: native objects that are alive, and forks ------------------------------------------

// Whoever makes or frees a native object says so here. `LR_GUARD` counts the objects of Python that have a guard.
typedef enum lr_kind { LR_GUARD, LR_MODEL, LR_CONTEXT, LR_BATCH, LR_SAMPLER, LR_OUTPUTS, LR_CHAT, LR_KINDS } lr_kind;

LR_API void    lr_live_add(int kind, int n);
LR_API int64_t lr_live_count(int kind);

// Whether this process was forked off one in which lr_runtime_init had run. Its threads are not here and its locks may be
// held for good: nothing is computed and nothing freed then.
LR_API bool lr_forked(void);

#ifdef __cplusplus
}
#endif
