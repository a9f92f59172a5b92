"""Chains that a context runs in its graph; the public methods are ``Context.set_sampler`` and ``Context.sampled_…``."""

import numpy as np

from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

from llama_runner._c.llama cimport (
    llama_get_sampled_candidates_ith,
    llama_get_sampled_logits_count_ith,
    llama_get_sampled_logits_ith,
    llama_get_sampled_probs_count_ith,
    llama_get_sampled_probs_ith,
    llama_get_sampled_token_ith,
    llama_set_sampler,
    llama_token,
)
from llama_runner._c.native cimport LR_PICK_DONE, lr_picker_pick_from
from llama_runner.core._native cimport drain_log
from llama_runner.core.batch cimport Batch
from llama_runner.core.context cimport Context
from llama_runner.core.link cimport Link
from llama_runner.core.sampler cimport SamplerChain

from llama_runner import errors

cdef int PROBED = 128 * 1024  # candidates that llama.cpp tries a chain on when it is attached
# what llama.cpp can put into a graph; it runs the links up to the first other one there, and the rest as usual
cdef frozenset IN_GRAPH = frozenset(
    ["greedy", "dist", "top_k", "top_p", "min_p", "temp", "temp_ext", "penalties", "logit_bias"]
)


def attach(Context ctx not None, int seq, chain):
    """Give sequence ``seq`` a chain, or None; the caller is inside ``ctx``."""
    if chain is not None and not isinstance(chain, SamplerChain):
        raise errors.ArgumentTypeError(f"chain={chain!r:.60}: it is a SamplerChain or None")
    # what the last decode left is still to be put in order, by the samplers that it ran with
    llama_get_sampled_token_ith(ctx.ptr, -1)
    drain_log()
    if chain is None:
        llama_set_sampler(ctx.ptr, seq, NULL)
    else:
        put(ctx, seq, chain)
    release_one(ctx, seq)
    if chain is not None:
        ctx.samplers[seq] = chain


cdef int put(Context ctx, int seq, SamplerChain chain) except -1:
    cdef bint taken
    if ctx.mem == NULL or ctx.embeds:
        raise errors.ModelCapabilityError("this context makes embeddings: there are no logits to sample from")
    chain.enter()
    try:
        chain.check_free("attach")
        chain.check_row(ctx.n_vocab)
        check_links(chain, ctx.n_vocab)
        try:
            taken = llama_set_sampler(ctx.ptr, seq, chain.ptr)
        except (RuntimeError, MemoryError, ValueError, IndexError) as error:
            chain.spent = True
            raise errors.ModelCapabilityError(
                f"llama.cpp cannot put {chain!r} into a graph: {error}"
            ).with_log(drain_log()) from None
        if not taken:
            raise errors.ModelCapabilityError("llama.cpp does not sample on this model's device").with_log(drain_log())
        chain.attached = True
    finally:
        chain.leave()
    return 0


cdef int check_links(SamplerChain chain, int n_vocab) except -1:
    """What llama.cpp asserts about a chain in a graph, or gets wrong there without a word."""
    cdef Link link
    cdef int n = min(n_vocab, PROBED)  # candidates that are left for sure
    cdef str narrowed = None  # the link after which a candidate's place is no longer its id
    for i, link in enumerate(chain.chain):
        if chain.native_name(i).startswith("?"):
            continue
        if link.name not in IN_GRAPH:
            return 0
        if link.name in ("greedy", "logit_bias") and narrowed:
            raise errors.InvalidArgumentError(
                f"{link!r} after {narrowed}: in a graph llama.cpp takes places among the candidates for token ids there"
            )
        if link.name == "top_k" and link.arguments[0] > n:
            raise errors.InvalidArgumentError(f"{link!r} in a graph: there are {n} candidates at that place")
        if link.name == "top_k":
            n = link.arguments[0]
        elif link.name in ("temp", "temp_ext") and link.arguments[0] == 0:
            n = 1
        elif link.name != "top_p":
            continue
        narrowed = repr(link)
    return 0


cdef int release_one(Context ctx, seq) except -1:
    cdef SamplerChain chain = ctx.samplers.pop(seq, None)
    if chain is not None:
        chain.attached = False
        chain.spent = True
    return 0


def release(Context ctx not None):
    """The context is gone: its chains are of no use but to be cloned."""
    for seq in list(ctx.samplers):
        release_one(ctx, seq)


def enter(Context ctx not None, Batch batch not None):
    """Before a decode: keep everyone else out of the chains, whose state the graph reads."""
    cdef SamplerChain chain
    cdef int i
    entered = []
    seen = set()
    for i in range(batch.c.n_tokens):
        if batch.c.logits[i] and batch.c.seq_id[i][0] in ctx.samplers:
            if batch.c.seq_id[i][0] in seen:
                raise errors.InvalidArgumentError(
                    f"row {i} is the second with output of sequence {batch.c.seq_id[i][0]}: a sequence with a chain in "
                    "the graph has one row of output a decode"
                )
            seen.add(batch.c.seq_id[i][0])
    try:
        for chain in ctx.samplers.values():
            chain.enter()
            entered.append(chain)
    except errors.LlamaRunnerError:
        leave(entered)
        raise
    return entered


def leave(list entered not None):
    """After it."""
    cdef SamplerChain chain
    for chain in entered:
        chain.leave()


def note_rows(Context ctx not None, Batch batch not None):
    """After a decode that succeeded: which rows were sampled for which sequence."""
    cdef int i
    ctx.sampled_rows = {
        i: batch.c.seq_id[i][0] for i in range(batch.c.n_tokens)
        if batch.c.logits[i] and batch.c.seq_id[i][0] in ctx.samplers
    }


cdef int row_of(Context ctx, int i) except -1:
    """The row of the batch that ``i`` means."""
    cdef int row, left
    ctx.output_index(i)
    if i >= 0:
        return i
    left = ctx.n_outputs + i
    for row in range(ctx.n_rows):
        if ctx.wants_output[row]:
            if left == 0:
                return row
            left -= 1
    return -2  # not reached: output_index has counted them


def sampled_seq(Context ctx not None, int i):
    """The sequence that row ``i`` was sampled for in the graph, or None; the caller is inside."""
    return ctx.sampled_rows.get(row_of(ctx, i)) if ctx.sampled_rows else None


def pick(SamplerChain chain not None, Context ctx not None, int i):
    """What ``llama_sampler_sample`` does before it accepts; the caller is inside both."""
    cdef llama_token token
    cdef int code
    cdef const llama_token *ids
    cdef const float *logits
    cdef const float *probs
    seq = sampled_seq(ctx, i)
    if seq is None or ctx.samplers.get(seq) is not chain:
        raise errors.InvalidArgumentError(
            f"i={i}: this chain is attached, and that is no row of its sequence; use a clone() of it"
        )
    chain.check_row(ctx.n_vocab)
    token = llama_get_sampled_token_ith(ctx.ptr, i)
    if token >= 0:
        return token
    ids = llama_get_sampled_candidates_ith(ctx.ptr, i)
    logits = llama_get_sampled_logits_ith(ctx.ptr, i)
    probs = llama_get_sampled_probs_ith(ctx.ptr, i)
    if ids == NULL or logits == NULL:
        raise errors.SamplingError(f"i={i}: the graph left no candidates").with_log(drain_log())
    cdef int n = llama_get_sampled_logits_count_ith(ctx.ptr, i)
    with nogil:
        code = lr_picker_pick_from(chain.picker, ids, logits, probs, n, &token)
    if code != <int> LR_PICK_DONE:
        chain.fail(code)
    return token


def token(Context ctx not None, int i):
    """The token of row ``i``, or None."""
    if sampled_seq(ctx, i) is None:
        return None
    found = llama_get_sampled_token_ith(ctx.ptr, i)
    return found if found >= 0 else None


def logits(Context ctx not None, int i):
    """The logits of the candidates of row ``i``, or None."""
    if sampled_seq(ctx, i) is None:
        return None
    return floats(llama_get_sampled_logits_ith(ctx.ptr, i), llama_get_sampled_logits_count_ith(ctx.ptr, i))


def probs(Context ctx not None, int i):
    """The probabilities of the candidates of row ``i``, or None."""
    if sampled_seq(ctx, i) is None:
        return None
    return floats(llama_get_sampled_probs_ith(ctx.ptr, i), llama_get_sampled_probs_count_ith(ctx.ptr, i))


def candidates(Context ctx not None, int i):
    """The token ids of the candidates of row ``i``, or None."""
    if sampled_seq(ctx, i) is None:
        return None
    cdef const llama_token *ids = llama_get_sampled_candidates_ith(ctx.ptr, i)
    # upstream counts none where they are the whole vocabulary
    cdef uint32_t n = max(
        llama_get_sampled_logits_count_ith(ctx.ptr, i), llama_get_sampled_probs_count_ith(ctx.ptr, i)
    )
    if ids == NULL or n == 0:
        return None
    made = np.empty(n, np.int32)
    cdef int32_t[::1] view = made
    memcpy(&view[0], ids, n * sizeof(llama_token))
    return made


cdef object floats(const float *data, uint32_t n):
    if data == NULL or n == 0:
        return None
    made = np.empty(n, np.float32)
    cdef float[::1] view = made
    memcpy(&view[0], data, n * sizeof(float))
    return made
