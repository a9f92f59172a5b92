"""What comes before and after ``llama_decode``: checks of a batch, and the memory put right when it failed."""

from libc.stdint cimport int16_t, int32_t, uint8_t
from libc.string cimport memset

from llama_runner._c.llama cimport llama_batch, llama_context, llama_memory_seq_pos_max, llama_memory_t
from llama_runner._c.native cimport (
    LR_MEMORY_FULL,
    LR_MEMORY_STATE,
    lr_facts,
    lr_memory_batch_loses,
    lr_memory_same,
    lr_memory_take_back,
)
from llama_runner.core._native cimport drain_log, native_error, take_string
from llama_runner.core.batch cimport Batch

from llama_runner import errors

cdef int MAX_SEQ = 256  # LLAMA_MAX_SEQ


cdef int check_rows(Batch batch, const lr_facts *facts, bint encode, bint at_once, int n_outputs) except -1:
    """Everything but positions that llama.cpp asserts, or silently gets wrong, about a batch."""
    cdef int n = batch.c.n_tokens
    if n == 0:
        raise errors.InvalidArgumentError("the batch is empty: add at least one row")
    if n > facts.n_batch:
        raise errors.InvalidArgumentError(
            f"the batch has {n} rows: this context takes at most n_batch={facts.n_batch}"
        )
    if at_once and n > facts.n_ubatch:
        raise errors.InvalidArgumentError(
            f"the batch has {n} rows: a model without causal attention, or with pooled embeddings, computes them "
            f"at once, at most n_ubatch={facts.n_ubatch}"
        )
    if n_outputs > facts.n_outputs_max:
        raise errors.InvalidArgumentError(
            f"the batch asks for {n_outputs} rows of output: this context gives n_outputs_max={facts.n_outputs_max}"
        )
    if batch.n_embd:
        check_embeddings(batch, facts, encode)
    batch.check_ids(facts.n_vocab, facts.n_seq_max)
    if facts.n_pos_max:
        check_learned_positions(batch, facts.n_pos_max)
    if encode or facts.one_seq_a_row:
        check_one_sequence(batch)
    return 0


cdef int check_embeddings(Batch batch, const lr_facts *facts, bint encode) except -1:
    cdef int width = facts.n_embd_enc if encode else facts.n_embd
    if facts.needs_tokens:
        raise errors.ModelCapabilityError("this model reads its tokens' ids: embeddings cannot take their place")
    if batch.n_embd != width:
        raise errors.InvalidArgumentError(
            f"the batch has embeddings of n_embd={batch.n_embd}: this model takes {width}"
        )
    if batch.wide and facts.n_pos == 1:
        raise errors.InvalidArgumentError("the batch has four positions a row: this model takes one (no M-RoPE)")
    return 0


cdef int check_learned_positions(Batch batch, int n_pos_max) except -1:
    """A position past the model's table ends the process, on a thread where no one could catch it."""
    cdef int i
    for i in range(batch.c.n_tokens):
        if batch.c.pos[i] >= n_pos_max:
            raise errors.InvalidArgumentError(
                f"row {i} has position {batch.c.pos[i]}: this model has learned positions from 0 to {n_pos_max - 1}"
            )
    return 0


cdef int check_one_sequence(Batch batch) except -1:
    """Where upstream looks at the first sequence id of a row only."""
    cdef int i
    for i in range(batch.c.n_tokens):
        if batch.c.n_seq_id[i] != 1:
            raise errors.InvalidArgumentError(
                f"row {i} belongs to {batch.c.n_seq_id[i]} sequences: here a row belongs to one"
            )
    return 0


cdef void note_positions(llama_memory_t mem, Batch batch, int32_t *before) noexcept:
    """Where each sequence of the batch ends now; -2 for those that are not in it."""
    cdef int i, k, seq
    for seq in range(MAX_SEQ):
        before[seq] = -2
    if mem == NULL:
        return
    for i in range(batch.c.n_tokens):
        for k in range(batch.c.n_seq_id[i]):
            seq = batch.c.seq_id[i][k]
            if before[seq] == -2:
                before[seq] = llama_memory_seq_pos_max(mem, seq)


cdef int check_sharing(llama_context *ctx, Batch batch, bint unified, int memory_parts) except -1:
    """Upstream computes a row of several sequences from the cells of the first alone, whatever the others hold."""
    cdef int16_t leader[256]
    cdef int i, k, first, seq
    memset(leader, 0xff, sizeof(leader))
    for i in range(batch.c.n_tokens):
        first = batch.c.seq_id[i][0]
        for k in range(1, batch.c.n_seq_id[i]):
            seq = batch.c.seq_id[i][k]
            if leader[seq] == first:
                continue
            leader[seq] = first
            if not unified or memory_parts & (LR_MEMORY_FULL | LR_MEMORY_STATE) == LR_MEMORY_STATE:
                raise errors.ModelCapabilityError(
                    f"row {i} belongs to several sequences: "
                    + ("a recurrent model" if unified else "with kv_unified=False the memory")
                    + " keeps each by itself; decode it for one and use seq_cp"
                )
            if not lr_memory_same(ctx, first, seq):
                raise errors.InvalidArgumentError(
                    f"row {i} belongs to sequences {first} and {seq}, which hold different cells: it would be "
                    f"computed for {first} alone; use seq_cp to make one of them from the other"
                )
    return 0


cdef int check_window(llama_context *ctx, const llama_batch *batch, int n_ubatch) except -1:
    """Of a batch in several parts, llama.cpp may drop what the first attend to for the sake of the last."""
    cdef char *error = NULL
    cdef int seq
    with nogil:
        seq = lr_memory_batch_loses(ctx, batch, &error)
    if error != NULL:
        raise native_error(RuntimeError(take_string(error)), "looking for room")
    if seq >= 0:
        raise errors.InvalidArgumentError(
            f"the batch has {batch.n_tokens} rows: the sliding window of sequence {seq} would lose positions that "
            f"they attend to; decode at most n_ubatch={n_ubatch} rows at a time"
        )
    return 0


cdef tuple take_back(
    llama_context *ctx, llama_memory_t mem, const int32_t *before, const int32_t *tails, bint computed
):
    """Remove what a failed decode left behind; the sequences that had to be emptied for it."""
    cdef uint8_t emptied[256]
    cdef int seq
    memset(emptied, 0, sizeof(emptied))
    if mem != NULL:
        lr_memory_take_back(ctx, before, tails, computed, emptied)
    return tuple([seq for seq in range(MAX_SEQ) if emptied[seq]])


cdef object decode_error(int code, int n_rows, int n_ctx, tuple emptied):
    """The typed error for what ``llama_decode`` returned."""
    note = f"; its memory cannot step back: empty now are sequences {list(emptied)}" if emptied else ""
    lines = drain_log()
    if code == 1:
        return errors.NoSlotError(
            f"no room in the KV memory for {n_rows} more tokens (n_ctx={n_ctx}): remove sequences or make n_ctx "
            f"larger{note}", code, emptied
        ).with_log(lines)
    if code == 2:
        return errors.DecodeAbortedError(f"the decode was stopped by abort() or its timeout{note}", code, emptied)
    if code == -1:
        return errors.InvalidArgumentError(
            f"llama.cpp refused the batch of {n_rows} rows{note}; its positions must follow on those of each sequence"
        ).with_log(lines)
    return errors.DecodeError(
        f"llama.cpp could not compute the batch of {n_rows} rows (code {code}){note}", code, emptied
    ).with_log(lines)
