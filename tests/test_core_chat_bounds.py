"""Templates that recurse, loop or grow without end: typed errors, in child processes, which must live on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import ChatTemplate, Model

USER = {"role": "user", "content": "What is 2+2?"}

MACROS = "{% macro a(x) %}{{ b(x + 1) }}{% endmacro %}{% macro b(x) %}{{ a(x) }}{% endmacro %}"
CALLER = "{% macro m() %}{{ caller() }}{% endmacro %}{% macro z() %}{% call m() %}{{ z() }}{% endcall %}{% endmacro %}"
LIST = "{% set l = [] %}{% set _ = l.append(l) %}"
SPACE = "{% set ns = namespace() %}{% set ns.me = ns %}"
GROW = (
    "{% set ns = namespace(s='x' * 40) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"
)
NEST = (
    "{% set ns = namespace(s=[]) %}{% for i in range(1000) %}{% for j in range(1000) %}"
    "{% set ns.s = STEP %}{% endfor %}{% endfor %}x"
)

STACK, MEMORY, TIME = "recurses without end", "of memory", "it takes more than"
HOSTILE = {
    "macro": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", STACK),
    "macros": (MACROS + "{{ a(1) }}", STACK),
    "caller": (CALLER + "{{ z() }}", STACK),
    "list": (LIST + "{{ l }}", STACK),
    "list to json": (LIST + "{{ l|tojson }}", STACK),
    "list to text": (LIST + "{{ l|string }}", STACK),
    "list and text": (LIST + "{{ 'a' ~ l }}", STACK),
    "namespace": (SPACE + "{{ ns|tojson }}", STACK),
    "namespace to text": (SPACE + "{{ ns|string }}", STACK),
    "sum": ("{{ " + "1+" * 60_000 + "1 }}", STACK),
    "minus": ("{{ " + "- " * 60_000 + "1 }}", STACK),
    "not": ("{{ " + "not " * 30_000 + "1 }}", STACK),
    "filters": ("{{ 'a'" + "|e" * 60_000 + " }}", STACK),
    "members": ("{{ messages" + ".a" * 60_000 + " }}", STACK),
    "calls": ("{{ messages" + "()" * 60_000 + " }}", STACK),
    "indices": ("{{ 'a'" + "[0]" * 40_000 + " }}", STACK),
    "range": ("{% for i in range(1000000000) %}x{% endfor %}", MEMORY),
    "repetition": ("{{ 'x' * 1000000000 }}", MEMORY),
    "doubling": (GROW.replace("STEP", "ns.s ~ ns.s"), MEMORY),
    "doubling by join": (GROW.replace("STEP", "[ns.s, ns.s]|join"), MEMORY),
    "doubling a list": (GROW.replace("STEP", "[ns.s] + [ns.s]").replace("{{ ns.s }}", "{{ ns.s|tojson }}"), MEMORY),
    "indent": ("{{ 'a\nb'|indent(1000000000) }}", MEMORY),
    "json indent": ("{{ [1, [2]]|tojson(indent=1000000000) }}", MEMORY),
    "loops": ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", TIME),
    "replace": ("{{ ['ab' * 1000000]|join|replace('a', 'ccc') }}", TIME),
    "division": ("{{ 3 is divisibleby(0) }}", "no division by zero"),
    "division in a filter": ("{{ [3]|select('divisibleby', 0)|list }}", "no division by zero"),
    "negative indent": ("{{ 'a\nb'|indent(-1) }}", "Error"),
}  # fmt: skip
# bounded all by themselves
DEEP = {
    "conditions": "{{ " + "0 if 0 else " * 9_000 + "1 }}",
    "elif": "{% if 0 %}" + "{% elif 0 %}x" * 9_000 + "{% endif %}",
    "long filters": "{{ 'a'" + "|string" * 5_000 + " }}",
    "smallest integer": "{{ (-9223372036854775807 - 1) is divisibleby(-1) }}",
}

CHILD = """
import json, sys, threading, time
from llama_runner import errors
from llama_runner.core import ChatTemplate, Model

def run():
    model = Model(sys.argv[1])
    for name, source in json.load(sys.stdin).items():
        print(json.dumps(["start", name]), flush=True)
        try:
            template = ChatTemplate(model, source, timeout=float(sys.argv[3]))
            result = ["done", template.apply([{"role": "user", "content": "hi"}])[:20]]
        except errors.InvalidArgumentError as error:
            result = ["refused", str(error)]
        print(json.dumps([name, *result]), flush=True)

if sys.argv[2] == "thread":
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


def run_child(model: Path, where: str, sources: dict[str, str], timeout: float = 1.0) -> dict[str, list[str]]:
    """Each template's fate, in one child process, on its main thread or on one with a small stack."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), where, str(timeout)],
        input=json.dumps(sources), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"killed by {lines[-1:]}: {child.returncode} {child.stderr[-500:]}"
    return {line[0]: line[1:] for line in lines if line[0] != "start"}


@pytest.mark.parametrize("where", ["main", "thread"])
def test_hostile_templates(tiny_model: TinyModelFactory, where: str) -> None:
    found = run_child(
        tiny_model("llama"), where, {name: source for name, (source, _) in HOSTILE.items()}, timeout=0.5
    )
    assert found.keys() == HOSTILE.keys()
    wrong = {
        name: found[name]
        for name, (_, reason) in HOSTILE.items()
        if found[name][0] != "refused" or reason not in found[name][1]
    }
    # a slow machine may run into the time bound before the other ones
    assert all(fate == "refused" and TIME in text for fate, text in wrong.values()), wrong


@pytest.mark.parametrize("where", ["main", "thread"])
def test_deep_templates(tiny_model: TinyModelFactory, where: str) -> None:
    found = run_child(tiny_model("llama"), where, DEEP, timeout=30)
    assert {name: fate[0] for name, fate in found.items()} == dict.fromkeys(DEEP, "done")


@pytest.mark.parametrize("step", ["{'a': ns.s}", "(1, ns.s)"])
def test_deep_values_are_taken_apart(tiny_model: TinyModelFactory, step: str) -> None:
    # as many lists in one another as the memory holds: their destructors recurse, and cannot be stopped
    found = run_child(tiny_model("llama"), "thread", {"nest": NEST.replace("STEP", step)}, timeout=60)
    assert found["nest"][0] == "refused"
    assert MEMORY in found["nest"][1]


def test_the_timeout_is_kept(tiny_model: TinyModelFactory) -> None:
    model = Model(tiny_model("llama"))
    source = HOSTILE["loops"][0]
    started = time.process_time()
    with pytest.raises(errors.InvalidArgumentError, match="more than 50 ms"):
        ChatTemplate(model, source, timeout=0.05)
    assert time.process_time() - started < 1
    # the conditions that hold while the template is examined and while it is applied are the same
    late = ChatTemplate(model, "{% if messages|length > 5 %}" + source + "{% endif %}", timeout=0.05)
    assert late.apply([USER]) == ""
    with pytest.raises(errors.InvalidArgumentError, match="more than 50 ms"):
        late.apply([USER] * 6)
    assert late.apply([USER]) == ""


@pytest.mark.parametrize("timeout", ["1", None, True])
def test_timeouts_of_a_wrong_type(tiny_model: TinyModelFactory, timeout: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="timeout"):
        ChatTemplate(Model(tiny_model("llama")), "x", timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_timeouts_out_of_range(tiny_model: TinyModelFactory, timeout: float) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="timeout"):
        ChatTemplate(Model(tiny_model("llama")), "x", timeout=timeout)


def test_memory_grows_with_what_the_messages_need(tiny_model: TinyModelFactory) -> None:
    template = ChatTemplate(Model(tiny_model("llama")), timeout=60)
    message = {"role": "user", "content": "x" * 4_000_000}
    assert len(template.apply([message] * 3)) > 12_000_000
    with pytest.raises(errors.InvalidArgumentError, match="at most 16777216"):
        template.apply([message] * 5)


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a":' * 100_000, "[" * 1000 + "]" * 1000])
def test_arguments_that_nest_without_end(tiny_model: TinyModelFactory, arguments: str) -> None:
    template = ChatTemplate(Model(tiny_model("llama")))
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(errors.InvalidArgumentError, match="nest"):
        template.apply([USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
    text = json.dumps({"text": "[" * 100_000})
    call = {"type": "function", "function": {"name": "f", "arguments": text}}
    assert template.apply([USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
