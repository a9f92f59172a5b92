"""Hazards of contexts and of decoding."""

from __future__ import annotations

import numpy as np

from hostile.hazard import World, hazard, rows
from llama_runner import errors
from llama_runner.core import Batch, Context

# ---------------------------------------------------------------------------------------- llama_init_from_model


@hazard(
    "llama_context::llama_context",
    "n_seq_max above min(n_ctx, n_batch), or above 256",
    "context_params.set_sizes",
)
def more_sequences_than_rows(w: World) -> None:
    for options in (
        {"n_seq_max": 65, "n_batch": 64},
        {"n_seq_max": 257},
        {"n_seq_max": 0},
        {"n_seq_max": -1},
    ):
        with w.refuses(errors.InvalidArgumentError, "n_seq_max"):
            w.context(**options)
    w.works(w.context(n_seq_max=256, n_batch=256))


@hazard(
    "llama_context::llama_context",
    "n_ctx of 0, below 0, above 2**31 - 256, and one that needs terabytes",
    "context_params.set_sizes, check_memory",
)
def absurd_context_lengths(w: World) -> None:
    for n in (0, -1, 2**31 - 1, 2**32):
        with w.refuses(errors.InvalidArgumentError, "n_ctx"):
            w.context(n_ctx=n)
    with w.refuses(errors.OutOfMemoryError, "would fit"):
        w.context(n_ctx=0x7FFFFF00)
    w.works(w.context())


@hazard("ggml_get_type_traits", "a KV type that the kernels do not take (SIGSEGV)", "context_params.KV_TYPES")
def kv_types_without_kernels(w: World) -> None:
    for bad in ("q8_1", "q6_k", "i32", "q4_k", "", None, 3, 10**9):
        for name in ("type_k", "type_v"):
            with w.refuses(errors.InvalidArgumentError, name):
                w.context(**{name: bad})
    for good in ("f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"):
        w.works_roughly(w.context(type_k=good, type_v=good, flash_attn=True))


@hazard(
    "llama_init_from_model, llama_context::sched_reserve",
    "a quantized V memory with flash attention forbidden: NULL, or an exception",
    "Context._create: NULL becomes a typed error",
)
def quantized_values_without_flash_attention(w: World) -> None:
    with w.refuses(errors.InvalidArgumentError):
        w.context(type_v="q8_0", flash_attn=False)
    w.works(w.context())


@hazard(
    "llama_init_from_model",
    "heads that the KV block size does not divide",
    "Context._create: NULL becomes a typed error",
)
def heads_that_no_block_divides(w: World) -> None:
    model = w.model("llama", head_dim=48)
    with w.refuses(errors.InvalidArgumentError):
        Context(model, n_ctx=256, type_k="q8_0", type_v="q8_0", flash_attn=True)
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        w.works(ctx)


@hazard(
    "llama_flash_attn_type_name, graph_get_cb, llm_graph_context::build_pooling",
    "an enum value that does not exist, for pooling or flash attention",
    "context_params.one_of, flash_attn_type",
)
def enums_that_do_not_exist(w: World) -> None:
    for pooling in ("MEAN", 0, -1, 99, "", []):
        with w.refuses(errors.InvalidArgumentError, "pooling"):
            w.context(pooling=pooling, embeddings=True)
    for flash in (2, -1, "auto", 1):
        with w.refuses(errors.ArgumentTypeError, "flash_attn"):
            w.context(flash_attn=flash)
    w.works(w.context())


@hazard(
    "ggml_threadpool_params_init, ggml_graph_plan",
    "0 threads, below 0, above GGML_MAX_N_THREADS",
    "context_params.set_threads, Context.set_n_threads",
)
def absurd_thread_counts(w: World) -> None:
    ctx = w.context()
    for n in (0, -1, 513, 2**31 - 1):
        with w.refuses(errors.InvalidArgumentError, "n_threads"):
            w.context(n_threads=n)
        with w.refuses(errors.InvalidArgumentError, "n_threads"):
            ctx.set_n_threads(n)
        with w.refuses(errors.InvalidArgumentError, "n_threads_batch"):
            ctx.set_n_threads(1, n)
    w.works(ctx)


@hazard(
    "llama_model::create_memory, llama_context::decode",
    "a context of a model that was loaded with vocab_only",
    "Context.__init__",
)
def context_without_weights(w: World) -> None:
    from llama_runner.core import Model

    with Model(w.path(), vocab_only=True) as model:
        with w.refuses(errors.ModelCapabilityError, "vocab_only"):
            Context(model)
        assert len(model.vocab.tokenize("the world")) > 1


@hazard(
    "llama_model_load", "a file with a vocabulary and no weights", "Model.__init__: the header is read first"
)
def file_without_weights(w: World) -> None:
    from llama_runner.core import Model

    path = w.path("llama", vocab_only=True)
    with w.refuses(errors.ModelCapabilityError, "no weights"):
        Model(path)
    with Model(path, vocab_only=True) as model:
        assert len(model.vocab.tokenize("the world")) > 1


@hazard(
    "llm_graph_input_mean::set_input",
    "mean pooling where n_ubatch is no multiple of the sequences",
    "context_params: n_ubatch is lowered to one",
)
def mean_pooling_with_odd_sizes(w: World) -> None:
    model = w.model("bert")
    for n_seq_max, n_ubatch in ((3, 64), (5, 7), (7, 100)):
        with Context(model, n_ctx=256, n_seq_max=n_seq_max, n_batch=100, n_ubatch=n_ubatch, embeddings=True,
                     pooling="mean", n_threads=1) as ctx:  # fmt: skip
            batch = Batch(n_seq_max)
            for seq in range(n_seq_max):
                batch.add(50 + seq, 0, seq, True)
            ctx.encode(batch)
            assert all(np.isfinite(ctx.embeddings_seq(seq)).all() for seq in range(n_seq_max))


# ---------------------------------------------------------------------------------------- llama_decode, llama_encode


@hazard("llama_context::decode", "more rows than n_batch", "Context.check_batch")
def more_rows_than_n_batch(w: World) -> None:
    ctx = w.context(n_batch=16)
    with w.refuses(errors.InvalidArgumentError, "n_batch=16"):
        ctx.decode(rows(17))
    assert ctx.memory.seq_pos_max(0) == -1
    w.works(ctx)


@hazard("llama_batch_allocr::init, llama_context::decode", "an empty batch", "Context.check_batch")
def empty_batch(w: World) -> None:
    ctx = w.context()
    for batch in (Batch(1), Batch.__new__(Batch)):
        with w.refuses(errors.InvalidArgumentError, "empty"):
            ctx.decode(batch)
    w.works(ctx)


@hazard("llama_context::output_reserve", "more outputs than n_outputs_max", "Context.check_batch")
def more_outputs_than_reserved(w: World) -> None:
    ctx = w.context(n_outputs_max=2)
    batch = Batch(8)
    batch.add_sequence(np.arange(8) + 300, logits="all")
    with w.refuses(errors.InvalidArgumentError, "n_outputs_max"):
        ctx.decode(batch)
    w.works(ctx)


@hazard("llama_batch_allocr::init", "a token id outside the vocabulary", "Batch.check_ids, Batch.add")
def token_outside_the_vocabulary(w: World) -> None:
    ctx = w.context()
    for token in (ctx.n_vocab, 2**31 - 1):
        batch = Batch(1)
        batch.add(token, 0, 0, True)
        with w.refuses(errors.IndexOutOfRangeError, str(token)):
            ctx.decode(batch)
    for token in (-1, -(2**31), 2**31):
        with w.refuses(errors.InvalidArgumentError, "token"):
            batch.add(token, 0, 0)
    w.works(ctx)


@hazard(
    "llama_batch_allocr::init",
    "a sequence id outside 0 … n_seq_max - 1; in a unified memory upstream takes up to 255",
    "Batch.check_ids, Batch.add",
)
def sequence_outside_the_context(w: World) -> None:
    for unified in (True, False):
        ctx = w.context(kv_unified=unified)
        for seq in (2, 255, 256, 2**31 - 1):
            batch = Batch(1)
            batch.add(300, 0, seq, True)
            with w.refuses(errors.IndexOutOfRangeError, "n_seq_max"):
                ctx.decode(batch)
        with w.refuses(errors.InvalidArgumentError, "seq_id"):
            batch.add(300, 0, -1)
        w.works(ctx)


@hazard(
    "llama_batch_allocr::init",
    "a row of no sequence (SIGSEGV), or of one sequence twice (counted twice)",
    "Batch.add",
)
def rows_of_no_sequence_or_of_one_twice(w: World) -> None:
    batch = Batch(4)
    for ids in ((), [], [0, 0], [0, 1, 0], range(300)):
        with w.refuses(errors.InvalidArgumentError, "seq_ids"):
            batch.add(300, 0, ids)
    assert len(batch) == 0
    batch.add(300, 0, (0, 1), True)
    ctx = w.context()
    ctx.decode(batch)
    assert [ctx.memory.seq_pos_max(seq) for seq in (0, 1)] == [0, 0]
    w.works(ctx)


@hazard("llama_batch_allocr::init", "a position of -1: accepted upstream, and the cell is lost", "Batch.add")
def negative_positions(w: World) -> None:
    batch = Batch(4)
    for pos in (-1, -(2**31), 2**31 - 1, 2**31):
        with w.refuses(errors.InvalidArgumentError, "pos"):
            batch.add(300, pos, 0)
    with w.refuses(errors.InvalidArgumentError, "pos"):
        batch.add_sequence([1, 2], -1)
    with w.refuses(errors.InvalidArgumentError, "pos"):
        batch.add_sequence([1, 2], 2**31 - 3)
    assert len(batch) == 0


@hazard(
    "llama_batch_allocr::init",
    "positions with a gap, going back, or repeated (counted twice)",
    "Batch.check_positions",
)
def positions_that_do_not_follow_on(w: World) -> None:
    for kind in ("llama", "swa", "mamba", "hybrid"):
        ctx = w.fed(kind)
        for pos in (9, 7, 0, 100, 2**31 - 3):
            with w.refuses(errors.InvalidArgumentError, "next is 8"):
                ctx.decode(rows(1, pos))
        assert ctx.memory.seq_pos_max(0) == 7
        ctx.decode(rows(1, 8))
        twice = Batch(2)
        twice.add(300, 9, 0)
        twice.add(300, 9, 0, True)
        with w.refuses(errors.InvalidArgumentError, "next is 10"):
            ctx.decode(twice)
        w.works(ctx)


@hazard(
    "llama_context::decode, llama_context::encode",
    "more rows than n_ubatch without causal attention, or with pooled embeddings (pooled wrongly)",
    "Context.check_batch",
)
def pooled_rows_beyond_one_ubatch(w: World) -> None:
    for kind, options in (("bert", {}), ("llama", {"pooling": "mean"}), ("llama", {"pooling": "last"})):
        with w.context(kind, embeddings=True, n_ubatch=16, **options) as ctx:
            compute = ctx.encode if kind == "bert" else ctx.decode
            with w.refuses(errors.InvalidArgumentError, "n_ubatch=16"):
                compute(rows(17) if kind != "bert" else bert_rows(17))
            compute(rows(16) if kind != "bert" else bert_rows(16))
            assert np.isfinite(ctx.embeddings_seq(0)).all()


def bert_rows(n: int) -> Batch:
    batch = Batch(n)
    batch.add_sequence(np.arange(n) % 50 + 10)
    return batch


@hazard("llama_context::encode", "encode on a decoder-only model (SIGSEGV)", "Context.encode")
def encode_without_an_encoder(w: World) -> None:
    for kind in ("llama", "swa", "mamba", "hybrid"):
        ctx = w.fed(kind)
        with w.refuses(errors.ModelCapabilityError, "encoder"):
            ctx.encode(rows())
        w.works(ctx)


@hazard(
    "llama_context::decode",
    "no room in the memory for rows that two sequences share: rolled back for the first id only",
    "Context.take_back",
)
def no_room_for_shared_rows(w: World) -> None:
    ctx = w.fed(n=250)
    ctx.memory.seq_cp(0, 1)
    batch = Batch(20)
    for i in range(20):
        batch.add(300 + i, 250 + i, (0, 1), i == 19)
    with w.refuses(errors.NoSlotError):
        ctx.decode(batch)
    assert [ctx.memory.seq_pos_max(seq) for seq in (0, 1)] == [249, 249]
    w.works(ctx)


@hazard(
    "llama_context::decode",
    "a decode that is stopped half-way: the rows that were computed stay",
    "Context.take_back",
)
def stopped_half_way(w: World) -> None:
    ctx = w.context(n_ubatch=16)
    with w.refuses(errors.DecodeAbortedError):
        ctx.decode(rows(200), timeout=0)
    assert ctx.memory.seq_pos_max(0) == -1
    w.works(ctx)


# ---------------------------------------------------------------------------------------- outputs


@hazard(
    "llama_context::output_resolve_row, llama_context::get_logits_ith",
    "logits of a row without them, before any decode, or out of range",
    "Context.output_index",
)
def logits_that_are_not_there(w: World) -> None:
    with w.context() as fresh:
        for i in (0, -1, 1):
            with w.refuses(errors.IndexOutOfRangeError):
                fresh.logits(i)
    ctx = w.fed()
    for i in (0, 6, 8, -2, 2**31 - 1, -(2**31)):
        with w.refuses(errors.IndexOutOfRangeError):
            ctx.logits(i)
    assert np.isfinite(ctx.logits(7)).all()
    w.works(ctx)


@hazard(
    "llama_context::get_embeddings_ith, llama_context::get_embeddings_seq",
    "embeddings that the context does not make, or of a sequence that was not decoded",
    "Context.embeddings, embeddings_seq",
)
def embeddings_that_are_not_there(w: World) -> None:
    ctx = w.fed()
    with w.refuses(errors.ModelCapabilityError):
        ctx.embeddings()
    with w.refuses(errors.ModelCapabilityError):
        ctx.embeddings_seq(0)
    with w.context("bert", embeddings=True) as pooled:
        with w.refuses(errors.IndexOutOfRangeError):
            pooled.embeddings_seq(0)
        pooled.encode(bert_rows(4))
        with w.refuses(errors.IndexOutOfRangeError):
            pooled.embeddings_seq(1)
        with w.refuses(errors.IndexOutOfRangeError):
            pooled.embeddings_seq(2)
        with w.refuses(errors.ModelCapabilityError):
            pooled.embeddings(0)
    w.works(ctx)


@hazard(
    "llama_context::get_logits_ith",
    "a view of logits that outlives the next decode, the close and the context",
    "Context.keep_views, Outputs",
)
def logits_after_the_context_is_gone(w: World) -> None:
    ctx = w.fed()
    row = ctx.logits()
    before = row.copy()
    ctx.decode(rows(1, 8))
    np.testing.assert_array_equal(row, before)
    ctx.close()
    del ctx
    np.testing.assert_array_equal(row, before)
