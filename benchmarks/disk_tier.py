"""A session comes back from the disk, against computing it again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.conditions import Conditions, Tokens, random_tokens
from benchmarks.report import Row, Spread, at_least
from llama_runner import LlamaRunner
from llama_runner.results import Completion


def ask(runner: LlamaRunner, tokens: Tokens) -> tuple[Completion, float]:
    """One token after ``tokens``, and the seconds it took."""
    start = time.perf_counter()
    out = runner.generate(tokens, max_tokens=1, temperature=0)
    return out, time.perf_counter() - start


def drop_page_cache(folder: Path) -> int:
    """Let the system forget the files' pages, so that the next reader goes to the disk; returns their bytes."""
    size = 0
    for path in folder.rglob("*"):
        if path.is_file():
            size += path.stat().st_size
            with path.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def disk_tier(conditions: Conditions) -> Iterator[Row]:
    """In a new runner on the folder where that finds it; else in the one that wrote it, others having pushed it out."""
    n = conditions.size(4000, 500)
    restored, computed, notes = [], [], []
    how = ""
    for turn in range(max(1, conditions.rounds // 2)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            how, back, first, note = _restart(conditions, folder, n, turn)
            restored.append(back)
            computed.append(first)
            notes.append(note)
    yield Row(
        f"{n} tokens back from disk ({how}): their prefill over it",
        "s",
        ours=Spread.of(restored),
        ratio=Spread.of([first / back for first, back in zip(computed, restored, strict=True)]),
        wanted=at_least(20),
        notes=[f"computing them: {Spread.of(computed)} s", *dict.fromkeys(notes)],
    )


def _restart(conditions: Conditions, folder: Path, n: int, turn: int) -> tuple[str, float, float, str]:
    """How it came back, seconds for that, seconds of computing it, and what is to be said about it."""
    # the session and a longer one fill the memory; a small one pushes the session out, the last one the longer: the
    # host has room for one of them, so that the session goes to disk; and then the memory has room to take it back
    n_ctx = -(-(n + n * 3 // 2 + 2) // 256) * 256
    sizes = (n, n * 3 // 2, n_ctx - n - n * 3 // 2 + 10, n)
    session, other, small, last = (random_tokens(size, 10 * turn + i) for i, size in enumerate(sizes))
    bytes_a_token = _bytes_a_token(conditions)
    host = int(len(other) * bytes_a_token * 1.05)
    options = {"n_ctx": n_ctx, "host_cache_bytes": host, "disk_cache": folder}
    with conditions.runner(**options) as runner:
        runner.generate("warm up", max_tokens=4)
        runner.clear_context()
        out, first = ask(runner, session)
        assert out.usage.computed_tokens == n
        for pushing in (other, small, last):
            ask(runner, pushing)
    drop_page_cache(folder)
    with conditions.runner(**options) as again:
        again.generate("warm up", max_tokens=4)
        out, back = ask(again, session)
    if out.usage.cached_tokens >= n - 1:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return "a new runner on the folder", back, first, f"{size:,} bytes on disk, page cache dropped"
    with conditions.runner(**options) as runner:
        runner.generate("warm up", max_tokens=4)
        runner.clear_context()
        for pushing in (session, other, small, last):
            ask(runner, pushing)
        size = drop_page_cache(folder)
        written = runner.engine.counters.cache.evicted_to_disk
        out, back = ask(runner, session)
        note = (
            f"a new runner on the folder finds nothing; in the one that wrote it: {out.usage.cached_tokens} tokens "
            f"back, {written} states written, {size:,} bytes on disk, page cache dropped"
        )
    return "in the same runner", back, first, note


def _bytes_a_token(conditions: Conditions) -> float:
    """Of a saved state, as this context writes it."""
    with conditions.runner(n_ctx=512) as runner:
        runner.generate(random_tokens(256, 1), max_tokens=1)
        with runner.engine.paused() as context:
            seq_id = max(range(context.n_seq_max), key=context.memory.seq_pos_max)
            return len(context.state_seq_get(seq_id)) / (context.memory.seq_pos_max(seq_id) + 1)
