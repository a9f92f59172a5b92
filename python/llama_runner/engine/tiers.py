"""``Tiers``: saved states of prefixes in host memory, and on disk, each within a size of its own.

A state is a container of ``core`` (checksums, fingerprint of the model), verified again when it is read. A file on disk
has, before that, the tokens that it is of, so that a later process finds its prefixes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from llama_runner.engine.prefix import Node, Stored
from llama_runner.errors import StorageError

__all__ = ["OnDisk", "Tiers"]

Tokens = npt.NDArray[np.int32]
MAGIC = b"LRPREFIX1\0"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A file of an earlier process: all tokens up to its end, and what they were computed with."""

    path: Path
    start: int
    tokens: Tokens
    key: Hashable
    size: int


class Tiers:
    """Host memory, then disk. ``lost`` is called with a node whose state has just been dropped for good.

    The folder holds one folder for each model and shape of context; one process at a time has it, another that comes
    meanwhile works in a folder of its own, which goes with it. ``scan`` tells what is there from before.
    """

    def __init__(
        self,
        *,
        host_bytes: int,
        disk: Path | None,
        disk_bytes: int,
        fingerprint: str,
        tokens_to: Callable[[Node], Tokens],
        key_of: Callable[[Node], Hashable],
        lost: Callable[[Node], None],
    ) -> None:
        self.host_limit, self.disk_limit = host_bytes, disk_bytes if disk is not None else 0
        self.host_used = self.disk_used = 0
        self.to_disk_count = 0
        self._tokens_to, self._key_of, self._lost = tokens_to, key_of, lost
        self._stored: dict[Stored, None] = {}
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._temporary = False
        if disk is not None:
            self._open(disk, fingerprint)

    # --- the folder

    def _open(self, disk: Path, fingerprint: str) -> None:
        folder = disk / hashlib.blake2b(fingerprint.encode(), digest_size=12).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "ab")  # noqa: SIM115 - held until close()
            if not lock_file(self._lock):
                self._lock.close()
                self._lock, self._temporary = None, True
                folder = disk / f"{folder.name}-{uuid.uuid4().hex}"
                folder.mkdir()
        except OSError as error:
            raise StorageError(f"disk_cache={str(disk)!r} cannot be used: {error}") from error
        self._folder = folder

    def scan(self) -> Iterator[OnDisk]:
        """What an earlier process left, shorter prefixes first; files that are no such are removed."""
        if self._folder is None:
            return
        found = []
        for path in self._folder.iterdir():
            if path.suffix == ".kv":
                try:
                    found.append(read_head(path))
                    continue
                except (OSError, ValueError, KeyError, TypeError):
                    pass
            if path.suffix in (".kv", ".part"):
                path.unlink(missing_ok=True)
        yield from sorted(found, key=lambda entry: len(entry.tokens))

    def adopt(self, entry: OnDisk, node: Node) -> None:
        """Count a file of an earlier process as the state of ``node``."""
        stored = Stored(entry.start, len(entry.tokens), entry.size, None, entry.path, [node])
        node.stored = stored
        self._stored[stored] = None
        self.disk_used += stored.size

    # --- in and out

    @property
    def in_use(self) -> bool:
        """Whether anything can be kept at all."""
        return self.host_limit > 0 or self.disk_limit > 0

    def put(self, node: Node, start: int, data: bytes) -> bool:
        """Keep ``data`` as the state of ``node``; False where there is no room for it."""
        stored = Stored(start, node.end, len(data), data, None, [node])
        if not self._host_room(stored.size):
            if not self._write(stored):
                return False
            stored.data = None
        else:
            self.host_used += stored.size
        node.stored = stored
        self._stored[stored] = None
        return True

    def get(self, stored: Stored) -> bytes:
        """The state; OSError or StorageError where the file cannot be read, or it was dropped."""
        if stored.data is not None:
            return stored.data
        if stored.path is None:
            raise StorageError("the saved prefix was dropped")
        with open(stored.path, "rb") as file:
            skip_head(file)
            return file.read()

    def drop(self, node: Node) -> None:
        """Forget the state of one node; what others refer to as well stays."""
        stored, node.stored = node.stored, None
        if stored is None:
            return
        stored.nodes.remove(node)
        if stored.nodes:
            return
        del self._stored[stored]
        if stored.data is not None:
            self.host_used -= stored.size
            stored.data = None
        if stored.path is not None:
            self.disk_used -= stored.size
            with contextlib.suppress(OSError):
                stored.path.unlink(missing_ok=True)

    # --- room

    def _order(self, wanted: Callable[[Stored], bool]) -> list[Stored]:
        """Those that may go: what is in the KV memory as well first, then the least recently used."""

        def worth(stored: Stored) -> tuple[bool, int]:
            return (
                not all(node.resident for node in stored.nodes),
                max(node.last_used for node in stored.nodes),
            )

        free = [s for s in self._stored if wanted(s) and not any(node.pins for node in s.nodes)]
        return sorted(free, key=worth)

    def _host_room(self, size: int) -> bool:
        if size > self.host_limit:
            return False
        if self.host_used + size > self.host_limit:
            for stored in self._order(lambda s: s.data is not None):
                self._to_disk(stored)
                if self.host_used + size <= self.host_limit:
                    break
        return self.host_used + size <= self.host_limit

    def _to_disk(self, stored: Stored) -> None:
        """Take a state out of host memory: to disk, where it is the only one, or for good."""
        resident = all(node.resident for node in stored.nodes)
        kept = stored.path is not None or (not resident and self._write(stored))
        if kept:
            self.host_used -= stored.size
            stored.data = None
            self.to_disk_count += 1
        else:
            self._forget(stored)

    def _write(self, stored: Stored) -> bool:
        """Write a state to a file, whole or not at all."""
        if self._folder is None or stored.data is None or not self._disk_room(stored.size):
            return False
        node = max(stored.nodes, key=lambda n: n.end)
        path = self._folder / f"{uuid.uuid4().hex}.kv"
        partial = path.with_suffix(".part")
        try:
            with open(partial, "wb") as file:
                write_head(file, stored.start, self._tokens_to(node), self._key_of(node))
                file.write(stored.data)
            os.replace(partial, path)
        except OSError:  # a disk that is full: then it is dropped
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            return False
        stored.path = path
        self.disk_used += stored.size
        return True

    def _disk_room(self, size: int) -> bool:
        if size > self.disk_limit:
            return False
        if self.disk_used + size > self.disk_limit:
            # what longer prefixes build on goes after them
            for stored in self._order(lambda s: s.data is None and not any(n.children for n in s.nodes)):
                self._forget(stored)
                if self.disk_used + size <= self.disk_limit:
                    break
        return self.disk_used + size <= self.disk_limit

    def _forget(self, stored: Stored) -> None:
        nodes = list(stored.nodes)
        for node in nodes:
            self.drop(node)
        for node in nodes:
            self._lost(node)

    # --- the end

    def spill(self) -> None:
        """Write to disk, as far as there is room, what is in host memory alone."""
        if self._folder is None or self._temporary:
            return
        for stored in sorted(self._stored, key=lambda s: s.end):
            if stored.path is None:
                self._write(stored)

    def close(self) -> None:
        """Let go of the folder; what is in it stays for the next process."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._temporary and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._stored.clear()
        self.host_used = self.disk_used = 0


def write_head(file: IO[bytes], start: int, tokens: Tokens, key: Hashable) -> None:
    """What a file begins with: the tokens up to the end of its state, checked by a digest."""
    ids = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    digest = hashlib.blake2b(ids, digest_size=16).hexdigest()
    head = json.dumps({"start": start, "n": len(tokens), "key": key, "digest": digest}).encode()
    file.write(MAGIC + struct.pack("<I", len(head)) + head + ids)


def read_head(path: Path) -> OnDisk:
    """What a file says of itself; ValueError where it is no such file, or a damaged one."""
    with open(path, "rb") as file:
        head, ids = skip_head(file)
        size = os.fstat(file.fileno()).st_size - file.tell()
    if hashlib.blake2b(ids, digest_size=16).hexdigest() != head["digest"]:
        raise ValueError("its tokens are damaged")
    tokens = np.frombuffer(ids, dtype="<i4").astype(np.int32)
    start = int(head["start"])
    if not 0 <= start < len(tokens) or size <= 0:
        raise ValueError("it holds nothing")
    key = head["key"]
    return OnDisk(
        path, start, tokens, None if key is None else tuple((str(d), float(s)) for d, s in key), size
    )


def skip_head(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read up to where the state begins."""
    start = file.read(len(MAGIC) + 4)
    if len(start) != len(MAGIC) + 4 or not start.startswith(MAGIC):
        raise StorageError("this is no saved prefix")
    (n_head,) = struct.unpack("<I", start[len(MAGIC) :])
    if n_head > 1 << 20:
        raise StorageError("the head of a saved prefix is damaged")
    head = json.loads(file.read(n_head))
    size = 4 * int(head["n"])
    ids = file.read(size)
    if len(ids) != size:
        raise StorageError("a saved prefix was cut short")
    return head, ids


def lock_file(file: IO[bytes]) -> bool:
    """Whether this process has the file now; nobody else gets it until it is closed."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
