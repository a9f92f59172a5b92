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
LR_API bool       lr_guard_wait_exclusive(lr_guard * guard, int64_t us);  // at most so long
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
// After it: the decode stops once `watch` says so, which is asked every few graph nodes, on the decoding thread.
typedef bool (*lr_watch_fn)(void * user_data);
LR_API void       lr_abort_watch(lr_abort * abort, lr_watch_fn watch, void * user_data);
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
// --- memory.cpp: what the cells of a context's memory hold ----------------------------------------

// A memory has up to three parts; lr_memory_layout returns those that it has, as bits, and LR_MEMORY_LAYOUT_KNOWN when they
// are all of it. A memory of another kind has no part here.
enum lr_memory_part {
    LR_MEMORY_FULL         = 1,  // cells of the layers that attend to everything
    LR_MEMORY_WINDOW       = 2,  // cells of the layers with a sliding window
    LR_MEMORY_STATE        = 4,  // states of recurrent layers, one for a sequence
    LR_MEMORY_LAYOUT_KNOWN = 8,
};
LR_API int      lr_memory_layout(const struct llama_context * ctx);
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

// --- pool.cpp: threads that wait for work --------------------------------------------------------

// Calls fn(data, i) for each i below n, on the calling thread and on up to n_threads - 1 others, and returns when all are
// done. `fn` throws nothing. Any thread; who comes while others compute does all of it alone.
typedef void (*lr_job_fn)(void * data, int i);
LR_API void lr_pool_run(int n, int n_threads, lr_job_fn fn, void * data);

// --- picker.cpp: from a row of logits to a token -------------------------------------------------

// What may be done in place of the first links of a chain with the same result, bit for bit.
enum lr_first { LR_FIRST_OTHER, LR_FIRST_TOP_K, LR_FIRST_MIN_P, LR_FIRST_GREEDY };
typedef struct lr_plan {
    int     n_sparse;    // leading links that change no more than accepted and biased tokens
    int     first;       // an lr_first: what the link after them is
    int32_t k;           // its arguments
    float   p;
    size_t  min_keep;
    bool    calls_back;  // a link calls Python
    bool    constrained; // the very first link is a constraint; n_sparse and first are about those after it
} lr_plan;

enum lr_pick_code {
    LR_PICK_DONE,
    LR_PICK_NO_NUMBER,  // NaN or +inf among the logits
    LR_PICK_NOTHING,    // no candidate is left, or no link selects
    LR_PICK_RULED_OUT,  // every candidate has a logit of -inf
    LR_PICK_OVERFLOW,   // the links made +inf or NaN
    LR_PICK_FAILED,     // a C++ exception: lr_picker_error
};

// A chain (not owned), the tokens that it accepted, and scratch memory. One thread at a time.
typedef struct lr_picker lr_picker;
LR_API lr_picker *         lr_picker_new(void);
LR_API void                lr_picker_free(lr_picker * picker);
LR_API void                lr_picker_plan(lr_picker * picker, struct llama_sampler * chain, struct lr_plan plan);
LR_API int                 lr_picker_bias(lr_picker * picker, llama_token token);  // a logit_bias link names it
LR_API void                lr_picker_reset(lr_picker * picker);
LR_API int                 lr_picker_copy(const lr_picker * from, lr_picker * to);
LR_API const llama_token * lr_picker_accepted(const lr_picker * picker, size_t * n);
// These return an lr_pick_code. `pick` accepts nothing.
LR_API int lr_picker_pick(lr_picker * picker, const float * row, int n_vocab, llama_token * token);
LR_API int lr_picker_pick_from(lr_picker * picker, const llama_token * ids, const float * logits, const float * probs, int n,
                               llama_token * token);
LR_API int lr_picker_accept(lr_picker * picker, llama_token token);
LR_API bool lr_picker_pending(const lr_picker * picker);  // a token was picked and none accepted since
// Draws from `link` as often as was picked: a copy of an adaptive_p link begins with the random state of a new one.
LR_API int          lr_picker_redraw(lr_picker * picker, struct llama_sampler * link);
LR_API const char * lr_picker_error(const lr_picker * picker);
// A row each for n distinct pickers, in threads where that is worth while. `codes` are lr_pick_codes.
LR_API void lr_pick_rows(lr_picker ** pickers, const float * const * data, int n, int n_vocab, int n_threads,
                         llama_token * tokens, int * codes);

// A link that calls `fn` with its candidates; any return but 0 ends the pick with LR_PICK_FAILED. `user` is NULL in a new
// one and in a clone: bind it first.
typedef int (*lr_link_fn)(void * user, llama_token_data * data, size_t n);
LR_API struct llama_sampler * lr_link_new(lr_link_fn fn);
LR_API void                   lr_link_bind(struct llama_sampler * link, void * user);

// --- grammar.cpp: grammars that are looked through before they are run ---------------------------

// A grammar link that allows what llama_sampler_init_grammar's does, and, when `lazy`, from a trigger on what
// llama_sampler_init_grammar_lazy_patterns's does. Returns NULL with *error set for a grammar that cannot be parsed, that
// recurses without end, or that takes time or memory without bound.
LR_API struct llama_sampler * lr_grammar_new(const struct llama_vocab * vocab, const char * text, const char * root, bool lazy,
                                             const char ** patterns, size_t n_patterns, const llama_token * tokens,
                                             size_t n_tokens, char ** error);

// --- llguidance.cpp, constraint_vocab.cpp, constraint.cpp: grammars by llguidance -----------------

// The functions of llguidance's C interface that are used, by name; what is loaded is handed over as their addresses, in
// this order. Binding tries them out on a vocabulary of a few bytes: -1 with *error set where they are others than those
// that are known here. Once is enough. Everything below needs it.
LR_API size_t       lr_llg_symbols(const char * const ** names);
LR_API int          lr_llg_bind(void * const * addresses, char ** error);
LR_API const char * lr_llg_version(void);

// A vocabulary as llguidance wants it: built once, shared by any number of threads. Its model is open whenever it or a
// constraint over it is used. NULL with *error set on failure. Freeing gives the caller's reference back.
typedef struct lr_constraint_vocab lr_constraint_vocab;
LR_API lr_constraint_vocab * lr_constraint_vocab_new(const struct llama_vocab * vocab, char ** error);
LR_API void                  lr_constraint_vocab_free(lr_constraint_vocab * vocab);
// Whether text is tokenized as the model's own tokenizer does it: only then tokens are forced.
LR_API bool                lr_constraint_vocab_canonical(const lr_constraint_vocab * vocab);
LR_API const llama_token * lr_constraint_vocab_ends(const lr_constraint_vocab * vocab, size_t * n);  // the file's own first
// A token's bytes, with 0xff before those of one that stands for no text.
LR_API const uint8_t * lr_constraint_vocab_piece(const lr_constraint_vocab * vocab, llama_token token, size_t * size);
// The tokens of bytes in the middle of a text; how many there are, -1 where it is not canonical.
LR_API int32_t lr_constraint_vocab_tokenize(const lr_constraint_vocab * vocab, const uint8_t * text, size_t size,
                                            llama_token * out, size_t room);

// Of llguidance's parser; 0 is its own default.
typedef struct lr_constraint_limits {
    int64_t max_items_in_row, initial_lexer_fuel, step_lexer_fuel, step_max_items, max_lexer_states, max_grammar_size;
} lr_constraint_limits;

// A grammar, and how far a text has got in it. One thread at a time. `kind` is "json_schema", "regex" or "lark".
typedef struct lr_constraint lr_constraint;
LR_API lr_constraint * lr_constraint_new(lr_constraint_vocab * vocab, const char * kind, const char * data,
                                         const lr_constraint_limits * limits, char ** error);
LR_API void            lr_constraint_free(lr_constraint * constraint);
LR_API lr_constraint * lr_constraint_clone(const lr_constraint * constraint);  // NULL when memory is out
// These return NULL or -1 on failure, and lr_constraint_error says why. The mask has a bit for each token of the
// vocabulary, and stays until the next call.
LR_API const uint32_t * lr_constraint_mask(lr_constraint * constraint);
LR_API int              lr_constraint_consume(lr_constraint * constraint, const llama_token * tokens, size_t n);
LR_API int32_t          lr_constraint_forced(lr_constraint * constraint, llama_token * out, size_t room);  // how many
LR_API int              lr_constraint_rollback(lr_constraint * constraint, size_t n);
LR_API void             lr_constraint_reset(lr_constraint * constraint);
LR_API bool             lr_constraint_accepting(lr_constraint * constraint);      // the text may end here
LR_API bool             lr_constraint_stopped(const lr_constraint * constraint);  // it cannot go on
LR_API size_t           lr_constraint_taken(const lr_constraint * constraint);    // tokens consumed
LR_API const char *     lr_constraint_error(const lr_constraint * constraint);
// A link with a copy of it. What fails is thrown, as by other links: lr_picker_error.
LR_API struct llama_sampler * lr_constraint_link(const lr_constraint * constraint);
// That of the first link of a picker's chain, or NULL.
LR_API lr_constraint * lr_picker_constraint(const lr_picker * picker);
// Picks where `only` alone is allowed, so that random numbers are drawn as they would be, without a row of logits.
LR_API int             lr_picker_pick_only(lr_picker * picker, llama_token only, int n_vocab, llama_token * token);
LR_API void            lr_picker_fail(lr_picker * picker, const char * why);  // what lr_picker_error is to say

// --- model_check.cpp: what a loaded model may still hide ------------------------------------------

// Looks for hyperparameters and tensor types that ggml would assert on a worker thread, where no net catches it.
// Returns 0, or -1 with *error set.
LR_API int lr_model_check(const struct llama_model * model, char ** error);

// --- live.cpp: native objects that are alive, and forks ------------------------------------------

// Whoever makes or frees a native object says so here. `LR_GUARD` counts the objects of Python that have a guard.
typedef enum lr_kind { LR_GUARD, LR_MODEL, LR_CONTEXT, LR_BATCH, LR_SAMPLER, LR_OUTPUTS, LR_CHAT, LR_JOB,
               LR_CONSTRAINT, LR_KINDS } lr_kind;

LR_API void    lr_live_add(int kind, int n);
LR_API int64_t lr_live_count(int kind);

// Whether this process was forked off one in which lr_runtime_init had run. Its threads are not here and its locks may be
// held for good: nothing is computed and nothing freed then.
LR_API bool lr_forked(void);

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

// Whether llama.cpp can parse a grammar. One that repeats backwards must have been refused before.
LR_API int lr_grammar_check(const char * grammar, int64_t time_us, char ** error);

#ifdef __cplusplus
}
#endif
