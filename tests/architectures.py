"""What each architecture that llama.cpp knows can do here, found out by doing it, and the page in docs/ that says so.

    python tests/architectures.py             # do it, and write docs/architectures.md
    python tests/architectures.py FILE…       # what a child process does: a line of JSON for each model file

Each step gives the logits that a fresh prefill of the same tokens gives, or is refused with the documented error.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tiny_archs
from llama_runner import errors
from llama_runner.core import Batch, Context, ControlVector, LoraAdapter, Model
from native_tools import native_tool
from tiny_adapters import random_pairs, write_lora
from tiny_models import write_tiny_model

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
PROGRAM = "test-llama-archs"

# Relative to the largest logit. Batches of another shape differ by 1e-6, and by 1e-4 where GELU is read from a table of
# half-precision numbers; a token out of its place by at least ten times that, which `past` makes sure of.
CLOSE = 2e-4
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}

TOKENS = np.random.default_rng(7).integers(5, 120, size=120).astype(np.int32)
LONG = TOKENS[:48]  # more than the tiny models' sliding window of 32
OTHER_TAIL = np.append(TOKENS[:40], TOKENS[60:68])
OTHER_HALF = np.append(TOKENS[:20], TOKENS[70:78])
OTHER_PAST = np.append(TOKENS[80:112], TOKENS[32:48])
PROMPT = TOKENS[100:112]  # of an encoder


class Wrong(Exception):
    """A step gave something else than it should."""


# ---------------------------------------------------------------------------------------------------- one model


class Trial:
    """One model and a context of it, and the steps that are tried on them."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path, self.scratch = path, scratch
        self.model = Model(path)
        self.able = self.model.capabilities
        self.ctx = self.make()
        self.references: dict[bytes, np.ndarray] = {}

    def make(self) -> Context:
        more = {} if self.able.has_logits else {"embeddings": True, "pooling": "none"}
        return Context(self.model, n_ctx=256, n_batch=256, n_ubatch=256, n_seq_max=3, **EXACT, **more)

    def clear(self, ctx: Context | None = None) -> None:
        """An empty memory; and where a decoder follows an encoder, the prompt that it attends to."""
        ctx = ctx or self.ctx
        if self.able.memory != "none":
            ctx.memory.clear(True)
        if self.able.has_encoder and self.able.has_decoder:
            batch = Batch(2 * len(PROMPT))
            for seq in (0, 1):
                batch.add_sequence(PROMPT, 0, seq, "all")
            ctx.encode(batch)

    def feed(self, tokens: np.ndarray, pos: int = 0, seq: int = 0, ctx: Context | None = None) -> np.ndarray:
        """Decode tokens of a sequence and return the last row: logits, or the embedding of an encoder."""
        ctx = ctx or self.ctx
        batch = Batch(len(tokens))
        batch.add_sequence(tokens, pos, seq, "all" if self.able.every_row else "last")
        ctx.decode(batch)
        row = ctx.logits() if self.able.has_logits else ctx.embeddings()
        if not np.isfinite(row).all():
            raise Wrong("a row that is not finite")
        return row.copy()

    def fresh(self, tokens: np.ndarray, pos: int = 0) -> np.ndarray:
        """What a prefill in one batch gives."""
        key = tokens.tobytes() + bytes([pos])
        if key not in self.references:
            self.clear()
            self.references[key] = self.feed(tokens, pos)
            self.clear()
        return self.references[key]

    def equal(self, row: np.ndarray, expected: np.ndarray, what: str = "") -> None:
        distance = apart(row, expected)
        if not distance < CLOSE:
            raise Wrong(f"{what} off by {distance:.1e}")

    # --- the steps: None when done and equal, otherwise why it was refused

    def past(self) -> None:
        """The tolerance tells another past from rounding."""
        if self.able.memory == "none":
            return
        distance = apart(self.fresh(LONG), self.fresh(OTHER_PAST))
        if not distance > 10 * CLOSE:
            raise Wrong(f"another past changes the logits by {distance:.1e} only")

    def decode(self) -> None:
        row = self.fresh(LONG)
        self.equal(self.feed(LONG), row, "the same again")
        if apart(row, self.fresh(OTHER_TAIL)) < CLOSE:
            raise Wrong("the tokens have no effect")
        if self.able.memory == "none":
            return
        if self.able.has_encoder:
            self.clear()
            refused(errors.LlamaRunnerError, self.ctx.logits)  # those of an encoder
        if self.able.every_row:
            batch = Batch(4)
            batch.add_sequence(LONG[:4])
            refused(errors.ModelCapabilityError, lambda: self.ctx.decode(batch))
        self.clear()
        pos = 0
        for n in (16, 1, 20, 11):
            row = self.feed(LONG[pos : pos + n], pos)
            pos += n
        self.equal(row, self.fresh(LONG), "several batches")

    def fork(self) -> None:
        for low, high in ((-1, -1), (0, 40), (0, 1000)):
            self.clear()
            self.feed(LONG[:40])
            self.ctx.memory.seq_cp(0, 1, low, high)
            rows = self.feed(OTHER_TAIL[40:], 40, 1), self.feed(LONG[40:], 40)
            self.equal(rows[0], self.fresh(OTHER_TAIL), "the branch")
            self.equal(rows[1], self.fresh(LONG), "the trunk")

    def fork_part(self) -> None:
        self.feed(LONG[:40])
        self.ctx.memory.seq_cp(0, 1, 0, 20)
        rows = self.feed(OTHER_HALF[20:], 20, 1), self.feed(LONG[40:], 40)
        self.equal(rows[0], self.fresh(OTHER_HALF), "the branch")
        self.equal(rows[1], self.fresh(LONG), "the trunk")

    def remove_tail(self) -> str | None:
        self.feed(LONG)
        if not self.ctx.memory.seq_rm(0, 40, -1):
            return self.unchanged()
        self.equal(self.feed(OTHER_TAIL[40:], 40), self.fresh(OTHER_TAIL))
        return None

    def remove_middle(self) -> str | None:
        """What is left equals two parts of a sequence put together, and what comes before the gap a fresh prefill."""
        self.feed(LONG)
        if not self.ctx.memory.seq_rm(0, 10, 20):
            return self.unchanged()
        row = self.feed(TOKENS[48:49], 48)
        if apart(row, self.fresh(TOKENS[:49])) < CLOSE:
            raise Wrong("the removed part still counts")
        self.clear()
        self.feed(LONG)
        self.ctx.memory.seq_cp(0, 1, 0, 10)
        self.ctx.memory.seq_cp(0, 1, 20, 48)
        self.equal(row, self.feed(TOKENS[48:49], 48, 1), "the parts")
        self.clear()
        self.feed(LONG)
        for low, high in ((10, 20), (10, -1)):
            if not self.ctx.memory.seq_rm(0, low, high):
                raise Wrong("the rest cannot be removed")
        self.equal(self.feed(LONG[10:], 10), self.fresh(LONG), "before the gap")
        return None

    def unchanged(self) -> str:
        self.equal(self.feed(TOKENS[48:49], 48), self.fresh(TOKENS[:49]), "after the refusal")
        return "False"

    def shift(self) -> None:
        if self.ctx.memory.can_shift != self.able.can_shift:
            raise Wrong("Memory.can_shift says otherwise")
        self.feed(LONG[:40])
        self.ctx.memory.seq_add(0, 0, -1, 16)
        self.equal(self.feed(LONG[40:], 56), self.fresh(LONG, 16))

    def save_state(self) -> None:
        self.feed(LONG[:40])
        blob = self.ctx.state_seq_get(0)
        self.clear()
        self.ctx.state_seq_set(1, blob)
        self.equal(self.feed(LONG[40:], 40, 1), self.fresh(LONG), "in another sequence")
        with self.make() as other:
            self.clear(other)
            other.state_seq_set(0, blob)
            self.equal(self.feed(LONG[40:], 40, 0, other), self.fresh(LONG), "in another context")

    def steer(self) -> None:
        before = self.fresh(LONG)
        shape = (max(1, self.model.n_layer - 1), self.model.n_embd)
        self.ctx.set_control_vector(ControlVector(np.random.default_rng(0).normal(size=shape)))
        self.clear()
        moved = apart(self.feed(LONG), before)
        self.ctx.set_control_vector(None)
        self.clear()
        self.equal(self.feed(LONG), before, "taken off")
        if moved < CLOSE:
            raise Wrong("the vector has no effect")

    def adapt(self) -> str | None:
        """A LoRA of every matrix: applied or refused, and gone without a trace once it is taken off."""
        from llama_runner.gguf import read_gguf_header

        before = self.fresh(LONG)
        names = [
            tensor.name for tensor in read_gguf_header(self.path).tensors
            if tensor.name.endswith(".weight") and len(tensor.shape) > 1 and tensor.shape[1] > 1
        ]  # fmt: skip
        if not any(name == "output.weight" for name in names):
            names = [name for name in names if name != "token_embd.weight"]
        pairs = random_pairs(self.path, names, rank=2, gain=1.0)
        file = write_lora(self.scratch / "lora.gguf", pairs, architecture=self.model.architecture)
        with LoraAdapter(self.model, file) as adapter:
            try:
                self.ctx.set_adapters({adapter: 1.0})
                self.clear()
                moved = apart(self.feed(LONG), before)
            finally:
                self.ctx.set_adapters()
        self.clear()
        self.equal(self.feed(LONG), before, "taken off")
        if moved < CLOSE:
            raise Wrong("the adapter has no effect")
        return None

    def close(self) -> None:
        self.ctx.close()
        self.model.close()


STEPS = (
    "past", "decode", "fork", "fork_part", "remove_tail", "remove_middle", "shift", "save_state", "steer", "adapt",
)  # fmt: skip
REFUSALS = (errors.ModelCapabilityError,)


def refused(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise Wrong(f"no {kind.__name__}")


def apart(row: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(row - expected).max() / np.abs(expected).max())


def attempt(step: Callable[[], str | None]) -> str:
    """``yes``, ``refused: why``, or what went wrong."""
    try:
        refused = step()
    except REFUSALS as error:
        return f"refused: {type(error).__name__}: {error}"
    except Wrong as error:
        return f"wrong: {error}"
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"
    return "yes" if refused is None else f"refused: {refused}"


def try_out(path: Path, scratch: Path) -> dict[str, Any]:
    """Every step on one model file: what came of it, and what ``Model.capabilities`` says."""
    trial = Trial(path, scratch)
    outcome: dict[str, Any] = {"architecture": trial.model.architecture}
    outcome["able"] = {name: getattr(trial.able, name) for name in type(trial.able).__slots__}
    for name in STEPS:
        attempt(trial.clear)
        outcome[name] = attempt(getattr(trial, name))
    trial.close()
    return outcome


# ---------------------------------------------------------------------------------------------------- all of them


def write_models(folder: Path) -> list[Path]:
    """Tiny models of every architecture: what llama.cpp's own program writes, and the kinds that it leaves out."""
    command = [native_tool(PROGRAM), "-s", "1", "-d", "0.3", "-o", folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    write_tiny_model(folder / "bert-tiny.gguf", "bert")
    tiny_archs.t5(folder / "t5-tiny.gguf")
    return sorted(folder.glob("*.gguf"))


def try_out_all(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The outcome for each model file, each in a child process that many of them share until one ends it."""
    outcomes: dict[str, dict[str, Any]] = {}
    left = [*paths]
    while left:
        command = [sys.executable, "-X", "faulthandler", str(Path(__file__)), *map(str, left)]
        with tempfile.TemporaryFile("w+") as stderr:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
                assert child.stdout is not None
                for line in child.stdout:
                    outcomes[left.pop(0).name] = json.loads(line)
            if left:
                stderr.seek(0)
                last = stderr.read()[-1500:]
                outcomes[left.pop(0).name] = {"died": f"exit code {child.returncode}: {last}"}
    return outcomes


def work(paths: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            try:
                outcome = try_out(Path(path), Path(scratch))
            except Exception as error:
                outcome = {"died": f"{type(error).__name__}: {error}"}
            print(json.dumps(outcome), flush=True)


# ---------------------------------------------------------------------------------------------------- the page

COLUMNS = {
    "fork": "fork", "fork_part": "fork of a part", "remove_tail": "remove the tail",
    "remove_middle": "remove the middle", "shift": "shift", "save_state": "save, restore",
    "steer": "control vector", "adapt": "LoRA",
}  # fmt: skip
HEAD = """# Architectures

What `llama_runner.core` can do with each architecture that the vendored llama.cpp (release {release}) knows. This
page is written by `python tests/architectures.py`, and a test keeps it true: it loads a tiny model of each, with
random weights, decodes in one batch and in several, and tries every column. **yes** means done, with the logits of
a fresh prefill of the same tokens (within {close:g} of the largest); **–** means refused with
`ModelCapabilityError`, or `False` from `Memory.seq_rm`, and nothing changed. `Model.capabilities` says the same of
a loaded model, from llama.cpp's own graph and memory and not from a list of names.

- *Fork* is `Memory.seq_cp` of a whole sequence, or of its first part; *remove* is `Memory.seq_rm`, of the end or of
  a part with tokens after it, which keep what they computed while it was there; *shift* is `Memory.seq_add`; *save,
  restore* is `Context.state_seq_get` and `state_seq_set`.
- *Shift* is refused where llama.cpp would do it and the result would be off: where some layers do not rotate their
  keys, or something comes after the rotation, where the model adds or scales by absolute positions, or the memory
  has an index of its own. `Capabilities.no_shift` says which. The notes below say it for these models; a real one
  may differ, which is why it is looked up at run time.
- *memory* is `Capabilities.memory`. Models with none compute each batch by itself.

| model | memory | {columns} |
| --- | --- | {rules} |
"""


def page(outcomes: dict[str, dict[str, Any]], release: str) -> str:
    columns = [*COLUMNS]
    text = HEAD.format(
        release=release,
        close=CLOSE,
        columns=" | ".join(COLUMNS.values()),
        rules=" | ".join("---" for _ in columns),
    )
    notes: dict[str, list[str]] = {}
    for name, outcome in sorted(outcomes.items()):
        able, model = outcome["able"], name.removesuffix(".gguf")
        cells = ["yes" if outcome[column] == "yes" else "–" for column in columns]
        text += f"| {model} | {able['memory']} | {' | '.join(cells)} |\n"
        for note in remarks(able):
            notes.setdefault(note, []).append(model)
    absent = sorted(known_architectures() - {outcome["architecture"] for outcome in outcomes.values()})
    text += f"\nllama.cpp's program writes no model of these, so they were not tried: {', '.join(absent)}.\n"
    text += "\n## Notes\n\n"
    for note, models in sorted(notes.items()):
        text += f"- {note}: {', '.join(models)}.\n"
    return text


def remarks(able: dict[str, Any]) -> Iterator[str]:
    if able["memory"] != "none" and able["no_shift"]:
        yield f"No shift, because {able['no_shift']}"
    if able["has_encoder"] and able["has_decoder"]:
        yield "An encoder and a decoder: `encode` the prompt first"
    if not able["has_logits"]:
        yield "An encoder: embeddings and no logits"
    if able["memory"] == "none" and able["has_logits"]:
        yield "No memory, and logits of every row (a diffusion model)"
    if able["every_row"] and able["memory"] != "none":
        yield 'Output of every row has to be asked for (`logits="all"`): llama.cpp\'s graph mixes up fewer'


def known_architectures() -> set[str]:
    source = (PAGE.parent.parent / "vendor" / "llama.cpp" / "src" / "llama-arch.cpp").read_text(
        encoding="utf-8"
    )
    names = re.search(r"LLM_ARCH_NAMES = \{(.*?)\};", source, re.DOTALL)
    assert names is not None
    return set(re.findall(r'LLM_ARCH_\w+,\s*"([^"(]+)"', names[1]))


def release() -> str:
    return str(json.loads((PAGE.parent.parent / "vendor" / "pin.json").read_text())["release"])


def write_page() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        outcomes = try_out_all(write_models(folder))
    finally:
        shutil.rmtree(folder)
    broken = {name: outcome["died"] for name, outcome in outcomes.items() if "died" in outcome}
    assert not broken, broken
    PAGE.write_text(page(outcomes, release()), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1:])
    else:
        write_page()
