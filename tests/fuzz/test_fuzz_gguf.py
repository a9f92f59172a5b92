"""Twenty thousand mutated model files: no process dies, none hangs, memory stays bounded, every error is typed."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz.gguf_mutants import Image, Mutator, read_image
from hostile.runner import run_cases
from tiny_models import write_tiny_model

WORKER = Path(__file__).parent / "gguf_worker.py"
SMALL = {"n_layer": 2, "n_embd": 64, "n_ff": 64, "n_ctx_train": 64}
BASES = {
    "llama": {}, "llama-bpe": {"vocab": "bpe"}, "llama-wpm": {"vocab": "wpm"}, "swa": {}, "mamba": {}, "hybrid": {},
    "hybrid-lfm2": {"architecture": "lfm2"}, "bert": {},
}  # fmt: skip


def write_bases(folder: Path) -> Path:
    for name, options in BASES.items():
        write_tiny_model(folder / f"base-{name}.gguf", name.split("-")[0], **{**SMALL, **options})
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bases(tmp_path_factory.mktemp("fuzz"))


COUNT = int(os.environ.get("LLAMA_RUNNER_FUZZ", "20000"))
SEED = int(os.environ.get("LLAMA_RUNNER_FUZZ_SEED", "1"))


def test_mutants_are_reproducible_and_mostly_well_formed(bases: Path) -> None:
    images = [read_image(path) for path in sorted(bases.glob("base-*.gguf"))]
    assert len(images) == len(BASES)
    # what is taken apart and put together again is the same model
    for path, image in zip(sorted(bases.glob("base-*.gguf")), images, strict=True):
        assert {k: (v.kind, v.element, v.data) for k, v in rebuilt(image, bases).keys.items()} == {
            k: (v.kind, v.element, v.data) for k, v in image.keys.items()
        }, path
    first, second = Mutator(images, SEED), Mutator(images, SEED)
    assert [first(n) for n in range(20)] == [second(n) for n in range(20)]
    assert len({first(n) for n in range(50)}) == 50


def rebuilt(image: Image, folder: Path) -> Image:
    path = folder / "again.gguf"
    path.write_bytes(image.to_bytes())
    return read_image(path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory and time are POSIX's")
def test_mutated_models(bases: Path) -> None:
    """LLAMA_RUNNER_FUZZ and LLAMA_RUNNER_FUZZ_SEED choose another number and another seed."""
    stages: Counter[str] = Counter()
    bad: list[str] = []
    for outcome in run_cases(WORKER, [str(SEED), str(bases)], range(COUNT), timeout=3600):
        stage = outcome.died or str(outcome.report)
        stages[stage] += 1
        if outcome.died or stage == "aborted" or stage.startswith("untyped"):
            bad.append(f"mutant {outcome.number} of seed {SEED}: {stage} {outcome.stderr[-800:]}")
    assert not bad, "\n".join(bad)
    # most are well-formed: they get past our reader into llama.cpp's loader, and many through it
    reached = COUNT - stages["ModelFormatError"] - stages["UnsupportedModelError"]
    assert reached > COUNT * 0.8, stages
    assert stages["decoded"] > COUNT * 0.15, stages
    assert stages["ModelFormatError*"] > COUNT * 0.2, stages
