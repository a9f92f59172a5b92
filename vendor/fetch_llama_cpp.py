"""Fill vendor/llama.cpp with the pinned source, where the git submodule is not checked out.

The pin is in pin.json beside this script. The source comes out of a source distribution that pip downloads
(`--archive FILE` takes one that is already here). Its SHA-256 is checked before anything is unpacked; the tree
is unpacked beside its destination and moved there whole, with a stamp in it that says what it is. CMake runs
this at every configure: a complete tree costs one read, and a git checkout is never touched.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

STAMP = ".llama-runner-pin.json"
SKIPPED = {"docs", "media"}  # top folders that neither the build nor the tests read
WAYS_ON = """To go on, do one of these:
  git submodule update --init             in a git checkout, with a network
  python {script} --archive {pin.distribution}-{pin.version}.tar.gz
  cmake -DLLAMA_RUNNER_LLAMA_CPP_DIR=DIR  to build a llama.cpp tree of your own"""


class FetchError(Exception):
    """What went wrong, in words for the person who runs the build."""


class Pin:
    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        sdist = data["sdist"]
        self.commit, self.release = str(data["commit"]), str(data["release"])
        self.distribution, self.version = str(sdist["distribution"]), str(sdist["version"])
        self.sha256, self.path = str(sdist["sha256"]), PurePosixPath(sdist["path"])
        self.stamp = {"commit": self.commit, "sha256": self.sha256}

    def __str__(self) -> str:
        return f"llama.cpp {self.release} ({self.commit[:12]})"


def state_of(dest: Path, pin: Pin) -> tuple[str, str]:
    """One of missing, complete, outdated (ours, but not this pin), checkout, foreign; and a sentence on it."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return "missing", f"{dest} is not filled yet"
    if (dest / ".git").exists():
        command = ["git", "-c", "safe.directory=*", "-C", str(dest), "rev-parse", "HEAD"]
        try:
            head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            head = f"a commit that git cannot tell ({(getattr(error, 'stderr', None) or str(error)).strip()})"
        if head == pin.commit:
            return "complete", f"{dest} is a git checkout of {pin}"
        return "checkout", f"{dest} is a git checkout of {head}, but the pin is {pin.commit}"
    try:
        stamp = json.loads((dest / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "foreign", f"{dest} is not empty, and has no valid stamp ({STAMP}) of this script"
    if stamp == pin.stamp and (dest / "CMakeLists.txt").is_file():
        return "complete", f"{dest} holds {pin}"
    return "outdated", f"{dest} was filled for {stamp}, and is not all of {pin} now"


def sha256_of(archive: Path) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(archive: Path, pin: Pin) -> None:
    if (found := sha256_of(archive)) != pin.sha256:
        hashes = f"  SHA-256 is     {found}\n  it should be   {pin.sha256}"
        raise FetchError(f"{archive} is not the pinned archive, and was not unpacked:\n{hashes}")


def find_pip() -> list[str]:
    # With -I, because a build environment's paths may hide the pip that is installed.
    python = [[sys.executable, "-m", "pip"], [sys.executable, "-I", "-m", "pip"]]
    for command in [*python, *([found] for name in ("pip", "pip3") if (found := shutil.which(name)))]:
        if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0:
            return command
    raise FetchError(
        f"No pip was found to download with (tried {sys.executable} -m pip, and pip on the PATH)."
    )


def download(folder: Path, pin: Pin) -> Path:
    """The archive, by pip: it knows the mirrors and proxies that this machine is set up with."""
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{pin.distribution}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8"
    )
    command = [*find_pip(), "download", "--no-deps", "--no-binary", pin.distribution, "--no-input"]
    command += ["--disable-pip-version-check", "-r", str(requirements), "-d", str(folder)]
    print(f"{pin}: downloading {pin.distribution} {pin.version} with pip", flush=True)
    # Inside a build, the variables that name our own build backend would mislead the build hooks of this one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("_PYPROJECT_HOOKS_")}
    result = subprocess.run(command, stdin=subprocess.DEVNULL, env=env, capture_output=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if result.returncode or not found:
        lines = (result.stdout + result.stderr).decode(errors="replace").splitlines()
        said = "\n".join(f"  | {line}" for line in lines[-12:])
        raise FetchError(f"pip could not download {pin.distribution}=={pin.version}. It said:\n{said}")
    return found[0]


def path_inside(name: str, pin: Pin) -> PurePosixPath | None:
    """Where below the tree an archive member belongs; None where it is not wanted."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise FetchError(f"The archive has a member with a forbidden name, and was not unpacked: {name!r}")
    prefix = pin.path.parts
    if path.parts[1 : len(prefix) + 1] != prefix:
        return None
    inside = PurePosixPath(*path.parts[len(prefix) + 1 :])
    # A nested .git would point at a repository that is not there, and break the git commands of this one.
    nested_git = any(part.lower().startswith(".git") for part in inside.parts)
    return None if nested_git or SKIPPED.intersection(inside.parts[:1]) else inside


def unpack(archive: Path, tree: Path, pin: Pin) -> None:
    tree.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            inside = path_inside(member.name, pin)
            if inside is None or member.isdir():
                continue
            target = tree / inside
            source = tar.extractfile(member) if member.isreg() else None
            if source is None:
                raise FetchError(
                    f"The archive has a member that is no plain file, and was not used: {member.name!r}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            # Times are of now, not the archive's: after a new pin, a build must see that the files changed.
            with source, target.open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if member.mode & 0o100:
                target.chmod(0o755)
    if not (tree / "CMakeLists.txt").is_file():
        raise FetchError(f"{archive} holds no llama.cpp source under {pin.path}")
    (tree / STAMP).write_text(json.dumps(pin.stamp, indent=2) + "\n", encoding="utf-8")


def rename(source: Path, target: Path) -> None:
    for tries_left in reversed(range(20)):
        try:
            return os.replace(source, target)
        except PermissionError:  # Windows refuses while a virus scanner looks at a new file
            if not tries_left or sys.platform != "win32":
                raise
        time.sleep(0.1)


def move_in_place(tree: Path, dest: Path) -> None:
    old = tree.with_name("old")
    if dest.exists():
        rename(dest, old)
    try:
        rename(tree, dest)
    except OSError:
        if old.exists():
            rename(old, dest)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One run at a time. The system drops the lock with its process, so a killed run blocks nobody."""
    with path.open("a") as file:
        if not lock(file.fileno()):
            print(f"Another run is at work in {path.parent}: waiting for it", flush=True)
            while not lock(file.fileno()):
                time.sleep(0.1)
        yield


def lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # on a file system without locks go on: the move in place is atomic all the same
        return not isinstance(error, BlockingIOError | PermissionError)
    return True


def fill(dest: Path, pin: Pin, archive: Path | None, force: bool) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    work = f".{dest.name}."
    kept = dest.with_name(
        f"{work}{pin.sha256[:8]}.tar.gz"
    )  # until unpacking is done: a stopped run goes on here
    with locked(dest.with_name(f"{work}lock")):
        for leftover in dest.parent.glob(f"{work}tmp-*"):
            if (leftover / "old").exists() and not dest.exists():
                rename(leftover / "old", dest)  # stopped between the two moves
            shutil.rmtree(leftover, ignore_errors=True)
        state, sentence = state_of(dest, pin)  # another run may have filled it meanwhile
        if state == "complete":
            return
        if state == "checkout" or (state == "foreign" and not force):
            raise FetchError(
                sentence + (", and is left alone." if state == "checkout" else ": --force replaces it.")
            )
        tmp = Path(tempfile.mkdtemp(prefix=f"{work}tmp-{os.getpid()}-", dir=dest.parent))
        try:
            if archive is None:
                archive = kept
                if not kept.exists() or sha256_of(kept) != pin.sha256:
                    rename(download(tmp, pin), kept)
            check_hash(archive, pin)
            unpack(archive, tmp / "tree", pin)
            move_in_place(tmp / "tree", dest)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)  # after an error too: nothing half-made stays
        kept.unlink(missing_ok=True)
        print(f"{pin}: unpacked into {dest}", flush=True)


def main(argv: list[str] | None = None) -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Fill vendor/llama.cpp with the pinned source of llama.cpp.")
    option = parser.add_argument
    option("--archive", type=Path, metavar="FILE", help="use this source distribution; download nothing")
    option("--dest", type=Path, default=here / "llama.cpp", help="the folder to fill")
    option("--pin", type=Path, default=here / "pin.json", help="the file with commit and hash")
    option("--check", action="store_true", help="only say whether the tree is complete (exit status)")
    option("--force", action="store_true", help="replace a folder that this script did not fill")
    args = parser.parse_args(argv)
    pin, dest = Pin(args.pin), args.dest.resolve()
    try:
        state, sentence = state_of(dest, pin)
        if args.check:
            print(sentence)
            return int(state != "complete")
        if state != "complete":
            fill(dest, pin, args.archive, args.force)
    except (FetchError, OSError, tarfile.TarError, EOFError, zlib.error) as error:
        ways_on = WAYS_ON.format(script=__file__, pin=pin)
        print(f"error: {pin} is not in {dest}: {error}\n\n{ways_on}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
