"""Twenty thousand mutated model files: no process dies, none hangs, memory stays bounded, every error is typed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz.gguf_mutants import Mutator, read_image
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
