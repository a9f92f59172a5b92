"""Nothing that a Python program passes ends the process: every method with bad values, in a process of its own.

A bad value may be refused by an error of ours, or by the TypeError of a call that does not fit; some are harmless and
accepted. Afterwards the objects still work. And what takes long lets other Python threads run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import (
    Batch,
    ChatParser,
    ChatTemplate,
    Constraint,
    ConstraintVocab,
    Context,
    Detokenizer,
    Memory,
    Model,
    SamplerChain,
    Vocab,
)

DRIVER = '''
import json, sys
import numpy as np
from llama_runner import errors
from llama_runner.core import *

paths = json.loads(sys.argv[1])
BAD = [
    None, True, False, -1, 0, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**31), -(2**63), 10**40, 1.5, -0.0,
    float("nan"), float("inf"), 1e300, 1j, "", "x", "a\\0b", "\\ud800", "x" * 100_000, b"", b"x", b"\\xff", [], [None],
    [-1], [2**70],
    [[1]], ["\\ud800"], [1] * 100_000, (), {}, {"a": 1}, {-1: 2}, {1: None}, set(), object(), len, int, range(10**6),
    np.zeros(0), np.array([1, 2]), np.zeros((2, 2), np.float32), np.float32("nan"), np.int64(-5), np.array("x"),
    iter([1]),
]
violations = []
calls = accepted = 0


def attempt(label, function, arguments, options):
    """Call; note what is no error of ours. The label tells which call it was."""
    global calls, accepted
    calls += 1
    print(label, file=sys.stderr, flush=True)  # the last line names the call that ended the process
    try:
        function(*arguments, **options)
        accepted += 1
    except (errors.LlamaRunnerError, TypeError):
        pass
    except Exception as error:
        violations.append(f"{label}: {type(error).__name__}: {error}"[:200])


def sweep(label, function, arguments=(), options=None, between=None):
    """Each argument in turn gets each bad value, the others good ones; and too few and too many of them."""
    options = options or {}
    for i in range(len(arguments)):
        for n, bad in enumerate(BAD):
            attempt(f"{label} argument {i} = BAD[{n}] {bad!r:.40}", function,
                    (*arguments[:i], bad, *arguments[i + 1:]), {})
            if between:
                between()
    for name, good in options.items():
        for n, bad in enumerate(BAD):
            attempt(f"{label} {name} = BAD[{n}] {bad!r:.40}", function, arguments, {**options, name: bad})
            if between:
                between()
    attempt(f"{label} too many", function, (*arguments, 1, 2, 3, 4, 5, 6, 7, 8, 9), {})
    attempt(f"{label} unknown", function, arguments, {"no_such_option": 1})
    if between:
        between()


def tokens(n=8):
    return np.arange(n) % 100 + 100


def usable(ctx):
    """A decode still works and gives numbers that differ."""
    ctx.memory.clear()
    batch = Batch(8)
    batch.add_sequence(tokens())
    ctx.decode(batch)
    row = ctx.logits()
    assert np.isfinite(row).all()
    assert len(set(row.tolist())) > 100


def report(ctx):
    usable(ctx)
    print(json.dumps({"violations": violations, "calls": calls, "accepted": accepted}))


model = Model(paths["llama"])
vocab = model.vocab
ctx = Context(model, n_ctx=256, n_seq_max=2, n_threads=1)
'''

GROUPS = {
    "model": """
sweep("Model", Model, (paths["llama"],), {
    "n_gpu_layers": 0, "vocab_only": False, "use_mmap": True, "use_mlock": False, "check_tensors": False,
    "split_mode": "layer", "main_gpu": 0, "progress": None})
sweep("meta", model.meta, ("a",))
sweep("chat_template", model.chat_template, ("a",))
sweep("__init__ again", model.__init__, (paths["llama"],))
sweep("close", Model(paths["llama"]).close)
sweep("save", model.save, ("/dev/null",), {"overwrite": False})
""",
    "vocab": """
sweep("tokenize", vocab.tokenize, ("a", True, False), {"add_special": True, "parse_special": True})
sweep("detokenize", vocab.detokenize, ([300], False, False))
sweep("detokenize_bytes", vocab.detokenize_bytes, ([300],), {"remove_special": False, "unparse_special": False})
sweep("token_to_piece", vocab.token_to_piece, (300, False, 0))
sweep("tokenize_many", vocab.tokenize_many, (["a"],),
      {"add_special": True, "parse_special": True, "n_threads": 2, "flat": True})
sweep("detokenize_many", vocab.detokenize_many, ([[300]],),
      {"remove_special": False, "unparse_special": False, "n_threads": 2})
sweep("detokenize_bytes_many", vocab.detokenize_bytes_many, ([[300]], False, False, 2))
sweep("pieces", vocab.pieces, (False, False))
stream = Detokenizer(vocab)
sweep("Detokenizer", Detokenizer, (vocab,), {"special": True})
sweep("push", stream.push, (300,))
sweep("push_many", stream.push_many, ([300],))
sweep("flush", stream.flush)
assert isinstance(stream.clone().flush(), str)
for name in ("is_eog", "is_control", "text", "score", "attr"):
    sweep(name, getattr(vocab, name), (300,))
sweep("Vocab", Vocab, (model,))
""",
    "context": """
options = dict(n_ctx=256, n_batch=64, n_ubatch=64, n_seq_max=1, n_threads=1, n_threads_batch=1, embeddings=False,
    pooling=None, flash_attn=None, type_k="f16", type_v="f16", offload_kqv=True, op_offload=True, swa_full=True,
    kv_unified=True, rope_freq_base=None, rope_freq_scale=None, n_outputs_max=None, n_outputs_max_per_seq=1,
    attention_type=None, rope_scaling_type="yarn", yarn_ext_factor=None, yarn_attn_factor=None, yarn_beta_fast=None,
    yarn_beta_slow=None, yarn_orig_ctx=None, perf=True)
sweep("Context", Context, (model,), options)
for kind in ("swa", "hybrid"):
    sweep("Context " + kind, Context, (Model(paths[kind]),), {"n_ctx": 256, "n_seq_max": 1, "n_batch": 64})
sweep("__init__ again", ctx.__init__, (model,))
one = Context(model, n_ctx=256, n_threads=1)
sweep("set_n_threads", one.set_n_threads, (1, 1))
sweep("set_embeddings", one.set_embeddings, (True,))
sweep("causal_attn", lambda bad: setattr(one, "causal_attn", bad), (True,))
for name in ("synchronize", "perf", "perf_reset", "logits_matrix", "embeddings_matrix"):
    sweep(name, getattr(one, name))
for name in ("logits", "embeddings", "embeddings_seq", "sampled_token", "sampled_logits",
             "sampled_probs", "sampled_candidates"):
    sweep(name, getattr(ctx, name), (0,))
import os, shutil, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)  # some bad values are file names
at = os.path.join(folder, "state")
partial = {"tokens": None, "partial": False}
for name, arguments, extra in (
        ("state_seq_get", (0,), {**partial, "on_device": False}), ("state_seq_size", (0,), partial),
        ("state_seq_get_into", (0, bytearray(1 << 20)), partial), ("state_seq_save", (at, 0), partial),
        ("state_seq_load", (at, 0), {}), ("state_seq_set", (0, ctx.state_seq_get(0)), {}),
        ("state_size", (), {"tokens": None}), ("state_get", (), {"tokens": None}),
        ("state_get_into", (bytearray(1 << 20),), {"tokens": None}), ("state_save", (at,), {"tokens": None}),
        ("state_load", (at,), {}), ("state_set", (ctx.state_get(),), {})):
    sweep(name, getattr(ctx, name), arguments, extra)
os.chdir("/")
shutil.rmtree(folder)
sweep("set_sampler", lambda *given: (ctx.set_sampler(*given), usable(ctx)), (1, None))
batch = Batch(1)
batch.add(300, 0, 0, True)
sweep("decode", ctx.decode, (batch,), {"timeout": 5}, ctx.memory.clear)
sweep("encode", ctx.encode, (batch,), {"timeout": 5})
sweep("abort", ctx.abort)
sweep("__exit__", one.__exit__, (None, None, None))
""",
    "adapters": """
from llama_runner.core import ControlVector, LoraAdapter

sweep("LoraAdapter", LoraAdapter, (model, paths["llama"]))
sweep("set_adapters", ctx.set_adapters, ({},))
vector = ControlVector(np.ones((1, 64)))
sweep("ControlVector", ControlVector, (np.ones((1, 64)),))
sweep("load", ControlVector.load, (paths["llama"],))
sweep("scaled", vector.scaled, (2.0,), None, lambda: usable(ctx))
sweep("set_control_vector", ctx.set_control_vector, (vector,), {"il_start": 1, "il_end": 1}, lambda: usable(ctx))
ctx.set_control_vector(None)
""",
    "batch": """
sweep("Batch", Batch, (4,))
batch = Batch(64)


def decode_and_clear():
    if len(batch):
        attempt("decode of it", ctx.decode, (batch,), {})
    batch.clear()
    ctx.memory.clear()


sweep("add", batch.add, (300, 0, 0, False), {}, decode_and_clear)
sweep("add_sequence", batch.add_sequence, ([300, 301], 0, 0, "last"), {}, decode_and_clear)
sweep("clear", batch.clear)
wants = np.ones(2, bool)
for name in ("add_rows", "set"):
    sweep(name, getattr(batch, name), ([300, 301], [0, 1], [[0, 1], [0, -1]], wants), {}, decode_and_clear)
sweep("from_arrays", Batch.from_arrays, ([300, 301], [0, 1], [[0, 1], [0, -1]], wants))
sweep("n_embd", lambda bad: Batch(4, n_embd=bad), (64,))
batch = Batch(64, n_embd=64)
sweep("add_rows of embeddings", batch.add_rows, (np.ones((2, 64)), [0, 1], 0, wants), {}, decode_and_clear)
sweep("__init__ again", batch.__init__, (4,))
""",
    "scores": """
from llama_runner.core import argmax, log_softmax, logprobs, top_logprobs
rows = np.zeros((3, 8), np.float32)
sweep("log_softmax", log_softmax, (rows, np.zeros((3, 8), np.float32)), {"n_threads": 2})
sweep("logprobs", logprobs, (rows, [0, 1, 2]), {"n_threads": 2})
sweep("top_logprobs", top_logprobs, (rows, 2), {"n_threads": 2})
sweep("argmax", argmax, (rows,), {"n_threads": 2})
""",
    "memory": """
for kind in ("llama", "swa", "mamba", "hybrid"):
    other = Context(Model(paths[kind]), n_ctx=256, n_seq_max=2, n_threads=1)
    memory = other.memory
    for name, arguments in {"seq_rm": (2, 5), "seq_cp": (1, 0, 5), "seq_keep": (), "seq_add": (2, 5, 1),
                            "seq_div": (2, 5, 2), "seq_pos_min": (), "seq_pos_max": ()}.items():
        for seq in (0, 1):
            usable(other)
            extra = {"shared": False} if name in ("seq_add", "seq_div") else {}
            sweep(f"{kind} {name}", getattr(memory, name), (seq, *arguments), extra)
            sweep("cells", memory.cells)
            batch = Batch(1)
            batch.add(300, max(0, memory.seq_pos_max(0) + 1), 0, True)
            attempt("decode after " + name, other.decode, (batch,), {})
    sweep("clear", memory.clear, (False,))
    usable(other)
sweep("Memory", Memory, (ctx,))
""",
    "sampler": """
flat = np.zeros(len(vocab), np.float32)
for name, arguments in {"greedy": (), "dist": (1,), "mirostat_v2": (5.0, 0.1, 1), "top_k": (3,), "top_p": (0.9, 1),
        "min_p": (0.1, 1), "typical": (0.9, 1), "top_n_sigma": (1.0,), "xtc": (0.5, 0.1, 1, 1), "temp": (1.0,),
        "temp_ext": (1.0, 0.1, 1.0), "penalties": (vocab, 64, 1.0, 0.0, 0.0), "logit_bias": (vocab, {1: 1.0}),
        "grammar": (vocab, 'root ::= "a"', "root"), "mirostat": (vocab, 5.0, 0.1, 100, 1), "adaptive_p": (0.5, 0.9, 1),
        "dry": (vocab, 1.0, 1.75, 2, 64, ["a"])}.items():
    def build(*args, name=name, **options):
        # what is accepted must also work, and stay in range
        chain = getattr(SamplerChain(), name)(*args, **options).dist(1)
        chain.accept(chain.apply(flat))
        chain.accept(chain.sample(ctx) % len(vocab)) if name != "grammar" else None
        chain.clone().reset()
    usable(ctx)
    sweep(name, build, arguments)
sweep("infill", lambda *given: SamplerChain().top_k(9).infill(*given).dist(1).apply(flat), (vocab,))
sweep("grammar_lazy", SamplerChain().grammar_lazy, (vocab, 'root ::= "a"', "root"), {"patterns": ["a"], "tokens": [5]})
made = Constraint.choices(vocab, ["ab", "cd"])
sweep("constraint", lambda *given: SamplerChain().constraint(*given).dist(1).apply(flat), (made,))
vocabulary = ConstraintVocab(vocab)
sweep("ConstraintVocab", ConstraintVocab, (vocab,))
sweep("piece", vocabulary.piece, (5,))
sweep("tokenize", vocabulary.tokenize, ("ab",))
for name, text in {"json_schema": {"type": "integer"}, "regex": "a+", "choices": ["a", "b"], "lark": 'start: "a"',
                   "gbnf": 'root ::= "a"'}.items():
    extra = {"limits": None, "whitespace": "line"} if name == "json_schema" else {"limits": None}
    sweep(name, lambda *given, name=name, **options: getattr(Constraint, name)(*given, **options).compute_mask(),
          (vocab, text), extra)
for name, arguments in {"forced_tokens": (4,), "consume": (300,), "rollback": (0,)}.items():
    sweep(name, getattr(made, name), arguments)
for name in ("compute_mask", "reset", "clone"):
    sweep(name, getattr(made, name))
sweep("Constraint", Constraint)
sweep("python", lambda *given, **options: SamplerChain().python(*given, **options).dist(1).clone().apply(flat),
      (lambda logits, tokens: None,), {"clone": lambda function: function})
for n, bad in enumerate(BAD):
    attempt(f"python returns BAD[{n}]", SamplerChain().python(lambda *given: bad).greedy().apply, (flat,), {})
sweep("remove", lambda i: SamplerChain().top_k(3).dist(1).remove(i), (0,))
sweep("copy_from", SamplerChain().dist(1).copy_from, (SamplerChain().dist(1),))
sweep("perf_reset", SamplerChain().perf_reset)
usable(ctx)
sweep("sample_rows", sample_rows, (ctx, [SamplerChain().dist(1)], [-1]), {"processor": None, "n_threads": 1})
sweep("apply_rows", apply_rows, (flat[None], [SamplerChain().dist(1)]), {"n_threads": 1})
chain = SamplerChain().penalties(vocab, presence=1.0).logit_bias(vocab, {5: 1.0}).dist(1)
sweep("sample", chain.sample, (ctx, -1))
sweep("apply", chain.apply, (flat,))
sweep("accept", chain.accept, (1,))
sweep("SamplerChain", SamplerChain)
special = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0, 1e-45, -1], np.float32)
rng = np.random.default_rng(0)
for size in (1, 2, 127, 129, 548, 5000, 200_000):
    for row in (rng.choice(special, size), np.full(size, np.nan, np.float32), np.full(size, np.inf, np.float32)):
        for name, arguments in {"greedy": (), "dist": (1,), "mirostat_v2": (), "top_k": (40,), "top_p": (0.9,),
                "min_p": (0.1,), "typical": (0.9,), "top_n_sigma": (1.0,), "xtc": (1.0, 0.0), "temp": (0.5,),
                "temp_ext": (1.0, 0.5), "penalties": (vocab,), "grammar": (vocab, "root ::= [a-z]+")}.items():
            chain = getattr(SamplerChain(), name)(*arguments)
            attempt(f"{name} on {size} odd numbers", (chain if name == "greedy" else chain.dist(1)).apply, (row,), {})
""",
    "chat": """
message = {"role": "user", "content": "a"}
template = ChatTemplate(model)
sweep("ChatTemplate", ChatTemplate, (model, "x"))
sweep("apply", template.apply, ([message],),
      {"tools": None, "add_generation_prompt": True, "enable_thinking": True, "x": 1})
for key in ("role", "content", "tool_calls", "name", "reasoning_content", "tool_call_id"):
    sweep("message " + key, lambda bad: template.apply([{**message, key: bad}]), ("a",))
assert template.apply([message]).startswith("<|im_start|>user")
sweep("render", template.render, ([message],),
      {"tools": None, "tool_choice": "auto", "parallel_tool_calls": True, "json_schema": {}, "grammar": None,
       "reasoning_format": "auto", "enable_thinking": True, "add_generation_prompt": True,
       "continue_final_message": False, "template_kwargs": {}})
prompt = template.render([message])
parser = prompt.parser()
sweep("ChatParser", ChatParser, (prompt,), {"timeout": 1.0})
sweep("parse", parser.parse, ("a",), {"partial": False})
sweep("push", parser.push, ("a",))
sweep("finish", parser.finish)
sweep("json_schema_to_grammar", json_schema_to_grammar, ({},), {"ignore_unsupported": False, "timeout": 1.0})
""",
}


def run(tiny_model: TinyModelFactory, code: str, timeout: float) -> dict:
    """What the driver reports of a group of attacks."""
    paths = json.dumps({kind: str(tiny_model(kind)) for kind in ("llama", "swa", "mamba", "hybrid")})
    head = "import os, tempfile\nos.chdir(tempfile.mkdtemp())\n"  # where a call that takes a path writes "x"
    command = [sys.executable, "-X", "faulthandler", "-c", f"{head}{DRIVER}{code}\nreport(ctx)\n", paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("group", GROUPS)
def test_bad_values_raise_typed_errors_and_leave_all_usable(tiny_model: TinyModelFactory, group: str) -> None:
    result = run(tiny_model, GROUPS[group], 60)
    assert result["violations"] == []
    assert result["calls"] > 100
    assert result["accepted"] < result["calls"] / 2


GRAMMARS = {
    "backwards": """'root ::= "a"{5,2}'""",
    "repeated": """'root ::= "a"{1000000}'""",
    "huge": """'root ::= "a"{99999999999999999999}'""",
    "stars": """'root ::= ("a"*)*'""",
    "nested": """"root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000""",
    "chained": """"root ::= a0\\n" + "".join(f"a{i} ::= a{i + 1}\\n" for i in range(100_000)) + 'a100000 ::= "a"'""",
    "unclosed": """'root ::= "' + "a" * 1_000_000""",
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_hostile_grammars(tiny_model: TinyModelFactory, name: str) -> None:
    code = f"""
grammar = {GRAMMARS[name]}
flat = np.zeros(len(vocab), np.float32)
attempt("grammar", lambda: SamplerChain().grammar(vocab, grammar).greedy().apply(flat), (), {{}})
"""
    if sys.platform == "linux":  # one of them asks for memory without end
        code = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n" + code
    assert run(tiny_model, code, 20)["violations"] == []


TEMPLATES = {
    "numbers": """"{{ 1/0 }}", "{{ 1 % 0 }}", "{{ 9223372036854775807 + 1 }}", "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ (-9223372036854775807 - 1) % -1 }}", "{{ range(5, 0, 0) }}", "{{ none + 1 }}", "{{ 1e999|int }}" """,
    "items": """"{{ messages[100] }}", "{{ messages[-100] }}", "{{ 'abc'[5] }}", "{{ [][0] }}", "{{ [1, 2, 3][::0] }}",
        "{{ [1][9999999999999] }}", "{{ []|first }}", "{{ []|max }}", "{{ [1, 'a']|sort }}", "{{ x.y.z }}" """,
    "strings": """"{{ 'a'.split('') }}", "{{ 'abc'.replace('', 'x') }}", "{{ {}|tojson(indent=-1) }}", "{{ '%s' % 5 }}",
        "{{ strftime_now('%') }}", "{{ 'abc'[2:1] }}", "{{ ''|first }}" """,
    "nested": """"{{" + "(" * 100_000 + "1" + ")" * 100_000 + "}}",
        "{% if true %}" * 50_000 + "{% endif %}" * 50_000, "{{" + "[" * 100_000 + "]" * 100_000 + "}}",
        "{{" + "not " * 100_000 + "1 }}", "{{ 1" + " + 1" * 100_000 + "}}" """,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_templates(tiny_model: TinyModelFactory, name: str) -> None:
    code = f"""
message = {{"role": "user", "content": "a"}}
for source in ({TEMPLATES[name]}):
    attempt(f"template {{source:.50}}", lambda: ChatTemplate(model, source).apply([message]), (), {{}})
assert ChatTemplate(model).apply([message]).startswith("<|im_start|>user")
"""
    assert run(tiny_model, code, 20)["violations"] == []


def test_every_public_method_is_attacked() -> None:
    text = "".join(GROUPS.values())
    harmless = {"reset", "clone"}  # take no argument, and are called there
    kinds = (
        Model,
        Vocab,
        Context,
        Batch,
        Memory,
        SamplerChain,
        ChatTemplate,
        ChatParser,
        Detokenizer,
        Constraint,
    )
    for kind in (*kinds, ConstraintVocab):
        assert kind.__name__ in text
        for name in dir(kind):
            if not name.startswith("_") and callable(getattr(kind, name)) and name not in harmless:
                assert f'"{name}"' in text, f"{kind.__name__}.{name}"


# ---------------------------------------------------------------------------------------------------- the GIL


@contextmanager
def ticking() -> Iterator[Callable[[], int]]:
    """A thread that counts the milliseconds in which it gets the GIL: one at most while another holds it."""
    count = 0
    stop = threading.Event()

    def run() -> None:
        nonlocal count
        while not stop.is_set():
            time.sleep(0.001)
            count += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: count
    finally:
        stop.set()
        thread.join()


def ticks_during(call: Callable[[], object]) -> int:
    with ticking() as count:
        before = count()
        call()
        return count() - before


def most_ticks(call: Callable[[], object]) -> int:
    """Of three times: a busy machine may give the other thread no time."""
    return max(ticks_during(call) for _ in range(3))


def test_the_counter_stands_still_under_the_gil() -> None:
    # what the tests below would see if a call kept the GIL: one call into C without a release
    numbers = list(range(3_000_000))[::-1]
    # before and after it the interpreter may turn to the other thread, on a busy machine for longer
    assert min(ticks_during(lambda: (sorted(numbers), None)[1]) for _ in range(5)) <= 3


def test_decoding_lets_other_threads_run(tiny_model: TinyModelFactory) -> None:
    with Context(Model(tiny_model("llama", n_ctx_train=16384, n_layer=12)), n_ctx=4096, n_threads=1) as ctx:
        batch = Batch(2048)
        batch.add_sequence(np.full(2048, 300))
        assert most_ticks(lambda: (ctx.memory.clear(), ctx.decode(batch))) > 50


def test_tokenizing_lets_other_threads_run(tiny_model: TinyModelFactory) -> None:
    vocab = Model(tiny_model("llama")).vocab
    text = "the world once upon a time " * 100_000
    assert most_ticks(lambda: vocab.tokenize(text)) > 50
    ids = np.full(20_000_000, 300, np.int32)
    assert most_ticks(lambda: vocab.detokenize_bytes(ids)) > 50


def test_sampling_lets_other_threads_run() -> None:
    logits = np.random.default_rng(0).normal(size=20_000_000).astype(np.float32)
    chain = SamplerChain().top_k(1000).top_p(0.9).temp(0.8).dist(1)
    assert most_ticks(lambda: chain.apply(logits)) > 50


def test_saving_and_restoring_lets_other_threads_run(tiny_model: TinyModelFactory) -> None:
    # 12 layers of 4096 positions in full precision are 50 MB
    path = tiny_model("llama", n_ctx_train=16384, n_layer=12)
    with Context(Model(path), n_ctx=4096, n_batch=4096, type_k="f32", type_v="f32", n_threads=1) as ctx:
        batch = Batch(4096)
        batch.add_sequence(np.full(4096, 300))
        ctx.decode(batch)
        blobs: list[bytes] = []
        assert most_ticks(lambda: blobs.append(ctx.state_seq_get(0))) > 20
        assert most_ticks(lambda: ctx.state_seq_set(0, blobs[0])) > 20


@pytest.mark.real_model
def test_loading_lets_other_threads_run(smollm2: Path) -> None:
    assert most_ticks(lambda: Model(smollm2, check_tensors=True, use_mmap=False)) > 20


def test_a_chain_is_for_one_thread(tiny_model: TinyModelFactory) -> None:
    chain = SamplerChain().top_k(1000).greedy()
    logits = np.random.default_rng(0).normal(size=20_000_000).astype(np.float32)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(chain.apply(logits)))
    thread.start()
    refused = 0
    while thread.is_alive():
        try:
            chain.clone()
        except errors.ContextBusyError:
            refused += 1
            time.sleep(0.001)
    thread.join()
    assert refused > 5
    assert results == [int(logits.argmax())]
