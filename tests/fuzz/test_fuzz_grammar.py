"""Random and mutated GBNF grammars: an error of ours or a chain that works, in little time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures_models import TinyModelFactory

SECONDS = 30
N_INPUTS = 20_000

# in a process of its own, with a bound on its memory; each input is written down before it is tried
DRIVER = r"""
import json, random, sys, time
from pathlib import Path
import numpy as np
from llama_runner import errors
from llama_runner.core import Model, SamplerChain

path, folder, seed, seconds, most, last = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
if sys.platform == "linux":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
vocab = Model(path).vocab
rng = random.Random(int(seed))
flat = np.random.default_rng(int(seed)).normal(size=len(vocab)).astype(np.float32)
seeds = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.gbnf"))]
seeds += ['root ::= a a?\na ::= "x" | "" ', 'root ::= "[" item ("," item)* "]"\nitem ::= [0-9]{1,3} | root',
          'root ::= ("a" | "b"){2,5} [^"\\]]+ .{3}', 'root ::= <[5]> !<[7]> "z"', 'root ::= s\ns ::= "a" s "b" | ""']
PIECES = ['"a"', '"', "[a-z]", "[^", "]", "(", ")", "*", "+", "?", "{2}", "{5,2}", "{0,}", "{2000}", "{1,3}", "{",
          "}", ",", "|", "::=", "\n", "root", "a", "b", "root ::= ", "a ::= ", "b ::= ", ".", "<[3]>", "!<[9]>",
          "<", ">", "\\", "\\x4", "\\u00e9", "\\U0010ffff", "#", "# x\r", "-", " ", "\t", "99999999999999999999", "é",
          "𝄞", '""', "[]", "()", "(a)", "(b?)*", '"x"?', "a b", "root root"]


def made():
    parts = [rng.choice(PIECES) for _ in range(rng.randint(1, 12))]
    return "root ::= " + " ".join(parts) + rng.choice(["", '\na ::= "x" | "y" a\nb ::= "z"?'])


def mutated():
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, 6)):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        j = min(j, i + rng.choice([0, 1, 3, 30]))
        other = rng.choice([rng.choice(PIECES), text[i:j] * rng.choice([0, 2, 20]), chr(rng.randint(1, 300))])
        text = text[:i] + other + text[j:]
    return text


def nested():
    n = rng.choice([1, 5, 30, 150, 250])
    return "root ::= " + "".join(rng.choice(["(", '("a" ', '("" | ']) for _ in range(n)) + '"x"' + "".join(
        rng.choice([")", ")?", ")*", ")+", "){2}", "){0,3}"]) for _ in range(n))


def linked():
    n = rng.choice([2, 5, 20, 60, 400])
    form = rng.choice(["a{} ::= a{} a{}\n", 'a{} ::= a{}? a{}\n', 'a{} ::= "x"? a{} | a{} "y"\n',
                       'a{} ::= "x" a{} | "" a{}\n'])
    bottom = rng.choice(['"x" | ""', '"x"', "[a-z]*", "a0", '"x"{0,50}'])
    return "root ::= a0\n" + "".join(form.format(i, i + 1, i + 1) for i in range(n)) + f"a{n} ::= {bottom}"


def tried(text):
    chain = SamplerChain().grammar(vocab, text).top_k(20).dist(1)
    for _ in range(4):
        token = chain.apply(flat)
        if vocab.is_eog(token):
            break
        chain.accept(token)
    chain.clone().reset()


counts = {"accepted": 0, "refused": 0, "sampling": 0}
slowest = 0.0
end = time.monotonic() + float(seconds)
while sum(counts.values()) < int(most) and time.monotonic() < end:
    text = rng.choice([made, made, mutated, mutated, mutated, nested, linked])()
    Path(last).write_text(text, encoding="utf-8", errors="replace")
    start = time.process_time()
    try:
        tried(text)
        counts["accepted"] += 1
    except errors.InvalidArgumentError as error:
        counts["refused"] += 1
        assert "alloc" not in str(error), text  # seen too late
    except errors.SamplingError as error:
        counts["sampling"] += 1
        assert "alloc" not in str(error), text
    slowest = max(slowest, time.process_time() - start)
print(json.dumps({**counts, "slowest": slowest}))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_no_grammar_ends_or_holds_up_the_process(
    tiny_model: TinyModelFactory, llama_cpp_dir: Path, tmp_path: Path, seed: int
) -> None:
    last = tmp_path / "grammar"
    command = [
        sys.executable, "-X", "faulthandler", "-c", DRIVER, str(tiny_model("llama")), str(llama_cpp_dir / "grammars"),
        str(seed), str(SECONDS / 2), str(N_INPUTS // 2), str(last),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 4, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"this grammar takes too long:\n{last.read_text(encoding='utf-8')[:2000]}")
    tail = last.read_text(encoding="utf-8")[:2000]
    assert done.returncode == 0, f"{done.stderr[-1500:]}\nthe last grammar:\n{tail}"
    assert done.stderr == ""  # nothing past logging
    counts = json.loads(done.stdout)
    assert counts["accepted"] > 50
    assert counts["refused"] > 50
    assert counts["slowest"] < 3, counts
