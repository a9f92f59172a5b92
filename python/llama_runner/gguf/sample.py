"""Digests that tell files apart: a whole one, and one of a model without reading gigabytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llama_runner.gguf.files import require_file, storage_error

__all__ = ["file_digest", "sample_digest"]

SAMPLES = 64
SAMPLE_SIZE = 4096


def sample_digest(path: str | os.PathLike[str]) -> str:
    """BLAKE2b of the file's length and of 64 evenly spaced pieces of 4 KiB, in hexadecimal.

    Other weights of the same shape give another digest; a single changed byte may not. It guards against mix-ups.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            for i in range(SAMPLES):
                file.seek(max(0, (size - SAMPLE_SIZE) * i // (SAMPLES - 1)))
                digest.update(file.read(SAMPLE_SIZE))
    except OSError as error:
        raise storage_error(f"cannot read {os.fspath(path)!r}", error) from error
    return digest.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """BLAKE2b of the whole file, in hexadecimal. ModelNotFoundError and ModelFormatError as for its header."""
    require_file(Path(path))
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise storage_error(f"cannot read {os.fspath(path)!r}", error) from error
