"""The forms that a state takes: buffers, files, checkpoints, on the device, and whole contexts."""

from __future__ import annotations

import errno
import os
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
