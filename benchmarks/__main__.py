"""``python -m benchmarks``: one table of the engine against llama.cpp's own programs, and against peers."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_runner
from benchmarks.agents import agents
from benchmarks.cancel import cancel
from benchmarks.conditions import Conditions, native_program
from benchmarks.disk_tier import disk_tier
from benchmarks.forks import forks
from benchmarks.long_prefill import long_prefill
from benchmarks.open_sessions import open_sessions
from benchmarks.peers import Peers
from benchmarks.report import Row, table
from benchmarks.sessions import sessions
from benchmarks.streams import busy_python, many_streams, one_stream
from benchmarks.structured import structured
from llama_runner.models import resolve_model

BENCHMARKS: dict[str, Callable[[Conditions], Iterator[Row]]] = {
    "one-stream": one_stream,
    "busy-python": busy_python,
    "many-streams": many_streams,
    "forks": forks,
    "agents": agents,
    "open-sessions": open_sessions,
    "long-prefill": long_prefill,
    "disk-tier": disk_tier,
    "cancel": cancel,
    "sessions": sessions,
    "structured": structured,
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all without"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does it run at all?")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, help="how often each side takes its turn (5; with --quick 1)")
    parser.add_argument("--threads", type=int, help="model threads (the physical cores that may be used)")
    parser.add_argument("--model", default="smollm2-135m", help="path or short name of the model")
    parser.add_argument("--no-peers", action="store_true", help="only ours and llama.cpp's own programs")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="the interpreter that has the peers installed"
    )
    parser.add_argument(
        "--llama-server",
        metavar="PATH",
        help="llama-server, if it is not on PATH; `build`: from the vendored llama.cpp (some minutes the first time)",
    )
    return parser


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"{name}: there are {', '.join(BENCHMARKS)}")
    server = str(native_program("llama-server")) if options.llama_server == "build" else options.llama_server
    peers = Peers(options.peer_python, server, not options.no_peers)
    conditions = Conditions(
        Path(resolve_model(options.model)),
        quick=options.quick,
        rounds=options.rounds or (1 if options.quick else 5),
        peers=peers,
    )
    if options.threads:
        conditions.threads = options.threads
    rows: list[Row] = []
    failed = False
    for name in options.names or BENCHMARKS:
        conditions.say(name)
        start = time.perf_counter()
        try:
            for row in BENCHMARKS[name](conditions):
                rows.append(row)
                conditions.say(f"  {row}")
        except Exception as error:  # the others are worth having
            import traceback

            traceback.print_exc()
            conditions.say(f"{name} failed: {error!r}")
            failed = True
        conditions.say(f"  {time.perf_counter() - start:.0f} s")
    about = {
        "llama_runner": llama_runner.__version__,
        "python": platform.python_version(),
        "model": conditions.model.name,
        "threads": conditions.threads,
        "rounds": conditions.rounds,
        "quick": conditions.quick,
    }
    if options.json:
        found = {
            **about,
            "rows": [row.to_dict() for row in rows],
            "peers": peers.names,
            "missing": peers.missing,
        }
        print(json.dumps(found, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(table(rows, peers.names, peers.missing))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
