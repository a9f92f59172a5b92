"""vendor/fetch_llama_cpp.py: what it unpacks, what it refuses, and that the pin is the same everywhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "vendor" / "fetch_llama_cpp.py"
STAMP = ".llama-runner-pin.json"
TOP = "tinysource-1.0"
COMMIT = "c0ffee" + "0" * 34
TREE = {"CMakeLists.txt": "project(tiny)\n", "include/llama.h": "// tiny\n", "models/a.gguf": "GGUF"}

# A source distribution whose metadata pip can prepare without a network: the backend is inside, and needs nothing.
BACKEND = """
import os
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, "tinysource-1.0.dist-info"))
    with open(os.path.join(folder, "tinysource-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: tinysource\\nVersion: 1.0\\n")
    return "tinysource-1.0.dist-info"
def build_wheel(*args):
    raise SystemExit("nobody asked for a wheel")
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
METADATA = "Metadata-Version: 2.1\nName: tinysource\nVersion: 1.0\n"


def plain(name: str, text: str = "x", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text.encode()), mode
    return info, text.encode()


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


class Source:
    """A small archive, its pin file, and a folder to fill; with ``run`` to fill it."""

    def __init__(self, folder: Path, *more: tuple[tarfile.TarInfo, bytes]) -> None:
        self.folder = folder
        self.archive = folder / "index" / f"{TOP}.tar.gz"
        self.archive.parent.mkdir(parents=True)
        self.dest = folder / "vendor" / "llama.cpp"
        inside = [plain(f"{TOP}/vendor/llama.cpp/{name}", text) for name, text in TREE.items()]
        outside = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "PKG-INFO": METADATA}
        with tarfile.open(self.archive, "w:gz") as tar:
            for info, data in [
                *(plain(f"{TOP}/{name}", text) for name, text in outside.items()),
                *inside,
                *more,
            ]:
                tar.addfile(info, io.BytesIO(data))
        self.sha256 = hashlib.sha256(self.archive.read_bytes()).hexdigest()
        self.pin = folder / "pin.json"
        self.write_pin()

    def write_pin(self, **changes: str) -> None:
        sdist = {
            "distribution": "tinysource",
            "version": "1.0",
            "sha256": self.sha256,
            "path": "vendor/llama.cpp",
        }
        pin = {"commit": COMMIT, "release": "b1", "sdist": sdist}
        for key, value in changes.items():
            (pin if key in pin else sdist)[key] = value
        self.pin.write_text(json.dumps(pin))

    def command(self, *args: str) -> list[str]:
        return [sys.executable, str(SCRIPT), "--pin", str(self.pin), "--dest", str(self.dest), *args]

    @property
    def env(self) -> dict[str, str]:
        """Only the archive's folder is known to pip: no test here reaches a network."""
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.archive.parent), "PIP_CONFIG_FILE": os.devnull}
        return {**os.environ, **pip}

    def run(self, *args: str, local: bool = True) -> subprocess.CompletedProcess[str]:
        if local:
            args = ("--archive", str(self.archive), *args)
        return subprocess.run(self.command(*args), env=self.env, capture_output=True, text=True, check=False)

    def leftovers(self) -> list[str]:
        """What lies beside the tree, the lock apart."""
        beside = self.dest.parent.iterdir() if self.dest.parent.exists() else iter(())
        return sorted(path.name for path in beside if path != self.dest and not path.name.endswith(".lock"))

    def contents(self) -> dict[str, str]:
        files = (path for path in self.dest.rglob("*") if path.is_file())
        return {
            path.relative_to(self.dest).as_posix(): path.read_text() for path in files if path.name != STAMP
        }


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


# --- filling ---------------------------------------------------------------------------------------------------------


def test_fills_from_an_archive(source: Source) -> None:
    started = time.time()
    result = source.run()
    assert result.returncode == 0, result.stderr
    assert source.contents() == TREE
    assert json.loads((source.dest / STAMP).read_text()) == {"commit": COMMIT, "sha256": source.sha256}
    assert source.leftovers() == []
    # The archive's times are all the same, whatever changed: a build after a new pin would miss it.
    assert (source.dest / "CMakeLists.txt").stat().st_mtime >= started - 2


def test_downloads_with_pip(source: Source) -> None:
    result = source.run(local=False)
    assert result.returncode == 0, result.stderr
    assert source.contents() == TREE
    assert source.leftovers() == []


def test_works_where_the_build_environment_hides_pip(source: Source, tmp_path: Path) -> None:
    hidden = tmp_path / "overlay" / "pip"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')")
    env = {**source.env, "PYTHONPATH": str(hidden.parent)}
    result = subprocess.run(source.command(), env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert source.contents() == TREE


def test_works_inside_the_hooks_of_another_build(source: Source, tmp_path: Path) -> None:
    env = {
        **source.env,
        "_PYPROJECT_HOOKS_BUILD_BACKEND": "other",
        "_PYPROJECT_HOOKS_BACKEND_PATH": str(tmp_path),
    }
    result = subprocess.run(source.command(), env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_replaces_the_empty_folder_of_a_submodule(source: Source) -> None:
    source.dest.mkdir(parents=True)
    assert source.run().returncode == 0
    assert source.contents() == TREE


def test_skips_git_files_docs_and_media(tmp_path: Path) -> None:
    prefix = f"{TOP}/vendor/llama.cpp"
    names = [
        ".git",
        ".gitignore",
        ".GIT/config",
        ".github/x.yml",
        "ggml/.gitignore",
        "docs/a.md",
        "media/a.png",
    ]
    kept = plain(f"{prefix}/tools/docs/b.md")
    source = Source(tmp_path, *(plain(f"{prefix}/{name}") for name in names), kept)
    assert source.run().returncode == 0
    assert source.contents() == {**TREE, "tools/docs/b.md": "x"}


@pytest.mark.skipif(sys.platform == "win32", reason="no executable bit")
def test_keeps_the_executable_bit_and_nothing_else(tmp_path: Path) -> None:
    source = Source(tmp_path, plain(f"{TOP}/vendor/llama.cpp/run.sh", mode=0o6777))
    assert source.run().returncode == 0
    assert (source.dest / "run.sh").stat().st_mode & 0o7777 == 0o755


def test_a_complete_tree_is_left_alone_and_needs_nothing(source: Source) -> None:
    source.run()
    (source.dest / "mine.txt").write_text("kept")
    shutil.rmtree(source.archive.parent)
    result = source.run(local=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (source.dest / "mine.txt").read_text() == "kept"


def test_a_new_pin_replaces_the_tree_of_the_old_one(source: Source) -> None:
    source.run()
    (source.dest / "of-the-old-tree").touch()
    source.write_pin(commit="d" * 40)
    assert source.run().returncode == 0
    assert source.contents() == TREE
    assert json.loads((source.dest / STAMP).read_text())["commit"] == "d" * 40
    assert source.leftovers() == []


def test_a_tree_that_lost_its_files_is_filled_again(source: Source) -> None:
    source.run()
    for path in source.dest.glob("[!.]*"):  # what `rm -r vendor/llama.cpp/*` does: the stamp stays
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert source.run("--check").returncode == 1
    assert source.run().returncode == 0
    assert source.contents() == TREE


def test_check_reports_and_changes_nothing(source: Source) -> None:
    before = source.run("--check")
    assert before.returncode == 1
    assert "not filled yet" in before.stdout
    assert not source.dest.exists()
    source.run()
    after = source.run("--check")
    assert after.returncode == 0
    assert COMMIT[:12] in after.stdout


# --- refusing --------------------------------------------------------------------------------------------------------


def test_a_wrong_hash_is_refused_before_unpacking(source: Source) -> None:
    source.write_pin(sha256="0" * 64)
    result = source.run()
    assert result.returncode == 1
    assert "was not unpacked" in result.stderr
    assert "0" * 64 in result.stderr
    assert source.sha256 in result.stderr
    assert not source.dest.exists()
    assert source.leftovers() == []


def test_a_wrong_hash_is_refused_by_pip_too(source: Source) -> None:
    source.write_pin(sha256="0" * 64)
    result = source.run(local=False)
    assert result.returncode == 1
    assert "pip could not download tinysource==1.0" in result.stderr
    assert "hash" in result.stderr.lower()
    assert not source.dest.exists()
    assert source.leftovers() == []


EVIL = {
    "parent": plain(f"{TOP}/vendor/llama.cpp/../../../evil"),
    "parent outside the tree": plain("../evil"),
    "absolute": plain("/evil"),
    "backslash": plain(f"{TOP}/vendor/llama.cpp/..\\..\\evil"),
    "drive": plain("C:/evil"),
    "symbolic link": special(f"{TOP}/vendor/llama.cpp/evil", tarfile.SYMTYPE, "/etc"),
    "hard link": special(
        f"{TOP}/vendor/llama.cpp/evil", tarfile.LNKTYPE, f"{TOP}/vendor/llama.cpp/CMakeLists.txt"
    ),
    "device": special(f"{TOP}/vendor/llama.cpp/evil", tarfile.CHRTYPE),
    "pipe": special(f"{TOP}/vendor/llama.cpp/evil", tarfile.FIFOTYPE),
    "twice": plain(f"{TOP}/vendor/llama.cpp/CMakeLists.txt", "changed"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_archive_is_refused_whole(tmp_path: Path, kind: str) -> None:
    source = Source(tmp_path, EVIL[kind])
    result = source.run()
    assert result.returncode == 1
    assert EVIL[kind][0].name.rpartition("/")[2].replace("\\", "\\\\") in result.stderr
    assert not source.dest.exists()
    assert source.leftovers() == []
    assert not list(tmp_path.rglob("*evil*"))


def test_links_outside_the_wanted_folder_are_skipped(tmp_path: Path) -> None:
    source = Source(tmp_path, special(f"{TOP}/elsewhere", tarfile.SYMTYPE, "/etc"))
    assert source.run().returncode == 0
    assert source.contents() == TREE


def test_an_archive_that_is_none(source: Source) -> None:
    source.archive.write_bytes(b"not an archive")
    source.write_pin(sha256=hashlib.sha256(b"not an archive").hexdigest())
    result = source.run()
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert source.leftovers() == []


def test_an_archive_without_the_source(source: Source) -> None:
    source.write_pin(path="vendor/other")
    result = source.run()
    assert result.returncode == 1
    assert "holds no llama.cpp source under vendor/other" in result.stderr
    assert source.leftovers() == []


def test_a_folder_of_somebody_else_is_refused_and_replaced_only_by_force(source: Source) -> None:
    source.dest.mkdir(parents=True)
    (source.dest / "work.txt").write_text("mine")
    result = source.run()
    assert result.returncode == 1
    assert "--force" in result.stderr
    assert source.contents() == {"work.txt": "mine"}
    assert source.run("--force").returncode == 0
    assert source.contents() == TREE
    assert source.leftovers() == []


def test_nothing_to_get_it_from_says_the_three_ways_on(source: Source) -> None:
    source.archive.unlink()
    result = source.run(local=False)
    assert result.returncode == 1
    assert "pip could not download tinysource==1.0" in result.stderr
    for way in (
        "git submodule update --init",
        "--archive tinysource-1.0.tar.gz",
        "-DLLAMA_RUNNER_LLAMA_CPP_DIR=",
    ):
        assert way in result.stderr
    assert "Traceback" not in result.stderr
    assert not source.dest.exists()
    assert source.leftovers() == []


def test_an_archive_that_is_not_there(source: Source) -> None:
    source.archive.unlink()
    result = source.run()
    assert result.returncode == 1
    assert str(source.archive) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes, to stand for a full disk")
def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    big = plain(f"{TOP}/vendor/llama.cpp/models/big.gguf", "x" * 2_000_000)
    source = Source(tmp_path, big)
    command = source.command("--archive", str(source.archive))
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", *command]
    result = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not source.dest.exists()
    assert source.leftovers() == []
    assert source.run().returncode == 0


# --- git checkouts ---------------------------------------------------------------------------------------------------


def git(folder: Path, *args: str) -> str:
    config = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *config, "-C", str(folder), *args], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(source: Source) -> Source:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    source.dest.mkdir(parents=True)
    git(source.dest, "init", "-q")
    (source.dest / "CMakeLists.txt").write_text("upstream")
    git(source.dest, "add", ".")
    git(source.dest, "commit", "-qm", "upstream")
    return source


def test_a_checkout_of_the_pin_is_used_as_it_is(checkout: Source) -> None:
    checkout.write_pin(commit=git(checkout.dest, "rev-parse", "HEAD"))
    assert checkout.run().returncode == 0
    assert (checkout.dest / "CMakeLists.txt").read_text() == "upstream"
    assert not (checkout.dest / STAMP).exists()


def test_a_checkout_of_something_else_is_an_error_even_with_force(checkout: Source) -> None:
    for args in ((), ("--force",)):
        result = checkout.run(*args)
        assert result.returncode == 1
        assert git(checkout.dest, "rev-parse", "HEAD") in result.stderr
        assert COMMIT in result.stderr
        assert (checkout.dest / "CMakeLists.txt").read_text() == "upstream"


# --- interrupted, and two at once ------------------------------------------------------------------------------------

# Runs the script, and holds still after the third file of the tree, with the archive kept and half of it unpacked.
STUCK = """
import runpy, shutil, sys, time
copy, seen = shutil.copyfileobj, []
def slow(*args):
    copy(*args)
    seen.append(args)
    if len(seen) == 3:
        open(sys.argv.pop(), "w").close()
        time.sleep(600)
shutil.copyfileobj = slow
sys.argv = sys.argv[1:]
marker = sys.argv[-1]
main = runpy.run_path(sys.argv[0])["main"]
sys.exit(main(sys.argv[1:-1]))
"""


def start_stuck(source: Source, marker: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STUCK, *source.command()[1:], str(marker)]
    process = subprocess.Popen(command, env=source.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: marker.exists() or process.poll() is not None, "the third file")
    assert process.poll() is None
    return process


def test_a_killed_run_leaves_no_tree_and_the_next_goes_on_from_its_archive(
    source: Source, tmp_path: Path
) -> None:
    process = start_stuck(source, tmp_path / "marker")
    process.kill()
    process.wait()
    assert not source.dest.exists()
    assert f".llama.cpp.{source.sha256[:8]}.tar.gz" in source.leftovers()
    source.archive.unlink()  # nothing left to download from
    result = source.run(local=False)
    assert result.returncode == 0, result.stderr
    assert "downloading" not in result.stdout
    assert source.contents() == TREE
    assert source.leftovers() == []


def test_a_kept_archive_that_is_damaged_is_downloaded_again(source: Source) -> None:
    source.dest.parent.mkdir()
    (source.dest.parent / f".llama.cpp.{source.sha256[:8]}.tar.gz").write_bytes(b"half of it")
    result = source.run(local=False)
    assert result.returncode == 0, result.stderr
    assert source.contents() == TREE
    assert source.leftovers() == []


def test_a_run_killed_between_the_two_moves_gives_the_old_tree_back(source: Source) -> None:
    source.run()
    between = source.dest.parent / ".llama.cpp.tmp-1-x"
    between.mkdir()
    source.dest.rename(between / "old")
    result = source.run()
    assert (result.returncode, result.stdout) == (0, "")
    assert source.contents() == TREE
    assert source.leftovers() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_second_run_waits_for_the_first(source: Source, tmp_path: Path) -> None:
    first = start_stuck(source, tmp_path / "marker")
    second = subprocess.Popen(source.command(), env=source.env, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    assert not source.dest.exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert "unpacked" in second.communicate(timeout=60)[0]
    assert second.returncode == 0
    assert source.contents() == TREE


def test_many_at_once_fill_it_once(source: Source) -> None:
    command = source.command("--archive", str(source.archive))
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, said
    assert sum("unpacked" in out for out, _ in said) == 1
    assert source.contents() == TREE
    assert source.leftovers() == []


# --- the pin ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pin() -> dict:
    return json.loads((ROOT / "vendor" / "pin.json").read_text())


def tracked(*args: str) -> list[str]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_pin_is_whole(pin: dict) -> None:
    assert len(bytes.fromhex(pin["commit"])) == 20
    assert len(bytes.fromhex(pin["sdist"]["sha256"])) == 32
    assert pin["release"].startswith("b")


def test_the_gitlink_is_the_pin(pin: dict) -> None:
    (line,) = tracked("-s", "vendor/llama.cpp")
    assert line.split()[:2] == ["160000", pin["commit"]]


def test_no_source_of_llama_cpp_is_tracked() -> None:
    assert [path for path in tracked() if path.startswith("vendor/llama.cpp/")] == []


def test_the_tree_that_is_here_is_the_pin() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    if "not filled yet" in result.stdout:
        pytest.skip("built from another tree")
    assert result.returncode == 0, result.stdout


def test_what_is_compiled_in_is_the_pin(pin: dict) -> None:
    import llama_runner

    commit = llama_runner.build_info()["llama_cpp_commit"]
    if commit == "custom":
        pytest.skip("built from a llama.cpp tree of one's own")
    assert commit == pin["commit"]
