# Declarations of native/engine/engine.h, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp cimport bool

from llama_runner._c.llama cimport llama_adapter_lora, llama_context, llama_token, llama_vocab
from llama_runner._c.native cimport lr_abort, lr_guard, lr_picker, lr_rwlock


cdef extern from "engine/engine.h" nogil:
    ctypedef struct lr_engine:
        pass
    ctypedef struct lr_job:
        pass

    cdef enum lr_job_end:
        LR_END_NONE
        LR_END_EOS
        LR_END_STOP
        LR_END_LENGTH
        LR_END_CANCELLED
        LR_END_TIMEOUT
        LR_END_FED
        LR_END_ERROR

    cdef enum lr_job_error:
        LR_ERROR_NONE
        LR_ERROR_SAMPLING
        LR_ERROR_NO_ROOM
        LR_ERROR_DECODE
        LR_ERROR_CLOSED
        LR_ERROR_POISONED
        LR_ERROR_MEMORY

    cdef enum lr_job_want:
        LR_WANT_NOTHING
        LR_WANT_LAST
        LR_WANT_LOGPROBS
        LR_WANT_EMBEDDINGS

    ctypedef struct lr_job_spec:
        int32_t seq_id
        const llama_token *tokens
        int32_t n_tokens
        int32_t n_resident
        int32_t max_tokens
        lr_picker *picker
        bool ignore_eos
        int32_t n_logprobs
        const char * const *stops
        const size_t *stop_sizes
        int32_t n_stops
        const llama_token *stop_tokens
        int32_t n_stop_tokens
        const llama_token *shown_tokens
        int32_t n_shown_tokens
        int32_t priority
        int64_t deadline_us
        int32_t want
        int32_t want_from
        bool notify
        int32_t processor
        int32_t adapters
        uint64_t tag

    lr_job *lr_job_new(const lr_job_spec *spec, const llama_vocab *vocab)
    void lr_job_free(lr_job *job)
    void lr_job_cancel(lr_job *job)
    void lr_job_read_whole(lr_job *job)
    bool lr_job_wait(lr_job *job, int64_t timeout_us)

    ctypedef struct lr_job_progress:
        int32_t end
        int32_t error
        int32_t n_tokens
        int32_t n_resident
        int32_t n_reached
        int32_t n_sampled
        int32_t n_forced
        int32_t n_computed
        bool marked
        int64_t added_us
        int64_t fed_us
        int64_t first_us
        int64_t last_us
        int64_t worst_gap_us
        uint64_t tag

    void lr_job_look(lr_job *job, lr_job_progress *progress)

    ctypedef struct lr_job_output:
        char *text
        size_t text_size
        llama_token *tokens
        int32_t n_tokens
        float *logprobs
        int32_t *top_ids
        float *top_logprobs
        int32_t n_top
        int32_t end

    int lr_job_take(lr_job *job, lr_job_output *output)
    int32_t lr_job_tokens(lr_job *job, llama_token *out, int32_t room)
    int32_t lr_job_stop_index(lr_job *job)
    char *lr_job_error_text(lr_job *job)
    int64_t lr_job_wanted(lr_job *job, int32_t want, float *out, int64_t room)

    ctypedef struct lr_engine_config:
        int32_t slice_us
        float pace
        int32_t n_batch
        int32_t n_outputs
        bool every_row

    ctypedef struct lr_processed:
        uint64_t tag
        int32_t processor
        const llama_token *tokens
        int32_t n_tokens
        const float *logits
        float *out
        bool failed

    ctypedef void (*lr_process_fn)(void *user, lr_processed *rows, int32_t n) noexcept

    lr_engine *lr_engine_new(
        llama_context *ctx, lr_guard *guard, lr_abort *abort, lr_rwlock *adapters, const lr_engine_config *config
    )
    void lr_engine_set_processor(lr_engine *engine, lr_process_fn process, void *user)
    int lr_engine_start(lr_engine *engine)
    void lr_engine_stop(lr_engine *engine)
    void lr_engine_free(lr_engine *engine)
    void lr_engine_pause(lr_engine *engine)
    void lr_engine_resume(lr_engine *engine)
    void lr_engine_add(lr_engine *engine, lr_job *job)
    void lr_engine_follow(lr_engine *engine, lr_job *leader, lr_job *job)
    int32_t lr_engine_take_out(lr_engine *engine, lr_job *job, uint64_t *tags)
    void lr_job_place(lr_job *job, int32_t seq_id, int32_t n_resident)
    void lr_job_mark(lr_job *job, int32_t at, int32_t seq_id)
    void lr_job_watch(lr_job *job, int32_t at)
    void lr_job_hold(lr_job *job, int32_t at)
    void lr_job_end_now(lr_job *job, int32_t end, int32_t error, const char *why)
    void lr_engine_end(lr_engine *engine, lr_job *job, int32_t how, int32_t error, const char *why)
    void lr_engine_unstall(lr_engine *engine)
    int lr_engine_adapters(
        lr_engine *engine, int32_t set, llama_adapter_lora **adapters, const float *scales, int32_t n
    ) except +
    void lr_engine_adapters_changed(lr_engine *engine)
    void lr_engine_fail_next(lr_engine *engine, int32_t code, int32_t n)
    char *lr_engine_poisoned(lr_engine *engine, bool *stranded)

    cdef enum lr_event:
        LR_EVENT_ENDED
        LR_EVENT_OUTPUT
        LR_EVENT_ROOM
        LR_EVENT_WAKE
        LR_EVENT_STOPPED

    int lr_engine_wait(lr_engine *engine, int64_t timeout_us)
    void lr_engine_wake(lr_engine *engine)
    int32_t lr_engine_ended(lr_engine *engine, uint64_t *tags, int32_t room)
    int32_t lr_engine_ready(lr_engine *engine, uint64_t *tags, int32_t room)

    ctypedef struct lr_engine_counters:
        int64_t steps
        int64_t rows
        int64_t rows_fed
        int64_t rows_sampled
        int64_t rows_forced
        int64_t tokens_sampled
        int64_t tokens_forced
        int64_t decode_us
        int64_t sample_us
        int64_t idle_us
        int64_t failed_decodes
        int64_t retried_rows
        int64_t adapter_switches
        int64_t gaps
        int64_t gap_us
        int32_t n_jobs
        int32_t n_stalled
        double step_us
        double row_us

    void lr_engine_count(lr_engine *engine, lr_engine_counters *counters)
