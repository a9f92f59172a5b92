"""Runs the hazard cases of one module: ``worker.py START STOP MODULE``."""

from __future__ import annotations

import importlib
import sys
import traceback

from hostile.hazard import HAZARDS, World
from hostile.runner import limit_memory, work


def main() -> None:
    limit_memory(8 << 30)
    importlib.import_module(sys.argv[3])
    cases = list(HAZARDS.values())
    world = World()

    def case(number: int) -> str | None:
        try:
            cases[number].run(world)
        except BaseException:
            return traceback.format_exc(limit=-4)
        return None

    work(case, seconds=60)


if __name__ == "__main__":
    main()
