"""A lock between processes, on a file: flock where there is one, msvcrt on Windows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from llama_runner.errors import StorageError
from llama_runner.gguf.files import storage_error

if sys.platform == "win32":
    import msvcrt
else:
    import errno
    import fcntl

__all__ = ["FileLock"]


class FileLock:
    """Exclusive between processes and between threads; the system frees it when its holder dies.

    The file stays behind on purpose: unlinking it would let two holders lock two different files.
    StorageError, naming the file, when it cannot be opened or not be had within ``timeout`` seconds.
    ``on_wait`` is called with the seconds waited, each time the lock was found taken.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout: float = 3600.0,
        poll: float = 0.1,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self.path = path
        self.timeout = timeout
        self.poll = poll
        self._on_wait = on_wait
        self._fd = -1

    def __enter__(self) -> Self:
        if self._fd >= 0:
            raise StorageError(f"the lock {str(self.path)!r} is already held by this object")
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(f"cannot open the lock file {str(self.path)!r}", error) from error
        try:
            self._wait(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._sign(fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        fd, self._fd = self._fd, -1
        try:
            # Unlocked explicitly: a child forked meanwhile shares the descriptor and would keep it locked.
            _unlock(fd)
        finally:
            os.close(fd)

    def _wait(self, fd: int) -> None:
        start = time.monotonic()
        while True:
            try:
                if _try_lock(fd):
                    return
            except OSError as error:
                raise storage_error(f"cannot lock {str(self.path)!r}", error) from error
            waited = time.monotonic() - start
            if waited >= self.timeout:
                raise StorageError(
                    f"the lock file {str(self.path)!r} is still held{self._holder(fd)} after {waited:.1f} s; "
                    "wait for that process, or end it"
                )
            if self._on_wait is not None:
                self._on_wait(waited)
            time.sleep(self.poll)

    def _holder(self, fd: int) -> str:
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            owner = os.read(fd, 20).strip()
        except OSError:
            return ""
        return f" by process {int(owner)}" if owner.isdigit() else ""

    def _sign(self, fd: int) -> None:
        # Only for the message of a process that waits in vain, so a full disk must not matter here.
        try:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, str(os.getpid()).encode())
        except OSError:
            pass


if sys.platform == "win32":
    # Far beyond the text in the file, which other processes may then still read.
    _BYTE = 1 << 30

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, _BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
