"""The ends of processes: forks in the middle, exits with everything open, threads that still compute."""

from __future__ import annotations

import sys

import pytest

from fixtures_models import TinyModelFactory
from hostile.test_leaks import CHILD, child

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
SLOW = {"n_ctx_train": 16384, "n_layer": 12}

# a context that another thread computes in, when `busy` is called
BUSY = """
import threading, time
big = Context(shared, n_ctx=8192, n_batch=8192, n_ubatch=256, n_threads=2)
long = rows(8192)


def compute():
    try:
        big.decode(long)
    except errors.DecodeAbortedError:
        pass


def busy(daemon):
    thread = threading.Thread(target=compute, daemon=daemon)
    thread.start()
    while True:
        try:
            big.n_threads
        except errors.ContextBusyError:
            return thread


chain = SamplerChain().grammar(vocab, 'root ::= "a"').greedy()
template, memory, row, spare = ChatTemplate(shared), ctx.memory, ctx.logits(), Batch(5)
"""

FORK = """
import signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks with threads


def forked(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        work()
        sys.stdout.flush()
        return True
    print(os.waitpid(pid, 0)[1], flush=True)
    return False


def refused():
    for call in (
        lambda: ctx.decode(rows(1, 8)), lambda: big.decode(long), lambda: ctx.n_threads, lambda: memory.seq_rm(0),
        lambda: Model(path), lambda: Context(shared), lambda: vocab.tokenize("a"), lambda: chain.apply(flat),
        lambda: chain.clone(), lambda: SamplerChain().greedy(), lambda: template.apply([]), lambda: spare.clear(),
        lambda: ctx.state_seq_get(0), lambda: Stepper(ctx, chain, vocab),
    ):
        try:
            call()
        except errors.ForkedProcessError:
            continue
        print("not refused")
    assert row.shape == (548,) and np.isfinite(row).all()  # arrays stay readable
"""


@needs_fork
@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "sys.exit(0)", "pass", "ctx.close(); big.close(); shared.close(); sys.exit(0)"]
)
@pytest.mark.parametrize("computing", [False, True])
def test_a_fork_with_everything_open(tiny_model: TinyModelFactory, computing: bool, ending: str) -> None:
    code = f"""{CHILD}{BUSY}{FORK}
thread = busy(False) if {computing} else None
child = forked(refused)
if child:
    {ending}
else:
    big.abort()
    thread and thread.join()
    ctx.decode(rows(1, 8))
    print("parent works")
"""
    done = child(code, tiny_model("llama", **SLOW))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0\nparent works\n"), done.stderr[-2000:]


@needs_fork
def test_a_fork_before_the_first_model_may_compute(tiny_model: TinyModelFactory) -> None:
    code = (
        CHILD.replace(
            "shared = Model(path)",
            """
pid = os.fork()
if pid:
    print(os.waitpid(pid, 0)[1])
shared = Model(path)""",
        )
        + 'print("computed") if np.isfinite(ctx.logits()).all() else None'
    )
    done = child(code, tiny_model("llama"))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["0", "computed", "computed"]


@needs_fork
def test_multiprocessing_by_fork_says_what_to_do(tiny_model: TinyModelFactory) -> None:
    code = (
        CHILD
        + """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)


def work(n):
    try:
        Model(path)
    except errors.ForkedProcessError as error:
        return str(error)


with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, [1])[0])
"""
    )
    done = child(code, tiny_model("llama"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "spawn" in done.stdout


@pytest.mark.parametrize("mode", ["", "1"])
@pytest.mark.parametrize("daemon", [None, True, False])
def test_the_interpreter_ends_with_everything_open(
    tiny_model: TinyModelFactory, daemon: bool | None, mode: str
) -> None:
    code = f"""{CHILD}{BUSY}
me = [ctx, big, shared, row, chain]
me.append(me)
sys.modules["keep"] = me
thread = busy({daemon}) if {daemon} is not None else None
if {daemon} is False:
    big.abort()
print("leaving")
"""
    done = child(code, tiny_model("llama", **SLOW), PYTHONDEVMODE=mode)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "leaving\n"), done.stderr[-2000:]


def test_an_error_at_the_top_ends_as_any_other(tiny_model: TinyModelFactory) -> None:
    done = child(CHILD + "ctx.logits(99)", tiny_model("llama"))
    assert done.returncode == 1
    assert done.stderr.rstrip().split("\n")[-1].startswith("llama_runner.errors.IndexOutOfRangeError")


@pytest.mark.parametrize(
    "order",
    ["shared, ctx, vocab", "vocab, shared, ctx", "ctx, vocab, shared", "template, shared, chain, ctx, vocab"],
)
def test_parents_die_first(tiny_model: TinyModelFactory, order: str) -> None:
    code = f"""{CHILD}{BUSY}
del big, long
view, step = ctx.logits(), Stepper(ctx, SamplerChain().greedy(), vocab)
del {order}
gc.collect()
assert len(step.advance(300, 8)) == 3
memory.seq_rm(0)
assert np.isfinite(view).all() and np.isfinite(row).all()
for name in ("chain", "template", "memory", "step", "spare", "view", "row"):
    globals().pop(name, None)
globals().pop("ctx", None), globals().pop("vocab", None), globals().pop("shared", None)
gc.collect()
now = live_objects()
print({{k: now[k] - baseline[k] for k in now if now[k] != baseline[k]}})
"""
    done = child(code, tiny_model("llama", **SLOW))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "{}\n"), done.stderr[-2000:]
