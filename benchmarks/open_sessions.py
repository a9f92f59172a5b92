"""1,000 open sessions whose cells have left the memory: what a session costs, and what the engine costs.

Run as a program it is the process that is measured: ``python -m benchmarks.open_sessions '{"what": …}'``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.conditions import BATCH, ROOT, Conditions, random_tokens
from benchmarks.report import Row, Spread, at_most

OWN = 100  # tokens of a session


def open_sessions(conditions: Conditions) -> Iterator[Row]:
    """Memory a session beyond cells, with cells in the host tier and with cells dropped; and the engine's own."""
    sessions = conditions.size(1000, 40)
    with tempfile.TemporaryDirectory() as folder:
        tiny = _tiny_model(Path(folder) / "tiny.gguf")
        traced = _child(
            {"what": "sessions", "model": str(tiny), "sessions": sessions, "host": 2 << 30, "trace": True}
        )
        hosted = _child({"what": "sessions", "model": str(tiny), "sessions": sessions, "host": 2 << 30})
    common = {"model": str(conditions.model), "sessions": sessions, "threads": conditions.threads}
    dropped = _child({"what": "sessions", "host": 0, **common})
    bare = _child({"what": "bare", **common})
    assert traced["for_good"] == traced["to_disk"] == 0, "the host tier was too small"
    kib = 1 / 1024
    yield Row(
        f"{sessions} open sessions of {OWN} tokens, cells in the host tier: Python memory of each beyond cells",
        "KiB",
        ours=Spread.of([(traced["traced"] - traced["held"]) * kib / sessions]),
        wanted=at_most(20),
        notes=[
            f"a tiny model, so that cells do not hide the rest; tracemalloc's difference less the {traced['held']:,} "
            f"bytes of saved states; resident memory less them: "
            f"{(hosted['rss'] - hosted['held']) * kib / sessions:.1f} KiB each",
        ],
    )
    yield Row(
        f"{sessions} open sessions of {OWN} tokens, cells dropped: resident memory of each",
        "KiB",
        ours=Spread.of([dropped["rss"] * kib / sessions]),
        wanted=at_most(20),
        notes=["difference of the resident memory, the context having been full once before"],
    )
    own = dropped["whole"] - bare["whole"]
    yield Row(
        f"the engine's own memory, {sessions} sessions open",
        "MiB",
        ours=Spread.of([own * kib * kib]),
        wanted=at_most(50),
        notes=[
            f"resident {dropped['whole'] * kib * kib:.0f} MiB, over that of core.Model and core.Context "
            f"with the same options after the same tokens, interpreter and NumPy "
            f"included: {bare['whole'] * kib * kib:.0f} MiB"
        ],
    )


def _tiny_model(path: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import write_tiny_model

    return Path(write_tiny_model(path, "llama", n_layer=1))


def _child(work: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.open_sessions", json.dumps(work)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- in the process that is measured


def resident() -> int:
    """Bytes of this process in memory, what the allocator holds and does not use given back first."""
    gc.collect()
    if sys.platform != "linux":
        raise SystemExit("only Linux says how much memory is resident now")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure_sessions(work: dict[str, Any]) -> dict[str, Any]:
    from llama_runner import LlamaRunner

    options = {"n_ctx": 2048, "n_threads": work.get("threads", 1), "host_cache_bytes": work["host"], **BATCH}
    with LlamaRunner(work["model"], **options) as runner:
        n_vocab = runner.model.vocab.n_tokens

        def some(n: int, seed: int) -> Any:
            return random_tokens(n, seed, n_vocab)

        # what happens once, and every buffer at its largest
        runner.generate(some(1500, 1), max_tokens=8, ignore_eos=True)
        before = [runner.sequence(some(OWN, 10_000 + i)) for i in range(30)]
        for sequence in before:
            sequence.extend(())
        del before, sequence
        runner.clear_context()
        if work.get("trace"):
            tracemalloc.start()
        start, saved, once = resident(), _held(runner), runner.engine.counters.cache.evicted_for_good
        traced = tracemalloc.get_traced_memory()[0] if work.get("trace") else 0
        held = []
        for i in range(work["sessions"]):
            sequence = runner.sequence()
            sequence.extend(some(OWN, 20_000 + i))
            held.append(sequence)
        # the last ones' cells leave as well
        runner.generate(some(1900, 2), max_tokens=1)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - traced if work.get("trace") else 0
        now = resident()
        cache = runner.engine.counters.cache
        assert all(len(sequence) == OWN for sequence in held)
        return {
            "rss": now - start,
            "whole": now,
            "traced": traced,
            "held": _held(runner) - saved,
            "for_good": cache.evicted_for_good - once,
            "to_disk": cache.evicted_to_disk,
        }


def _held(runner: Any) -> int:
    """Bytes of saved states in host memory."""
    return int(runner.engine.counters.cache.host_bytes)


def measure_bare(work: dict[str, Any]) -> dict[str, Any]:
    """A model and a context, and a memory filled in slices."""
    from llama_runner.core import Batch, Context, Model

    with (
        Model(work["model"]) as model,
        Context(model, n_ctx=2048, n_seq_max=64, n_threads=work["threads"], **BATCH) as ctx,
    ):
        tokens, slice_of = (
            random_tokens(1900, 2),
            64,
        )  # about what the engine reads in a step: larger ones take more buffer
        batch = Batch(slice_of)
        for at in range(0, len(tokens), slice_of):
            batch.set(tokens[at : at + slice_of], at, 0, "last")
            ctx.decode(batch)
        return {"whole": resident()}


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(measure_bare(task) if task["what"] == "bare" else measure_sessions(task)))
