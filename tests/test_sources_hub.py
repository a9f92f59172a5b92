"""Models from a hub: the real huggingface_hub against a stand-in on loopback."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures_sources import (
    CONTENT,
    small_disk,
)
from hub_stand_in import COMMIT, HubStandIn
from llama_runner.errors import (
    DownloadError,
    InvalidArgumentError,
    MissingExtraError,
    ModelNotFoundError,
    StorageError,
)
from llama_runner.models import resolve_model

# --- hf: against a hub on loopback -------------------------------------------------------------------

HUB_FILES = {
    "owner/repo": {"a.gguf": CONTENT, "sub/dir/b.gguf": b"GGUF b"},
    "owner/closed": {"a.gguf": b"GGUF"},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with HubStandIn(HUB_FILES, gated=frozenset({"owner/closed"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_hub_file_is_fetched_once(hub: HubStandIn, tmp_path: Path) -> None:
    events: list[tuple[str, int, int | None]] = []
    path = resolve_model("hf:owner/repo/a.gguf", progress=lambda *event: events.append(event))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "hub")
    assert events and events[-1] == ("downloading hf:owner/repo/a.gguf", len(CONTENT), len(CONTENT))
    hub.requests.clear()
    assert resolve_model("hf:owner/repo/a.gguf") == path
    assert hub.requests == []


def test_hub_subfolder_and_revision(hub: HubStandIn) -> None:
    assert resolve_model("hf:owner/repo/sub/dir/b.gguf").read_bytes() == b"GGUF b"
    assert resolve_model(f"hf:owner/repo@{COMMIT}/a.gguf").read_bytes() == CONTENT
    assert any(f"/resolve/{COMMIT}/a.gguf" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("hf:owner/none/a.gguf", ModelNotFoundError, "no such repository"),
        ("hf:owner/repo/none.gguf", ModelNotFoundError, "no such file"),
        ("hf:owner/repo@none/a.gguf", ModelNotFoundError, "not this revision"),
        ("hf:owner/closed/a.gguf", DownloadError, "HF_TOKEN"),
        ("hf:own--er/re..po/a.gguf", InvalidArgumentError, "own--er"),
    ],
)
def test_hub_errors(hub: HubStandIn, spec: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        resolve_model(spec)


def test_hub_without_network(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        resolve_model("hf:owner/repo/a.gguf")
    for part in ("tried: the hub at http://127.0.0.1:9", "by hand", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        assert part in str(caught.value)


def test_hub_offline_uses_the_cache_only(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model("hf:owner/repo/a.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert resolve_model("hf:owner/repo/a.gguf") == path
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        resolve_model("hf:owner/repo/sub/dir/b.gguf")
    assert hub.requests == []


def test_hub_error_of_the_callback_comes_through(hub: HubStandIn) -> None:
    def progress(what: str, done: int, total: int | None) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        resolve_model("hf:owner/repo/a.gguf", progress=progress)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the hub client's own word, before it tries
def test_hub_disk_too_small(hub: HubStandIn, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "filler").write_bytes(bytes(3_000_000))
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk))
    with pytest.raises(StorageError, match="No space left"):
        resolve_model("hf:owner/repo/a.gguf")


def test_hub_extra_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r'pip install "llama-runner\[hub\]"'):
        resolve_model("hf:owner/repo/a.gguf")
