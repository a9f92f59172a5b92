"""``Memory``: the KV operations, on every memory kind, told by the logits that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Memory, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=600).astype(np.int32)
# KV memory and attention in full precision: batches of different shapes then differ by rounding alone
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3  # a wrong token moves a logit by a hundred times that
CELLS = ("llama", "swa")  # memories made of cells, which can be cut anywhere
STATES = ("mamba", "hybrid")  # memories with a state, which cannot


def make(path: Path, **options: object) -> Context:
    return Context(Model(path), **{"n_ctx": 512, "n_batch": 512, "n_seq_max": 4, **EXACT, **options})


def feed(ctx: Context, tokens: np.ndarray, pos: int = 0, seq: int = 0) -> np.ndarray:
    """Decode tokens of a sequence and return the last row."""
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, pos, seq)
    ctx.decode(batch)
    return ctx.logits().copy()


def fresh(ctx: Context, tokens: np.ndarray) -> np.ndarray:
    """What a context that saw nothing else computes."""
    with make(Path(ctx.model.path)) as other:
        return feed(other, tokens)


def span(ctx: Context, seq: int) -> tuple[int, int]:
    return ctx.memory.seq_pos_min(seq), ctx.memory.seq_pos_max(seq)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.abs(left - right).max() < CLOSE)


# ---------------------------------------------------------------------------------------------------- forks


def test_both_branches_of_a_fork_equal_a_fresh_prefill(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:60])
        ctx.memory.seq_cp(0, 2)
        assert span(ctx, 2) == span(ctx, 0)
        left, right = np.append(TOKENS[:60], [300, 301]), np.append(TOKENS[:60], [310, 311])
        rows = feed(ctx, left[60:], 60, 0), feed(ctx, right[60:], 60, 2)
        assert same(rows[0], fresh(ctx, left))
        assert same(rows[1], fresh(ctx, right))
        assert not same(*rows)


def test_branches_of_a_fork_decoded_together(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:40])
        for seq in (1, 2, 3):
            ctx.memory.seq_cp(0, seq)
        for step in range(3):
            batch = Batch(4)
            for seq in range(4):
                batch.add(300 + 10 * seq + step, 40 + step, seq, True)
            ctx.decode(batch)
        for seq in range(4):
            expected = fresh(ctx, np.append(TOKENS[:40], [300 + 10 * seq + step for step in range(3)]))
            assert same(ctx.logits(seq), expected)


def test_a_branch_outlives_its_trunk(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:40])
        ctx.memory.seq_cp(0, 1)
        assert ctx.memory.seq_rm(0)
        assert span(ctx, 0) == (-1, -1)
        feed(ctx, TOKENS[100:130], 0, 0)  # what was freed may be written again
        assert same(feed(ctx, TOKENS[40:41], 40, 1), fresh(ctx, TOKENS[:41]))


@pytest.mark.parametrize("kind", CELLS)
def test_a_fork_in_the_middle(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:60])
        ctx.memory.seq_cp(0, 1, 0, 25)
        assert span(ctx, 1) == (0, 24)
        assert same(feed(ctx, TOKENS[200:210], 25, 1), fresh(ctx, np.append(TOKENS[:25], TOKENS[200:210])))
        assert span(ctx, 0) == (0, 59)


def test_a_fork_takes_no_cells(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), n_ctx=256) as ctx:
        feed(ctx, TOKENS[:200])
        for seq in (1, 2, 3):
            ctx.memory.seq_cp(0, seq)
        for seq in range(4):
            feed(ctx, TOKENS[300:314], 200, seq)  # 4 * 14 = 56 cells, all that is left
        with pytest.raises(errors.NoSlotError):
            feed(ctx, TOKENS[:1], 214, 0)


def test_an_occupied_destination_is_refused(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:30])
        feed(ctx, TOKENS[50:60], 0, 1)
        ctx.memory.seq_cp(0, 2)
        for dst in (1, 2):
            before = span(ctx, dst)
            with pytest.raises(errors.InvalidArgumentError, match=rf"seq_rm\({dst}, "):
                ctx.memory.seq_cp(0, dst)
            assert span(ctx, dst) == before
        assert same(feed(ctx, TOKENS[60:61], 10, 1), fresh(ctx, TOKENS[50:61]))
        assert ctx.memory.seq_rm(1)
        ctx.memory.seq_cp(0, 1)
        assert same(feed(ctx, TOKENS[30:31], 30, 1), fresh(ctx, TOKENS[:31]))


@pytest.mark.parametrize("kind", STATES)
def test_a_state_is_copied_whole_or_not_at_all(tiny_model: TinyModelFactory, kind: str) -> None:
    # a state of 30 tokens beside the cells of 10 would answer with neither
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:30])
        for low, high in ((0, 10), (10, -1), (5, 9)):
            with pytest.raises(errors.ModelCapabilityError):
                ctx.memory.seq_cp(0, 1, low, high)
            assert span(ctx, 1) == (-1, -1)
        ctx.memory.seq_cp(0, 1, 0, 30)
        assert same(feed(ctx, TOKENS[30:31], 30, 1), fresh(ctx, TOKENS[:31]))


def test_copying_to_itself_changes_nothing(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:20])
        ctx.memory.seq_cp(0, 0)
        assert same(feed(ctx, TOKENS[20:21], 20), fresh(ctx, TOKENS[:21]))


@pytest.mark.parametrize("kind", CELLS)
def test_streams_of_their_own_copy_whole_sequences_only(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind), kv_unified=False) as ctx:
        feed(ctx, TOKENS[:30])
        with pytest.raises(errors.LlamaRunnerError, match="kv_unified"):
            ctx.memory.seq_cp(0, 1, 0, 10)
        assert span(ctx, 1) == (-1, -1)
        ctx.memory.seq_cp(2, 3, 0, 1)  # nothing
        ctx.memory.seq_cp(0, 1, 0, 30)  # all of it
        assert same(feed(ctx, TOKENS[30:31], 30, 1), fresh(ctx, TOKENS[:31]))


# ---------------------------------------------------------------------------------------------------- removing


@pytest.mark.parametrize("kind", CELLS)
def test_removing_the_tail_rolls_back(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:60])
        assert ctx.memory.seq_rm(0, 45, -1)
        assert span(ctx, 0) == (0, 44)
        assert same(feed(ctx, TOKENS[200:205], 45), fresh(ctx, np.append(TOKENS[:45], TOKENS[200:205])))


def test_removing_the_middle_and_closing_the_gap(tiny_model: TinyModelFactory) -> None:
    # The keys and values of a first layer know their token and its position alone: with one layer the result is exact.
    with make(tiny_model("llama", n_layer=1)) as ctx:
        feed(ctx, TOKENS[:30])
        assert ctx.memory.seq_rm(0, 10, 20)
        assert span(ctx, 0) == (0, 29)
        ctx.memory.seq_add(0, 20, -1, -10)
        assert span(ctx, 0) == (0, 19)
        row = feed(ctx, TOKENS[30:31], 20)
        assert same(row, fresh(ctx, np.concatenate([TOKENS[:10], TOKENS[20:31]])))
        assert not same(row, fresh(ctx, TOKENS[:31]))


@pytest.mark.parametrize("kind", CELLS)
def test_a_shift_of_everything_changes_no_logits(tiny_model: TinyModelFactory, kind: str) -> None:
    # RoPE looks at distances only
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:30])
        ctx.memory.seq_add(0, -1, -1, 100)
        assert span(ctx, 0) == (100, 129)
        assert same(feed(ctx, TOKENS[30:31], 130), fresh(ctx, TOKENS[:31]))


@pytest.mark.parametrize("kind", CELLS)
def test_dividing_positions(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:30])
        ctx.memory.seq_div(0, -1, -1, 3)
        assert span(ctx, 0) == (0, 9)
        assert not same(feed(ctx, TOKENS[30:31], 10), fresh(ctx, TOKENS[:31]))


@pytest.mark.parametrize("kind", STATES)
def test_a_state_cannot_forget_a_part(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:30])
        for low, high in ((0, 5), (5, 10), (-1, 29), (10, -1), (29, -1), (10, 30), (10, 1000)):
            assert ctx.memory.seq_rm(0, low, high) is False, (low, high)
            assert ctx.memory.seq_pos_max(0) == 29
        assert same(feed(ctx, TOKENS[30:31], 30), fresh(ctx, TOKENS[:31]))
        assert ctx.memory.seq_rm(0, 0, -1) is True
        assert span(ctx, 0) == (-1, -1)


def test_removing_nothing_and_everything(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:20])
        feed(ctx, TOKENS[50:70], 0, 1)
        assert ctx.memory.seq_rm(2) is True  # empty
        assert ctx.memory.seq_rm(2, 3, 9) is True
        assert ctx.memory.seq_rm(0, 20, -1) is True  # beyond the end
        assert ctx.memory.seq_rm(1) is True
        assert span(ctx, 1) == (-1, -1)
        assert same(feed(ctx, TOKENS[20:21], 20), fresh(ctx, TOKENS[:21]))


def test_a_sliding_window_that_has_moved_on(tiny_model: TinyModelFactory) -> None:
    # without swa_full the windowed cache keeps 32 positions and little more
    with make(tiny_model("swa"), swa_full=False, n_ubatch=32) as ctx:
        feed(ctx, TOKENS[:300])
        assert ctx.memory.seq_pos_min(0) > 0
        assert ctx.memory.seq_pos_max(0) == 299
        assert ctx.memory.seq_rm(0, 299, -1) is True
        with make(tiny_model("swa")) as full:
            feed(full, TOKENS[:299])
            assert same(feed(ctx, TOKENS[299:300], 299), feed(full, TOKENS[299:300], 299))


def test_keeping_one_sequence(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        for seq in range(4):
            feed(ctx, TOKENS[50 * seq : 50 * seq + 20], 0, seq)
        ctx.memory.seq_keep(2)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(4)] == [-1, -1, 19, -1]
        assert same(feed(ctx, TOKENS[120:121], 20, 2), fresh(ctx, TOKENS[100:121]))


@pytest.mark.parametrize("data", [False, True])
def test_clear(decoder_model_path: Path, data: bool) -> None:
    with make(decoder_model_path) as ctx:
        expected = feed(ctx, TOKENS[:20])
        feed(ctx, TOKENS[50:70], 0, 3)
        ctx.memory.clear(data)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(4)] == [-1] * 4
        assert same(feed(ctx, TOKENS[:20]), expected)


# ---------------------------------------------------------------------------------------------------- refusals

CALLS = {
    "seq_rm": (),
    "seq_keep": (),
    "seq_pos_min": (),
    "seq_pos_max": (),
    "seq_add": (0, -1, 1),
    "seq_div": (0, -1, 2),
    "seq_cp": (3,),
}


@pytest.mark.parametrize("name", CALLS)
def test_sequence_ids_out_of_range(decoder_model_path: Path, name: str) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:20])
        call = getattr(ctx.memory, name)
        for bad in (-1, 4, 255, 256, 2**31, -(2**70)):
            with pytest.raises(errors.IndexOutOfRangeError, match="0 to 3"):
                call(bad, *CALLS[name])
            if name == "seq_cp":
                with pytest.raises(errors.IndexOutOfRangeError, match="0 to 3"):
                    call(0, bad)
        for wrong in (None, True, 0.0, "0", [0], float("nan")):
            with pytest.raises(errors.ArgumentTypeError, match="seq_id"):
                call(wrong, *CALLS[name])
        assert same(feed(ctx, TOKENS[20:21], 20), fresh(ctx, TOKENS[:21]))


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_positions_and_numbers_out_of_range(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:20])
        memory = ctx.memory
        for bad in (2**31, 2**70):
            for call in (
                lambda bad=bad: memory.seq_rm(0, bad, -1),
                lambda bad=bad: memory.seq_rm(0, 0, bad),
                lambda bad=bad: memory.seq_cp(0, 1, bad),
                lambda bad=bad: memory.seq_add(0, 0, -1, bad),
                lambda bad=bad: memory.seq_div(0, 0, -1, bad),
            ):
                with pytest.raises(errors.InvalidArgumentError):
                    call()
        for bad in (0, 1, -1, -(2**31)):
            with pytest.raises(errors.InvalidArgumentError, match="d="):
                memory.seq_div(0, 0, -1, bad)
        # a position may become neither negative nor more than 31 bits
        for delta in (-1, -20, -(2**31) + 1, -(2**31) - 1, 2**31 - 1, 2**31 - 20):
            memory.clear()
            feed(ctx, TOKENS[:20])
            with pytest.raises(errors.InvalidArgumentError, match="delta"):
                memory.seq_add(0, 0, -1, delta)
        for wrong in (None, 1.5, "1", True):
            with pytest.raises(errors.ArgumentTypeError):
                memory.seq_add(0, 0, -1, wrong)
            with pytest.raises(errors.ArgumentTypeError):
                memory.seq_rm(0, wrong)
        with pytest.raises(errors.ArgumentTypeError, match="data"):
            memory.clear("yes")
        assert memory.seq_pos_max(0) == 19
        assert same(feed(ctx, TOKENS[20:21], 20), fresh(ctx, TOKENS[:21]))


def test_any_negative_position_means_start_or_end(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        feed(ctx, TOKENS[:20])
        assert ctx.memory.seq_rm(0, 15, -7)
        assert span(ctx, 0) == (0, 14)
        assert ctx.memory.seq_rm(0, -5, 3)
        assert span(ctx, 0) == (3, 14)


def test_a_model_without_memory(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("bert")), n_ctx=256, n_seq_max=4, n_threads=1) as ctx:
        for name, arguments in CALLS.items():
            with pytest.raises(errors.ModelCapabilityError, match="no KV memory"):
                getattr(ctx.memory, name)(0, *arguments)
        with pytest.raises(errors.ModelCapabilityError):
            ctx.memory.clear()
        with pytest.raises(errors.ModelCapabilityError):
            _ = ctx.memory.can_shift


def test_can_shift_and_repr(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        assert ctx.memory.can_shift is True
        assert ctx.memory.context is ctx
        assert repr(ctx) in repr(ctx.memory)
    for bad in (None, 3, "context"):
        with pytest.raises(TypeError):
            Memory(bad)
