"""Models on a hub, through huggingface_hub (extra ``hub``), which is imported when first used."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path
from typing import Any

from llama_runner.errors import (
    DownloadError,
    InvalidArgumentError,
    MissingExtraError,
    ModelNotFoundError,
)
from llama_runner.gguf.files import storage_error
from llama_runner.models.cache import Progress

__all__ = ["fetch_hf"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)


def fetch_hf(repo: str, revision: str | None, file: str, *, progress: Progress | None = None) -> Path:
    """The file of the hub's repository ``repo`` in huggingface_hub's cache, downloaded if it is not there.

    What is in the cache is used without asking whether the hub has a newer one: name a commit, or clear
    huggingface_hub's cache, to get another. HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE are read at
    each call, HF_TOKEN by huggingface_hub.

    Raises MissingExtraError, ModelNotFoundError, DownloadError, StorageError, InvalidArgumentError.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import utils
        from huggingface_hub.utils.tqdm import tqdm as hub_tqdm
    except ImportError as error:
        raise MissingExtraError(
            f'hf:{repo}/{file} needs huggingface_hub: pip install "llama-runner[hub]" '
            "(or download the file by hand and pass its path)"
        ) from error

    what = f"hf:{repo}{'@' + revision if revision else ''}/{file}"
    endpoint = os.environ.get("HF_ENDPOINT") or None
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    arguments: dict[str, Any] = {"revision": revision, "cache_dir": os.environ.get("HF_HUB_CACHE") or None}
    broken: list[BaseException] = []
    try:
        cached = hub.try_to_load_from_cache(repo, file, **arguments)
        if isinstance(cached, str):
            return Path(cached)
        if not offline:
            _ask(hub, repo, revision, file, endpoint)
        if "tqdm_class" in inspect.signature(hub.hf_hub_download).parameters:
            arguments["tqdm_class"] = _bar(hub_tqdm, f"downloading {what}", progress, broken)
        return Path(
            str(hub.hf_hub_download(repo, file, endpoint=endpoint, local_files_only=offline, **arguments))
        )
    except Exception as error:
        # huggingface_hub lets through what its HTTP library raises, and that library differs by version.
        if error in broken:
            raise
        raise _translated(error, utils, what, endpoint, offline) from error


def _ask(hub: Any, repo: str, revision: str | None, file: str, endpoint: str | None) -> None:
    """Fail at once where the hub cannot be reached: hf_hub_download would try again for half a minute."""
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, file, revision=revision, endpoint=endpoint))
    except Exception as error:
        # By name, since they are those of the HTTP library, which differs by version of huggingface_hub.
        if type(error).__name__ in ("ConnectError", "ConnectionError", "ProxyError", "SSLError"):
            raise


def _bar(base: Any, what: str, progress: Progress | None, broken: list[BaseException]) -> Any:
    """A progress bar class that draws nothing and calls ``progress``, whose errors go to ``broken``."""

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))
            self._done = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if progress is None:
                return
            try:
                progress(what, self._done, None if self.total is None else int(self.total))
            except BaseException as error:
                broken.append(error)
                raise

    return Bar


def _translated(error: Exception, utils: Any, what: str, endpoint: str | None, offline: bool) -> Exception:
    """The error of ours for one of huggingface_hub's."""
    where = f"the hub at {endpoint}" if endpoint else "the hub"
    if isinstance(error, utils.HFValidationError):
        return InvalidArgumentError(f"{what}: {_first_line(error)}")
    if isinstance(error, utils.GatedRepoError):
        return DownloadError(
            f"{what}: {where} wants the model's terms accepted on its page first, and a token in HF_TOKEN"
        )
    if isinstance(error, utils.RevisionNotFoundError):
        return ModelNotFoundError(f"{what}: {where} has the repository, but not this revision")
    if isinstance(error, utils.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{what}: {where} has no such repository, or it is private and needs HF_TOKEN"
        )
    # Local... is a subclass of EntryNotFoundError, and says only that the network did not answer.
    if isinstance(error, utils.LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, utils.EntryNotFoundError) and not isinstance(
            cause, utils.LocalEntryNotFoundError
        ):
            return ModelNotFoundError(f"{what}: {where} has the repository, but no such file")
        reason = (
            "HF_HUB_OFFLINE is set and it is not in the cache" if offline else _first_line(cause or error)
        )
        return _download_error(what, where, reason)
    if isinstance(error, utils.EntryNotFoundError):
        return ModelNotFoundError(f"{what}: {where} has the repository, but no such file")
    if isinstance(error, OSError) and error.errno in _DISK:
        return storage_error(
            f"{what}: cannot write to huggingface_hub's cache (HF_HUB_CACHE moves it)", error
        )
    return _download_error(what, where, _first_line(error))


def _download_error(what: str, where: str, reason: str) -> DownloadError:
    return DownloadError(
        f"could not fetch {what}: {reason}\n  tried: {where}\n  to go on: download the file by hand and pass "
        "its path; or set HF_ENDPOINT to a mirror that can be reached; or point HF_HUB_CACHE to a cache that "
        "already has the file and set HF_HUB_OFFLINE=1"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
