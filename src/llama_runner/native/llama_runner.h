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

// --- memory.cpp: what the cells of a context's memory hold ----------------------------------------

// A memory has up to three parts; lr_memory_kind returns those that it has, as bits, and LR_MEMORY_LAYOUT_KNOWN when they
// are all of it. A memory of another kind has no part here.
enum lr_memory_part {
    LR_MEMORY_FULL         = 1,  // cells of the layers that attend to everything
    LR_MEMORY_WINDOW       = 2,  // cells of the layers with a sliding window
    LR_MEMORY_STATE        = 4,  // states of recurrent layers, one for a sequence
    LR_MEMORY_LAYOUT_KNOWN = 8,
};
LR_API int      lr_memory_kind(const struct llama_context * ctx);
LR_API int      lr_memory_streams(const struct llama_context * ctx, int part);
LR_API uint32_t lr_memory_window(const struct llama_context * ctx);  // positions that a window spans

// Cells of one stream: how many there are, how many hold something, and one more than the highest of these.
LR_API void lr_memory_use(const struct llama_context * ctx, int part, int stream, uint32_t * size, uint32_t * used,
                          uint32_t * end);
// For each cell of a stream its position, -1 where it is free, and `words` words of bits that say which sequences own it.
// `seqs` is all zero before.
LR_API void lr_memory_cells(const struct llama_context * ctx, int part, int stream, int words, int32_t * pos, uint64_t * seqs);

// Whether keys wait to be moved to new positions; lr_memory_flush does that, and pending copies between streams, which
// llama.cpp leaves until the next decode. No abort request is heard meanwhile. Returns 0, or -1 with *error set.
LR_API bool lr_memory_pending(const struct llama_context * ctx);
LR_API int  lr_memory_flush(struct llama_context * ctx, lr_abort * abort, char ** error);

// Another sequence that owns a cell of this one in [p0, p1), or -1.
LR_API int lr_memory_shared(const struct llama_context * ctx, int seq, int32_t p0, int32_t p1);

// The first position of a sequence in the full part, -1 where it is empty; 0 where there is no such part.
LR_API int32_t lr_memory_first(const struct llama_context * ctx, int seq);

// Whether two sequences own exactly the same cells.
LR_API bool lr_memory_same(const struct llama_context * ctx, int a, int b);

// Whether the windowed part still has every position of [p0, end) that a token at `end` attends to; and the same for the
// token after the last once [p0, p1) has been moved by `delta`, or divided where `divisor` is more than 1.
LR_API bool lr_memory_window_holds(const struct llama_context * ctx, int seq, int32_t p0, int32_t end);
LR_API bool lr_memory_move_holds(const struct llama_context * ctx, int seq, int32_t p0, int32_t p1, int32_t delta,
                                 int32_t divisor);
LR_API void lr_memory_seq_div(struct llama_context * ctx, int seq, int32_t p0, int32_t p1, int32_t divisor);

// Whether the state of a sequence is one from before its last tokens, chosen by llama_memory_seq_rm, until it is decoded.
LR_API bool lr_memory_rolled_back(const struct llama_context * ctx, int seq);

// Finding room for all parts of a batch beforehand, llama.cpp drops positions that the last part no longer attends to and
// the first still does. Returns a sequence that would lose some, with the memory as it was, or -1; *error set on failure.
LR_API int lr_memory_batch_loses(struct llama_context * ctx, const struct llama_batch * batch, char ** error);

// After a decode that failed: removes what it left. `before` has the last position of each of the 256 sequences from
// before it, -2 for one that was not in the batch, and `tails` what lr_memory_tails wrote then. `emptied[seq]` becomes 1
// for a sequence that could not be brought back, and is empty now.
LR_API void lr_memory_tails(const struct llama_context * ctx, int32_t * tails);
LR_API void lr_memory_take_back(struct llama_context * ctx, const int32_t * before, const int32_t * tails, bool computed,
                                uint8_t * emptied);

// --- state.cpp: saved states, before llama.cpp reads them ------------------------------------------

// Whether `data` is, byte for byte of its structure, what llama_state_seq_get_data_ext (or llama_state_get_data where
// `whole`) writes for a memory like that of `ctx`. Returns 0 and the first and last position of a sequence (last is -1
// when it is empty), or -1 with *error set. Only for memories with LR_MEMORY_LAYOUT_KNOWN.
LR_API int lr_state_check(const struct llama_context * ctx, const uint8_t * data, size_t size, bool whole, bool partial,
                          int32_t * first, int32_t * last, char ** error);

// Whether the full part of the memory has every position from `first` to `last` of a sequence.
LR_API bool lr_state_covers(const struct llama_context * ctx, int seq, int32_t first, int32_t last);

#ifdef __cplusplus
}
#endif
