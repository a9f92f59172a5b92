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

// --- models.cpp: loading, quantizing, measuring --------------------------------------------------

// Whether a std::regex, as llama.cpp compiles it, is found in `text`: 1 or 0, or -1 with *error set when it is no regex.
LR_API int lr_regex_search(const char * pattern, const char * text, char ** error);

// llama_model_load_from_file for one path, llama_model_load_from_splits for several. *used gets the keys of those
// kv_overrides that llama.cpp took, a line each (lr_free it).
LR_API struct llama_model * lr_model_load(const char ** paths, size_t n_paths, struct llama_model_params params, char ** used);

// llama_model_quantize, which tells of its progress in its log alone: `on_tensor` is called on the calling thread before
// each tensor, with how many are done; a return other than 0 ends the call (-1). *report gets a line a tensor: its name,
// a tab, and the type it gets where that is another one (lr_free it). Returns 0, or what llama.cpp returned.
typedef int (*lr_tensor_fn)(int done, void * user_data);
LR_API int lr_quantize(const char * input, const char * output, const llama_model_quantize_params * params,
        lr_tensor_fn on_tensor, void * user_data, char ** report);

// What a context of `params` over `model`, which was loaded with no_alloc, will occupy, by llama.cpp's own allocators: JSON,
// a list of {"device", "host", "model", "context", "compute", "free", "total"}. Where `load_mode` maps the files at `paths`,
// weights are counted as mapped. Returns NULL with *error set on failure; *error stays NULL where llama.cpp only logged.
LR_API char * lr_measure(struct llama_model * model, struct llama_context_params params, const char ** paths,
        size_t n_paths, enum llama_load_mode load_mode, char ** error);

#ifdef __cplusplus
}
#endif
