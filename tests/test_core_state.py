"""``Context.state_*``: what is saved comes back exactly, or not at all."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner._container import PREFIX, digest, plan, unpack
from llama_runner.core import Batch, Context, DeviceState, Model

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


# ---------------------------------------------------------------------------------------------------- buffers, files


@pytest.mark.parametrize("partial", [False, True])
def test_into_a_buffer_of_the_caller(decoder_model_path: Path, partial: bool) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:40])
        if partial and "llama" in decoder_model_path.name:
            with pytest.raises(errors.ModelCapabilityError, match="partial"):
                ctx.state_seq_size(0, partial=True)
            return
        size = ctx.state_seq_size(0, tokens=TOKENS[:40], partial=partial)
        blob = ctx.state_seq_get(0, tokens=TOKENS[:40], partial=partial)
        assert len(blob) == size
        for buffer in (bytearray(size), memoryview(bytearray(size + 9)), np.zeros(size + 9, np.uint8)):
            assert ctx.state_seq_get_into(0, buffer, tokens=TOKENS[:40], partial=partial) == size
            assert bytes(memoryview(buffer)[:size]) == blob
            assert not any(memoryview(buffer)[size:])
        for small in (bytearray(size - 1), bytearray(1), bytearray()):
            with pytest.raises(errors.InvalidArgumentError, match=str(size)):
                ctx.state_seq_get_into(0, small, tokens=TOKENS[:40], partial=partial)
            assert not any(small)
        for wrong in (bytes(size), None, 3, "x", memoryview(bytearray(2 * size))[::2], [0] * size):
            with pytest.raises(errors.ArgumentTypeError, match="writable"):
                ctx.state_seq_get_into(0, wrong, partial=partial)


def test_tokens_travel_with_a_state(ctx: Context) -> None:
    for tokens in (TOKENS[:40], TOKENS[:40].tolist(), np.array(TOKENS[:3], np.int64), []):
        back = ctx.state_seq_set(2, ctx.state_seq_get(0, tokens=tokens))
        assert back is not None and back.dtype == np.int32
        assert back.tolist() == list(tokens)
    assert ctx.state_seq_set(2, ctx.state_seq_get(0)) is None
    for bad in ([-1], [ctx.n_vocab], [2**40]):
        with pytest.raises(errors.IndexOutOfRangeError):
            ctx.state_seq_get(0, tokens=bad)
    for wrong in ("ab", [1.5], [[1]], 3, {0: [1]}):
        with pytest.raises(errors.ArgumentTypeError):
            ctx.state_seq_get(0, tokens=wrong)


def test_there_and_back_through_a_file(decoder_model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "sequence.kv"
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:60])
        assert ctx.state_seq_save(path, 0, tokens=TOKENS[:60]) == path.stat().st_size
        assert path.read_bytes() == ctx.state_seq_get(0, tokens=TOKENS[:60])
        expected = feed(ctx, TOKENS[60:61], 60)
    with make(decoder_model_path) as other:
        assert other.state_seq_load(str(path), 2).tolist() == TOKENS[:60].tolist()
        assert same(feed(other, TOKENS[60:61], 60, 2), expected)
        assert other.state_seq_save(path, 1) > 0  # over what was there
        assert other.state_seq_load(path, 2) is None
        assert other.memory.seq_pos_max(2) == -1
    assert [entry.name for entry in tmp_path.iterdir()] == ["sequence.kv"]


def test_files_that_are_no_states(ctx: Context, tmp_path: Path) -> None:
    good = ctx.state_seq_get(0)
    path = tmp_path / "state.kv"
    for data in (b"", b"LRKV", good[:-1], good + b"x", good[:200], bytes(len(good)), good[:-1] + b"\0"):
        path.write_bytes(data)
        with pytest.raises(errors.StateError):
            ctx.state_seq_load(path, 1)
    with pytest.raises(errors.StorageError, match=r"absent\.kv") as caught:
        ctx.state_seq_load(tmp_path / "absent.kv", 1)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(errors.StateError, match="no file"):
        ctx.state_seq_load(tmp_path, 1)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(errors.StateError, match="no file"):
            ctx.state_seq_load(tmp_path / "pipe", 1)
    with pytest.raises(errors.ArgumentTypeError):
        ctx.state_seq_load(None, 1)
    check_untouched(ctx)


def test_a_file_of_a_terabyte_is_not_read(ctx: Context, tmp_path: Path) -> None:
    made = plan(ctx.fingerprint, "sequence", False, {}, 1 << 40)
    header = made.header.to_json()
    path = tmp_path / "sparse.kv"
    with path.open("wb") as file:
        file.write(PREFIX.pack(b"LRKV", 2, len(header), digest(header)) + header)
        try:
            file.truncate(made.size)
        except OSError:
            pytest.skip("no sparse files here")
    with pytest.raises(errors.StateError, match="at most"):
        ctx.state_seq_load(path, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is always full")
def test_a_disk_that_is_full(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.kv"
    path.write_bytes(b"before")
    with pytest.raises(errors.StorageError) as caught:
        ctx.state_seq_save(tmp_path / "no such folder" / "state.kv", 0)
    assert caught.value.errno == errno.ENOENT
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
from llama_runner import errors
from llama_runner.core import Batch, Context, DeviceState, Model
ctx = Context(Model(sys.argv[1]), n_ctx=256, n_threads=1)
batch = Batch(40)
batch.add_sequence(list(range(300, 340)))
ctx.decode(batch)
try:
    ctx.state_seq_save(sys.argv[2], 0)
except errors.StorageError as error:
    print("errno", error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, ctx.model.path, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"errno {errno.EFBIG}"
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.kv"]


# ---------------------------------------------------------------------------------------------------- partial


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("kind", "options"), [("swa", {"swa_full": False, "n_ubatch": 32}), ("hybrid", {})])
def test_a_checkpoint_takes_a_sequence_back(
    tiny_model: TinyModelFactory, kind: str, options: dict, on_device: bool
) -> None:
    with make(tiny_model(kind), n_ctx=1024, **options) as ctx:
        feed(ctx, TOKENS[:120])
        mark = ctx.state_seq_get(0, partial=True, on_device=on_device)
        if not on_device:
            assert len(mark) < len(ctx.state_seq_get(0))
        expected = feed(ctx, TOKENS[120:121], 120)
        for pos in range(121, 521, 200):
            feed(ctx, TOKENS[:200], pos)
        feed(ctx, TOKENS[100:110], 0, 1)
        with pytest.raises(errors.StateError, match="does not"):
            ctx.state_seq_set(1, mark)  # it has not the cells that go with it
        assert ctx.memory.seq_pos_max(1) == 9
        assert not ctx.memory.seq_rm(0, 120, -1)
        ctx.state_seq_set(0, mark)
        assert ctx.memory.seq_pos_max(0) == 119
        full = ctx.memory.cells()[0]
        assert full.pos[full.owned_by(0)].tolist() == list(range(120))
        assert same(feed(ctx, TOKENS[120:121], 120), expected)


def test_a_partial_state_says_so(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("hybrid")) as ctx:
        feed(ctx, TOKENS[:20])
        mark = ctx.state_seq_get(0, partial=True)
        assert unpack(ctx.fingerprint, "sequence", ctx.n_vocab, mark).header.partial is True
        for wrong in (None, 1, "x"):
            with pytest.raises(errors.ArgumentTypeError, match="partial"):
                ctx.state_seq_get(0, partial=wrong)


# ---------------------------------------------------------------------------------------------------- on the device


def test_on_the_device(decoder_model_path: Path) -> None:
    with make(decoder_model_path) as ctx:
        feed(ctx, TOKENS[:60])
        saved = ctx.state_seq_get(0, on_device=True)
        assert isinstance(saved, DeviceState)
        assert saved.nbytes > 0 and saved.seq_id == 0 and saved.context is ctx and not saved.stale
        expected = feed(ctx, TOKENS[60:61], 60)
        feed(ctx, TOKENS[200:210], 0, 1)
        for seq in (2, 0, 2):  # any number of times, wherever
            assert ctx.state_seq_set(seq, saved) is None
            assert ctx.memory.seq_pos_max(seq) == 59
            assert same(feed(ctx, TOKENS[60:61], 60, seq), expected)
            assert ctx.memory.seq_rm(seq)
        other = ctx.state_seq_get(1, on_device=True)
        assert not saved.stale
        newer = ctx.state_seq_get(0, on_device=True)  # takes its place
        assert saved.stale and not newer.stale and not other.stale
        assert "stale" in repr(saved)
        with pytest.raises(errors.StateError, match="gone"):
            ctx.state_seq_set(2, saved)
        ctx.state_seq_set(2, newer)
        assert ctx.memory.seq_pos_max(2) == -1
        with make(decoder_model_path) as foreign:
            feed(foreign, TOKENS[:60])
            with pytest.raises(errors.StateError, match="another context"):
                foreign.state_seq_set(0, other)
    assert other.stale
    with pytest.raises(errors.ClosedError):
        ctx.state_seq_set(0, other)


def test_what_the_device_cannot_do(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), type_k="q8_0", flash_attn=True) as ctx:
        feed(ctx, TOKENS[:20])
        with pytest.raises(errors.ModelCapabilityError, match="q8_0"):
            ctx.state_seq_get(0, on_device=True)
    with make(tiny_model("llama")) as ctx:
        feed(ctx, TOKENS[:200])
        saved = ctx.state_seq_get(0, on_device=True)
        feed(ctx, TOKENS[:10], 0, 1)
        with pytest.raises(errors.StateError, match="empty now"):
            ctx.state_seq_set(1, saved)
        assert ctx.memory.seq_pos_max(1) == -1
        with pytest.raises(errors.InvalidArgumentError, match="tokens"):
            ctx.state_seq_get(0, tokens=[1], on_device=True)
        with pytest.raises(errors.ArgumentTypeError, match="on_device"):
            ctx.state_seq_get(0, on_device=1)
        with pytest.raises(errors.ArgumentTypeError, match="DeviceState"):
            ctx.state_set(saved)
        with pytest.raises(errors.InvalidArgumentError):
            DeviceState()
        assert same(feed(ctx, TOKENS[200:201], 200), feed(make(tiny_model("llama")), TOKENS[:201]))


# ---------------------------------------------------------------------------------------------------- everything


def cells_of(ctx: Context) -> list[tuple]:
    """What the cells hold, wherever they are."""
    return [
        (t.kind, t.stream, sorted((int(t.pos[i]), t.owners(i)) for i in np.flatnonzero(t.pos >= 0)))
        for t in ctx.memory.cells()
    ]


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_whole_context_comes_back(
    decoder_model_path: Path, unified: bool, swa_full: bool, tmp_path: Path
) -> None:
    options = {"kv_unified": unified, "swa_full": swa_full, "n_ctx": 768, "n_ubatch": 32}
    with make(decoder_model_path, **options) as ctx:
        feed(ctx, TOKENS[:50])
        feed(ctx, TOKENS[100:120], 0, 2)
        ctx.memory.seq_cp(0, 1)
        feed(ctx, TOKENS[50:60], 50, 1)
        tokens = {0: TOKENS[:50], 1: TOKENS[:60]}
        blob = ctx.state_get(tokens=tokens)
        assert len(blob) == ctx.state_size(tokens=tokens)
        buffer = bytearray(len(blob))
        assert ctx.state_get_into(buffer, tokens=tokens) == len(blob)
        assert buffer == blob
        path = tmp_path / "all.kv"
        assert ctx.state_save(path, tokens=tokens) == len(blob)
        before = cells_of(ctx)
        expected = [feed(ctx, TOKENS[200:201], pos, seq) for seq, pos in ((0, 50), (1, 60), (2, 20))]
        with make(decoder_model_path, **options) as other:
            feed(other, TOKENS[:9], 0, 1)
            for restore in (lambda: other.state_set(blob), lambda: other.state_load(path)):
                back = restore()
                assert {seq: ids.tolist() for seq, ids in back.items()} == {
                    seq: ids.tolist() for seq, ids in tokens.items()
                }
                assert cells_of(other) == before
            for (seq, pos), row in zip(((0, 50), (1, 60), (2, 20)), expected, strict=True):
                assert same(feed(other, TOKENS[200:201], pos, seq), row)


def test_kinds_of_states_are_not_mixed_up(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(errors.StateError, match="whole sequence, not of a context"):
        ctx.state_set(ctx.state_seq_get(0))
    with pytest.raises(errors.StateError, match="whole context, not of a sequence"):
        ctx.state_seq_set(0, ctx.state_get())
    for call in (ctx.state_seq_get, ctx.state_seq_size):
        with pytest.raises(errors.ArgumentTypeError, match="seq_id"):
            call(None)
    with pytest.raises(errors.ArgumentTypeError, match="dict"):
        ctx.state_get(tokens=[1])
    with pytest.raises(errors.IndexOutOfRangeError):
        ctx.state_get(tokens={7: [1]})
    check_untouched(ctx)


def test_a_whole_context_that_does_not_fit(ctx: Context, tiny_model: TinyModelFactory) -> None:
    feed(ctx, TOKENS[200:205], 0, 2)
    blob = ctx.state_get()
    with make(tiny_model("llama"), n_seq_max=2) as fewer:
        feed(fewer, TOKENS[:5])
        with pytest.raises(errors.StateError, match="sequence 2"):
            fewer.state_set(blob)
        assert fewer.memory.seq_pos_max(0) == 4
    with make(tiny_model("llama"), n_ctx=512) as larger:
        larger.state_set(blob)
        assert cells_of(larger) == cells_of(ctx)
    with make(tiny_model("llama"), kv_unified=False, n_ctx=768) as streams:
        with pytest.raises(errors.StateError, match="streams"):
            streams.state_set(blob)
        with pytest.raises(errors.StateError, match="streams"):
            streams.state_seq_set(0, ctx.state_seq_get(0))


def test_what_is_restored_is_not_overwritten_by_a_pending_copy(tiny_model: TinyModelFactory) -> None:
    with make(tiny_model("llama"), kv_unified=False, n_ctx=768) as ctx:
        expected = feed(ctx, TOKENS[:41])
        assert ctx.memory.seq_rm(0, 40, -1)
        blob = ctx.state_seq_get(0)
        feed(ctx, TOKENS[100:140], 0, 1)
        ctx.memory.seq_cp(1, 2)  # waits for the next decode
        ctx.state_seq_set(2, blob)
        assert same(feed(ctx, TOKENS[40:41], 40, 2), expected)


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
