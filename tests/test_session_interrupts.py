"""An interrupt may come between any two lines of a session's method: nothing hangs, and nobody is busy for ever."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner

SECONDS = 6
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")


def test_interrupts_at_any_line(tiny_model: TinyModelFactory) -> None:
    """In a process of its own: what hangs is ended, and what an interrupt breaks in a finalizer is written there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(tiny_model("llama"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    steps, interrupts = map(int, done.stdout.split())
    assert steps > 500 and interrupts > 50


def interrupted(path: str) -> tuple[int, int]:
    rng = random.Random(1)
    armed = False

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    steps = interrupts = 0
    with LlamaRunner(path, n_ctx=256, n_threads=1) as runner:
        chat = runner.session(template=PLAIN)
        hello = [{"role": "user", "content": "hello"}]
        calls = (
            lambda: chat.send("x", max_tokens=1), lambda: chat.add("x"), lambda: chat.plan(hello), chat.fork, chat.gc,
            lambda: chat.rollback(None), lambda: chat.sync(hello),
        )  # fmt: skip
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            steps += 1
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.004 + 1e-6)
                rng.choice(calls)()
                armed = False
            except KeyboardInterrupt:
                interrupts += 1
            chat.rollback(None)  # ContextBusyError, if somebody still had it
            chat.prune()
        assert chat.send("Still there?", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    return steps, interrupts


if __name__ == "__main__":
    print(*interrupted(sys.argv[1]))
