"""``quantize``: what it writes works, what it refuses, and how it reports and stops."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, Context, Model, quantize
from llama_runner.gguf import read_gguf_header


def first_row(path: str | Path) -> np.ndarray:
    with Model(path) as model, Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = Batch(8)
        batch.add_sequence([300, 301, 302, 303])
        ctx.decode(batch)
        return ctx.logits().copy()


@pytest.fixture(scope="module")
def wide(tiny_model: TinyModelFactory) -> Path:
    """Rows of 256, which every type's blocks divide."""
    return tiny_model("llama", n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def narrow(tiny_model: TinyModelFactory) -> Path:
    """The least that has a tensor of each kind in rows of 256: the grid searches are slow."""
    return tiny_model("llama", n_layer=1, n_embd=256, n_ff=256, n_head=4, n_head_kv=1)


def types_of(path: str | Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in read_gguf_header(path).tensors}


def importance(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        t.name: rng.random(t.shape[0], np.float32) for t in read_gguf_header(path).tensors if len(t.shape) > 1
    }


# ---------------------------------------------------------------------------------------------------- what it writes


@pytest.mark.parametrize(
    ("name", "main", "error"),
    [
        ("F32", "F32", 0.0), ("F16", "F16", 0.01), ("BF16", "BF16", 0.03), ("Q8_0", "Q8_0", 0.03),
        ("q6_k", "Q6_K", 0.1),
        ("Q5_K_M", "Q5_K", 0.15), ("Q5_1", "Q5_1", 0.15), ("Q4_K_M", "Q4_K", 0.3), ("Q4_K", "Q4_K", 0.3),
        ("Q4_0", "Q4_0", 0.3), ("IQ4_XS", "IQ4_XS", 0.3), ("IQ4_NL", "IQ4_NL", 0.3), ("Q3_K_S", "Q3_K", 0.6),
    ],
)  # fmt: skip
def test_each_type_loads_and_says_about_the_same(
    wide: Path, tmp_path: Path, name: str, main: str, error: float
) -> None:
    made = quantize(wide, tmp_path / "out.gguf", name)
    assert made.paths == (str(tmp_path / "out.gguf"),)
    assert dict(made.types) == types_of(made.paths[0])
    assert list(made.types.values()).count(main) >= 7
    assert made.bytes_before == sum(t.n_bytes for t in read_gguf_header(wide).tensors)
    assert made.bytes_after == sum(t.n_bytes for t in read_gguf_header(made.paths[0]).tensors)
    assert os.listdir(tmp_path) == ["out.gguf"]
    before, after = first_row(wide), first_row(made.paths[0])
    assert np.linalg.norm(before - after) <= error * np.linalg.norm(before)
    if error:
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "Q2_K_S"])
def test_types_with_an_imatrix(narrow: Path, tmp_path: Path, name: str) -> None:
    made = quantize(narrow, tmp_path / "out.gguf", name, imatrix=importance(narrow), n_threads=2)
    assert np.isfinite(first_row(made.paths[0])).all()
    assert made.bytes_after < made.bytes_before / 6
    assert dict(made.types) == types_of(made.paths[0])


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_only_the_ratios_of_an_imatrix_count(narrow: Path, tmp_path: Path, scale: float) -> None:
    plain = importance(narrow)
    scaled = {name: values * np.float32(scale) for name, values in plain.items()}
    for name in ("IQ2_XS", "Q4_K_M"):
        for i, imatrix in enumerate((plain, scaled)):
            quantize(narrow, tmp_path / f"{i}.gguf", name, imatrix=imatrix, overwrite=True)
        assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()


def test_odd_imatrices_and_the_largest_weights(narrow: Path, tmp_path: Path) -> None:
    """In a process of its own: an assertion in a worker thread would end it."""
    source = tmp_path / "in.gguf"
    data = bytearray(narrow.read_bytes())
    header = read_gguf_header(narrow)
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            at = header.data_offset + tensor.offset
            values = np.frombuffer(data, np.float32, tensor.n_elements, at)
            data[at : at + tensor.n_bytes] = (values / np.abs(values).max() * np.float32(99_999)).tobytes()
    source.write_bytes(data)
    code = """
import sys
import numpy as np
from llama_runner.core import quantize
from llama_runner.gguf import read_gguf_header
rng = np.random.default_rng(0)
shapes = {t.name: t.shape[0] for t in read_gguf_header(sys.argv[1]).tensors if len(t.shape) > 1}
for make in (np.zeros, lambda n: rng.random(n) < 0.02, lambda n: np.full(n, 3.4e38),
             lambda n: 10.0 ** rng.uniform(-45, 38, n)):
    for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        quantize(sys.argv[1], sys.argv[2], "Q8_0", tensor_types={"attn_[kv]": name},  # two will do
                 imatrix={k: make(n) for k, n in shapes.items()}, overwrite=True, n_threads=2)
        print("made")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out.gguf")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (run.returncode, run.stdout.count("made")) == (0, 28), run.stderr[-2000:]


def test_requantizing_to_a_grid_type(narrow: Path, tmp_path: Path) -> None:
    """Scales so large that the search asserts: an error, on the calling thread, and not the end of the process."""
    small = quantize(narrow, tmp_path / "small.gguf", "Q8_0")
    made = quantize(small.paths[0], tmp_path / "tiny.gguf", "IQ3_S", allow_requantize=True)
    assert np.isfinite(first_row(made.paths[0])).all()
    data = bytearray(Path(small.paths[0]).read_bytes())
    header = read_gguf_header(small.paths[0])
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    at = header.data_offset + tensor.offset
    for block in range(0, tensor.n_bytes, 34):
        data[at + block : at + block + 2] = np.float16(60000).tobytes()
    Path(small.paths[0]).write_bytes(data)
    code = """
import sys
from llama_runner import errors
from llama_runner.core import quantize
try:
    quantize(sys.argv[1], sys.argv[2], "IQ3_S", allow_requantize=True, n_threads=4)
except errors.ModelFormatError as error:
    print(error, file=sys.stderr)
print("alive")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, small.paths[0], str(tmp_path / "out.gguf")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def test_each_memory_kind(any_model_path: Path, tmp_path: Path) -> None:
    made = quantize(any_model_path, tmp_path / "out.gguf", "Q8_0")
    with Model(made.paths[0]) as model:
        assert model.quantization == "Q8_0"
        assert model.size == made.bytes_after


def test_a_dry_run_says_the_same_and_writes_nothing(any_model_path: Path, tmp_path: Path) -> None:
    for name in ("Q4_K_M", "Q8_0", "F16"):
        told = quantize(any_model_path, tmp_path / "none.gguf", name, dry_run=True)
        assert told.paths == ()
        assert not os.listdir(tmp_path)
        made = quantize(any_model_path, tmp_path / "some.gguf", name)
        assert (dict(told.types), told.bytes_before, told.bytes_after) == (
            dict(made.types),
            made.bytes_before,
            made.bytes_after,
        )
        os.unlink(tmp_path / "some.gguf")
    assert str(told).startswith(f"{len(told.types)} tensors, ")
    assert told.to_dict()["bytes_after"] == told.bytes_after


def test_single_tensors_of_other_types(wide: Path, tmp_path: Path) -> None:
    made = quantize(
        wide, tmp_path / "out.gguf", "Q8_0", output_tensor_type="Q6_K", token_embedding_type="f16",
        tensor_types={r"blk\.1\.ffn_.*": "Q4_0", "ffn": "Q5_K"},
    )  # fmt: skip
    assert made.types["output.weight"] == "Q6_K"
    assert made.types["token_embd.weight"] == "F16"
    assert made.types["blk.1.ffn_up.weight"] == "Q4_0"
    assert made.types["blk.0.ffn_up.weight"] == "Q5_K"
    assert made.types["blk.0.attn_q.weight"] == "Q8_0"
    assert dict(made.types) == types_of(made.paths[0])
    kept = quantize(wide, tmp_path / "kept.gguf", "Q8_0", quantize_output_tensor=False)
    assert kept.types["output.weight"] == "F32"
    pure = quantize(wide, tmp_path / "pure.gguf", "Q4_K_M", pure=True)
    assert {kind for name, kind in pure.types.items() if "norm" not in name} == {"Q4_K"}


def test_threads_and_buffers_change_nothing(wide: Path, tmp_path: Path) -> None:
    files = []
    for i, options in enumerate(
        ({"n_threads": 1}, {"n_threads": 3}, {"max_buf_size": 1}, {"max_buf_size": 1 << 20})
    ):
        files.append(Path(quantize(wide, tmp_path / f"{i}.gguf", "Q4_K_M", **options).paths[0]).read_bytes())
    assert len(set(files)) == 1


def test_metadata_of_ones_own(wide: Path, tmp_path: Path) -> None:
    made = quantize(
        wide, tmp_path / "out.gguf", "Q8_0",
        kv_overrides={"general.name": "mine", "llama.context_length": 4096, "x.flag": True, "x.number": 0.5},
    )  # fmt: skip
    with Model(made.paths[0]) as model:
        assert (model.name, model.n_ctx_train) == ("mine", 4096)
        assert (model.meta("x.flag"), model.meta("x.number")) == ("true", "0.500000")
        assert model.chat_template() is not None


def test_a_file_of_another_alignment(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    """Upstream pads to 32 and copies what the file says, so that the result could not be read."""
    source = tmp_path / "aligned.gguf"
    reader = gguf.GGUFReader(tiny_model("llama"))
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_custom_alignment(128)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf_header(source).alignment == 128
    made = quantize(source, tmp_path / "out.gguf", "Q8_0")
    assert read_gguf_header(made.paths[0]).alignment == 32
    assert np.isfinite(first_row(made.paths[0])).all()


def test_fewer_layers(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    deep = tiny_model("llama", n_layer=5)
    made = quantize(deep, tmp_path / "out.gguf", "Q8_0", prune_layers=[3, 1])
    assert dict(made.types) == types_of(made.paths[0])
    with Model(made.paths[0]) as model:
        assert model.n_layer == 3
        assert model.size == made.bytes_after
    tensors = {t.name: t.data for t in gguf.GGUFReader(deep).tensors}
    for tensor in gguf.GGUFReader(made.paths[0]).tensors:
        old = {"blk.1.attn_norm.weight": 2, "blk.2.attn_norm.weight": 4}.get(tensor.name)
        if old is not None:
            np.testing.assert_array_equal(tensor.data, tensors[f"blk.{old}.attn_norm.weight"])


@pytest.mark.real_model
def test_the_real_model_again(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelCapabilityError, match="allow_requantize"):
        quantize(smollm2, tmp_path / "out.gguf", "Q8_0")
    assert not os.listdir(tmp_path)
    made = quantize(smollm2, tmp_path / "out.gguf", "Q8_0", allow_requantize=True)
    with Model(made.paths[0]) as model, Context(model, n_ctx=256) as ctx:
        batch = Batch(16)
        batch.add_sequence(model.vocab.tokenize("The capital of France is"))
        ctx.decode(batch)
        assert model.vocab.token_to_piece(int(ctx.logits().argmax())) == b" Paris"


# ---------------------------------------------------------------------------------------------------- progress


def test_progress_counts_each_tensor(wide: Path, tmp_path: Path) -> None:
    n = len(read_gguf_header(wide).tensors)
    for options in ({}, {"dry_run": True}, {"only_copy": True}):
        seen: list[tuple[int, int]] = []
        quantize(
            wide, tmp_path / "out.gguf", progress=lambda *a, s=seen: s.append(a), overwrite=True, **options
        )
        assert seen == [(i, n) for i in range(n + 1)]


def test_progress_of_fewer_layers_ends_at_all(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = quantize(
        tiny_model("llama", n_layer=5),
        tmp_path / "out.gguf",
        "Q8_0",
        prune_layers=[1],
        progress=lambda *a: seen.append(a),
    )
    assert seen == [(i, len(made.types)) for i in range(len(made.types) + 1)]


def test_progress_can_cancel(wide: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(done: int, total: int) -> bool:
        seen.append(done)
        return done < 5

    (tmp_path / "out.gguf").write_bytes(b"before")
    with pytest.raises(errors.LlamaRuntimeError, match="cancelled"):
        quantize(wide, tmp_path / "out.gguf", overwrite=True, progress=cancel)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == b"before"
    quantize(wide, tmp_path / "out.gguf", overwrite=True, n_threads=3)
    assert read_gguf_header(tmp_path / "out.gguf").quantization == "Q4_K_M"


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_progress_raises_is_raised(wide: Path, tmp_path: Path, error: BaseException) -> None:
    def fail(done: int, total: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        quantize(wide, tmp_path / "out.gguf", progress=fail)
    assert caught.value is error
    assert not os.listdir(tmp_path)


def test_two_threads_at_once_each_with_its_own_progress(wide: Path, tmp_path: Path) -> None:
    n = len(read_gguf_header(wide).tensors)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            quantize(
                wide, tmp_path / f"{i}.gguf", "Q4_K_M", progress=lambda done, total: seen[i].append(done)
            )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(done == list(range(n + 1)) for done in seen.values())
    assert len({(tmp_path / f"{i}.gguf").read_bytes() for i in seen}) == 1


# ---------------------------------------------------------------------------------------------------- the output


def test_an_output_that_exists(wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(errors.StorageError, match="overwrite=True") as caught:
        quantize(wide, out)
    assert caught.value.errno == errno.EEXIST
    assert out.read_bytes() == b"mine"
    quantize(wide, out, overwrite=True)
    assert read_gguf_header(out).quantization == "Q4_K_M"


def test_an_output_that_is_the_input(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(tiny_model("llama").read_bytes())
    (tmp_path / "link.gguf").symlink_to(source)
    for target in (source, tmp_path / "link.gguf", tmp_path / ".." / tmp_path.name / "in.gguf"):
        with pytest.raises(errors.InvalidArgumentError, match="input"):
            quantize(source, target, overwrite=True)
    assert source.read_bytes() == tiny_model("llama").read_bytes()


def test_an_output_that_cannot_be(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.StorageError, match="no such folder"):
        quantize(wide, tmp_path / "none" / "out.gguf")
    with pytest.raises(errors.StorageError, match="directory"):
        quantize(wide, tmp_path, overwrite=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk(wide: Path, tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from llama_runner import errors
from llama_runner.core import quantize
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    quantize(sys.argv[1], sys.argv[2], "Q8_0")
except errors.StorageError:
    print("storage")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(wide), str(tmp_path / "out.gguf")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.stdout == "storage\n", run.stderr
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"type": "Q9"}, errors.InvalidArgumentError),
        ({"type": "NVFP4"}, errors.InvalidArgumentError),
        ({"type": 15}, errors.InvalidArgumentError),
        ({"n_threads": 0}, errors.InvalidArgumentError),
        ({"n_threads": 513}, errors.InvalidArgumentError),
        ({"output_tensor_type": "Q8_K"}, errors.InvalidArgumentError),
        ({"token_embedding_type": "I32"}, errors.InvalidArgumentError),
        ({"token_embedding_type": "IQ2_XXS"}, errors.InvalidArgumentError),
        (
            {"output_tensor_type": "IQ1_S", "imatrix": {"token_embd.weight": [1.0] * 256}},
            errors.InvalidArgumentError,
        ),
        ({"tensor_types": {"embd": "IQ2_XS"}}, errors.InvalidArgumentError),
        ({"tensor_types": {"ffn": "Q8_1"}}, errors.InvalidArgumentError),
        ({"tensor_types": {"(": "Q8_0"}}, errors.InvalidArgumentError),
        ({"tensor_types": ["ffn"]}, errors.ArgumentTypeError),
        ({"type": "IQ2_XS"}, errors.InvalidArgumentError),
        (
            {"type": "IQ2_S", "pure": True, "imatrix": {"blk.0.attn_q.weight": [1.0] * 256}},
            errors.InvalidArgumentError,
        ),
        ({"imatrix": [1]}, errors.ArgumentTypeError),
        ({"imatrix": {1: [1.0]}}, errors.ArgumentTypeError),
        ({"imatrix": {"blk.0.attn_q.weight": "x"}}, errors.ArgumentTypeError),
        ({"imatrix": {"blk.0.attn_q.weight": [1.0]}}, errors.InvalidArgumentError),
        ({"imatrix": {"blk.0.attn_q.weight": [-1.0] * 256}}, errors.InvalidArgumentError),
        ({"imatrix": {"blk.0.attn_q.weight": [float("nan")] * 256}}, errors.InvalidArgumentError),
        ({"imatrix": {"blk.0.attn_q.weight": [np.inf] * 256}}, errors.InvalidArgumentError),
        ({"kv_overrides": {"general.alignment": 64}}, errors.InvalidArgumentError),
        ({"kv_overrides": {"x": -1}}, errors.InvalidArgumentError),
        ({"prune_layers": [2]}, errors.InvalidArgumentError),
        ({"prune_layers": [0, 1]}, errors.InvalidArgumentError),
        ({"prune_layers": "01"}, errors.ArgumentTypeError),
        ({"prune_layers": 1}, errors.ArgumentTypeError),
        ({"keep_split": True}, errors.InvalidArgumentError),
        ({"max_buf_size": 0}, errors.InvalidArgumentError),
        ({"max_buf_size": (8 << 30) + 1}, errors.InvalidArgumentError),
        ({"pure": 1}, errors.ArgumentTypeError),
        ({"progress": 3}, errors.ArgumentTypeError),
        ({"overwrite": None}, errors.ArgumentTypeError),
    ],
)
def test_bad_values(wide: Path, tmp_path: Path, options: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        quantize(wide, tmp_path / "out.gguf", **options)
    assert not os.listdir(tmp_path)


def test_rows_that_a_type_cannot_have(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tiny_model("llama")  # rows of 64
    with pytest.raises(errors.ModelCapabilityError, match="rows of 64"):
        quantize(path, tmp_path / "out.gguf", token_embedding_type="Q6_K")
    with pytest.raises(errors.ModelCapabilityError):
        quantize(path, tmp_path / "out.gguf", "Q1_0")
    assert not os.listdir(tmp_path)


def test_weights_that_are_no_numbers_or_too_large(wide: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    header = read_gguf_header(wide)
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    for value, name, kind in (
        (np.nan, "Q8_0", "no numbers"),
        (np.inf, "IQ3_S", "inf"),
        (1e30, "IQ3_S", "1e[+]30"),
    ):
        data = bytearray(wide.read_bytes())
        at = header.data_offset + tensor.offset + 400
        data[at : at + 4] = np.float32(value).tobytes()
        source.write_bytes(data)
        with pytest.raises(errors.ModelFormatError, match=kind):
            quantize(source, tmp_path / "out.gguf", name)
    with pytest.raises(errors.ModelFormatError, match="too large"):
        quantize(source, tmp_path / "out.gguf", "Q8_0")
    quantize(source, tmp_path / "out.gguf", "BF16")


def test_files_that_are_no_model(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf")
    with pytest.raises(errors.ModelCapabilityError, match="no weights"):
        quantize(tiny_model("llama", vocab_only=True), tmp_path / "out.gguf")
    (tmp_path / "in.gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.ModelFormatError):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf")


def test_layers_with_a_value_each(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tiny_model("llama", metadata={"llama.attention.head_count_kv": [2, 2]})
    with pytest.raises(errors.ModelCapabilityError, match="head_count_kv"):
        quantize(path, tmp_path / "out.gguf", prune_layers=[0])
