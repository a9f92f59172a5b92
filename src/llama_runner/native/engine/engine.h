// The engine's C surface: many sequences of one context, decoded together by a native thread that never needs Python.
//
// A `lr_job` is one sequence's work: feed its tokens (what of them is not resident yet), then sample, up to an end. The
// thread composes each step of one row for every job that samples and slices of those that still read, decodes, samples,
// looks for ends and stop strings, and leaves text and tokens in the job's queue. Python adds and removes jobs, and changes
// the KV memory only between two steps, while the engine is paused. No exception crosses this surface.
#pragma once

#include "llama_runner.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lr_engine lr_engine;
typedef struct lr_job    lr_job;

enum lr_job_end {
    LR_END_NONE      = 0,  // not ended
    LR_END_EOS       = 1,
    LR_END_STOP      = 2,  // a stop string, or a stop token
    LR_END_LENGTH    = 3,
    LR_END_CANCELLED = 4,
    LR_END_TIMEOUT   = 5,
    LR_END_FED       = 6,  // nothing was to be sampled: all tokens are resident
    LR_END_ERROR     = 7,
};

enum lr_job_error {
    LR_ERROR_NONE     = 0,
    LR_ERROR_SAMPLING = 1,  // the chain failed, or left no token
    LR_ERROR_NO_ROOM  = 2,  // the KV memory cannot hold it, alone
    LR_ERROR_DECODE   = 3,  // llama.cpp could not compute it, alone
    LR_ERROR_CLOSED   = 4,  // the engine was closed
    LR_ERROR_POISONED = 5,  // an assertion failed inside llama.cpp: the context is unusable
    LR_ERROR_MEMORY   = 6,  // host memory is out
};

// What the fed tokens are to leave behind.
enum lr_job_want {
    LR_WANT_NOTHING    = 0,
    LR_WANT_LAST       = 1,  // a copy of the last fed token's logits
    LR_WANT_LOGPROBS   = 2,  // of each token that is fed, given those before it
    LR_WANT_EMBEDDINGS = 4,  // a copy of the last fed token's embedding
};

typedef struct lr_job_spec {
    int32_t             seq_id;
    const llama_token * tokens;      // the whole sequence so far; copied
    int32_t             n_tokens;    // at least 1
    int32_t             n_resident;  // how many of them the memory holds; less than n_tokens when something is to be sampled
    int32_t             max_tokens;  // most to sample; 0 to feed only
    lr_picker *         picker;      // NULL when nothing is to be sampled; the caller keeps it alive until the job has ended
    bool                ignore_eos;
    int32_t             n_logprobs;  // -1 for none, else the log-probability of each token and of this many best ones
    const char * const *stops;       // byte strings, not empty
    const size_t *      stop_sizes;
    int32_t             n_stops;
    const llama_token * stop_tokens;
    int32_t             n_stop_tokens;
    const llama_token * shown_tokens;  // special ones that are written out in the text
    int32_t             n_shown_tokens;
    int32_t             priority;     // larger goes first
    int64_t             deadline_us;  // llama_time_us; 0 for none
    int32_t             want;         // of lr_job_want, for the fed tokens
    int32_t             want_from;    // LR_WANT_LOGPROBS: first token that is scored, at least 1
    bool                notify;       // raise an event when there is output (for asyncio)
    int32_t             processor;    // which processor sees its logits before they are sampled from; -1 for none
    int32_t             adapters;     // which set of adapters computes it; 0 is none
    uint64_t            tag;          // the caller's
} lr_job_spec;

LR_API lr_job * lr_job_new(const lr_job_spec * spec, const struct llama_vocab * vocab);
LR_API void     lr_job_free(lr_job * job);  // gives the caller's reference back

// --- any thread

LR_API void lr_job_cancel(lr_job * job);
// Nobody reads it before its end: until then there is nothing to wait for, and it has no pace to keep.
LR_API void lr_job_read_whole(lr_job * job);
// Waits until there is something to take, the job has ended, or the time is over (negative: no limit). True in the first
// two cases.
LR_API bool lr_job_wait(lr_job * job, int64_t timeout_us);

typedef struct lr_job_progress {
    int32_t  end;         // lr_job_end
    int32_t  error;       // lr_job_error
    int32_t  n_tokens;    // fed and sampled
    int32_t  n_resident;  // of those, in the memory
    int32_t  n_reached;   // the most of them that have been there
    int32_t  n_sampled;
    int32_t  n_forced;    // of those sampled, how many a constraint left no choice about
    int32_t  n_computed;  // rows decoded for tokens that were given, or sampled and lost: those read again count again
    bool     marked;      // the sequence of lr_job_mark holds those tokens
    int64_t  added_us, fed_us, first_us, last_us;  // llama_time_us, 0 when it has not come to that
    int64_t  worst_gap_us;                         // between two sampled tokens
    uint64_t tag;
} lr_job_progress;
LR_API void lr_job_look(lr_job * job, lr_job_progress * progress);

typedef struct lr_job_output {
    char *        text;  // whole characters; malloc'ed (lr_free), as are the rest
    size_t        text_size;
    llama_token * tokens;
    int32_t       n_tokens;
    // n_logprobs >= 0: for each token its log-probability, then ids and values of the best
    float *       logprobs;      // n_tokens
    int32_t *     top_ids;       // n_tokens * n_top
    float *       top_logprobs;  // n_tokens * n_top
    int32_t       n_top;
    int32_t       end;  // lr_job_end, set once everything has been taken
} lr_job_output;
// Takes what has come since the last call. 0, or -1 when memory is out.
LR_API int lr_job_take(lr_job * job, lr_job_output * output);

LR_API int32_t lr_job_tokens(lr_job * job, llama_token * out, int32_t room);  // the whole log; returns how many there are
// After the end: which stop string matched (its index, -1 for none), why it failed, what was wanted.
LR_API int32_t lr_job_stop_index(lr_job * job);
LR_API char *  lr_job_error_text(lr_job * job);
LR_API int64_t lr_job_wanted(lr_job * job, int32_t want, float * out, int64_t room);  // how many floats there are

// --- the engine

typedef struct lr_engine_config {
    int32_t slice_us;      // how long a step may take, so that a cancel is prompt
    float   pace;          // how many times its usual length a step may take for the sake of reading, while others stream
    int32_t n_batch;       // most rows of a step
    int32_t n_outputs;     // most of them with output
    bool    every_row;     // the graph gives output for every row and wants to be asked for it
} lr_engine_config;

// A row of logits that a Python processor is to see: it writes what becomes of it to `out`, or sets `failed`.
typedef struct lr_processed {
    uint64_t            tag;
    int32_t             processor;
    const llama_token * tokens;
    int32_t             n_tokens;
    const float *       logits;
    float *             out;
    bool                failed;
} lr_processed;
// Called once a step, on the engine's thread, with all rows of the step that want it.
typedef void (*lr_process_fn)(void * user, lr_processed * rows, int32_t n);

// Uses the context's guard for each step, so that Python can use the context while the engine is paused.
LR_API lr_engine * lr_engine_new(struct llama_context * ctx, lr_guard * guard, lr_abort * abort, lr_rwlock * adapters,
                                 const lr_engine_config * config);
LR_API void lr_engine_set_processor(lr_engine * engine, lr_process_fn process, void * user);  // before the start
LR_API int  lr_engine_start(lr_engine * engine);  // 0, or -1 when no thread can be had
LR_API void lr_engine_stop(lr_engine * engine);   // every job ends with LR_ERROR_CLOSED; joins the thread
LR_API void lr_engine_free(lr_engine * engine);   // stops it first

// Waits for the end of the step under way and holds the next one back. Calls nest.
LR_API void lr_engine_pause(lr_engine * engine);
LR_API void lr_engine_resume(lr_engine * engine);

LR_API void lr_engine_add(lr_engine * engine, lr_job * job);
// Adds a job whose tokens are those of `leader`, a job not fed yet: where the leader has been fed, its sequence is copied to
// the follower's, and both sample from the same logits. Before the leader is added.
LR_API void lr_engine_follow(lr_engine * engine, lr_job * leader, lr_job * job);
// While paused: takes a job out where it stands, to be placed and added again later, with the followers that still wait for
// it; what it was to mark and to watch, and where to hold, is forgotten. Writes their tags, its own first, and returns how many,
// of at most 256; 0 when it has ended meanwhile.
LR_API int32_t lr_engine_take_out(lr_engine * engine, lr_job * job, uint64_t * tags);
// Of a job that is in no engine: where its tokens are now, and how many of them.
LR_API void lr_job_place(lr_job * job, int32_t seq_id, int32_t n_resident);
// Once its first `at` tokens are resident, its sequence is copied to `seq_id`: for memories that cannot be cut later.
// While it is in no engine, or that is paused.
LR_API void lr_job_mark(lr_job * job, int32_t at, int32_t seq_id);
// LR_EVENT_WAKE is raised once, when its first `at` tokens are resident. While it is in no engine, or that is paused.
LR_API void lr_job_watch(lr_job * job, int32_t at);
// It is held back, as for want of room, once it has `at` tokens, of which the last is not in the memory then; 0: no more. While
// it is in no engine, or that is paused.
LR_API void lr_job_hold(lr_job * job, int32_t at);
// Ends it.
LR_API void lr_job_end_now(lr_job * job, int32_t end, int32_t error, const char * why);
// While paused: ends a job, with an error of the caller's such as LR_ERROR_NO_ROOM where `how` is LR_END_ERROR.
LR_API void lr_engine_end(lr_engine * engine, lr_job * job, int32_t how, int32_t error, const char * why);
// While paused: there may be room again for jobs that were held back.
LR_API void lr_engine_unstall(lr_engine * engine);
// While paused: a set of adapters that jobs may name, by its number (not 0), or, with n = 0, one that none names any more.
// The caller keeps the adapters alive. 0, or -1 when memory is out.
LR_API int lr_engine_adapters(lr_engine * engine, int32_t set, struct llama_adapter_lora ** adapters, const float * scales,
                              int32_t n);
// While paused: somebody else has changed which adapters the context has active.
LR_API void lr_engine_adapters_changed(lr_engine * engine);
// For tests: the next `n` decodes fail with `code` instead of being made.
LR_API void lr_engine_fail_next(lr_engine * engine, int32_t code, int32_t n);
// Why the context is unusable since an assertion failed inside llama.cpp (lr_free it), or NULL; *stranded is set where the
// context must never be freed, since other threads may still look at it.
LR_API char * lr_engine_poisoned(lr_engine * engine, bool * stranded);

enum lr_event {
    LR_EVENT_ENDED   = 1,  // jobs have ended
    LR_EVENT_OUTPUT  = 2,  // jobs with `notify` have output
    LR_EVENT_ROOM    = 4,  // jobs are held back
    LR_EVENT_WAKE    = 8,  // lr_engine_wake was called
    LR_EVENT_STOPPED = 16, // the engine has stopped
};
// Waits for events; returns which there are, and forgets them.
LR_API int  lr_engine_wait(lr_engine * engine, int64_t timeout_us);
LR_API void lr_engine_wake(lr_engine * engine);
// Tags of jobs that have ended, or that have output; each once. Returns how many were written.
LR_API int32_t lr_engine_ended(lr_engine * engine, uint64_t * tags, int32_t room);
LR_API int32_t lr_engine_ready(lr_engine * engine, uint64_t * tags, int32_t room);

typedef struct lr_engine_counters {
    int64_t steps, rows, rows_fed, rows_sampled, rows_forced, tokens_sampled, tokens_forced;
    int64_t decode_us, sample_us, idle_us;
    int64_t failed_decodes, retried_rows, adapter_switches;
    int64_t gaps, gap_us;       // between two tokens of a job: how many, and all of them together
    int32_t n_jobs, n_stalled;  // running now; held back for want of room
    double  step_us, row_us;    // measured: the last step that only sampled, and a row of those that only read
} lr_engine_counters;
LR_API void lr_engine_count(lr_engine * engine, lr_engine_counters * counters);

#ifdef __cplusplus
}
#endif
