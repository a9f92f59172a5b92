"""``Context``: what a decode computes, what it refuses, and that a failed one leaves everything as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=1024).astype(np.int32)
# KV memory and attention in full precision: batches of different shapes then differ by rounding alone
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3  # a wrong token moves a logit by a hundred times that


def batch_of(n: int, pos: int = 0, seq_id: int = 0, logits: str = "last") -> Batch:
    batch = Batch(n)
    batch.add_sequence(TOKENS[pos : pos + n], pos, seq_id, logits)
    return batch


def last_row(ctx: Context, n: int, pos: int = 0, seq_id: int = 0) -> np.ndarray:
    ctx.decode(batch_of(n, pos, seq_id))
    return ctx.logits().copy()


def ends(ctx: Context) -> list[int]:
    return [ctx.memory.seq_pos_max(seq) for seq in range(ctx.n_seq_max)]


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_batch=256, n_seq_max=4, **EXACT) as made:
        yield made


# ---------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("cuts", [[20], [7, 13], [1] * 20, [19, 1]])
def test_one_batch_equals_several(decoder_model_path: Path, cuts: list[int]) -> None:
    model = Model(decoder_model_path)
    with Context(model, n_ctx=256, **EXACT) as whole, Context(model, n_ctx=256, **EXACT) as parts:
        whole.decode(batch_of(20, logits="all"))
        expected = [whole.logits(i).copy() for i in range(20)]
        pos = 0
        for n in cuts:
            parts.decode(batch_of(n, pos, logits="all"))
            for i in range(n):
                np.testing.assert_allclose(parts.logits(i), expected[pos + i], atol=CLOSE)
            pos += n
    assert np.abs(expected[3] - expected[4]).max() > 100 * CLOSE


def test_small_ubatches_change_nothing(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    rows = [last_row(Context(model, n_ctx=256, n_ubatch=n, **EXACT), 100) for n in (512, 64, 7, 1)]
    for row in rows[1:]:
        np.testing.assert_allclose(row, rows[0], atol=CLOSE)


def test_sequences_in_one_batch_do_not_see_each_other(decoder_model_path: Path) -> None:
    with Context(Model(decoder_model_path), n_ctx=256, n_seq_max=3, **EXACT) as ctx:
        alone = last_row(ctx, 12)
        ctx.memory.clear()
        batch = Batch(64)
        batch.add_sequence(TOKENS[40:60], 0, 1)
        row = batch.add_sequence(TOKENS[:12], 0, 2)
        batch.add_sequence(TOKENS[60:70], 0, 0)
        ctx.decode(batch)
        np.testing.assert_allclose(ctx.logits(row), alone, atol=CLOSE)
        assert np.abs(ctx.logits(-1) - alone).max() > 100 * CLOSE


def test_a_row_that_several_sequences_share(ctx: Context) -> None:
    alone = last_row(ctx, 11)
    ctx.memory.clear()
    batch = Batch(32)
    for pos in range(10):
        batch.add(int(TOKENS[pos]), pos, [0, 2, 3])
    ctx.decode(batch)
    assert ends(ctx) == [9, -1, 9, 9]
    for seq in (0, 2, 3):
        np.testing.assert_allclose(last_row(ctx, 1, 10, seq), alone, atol=CLOSE)


def test_a_decode_is_repeatable(decoder_model_path: Path) -> None:
    model = Model(decoder_model_path)
    np.testing.assert_array_equal(
        last_row(Context(model, n_ctx=256, **EXACT), 30), last_row(Context(model, n_ctx=256, **EXACT), 30)
    )


# ---------------------------------------------------------------------------------------------------- logits


def test_indices_of_logits(ctx: Context) -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match="no output"):
        ctx.logits()
    batch = Batch(8)
    for pos in range(5):
        assert batch.add(int(TOKENS[pos]), pos, 0, logits=pos in (1, 3)) == pos
    ctx.decode(batch)
    assert (batch.n_outputs, ctx.n_outputs) == (2, 2)
    rows = {i: ctx.logits(i).copy() for i in (1, 3)}
    assert not np.array_equal(rows[1], rows[3])
    np.testing.assert_array_equal(ctx.logits(-1), rows[3])
    np.testing.assert_array_equal(ctx.logits(-2), rows[1])
    np.testing.assert_array_equal(ctx.logits(np.int64(3)), rows[3])
    for i in (0, 2, 4, 5, 1000, 2**31 - 1, -3, -(2**31)):
        with pytest.raises(errors.IndexOutOfRangeError, match=f"i={i}"):
            ctx.logits(i)
    for i in (2**31, -(2**40)):
        with pytest.raises(errors.InvalidArgumentError):
            ctx.logits(i)
    for i in (None, True, 1.0, "1", [1]):
        with pytest.raises(errors.ArgumentTypeError):
            ctx.logits(i)


def test_no_output_was_asked_for(ctx: Context) -> None:
    last_row(ctx, 3)
    ctx.decode(batch_of(3, 3, logits="none"))
    assert ctx.n_outputs == 0
    with pytest.raises(errors.IndexOutOfRangeError):
        ctx.logits()


def test_a_refused_batch_leaves_the_output_there(ctx: Context) -> None:
    row = last_row(ctx, 3)
    for batch in (batch_of(3, 50), Batch(1), batch_of(3, 3, seq_id=99)):
        with pytest.raises((errors.InvalidArgumentError, errors.IndexOutOfRangeError)):
            ctx.decode(batch)
        np.testing.assert_array_equal(ctx.logits(), row)


def test_embeddings_of_rows(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("llama")), n_ctx=256, embeddings=True, pooling="none", **EXACT) as ctx:
        ctx.decode(batch_of(6, logits="all"))
        rows = [ctx.embeddings(i).copy() for i in range(6)]
        assert rows[0].shape == (64,)
        assert len({row.tobytes() for row in rows}) == 6
        np.testing.assert_array_equal(ctx.embeddings(-1), rows[5])
        with pytest.raises(errors.IndexOutOfRangeError):
            ctx.embeddings(6)
        with pytest.raises(errors.ModelCapabilityError, match="pooling"):
            ctx.embeddings_seq(0)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooled_embeddings(tiny_model: TinyModelFactory, pooling: str) -> None:
    model = Model(tiny_model("bert"))
    options = {"n_ctx": 256, "n_seq_max": 3, "embeddings": True, **EXACT}
    texts = [model.vocab.tokenize(text) for text in ("hello world", "the capital of france")]
    np.testing.assert_array_equal(texts[0][[0, -1]], texts[1][[0, -1]])  # [CLS] and [SEP]
    with Context(model, pooling="none", **options) as ctx:
        batch = Batch(32)
        batch.add_sequence(texts[1], logits="all")
        ctx.decode(batch)
        rows = np.stack([ctx.embeddings(i) for i in range(len(texts[1]))])
    expected = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
    with Context(model, pooling=pooling, **options) as ctx:
        batch = Batch(64)
        for seq, ids in enumerate(texts):
            batch.add_sequence(ids, seq_id=seq, logits="all")
        ctx.encode(batch)
        np.testing.assert_allclose(ctx.embeddings_seq(1), expected, atol=CLOSE)
        assert np.abs(ctx.embeddings_seq(0) - expected).max() > 100 * CLOSE
        with pytest.raises(errors.IndexOutOfRangeError, match="no such sequence"):
            ctx.embeddings_seq(2)
        with pytest.raises(errors.ModelCapabilityError, match="single rows"):
            ctx.embeddings(0)


def test_what_a_kind_of_model_cannot_do(ctx: Context, tiny_model: TinyModelFactory) -> None:
    last_row(ctx, 4)
    with pytest.raises(errors.ModelCapabilityError, match="no encoder"):
        ctx.encode(batch_of(1, 4))
    with pytest.raises(errors.ModelCapabilityError, match="embeddings=True"):
        ctx.embeddings()
    with pytest.raises(errors.ModelCapabilityError, match="embeddings=True"):
        ctx.embeddings_seq(0)
    assert ends(ctx) == [3, -1, -1, -1]
    with Context(Model(tiny_model("bert")), n_ctx=256, embeddings=True, **EXACT) as bert:
        batch = Batch(8)
        batch.add_sequence([1, 50, 60, 2], logits="all")
        bert.encode(batch)
        with pytest.raises(errors.ModelCapabilityError):  # an encoder has no output head
            bert.logits(0)


# ---------------------------------------------------------------------------------------------------- refusals


def test_batches_that_are_refused_change_nothing(ctx: Context, tiny_model: TinyModelFactory) -> None:
    expected = last_row(Context(ctx.model, n_ctx=256, **EXACT), 6)
    last_row(ctx, 5)

    def refused(kind: type[Exception], match: str, *rows: tuple) -> None:
        batch = Batch(max(1, len(rows)))
        for row in rows:
            batch.add(*row)
        with pytest.raises(kind, match=match):
            ctx.decode(batch)
        assert ends(ctx) == [4, -1, -1, -1]

    refused(errors.InvalidArgumentError, "empty")
    refused(errors.InvalidArgumentError, "n_batch=256", *[(300, 5 + i, 0) for i in range(257)])
    refused(errors.IndexOutOfRangeError, "token 548", (548, 5, 0))
    refused(errors.IndexOutOfRangeError, "token 2147483647", (300, 5, 0), (2**31 - 1, 6, 0))
    refused(errors.IndexOutOfRangeError, "seq_id 4", (300, 5, 4))
    refused(errors.IndexOutOfRangeError, "seq_id 255", (300, 5, [0, 255]))
    refused(errors.InvalidArgumentError, "follow on", (300, 6, 0))  # a gap
    refused(errors.InvalidArgumentError, "follow on", (300, 4, 0))  # there already
    refused(errors.InvalidArgumentError, "follow on", (300, 5, 0), (301, 7, 0))
    refused(errors.InvalidArgumentError, "follow on", (300, 6, 0), (301, 5, 0))
    refused(errors.InvalidArgumentError, "follow on", (300, 5, 0), (301, 5, 0))
    refused(errors.InvalidArgumentError, "follow on", (300, 5, 0), (301, 6, 0), (301, 6, 0), (301, 7, 0))
    refused(errors.InvalidArgumentError, "follow on", (300, 0, 1), (300, 9, 0))  # one good, one bad sequence
    np.testing.assert_allclose(last_row(ctx, 1, 5), expected, atol=CLOSE)


@pytest.mark.parametrize("value", [None, 3, "batch", [1, 2], object()])
def test_decode_wants_a_batch(ctx: Context, value: object) -> None:
    with pytest.raises(TypeError):
        ctx.decode(value)
    with pytest.raises(TypeError):
        ctx.encode(value)


def test_batch_rows_are_checked_and_a_bad_one_is_not_added() -> None:
    batch = Batch(3)
    bad = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**31, 0, 0), (0, 2**31 - 1, 0)]
    bad_ids = [[], [1, 1], [1, -1], range(257), [2**31]]
    for row in [*bad, *[(0, 0, ids) for ids in bad_ids]]:
        with pytest.raises(errors.InvalidArgumentError):
            batch.add(*row)
    for row in [
        (None, 0, 0),
        (1.0, 0, 0),
        (0, "0", 0),
        (0, 0, None),
        (0, 0, "0"),
        (True, 0, 0),
        (0, 0, 0, "none"),
    ]:
        with pytest.raises(errors.ArgumentTypeError):
            batch.add(*row)
    assert (len(batch), batch.n_outputs) == (0, 0)
    assert batch.add(5, 0, range(8), logits=True) == 0
    assert batch.add_sequence([6, 7], 1) == 2
    with pytest.raises(errors.InvalidArgumentError, match="do not fit"):
        batch.add(5, 3, 0)
    assert (len(batch), batch.n_outputs) == (3, 2)
    batch.clear()
    assert (len(batch), batch.n_outputs) == (0, 0)
    for arguments in [
        ([],),
        ([1, 2, 3, 4],),
        ([1], -1),
        ([1], 2**31 - 2),
        ([1], 0, -1),
        ([1], 0, 0, "first"),
        ([-1],),
    ]:
        with pytest.raises((errors.InvalidArgumentError, errors.IndexOutOfRangeError)):
            batch.add_sequence(*arguments)
    assert len(batch) == 0
    for capacity in (0, -1, 2**24 + 1, 2**70):
        with pytest.raises(errors.InvalidArgumentError, match="capacity"):
            Batch(capacity)


def test_more_outputs_than_the_context_was_made_for(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_outputs_max=2, **EXACT) as ctx:
        with pytest.raises(errors.InvalidArgumentError, match="n_outputs_max"):
            ctx.decode(batch_of(8, logits="all"))
        assert ends(ctx) == [-1]
        assert np.isfinite(last_row(ctx, 8)).all()
    with pytest.raises(errors.InvalidArgumentError, match="n_outputs_max"):
        Context(ctx.model, n_ctx=256, n_outputs_max=1, n_seq_max=4)


def test_pooling_needs_one_ubatch(tiny_model: TinyModelFactory) -> None:
    with Context(
        Model(tiny_model("bert")), n_ctx=256, n_batch=64, n_ubatch=8, embeddings=True, **EXACT
    ) as ctx:
        batch = Batch(16)
        batch.add_sequence([1] * 9, logits="all")
        with pytest.raises(errors.InvalidArgumentError, match="n_ubatch=8"):
            ctx.encode(batch)
        batch.clear()
        batch.add_sequence([1] * 8, logits="all")
        ctx.encode(batch)
        assert np.isfinite(ctx.embeddings_seq(0)).all()


# ---------------------------------------------------------------------------------------------------- making one


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        *[({"n_ctx": bad}, errors.InvalidArgumentError) for bad in (0, -1, -512, 2**31, 2**64)],
        *[({"n_ctx": bad}, errors.ArgumentTypeError) for bad in (True, 512.0, "512", [512], float("nan"))],
        *[({"n_batch": bad}, errors.InvalidArgumentError) for bad in (0, -1, 2**24 + 1)],
        *[({"n_ubatch": bad}, errors.InvalidArgumentError) for bad in (0, -1, 2**24 + 1)],
        *[({"n_seq_max": bad}, errors.InvalidArgumentError) for bad in (0, -1, 257, 2**31)],
        *[({"n_threads": bad}, errors.InvalidArgumentError) for bad in (0, -1, 513, 10_000, 2**31)],
        *[({"n_threads_batch": bad}, errors.InvalidArgumentError) for bad in (0, 10_000)],
        *[({"n_outputs_max": bad}, errors.InvalidArgumentError) for bad in (0, -1, 2049)],
        *[({"pooling": bad}, errors.InvalidArgumentError) for bad in ("max", 1, True, [])],
        *[({"type_k": bad}, errors.InvalidArgumentError) for bad in ("q4_k", "F16", None, 1, {})],
        *[({"flash_attn": bad}, errors.ArgumentTypeError) for bad in ("auto", 1)],
        *[({name: 1}, errors.ArgumentTypeError) for name in ("embeddings", "offload_kqv", "op_offload")],
        *[({name: None}, errors.ArgumentTypeError) for name in ("swa_full", "kv_unified")],
        *[({"rope_freq_base": bad}, errors.InvalidArgumentError) for bad in (0, -1.0, float("nan"), 1e300)],
        *[({"rope_freq_scale": bad}, errors.InvalidArgumentError) for bad in (0, float("inf"), 1e300, 3e4)],
        *[({"n_outputs_max_per_seq": bad}, errors.InvalidArgumentError) for bad in (0, -1, 2049)],
        *[({"rope_scaling_type": bad}, errors.InvalidArgumentError) for bad in ("YARN", 2, True, [])],
        *[({"attention_type": bad}, errors.InvalidArgumentError) for bad in ("non-causal", 1, False, {})],
        *[({"yarn_ext_factor": bad}, errors.InvalidArgumentError) for bad in (-1, float("nan"), 1e9)],
        *[({"yarn_attn_factor": bad}, errors.InvalidArgumentError) for bad in (0, -1, float("inf"))],
        *[({"yarn_beta_fast": bad}, errors.InvalidArgumentError) for bad in (0, -1.0, 1e30)],
        *[({"yarn_beta_slow": bad}, errors.InvalidArgumentError) for bad in (0, -1.0, 1e30)],
        *[({"yarn_orig_ctx": bad}, errors.InvalidArgumentError) for bad in (0, -1, 2**31)],
        *[({name: "1"}, errors.ArgumentTypeError) for name in ("yarn_orig_ctx", "yarn_ext_factor")],
        ({"perf": 1}, errors.ArgumentTypeError),
    ],
    ids=str,
)
def test_arguments_out_of_range_name_themselves(
    tiny_model: TinyModelFactory, arguments: dict, kind: type[Exception]
) -> None:
    model = Model(tiny_model("llama"))
    with pytest.raises(kind, match=next(iter(arguments))):
        Context(model, **{"n_ctx": 256, **arguments})
    model.close()  # nothing of the failed context is left inside


def test_more_sequences_than_rows_or_cells(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    for arguments in ({"n_ctx": 8, "n_seq_max": 9}, {"n_ctx": 256, "n_batch": 4, "n_seq_max": 5}):
        with pytest.raises(errors.InvalidArgumentError, match="n_seq_max"):
            Context(model, **arguments)


@pytest.mark.parametrize("kind", ["llama", "swa", "hybrid"])
def test_a_context_that_cannot_fit_says_how_much_it_needs(tiny_model: TinyModelFactory, kind: str) -> None:
    model = Model(tiny_model(kind))
    with pytest.raises(errors.OutOfMemoryError) as caught:
        Context(model, n_ctx=2**31 - 256)
    pattern = r"n_ctx=2147483392 needs about ([\d.]+) GiB .*and ([\d.]+) GiB are free.*n_ctx=(\d+)"
    found = re.search(pattern, str(caught.value))
    assert found
    need, free, fits = map(float, found.groups())
    assert need > free > 0
    assert 256 < fits < 2**31 - 256
    assert isinstance(caught.value, MemoryError)
    assert np.isfinite(last_row(Context(model, n_ctx=256, **EXACT), 5)).all()


def test_a_recurrent_model_takes_any_n_ctx(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("mamba")), n_ctx=2**31 - 256, n_batch=64, n_threads=1) as ctx:
        assert np.isfinite(last_row(ctx, 5)).all()


def test_facts(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama", n_ctx_train=1000))
    with Context(model, n_batch=100, n_ubatch=1000, n_seq_max=2, n_threads=1, n_threads_batch=2) as ctx:
        assert (ctx.n_ctx, ctx.n_batch, ctx.n_ubatch, ctx.n_seq_max) == (1024, 100, 100, 2)
        assert (ctx.n_threads, ctx.n_threads_batch, ctx.n_vocab) == (1, 2, len(model.vocab))
        assert ctx.n_ctx_seq == 1024
        assert ctx.model is model
        assert ctx.memory is ctx.memory
        # 2 layers, keys and values, 2 heads of 64, 2 bytes each
        assert ctx.memory_breakdown["context"] == 1024 * 2 * 2 * 2 * 64 * 2
        assert ctx.memory_breakdown["compute"] > 0
        ctx.set_n_threads(2)
        assert (ctx.n_threads, ctx.n_threads_batch) == (2, 2)
        ctx.set_n_threads(1, 2)
        for bad in (0, -1, 513, 10_000):
            with pytest.raises(errors.InvalidArgumentError, match="n_threads"):
                ctx.set_n_threads(bad)
            with pytest.raises(errors.InvalidArgumentError, match="n_threads_batch"):
                ctx.set_n_threads(1, bad)
        assert (ctx.n_threads, ctx.n_threads_batch) == (1, 2)
    with Context(model, n_ctx=512, n_seq_max=2, kv_unified=False, n_threads=1) as ctx:
        assert ctx.n_ctx_seq == 256


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_kv_types(tiny_model: TinyModelFactory, kv_type: str) -> None:
    model = Model(tiny_model("llama"))
    exact = last_row(Context(model, n_ctx=256, **EXACT), 40)
    with Context(model, n_ctx=256, type_k=kv_type, type_v=kv_type, flash_attn=True, n_threads=1) as ctx:
        row = last_row(ctx, 40)
    # a coarser memory changes the logits a little, and they still belong to the same tokens
    assert np.corrcoef(row, exact)[0, 1] > (0.999 if kv_type in ("f32", "f16", "bf16", "q8_0") else 0.95)
    if kv_type in ("q8_0", "q4_0"):
        with pytest.raises(errors.InvalidArgumentError, match="flash_attn"):
            Context(model, n_ctx=256, type_v=kv_type, flash_attn=False)


def test_every_field_of_the_struct_is_a_keyword_or_is_said_not_to_be(
    llama_cpp_dir: Path, tiny_model: TinyModelFactory
) -> None:
    header = (llama_cpp_dir / "include" / "llama.h").read_text()
    struct = re.search(r"struct llama_context_params \{(.*?)\n    \};", header, re.DOTALL)
    assert struct
    fields = re.findall(r"(\w+);", re.sub(r"//.*", "", struct[1]))
    assert len(fields) > 30
    renamed = {"pooling_type": "pooling", "flash_attn_type": "flash_attn", "no_perf": "perf"}
    model = Model(tiny_model("llama"))
    not_wrapped = (Path(__file__).parent.parent / "docs" / "not-wrapped.md").read_text()
    for field in fields:
        with pytest.raises((errors.LlamaRunnerError, TypeError)) as caught:
            Context(model, **{renamed.get(field, field): object()})
        is_keyword = "unexpected keyword" not in str(caught.value)
        assert is_keyword != (f"`{field}`" in not_wrapped), field


def test_rope_settings_move_the_logits_and_leave_the_model_as_it_was(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    plain = last_row(Context(model, n_ctx=256, **EXACT), 30)
    rows = {}
    for name, options in {
        "none": {"rope_scaling_type": "none", "rope_freq_scale": 0.25},
        "linear": {"rope_scaling_type": "linear", "rope_freq_scale": 0.25},
        "yarn": {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25},
        "yarn, other length": {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 64},
        "yarn, linear after all": {
            "rope_scaling_type": "yarn",
            "rope_freq_scale": 0.25,
            "yarn_ext_factor": 0,
        },
        "yarn, stronger": {"rope_scaling_type": "yarn", "yarn_ext_factor": 0, "yarn_attn_factor": 2.0},
        "yarn, betas": {
            "rope_scaling_type": "yarn",
            "rope_freq_scale": 0.25,
            "yarn_beta_fast": 4,
            "yarn_beta_slow": 2,
        },
    }.items():
        with Context(model, n_ctx=256, **options, **EXACT) as ctx:
            rows[name] = last_row(ctx, 30)
        assert model.n_ctx_train == 512, name  # llama.cpp writes another one into the model
    np.testing.assert_array_equal(rows.pop("none"), plain)  # no scaling, whatever the scale
    # YaRN without extrapolation is linear scaling, but for the factor on the attention
    np.testing.assert_allclose(rows.pop("yarn, linear after all"), rows["linear"], atol=CLOSE)
    values = [plain, *rows.values()]
    for i, row in enumerate(values):
        assert np.isfinite(row).all()
        for other in values[:i]:
            assert np.abs(row - other).max() > 10 * CLOSE
    with pytest.raises(errors.ModelCapabilityError, match="longrope"):
        Context(model, n_ctx=256, rope_scaling_type="longrope")


def test_embeddings_in_place_of_logits(tiny_model: TinyModelFactory) -> None:
    # this architecture leaves its output head out where embeddings are wanted
    with Context(Model(tiny_model("hybrid", architecture="lfm2")), n_ctx=256, **EXACT) as ctx:
        assert np.isfinite(last_row(ctx, 3)).all()
        ctx.set_embeddings(True)
        ctx.decode(batch_of(1, 3))
        for read in (ctx.logits, ctx.logits_matrix):
            with pytest.raises(errors.ModelCapabilityError, match="no logits"):
                read()
        assert ctx.embeddings().shape == (64,)
        ctx.set_embeddings(False)
        assert np.isfinite(last_row(ctx, 1, 4)).all()


# ---------------------------------------------------------------------------------------------------- switches


def test_attention_without_a_mask(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    with Context(model, n_ctx=256, **EXACT) as ctx:
        assert ctx.causal_attn is True
        ctx.decode(batch_of(10, logits="all"))
        causal = ctx.logits_matrix()
        ctx.memory.clear()
        ctx.causal_attn = False
        assert ctx.causal_attn is False
        ctx.decode(batch_of(10, logits="all"))
        free = ctx.logits_matrix()
        # the last row sees all rows either way in the first layer, but the rows it reads saw more in the second
        assert (np.abs(free - causal).max(axis=1) > 10 * CLOSE).all()
        ctx.memory.clear()
        ctx.causal_attn = True
        ctx.decode(batch_of(10, logits="all"))
        np.testing.assert_array_equal(ctx.logits_matrix(), causal)
        for bad in (None, 1, "no"):
            with pytest.raises(errors.ArgumentTypeError):
                ctx.causal_attn = bad
    with Context(model, n_ctx=256, n_ubatch=8, attention_type="non_causal", **EXACT) as ctx:
        assert ctx.causal_attn is False
        with pytest.raises(errors.InvalidArgumentError, match="n_ubatch=8"):
            ctx.decode(batch_of(9))
        ctx.causal_attn = True
        ctx.decode(batch_of(9))


def test_attention_that_a_model_does_not_have(tiny_model: TinyModelFactory) -> None:
    bert, mamba = Model(tiny_model("bert")), Model(tiny_model("mamba"))
    with Context(bert, n_ctx=256, n_threads=1) as ctx:
        assert ctx.causal_attn is False
        ctx.causal_attn = False
        with pytest.raises(errors.ModelCapabilityError, match="encoder"):
            ctx.causal_attn = True
        assert ctx.causal_attn is False
    recurrent = Context(mamba, n_ctx=256, n_threads=1)
    with pytest.raises(errors.ModelCapabilityError, match="recurrent"):
        recurrent.causal_attn = False
    recurrent.close()
    with pytest.raises(errors.ModelCapabilityError, match="encoder"):
        Context(bert, n_ctx=256, attention_type="causal")
    with pytest.raises(errors.ModelCapabilityError, match="recurrent"):
        Context(mamba, n_ctx=256, attention_type="non_causal")
    bert.close()  # nothing of the refused context is left inside
    mamba.close()


def test_embeddings_switched_on_and_off(ctx: Context) -> None:
    row = last_row(ctx, 5)
    assert ctx.produces_embeddings is False
    ctx.set_embeddings(True)
    assert ctx.produces_embeddings is True
    np.testing.assert_array_equal(ctx.logits(4), row)  # the last decode is as it was
    with pytest.raises(errors.IndexOutOfRangeError, match="after the last decode"):
        ctx.embeddings(4)
    with pytest.raises(errors.IndexOutOfRangeError):
        ctx.logits(0)
    ctx.memory.clear()
    ctx.decode(batch_of(5, logits="none"))
    assert ctx.n_outputs == 5
    assert ctx.output_rows.tolist() == [0, 1, 2, 3, 4]
    vectors = ctx.embeddings_matrix().copy()
    assert vectors.shape == (5, 64)
    np.testing.assert_allclose(ctx.logits(4), row, atol=CLOSE)
    ctx.set_embeddings(False)
    np.testing.assert_array_equal(ctx.embeddings_matrix(), vectors)
    ctx.decode(batch_of(1, 5))
    assert ctx.n_outputs == 1
    for read in (ctx.embeddings, ctx.embeddings_matrix):
        with pytest.raises(errors.ModelCapabilityError):
            read()
    for bad in (None, 1, "yes"):
        with pytest.raises(errors.ArgumentTypeError):
            ctx.set_embeddings(bad)


def test_pooling_switched_on(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("bert"))
    options = {"n_ctx": 256, "n_seq_max": 3, **EXACT}
    with Context(model, embeddings=True, **options) as ctx:
        ctx.decode(batch_of_ids([1, 50, 60, 2]))
        expected = ctx.embeddings_seq(0)
    with Context(model, n_batch=300, n_ubatch=300, **options) as ctx:
        ctx.decode(batch_of_ids([1, 50, 60, 2]))
        with pytest.raises(errors.ModelCapabilityError, match="embeddings=True"):
            ctx.embeddings_seq(0)
        ctx.set_embeddings(True)
        ctx.decode(batch_of_ids([1, 50, 60, 2]))
        np.testing.assert_array_equal(ctx.embeddings_seq(0), expected)
    with Context(model, n_batch=256, n_ubatch=256, **options) as ctx:
        with pytest.raises(errors.ModelCapabilityError, match=r"n_ubatch \(256\).*n_seq_max \(3\)"):
            ctx.set_embeddings(True)
        assert ctx.produces_embeddings is False
    # fewer rows at once than sequences: raised to their number
    with Context(model, n_ubatch=2, n_batch=64, embeddings=True, **options) as ctx:
        assert ctx.n_ubatch == 3


def batch_of_ids(ids: list[int]) -> Batch:
    return Batch.from_arrays(ids, logits="all")


def test_counters(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    with Context(model, n_ctx=256, n_threads=1, perf=True) as ctx:
        perf = ctx.perf()
        assert (perf.n_p_eval, perf.n_eval, perf.t_p_eval_ms, perf.t_eval_ms) == (0, 0, 0, 0)
        ctx.decode(batch_of(20))
        for pos in range(20, 30):
            ctx.decode(batch_of(1, pos))
        ctx.synchronize()
        perf = ctx.perf()
        assert (perf.n_p_eval, perf.n_eval) == (20, 10)
        assert perf.n_reused >= 8
        assert 0 < perf.t_eval_ms < 1e4 and 0 < perf.t_p_eval_ms < 1e4 and perf.t_load_ms > 0
        assert isinstance(hash(perf), int)
        ctx.perf_reset()
        assert ctx.perf().n_eval == ctx.perf().n_p_eval == ctx.perf().n_reused == 0
        assert ctx.perf().t_start_ms > perf.t_start_ms
        ctx.decode(batch_of(1, 30))
        assert (ctx.perf().n_p_eval, ctx.perf().n_eval) == (0, 1)
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        with pytest.raises(errors.ModelCapabilityError, match="perf=True"):
            ctx.perf()
        ctx.perf_reset()


# ---------------------------------------------------------------------------------------------------- all outputs


def test_matrices_of_all_outputs(decoder_model_path: Path) -> None:
    with Context(Model(decoder_model_path), n_ctx=256, n_seq_max=3, n_ubatch=8, **EXACT) as ctx:
        with pytest.raises(errors.IndexOutOfRangeError, match="no output"):
            ctx.logits_matrix()
        assert ctx.output_rows.tolist() == []
        # sequences of different lengths, interleaved: recurrent memories compute the rows in another order
        rows = [(int(TOKENS[i]), i // 3, i % 3) for i in range(30)] + [
            (int(TOKENS[30 + i]), 10 + i, 1) for i in range(5)
        ]
        batch = Batch(64)
        for i, row in enumerate(rows):
            batch.add(*row, logits=i % 4 == 1)
        ctx.decode(batch)
        matrix = ctx.logits_matrix()
        assert matrix.dtype == np.float32 and matrix.shape == (9, ctx.n_vocab) and matrix.flags.c_contiguous
        assert ctx.output_rows.dtype == np.int32
        assert ctx.output_rows.tolist() == [i for i in range(35) if i % 4 == 1]
        for at, i in enumerate(ctx.output_rows):
            np.testing.assert_array_equal(matrix[at], ctx.logits(i))
            assert np.shares_memory(matrix[at], ctx.logits(i))
        # and each is what its sequence gives alone
        for at, i in enumerate(ctx.output_rows):
            alone = [token for token, _, seq in rows[: i + 1] if seq == rows[i][2]]
            ctx.memory.clear()
            ctx.decode(Batch.from_arrays(np.array(alone, dtype=np.int32)))
            np.testing.assert_allclose(matrix[at], ctx.logits(), atol=CLOSE)
        assert ctx.logits_matrix().shape == (1, ctx.n_vocab)  # one row is a matrix too
