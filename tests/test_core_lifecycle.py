"""Lifetimes: closing, use after it, parents that go first, cycles, threads, and the end of the interpreter."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Batch, ChatTemplate, Context, Memory, Model, SamplerChain, Vocab

USER = [{"role": "user", "content": "a"}]


def feed(ctx: Context, n: int = 8) -> np.ndarray:
    batch = Batch(n)
    batch.add_sequence(np.arange(300, 300 + n), ctx.memory.seq_pos_max(0) + 1)
    ctx.decode(batch)
    return ctx.logits()


def one_row() -> Batch:
    batch = Batch(1)
    batch.add(300, 0, 0, True)
    return batch


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Context:
    return Context(Model(tiny_model("llama")), n_ctx=256, n_seq_max=2, n_threads=1)


# ---------------------------------------------------------------------------------------------------- after close
# Each public name of a class is in exactly one of two tables: what it is called with, and must raise then, or why it
# may still be used.

CONTEXT_CALLS: dict[str, tuple] = {
    "decode": (one_row(),), "encode": (one_row(),), "set_n_threads": (1,), "logits": (), "embeddings": (),
    "embeddings_seq": (), "n_ctx_seq": (), "n_threads": (), "n_threads_batch": (), "memory_breakdown": (),
    "fingerprint": (), "state_seq_get": (0,), "state_seq_set": (0, b""), "state_seq_size": (0,),
    "state_seq_get_into": (0, bytearray(9)), "state_seq_save": ("x", 0), "state_seq_load": ("x", 0), "state_size": (),
    "state_get": (), "state_get_into": (bytearray(9),), "state_set": (b"",), "state_save": ("x",), "state_load": ("x",),
    "set_adapters": (), "adapters": (), "set_control_vector": (), "control_vector": (), "synchronize": (), "perf": (),
    "perf_reset": (), "set_embeddings": (True,), "causal_attn": (), "logits_matrix": (), "embeddings_matrix": (),
    "output_rows": (), "set_sampler": (0, None), "sampled_token": (), "sampled_logits": (), "sampled_probs": (),
    "sampled_candidates": (),
}  # fmt: skip
CONTEXT_HARMLESS = {
    "close", "closed", "abort", "model", "memory", "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_vocab", "n_outputs",
    "kv_unified", "swa_full",
    "produces_embeddings",
}  # fmt: skip
MEMORY_CALLS: dict[str, tuple] = {
    "seq_rm": (0,), "seq_cp": (0, 1), "seq_keep": (0,), "seq_add": (0, 0, 1, 1), "seq_div": (0, 0, 1, 2),
    "seq_pos_min": (0,), "seq_pos_max": (0,), "clear": (), "can_shift": (), "cells": (), "n_cells": (), "n_used": (),
    "n_used_end": (),
}  # fmt: skip
MEMORY_HARMLESS = {"context"}
MODEL_HARMLESS = {"close", "closed", "path", "paths", "vocab_only"}
MODEL_CALLS: dict[str, tuple] = {
    name: ("general.name",) if name in ("meta", "save") else () for name in public(Model) - MODEL_HARMLESS
}
VOCAB_HARMLESS = {"model", "n_tokens"}
VOCAB_CALLS: dict[str, tuple] = {
    "tokenize": ("a",), "detokenize": ([1],), "detokenize_bytes": ([1],), "token_to_piece": (1,), "is_eog": (1,),
    "is_control": (1,), "text": (1,), "score": (1,), "attr": (1,), "type": (), "bos": (), "eos": (), "eot": (),
    "sep": (), "nl": (), "pad": (), "mask": (), "fim_pre": (), "fim_suf": (), "fim_mid": (), "add_bos": (),
    "add_eos": (), "eog_tokens": (), "tokenize_many": (["a"],), "detokenize_many": ([[1]],), "pieces": (),
    "detokenize_bytes_many": ([[1]],), "scores": (), "attrs": (), "suppress_tokens": (), "special_tokens": (),
    "add_sep": (), "fim_pad": (), "fim_rep": (), "fim_sep": (),
}  # fmt: skip


def touch(target: object, name: str, arguments: tuple) -> object:
    value = getattr(target, name)
    return value(*arguments) if callable(value) else value


def every_name_raises(target: object, calls: dict[str, tuple], harmless: set[str]) -> None:
    assert public(type(target)) == set(calls) | harmless
    assert not set(calls) & harmless
    for name, arguments in calls.items():
        try:
            touch(target, name, arguments)
        except errors.ClosedError:
            continue
        pytest.fail(f"{type(target).__name__}.{name} did not raise ClosedError")
    for name in harmless - {"close"}:
        touch(target, name, ())
    assert "closed" in repr(target)


def test_everything_of_a_closed_context(ctx: Context) -> None:
    feed(ctx)
    memory, facts = ctx.memory, (ctx.n_ctx, ctx.n_batch, ctx.n_vocab)
    assert ctx.fingerprint
    assert not ctx.closed
    for _ in range(3):
        ctx.close()
        assert ctx.closed
    every_name_raises(ctx, CONTEXT_CALLS, CONTEXT_HARMLESS)
    every_name_raises(memory, MEMORY_CALLS, MEMORY_HARMLESS)
    assert (ctx.n_ctx, ctx.n_batch, ctx.n_vocab) == facts
    assert ctx.n_outputs == 0
    with pytest.raises(errors.ClosedError), ctx:
        pass
    with pytest.raises(errors.ClosedError):
        SamplerChain().greedy().sample(ctx)
    assert np.isfinite(feed(Context(ctx.model, n_ctx=256, n_threads=1))).all()


def test_everything_of_a_closed_model(ctx: Context) -> None:
    model = ctx.model
    vocab, template, row = model.vocab, ChatTemplate(model), feed(ctx).copy()
    for _ in range(3):
        model.close()
        assert model.closed
        assert ctx.closed  # a model closes its contexts
    every_name_raises(model, MODEL_CALLS, MODEL_HARMLESS)
    every_name_raises(vocab, VOCAB_CALLS, VOCAB_HARMLESS)
    assert len(vocab) == len(row)
    assert template.source
    calls: list[Callable[[], object]] = [
        lambda: Context(model), lambda: Vocab(model), lambda: ChatTemplate(model), lambda: template.apply(USER),
        lambda: SamplerChain().grammar(vocab, 'root ::= "a"'),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(errors.ClosedError):
            call()
    with pytest.raises(errors.ClosedError), model:
        pass


def test_a_context_is_not_opened_again(ctx: Context) -> None:
    ctx.close()
    with pytest.raises(errors.UsageError):
        ctx.__init__(ctx.model, n_ctx=256)
    assert ctx.closed


def test_with_closes_and_passes_errors_on(tiny_model: TinyModelFactory) -> None:
    class Mine(Exception):
        pass

    with pytest.raises(Mine), Model(tiny_model("llama")) as model, Context(model, n_ctx=256) as ctx:
        raise Mine
    assert model.closed
    assert ctx.closed


def test_objects_that_were_never_made(ctx: Context) -> None:
    class Forgetful(SamplerChain):
        def __init__(self) -> None:
            pass

    made = {
        Context: (CONTEXT_CALLS, ()), Memory: (MEMORY_CALLS, ()), Vocab: (VOCAB_CALLS, ()), Model: (MODEL_CALLS, ()),
        Forgetful: ({"greedy": (), "apply": (np.zeros(3, np.float32),), "accept": (1,), "clone": (), "seed": (),
                     "names": (), "perf": (), "perf_reset": (), "remove": (0,), "reset": (),
                     "copy_from": (SamplerChain(),), "python": (print,)}, ()),
        ChatTemplate: ({"source": (), "apply": (USER,)}, ()),
    }  # fmt: skip
    for kind, (calls, arguments) in made.items():
        empty = kind.__new__(kind, *arguments)
        repr(empty)
        for name, given in calls.items():
            with pytest.raises((errors.LlamaRunnerError, TypeError, AttributeError)):
                touch(empty, name, given)
    with pytest.raises(errors.InvalidArgumentError):
        ctx.decode(Batch.__new__(Batch))
    assert np.isfinite(feed(ctx)).all()


# ---------------------------------------------------------------------------------------------------- who holds whom


def test_children_hold_their_parents(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    gone = weakref.ref(model)
    ctx, vocab = Context(model, n_ctx=256, n_threads=1), model.vocab
    template, memory = ChatTemplate(model), ctx.memory
    chain = SamplerChain().grammar(vocab, 'root ::= "a"+').greedy()
    del model, vocab
    gc.collect()
    assert np.isfinite(feed(ctx)).all()
    del ctx
    gc.collect()
    assert memory.seq_pos_max(0) == 7
    del memory
    gc.collect()
    assert template.apply(USER)
    del template
    gc.collect()
    assert gone() is not None  # the grammar reads the vocabulary
    assert chain.apply(np.zeros(548, np.float32)) > 0
    del chain
    gc.collect()
    assert gone() is None


def test_a_grammar_whose_model_is_closed(ctx: Context) -> None:
    vocab = ctx.model.vocab
    chain = SamplerChain().grammar(vocab, 'root ::= "a"+').greedy()
    copy = chain.clone()
    row = np.zeros(len(vocab), np.float32)
    token = chain.apply(row)
    ctx.model.close()
    for link in (chain, copy):
        for call in (
            lambda link=link: link.apply(row),
            lambda link=link: link.accept(token),
            link.clone,
            link.reset,
        ):
            with pytest.raises(errors.ClosedError):
                call()


CHILD = """
import gc, os, sys, threading, time
import numpy as np
from llama_runner import errors
from llama_runner.core import Batch, ChatTemplate, Context, Model, SamplerChain

path = sys.argv[1]


def feed(ctx, n=8):
    batch = Batch(n)
    batch.add_sequence(np.arange(300, 300 + n), ctx.memory.seq_pos_max(0) + 1)
    ctx.decode(batch)
    return ctx.logits()

"""


def child(code: str, *arguments: object) -> str:
    """Run code in a process of its own, where freed memory is filled, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CHILD + code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "MALLOC_PERTURB_": "165"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs an allocator that fills freed memory")
@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_cycles_free_the_context_before_the_model(tiny_model: TinyModelFactory, kind: str) -> None:
    # As llama.cpp frees a context it asks its model whether to log the size of the buffers. A model that was freed
    # before says something else, since this process fills freed memory.
    code = """
import logging
from llama_runner.core import devices
freed = []


class Keep(logging.Handler):
    def emit(self, record):
        if "~llama_context" in record.getMessage():
            freed.append(record)


class OwnContext(Context):
    pass


log = logging.getLogger("llama_runner.native")
log.addHandler(Keep())
log.setLevel(logging.DEBUG)
gc.disable()
for cycle in (False, True) * 5:
    ctx = OwnContext(Model(path), n_ctx=256, n_threads=1)
    feed(ctx)
    if cycle:
        ctx.me = [ctx, ctx.model, ctx.memory, ctx.model.vocab]
    del ctx
    gc.collect()
    devices()  # passes on what was logged until now
    assert len(freed) == 1, (cycle, freed)
    freed.clear()
print("done")
"""
    assert child(code, tiny_model(kind)) == "done\n"


@pytest.mark.parametrize(
    "how", ["", "sys.exit(0)", "del model", "gc.disable()", "me = [ctx, model]; me.append(me)"]
)
def test_the_interpreter_ends_with_everything_open(tiny_model: TinyModelFactory, how: str) -> None:
    code = f"""
model = Model(path)
ctx = Context(model, n_ctx=256, n_threads=2)
row, vocab, memory, template = feed(ctx), model.vocab, ctx.memory, ChatTemplate(model)
chain = SamplerChain().grammar(vocab, 'root ::= "a"').greedy()
batch = Batch(5)
print(len(row))
sys.modules["keep"] = [ctx, row, chain]
{how}
"""
    assert child(code, tiny_model("llama")) == "548\n"


@pytest.mark.parametrize("again", range(4))  # what goes wrong here goes wrong one time in four
def test_the_interpreter_ends_while_a_thread_decodes(tiny_model: TinyModelFactory, again: int) -> None:
    code = """
model = Model(path)
ctx = Context(model, n_ctx=8192, n_batch=8192, n_ubatch=256, n_threads=1)
batch = Batch(8192)
batch.add_sequence(np.full(8192, 300))


def work():
    try:
        ctx.decode(batch)
    except errors.DecodeAbortedError:
        pass


threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
print("leaving")
"""
    assert child(code, tiny_model("llama", n_ctx_train=16384, n_layer=12)) == "leaving\n"


# ---------------------------------------------------------------------------------------------------- bad moments


def test_a_model_is_not_closed_under_a_context_in_the_making(tiny_model: TinyModelFactory) -> None:
    code = """
ends = []
for delay in (0, 0.001, 0.002, 0.005, 0.01):
    model = Model(path)

    def work():
        try:
            feed(Context(model, n_ctx=2048, n_threads=1))
            ends.append("made")
        except (errors.ClosedError, errors.ContextBusyError):
            ends.append("closed")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(delay)
    while thread.is_alive():
        try:
            model.close()
        except errors.ContextBusyError:
            time.sleep(0.0005)
    thread.join()
print(len(ends))
"""
    assert child(code, tiny_model("llama", n_ctx_train=16384, n_layer=12)) == "5\n"


def test_arguments_that_close_what_they_are_passed_to(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    code = """
class Closing:
    def __init__(self, model):
        self.model = model

    def __index__(self):
        self.model.close()
        return 1

    __bool__ = __index__


def messages(model):
    model.close()
    yield {"role": "user", "content": "a"}


for call in (
    lambda m: m.vocab.token_to_piece(300, lstrip=Closing(m)),
    lambda m: m.vocab.token_to_piece(Closing(m)),
    lambda m: m.vocab.is_eog(Closing(m)),
    lambda m: m.vocab.tokenize("a", Closing(m)),
    lambda m: m.vocab.detokenize([1], Closing(m)),
    lambda m: Context(m, n_ctx=256, n_seq_max=Closing(m)),
    lambda m: Context(m, n_ctx=Closing(m)),
    lambda m: ChatTemplate(m).apply(messages(m)),
    lambda m: feed(Context(m, n_ctx=256, n_threads=1)) is Context(m, n_ctx=256).memory.seq_rm(Closing(m)),
):
    try:
        call(Model(path))
    except (errors.ClosedError, errors.ContextBusyError, errors.ArgumentTypeError, errors.IndexOutOfRangeError):
        continue
    print("no error")
"""
    assert child(code, tiny_model("llama")) == ""
