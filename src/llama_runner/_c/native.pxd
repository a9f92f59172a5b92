# Declarations of native/llama_runner.h, the shim, in its order.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdint cimport int32_t, int64_t
from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type
from llama_runner._c.llama cimport llama_context, llama_context_params, llama_model
from llama_runner._c.llama cimport (
    llama_context,
    llama_model,
    llama_sampler,
    llama_token,
    llama_token_data,
    llama_vocab,
)
from llama_runner._c.llama cimport (
    llama_context,
    llama_context_params,
    llama_load_mode,
    llama_model,
    llama_model_params,
    llama_model_quantize_params,
)
from llama_runner._c.llama cimport llama_context, llama_model, llama_token, llama_vocab
from llama_runner._c.llama cimport llama_adapter_lora, llama_context, llama_model
from llama_runner._c.llama cimport llama_batch, llama_context, llama_model
from llama_runner._c.llama cimport llama_batch, llama_context, llama_model


cdef extern from "llama_runner.h" nogil:
    void lr_free(void *ptr)

    void lr_runtime_init(const char *lib_dir) except +
    int lr_log_pop(char **text)
    char *lr_log_pop_mine()
    void lr_log_set_level(int level)
    const char *lr_build_facts()
    bool lr_is_abort(const char *what)

    ctypedef struct lr_guard:
        pass
    lr_guard *lr_guard_new()
    void lr_guard_free(lr_guard *guard)
    bool lr_guard_try_shared(lr_guard *guard)
    void lr_guard_end_shared(lr_guard *guard)
    bool lr_guard_try_exclusive(lr_guard *guard)
    bool lr_guard_wait_exclusive(lr_guard *guard, int64_t us) nogil
    void lr_guard_end_exclusive(lr_guard *guard)

    ctypedef int (*lr_poll_fn)(void *user_data) noexcept
    ctypedef struct lr_abort:
        pass
    lr_abort *lr_abort_new(lr_poll_fn poll, void *user_data)
    void lr_abort_free(lr_abort *abort)
    void lr_abort_attach(lr_abort *abort, llama_context *ctx)
    void lr_abort_arm(lr_abort *abort, bool with_poll, int64_t deadline_us)
    void lr_abort_request(lr_abort *abort)
    void lr_thread_strand()
    bool lr_thread_stranded()
    void lr_abort_fail(lr_abort *abort)

    ggml_backend_buffer_t lr_outputs_swap(llama_context *ctx, ggml_backend_buffer_t spare)
    void lr_outputs_free(ggml_backend_buffer_t buffer)
    bool lr_flash_attn(const llama_context *ctx)
    void lr_memory_breakdown(const llama_context *ctx, size_t *model, size_t *context, size_t *compute) except +
    size_t lr_kv_bytes_per_cell(const llama_model *model, ggml_type type_k, ggml_type type_v) except +

    ctypedef struct lr_chat:
        pass
    enum lr_why:
        LR_WHY_OK
        LR_WHY_REFUSED
        LR_WHY_EXCEEDED
        LR_WHY_NO_STACK
    int lr_chat_new(lr_chat **chat, const llama_model *model, const char *source, int64_t time_us, char **error)
    void lr_chat_free(lr_chat *chat)
    const char *lr_chat_source(const lr_chat *chat)
    char *lr_chat_apply(const lr_chat *chat, const char *request, char **error)

    llama_context *lr_context_new(llama_model *model, llama_context_params params) except +
    ctypedef struct lr_facts:
        int n_ctx, n_batch, n_ubatch, n_seq_max, n_outputs_max, n_vocab, pooling
        int n_embd_out
        int n_embd, n_embd_enc
        int n_pos
        int n_pos_max
        bool has_encoder, has_decoder
        bool reads_encoder
        bool needs_tokens
        bool one_seq_a_row
    void lr_context_facts(const llama_context *ctx, lr_facts *facts) except +
    bool lr_gave_logits(llama_context *ctx)
    int lr_rank_width(const llama_model *model)
    size_t lr_rs_bytes_per_seq(const llama_model *model) except +
    int lr_rope_scaling(const llama_model *model)

    ctypedef struct lr_rows:
        const float *data
        int64_t n_rows, n_columns
        int64_t stride
    enum lr_scores:
        LR_SCORES_OK
        LR_SCORES_NAN
        LR_SCORES_INFINITE
        LR_SCORES_NOTHING
        LR_SCORES_NO_MEMORY
    int64_t lr_first_not_finite(const float *data, int64_t n)
    int lr_log_softmax(const lr_rows *rows, float *out, int64_t out_stride, int n_threads, int64_t *bad_row)
    int lr_logprobs(const lr_rows *rows, const int32_t *tokens, float *out, int n_threads, int64_t *bad_row)
    int lr_top_logprobs(
        const lr_rows *rows, int64_t k, int32_t *ids, float *out, int n_threads, int64_t *bad_row)
    int lr_argmax(const lr_rows *rows, int32_t *ids, int n_threads, int64_t *bad_row)
    cdef enum lr_memory_part:
        LR_MEMORY_FULL
        LR_MEMORY_WINDOW
        LR_MEMORY_STATE
        LR_MEMORY_LAYOUT_KNOWN
    int lr_memory_layout(const llama_context *ctx)
    int lr_memory_streams(const llama_context *ctx, int part)
    uint32_t lr_memory_window(const llama_context *ctx)
    void lr_memory_use(
        const llama_context *ctx, int part, int stream, uint32_t *size, uint32_t *used, uint32_t *end
    )
    void lr_memory_cells(
        const llama_context *ctx, int part, int stream, int words, int32_t *pos, uint64_t *seqs
    ) except +
    bool lr_memory_pending(const llama_context *ctx)
    int lr_memory_flush(llama_context *ctx, lr_abort *abort, char **error)
    int lr_memory_shared(const llama_context *ctx, int seq, int32_t p0, int32_t p1)
    int32_t lr_memory_first(const llama_context *ctx, int seq)
    bool lr_memory_same(const llama_context *ctx, int a, int b)
    bool lr_memory_window_holds(const llama_context *ctx, int seq, int32_t p0, int32_t end)
    bool lr_memory_move_holds(
        const llama_context *ctx, int seq, int32_t p0, int32_t p1, int32_t delta, int32_t divisor
    )
    void lr_memory_seq_div(llama_context *ctx, int seq, int32_t p0, int32_t p1, int32_t divisor) except +
    bool lr_memory_rolled_back(const llama_context *ctx, int seq)
    int lr_memory_batch_loses(llama_context *ctx, const llama_batch *batch, char **error)
    void lr_memory_tails(const llama_context *ctx, int32_t *tails)
    void lr_memory_take_back(
        llama_context *ctx, const int32_t *before, const int32_t *tails, bool computed, uint8_t *emptied
    ) except +

    int lr_state_check(
        const llama_context *ctx, const uint8_t *data, size_t size, bool whole, bool partial, int32_t *first,
        int32_t *last, char **error
    )
    bool lr_state_covers(const llama_context *ctx, int seq, int32_t first, int32_t last)

    ctypedef void (*lr_job_fn)(void *data, int i) noexcept
    void lr_pool_run(int n, int n_threads, lr_job_fn fn, void *data)

    cdef enum lr_first:
        LR_FIRST_OTHER
        LR_FIRST_TOP_K
        LR_FIRST_MIN_P
        LR_FIRST_GREEDY
    ctypedef struct lr_plan:
        int n_sparse
        int first
        int32_t k
        float p
        size_t min_keep
        bool calls_back
        bool constrained
    cdef enum lr_pick_code:
        LR_PICK_DONE
        LR_PICK_NO_NUMBER
        LR_PICK_NOTHING
        LR_PICK_RULED_OUT
        LR_PICK_OVERFLOW
        LR_PICK_FAILED
    ctypedef struct lr_picker:
        pass
    lr_picker *lr_picker_new()
    void lr_picker_free(lr_picker *picker)
    void lr_picker_plan(lr_picker *picker, llama_sampler *chain, lr_plan plan)
    int lr_picker_bias(lr_picker *picker, llama_token token)
    void lr_picker_reset(lr_picker *picker)
    int lr_picker_copy(const lr_picker *src, lr_picker *to)
    const llama_token *lr_picker_accepted(const lr_picker *picker, size_t *n)
    int lr_picker_pick(lr_picker *picker, const float *row, int n_vocab, llama_token *token)
    int lr_picker_pick_from(
        lr_picker *picker, const llama_token *ids, const float *logits, const float *probs, int n, llama_token *token)
    int lr_picker_accept(lr_picker *picker, llama_token token)
    bool lr_picker_pending(const lr_picker *picker)
    int lr_picker_redraw(lr_picker *picker, llama_sampler *link)
    const char *lr_picker_error(const lr_picker *picker)
    void lr_pick_rows(
        lr_picker **pickers, const float **data, int n, int n_vocab, int n_threads, llama_token *tokens, int *codes)
    ctypedef int (*lr_link_fn)(void *user, llama_token_data *data, size_t n) noexcept
    llama_sampler *lr_link_new(lr_link_fn fn)
    void lr_link_bind(llama_sampler *link, void *user)

    llama_sampler *lr_grammar_new(
        const llama_vocab *vocab,
        const char *text,
        const char *root,
        bool lazy,
        const char **patterns,
        size_t n_patterns,
        const llama_token *tokens,
        size_t n_tokens,
        char **error)

    size_t lr_llg_symbols(const char *const **names)
    int lr_llg_bind(void *const *addresses, char **error)
    const char *lr_llg_version()
    ctypedef struct lr_constraint_vocab:
        pass
    lr_constraint_vocab *lr_constraint_vocab_new(const llama_vocab *vocab, char **error)
    void lr_constraint_vocab_free(lr_constraint_vocab *vocab)
    bool lr_constraint_vocab_canonical(const lr_constraint_vocab *vocab)
    const llama_token *lr_constraint_vocab_ends(const lr_constraint_vocab *vocab, size_t *n)
    const uint8_t *lr_constraint_vocab_piece(const lr_constraint_vocab *vocab, llama_token token, size_t *size)
    int32_t lr_constraint_vocab_tokenize(
        const lr_constraint_vocab *vocab, const uint8_t *text, size_t size, llama_token *out, size_t room)
    ctypedef struct lr_constraint_limits:
        int64_t max_items_in_row, initial_lexer_fuel, step_lexer_fuel, step_max_items, max_lexer_states
        int64_t max_grammar_size
    ctypedef struct lr_constraint:
        pass
    lr_constraint *lr_constraint_new(
        lr_constraint_vocab *vocab, const char *kind, const char *data, const lr_constraint_limits *limits,
        char **error)
    void lr_constraint_free(lr_constraint *constraint)
    lr_constraint *lr_constraint_clone(const lr_constraint *constraint)
    const uint32_t *lr_constraint_mask(lr_constraint *constraint)
    int lr_constraint_consume(lr_constraint *constraint, const llama_token *tokens, size_t n)
    int32_t lr_constraint_forced(lr_constraint *constraint, llama_token *out, size_t room)
    int lr_constraint_rollback(lr_constraint *constraint, size_t n)
    void lr_constraint_reset(lr_constraint *constraint)
    bool lr_constraint_accepting(lr_constraint *constraint)
    bool lr_constraint_stopped(const lr_constraint *constraint)
    size_t lr_constraint_taken(const lr_constraint *constraint)
    const char *lr_constraint_error(const lr_constraint *constraint)
    llama_sampler *lr_constraint_link(const lr_constraint *constraint)
    lr_constraint *lr_picker_constraint(const lr_picker *picker)
    int lr_picker_pick_only(lr_picker *picker, llama_token only, int n_vocab, llama_token *token)
    void lr_picker_fail(lr_picker *picker, const char *why)

    int lr_model_check(const llama_model *model, char **error)

    enum lr_kind:
        LR_GUARD
        LR_MODEL
        LR_CONTEXT
        LR_BATCH
        LR_SAMPLER
        LR_OUTPUTS
        LR_CHAT
        LR_JOB
        LR_CONSTRAINT
        LR_KINDS
    void lr_live_add(int kind, int n)
    int64_t lr_live_count(int kind)
    bool lr_forked()

    int lr_regex_search(const char *pattern, const char *text, char **error)
    llama_model *lr_model_load(const char **paths, size_t n_paths, llama_model_params params, char **used) except +
    ctypedef int (*lr_tensor_fn)(int done, void *user_data) noexcept
    int lr_quantize(
        const char *input,
        const char *output,
        const llama_model_quantize_params *params,
        lr_tensor_fn on_tensor,
        void *user_data,
        char **report)
    char *lr_measure(
        llama_model *model,
        llama_context_params params,
        const char **paths,
        size_t n_paths,
        llama_load_mode load_mode,
        char **error)

    ctypedef struct lr_vocab:
        pass
    lr_vocab *lr_vocab_new(const llama_vocab *vocab)
    void lr_vocab_free(lr_vocab *vocab)
    size_t lr_vocab_frame_size(lr_vocab *vocab)

    enum lr_text_code:
        LR_TEXT_OK
        LR_TEXT_ARGUMENT
        LR_TEXT_CAPABILITY
        LR_TEXT_MEMORY
        LR_TEXT_FAILED

    ctypedef struct lr_text_job:
        pass
    lr_text_job *lr_tokenize_new(lr_vocab *vocab, bool add_special, bool parse_special)
    lr_text_job *lr_detokenize_new(lr_vocab *vocab, bool remove_special, bool unparse_special)
    void lr_text_job_free(lr_text_job *job)
    bool lr_text_job_add(lr_text_job *job, const void *data, size_t size)
    void lr_text_job_start(lr_text_job *job, int n_threads)
    bool lr_text_job_wait(lr_text_job *job, int64_t timeout_us)
    bool lr_text_job_leave(lr_text_job *job, lr_guard *guard)
    int lr_text_job_error(const lr_text_job *job, size_t *index, const char **text)
    const void *lr_text_job_item(const lr_text_job *job, size_t index, size_t *size)
    size_t lr_pieces(
        const llama_vocab *vocab, const llama_token *tokens, size_t count, bool special, char *out, int64_t *offsets)
    void lr_vocab_scores(const llama_vocab *vocab, float *out)
    void lr_vocab_attrs(const llama_vocab *vocab, int32_t *out)

    ctypedef struct lr_rwlock:
        pass
    lr_rwlock *lr_rwlock_new()
    void lr_rwlock_free(lr_rwlock *lock)
    void lr_rwlock_lock_shared(lr_rwlock *lock)
    void lr_rwlock_unlock_shared(lr_rwlock *lock)
    void lr_rwlock_lock(lr_rwlock *lock)
    void lr_rwlock_unlock(lr_rwlock *lock)
    int lr_reserve(llama_context *ctx, lr_rwlock *adapters, char **error)
    bool lr_model_tensor(const llama_model *model, const char *name, int64_t *shape, int *type) except +
    const char *lr_model_output_name(const llama_model *model)
    int lr_adapter_used(const llama_context *ctx, const llama_adapter_lora *adapter, int *total) except +
    int lr_control_vector_used(llama_context *ctx) except +

    cdef enum lr_memory_kind:
        LR_MEMORY_KIND_NONE
        LR_MEMORY_KIND_ATTENTION
        LR_MEMORY_KIND_SLIDING
        LR_MEMORY_KIND_RECURRENT
        LR_MEMORY_KIND_HYBRID
        LR_MEMORY_KIND_UNKNOWN
    ctypedef struct lr_capabilities:
        int memory_kind
        const char *memory_class
        bool has_logits
        bool every_row
        const char *no_shift
    void lr_capabilities_of(const llama_context *ctx, lr_capabilities *out) except +
    int lr_chat_apply(const lr_chat *chat, const char *request, int64_t time_us, char **prompt, char **error)
    int lr_chat_render(const lr_chat *chat, const char *request, int64_t time_us, char **description, char **error)
    char *lr_chat_capabilities(const lr_chat *chat)

    ctypedef struct lr_parser:
        pass
    int lr_parser_new(lr_parser **parser, const char *description, int64_t time_us, char **error)
    void lr_parser_free(lr_parser *parser)
    int lr_parser_parse(const lr_parser *parser, const char *text, size_t size, bool partial, int64_t time_us,
                        char **message, int64_t *position, char **error)
    int lr_parser_push(lr_parser *parser, const char *text, size_t size, bool last, int64_t time_us, char **deltas,
                       int64_t *position, char **error)
    char *lr_parser_message(const lr_parser *parser)

    int lr_schema_to_grammar(const char *schema, int64_t time_us, char **grammar, char **notes, char **error)
    int lr_grammar_check(const char *grammar, int64_t time_us, char **error)
