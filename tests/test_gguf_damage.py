"""The GGUF header reader on damaged files: named faults, every truncation, and random damage."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_images import (
    ARCHITECTURE,
    SMALL_VOCAB,
    VOCABS,
    image,
    make_model,
    pair,
    tensor,
    text,
)
from llama_runner.errors import (
    LlamaRunnerError,
    ModelError,
    ModelFormatError,
    UnsupportedModelError,
)
from llama_runner.gguf import read_gguf_header


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def inner(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return inner


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_model(tmp_path / "made.gguf")


# --- damage ------------------------------------------------------------------------------------------

SPLIT = [pair("split.no", 2, struct.pack("<H", 1)), pair("split.count", 2, struct.pack("<H", 3))]
FAULTS: dict[str, tuple[bytes, type[ModelError], str]] = {
    "version 1": (image([ARCHITECTURE], version=1), UnsupportedModelError, "version 1"),
    "version 4": (image([ARCHITECTURE], version=4), UnsupportedModelError, "version 4"),
    "version 0": (image([ARCHITECTURE], version=0), ModelFormatError, "version is 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModelError, "big-endian"),
    "short preamble": (b"GGUF\3\0\0\0", ModelFormatError, "8 bytes.*at least 24"),
    "tensor count": (
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        ModelFormatError,
        "claims 9223372036854775808",
    ),
    "key count": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 10**6),
        ModelFormatError,
        "24 bytes.*1000000 keys.*14000024",
    ),
    "no architecture": (image([pair("a", 0, b"\1")]), ModelFormatError, "no general.architecture"),
    "architecture type": (image([pair("general.architecture", 0, b"\1")]), ModelFormatError, "not a name"),
    "part of a split": (image(SPLIT), ModelFormatError, "part 2 of 3"),
    "empty key": (image([pair("", 0, b"\1"), ARCHITECTURE]), ModelFormatError, "empty name"),
    "twice a key": (
        image([ARCHITECTURE, ARCHITECTURE]),
        ModelFormatError,
        "'general.architecture' occurs twice",
    ),
    "value type": (image([pair("a", 13, b""), ARCHITECTURE]), ModelFormatError, "value type 13"),
    "key length": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40) + b"a" * 20,
        ModelFormatError,
        "length of 1099511627776",
    ),
    "string length": (
        image([pair("a", 8, struct.pack("<Q", 2**60)), ARCHITECTURE]),
        ModelFormatError,
        "length of 11529215",
    ),
    "string beyond": (
        image([pair("a", 8, struct.pack("<Q", 1000)), ARCHITECTURE]),
        ModelFormatError,
        "truncated",
    ),
    "array beyond": (
        image([pair("a", 9, struct.pack("<IQ", 4, 2**62)), ARCHITECTURE]),
        ModelFormatError,
        "array of 4611686018",
    ),
    "strings beyond": (
        image([pair("a", 9, struct.pack("<IQ", 8, 2**20)), ARCHITECTURE]),
        ModelFormatError,
        "truncated",
    ),
    "string in a long array": (
        image([pair("a", 9, struct.pack("<IQ", 8, 2000) + b"\xff" * 16000), ARCHITECTURE]),
        ModelFormatError,
        "truncated",
    ),
    "nested": (
        image([pair("a", 9, struct.pack("<IQ", 9, 1)), ARCHITECTURE]),
        UnsupportedModelError,
        "of arrays",
    ),
    "alignment": (
        image([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 24))]),
        ModelFormatError,
        "power of two",
    ),
    "alignment 0": (
        image([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 0))]),
        ModelFormatError,
        "power of two",
    ),
    "alignment type": (
        image([ARCHITECTURE, pair("general.alignment", 10, struct.pack("<Q", 32))]),
        ModelFormatError,
        "not a u32",
    ),
    "twice a tensor": (
        image([ARCHITECTURE], (tensor("a", (8,)), tensor("a", (8,), 0, 32)), 64),
        ModelFormatError,
        "'a' occurs twice",
    ),
    "tensor name": (image([ARCHITECTURE], (tensor("n" * 64, (8,)),), 32), ModelFormatError, "limit is 63"),
    "dimensions": (image([ARCHITECTURE], (tensor("a", (1,) * 5),), 32), ModelFormatError, "5 dimensions"),
    "zero dimension": (
        image([ARCHITECTURE], (tensor("a", (0, 2)),), 32),
        ModelFormatError,
        r"shape \(0, 2\)",
    ),
    "negative": (image([ARCHITECTURE], (tensor("a", (-8,)),), 32), ModelFormatError, r"shape \(-8,\)"),
    "overflow": (image([ARCHITECTURE], (tensor("a", (2**32, 2**31)),), 32), ModelFormatError, "overflows"),
    "tensor type": (image([ARCHITECTURE], (tensor("a", (32,), 4),), 32), UnsupportedModelError, "type 4"),
    "rows": (image([ARCHITECTURE], (tensor("a", (33,), 2),), 32), ModelFormatError, "not a multiple of 32"),
    "not aligned": (
        image([ARCHITECTURE], (tensor("a", (8,), 0, 8),), 64),
        ModelFormatError,
        "not a multiple of 32",
    ),
    "overlap": (
        image([ARCHITECTURE], (tensor("a", (16,)), tensor("b", (8,), 0, 32)), 99),
        ModelFormatError,
        "overlaps",
    ),
    "gap": (
        image([ARCHITECTURE], (tensor("a", (8,), 0, 64),), 99),
        ModelFormatError,
        "0 is where it must be",
    ),
    "tensor data": (
        image([ARCHITECTURE], (tensor("a", (1000,)),), 99),
        ModelFormatError,
        "227 bytes.*at least 4128",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(write: Callable[[bytes], Path], fault: str) -> None:
    content, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        read_gguf_header(write(content))


def test_every_truncation_says_both_sizes(made: Path, tmp_path: Path) -> None:
    content = made.read_bytes()
    required = read_gguf_header(made).required_size
    path = tmp_path / "short.gguf"
    for size in [*range(4, 1500), *range(1500, required, 997), required - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(
            ModelFormatError, match=rf"truncated: it has {size} bytes, but .* at least (\d+)"
        ) as caught:
            read_gguf_header(path)
        needed = int(str(caught.value).split("at least ")[1].split(";")[0])
        assert size < needed <= required
    path.write_bytes(content[:required])
    assert read_gguf_header(path).required_size == required


# --- fuzz --------------------------------------------------------------------------------------------


def small_real_header() -> bytes:
    """A real vocabulary's header, with its long arrays cut out: small enough that mutations hit something."""
    if not VOCABS:
        return image([ARCHITECTURE], (tensor("a", (8,)),), 32)
    header = read_gguf_header(SMALL_VOCAB)
    pairs = []
    for key, value in header.kv.items():
        if isinstance(value, str):
            pairs.append(pair(key, 8, text(value)))
        elif isinstance(value, bool):
            pairs.append(pair(key, 7, bytes([value])))
        elif isinstance(value, int):
            pairs.append(pair(key, 4, struct.pack("<I", value)))
        elif isinstance(value, float):
            pairs.append(pair(key, 6, struct.pack("<f", value)))
        else:
            words = b"".join(text(f"token{i}") for i in range(20))
            pairs.append(pair(key, 9, struct.pack("<IQ", 8, 20) + words))
    return image(pairs, (tensor("a", (32, 2), 2), tensor("b", (8,), 0, 64)), 96)


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


def read_mutant(path: Path, content: bytes, keep_arrays: bool) -> None:
    path.write_bytes(content)
    start = time.monotonic()
    try:
        header = read_gguf_header(path, keep_arrays=keep_arrays)
    except LlamaRunnerError:
        pass
    else:
        assert header.required_size <= len(content)
        assert (header.architecture, header.quantization, header.context_length, header.n_params) is not None
    assert time.monotonic() - start < 5


EDGES = (0, 1, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from(EDGES).map(lambda n: struct.pack("<Q", n)),
            st.sampled_from(EDGES[:8]).map(lambda n: struct.pack("<I", n)),
        ),
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, keep=st.floats(0, 1), keep_arrays=st.booleans(), cut=st.booleans())
def test_mutants_raise_only_typed_errors(
    fuzz_path: Path, edits: list[tuple[float, bytes]], keep: float, keep_arrays: bool, cut: bool
) -> None:
    content = bytearray(small_real_header())
    for place, data in edits:
        start = int(place * len(content))
        content[start : start + len(data)] = data
    if cut:
        del content[int(keep * len(content)) :]
    read_mutant(fuzz_path, bytes(content), keep_arrays)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), keep_arrays=st.booleans())
def test_noise_after_the_magic_raises_only_typed_errors(
    fuzz_path: Path, data: bytes, keep_arrays: bool
) -> None:
    read_mutant(fuzz_path, b"GGUF\3\0\0\0" + data, keep_arrays)


def test_every_edge_value_at_every_offset(fuzz_path: Path) -> None:
    content = small_real_header()
    for offset in range(4, len(content) - 8, 1 if len(content) < 3000 else 3):
        for edge in (0, 2**31, 2**64 - 1):
            mutant = bytearray(content)
            mutant[offset : offset + 8] = struct.pack("<Q", edge)
            read_mutant(fuzz_path, bytes(mutant), False)
