"""``Stepper`` does what its parts do one after another."""

from __future__ import annotations

import numpy as np
import pytest

from llama_runner import errors
from llama_runner.core import Batch, Context, Model, SamplerChain, Stepper

TOKENS = np.arange(300, 320, dtype=np.int32)


@pytest.fixture
def ctx(decoder_model_path):
    with Context(Model(decoder_model_path), n_ctx=256, n_seq_max=3, n_threads=1) as made:
        yield made


def chain() -> SamplerChain:
    return SamplerChain().top_k(20).temp(0.9).dist(seed=7)


def prefill(ctx: Context, seq: int) -> int:
    batch = Batch(32)
    row = batch.add_sequence(TOKENS, seq_id=seq)
    ctx.decode(batch)
    return row


def by_parts(ctx: Context, n: int) -> list[tuple[int, bytes, bool]]:
    sampler, vocab, batch, row, out = chain(), ctx.model.vocab, Batch(1), prefill(ctx, 0), []
    for pos in range(len(TOKENS), len(TOKENS) + n):
        token = sampler.sample(ctx, row)
        out.append((token, vocab.token_to_piece(token), vocab.is_eog(token)))
        batch.clear()
        row = batch.add(token, pos, 0, True)
        ctx.decode(batch)
    return out


def test_equal_to_its_parts(ctx):
    expected = by_parts(ctx, 8)
    ctx.memory.seq_rm(0)
    stepper = Stepper(ctx, chain(), ctx.model.vocab, 0)
    found = [stepper.select(prefill(ctx, 0))]
    for pos in range(len(TOKENS), len(TOKENS) + 7):
        found.append(stepper.advance(found[-1][0], pos))
    assert found == expected
    assert ctx.memory.seq_pos_max(0) == len(TOKENS) + 6
    assert stepper.context is ctx
    assert stepper.seq_id == 0
    assert "sequence 0" in repr(stepper)
    assert stepper.vocab is ctx.model.vocab
    assert len(stepper.chain) == 3


def test_bad_values_change_nothing(ctx):
    stepper = Stepper(ctx, chain(), ctx.model.vocab, 1)
    prefill(ctx, 1)
    for token, pos in ((-1, 20), (10**6, 20), (300, 5), (300, 22), (300, -1), (2**40, 20)):
        with pytest.raises((errors.InvalidArgumentError, errors.IndexOutOfRangeError)):
            stepper.advance(token, pos)
    for token, pos in ((None, 20), (300, "20"), (1.5, 20)):
        with pytest.raises(errors.ArgumentTypeError):
            stepper.advance(token, pos)
    assert ctx.memory.seq_pos_max(1) == len(TOKENS) - 1
    for seq in (-1, 3, None):
        with pytest.raises(errors.UsageError):
            Stepper(ctx, chain(), ctx.model.vocab, seq)
    with pytest.raises(errors.IndexOutOfRangeError):
        stepper.select(len(TOKENS) + 5)
    with pytest.raises(TypeError):
        Stepper(None, chain(), ctx.model.vocab)
    with pytest.raises(errors.InvalidArgumentError, match="another model"):
        Stepper(ctx, chain(), Model(ctx.model.path).vocab)


def test_a_timeout_takes_the_token_out_again(ctx):
    stepper = Stepper(ctx, chain(), ctx.model.vocab, 0)
    prefill(ctx, 0)
    before = ctx.memory.seq_pos_max(0)
    try:
        stepper.advance(300, len(TOKENS), timeout=0)
    except errors.DecodeAbortedError:
        assert ctx.memory.seq_pos_max(0) in (before, -1)  # -1: a recurrent state cannot step back
    else:  # it was done before the clock was looked at
        assert ctx.memory.seq_pos_max(0) == before + 1


def test_closed(ctx):
    stepper = Stepper(ctx, chain(), ctx.model.vocab, 0)
    ctx.close()
    for call in (lambda: stepper.advance(300, 0), stepper.select):
        with pytest.raises(errors.ClosedError):
            call()
    assert "closed" in repr(stepper)
