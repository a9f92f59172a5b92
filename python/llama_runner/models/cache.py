"""The folder of downloaded models: what is in it is whole, hashed, and was moved there in one step.

Beside ``model.gguf`` lies ``model.gguf.json`` with its sha256, size and mtime. The note is written first,
so a model without a fitting note was not finished or was changed, and is not trusted.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llama_runner.errors import IntegrityError, StorageError
from llama_runner.gguf.files import storage_error

__all__ = [
    "Progress",
    "RecordedHash",
    "clean",
    "ensure_space",
    "make_folder",
    "models_folder",
    "store",
    "usable",
]

Progress = Callable[[str, int, int | None], None]

_BLOCK = 1 << 20
_log = logging.getLogger("llama_runner.models")


@dataclass(frozen=True)
class RecordedHash:
    """A hash as a wheel's RECORD writes it: algorithm, and the digest in URL-safe base64 without padding."""

    algorithm: str
    digest: str

    @property
    def hexdigest(self) -> str:
        try:
            return base64.urlsafe_b64decode(self.digest + "=" * (-len(self.digest) % 4)).hex()
        except (binascii.Error, ValueError):
            return ""


def models_folder() -> Path:
    """``$LLAMA_RUNNER_CACHE/models``, or ``models`` in the user's cache folder. It need not exist."""
    root = os.environ.get("LLAMA_RUNNER_CACHE")
    if root:
        return Path(root).expanduser().absolute() / "models"
    import platformdirs

    return platformdirs.user_cache_path("llama_runner") / "models"


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(
            f"cannot create the cache folder {str(folder)!r} (set LLAMA_RUNNER_CACHE to another place)", error
        ) from error


def ensure_space(folder: Path, needed: int, what: str) -> None:
    """StorageError, with both numbers, where ``folder`` has fewer than ``needed`` bytes free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < needed:
        error = StorageError(
            f"{what} needs {needed} bytes, {str(folder)!r} has {free} free; "
            "make room, or set LLAMA_RUNNER_CACHE to a folder on another disk"
        )
        error.errno = errno.ENOSPC
        raise error


def clean(folder: Path) -> None:
    """Remove what processes that died left in ``folder``. Call it only while holding the folder's lock:
    then no other process can be writing there, whatever its id."""
    for parent, folders, files in os.walk(folder):
        for name in files:
            if name.endswith(".part"):
                Path(parent, name).unlink(missing_ok=True)
        for name in [name for name in folders if name.startswith(".download-")]:
            shutil.rmtree(Path(parent, name), ignore_errors=True)
            folders.remove(name)


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def usable(path: Path, *, sha256: str | None, verify: bool, progress: Progress | None) -> bool:
    """Whether ``path`` is a whole cached model: by size and mtime, or by hash if these differ or ``verify``.

    Damage is logged and answered with False, so that the caller fetches the file anew.
    """
    try:
        status = path.stat()
        note = json.loads(_note_path(path).read_bytes())
        want, size, mtime = str(note["sha256"]), int(note["size"]), int(note["mtime_ns"])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise storage_error(f"cannot read the cached model {str(path)!r}", error) from error
    except (ValueError, KeyError, TypeError):
        _log.warning("the note beside the cached model %s is damaged; fetching the model again", path)
        return False
    if sha256 is not None and want != sha256:
        _log.warning("the cached model %s has sha256 %s, not %s; fetching it again", path, want, sha256)
        return False
    if status.st_size != size:
        _log.warning(
            "the cached model %s has %d bytes, not %d; fetching it again", path, status.st_size, size
        )
        return False
    if status.st_mtime_ns == mtime and not verify:
        return True
    found = _hash_file(path, size, progress)
    if found != want:
        _log.warning("the cached model %s has sha256 %s, not %s; fetching it again", path, found, want)
        return False
    if status.st_mtime_ns != mtime:
        try:
            _write_note(path, want, status)
        except OSError:
            pass  # a read-only cache is as good; the next call hashes again
    return True


def _hash_file(path: Path, size: int, progress: Progress | None) -> str:
    digest, done = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(f"verifying {path.name}", done, size)
    except OSError as error:
        raise storage_error(f"cannot read the cached model {str(path)!r}", error) from error
    return digest.hexdigest()


def store(
    stream: IO[bytes],
    path: Path,
    *,
    size: int,
    recorded: RecordedHash,
    sha256: str | None,
    progress: Progress | None,
) -> None:
    """Copy ``stream`` to ``path``: to a temporary name beside it, hashed on the way, synced, then moved.

    Raises IntegrityError (a hash or the size differs), StorageError (disk full, no permission). After an
    error, ``path`` is as it was before and the temporary file is gone.
    """
    make_folder(path.parent)
    ensure_space(path.parent, size, f"extracting {path.name}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    broken: list[BaseException] = []

    def tell(done: int) -> None:
        try:
            if progress is not None:
                progress(f"extracting {path.name}", done, size)
        except BaseException as error:
            broken.append(error)
            raise

    try:
        found = _copy(stream, part, path.name, size, recorded, tell)
        if sha256 is not None and found != sha256:
            raise IntegrityError(f"{path.name} has sha256 {found}, expected is {sha256}; it was not kept")
        _write_note(path, found, part.stat())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError) or error in broken:
            raise
        raise storage_error(f"cannot write {str(path)!r}; nothing was kept of it", error) from error
    finally:
        part.unlink(missing_ok=True)


def _copy(
    stream: IO[bytes], part: Path, name: str, size: int, recorded: RecordedHash, tell: Callable[[int], None]
) -> str:
    plain = hashlib.sha256()
    claimed = plain if recorded.algorithm == "sha256" else hashlib.new(recorded.algorithm)
    done = 0
    with open(part, "xb") as file:
        while block := stream.read(_BLOCK):
            file.write(block)
            plain.update(block)
            if claimed is not plain:
                claimed.update(block)
            done += len(block)
            tell(done)
        file.flush()
        os.fsync(file.fileno())
    if done != size:
        raise IntegrityError(f"{name} has {done} bytes, expected are {size}; it was not kept")
    if claimed.hexdigest() != recorded.hexdigest:
        raise IntegrityError(
            f"{name} has {recorded.algorithm} {claimed.hexdigest()}, but the wheel's RECORD says "
            f"{recorded.hexdigest or recorded.digest}; it was not kept"
        )
    return plain.hexdigest()


def _write_note(path: Path, sha256: str, status: os.stat_result) -> None:
    note = _note_path(path)
    part = note.with_name(f".{note.name}.{os.getpid()}.part")
    text = json.dumps({"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, note)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without it the rename may be lost with the power; Windows cannot open a folder for this.
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse
    finally:
        os.close(fd)
