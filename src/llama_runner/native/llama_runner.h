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

// --- context.cpp: what a context is like ---------------------------------------------------------

// llama_init_from_model, and the model stays as it was: llama.cpp writes a new n_ctx_train into it for YaRN.
LR_API struct llama_context * lr_context_new(struct llama_model * model, struct llama_context_params params);

typedef struct lr_facts {
    int  n_ctx, n_batch, n_ubatch, n_seq_max, n_outputs_max, n_vocab, pooling;
    int  n_embd_out;           // width of a row of embeddings that comes out
    int  n_embd, n_embd_enc;   // width of one that goes in, to the decoder and to the encoder
    int  n_pos;                // positions that a row of embeddings has: 1, or 4 with M-RoPE
    int  n_pos_max;            // positions that the model has learned vectors for; 0 where it computes them
    bool has_encoder, has_decoder;
    bool reads_encoder;        // its decoder attends to what was encoded last
    bool needs_tokens;         // embeddings cannot take the place of tokens
    bool one_seq_a_row;        // a row cannot belong to several sequences
} lr_facts;
LR_API void lr_context_facts(const struct llama_context * ctx, lr_facts * facts);

// Whether the graph that was computed last ends in logits; some models' do only without embeddings.
LR_API bool lr_gave_logits(struct llama_context * ctx);

// Scores that the model's classification head gives; 0 without one.
LR_API int lr_rank_width(const struct llama_model * model);

// Bytes of recurrent state of one sequence.
LR_API size_t lr_rs_bytes_per_seq(const struct llama_model * model);

// The model's own llama_rope_scaling_type.
LR_API int lr_rope_scaling(const struct llama_model * model);

// --- scores.cpp: log-probabilities of many rows of logits ----------------------------------------

typedef struct lr_rows {
    const float * data;
    int64_t n_rows, n_columns;
    int64_t stride;  // floats from one row to the next
} lr_rows;

enum lr_scores {
    LR_SCORES_OK,
    LR_SCORES_NAN,        // a row has a NaN
    LR_SCORES_INFINITE,   // a row has +inf
    LR_SCORES_NOTHING,    // a row is -inf throughout
    LR_SCORES_NO_MEMORY,
};

// The index of the first NaN or infinity, or -1.
LR_API int64_t lr_first_not_finite(const float * data, int64_t n);

// Each returns an lr_scores; what is not LR_SCORES_OK is said of *bad_row, the first such. At most `n_threads` threads.
LR_API int lr_log_softmax(const lr_rows * rows, float * out, int64_t out_stride, int n_threads, int64_t * bad_row);
LR_API int lr_logprobs(const lr_rows * rows, const int32_t * tokens, float * out, int n_threads, int64_t * bad_row);
LR_API int lr_top_logprobs(const lr_rows * rows, int64_t k, int32_t * ids, float * out, int n_threads,
                           int64_t * bad_row);
LR_API int lr_argmax(const lr_rows * rows, int32_t * ids, int n_threads, int64_t * bad_row);

#ifdef __cplusplus
}
#endif
