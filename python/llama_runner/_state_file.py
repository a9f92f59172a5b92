"""Files that saved states are kept in: written whole or not at all, read with their size known beforehand."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Any

from llama_runner._container import MAX_HEADER, PREFIX, Kind, parse_header
from llama_runner.errors import StateError, StorageError

__all__ = ["read", "write"]

CHUNK = 1 << 26


def write(path: str, container: bytes) -> int:
    """Write a container beside ``path``, bring it to the disk and put it in place; StorageError leaves no trace."""
    part = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.part"
    with storage_errors("written", path):
        try:
            with open(part, "xb", buffering=0) as file:
                view = memoryview(container)
                while view:
                    view = view[file.write(view[:CHUNK]) :]
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    sync_folder(os.path.dirname(path))
    return len(container)


def sync_folder(folder: str) -> None:
    """The new name, too, is to survive a power cut, where folders can be opened at all."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: str, fingerprint: dict[str, Any], kind: Kind, most: int) -> bytearray:
    """A file's bytes, in memory, so that nobody changes them later; the header is looked at before the rest is read.

    ``most`` is what a payload can have; a longer one cannot be restored and is not read.
    """
    with storage_errors("read", path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StateError(f"{path!r} is no file")  # a pipe would block
    with storage_errors("read", path), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = bytearray(min(size, PREFIX.size + MAX_HEADER))
        fill(file, memoryview(head))
        header, body = parse_header(memoryview(head), fingerprint, kind)
        expected = body + 4 * header.n_tokens + header.length
        if size != expected:
            raise StateError(f"{path!r} is cut off or padded: {size} bytes, {expected} expected")
        if header.length > most:
            raise StateError(
                f"{path!r} has a state of {header.length} bytes: this context holds {most} at most"
            )
        data = bytearray(size)
        data[: len(head)] = head
        fill(file, memoryview(data)[len(head) :])
        return data


def fill(file: Any, view: memoryview) -> None:
    while view:
        n = file.readinto(view[:CHUNK])
        if not n:
            raise StateError(f"the file became shorter while it was read: {len(view)} bytes are missing")
        view = view[n:]


@contextlib.contextmanager
def storage_errors(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        error = StorageError(f"{path!r} cannot be {verb}: {cause.strerror or cause}")
        error.errno = cause.errno
        raise error from cause
