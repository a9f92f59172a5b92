"""10,000 random steps of decode, fork, edit, save, restore and cancel on each memory kind, against a Python model.

After every step each position and each cell is compared with a ``CellAccount``. A decoded row is compared with what a
context that saw nothing else computes from the same tokens at the same positions: for the one-layer llama, whose keys
and values know their own token alone, that holds after any edit, and NumPy computes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.cells import Saved
from llama_runner.core import Batch, CellAccount, Context, Model
from reference_llama import OneLayerLlama

N_SEQ = 4
CLOSE = 2e-3  # batches of other shapes round differently; a wrong token moves a logit by a hundred times that
MOVED = 1e-2  # keys that were turned to other positions, each time with the rounding of F32
STEPS = 50  # of one run
RUNS = 60  # for each of the eight kinds: more than 10,000 steps in all

seqs = st.integers(0, N_SEQ - 1)
ends = st.just(-1) | st.integers(0, 90)
lengths = st.integers(1, 24)


@dataclass(frozen=True)
class Kind:
    """A memory to be driven, and what may be said of its logits."""

    model: str
    options: dict = field(default_factory=dict)
    context: dict = field(default_factory=dict)
    any_edit: bool = False  # one layer: exact after any edit
    parts: tuple[str, ...] = ("full",)

    @property
    def has_state(self) -> bool:
        return "state" in self.parts

    @property
    def unified(self) -> bool:
        return bool(self.context.get("kv_unified", True))


KINDS = {
    "full": Kind("llama", {"n_layer": 1}, any_edit=True),
    "streams": Kind("llama", {"n_layer": 1}, {"kv_unified": False, "n_ctx": 1024}, any_edit=True),
    "window": Kind("swa", {}, {"swa_full": True}, parts=("full", "window")),
    "moving window": Kind(
        "swa", {}, {"swa_full": False, "n_ubatch": 32, "n_ctx": 512}, parts=("full", "window")
    ),
    "window streams": Kind(
        "swa",
        {},
        {"swa_full": False, "n_ubatch": 32, "n_ctx": 2048, "kv_unified": False},
        parts=("full", "window"),
    ),
    "state": Kind("mamba", {}, parts=("state",)),
    "jamba": Kind("hybrid", {}, parts=("full", "state")),
    "lfm2": Kind("hybrid", {"architecture": "lfm2"}, parts=("full", "state")),
}


@dataclass(eq=False)
class Cell:
    """A token at a position; sequences that share the cell share the object."""

    token: int
    pos: int


@dataclass
class Log:
    """The cells of a sequence in the order they were decoded in."""

    cells: list[Cell] = field(default_factory=list)
    exact: bool = True  # a fresh prefill of these tokens gives the same keys and values
    moved: bool = False

    @property
    def tokens(self) -> list[int]:
        return [cell.token for cell in self.cells]

    @property
    def pos(self) -> list[int]:
        return [cell.pos for cell in self.cells]

    def part(self, low: int, high: int, *, inside: bool = True) -> Log:
        """What is within a range of positions, or what is not. What saw something that is gone is not exact."""
        kept = [i for i, cell in enumerate(self.cells) if (low <= cell.pos < high) is inside]
        exact = not kept or (self.exact and kept == list(range(len(kept))))
        return Log([self.cells[i] for i in kept], exact, self.moved and bool(kept))

    def copy(self) -> Log:
        return Log([Cell(cell.token, cell.pos) for cell in self.cells], self.exact, self.moved)


def bounds(low: int, high: int) -> tuple[int, int]:
    return max(low, 0), 1 << 31 if high < 0 else high


class MemoryMachine(RuleBasedStateMachine):
    """Drives one context; ``kind``, ``model`` and ``folder`` are set by the test."""

    kind: Kind
    model: Model
    folder: Path
    oracle: Callable[[Log], np.ndarray]
    steps = 0
    checked = 0
    refused = 0

    @initialize()
    def start(self) -> None:
        exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
        options = {"n_ctx": 256, "n_batch": 512, "n_seq_max": N_SEQ, **exact, **self.kind.context}
        self.ctx = Context(self.model, **options)
        self.account = CellAccount.of(self.ctx.memory)
        assert set(self.account.kinds) == set(self.kind.parts)
        self.logs = [Log() for _ in range(N_SEQ)]
        self.saved: dict[str, tuple[object, Saved, list[Log]]] = {}
        self.next_token = 0

    def teardown(self) -> None:
        if hasattr(self, "ctx"):
            self.ctx.close()

    @invariant()
    def the_account_agrees(self) -> None:
        if not hasattr(self, "ctx"):
            return
        type(self).steps += 1
        self.account.verify(self.ctx.memory)
        for seq, log in enumerate(self.logs):
            if "full" in self.kind.parts:
                assert self.account.n_cells(seq) == len(log.cells)
            assert self.account.pos_max(seq) == max(log.pos, default=-1)

    # --- decoding

    def new_cells(self, seq: int, n: int) -> Log:
        start = self.after(seq)
        self.next_token += n
        return Log([Cell(270 + 7 * (self.next_token - i) % 180, start + i) for i in range(n)])

    def after(self, seq: int) -> int:
        return self.account.pos_max(seq) + 1

    def decode(self, batch: Batch, added: dict[int, Log], **options: float) -> bool:
        """Decode and note; False, with all as it was, when there was no room or it was stopped."""
        try:
            self.ctx.decode(batch, **options)
        except errors.InvalidArgumentError as error:
            if "sliding window" not in str(error):
                raise
            assert len(batch) > 32
            return False
        except (errors.NoSlotError, errors.DecodeAbortedError) as error:
            for seq in error.emptied:
                assert self.kind.parts != ("full",)
                self.account.seq_rm(seq)
                self.logs[seq] = Log()
            return False
        for seq, log in added.items():
            self.logs[seq].cells += log.cells
        return True

    @rule(
        chosen=st.sets(seqs, min_size=1, max_size=3), n=lengths, stop=st.sampled_from([None, None, None, 0])
    )
    def decode_rows(self, chosen: set[int], n: int, stop: float | None) -> None:
        batch, added, last = Batch(128), {}, {}
        for seq in chosen:
            added[seq] = self.new_cells(seq, n)
        for i in range(n):  # rows of the sequences by turns
            for seq, log in added.items():
                last[seq] = batch.add(log.cells[i].token, log.cells[i].pos, seq, i == n - 1)
        if self.decode(batch, added, timeout=stop):
            assert stop is None
            for seq in chosen:
                self.account.extend(seq, n)
            for seq, row in last.items():
                self.compare(seq, row)

    @rule(chosen=st.sets(seqs, min_size=2, max_size=3), n=st.integers(1, 5))
    def decode_shared_rows(self, chosen: set[int], n: int) -> None:
        first, *others = sorted(chosen)
        same = all(self.same_cells(first, other) for other in others)
        batch, log = Batch(8), self.new_cells(first, n)
        start = log.cells[0].pos
        for i, cell in enumerate(log.cells):
            batch.add(cell.token, cell.pos, sorted(chosen), i == n - 1)
        try:
            fits = self.decode(batch, dict.fromkeys(chosen, log))
        except errors.ModelCapabilityError:
            assert not self.kind.unified or self.kind.parts == ("state",)
        except errors.InvalidArgumentError:
            assert not same
        else:
            assert same and self.kind.unified
            if fits:
                self.account.extend(sorted(chosen), n, start)
                for seq in chosen:
                    self.compare(seq, n - 1)

    def same_cells(self, one: int, other: int) -> bool:
        tables = self.ctx.memory.cells()
        return all(np.array_equal(t.owned_by(one), t.owned_by(other)) for t in tables)

    def compare(self, seq: int, row: int) -> None:
        """The row of a sequence's last token with what a context that saw nothing else computes."""
        log = self.logs[seq]
        if not (log.exact or self.kind.any_edit):
            return
        type(self).checked += 1
        distance = np.abs(self.ctx.logits(row) - type(self).oracle(log)).max()
        assert distance < (MOVED if log.moved else CLOSE), f"sequence {seq}: {distance}"

    # --- the operations

    def attempt(self, call: Callable[[], object], allowed: tuple[type[Exception], ...]) -> bool:
        try:
            done = call() is not False
        except allowed:
            done = False
        type(self).refused += not done
        return done

    @rule(src=seqs, dst=seqs, low=ends, high=ends, empty_first=st.booleans())
    def fork(self, src: int, dst: int, low: int, high: int, empty_first: bool) -> None:
        if empty_first and src != dst:
            assert self.ctx.memory.seq_rm(dst)
            self.account.seq_rm(dst)
            self.logs[dst] = Log()
        whole = low <= 0 and (high < 0 or high > self.account.pos_max(src))
        allowed: tuple[type[Exception], ...] = (errors.InvalidArgumentError,) if self.logs[dst].pos else ()
        if not whole and (self.kind.has_state or not self.kind.unified or "window" in self.kind.parts):
            allowed += (errors.ModelCapabilityError,)
        if self.attempt(lambda: self.ctx.memory.seq_cp(src, dst, low, high), allowed) and src != dst:
            self.account.seq_cp(src, dst, low, high)
            part, kept = self.logs[src].part(*bounds(low, high)), self.logs[dst]
            if not self.kind.unified or self.kind.parts == ("state",):
                part = part.copy()
            exact = part.exact and kept.exact and not (kept.cells and part.cells)
            self.logs[dst] = Log(kept.cells + part.cells, exact, part.moved or kept.moved)

    @rule(seq=seqs, low=ends, high=ends)
    def remove(self, seq: int, low: int, high: int) -> None:
        held, last = self.logs[seq], self.account.pos_max(seq)
        first, end = bounds(low, high)
        if not self.ctx.memory.seq_rm(seq, low, high):
            assert self.kind.parts != ("full",)
            assert low > 0 or 0 <= high <= last
            type(self).refused += 1
            return
        if self.kind.has_state and any(first <= pos < end for pos in held.pos):
            assert first <= min(held.pos) and end > last
        self.account.seq_rm(seq, low, high)
        self.logs[seq] = held.part(first, end, inside=False)

    @rule(seq=seqs, cut=st.integers(1, 12))
    def step_back(self, seq: int, cut: int) -> None:
        self.remove(seq, max(0, self.after(seq) - cut), -1)

    @rule(seq=seqs, sure=st.integers(0, 2))
    def keep(self, seq: int, sure: int) -> None:
        if sure:
            return
        self.ctx.memory.seq_keep(seq)
        self.account.seq_keep(seq)
        self.logs = [log if other == seq else Log() for other, log in enumerate(self.logs)]

    @rule(sure=st.integers(0, 3))
    def clear(self, sure: int) -> None:
        if sure:
            return
        self.ctx.memory.clear()
        self.account.clear()
        self.logs = [Log() for _ in range(N_SEQ)]

    @rule(
        seq=seqs,
        low=ends,
        high=ends,
        delta=st.integers(-20, 20),
        shared=st.booleans(),
    )
    def add(self, seq: int, low: int, high: int, delta: int, shared: bool) -> None:
        allowed = self.may_not_move(seq, low, high)
        first, end = bounds(low, high)
        if any(first <= pos < end and pos + delta < 0 for pos in self.logs[seq].pos) or self.kind.has_state:
            allowed += (errors.InvalidArgumentError,)
        call = lambda: self.ctx.memory.seq_add(seq, low, high, delta, shared=shared)  # noqa: E731
        if self.attempt(call, allowed):
            others = self.account.shared(seq, low, high) if delta else []
            assert shared or not others
            self.account.seq_add(seq, low, high, delta)
            self.note_move(seq, low, high, lambda pos: pos + delta)

    @rule(seq=seqs, low=ends, high=ends, d=st.integers(2, 4), shared=st.booleans())
    def div(self, seq: int, low: int, high: int, d: int, shared: bool) -> None:
        allowed = self.may_not_move(seq, low, high)
        if self.attempt(lambda: self.ctx.memory.seq_div(seq, low, high, d, shared=shared), allowed):
            others = self.account.shared(seq, low, high)
            assert shared or not others
            self.account.seq_div(seq, low, high, d)
            self.note_move(seq, low, high, lambda pos: pos // d)

    def may_not_move(self, seq: int, low: int, high: int) -> tuple[type[Exception], ...]:
        allowed: tuple[type[Exception], ...] = ()
        if self.account.shared(seq, low, high) or self.kind.has_state:
            allowed += (errors.InvalidArgumentError,)
        if self.kind.parts != ("full",):
            allowed += (errors.ModelCapabilityError,)
        return allowed

    def note_move(self, seq: int, low: int, high: int, move: Callable[[int], int]) -> None:
        first, end = bounds(low, high)
        touched = {cell: move(cell.pos) for cell in self.logs[seq].cells if first <= cell.pos < end}
        for log in self.logs:
            if any(cell in touched for cell in log.cells):
                steps = {touched.get(cell, cell.pos) - cell.pos for cell in log.cells}
                log.exact = log.exact and len(steps) == 1
                log.moved = log.moved or steps != {0}
        for cell, pos in touched.items():
            cell.pos = pos

    # --- saving and restoring

    @rule(seq=seqs, how=st.sampled_from(["bytes", "file", "device", "partial", "all"]))
    def save(self, seq: int, how: str) -> None:
        partial = how == "partial"
        if partial and self.kind.parts == ("full",):
            return
        log = self.logs[seq]
        if how == "file":
            blob: object = self.folder / "state.kv"
            self.ctx.state_seq_save(blob, seq, tokens=log.tokens)
        elif how == "all":
            blob = self.ctx.state_get()
        else:
            blob = self.ctx.state_seq_get(seq, partial=partial, on_device=how == "device")
        copies = self.copies(self.logs) if how == "all" else [log.copy()]
        self.saved[how] = blob, self.account.save(None if how == "all" else seq), copies

    def copies(self, logs: list[Log]) -> list[Log]:
        """With cells of their own, which they share among themselves as before."""
        made: dict[Cell, Cell] = {}
        return [
            Log([made.setdefault(c, Cell(c.token, c.pos)) for c in log.cells], log.exact, log.moved)
            for log in logs
        ]

    @precondition(lambda self: getattr(self, "saved", None))
    @rule(seq=seqs, data=st.data())
    def restore(self, seq: int, data: st.DataObject) -> None:
        how = data.draw(st.sampled_from(sorted(self.saved)))
        blob, saved, logs = self.saved[how]
        if how == "partial":
            self.restore_partial(seq, blob, saved, logs[0])
            return
        try:
            if how == "all":
                self.ctx.state_set(blob)
            elif how == "file":
                tokens = self.ctx.state_seq_load(blob, seq)
                assert tokens is not None and tokens.tolist() == logs[0].tokens
            else:
                self.ctx.state_seq_set(seq, blob)
        except errors.StateError as error:
            if how == "all" or "empty now" not in str(error):
                raise
            self.account.seq_rm(seq)
            self.logs[seq] = Log()
            return
        if how == "all":
            self.account.restore(saved)
            self.logs = self.copies(logs)
        else:
            self.account.restore(saved, seq)
            self.logs[seq] = logs[0].copy()

    def restore_partial(self, seq: int, blob: object, saved: Saved, log: Log) -> None:
        held = self.logs[seq]
        goes_on = held.tokens[: len(log.tokens)] == log.tokens and held.pos[: len(log.pos)] == log.pos
        if not goes_on or not log.tokens:
            return  # only the caller knows whether these are the tokens that it was saved with
        try:
            self.ctx.state_seq_set(seq, blob)
        except errors.StateError as error:
            if "empty now" in str(error):
                self.account.seq_rm(seq)
                self.logs[seq] = Log()
            else:
                assert not log.exact  # positions that are not in a row
            return
        self.account.step_back(saved, seq)
        self.logs[seq] = log.copy()


# ---------------------------------------------------------------------------------------------------- the runs


def fresh(model: Model) -> Callable[[Log], np.ndarray]:
    """The row of the last token in a context that saw nothing else."""
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
    other = Context(model, n_ctx=2048, n_batch=2048, **exact)

    def row(log: Log) -> np.ndarray:
        other.memory.clear()
        batch = Batch(len(log.cells))
        assert log.pos == list(range(log.pos[0], log.pos[0] + len(log.pos)))
        batch.add_sequence(log.tokens, log.pos[0])
        other.decode(batch)
        return other.logits().copy()

    return row


MachineFactory = Callable[[str], type[MemoryMachine]]


@pytest.fixture
def machine_of(tiny_model: TinyModelFactory, tmp_path: Path) -> Iterator[MachineFactory]:
    made: list[type[MemoryMachine]] = []

    def make(name: str) -> type[MemoryMachine]:
        kind = KINDS[name]
        path = tiny_model(kind.model, **kind.options)
        model = Model(path)
        if kind.any_edit:
            reference = OneLayerLlama(path)
            oracle = lambda log: reference.logits(log.tokens, log.pos)  # noqa: E731
        else:
            oracle = fresh(model)
        members = {
            "kind": kind,
            "model": model,
            "folder": tmp_path,
            "oracle": staticmethod(oracle),
            "steps": 0,
        }
        made.append(type("Machine", (MemoryMachine,), {**members, "checked": 0, "refused": 0}))
        return made[-1]

    yield make
    for machine in made:  # hypothesis keeps the class
        del machine.model, machine.oracle


@pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning")
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_steps(machine_of: MachineFactory, name: str) -> None:
    machine = machine_of(name)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
    print(f"{name}: {machine.steps} steps, {machine.checked} rows compared, {machine.refused} refusals")
    assert machine.steps >= 10_000 / len(KINDS)
    assert machine.checked >= machine.steps / 10
    assert machine.refused > 0


@pytest.mark.parametrize("name", KINDS)
def test_stopped_at_any_time(machine_of: MachineFactory, name: str) -> None:
    """Batches of many parts, stopped after some of them: what is left is exact, or empty and said to be."""
    machine = machine_of(name)
    run, rng = machine(), random.Random(name)
    run.start()
    stopped = 0
    for _ in range(60):
        chosen = rng.sample(range(N_SEQ), rng.choice([1, 2, 3]))
        n = rng.randrange(1, 40)
        batch, added, last = Batch(128), {seq: run.new_cells(seq, n) for seq in chosen}, {}
        for seq, log in added.items():
            for i, cell in enumerate(log.cells):
                last[seq] = batch.add(cell.token, cell.pos, seq, i == n - 1)
        if run.decode(batch, added, timeout=rng.choice([0, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1])):
            for seq in chosen:
                run.account.extend(seq, n)
                run.compare(seq, last[seq])
        else:
            stopped += 1
        run.the_account_agrees()
        if rng.random() < 0.2:
            src, dst = rng.sample(range(N_SEQ), 2)
            run.fork(src, dst, -1, -1, True)
        elif rng.random() < 0.2:
            run.remove(rng.randrange(N_SEQ), -1, -1)
        run.the_account_agrees()
    run.teardown()
    assert stopped >= 5


def test_the_reference_is_a_llama(tiny_model: TinyModelFactory) -> None:
    path = tiny_model("llama", n_layer=1)
    row, reference = fresh(Model(path)), OneLayerLlama(path)
    for start, n in ((0, 1), (0, 40), (100, 60)):
        log = Log([Cell(270 + 11 * i % 180, start + i) for i in range(n)])
        assert np.abs(row(log) - reference.logits(log.tokens, log.pos)).max() < CLOSE
