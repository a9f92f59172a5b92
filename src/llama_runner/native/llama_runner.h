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

// --- vocab.cpp: text to tokens and back, many at once --------------------------------------------

// What is known of a vocabulary beside what llama.cpp knows. Freed before or after the model, with no job left.
typedef struct lr_vocab lr_vocab;
LR_API lr_vocab * lr_vocab_new(const struct llama_vocab * vocab);
LR_API void       lr_vocab_free(lr_vocab * vocab);

// Bytes of stack that llama.cpp takes for each character of a run when it splits text; 0 where it does not recurse.
LR_API size_t lr_vocab_frame_size(lr_vocab * vocab);

enum lr_text_code {
    LR_TEXT_OK         = 0,
    LR_TEXT_ARGUMENT   = 1,  // the text is too large
    LR_TEXT_CAPABILITY = 2,  // the vocabulary cannot do it
    LR_TEXT_MEMORY     = 3,
    LR_TEXT_FAILED     = 4,
};

// Texts to be tokenized, or lists of tokens to be detokenized. What is added is borrowed until the job is freed.
typedef struct lr_text_job lr_text_job;
LR_API lr_text_job * lr_tokenize_new(lr_vocab * vocab, bool add_special, bool parse_special);
LR_API lr_text_job * lr_detokenize_new(lr_vocab * vocab, bool remove_special, bool unparse_special);
LR_API void          lr_text_job_free(lr_text_job * job);
LR_API bool          lr_text_job_add(lr_text_job * job, const void * data, size_t size);  // false: no memory

// Does small work at once, else starts up to `n_threads` threads. Then wait until it returns true.
LR_API void lr_text_job_start(lr_text_job * job, int n_threads);
LR_API bool lr_text_job_wait(lr_text_job * job, int64_t timeout_us);

// Asks for an early end. True: it goes on by itself, ends the shared guard (may be NULL) when it has, and may be freed
// after a wait has returned true. False: it has ended.
LR_API bool lr_text_job_leave(lr_text_job * job, lr_guard * guard);

// Once it has ended: the first input that failed and why, else LR_TEXT_OK; and the tokens, or bytes, of an input.
LR_API int          lr_text_job_error(const lr_text_job * job, size_t * index, const char ** text);
LR_API const void * lr_text_job_item(const lr_text_job * job, size_t index, size_t * size);

// The pieces of `tokens` (NULL: of the ids from 0 on), one after another: returns the bytes in all. `out` and `offsets`
// (count + 1) may be NULL. The ids are within the vocabulary, which is not of type none.
LR_API size_t lr_pieces(const struct llama_vocab * vocab, const llama_token * tokens, size_t count, bool special,
                        char * out, int64_t * offsets);

// One value for each token; the vocabulary is not of type none.
LR_API void lr_vocab_scores(const struct llama_vocab * vocab, float * out);
LR_API void lr_vocab_attrs(const struct llama_vocab * vocab, int32_t * out);

#ifdef __cplusplus
}
#endif
