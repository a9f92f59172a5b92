"""LoRA adapters and control vectors: what they change is what the mathematics says, and nothing breaks on the way."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, ControlVector, LoraAdapter, Model
from llama_runner.gguf import read_control_vector, read_gguf_header
from tiny_adapters import matrices, random_pairs, write, write_control_vector, write_lora, write_merged

TOKENS = np.random.default_rng(7).integers(270, 450, size=60).astype(np.int32)
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
CLOSE = (
    1e-3  # float32 rounding through two layers; a change that counts moves a logit by a hundred times that
)


def make(model: Model, **options: object) -> Context:
    return Context(model, **{"n_ctx": 256, "n_batch": 256, "n_seq_max": 2, **EXACT, **options})


def prefill(ctx: Context, n: int = 30) -> np.ndarray:
    """The last row of a prompt in an empty memory."""
    ctx.memory.clear()
    batch = Batch(n)
    batch.add_sequence(TOKENS[:n])
    ctx.decode(batch)
    return ctx.logits().copy()


def of(path: Path) -> np.ndarray:
    with Model(path) as model, make(model) as ctx:
        return prefill(ctx)


def apart(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max())


@pytest.fixture
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


@pytest.fixture
def model(path: Path) -> Model:
    return Model(path)


@pytest.fixture
def adapter(model: Model, path: Path, tmp_path: Path) -> LoraAdapter:
    return LoraAdapter(model, write_lora(tmp_path / "a.gguf", random_pairs(path)))


@pytest.fixture
def other(model: Model, path: Path, tmp_path: Path) -> LoraAdapter:
    return LoraAdapter(model, write_lora(tmp_path / "b.gguf", random_pairs(path, seed=1)))


# ---------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("scale", [1.0, -0.5, 2.5])
def test_an_adapter_equals_the_merged_model(
    model: Model, path: Path, adapter: LoraAdapter, tmp_path: Path, scale: float
) -> None:
    merged = of(write_merged(tmp_path / "merged.gguf", path, random_pairs(path), scale))
    with make(model) as ctx:
        plain = prefill(ctx)
        ctx.set_adapters({adapter: scale})
        assert ctx.adapters == {adapter: scale}
        assert apart(prefill(ctx), merged) < CLOSE
        assert apart(plain, merged) > 100 * CLOSE


@pytest.mark.parametrize("name", ["output.weight", "blk.1.attn_v.weight", "token_embd.weight"])
def test_one_weight_alone(model: Model, path: Path, tmp_path: Path, name: str) -> None:
    pairs = random_pairs(path, [name], gain=2.0)
    merged = of(write_merged(tmp_path / "merged.gguf", path, pairs))
    with make(model) as ctx, LoraAdapter(model, write_lora(tmp_path / "one.gguf", pairs)) as adapter:
        assert adapter.n_pairs == 1
        plain = prefill(ctx)
        ctx.set_adapters([(adapter, 1)])
        assert apart(prefill(ctx), merged) < CLOSE
        assert apart(plain, merged) > 100 * CLOSE
        ctx.set_adapters()


def test_alpha_divides_by_the_rank(model: Model, path: Path, adapter: LoraAdapter, tmp_path: Path) -> None:
    # llama.cpp scales by alpha / rank, and by 1 without an alpha
    weak = LoraAdapter(model, write_lora(tmp_path / "weak.gguf", random_pairs(path, rank=4), alpha=2.0))
    assert weak.metadata["adapter.lora.alpha"].startswith("2.0")
    with make(model) as ctx:
        ctx.set_adapters({weak: 1.0})
        row = prefill(ctx)
        ctx.set_adapters({adapter: 0.5})
        assert apart(row, prefill(ctx)) < 1e-5


def test_half_precision_adapters(model: Model, path: Path, tmp_path: Path) -> None:
    pairs = {
        name: (a.astype(np.float16), b.astype(np.float16)) for name, (a, b) in random_pairs(path).items()
    }
    merged = of(write_merged(tmp_path / "merged.gguf", path, pairs))
    with make(model) as ctx:
        ctx.set_adapters({LoraAdapter(model, write_lora(tmp_path / "half.gguf", pairs)): 1.0})
        assert apart(prefill(ctx), merged) < 0.05  # activations are rounded to half precision too


def test_scale_zero_is_no_adapter(model: Model, adapter: LoraAdapter) -> None:
    with make(model) as ctx:
        plain = prefill(ctx)
        for scale in (0, 0.0, -0.0, 1e-60):
            ctx.set_adapters({adapter: scale})
            assert ctx.adapters == {}
            assert np.array_equal(prefill(ctx), plain)
        adapter.close()  # nothing holds it


def test_hot_swap_between_decodes(model: Model, adapter: LoraAdapter, other: LoraAdapter) -> None:
    with make(model) as ctx:
        plain = prefill(ctx)
        rows = {}
        for name, active in {
            "a": {adapter: 1.0}, "b": {other: 1.0}, "both": {adapter: 1.0, other: 1.0}, "weak": {adapter: 0.5},
        }.items():  # fmt: skip
            ctx.set_adapters(active)
            assert ctx.adapters == active
            rows[name] = prefill(ctx)
        values = [plain, *rows.values()]
        assert min(apart(x, y) for i, x in enumerate(values) for y in values[:i]) > 10 * CLOSE
        for active, expected in (
            ({adapter: 1.0}, rows["a"]),
            ({other: 1}, rows["b"]),
            (None, plain),
            ([], plain),
        ):
            ctx.set_adapters(active)
            assert np.array_equal(prefill(ctx), expected)


def test_several_adapters_add_up(
    model: Model, path: Path, adapter: LoraAdapter, other: LoraAdapter, tmp_path: Path
) -> None:
    once = write_merged(tmp_path / "once.gguf", path, random_pairs(path), 0.5)
    twice = of(write_merged(tmp_path / "twice.gguf", once, random_pairs(path, seed=1), -1.0))
    with make(model) as ctx:
        ctx.set_adapters([(adapter, 0.5), (other, -1.0)])
        assert apart(prefill(ctx), twice) < CLOSE


def test_keys_and_values_keep_the_adapters_of_their_time(model: Model, adapter: LoraAdapter) -> None:
    with make(model) as ctx:
        ctx.set_adapters({adapter: 1.0})
        expected = prefill(ctx, 31)
        ctx.set_adapters()
        prefill(ctx, 30)
        ctx.set_adapters({adapter: 1.0})
        batch = Batch(1)
        batch.add(TOKENS[30], 30, 0, True)
        ctx.decode(batch)
        assert apart(ctx.logits(), expected) > CLOSE  # the prompt was read without the adapter


def test_one_token_at_a_time(model: Model, adapter: LoraAdapter) -> None:
    # the graph of one row is another one than that of many
    with make(model) as ctx:
        ctx.set_adapters({adapter: 1.0})
        expected = prefill(ctx, 12)
        ctx.memory.clear()
        batch = Batch(1)
        for pos in range(12):
            batch.clear()
            batch.add(TOKENS[pos], pos, 0, True)
            ctx.decode(batch)
        assert apart(ctx.logits(), expected) < CLOSE


@pytest.mark.parametrize("kind", ["swa", "mamba", "hybrid"])
def test_adapters_on_other_kinds(tiny_model: TinyModelFactory, tmp_path: Path, kind: str) -> None:
    path = tiny_model(kind)
    header = read_gguf_header(path)
    names = [t.name for t in header.tensors if "attn_q.weight" in t.name or "ssm_in.weight" in t.name]
    pairs = random_pairs(path, names, gain=1.0)
    merged = of(write_merged(tmp_path / "merged.gguf", path, pairs))
    model = Model(path)
    with make(model) as ctx:
        ctx.set_adapters(
            {LoraAdapter(model, write_lora(tmp_path / "a.gguf", pairs, architecture=header.architecture)): 1}
        )
        assert apart(prefill(ctx), merged) < CLOSE
        ctx.set_adapters()
        assert apart(prefill(ctx), merged) > 10 * CLOSE


# ---------------------------------------------------------------------------------------------------- what it says


def test_facts(model: Model, path: Path, tmp_path: Path) -> None:
    long = "x" * 1000
    file = write_lora(
        tmp_path / "facts.gguf", random_pairs(path, ["output.weight"]), alpha=8.0,
        metadata={"general.name": "näme", "long": long, "adapter.alora.invocation_tokens": np.array([3, 1, 4])},
        extra={"blk.0.attn_norm.weight": np.ones(64, np.float32)},
    )  # fmt: skip
    adapter = LoraAdapter(model, file)
    assert (adapter.model, adapter.path, adapter.closed) == (model, str(file), False)
    assert adapter.meta("general.name") == "näme"
    assert adapter.meta("long") == long
    assert adapter.meta("none") is None
    assert adapter.metadata["general.architecture"] == "llama"
    assert "adapter.alora.invocation_tokens" not in adapter.metadata
    assert adapter.invocation_tokens.tolist() == [3, 1, 4]
    assert adapter.invocation_tokens.dtype == np.int32
    assert adapter.ignored == ("blk.0.attn_norm.weight",)
    assert (adapter.n_pairs, len(adapter.digest)) == (1, 32)
    assert "facts.gguf" in repr(adapter)
    for bad in (None, 3, b"x"):
        with pytest.raises(errors.ArgumentTypeError):
            adapter.meta(bad)
    with pytest.raises(ValueError, match="read-only"):
        adapter.invocation_tokens[0] = 1
    adapter.close()
    assert adapter.meta("general.name") == "näme"


def test_the_fingerprint_of_a_state(model: Model, adapter: LoraAdapter, other: LoraAdapter) -> None:
    with make(model) as ctx:
        prefill(ctx)
        plain = ctx.state_seq_get(0)
        ctx.set_adapters({adapter: 1.0})
        prefill(ctx)
        with pytest.raises(errors.StateError, match="adapters was"):
            ctx.state_seq_set(1, plain)
        blob = ctx.state_seq_get(0)
        ctx.fingerprint["adapters"].append("forged")
        for active in ({adapter: 0.5}, {other: 1.0}, {adapter: 1.0, other: 1.0}, {}):
            ctx.set_adapters(active)
            with pytest.raises(errors.StateError, match="adapters was"):
                ctx.state_seq_set(1, blob)
        ctx.state_seq_set(1, plain)
        with make(model) as second:  # another context, another LoraAdapter object of the same file
            second.set_adapters({LoraAdapter(model, adapter.path): 1.0})
            second.state_seq_set(0, blob)
            assert second.memory.seq_pos_max(0) == 29


# ---------------------------------------------------------------------------------------------------- bad input


def test_what_set_adapters_refuses(
    model: Model, path: Path, adapter: LoraAdapter, other: LoraAdapter, tmp_path: Path
) -> None:
    foreign = LoraAdapter(Model(path), adapter.path)
    closed = LoraAdapter(model, adapter.path)
    closed.close()
    with make(model) as ctx:
        ctx.set_adapters({adapter: 0.25})
        expected = prefill(ctx)
        bad: list[tuple[type[Exception], object]] = [
            (errors.InvalidArgumentError, {foreign: 1.0}),
            (errors.ClosedError, {closed: 1.0}),
            (errors.InvalidArgumentError, [(adapter, 1.0), (adapter, 2.0)]),
            (errors.InvalidArgumentError, {other: float("nan")}),
            (errors.InvalidArgumentError, {other: float("inf")}),
            (errors.InvalidArgumentError, {other: 1e39}),
            (errors.ArgumentTypeError, {other: None}),
            (errors.ArgumentTypeError, {other: "1"}),
            (errors.ArgumentTypeError, {other: True}),
            (errors.ArgumentTypeError, {None: 1.0}),
            (errors.ArgumentTypeError, [adapter]),
            (errors.ArgumentTypeError, [(adapter, 1.0, 2.0)]),
            (errors.ArgumentTypeError, adapter),
            (errors.ArgumentTypeError, 3),
            (errors.ArgumentTypeError, "a"),
            (errors.ClosedError, {LoraAdapter.__new__(LoraAdapter): 1.0}),
        ]
        for kind, value in bad:
            with pytest.raises(kind):
                ctx.set_adapters(value)
            assert ctx.adapters == {adapter: 0.25}
        assert np.array_equal(prefill(ctx), expected)


def test_files_that_are_no_adapter_for_the_model(model: Model, path: Path, tmp_path: Path) -> None:
    pairs = random_pairs(path, ["blk.0.attn_q.weight"])
    (a, b) = pairs["blk.0.attn_q.weight"]
    name = "blk.0.attn_q.weight"
    norm = {"blk.0.attn_norm.weight": (np.ones((4, 64), np.float32), np.ones((1, 4), np.float32))}
    ints = {name: (a.astype(np.int32), b)}
    cases: dict[str, tuple[type[Exception], dict]] = {
        "general.type": (errors.ModelFormatError, {"metadata": {"general.type": "model"}}),
        "no general.type": (errors.ModelFormatError, {"metadata": {"general.type": None}}),
        "number": (errors.ModelFormatError, {"metadata": {"general.type": 3}}),
        "adapter.type": (errors.ModelFormatError, {"metadata": {"adapter.type": "ia3"}}),
        "architecture": (errors.ModelMismatchError, {"architecture": "gemma3"}),
        "alpha type": (errors.ModelFormatError, {"metadata": {"adapter.lora.alpha": 8}}),
        "alpha text": (errors.ModelFormatError, {"metadata": {"adapter.lora.alpha": "8"}}),
        "alpha nan": (errors.ModelFormatError, {"alpha": float("nan")}),
        "tokens": (errors.ModelFormatError, {"metadata": {"adapter.alora.invocation_tokens": 3}}),
        "token list": (errors.ModelFormatError, {"metadata": {"adapter.alora.invocation_tokens": [1, 2]}}),
        "no pairs": (errors.ModelFormatError, {"pairs": {}}),
        "half a": (errors.ModelFormatError, {"pairs": {}, "extra": {name + ".lora_a": a}}),
        "half b": (errors.ModelFormatError, {"pairs": {}, "extra": {name + ".lora_b": b}}),
        "other tensor": (errors.ModelFormatError, {"extra": {"blk.0.attn_q.bias": a}}),
        "odd name": (errors.ModelFormatError, {"extra": {"blk.0.lora_a.attn_q.weight.lora_a": a}}),
        "unknown weight": (errors.ModelMismatchError, {"pairs": {"blk.7.attn_q.weight": (a, b)}}),
        "rank": (errors.ModelMismatchError, {"pairs": {name: (a, b[:, :2].copy())}}),
        "n_in": (errors.ModelMismatchError, {"pairs": {name: (a[:, :32].copy(), b)}}),
        "n_out": (errors.ModelMismatchError, {"pairs": {name: (a, b[:32].copy())}}),
        "swapped": (errors.ModelMismatchError, {"pairs": {name: (b, a)}}),
        "more dimensions": (errors.ModelMismatchError, {"pairs": {name: (np.stack([a, a]), np.stack([b, b]))}}),
        "embeddings": (errors.ModelMismatchError, {"pairs": {"token_embd.weight": (a, b)}}),
        "embedding rank": (
            errors.ModelMismatchError,
            {"pairs": {"token_embd.weight": (np.ones((548, 4), np.float32), np.ones((64, 8), np.float32))}},
        ),
        "norm": (errors.ModelCapabilityError, {"pairs": norm}),
        "integers": (errors.ModelFormatError, {"pairs": ints}),
    }  # fmt: skip
    for label, (kind, options) in cases.items():
        file = write_lora(tmp_path / f"{label}.gguf", **{"pairs": pairs, **options})
        with pytest.raises(kind):
            pytest.fail(f"{label}: {LoraAdapter(model, file)!r}")
    whole = write_lora(tmp_path / "whole.gguf", pairs).read_bytes()
    for cut in (0, 3, 30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(errors.ModelFormatError):
            LoraAdapter(model, tmp_path / "cut.gguf")
    with pytest.raises(errors.ModelFormatError):
        LoraAdapter(model, path)  # a model
    with pytest.raises(errors.ModelNotFoundError):
        LoraAdapter(model, tmp_path / "absent.gguf")
    with pytest.raises(errors.ModelNotFoundError):
        LoraAdapter(model, tmp_path)
    for wrong in (None, 3, 1.5, []):
        with pytest.raises(errors.ArgumentTypeError):
            LoraAdapter(model, wrong)
        with pytest.raises(TypeError):
            LoraAdapter(wrong, tmp_path / "whole.gguf")
    with make(model) as ctx:
        assert np.isfinite(prefill(ctx)).all()


def test_tied_embeddings_are_refused(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    # llama.cpp would multiply the logits' weight by the swapped pair, and abort
    source = tiny_model("llama")
    tied = drop_tensor(source, tmp_path / "tied.gguf", "output.weight")
    model = Model(tied)
    file = write_lora(tmp_path / "a.gguf", random_pairs(source, ["token_embd.weight"]))
    with pytest.raises(errors.ModelCapabilityError, match="token_embd"):
        LoraAdapter(model, file)
    adapter = LoraAdapter(
        model, write_lora(tmp_path / "b.gguf", random_pairs(source, ["blk.0.attn_q.weight"]))
    )
    with make(model) as ctx:
        plain = prefill(ctx)
        ctx.set_adapters({adapter: 1.0})
        assert apart(prefill(ctx), plain) > CLOSE


def drop_tensor(source: Path, target: Path, name: str) -> Path:
    """A copy of a tiny model that ends before its last tensor, which has to be of that name."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        if tensor.name != name:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_an_adapter_that_the_graph_does_not_use(
    tiny_model: TinyModelFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # llama.cpp multiplies by Mamba's convolution in a way that knows no adapters
    path = tiny_model("mamba")
    conv, ssm_in = "blk.0.ssm_conv1d.weight", "blk.0.ssm_in.weight"
    model = Model(path)
    useless = LoraAdapter(
        model, write_lora(tmp_path / "a.gguf", random_pairs(path, [conv]), architecture="mamba")
    )
    partly = LoraAdapter(
        model, write_lora(tmp_path / "b.gguf", random_pairs(path, [conv, ssm_in]), architecture="mamba")
    )
    with make(model) as ctx:
        plain = prefill(ctx)
        with pytest.raises(errors.ModelCapabilityError, match="no effect"):
            ctx.set_adapters({useless: 1.0})
        assert ctx.adapters == {}
        assert np.array_equal(prefill(ctx), plain)
        useless.close()
        with caplog.at_level("WARNING", logger="llama_runner.native"):
            ctx.set_adapters({partly: 1.0})
        assert "1 of the 2 pairs" in caplog.text
        assert not np.array_equal(prefill(ctx), plain)


def test_a_vocabulary_has_nothing_to_adapt(tiny_model: TinyModelFactory, adapter: LoraAdapter) -> None:
    with pytest.raises(errors.ModelCapabilityError):
        LoraAdapter(Model(tiny_model("llama"), vocab_only=True), adapter.path)


# ---------------------------------------------------------------------------------------------------- lifetimes


def test_an_active_adapter_is_not_closed(model: Model, adapter: LoraAdapter) -> None:
    ctx, second = make(model), make(model)
    ctx.set_adapters({adapter: 1.0})
    second.set_adapters({adapter: 0.5})
    row = prefill(ctx)
    for release in (ctx.set_adapters, second.close):
        with pytest.raises(errors.ContextBusyError, match="active"):
            adapter.close()
        assert not adapter.closed
        release()
    ctx.set_adapters({adapter: 1.0})
    assert np.array_equal(prefill(ctx), row)
    del ctx, second
    gc.collect()
    for _ in range(3):
        adapter.close()
        assert adapter.closed
    assert "closed" in repr(adapter)
    with pytest.raises(errors.ClosedError), adapter:
        pass


def test_closing_the_model_closes_its_adapters(
    model: Model, adapter: LoraAdapter, other: LoraAdapter
) -> None:
    ctx = make(model)
    ctx.set_adapters({adapter: 1.0})
    model.close()
    assert (ctx.closed, adapter.closed, other.closed) == (True, True, True)
    adapter.close()
    for call in (
        lambda: LoraAdapter(model, adapter.path),
        lambda: ctx.set_adapters({adapter: 1.0}),
        lambda: ctx.adapters,
    ):
        with pytest.raises(errors.ClosedError):
            call()
    assert adapter.metadata


def test_who_holds_whom(path: Path, tmp_path: Path) -> None:
    model = Model(path)
    gone = weakref.ref(model)
    adapter = LoraAdapter(model, write_lora(tmp_path / "a.gguf", random_pairs(path)))
    adapter_gone = weakref.ref(adapter)
    ctx = make(model)
    ctx.set_adapters({adapter: 1.0})
    expected = prefill(ctx)
    del model, adapter
    gc.collect()
    assert np.array_equal(prefill(ctx), expected)
    (kept,) = ctx.adapters
    del ctx
    gc.collect()
    assert gone() is kept.model
    del kept
    gc.collect()
    assert adapter_gone() is None
    assert gone() is None


def test_made_twice_or_never(model: Model, adapter: LoraAdapter) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        adapter.__init__(model, adapter.path)
    empty = LoraAdapter.__new__(LoraAdapter)
    repr(empty)
    empty.close()
    assert empty.closed
    assert empty.metadata == {}
    assert empty.meta("x") is None


CHILD = """
import gc, sys, threading
import numpy as np
from llama_runner import errors
from llama_runner.core import Batch, Context, ControlVector, LoraAdapter, Model

path, first, second = sys.argv[1:]


def prefill(ctx, n=16):
    ctx.memory.clear()
    batch = Batch(n)
    batch.add_sequence(np.arange(300, 300 + n))
    ctx.decode(batch)
    return ctx.logits().copy()


def make(model):
    return Context(model, n_ctx=256, n_threads=1)

"""


def child(path: Path, tmp_path: Path, code: str) -> str:
    """Run code in a process of its own, where freed memory is filled, and return what it printed."""
    files = [write_lora(tmp_path / f"{seed}.gguf", random_pairs(path, seed=seed)) for seed in (0, 1)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CHILD + code, str(path), *map(str, files)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "MALLOC_PERTURB_": "165"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    return done.stdout


def test_two_contexts_with_different_adapters_in_threads(path: Path, tmp_path: Path) -> None:
    # each keeps its own adapter, while a third thread loads, activates and frees others of the same model
    code = """
model = Model(path)
a, b = LoraAdapter(model, first), LoraAdapter(model, second)
stop = threading.Event()
wrong = []


def work(adapters):
    ctx = make(model)
    ctx.set_adapters(adapters)
    expected = prefill(ctx)
    for turn in range(60):
        ctx.set_adapters(adapters if turn % 3 else {})
        if turn % 3 and not np.array_equal(prefill(ctx), expected):
            wrong.append(turn)


def churn():
    turns = 0
    with make(model) as ctx:
        while not stop.is_set():
            extra = LoraAdapter(model, first)
            ctx.set_adapters({extra: 2.0})
            prefill(ctx)
            ctx.set_adapters()
            if turns % 2:
                extra.close()
            turns += 1
    print(turns > 3)


threads = [threading.Thread(target=work, args=(x,)) for x in ({a: 1.0}, {b: -1.0})]
churner = threading.Thread(target=churn)
for thread in (*threads, churner):
    thread.start()
for thread in threads:
    thread.join()
stop.set()
churner.join()
print(wrong)
model.close()
"""
    assert child(path, tmp_path, code) == "True\n[]\n"


@pytest.mark.parametrize(
    "how",
    [
        "",
        "del model, adapter",
        "ctx.close(); adapter.close(); model.close()",
        "model.close(); adapter.close(); ctx.close()",
        "model.close(); del ctx, adapter, model; gc.collect()",
        "del ctx; gc.collect(); adapter.close()",
        "del adapter; gc.collect(); ctx.close(); model.close()",
        "me = [ctx, adapter, model]; me.append(me); del ctx, adapter, model, me; gc.collect()",
        "ctx.set_adapters(); adapter.close(); prefill(ctx); sys.exit(0)",
        "sys.modules['keep'] = [adapter, ctx]",
    ],
)
def test_every_order_of_ends(path: Path, tmp_path: Path, how: str) -> None:
    code = f"""
model = Model(path)
adapter, spare = LoraAdapter(model, first), LoraAdapter(model, second)
ctx = make(model)
ctx.set_adapters({{adapter: 1.0}})
ctx.set_control_vector(ControlVector(np.ones((1, 64))))
print(len(prefill(ctx)))
{how}
"""
    assert child(path, tmp_path, code) == "548\n"


def test_scales_that_close_what_they_are_passed_with(path: Path, tmp_path: Path) -> None:
    code = """
class Closing:
    def __init__(self, *what):
        self.what = what

    def __float__(self):
        for each in self.what:
            each.close()
        return 1.0

    def __index__(self):
        return int(float(self))


for chosen in (lambda m, c, a: [a], lambda m, c, a: [c], lambda m, c, a: [m]):
    model = Model(path)
    ctx, adapter = make(model), LoraAdapter(model, first)
    for call in (
        lambda bad: ctx.set_adapters({adapter: bad}),
        lambda bad: ctx.set_control_vector(ControlVector(np.ones((1, 64))), il_start=bad),
    ):
        try:
            call(Closing(*chosen(model, ctx, adapter)))
            print("no error")
        except (errors.ClosedError, errors.ContextBusyError) as error:
            pass
"""
    # closing the adapter alone does not concern a control vector
    assert child(path, tmp_path, code) == "no error\n"


# ---------------------------------------------------------------------------------------------------- control vectors


def test_a_control_vector_is_added_to_the_output_of_a_layer(tiny_model: TinyModelFactory) -> None:
    # a second layer without weights passes on what the first one gave it, and so the direction alone is seen
    path = tiny_model("llama")
    model = Model(path)
    with make(model) as ctx:
        plain = prefill(ctx)
        vector = ControlVector(np.random.default_rng(0).normal(size=(1, 64)))
        ctx.set_control_vector(vector)
        assert ctx.control_vector is vector
        steered = prefill(ctx)
        assert apart(steered, plain) > 100 * CLOSE
        ctx.set_control_vector(vector.scaled(0))
        assert apart(prefill(ctx), plain) < 1e-6
        ctx.set_control_vector(None)
        assert ctx.control_vector is None
        assert np.array_equal(prefill(ctx), plain)
        ctx.set_control_vector(vector, il_start=1, il_end=1)
        assert np.array_equal(prefill(ctx), steered)


def test_a_control_vector_equals_a_bias_in_the_weights(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    """Norm and output head of the last layer's output plus the direction, computed by hand."""
    path = tiny_model("llama")
    with Model(path) as model, make(model, embeddings=True, pooling="none") as ctx:
        direction = np.random.default_rng(1).normal(size=64).astype(np.float32)
        hidden = []
        for vector in (None, ControlVector(direction[None])):
            ctx.set_control_vector(vector)
            prefill(ctx)
            hidden.append(ctx.embeddings().copy())  # after the last norm: x / rms(x) * w
    header = read_gguf_header(path)
    norm = next(tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    weight = np.fromfile(path, "<f4", 64, offset=header.data_offset + norm.offset)
    before, after = (row / weight for row in hidden)
    # before is x / r and after is (x + d) / s: with the two scales fitted, the difference is the direction
    (r, s), residual, *_ = np.linalg.lstsq(np.stack([-before, after], 1), direction, rcond=None)
    assert r > 0
    assert s > 0
    assert residual < 1e-6


def test_layers_out_of_many(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama", n_layer=4))
    vector = ControlVector(np.random.default_rng(2).normal(size=(3, 64)))

    def only(*rows: int) -> ControlVector:
        kept = np.zeros((3, 64), np.float32)
        for row in rows:
            kept[row] = vector.directions[row]
        return ControlVector(kept)

    with make(model) as ctx:
        plain = prefill(ctx)
        seen = []
        for start, end, rows in (
            (1, 3, (0, 1, 2)),
            (1, 2, (0, 1)),
            (2, 2, (1,)),
            (3, None, (2,)),
            (2, None, (1, 2)),
        ):
            ctx.set_control_vector(vector, il_start=start, il_end=end)
            row = prefill(ctx)
            ctx.set_control_vector(only(*rows))
            assert apart(row, prefill(ctx)) < 1e-5
            seen.append(row)
        assert min(apart(x, y) for i, x in enumerate(seen) for y in seen[:i]) > 10 * CLOSE
        # a shorter vector leaves nothing of a longer one behind
        ctx.set_control_vector(ControlVector(vector.directions[:1]))
        assert apart(prefill(ctx), seen[0]) > 10 * CLOSE
        ctx.set_control_vector(vector, il_start=1, il_end=1)
        expected = prefill(ctx)
        ctx.set_control_vector(ControlVector(vector.directions[:1]))
        assert apart(prefill(ctx), expected) < 1e-5
        assert apart(expected, plain) > 10 * CLOSE


def test_vectors_and_contexts_are_independent(model: Model, adapter: LoraAdapter) -> None:
    vector = ControlVector(np.full((1, 64), 0.5))
    with make(model) as left, make(model) as right:
        plain = prefill(left)
        left.set_control_vector(vector)
        assert np.array_equal(prefill(right), plain)
        right.set_adapters({adapter: 1.0})
        right.set_control_vector(vector)
        both = prefill(right)
        right.set_adapters()
        assert np.array_equal(prefill(right), prefill(left))
        assert apart(both, prefill(left)) > 10 * CLOSE


def test_the_fingerprint_knows_the_control_vector(model: Model) -> None:
    vector = ControlVector(np.full((1, 64), 0.5))
    with make(model) as ctx:
        prefill(ctx)
        plain = ctx.state_seq_get(0)
        ctx.set_control_vector(vector)
        with pytest.raises(errors.StateError, match="control_vector"):
            ctx.state_seq_set(1, plain)
        prefill(ctx)
        blob = ctx.state_seq_get(0)
        ctx.set_control_vector(vector.scaled(2))
        with pytest.raises(errors.StateError, match="control_vector"):
            ctx.state_seq_set(1, blob)
        ctx.set_control_vector(ControlVector(vector.directions))
        ctx.state_seq_set(1, blob)


def test_vectors_that_do_not_fit(model: Model) -> None:
    good = ControlVector(np.ones((1, 64)))
    with make(model) as ctx:
        ctx.set_control_vector(good)
        expected = prefill(ctx)
        for bad in (ControlVector(np.ones((1, 63))), ControlVector(np.ones((2, 64)))):
            with pytest.raises(errors.InvalidArgumentError):
                ctx.set_control_vector(bad)
        for start, end in ((0, None), (2, None), (-1, 1), (1, 0), (1, 2), (1, 2**40)):
            with pytest.raises(errors.InvalidArgumentError, match="il_"):
                ctx.set_control_vector(good, il_start=start, il_end=end)
        for wrong in (3, "x", np.ones((1, 64)), [1.0]):
            with pytest.raises(errors.ArgumentTypeError):
                ctx.set_control_vector(wrong)
        with pytest.raises(errors.ArgumentTypeError):
            ctx.set_control_vector(good, il_start=1.0)
        assert ctx.control_vector is good
        assert np.array_equal(prefill(ctx), expected)


def test_a_model_of_one_layer_has_no_place_for_one(tiny_model: TinyModelFactory) -> None:
    with make(Model(tiny_model("llama", n_layer=1))) as ctx:
        with pytest.raises(errors.InvalidArgumentError):
            ctx.set_control_vector(ControlVector(np.ones((1, 64))))
        assert np.isfinite(prefill(ctx)).all()


def test_a_graph_without_a_place_for_one(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("bert")), n_ctx=256, n_threads=1) as ctx:
        with pytest.raises(errors.ModelCapabilityError, match="no effect"):
            ctx.set_control_vector(ControlVector(np.ones((1, 64))))
        assert ctx.control_vector is None


def test_control_vector_objects() -> None:
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    vector = ControlVector(source)
    source[:] = 0
    assert vector.directions.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (vector.n_layers, vector.n_embd) == (2, 3)
    assert vector.scaled(-2).directions[1].tolist() == [-6, -8, -10]
    assert vector.digest == ControlVector([[0, 1, 2], [3, 4, 5]]).digest
    assert (
        len({vector.digest, vector.scaled(2).digest, ControlVector(vector.directions.reshape(3, 2)).digest})
        == 3
    )
    assert "2 layers" in repr(vector)
    with pytest.raises(ValueError, match="read-only"):
        vector.directions[0] = 1
    for bad in (np.ones(3), np.ones((1, 2, 3)), np.ones((0, 3)), np.ones((3, 0)), [[float("nan")]], [[float("inf")]],
                [[1e39]]):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError):
            ControlVector(bad)
    for wrong in (None, "x", [["a"]], [[None]], [[1j]], [[1], [1, 2]], object(), [[True]]):
        with pytest.raises(errors.ArgumentTypeError):
            ControlVector(wrong)
    with pytest.raises(errors.InvalidArgumentError):
        vector.scaled(1e39)
    with pytest.raises(errors.ArgumentTypeError):
        vector.scaled("2")


def test_control_vector_files(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, third = rng.normal(size=(2, 64)).astype(np.float32)
    file = write_control_vector(tmp_path / "cv.gguf", {"direction.3": third, "direction.1": first})
    vector = ControlVector.load(file)
    assert (vector.n_layers, vector.n_embd) == (3, 64)
    assert np.array_equal(vector.directions, [first, np.zeros(64), third])
    one = ControlVector.load(write_control_vector(tmp_path / "one.gguf", {"direction.1": first}))
    with make(model) as ctx:
        plain = prefill(ctx)
        ctx.set_control_vector(one)
        assert apart(prefill(ctx), plain) > CLOSE
    bad = {
        "layer 0": {"direction.0": first}, "no layer": {"direction.x": first}, "name": {"steering.1": first},
        "matrix": {"direction.1": np.ones((2, 64), np.float32)}, "half": {"direction.1": first.astype(np.float16)},
        "widths": {"direction.1": first, "direction.2": first[:32].copy()}, "huge": {"direction.999999999": first},
        "too huge": {"direction.9999999999": first}, "spelling": {"direction.01": first}, "empty": {},
    }  # fmt: skip
    for label, tensors in bad.items():
        with pytest.raises(errors.ModelFormatError):
            pytest.fail(
                f"{label}: {ControlVector.load(write_control_vector(tmp_path / f'{label}.gguf', tensors))}"
            )
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(errors.ModelFormatError):
        read_control_vector(str(file))
    with pytest.raises(errors.ModelNotFoundError):
        ControlVector.load(tmp_path / "absent.gguf")
    with pytest.raises(errors.ArgumentTypeError):
        ControlVector.load(None)
    nan = write(tmp_path / "nan.gguf", "controlvector", {}, {"direction.1": np.full(64, np.nan, np.float32)})
    with pytest.raises(errors.InvalidArgumentError):
        ControlVector.load(nan)


def test_every_weight_of_the_tiny_model_is_covered(path: Path) -> None:
    assert len(matrices(path)) == 15
