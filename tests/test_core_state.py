"""``Context.state_*``: what is saved comes back exactly, or not at all."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner._container import PREFIX, digest, plan, unpack
from llama_runner.core import Batch, Context, Model

TOKENS = np.random.default_rng(7).integers(270, 450, size=300).astype(np.int32)
CLOSE = 1e-3


def make(path: Path, **options: object) -> Context:
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False}
    return Context(Model(path), **{"n_ctx": 256, "n_seq_max": 3, "n_threads": 1, **exact, **options})


def feed(ctx: Context, tokens: np.ndarray, pos: int = 0, seq: int = 0) -> np.ndarray:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, pos, seq)
    ctx.decode(batch)
    return ctx.logits().copy()


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.abs(left - right).max() < CLOSE)


def payload_of(ctx: Context, blob: bytes) -> bytearray:
    """What llama.cpp is given of a state."""
    return bytearray(unpack(ctx.fingerprint, "sequence", ctx.n_vocab, blob).payload)


def forge(ctx: Context, payload: bytes | bytearray) -> bytearray:
    """A container whose checksums are right, whatever the payload."""
    made = plan(ctx.fingerprint, "sequence", False, {}, len(payload))
    container = bytearray(made.size)
    container[made.payload_at :] = payload
    made.seal(memoryview(container))
    return container


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Context:
    """A context whose sequence 0 has 40 tokens and sequence 1 has 10."""
    made = make(tiny_model("llama"))
    feed(made, TOKENS[:40])
    feed(made, TOKENS[100:110], 0, 1)
    return made


def check_untouched(ctx: Context) -> None:
    """Sequence 1 of the fixture is as it was."""
    assert ctx.memory.seq_pos_max(1) == 9
    row = feed(ctx, TOKENS[110:111], 10, 1)
    assert ctx.memory.seq_rm(1, 10, -1)
    assert same(row, feed(make(Path(ctx.model.path)), TOKENS[100:111]))


# ---------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "options", [{}, {"type_k": "f16", "type_v": "f16", "flash_attn": True}, {"kv_unified": False}]
)
def test_a_restored_sequence_goes_on_with_equal_logits(decoder_model_path: Path, options: dict) -> None:
    with make(decoder_model_path, **options) as ctx:
        feed(ctx, TOKENS[:60])
        blob = ctx.state_seq_get(0)
        expected = feed(ctx, TOKENS[60:61], 60)
        assert isinstance(blob, bytes)
        ctx.state_seq_set(2, blob)  # another sequence of the same context
        assert ctx.memory.seq_pos_max(2) == 59
        assert same(feed(ctx, TOKENS[60:61], 60, 2), expected)
    with make(decoder_model_path, **options) as other:  # another context of another Model object
        feed(other, TOKENS[200:230], 0, 0)
        other.state_seq_set(0, blob)  # in the place of what was there
        assert other.memory.seq_pos_max(0) == 59
        assert same(feed(other, TOKENS[60:61], 60), expected)


def test_any_bytes_like_object_is_taken(ctx: Context) -> None:
    blob = ctx.state_seq_get(0)
    for kind in (bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)):
        ctx.state_seq_set(2, kind(blob))
        assert ctx.memory.seq_pos_max(2) == 39
        assert ctx.memory.seq_rm(2)


def test_saving_twice_gives_the_same_bytes_and_changes_nothing(ctx: Context) -> None:
    assert ctx.state_seq_get(0) == ctx.state_seq_get(0)
    assert ctx.state_seq_get(0) != ctx.state_seq_get(1)
    check_untouched(ctx)


def test_an_empty_sequence_can_be_saved_and_restored(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        empty = ctx.state_seq_get(0)
        expected = feed(ctx, TOKENS[:20])
        ctx.state_seq_set(0, empty)
        assert ctx.memory.seq_pos_max(0) == -1
        assert same(feed(ctx, TOKENS[:20]), expected)


def test_a_fork_is_saved_on_its_own(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:30])
        ctx.memory.seq_cp(0, 1)
        feed(ctx, TOKENS[100:105], 30, 1)
        blob = ctx.state_seq_get(1)
        expected = feed(ctx, TOKENS[105:106], 35, 1)
        ctx.memory.clear()
        ctx.state_seq_set(2, blob)
        assert same(feed(ctx, TOKENS[105:106], 35, 2), expected)


@pytest.mark.parametrize("kind", ["llama", "swa"])
def test_a_pending_shift_is_applied_before_saving(tiny_model: TinyModelFactory, kind: str) -> None:
    with make(tiny_model(kind)) as ctx:
        feed(ctx, TOKENS[:40])
        assert ctx.memory.seq_rm(0, 10, 20)
        ctx.memory.seq_add(0, 20, -1, -10)  # waits for the next decode
        blob = ctx.state_seq_get(0)
        expected = feed(ctx, TOKENS[40:41], 30)
        ctx.memory.clear(True)
        ctx.state_seq_set(0, blob)
        assert ctx.memory.seq_pos_max(0) == 29
        assert same(feed(ctx, TOKENS[40:41], 30), expected)


def test_a_pending_copy_between_streams_is_applied_before_saving(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), kv_unified=False, n_ctx=768) as ctx:
        expected = feed(ctx, TOKENS[:41])
        assert ctx.memory.seq_rm(0, 40, -1)
        ctx.memory.seq_cp(0, 1)  # waits for the next decode
        blob = ctx.state_seq_get(1)
        ctx.memory.clear(True)
        ctx.state_seq_set(2, blob)
        assert same(feed(ctx, TOKENS[40:41], 40, 2), expected)


def test_outputs_before_a_restore_are_gone(ctx: Context) -> None:
    assert ctx.n_outputs == 1
    ctx.state_seq_set(2, ctx.state_seq_get(0))
    with pytest.raises(errors.IndexOutOfRangeError):
        ctx.logits()


def test_no_room_for_a_state(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama")) as ctx:
        feed(ctx, TOKENS[:200])
        blob = ctx.state_seq_get(0)
        feed(ctx, TOKENS[:10], 0, 1)
        with pytest.raises(errors.StateError, match="empty now"):
            ctx.state_seq_set(1, blob)
        assert ctx.memory.seq_pos_max(1) == -1
        assert same(feed(ctx, TOKENS[200:201], 200), feed(make(tiny_model("llama")), TOKENS[:201]))


# ---------------------------------------------------------------------------------------------------- damage


def test_every_length_it_can_be_cut_to(ctx: Context) -> None:
    blob = ctx.state_seq_get(0)
    header = PREFIX.unpack_from(blob)[2]
    edges = {0, 1, 4, PREFIX.size, PREFIX.size + header, len(blob)}
    lengths = {edge + step for edge in edges for step in (-1, 0, 1)} | set(range(0, len(blob), 97))
    for length in sorted(lengths & set(range(len(blob)))):
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(1, blob[:length])
    for extra in (b"\0", blob):
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(1, blob + extra)
    check_untouched(ctx)


def test_every_flipped_bit(ctx: Context) -> None:
    blob = ctx.state_seq_get(0)
    header = PREFIX.size + PREFIX.unpack_from(blob)[2]
    spread = random.Random(0).sample(range(header, len(blob)), 300)
    for at in [*range(header), *spread]:
        damaged = bytearray(blob)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(1, damaged)
    check_untouched(ctx)


def test_bytes_that_never_were_a_state(ctx: Context) -> None:
    blob = ctx.state_seq_get(0)
    noise = random.Random(1).randbytes(5000)
    for data in (
        noise,
        b"LRKV" + noise,
        blob[:16] + noise,
        b"LRKV\1\0\0\0\xff\xff\xff\x7f" + noise,
        blob[::-1],
    ):
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(1, data)
    good = json.loads(blob[PREFIX.size : PREFIX.size + PREFIX.unpack_from(blob)[2]])
    for header in (
        "[]",
        "{}",
        '{"fingerprint": 1, "length": 2, "blake2b": 3}',
        "[" * 5000,
        "[" * 100_000,
        "\ud800x",
        *(
            json.dumps({**good, key: value})
            for key in good
            for value in (
                None,
                -1,
                1 << 70,
                1.5,
                [],
                [[0, -1]],
                [[0, 1 << 30]],
                [[0, 0], [0, 0]],
                [0],
                {},
                "x",
                True,
            )
        ),
    ):
        raw = header.encode("utf-8", "surrogatepass")
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(1, PREFIX.pack(b"LRKV", 2, len(raw), digest(raw)) + raw)
    with pytest.raises(errors.StateError, match="version 3"):
        ctx.state_seq_set(1, PREFIX.pack(b"LRKV", 3, 0, b"") + blob[PREFIX.size :])
    check_untouched(ctx)


@pytest.mark.parametrize("value", [None, 3, "text", [1, 2], object(), 1.5, {}])
def test_what_is_no_bytes(ctx: Context, value: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="bytes"):
        ctx.state_seq_set(1, value)
    check_untouched(ctx)


def test_a_sound_container_with_a_payload_that_llama_cpp_refuses(ctx: Context) -> None:
    payload = payload_of(ctx, ctx.state_seq_get(0))
    feed(ctx, TOKENS[200:205], 0, 2)
    for forged in (
        b"",
        b"x",
        payload[: len(payload) // 2],
        payload + b"x",
        bytes(len(payload)),
        b"\xff" * len(payload),
    ):
        with pytest.raises(errors.StateError):
            ctx.state_seq_set(2, forge(ctx, forged))
        assert ctx.memory.seq_pos_max(2) == 4
    check_untouched(ctx)


# what upstream writes of a sequence: magic, sequence, streams, cells; position, owners, sequence of each cell; layout
# of values, layers; for each layer type, row size and rows of keys, then of values
FIRST_CELL = 16
WORDS = {
    "the magic": (0, [0, 1]),
    "streams": (8, [0, 2, 2**32 - 1]),
    "cells": (12, [0, 39, 41, 256, 257, 2**31, 2**32 - 1]),
    "a position": (FIRST_CELL, [2**32 - 1, 2**31, 2**31 - 1, 2**32 - 2]),
    "owners": (FIRST_CELL + 4, [0, 2, 255, 2**32 - 1]),
    "the layout": (FIRST_CELL + 40 * 12, [0, 2, 2**32 - 1]),
    "layers": (FIRST_CELL + 40 * 12 + 4, [0, 1, 3, 2**32 - 1]),
    "a type": (FIRST_CELL + 40 * 12 + 8, [1, 8, 39, 2**32 - 1]),
    "a row": (FIRST_CELL + 40 * 12 + 12, [0, 1, 2**31, 2**32 - 1]),
    "the rest of a row": (FIRST_CELL + 40 * 12 + 16, [1, 2**32 - 1]),
}


@pytest.mark.parametrize("name", WORDS)
def test_forged_words_in_a_payload(ctx: Context, name: str) -> None:
    payload = payload_of(ctx, ctx.state_seq_get(0))
    at, values = WORDS[name]
    ctx.state_seq_set(2, forge(ctx, payload))
    for value in values:
        forged = payload.copy()
        assert forged[at : at + 4] != value.to_bytes(4, "little")
        forged[at : at + 4] = value.to_bytes(4, "little")
        with pytest.raises(errors.StateError, match="does not fit this context, or is forged"):
            ctx.state_seq_set(2, forge(ctx, forged))
        assert ctx.memory.seq_pos_max(2) == 39
    check_untouched(ctx)


def test_halves_that_do_not_agree(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("hybrid")) as ctx:
        feed(ctx, TOKENS[:20])
        short = payload_of(ctx, ctx.state_seq_get(0))
        feed(ctx, TOKENS[20:21], 20)
        state = payload_of(ctx, ctx.state_seq_get(0, partial=True))[8:]  # what follows magic and sequence
        with pytest.raises(errors.StateError, match="different positions"):
            ctx.state_seq_set(1, forge(ctx, short[: len(short) - len(state)] + state))
        assert ctx.memory.seq_pos_max(1) == -1


# ---------------------------------------------------------------------------------------------------- foreign


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ({"seed": 1}, {}, "metadata|tensors|weights"),  # other weights of the same shape
        ({"n_layer": 3}, {}, "n_params"),
        ({"metadata": {"general.name": "other"}}, {}, "metadata"),
        ({}, {"type_k": "f16"}, "type_k"),
        ({}, {"type_v": "q8_0", "flash_attn": True}, "type_v"),
        ({}, {"rope_freq_base": 5000.0}, "rope_freq_base"),
        ({}, {"rope_freq_scale": 0.5}, "rope_freq_scale"),
        ({}, {"flash_attn": True}, "flash_attn"),  # lays the values out differently
    ],
    ids=str,
)
def test_a_state_of_another_model_or_context(
    ctx: Context, tiny_model: TinyModelFactory, model: dict, options: dict, named: str
) -> None:
    with make(tiny_model("llama", **model), **options) as other:
        feed(other, TOKENS[:40])
        with pytest.raises(errors.StateError, match=named):
            ctx.state_seq_set(1, other.state_seq_get(0))
        with pytest.raises(errors.StateError, match=named):
            other.state_seq_set(1, ctx.state_seq_get(0))
        assert other.memory.seq_pos_max(1) == -1
    check_untouched(ctx)


def test_a_state_of_another_architecture(ctx: Context, tiny_model: TinyModelFactory) -> None:
    for kind in ("swa", "mamba", "hybrid"):
        with make(tiny_model(kind)) as other:
            feed(other, TOKENS[:40])
            with pytest.raises(errors.StateError, match="another model"):
                ctx.state_seq_set(1, other.state_seq_get(0))
    check_untouched(ctx)


def test_what_may_differ(ctx: Context, tiny_model: TinyModelFactory) -> None:
    blob = ctx.state_seq_get(0)
    expected = feed(ctx, TOKENS[40:41], 40)
    options: dict[str, object]
    for options in ({"n_ctx": 512}, {"n_seq_max": 1}, {"n_ubatch": 16}, {"n_threads": 2}):
        with make(tiny_model("llama"), **options) as other:
            other.state_seq_set(0, blob)
            assert same(feed(other, TOKENS[40:41], 40), expected)


def test_the_fingerprint_cannot_be_changed_from_outside(ctx: Context) -> None:
    before = dict(ctx.fingerprint)
    ctx.fingerprint["metadata"] = "forged"
    assert ctx.fingerprint == before
    ctx.state_seq_set(2, ctx.state_seq_get(0))


def test_sequence_ids(ctx: Context, tiny_model: TinyModelFactory) -> None:
    blob = ctx.state_seq_get(0)
    for bad in (-1, 3, 256, 2**31, 2**70):
        with pytest.raises(errors.IndexOutOfRangeError, match="0 to 2"):
            ctx.state_seq_get(bad)
        with pytest.raises(errors.IndexOutOfRangeError, match="0 to 2"):
            ctx.state_seq_set(bad, blob)
    for wrong in (None, "0", 0.0, True, [0]):
        with pytest.raises(errors.ArgumentTypeError, match="seq_id"):
            ctx.state_seq_get(wrong)
    with Context(Model(tiny_model("bert")), n_ctx=256, n_threads=1) as bert:
        for call in (lambda: bert.state_seq_get(0), lambda: bert.state_seq_set(0, blob)):
            with pytest.raises(errors.ModelCapabilityError, match="no KV memory"):
                call()
