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

// Why a call below did not do it; *error (lr_free it) says more.
enum lr_why {
    LR_WHY_OK       = 0,
    LR_WHY_REFUSED  = 1,  // llama.cpp's own error
    LR_WHY_EXCEEDED = 2,  // a bound on stack, processor time or memory was reached
    LR_WHY_NO_STACK = 3,  // the machine has no stack of the size that is needed
};

// `source` is a Jinja template, or NULL for the model's own; *chat stays NULL when the model has none. `time_us` bounds
// the processor time of this call.
LR_API int          lr_chat_new(lr_chat ** chat, const struct llama_model * model, const char * source, int64_t time_us,
                                char ** error);
LR_API void         lr_chat_free(lr_chat * chat);
LR_API const char * lr_chat_source(const lr_chat * chat);

// `request`: {"messages": [...], "tools": [...], "add_generation_prompt": bool, "enable_thinking": bool,
// "template_kwargs": {...}} with OpenAI's message form, and optionally "tool_choice", "parallel_tool_calls", "json_schema",
// "grammar", "reasoning_format", "continue_final_message". *prompt is the rendered text.
LR_API int lr_chat_apply(const lr_chat * chat, const char * request, int64_t time_us, char ** prompt, char ** error);

// The same, with everything that common_chat_params says, as a JSON object.
LR_API int lr_chat_render(const lr_chat * chat, const char * request, int64_t time_us, char ** description, char ** error);

// What upstream found the template able to do, as a JSON object of bools; NULL when memory is out.
LR_API char * lr_chat_capabilities(const lr_chat * chat);

// --- chat_parser.cpp: from a model's answer to content, reasoning and tool calls -----------------

typedef struct lr_parser lr_parser;

// `description` is the "parser" of lr_chat_render. One thread at a time for a push; any number for the rest.
LR_API int  lr_parser_new(lr_parser ** parser, const char * description, int64_t time_us, char ** error);
LR_API void lr_parser_free(lr_parser * parser);

// *message: {"content", "reasoning_content", "tool_calls": [{"name", "arguments", "id"}]}. *position is the
// character of `text` from which on it has another form, or -1.
LR_API int lr_parser_parse(const lr_parser * parser, const char * text, size_t size, bool partial, int64_t time_us,
                           char ** message, int64_t * position, char ** error);

// Appends `text` to the answer; *deltas is a list of {"content"}, {"reasoning_content"} or {"index", "name", "arguments", "id"}.
// Bytes of a character that is not complete wait for the next call, unless this is the last. After a failure the text is
// kept, and what was given out stays as it was.
LR_API int    lr_parser_push(lr_parser * parser, const char * text, size_t size, bool last, int64_t time_us, char ** deltas,
                             int64_t * position, char ** error);
LR_API char * lr_parser_message(const lr_parser * parser);  // what the deltas add up to; NULL when memory is out

// --- schema.cpp: JSON schema to grammar ----------------------------------------------------------

// *notes says what the converter left out, or is empty.
LR_API int lr_schema_to_grammar(const char * schema, int64_t time_us, char ** grammar, char ** notes, char ** error);

// Whether llama.cpp can parse a grammar. One that repeats backwards must have been refused before.
LR_API int lr_grammar_check(const char * grammar, int64_t time_us, char ** error);

#ifdef __cplusplus
}
#endif
