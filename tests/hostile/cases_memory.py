"""Hazards of the KV memory and of saved states."""

from __future__ import annotations

import struct

import numpy as np

from hostile.hazard import World, hazard, rows
from llama_runner import errors
from llama_runner._container import plan, unpack
from llama_runner.core import Batch

KINDS = ("llama", "swa", "mamba", "hybrid")


def packed(fingerprint: dict[str, object], payload: bytes | bytearray) -> bytes:
    """A container whose checksums are right, whatever is in it."""
    where = plan(fingerprint, "sequence", False, {}, len(payload))
    container = bytearray(where.size)
    container[where.payload_at :] = payload
    where.seal(memoryview(container))
    return bytes(container)


@hazard(
    "llama_kv_cache::seq_rm, seq_cp, seq_keep, seq_add, seq_div, seq_pos_min, seq_pos_max",
    "a sequence id out of range, in every operation",
    "Context.check_seq",
)
def memory_operations_on_no_sequence(w: World) -> None:
    for kind in KINDS:
        ctx = w.fed(kind)
        memory = ctx.memory
        for seq in (-1, 2, 255, 256, 2**31 - 1, 2**40):
            for call in (
                lambda s=seq: memory.seq_rm(s), lambda s=seq: memory.seq_cp(s, 0), lambda s=seq: memory.seq_cp(0, s),
                lambda s=seq: memory.seq_keep(s), lambda s=seq: memory.seq_pos_min(s),
                lambda s=seq: memory.seq_pos_max(s), lambda s=seq: ctx.state_seq_get(s),
                lambda s=seq: ctx.state_seq_set(s, b""),
            ):  # fmt: skip
                with w.refuses(errors.IndexOutOfRangeError, "seq_id"):
                    call()
        assert memory.seq_pos_max(0) == 7
        w.works(ctx)


@hazard(
    "llama_kv_cache::seq_cp", "a part of a sequence across streams (kv_unified=False)", "Memory.check_whole"
)
def partial_copy_across_streams(w: World) -> None:
    ctx = w.fed(kv_unified=False)
    for p0, p1 in ((0, 4), (2, -1), (2, 5)):
        with w.refuses(errors.ModelCapabilityError, "part"):
            ctx.memory.seq_cp(0, 1, p0, p1)
    ctx.memory.seq_cp(0, 1)
    ctx.decode(rows(1, 8, 1))
    assert ctx.memory.seq_pos_max(1) == 8
    w.works(ctx)


@hazard("llama_memory_recurrent::seq_cp", "a part of a state", "Memory.check_whole")
def partial_copy_of_a_state(w: World) -> None:
    for kind in ("mamba", "hybrid"):
        ctx = w.fed(kind)
        with w.refuses(errors.ModelCapabilityError, "part"):
            ctx.memory.seq_cp(0, 1, 0, 4)
        assert ctx.memory.seq_pos_max(1) == -1
        w.works(ctx)


@hazard(
    "llama_kv_cache::seq_cp",
    "a copy onto positions that are there already: counted twice",
    "Memory.check_free",
)
def second_copy_onto_one_sequence(w: World) -> None:
    ctx = w.fed()
    ctx.memory.seq_cp(0, 1)
    with w.refuses(errors.InvalidArgumentError, "seq_rm(1"):
        ctx.memory.seq_cp(0, 1)
    ctx.memory.seq_rm(1)
    ctx.memory.seq_cp(0, 1)
    ctx.decode(rows(1, 8, 1))
    w.works(ctx)


@hazard(
    "llama_kv_cache::seq_add, llama_kv_cache::build_graph_shift",
    "a shift where can_shift is false; some abort at the next decode only",
    "Memory.need_shift",
)
def shift_where_none_can_be(w: World) -> None:
    for kind in KINDS:
        ctx = w.fed(kind)
        if ctx.memory.can_shift:
            ctx.memory.seq_add(0, 0, -1, 1)
        else:
            with w.refuses(errors.ModelCapabilityError, "can_shift"):
                ctx.memory.seq_add(0, 0, -1, 1)
            with w.refuses(errors.ModelCapabilityError, "can_shift"):
                ctx.memory.seq_div(0, 0, -1, 2)
        end = ctx.memory.seq_pos_max(0)
        ctx.decode(rows(1, end + 1))
        w.works(ctx)


@hazard("llama_kv_cache::seq_div", "division by 0 (SIGFPE), by 1, by a negative number", "Memory.seq_div")
def division_of_positions_by_zero(w: World) -> None:
    ctx = w.fed()
    for d in (0, 1, -1, -(2**31), 2**31):
        with w.refuses(errors.InvalidArgumentError, "d="):
            ctx.memory.seq_div(0, 0, -1, d)
    assert ctx.memory.seq_pos_max(0) == 7
    w.works(ctx)


@hazard(
    "llama_kv_cache::seq_add",
    "a shift to below 0 (the cell is dropped) or above 2**31 (overflow)",
    "Memory.check_shift",
)
def shift_out_of_all_positions(w: World) -> None:
    ctx = w.fed()
    for delta in (-1, -8, 2**31 - 2, -(2**31) + 1):
        with w.refuses(errors.InvalidArgumentError, "delta"):
            ctx.memory.seq_add(0, 0, -1, delta)
    assert [ctx.memory.seq_pos_min(0), ctx.memory.seq_pos_max(0)] == [0, 7]
    w.works(ctx)


@hazard(
    "llama_kv_cache::seq_add",
    "a shift of cells that two sequences share: it moves both",
    "Memory.check_move; shared=True asks for it",
)
def shift_of_shared_cells(w: World) -> None:
    ctx = w.fed()
    ctx.memory.seq_cp(0, 1)
    with w.refuses(errors.InvalidArgumentError, "shares cells"):
        ctx.memory.seq_add(0, 0, -1, 5)
    ctx.memory.seq_add(0, 0, -1, 5, shared=True)
    assert [ctx.memory.seq_pos_max(seq) for seq in (0, 1)] == [12, 12]
    ctx.decode(rows(1, 13, 1))
    w.works(ctx)


@hazard(
    "llama_memory_recurrent::seq_rm, llama_memory_hybrid::seq_rm",
    "the middle of a state: True, and nothing done",
    "Memory.can_cut",
)
def a_state_cannot_forget_its_middle(w: World) -> None:
    for kind in ("mamba", "hybrid"):
        ctx = w.fed(kind)
        assert ctx.memory.seq_rm(0, 2, 5) is False
        assert ctx.memory.seq_rm(0, 5, -1) is False
        assert ctx.memory.seq_pos_max(0) == 7
        assert ctx.memory.seq_rm(0) is True
        w.works(ctx)


@hazard("llama_get_memory", "memory operations on a model that keeps none (NULL)", "Memory.enter")
def memory_of_a_model_that_keeps_none(w: World) -> None:
    with w.context("bert", embeddings=True) as ctx:
        memory = ctx.memory
        for call in (
            memory.clear, lambda: memory.seq_rm(0), lambda: memory.seq_cp(0, 1), lambda: memory.seq_keep(0),
            lambda: memory.seq_add(0, 0, 1, 1), lambda: memory.seq_div(0, 0, 1, 2), lambda: memory.seq_pos_min(0),
            lambda: memory.seq_pos_max(0), lambda: memory.can_shift, lambda: ctx.state_seq_get(0),
        ):  # fmt: skip
            with w.refuses(errors.ModelCapabilityError, "memory"):
                call()


# ---------------------------------------------------------------------------------------- state


@hazard(
    "llama_context::state_seq_get_data",
    "saving with a shift pending: the keys from before it (run: wrong by 10)",
    "state.get: lr_memory_flush",
)
def state_saved_with_a_shift_pending(w: World) -> None:
    ctx, late = w.fed(), w.fed()
    for each in (ctx, late):
        each.memory.seq_rm(0, 0, 2)
        each.memory.seq_add(0, 2, -1, -2)
    blob = ctx.state_seq_get(0)  # while it is pending
    with w.context() as other:
        other.state_seq_set(0, blob)
        other.decode(rows(1, 6))
        late.decode(rows(1, 6))
        np.testing.assert_allclose(other.logits(), late.logits(), atol=5e-2)
    w.works(ctx)


@hazard(
    "llama_context::state_seq_set_data, llama_kv_cache::state_read",
    "a state that is damaged, cut off, padded, empty or none",
    "_container.unpack",
)
def damaged_states(w: World) -> None:
    ctx = w.fed()
    blob = ctx.state_seq_get(0)
    for bad in (b"", b"x", blob[:-1], blob + b"x", blob[:20], b"\0" * len(blob), blob[:-5] + b"12345"):
        with w.refuses(errors.StateError):
            ctx.state_seq_set(0, bad)
    for bad in (None, "x", 1, [1]):
        with w.refuses(errors.ArgumentTypeError):
            ctx.state_seq_set(0, bad)
    assert ctx.memory.seq_pos_max(0) == 7
    w.works(ctx)


@hazard(
    "llama_context::state_seq_set_data",
    "the state of another model, KV type or rope setting",
    "the container's fingerprint",
)
def foreign_states(w: World) -> None:
    ctx = w.context()
    for other in (
        w.fed("swa"),
        w.fed(type_k="f32"),
        w.fed(rope_freq_base=500.0),
        w.fed(flash_attn=False, type_v="f32"),
    ):
        with w.refuses(errors.StateError, "another model or context"):
            ctx.state_seq_set(0, other.state_seq_get(0))
    w.works(ctx)


@hazard(
    "llama_kv_cache::state_read_meta, state_read_data, llama_memory_recurrent::state_read_meta",
    "a payload that is crafted and has the right checksum: memory without end (run: 24 GB), aborts",
    "native/state.cpp: the structure, before llama.cpp reads it",
)
def crafted_states_with_a_valid_checksum(w: World) -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        ctx = w.fed(kind)
        blob = ctx.state_seq_get(0)
        fingerprint = ctx.fingerprint
        payload = bytearray(unpack(fingerprint, "sequence", ctx.n_vocab, blob).payload)
        header = min(len(payload) - 8, 200)
        for round in range(600):
            bad = bytearray(payload)
            for _ in range(rng.integers(1, 4)):
                at = int(rng.integers(0, header if round % 4 else len(payload) - 8))
                edge = int(
                    rng.choice([0, 1, 2, 7, 8, 9, 255, 256, 257, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
                )
                bad[at : at + 4] = struct.pack("<I", edge)
            if round % 10 == 9:
                bad = bad[: int(rng.integers(1, len(bad)))]
            try:
                ctx.state_seq_set(int(round % 2), packed(fingerprint, bad))
                ctx.decode(rows(1, ctx.memory.seq_pos_max(round % 2) + 1, round % 2))
            except errors.LlamaRunnerError as error:
                assert "unusable" not in str(error), error
        w.works(ctx)


@hazard(
    "llama_context::state_seq_set_data",
    "a state that does not fit the memory",
    "state.set: the sequence is empty then",
)
def state_without_room(w: World) -> None:
    with w.context(n_ctx=512) as large:
        large.decode(rows(400))
        blob = large.state_seq_get(0)
    ctx = w.fed()
    with w.refuses(errors.StateError):
        ctx.state_seq_set(1, blob)
    assert [ctx.memory.seq_pos_max(seq) for seq in (0, 1)] == [7, -1]
    w.works(ctx)


@hazard(
    "llama_kv_cache::find_slot",
    "a sequence that starts at a large position (accepted), and positions near 2**31",
    "Batch.add_sequence",
)
def far_away_positions(w: World) -> None:
    for kind in KINDS:
        ctx = w.context(kind)
        batch = Batch(2)
        batch.add_sequence([300, 301], 2**31 - 4)
        ctx.decode(batch)
        with w.refuses(errors.InvalidArgumentError):
            batch.add_sequence([300, 301], 2**31 - 2)
        w.works(ctx)
