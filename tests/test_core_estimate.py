"""``estimate_memory``: equal to what a real load takes, to the byte."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import llama_runner.core
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Context, Model, estimate_memory, quantize
from llama_runner.measures import DeviceMemory, MemoryEstimate

MODEL_KEYS = {
    "n_gpu_layers", "devices", "split_mode", "main_gpu", "tensor_split", "tensor_buft_overrides", "use_mmap",
    "use_mlock", "use_direct_io", "lazy", "kv_overrides", "check_tensors", "use_extra_bufts", "no_host", "load_mtp",
}  # fmt: skip


def assert_equal_to_a_real_load(path: Path, **options: object) -> MemoryEstimate:
    estimate = estimate_memory(path, **options)
    model = Model(path, **{key: value for key, value in options.items() if key in MODEL_KEYS})
    with Context(model, **{key: value for key, value in options.items() if key not in MODEL_KEYS}) as ctx:
        found = ctx.memory_breakdown
        assert ctx.n_ctx >= estimate.n_ctx
    model.close()
    assert {"model": estimate.weights, "context": estimate.kv, "compute": estimate.compute} == found
    assert estimate.total == sum(found.values())
    return estimate


def keyword_defaults(cls: type) -> dict[str, object]:
    stub = (
        Path(llama_runner.core.__file__).with_name(f"{cls.__name__.lower()}.pyi").read_text(encoding="utf-8")
    )
    for node in ast.walk(ast.parse(stub)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            values = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return {arg.arg: ast.literal_eval(value) for arg, value in values if value is not None}
    raise AssertionError(stub)


def test_it_takes_every_keyword_of_model_and_context(tiny_model: TinyModelFactory) -> None:
    options = {**keyword_defaults(Model), **keyword_defaults(Context)}
    del options["vocab_only"], options["progress"]
    assert len(options) > 30
    path = tiny_model("llama")
    assert estimate_memory(path, **options).total == estimate_memory(path).total
    for name in ("vocab_only", "progress", "n_cxt"):
        with pytest.raises(errors.UnknownParameterError, match=name):
            estimate_memory(path, **{name: None})


@pytest.mark.parametrize("use_mmap", [True, False, "auto"])
def test_equal_for_each_memory_kind(any_model_path: Path, use_mmap: object) -> None:
    assert_equal_to_a_real_load(any_model_path, n_ctx=512, use_mmap=use_mmap)


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 1},
        {"n_ctx": 4096, "n_seq_max": 8},
        {"n_ctx": 4096, "n_seq_max": 8, "kv_unified": False},
        {"n_ctx": 512, "n_batch": 64, "n_ubatch": 32},
        {"n_ctx": 512, "type_k": "q8_0", "type_v": "q4_0", "flash_attn": True},
        {"n_ctx": 512, "flash_attn": False},
        {"n_ctx": 512, "embeddings": True, "pooling": "mean", "n_seq_max": 3},
        {"n_ctx": 512, "n_outputs_max": 4},
        {"n_ctx": 512, "use_direct_io": True},
        {"n_ctx": 512, "use_mlock": True},
        {"n_ctx": 512, "use_extra_bufts": False},
        {"n_ctx": 512, "tensor_buft_overrides": {"ffn_.*": "CPU"}},
        {},
    ],
)
def test_equal_for_each_setting(tiny_model: TinyModelFactory, options: dict) -> None:
    assert_equal_to_a_real_load(tiny_model("llama"), **options)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("use_mmap", [True, False])
def test_equal_where_weights_are_repacked(
    tiny_model: TinyModelFactory, tmp_path: Path, type_name: str, use_mmap: bool
) -> None:
    """Some weights go to the repacked buffer, and the mapping spans the gaps between the others."""
    wide = tiny_model("llama", n_embd=256, n_ff=512)
    made = quantize(wide, tmp_path / "m.gguf", type_name)
    assert_equal_to_a_real_load(Path(made.paths[0]), n_ctx=256, use_mmap=use_mmap)


@pytest.mark.real_model
def test_equal_for_the_real_model(smollm2: Path) -> None:
    estimate = assert_equal_to_a_real_load(smollm2, n_ctx=2048)
    assert estimate.kv == 2048 * 30 * 2 * 3 * 64 * 2
    assert estimate.host.weights > 90_000_000


def test_it_grows_with_the_context(tiny_model: TinyModelFactory) -> None:
    small, large = (estimate_memory(tiny_model("llama"), n_ctx=n) for n in (256, 1 << 20))
    assert large.kv == 4096 * small.kv
    assert large.weights == small.weights


def test_what_does_not_fit_is_told_and_not_raised(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", n_layer=64)
    estimate = estimate_memory(path, n_ctx=1 << 26, n_ubatch=1)
    assert estimate.kv == 64 * 2 * 128 * 2 << 26
    assert not estimate.fits
    assert "does not fit" in str(estimate)
    with pytest.raises(errors.OutOfMemoryError):
        Context(Model(path), n_ctx=1 << 26, n_ubatch=1)


def test_tables_of_cells_that_fit_nowhere(tiny_model: TinyModelFactory) -> None:
    with pytest.raises(errors.OutOfMemoryError, match="cells"):
        estimate_memory(tiny_model("llama"), n_ctx=2**31 - 256, n_seq_max=256, kv_unified=False)


def test_it_reads_well(tiny_model: TinyModelFactory) -> None:
    estimate = estimate_memory(tiny_model("llama"), n_ctx=512)
    first, *places = str(estimate).split("\n")
    assert first.endswith("for n_ctx=512: fits")
    assert places[-1].startswith("  host: ")
    assert "weights 851.25 KiB" in places[-1]
    told = json.loads(json.dumps(estimate.to_dict()))
    assert told["total"] == estimate.weights + estimate.kv + estimate.compute
    assert told["host"]["fits"] is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.n_ctx = 1


def test_sums_over_devices() -> None:
    gpu = DeviceMemory(
        "CUDA0", weights=3 << 30, kv=2 << 20, compute=1 << 10, free=4 << 30, memory_total=8 << 30
    )
    host = DeviceMemory("host", weights=1, kv=0, compute=5, free=5, memory_total=10)
    estimate = MemoryEstimate(host=host, devices=(gpu,), n_ctx=7)
    assert (estimate.weights, estimate.kv, estimate.compute) == ((3 << 30) + 1, 2 << 20, (1 << 10) + 5)
    assert (gpu.fits, host.fits, estimate.fits) == (True, False, False)
    assert str(gpu) == "CUDA0: 3.00 GiB (weights 3.00 GiB, KV 2.00 MiB, compute 1.00 KiB) of 4.00 GiB free"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"n_ctx": 0}, errors.InvalidArgumentError),
        ({"type_k": "q6_K"}, errors.InvalidArgumentError),
        ({"n_seq_max": 257}, errors.InvalidArgumentError),
        ({"n_gpu_layers": -2}, errors.InvalidArgumentError),
        ({"type_v": "q8_0", "flash_attn": False}, errors.InvalidArgumentError),
        ({"kv_overrides": {"llama.block_count": 0}}, errors.InvalidArgumentError),
    ],
)
def test_bad_values(tiny_model: TinyModelFactory, options: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        estimate_memory(tiny_model("llama"), **options)


def test_bad_files(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError):
        estimate_memory(tmp_path / "none.gguf")
    with pytest.raises(errors.ModelCapabilityError, match="no weights"):
        estimate_memory(tiny_model("llama", vocab_only=True))
