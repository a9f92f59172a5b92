"""Models that are not plain decoders: encoders, encoder and decoder, rerankers, learned positions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_archs
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model

EXACT = {"n_ctx": 128, "type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = 1e-3
TOKENS = np.random.default_rng(7).integers(270, 450, size=64).astype(np.int32)


def rows(tokens: object, pos: object = 0, seq_ids: object = 0, logits: object = "last") -> Batch:
    return Batch.from_arrays(tokens, pos, seq_ids, logits)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_archs.t5(tmp_path_factory.mktemp("t5") / "t5.gguf"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_archs.gpt2(tmp_path_factory.mktemp("gpt2") / "gpt2.gguf", n_ctx_train=32))


# ---------------------------------------------------------------------------------------------------- t5


def test_a_decoder_attends_to_what_was_encoded(t5: Model) -> None:
    def answer(prompt: np.ndarray) -> np.ndarray:
        with Context(t5, **EXACT) as ctx:
            ctx.encode(rows(prompt))
            ctx.decode(rows([3]))
            first = ctx.logits().copy()
            ctx.decode(rows([int(TOKENS[5])], 1))
            return np.stack([first, ctx.logits()])

    a, b = answer(TOKENS[:10]), answer(TOKENS[10:20])
    assert np.isfinite(a).all()
    assert (np.abs(a - b).max(axis=1) > 10 * CLOSE).all()
    np.testing.assert_array_equal(a, answer(TOKENS[:10]))


def test_several_prompts_encoded_at_once(t5: Model) -> None:
    def alone(prompt: np.ndarray) -> np.ndarray:
        with Context(t5, **EXACT) as ctx:
            ctx.encode(rows(prompt))
            ctx.decode(rows([3, 300]))
            return ctx.logits().copy()

    with Context(t5, n_seq_max=3, **EXACT) as ctx:
        batch = Batch(32)
        batch.add_sequence(TOKENS[:10], seq_id=2)
        batch.add_sequence(TOKENS[20:27], seq_id=0)
        ctx.encode(batch)
        batch.clear()
        batch.add_sequence([3, 300], seq_id=0)
        batch.add_sequence([3, 300], seq_id=2)
        ctx.decode(batch)
        np.testing.assert_allclose(ctx.logits(1), alone(TOKENS[20:27]), atol=CLOSE)
        np.testing.assert_allclose(ctx.logits(3), alone(TOKENS[:10]), atol=CLOSE)


def test_a_decoder_refuses_what_was_not_encoded(t5: Model) -> None:
    with Context(t5, n_seq_max=2, **EXACT) as ctx:
        with pytest.raises(errors.InvalidArgumentError, match="row 0 is of sequence 0: encode"):
            ctx.decode(rows([3]))
        ctx.encode(rows(TOKENS[:4], seq_ids=1))
        with pytest.raises(errors.ModelCapabilityError, match=r"encode\(\)"):
            ctx.logits()
        with pytest.raises(errors.ModelCapabilityError, match=r"encode\(\)"):
            ctx.logits_matrix()
        with pytest.raises(errors.InvalidArgumentError, match="sequence 0"):
            ctx.decode(rows([3, 3], [0, 0], [1, 0]))
        ctx.decode(rows([3], seq_ids=1))
        assert np.isfinite(ctx.logits()).all()
        with pytest.raises(errors.InvalidArgumentError, match="row 0 belongs to 2 sequences"):
            ctx.encode(rows([5], seq_ids=[[0, 1]]))
        # what is encoded anew starts at 0, and so must the decoder
        with pytest.raises(errors.InvalidArgumentError, match="follow on"):
            ctx.encode(rows(TOKENS[:4], seq_ids=1))
        ctx.memory.seq_rm(1, -1, -1)
        ctx.encode(rows(TOKENS[:4], seq_ids=1))
        ctx.decode(rows([3], seq_ids=1))


def test_embeddings_of_the_encoder(t5: Model) -> None:
    with Context(t5, embeddings=True, **EXACT) as ctx:
        ctx.encode(rows(TOKENS[:6]))
        assert ctx.embeddings_matrix().shape == (6, 64)
        np.testing.assert_array_equal(ctx.embeddings(2), ctx.embeddings_matrix()[2])
        ctx.decode(rows([3]))
        assert ctx.logits_matrix().shape == (1, ctx.n_vocab)
    for options in ({"embeddings": True, "pooling": "mean"}, {"kv_unified": False, "n_seq_max": 2}):
        with pytest.raises(errors.ModelCapabilityError):
            Context(t5, **EXACT, **options)


# ---------------------------------------------------------------------------------------------------- encoders


def test_an_encoder_outputs_every_row(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("bert"))
    with Context(model, embeddings=True, pooling="none", n_seq_max=2, **EXACT) as ctx:
        for call in (ctx.decode, ctx.encode):
            call(rows([1, 50, 60, 2], logits="none"))
            assert ctx.output_rows.tolist() == [0, 1, 2, 3]
            assert ctx.embeddings_matrix().shape == (4, 64)
            for read in (ctx.logits, ctx.logits_matrix):
                with pytest.raises(errors.ModelCapabilityError, match="no logits"):
                    read()
        with pytest.raises(errors.InvalidArgumentError, match="row 1 belongs to 2"):
            ctx.encode(rows([1, 2], seq_ids=[[0, -1], [0, 1]]))
    # rows that ask for no output count all the same
    with Context(model, n_outputs_max=2, **EXACT) as ctx:
        with pytest.raises(errors.InvalidArgumentError, match="n_outputs_max=2"):
            ctx.decode(rows([1, 50, 2], logits="none"))
        ctx.decode(rows([1, 2], logits="none"))


@pytest.mark.parametrize("n_scores", [1, 3])
def test_rerank_scores(tmp_path: Path, n_scores: int) -> None:
    model = Model(tiny_archs.reranker(tmp_path / "rerank.gguf", n_scores))
    with Context(model, n_seq_max=4, embeddings=True, **EXACT) as ctx:
        batch = Batch(64)
        for seq in range(3):
            batch.add_sequence([1, *range(50 + seq, 60), 2], seq_id=seq)
        ctx.encode(batch)
        together = [ctx.embeddings_seq(seq) for seq in range(3)]
        assert all(score.shape == (n_scores,) and score.dtype == np.float32 for score in together)
        for seq in range(3):
            ctx.encode(rows([1, *range(50 + seq, 60), 2]))
            np.testing.assert_allclose(ctx.embeddings_seq(0), together[seq], atol=CLOSE)
        assert len({score.tobytes() for score in together}) == 3
        with pytest.raises(errors.IndexOutOfRangeError):
            ctx.embeddings_seq(3)


def test_scores_of_a_model_that_has_none(tiny_model: TinyModelFactory) -> None:
    for kind in ("bert", "llama"):
        model = Model(tiny_model(kind))
        with pytest.raises(errors.ModelCapabilityError, match="classification head"):
            Context(model, embeddings=True, pooling="rank", **EXACT)
        model.close()


# ---------------------------------------------------------------------------------------------------- positions


def test_positions_past_a_learned_table(gpt2: Model, tiny_model: TinyModelFactory) -> None:
    with Context(gpt2, **EXACT) as ctx:
        ctx.decode(rows(TOKENS[:31]))
        ctx.decode(rows([300], 31))
        assert np.isfinite(ctx.logits()).all()
        with pytest.raises(errors.InvalidArgumentError, match=r"row 0 has position 32.*from 0 to 31"):
            ctx.decode(rows([300], 32))
        ctx.memory.clear()
        with pytest.raises(errors.InvalidArgumentError, match="row 32 has position 32"):
            ctx.decode(rows(TOKENS[:40]))
        assert ctx.memory.seq_pos_max(0) == -1
    ctx = Context(Model(tiny_model("bert", n_ctx_train=16)), **EXACT)
    with pytest.raises(errors.InvalidArgumentError, match="row 0 has position 16"):
        ctx.encode(rows([50], 16))


def test_hostile_calls_of_odd_models(tmp_path: Path) -> None:
    """Each of these ended the process, or read what was never written, before it was refused."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import numpy as np, tiny_archs
from llama_runner import errors
from llama_runner.core import Batch, Context, Model
folder = Path({str(tmp_path)!r})
for name in ("gpt2", "t5", "qwen2vl", "reranker"):
    model = Model(getattr(tiny_archs, name)(folder / name))
    for options in ({{}}, {{"embeddings": True}}, {{"attention_type": "non_causal"}}, {{"n_outputs_max": 4}},
                    {{"embeddings": True, "pooling": "last"}}, {{"embeddings": True, "pooling": "rank"}},
                    {{"kv_unified": False}}, {{"rope_scaling_type": "yarn", "rope_freq_scale": 0.1}}):
        try:
            ctx = Context(model, n_ctx=256, n_threads=2, n_seq_max=3, **options)
        except errors.LlamaRunnerError:
            continue
        for n in (1, 5, 200):
            for pos in (0, 1, 31, 10**6):
                for seq in (0, 2, [[0, 1]] * n, np.arange(n) % 3):
                    for width in (None, 64, 65):
                        given = np.full(n, 60, np.int32) if width is None else np.ones((n, width), np.float32)
                        where = np.full(n, pos, np.int32) if isinstance(seq, np.ndarray) else pos
                        batch = Batch.from_arrays(given, where, seq, "all")
                        for call in (ctx.decode, ctx.encode):
                            try:
                                call(batch)
                                ctx.logits_matrix()
                            except errors.LlamaRunnerError:
                                pass
                        if ctx.memory is not None:
                            try:
                                ctx.memory.clear()
                            except errors.LlamaRunnerError:
                                pass
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "alive\n", done.stderr[-1500:]
