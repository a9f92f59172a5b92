"""What stands at a path, and what a file that is no GGUF file probably is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llama_runner.errors import (
    InvalidArgumentError,
    ModelFormatError,
    ModelNotFoundError,
    StorageError,
)

__all__ = ["not_gguf", "require_file", "storage_error"]

_ABSENT = (FileNotFoundError, NotADirectoryError)


def storage_error(message: str, cause: OSError) -> StorageError:
    """A :class:`StorageError` that keeps the ``errno`` of its cause."""
    error = StorageError(f"{message}: {cause.strerror or cause}")
    error.errno = cause.errno
    return error


def require_file(path: Path) -> int:
    """Size in bytes of the regular file at ``path``.

    Raises ModelNotFoundError (nothing there, or a directory, whose GGUF files are named),
    ModelFormatError (a device or a pipe, which would block), StorageError (not accessible).
    """
    if "\0" in str(path):
        raise InvalidArgumentError(f"a path cannot hold a NUL character: {str(path)!r}")
    try:
        info = os.stat(path)
    except _ABSENT:
        raise ModelNotFoundError(f"no model file at {str(path)!r}{_neighbours(path)}") from None
    except OSError as error:
        raise storage_error(f"cannot look at {str(path)!r}", error) from error
    if stat.S_ISDIR(info.st_mode):
        raise ModelNotFoundError(f"{str(path)!r} is a directory, not a model file{_contents(path)}")
    if not stat.S_ISREG(info.st_mode):
        raise ModelFormatError(f"{str(path)!r} is no regular file (a device, a pipe or a socket)")
    return info.st_size


def _gguf_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".gguf"))
    except OSError:
        return []


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _contents(folder: Path) -> str:
    names = _gguf_files(folder)
    return f"; it holds {_listed(names)}" if names else "; it holds no .gguf file"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist either"
    names = _gguf_files(path.parent)
    return f"; beside it: {_listed(names)}" if names else ""


def not_gguf(path: Path, head: bytes) -> ModelFormatError:
    """The error for a file whose first bytes ``head`` are not GGUF's, with a guess at what it is."""
    hint = _guess(head)
    return ModelFormatError(
        f"{str(path)!r} is no GGUF file: it starts with {head[:8]!r}, not b'GGUF'"
        + (f"; {hint}" if hint else "")
    )


def _guess(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run 'git lfs pull' to get the file that it stands for"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, saved in place of the download: use the link to the raw file"
    if head[:4] == b"FUGG":
        return "its magic is reversed: a big-endian file written by a faulty tool"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt", b"ggla"):
        return "it is of a GGML format older than GGUF: convert the original weights again"
    if head[:4] == b"PK\x03\x04":
        return "it is a zip archive (a wheel or a PyTorch checkpoint): extract or convert it first"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "it looks like safetensors: convert it with llama.cpp's convert_hf_to_gguf.py"
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"7z\xbc\xaf", b"BZh")):
        return "it is compressed: unpack it first"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON; a metadata file must have a name that ends in .json"
    if head and not head.strip(b"\0"):
        return "it is filled with zeros: a download that was reserved but not finished"
    return ""
