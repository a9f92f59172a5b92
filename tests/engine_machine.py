"""A hypothesis state machine that does to one engine whatever its users may, with an adapter and without."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_account import verify
from engine_kinds import Kind, pool
from engine_truth import CLOSE, EXACT, Alone, PerfectCache, Tokens, told
from llama_runner import GenerationParams, errors
from llama_runner.core import Context, LoraAdapter, Model, live_objects
from llama_runner.engine import Engine, Request, Sequence, Stream
from llama_runner.results import Completion

__all__ = ["EngineMachine"]

N_CTX = 256
N_SEQ = 7
PATIENCE = 60  # seconds; nothing here takes one
MARK = 16  # tokens that make a checkpoint worth it

INJECTED = {1: "no slot", 2: "aborted", -2: "allocation", -3: "computation"}
EXCUSED = (errors.OutOfMemoryError, errors.DecodeError, errors.ContextOverflowError)
QUOTAS = {"small": 120, "large": 400}


POOL = pool(0)
prompts = st.integers(0, len(POOL) - 1)
tails = st.lists(st.integers(270, 290), max_size=3)
places = st.integers(0, 7)  # of the request, or sequence, that a rule is about: counted from the newest
adapted_or_not = st.sampled_from([False, False, True])  # nothing is shared between the two


@dataclass
class Live:
    """A request that was submitted and not collected yet."""

    request: Request
    stream: Stream
    greedy: bool
    adapted: bool


class EngineMachine(RuleBasedStateMachine):
    """Drives one engine; the test sets what is below."""

    kind: Kind
    model: Model
    adapter: LoraAdapter
    alone: tuple[Alone, Alone]  # without the adapter, and with it
    folder: Path
    steps = 0
    requests = 0
    exact_checks = 0
    failures: dict[str, int]
    preempted = 0
    runs = 0

    @initialize(
        host=st.sampled_from([0, 60_000, 1 << 20]),
        disk=st.sampled_from([0, 300_000, 1 << 22]),
        n_batch=st.sampled_from([16, 64]),
    )
    def start(self, host: int, disk: int, n_batch: int) -> None:
        type(self).runs += 1
        self.n_batch = n_batch
        self.options = {"host_cache_bytes": host, "disk_cache_bytes": disk, "quotas": QUOTAS}
        self.options["disk_cache"] = self.folder / str(self.runs) if disk else None
        self.live: list[Live] = []
        self.sequences: list[Sequence] = []
        self.snapshots: list[Any] = []
        self.known = self.nothing()  # everything ever computed, without the adapter and with it
        self.open()

    def open(self) -> None:
        options = {"n_ctx": N_CTX, "n_batch": self.n_batch, "n_ubatch": 16, "n_seq_max": N_SEQ, **EXACT}
        self.context = Context(self.model, **{**options, **self.kind.context})
        assert self.context.n_ctx == N_CTX
        self.engine = Engine(self.context, **self.options)
        # what waits is answered with ClosedError then
        self.hung = threading.Timer(PATIENCE, self.engine.close)
        self.hung.daemon = True
        self.hung.start()
        self.held = self.injected = self.pinned = False
        self.forget()

    def nothing(self) -> tuple[PerfectCache, PerfectCache]:
        return PerfectCache(self.kind.parts), PerfectCache(self.kind.parts)

    def forget(self) -> None:
        """From now on nothing is in the cache: until something is lost, all that comes must be found again."""
        self.sure: tuple[PerfectCache, PerfectCache] | None = self.nothing()
        self.losses = self.lost()

    def lost(self) -> tuple[int, ...]:
        """Counts of what makes a cache less than perfect."""
        counters = self.engine.counters
        return counters.cache.evictions, counters.loop["failed_decodes"], counters.preemptions

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if isinstance(sys.exc_info()[1], AssertionError | errors.LlamaRunnerError):
            self.end()  # what failed is told, and not what comes of it
            return
        self.end_all()
        self.engine.clear()
        verify(self.engine, idle=True)
        assert self.context.memory.n_used == 0 == len(list(self.engine.residency.tree.nodes()))
        counters = self.engine.counters
        assert counters.running == counters.waiting == counters.loop["n_jobs"] == 0
        self.end()
        del self.live, self.sequences, self.snapshots
        gc.collect()
        assert live_objects()["jobs"] == 0

    # --- the loop is held back between two rules, so that they meet what is under way
    @precondition(lambda self: hasattr(self, "engine"))
    @rule()
    def hold(self) -> None:
        if not self.held:
            self.held = True
            with self.engine._lock:  # one at a time may hold a pause
                self.engine.loop.pause()

    def go(self) -> None:
        if self.held:
            self.held = False
            with self.engine._lock:
                self.engine.loop.resume()

    @precondition(lambda self: getattr(self, "live", None))
    @rule(n=st.sampled_from([1, 1, 2, 3, 5, 10, 20]))
    def step(self, n: int) -> None:
        """About so many steps."""
        self.go()
        until = self.engine.loop.counters["steps"] + n
        late = time.monotonic() + 0.01
        while self.engine.loop.counters["steps"] < until and time.monotonic() < late:
            time.sleep(0)
        self.hold()

    def end_all(self) -> None:
        self.go()
        for live in self.live:
            self.engine.cancel(live.request)
        while self.live:
            self.collect(0)
        for sequence in self.sequences:
            sequence.unpin()
        self.quiet()

    def quiet(self) -> None:
        """Until the engine has seen the end of everything."""
        deadline = time.monotonic() + PATIENCE
        while self.engine.counters.running or self.engine.counters.waiting:
            assert time.monotonic() < deadline, "requests that have ended are still in the engine"
            time.sleep(0.001)

    def end(self) -> None:
        self.hung.cancel()
        self.hung.join()
        self.engine.close()
        self.context.close()
        del self.engine, self.context, self.hung

    @invariant()
    def the_account_is_true(self) -> None:
        if hasattr(self, "engine"):
            assert not self.engine.closed, "it took too long, or its manager died"
            type(self).steps += 1
            with told():
                verify(self.engine, [sequence._pin for sequence in self.sequences])

    # --- requests

    def submit(
        self,
        prompt: Tokens,
        params: GenerationParams,
        *,
        adapted: bool = False,
        whole: bool = False,
        **options: Any,
    ) -> list[Live]:
        try:
            requests = self.engine.submit(prompt, params, adapters=self.adapters(adapted), **options)
        except errors.ContextOverflowError as error:
            quota = QUOTAS.get(options.get("owner") or "")
            n, room = options.get("n", 1), N_CTX - len(prompt)
            most = N_CTX if params.max_tokens is None else params.max_tokens
            limit = most if most <= room else room // n
            never_fits = room <= 0 or limit * n > room
            if not (never_fits or (quota is not None and (len(prompt) + limit) * n > quota)):
                raise AssertionError("it would have fitted") from error
            return []
        type(self).requests += len(requests)
        made = [Live(r, Stream(self.engine, r), params.is_greedy, adapted) for r in requests]
        if whole:
            for live in made:
                live.stream.read_whole()
        self.live += made
        return made

    def adapters(self, adapted: bool) -> dict[LoraAdapter, float]:
        return {self.adapter: 1.0} if adapted else {}

    @rule(
        which=prompts,
        tail=tails,
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.sampled_from([0, 0, 0, 1, 5]),
        owner=st.sampled_from([None, None, "small", "large"]),
        max_tokens=st.sampled_from([1, 2, 5, 9, 20, 60, None]),
        temperature=st.sampled_from([0.0, 0.0, 0.9]),
        stop=st.sampled_from([(), (), ("e",), ("th", "a")]),
        timeout=st.sampled_from([None, None, None, None, 1e-6, 0.004]),
        logprobs=st.sampled_from([None, 0, 2]),
        adapted=adapted_or_not,
        whole=st.booleans(),
    )
    def ask(
        self, which: int, tail: list[int], n: int, priority: int, owner: str | None, adapted: bool, whole: bool,
        **how: Any,
    ) -> None:  # fmt: skip
        self.sure = None
        params = GenerationParams(ignore_eos=True, seed=self.steps, **how)
        prompt = np.concatenate([POOL[which], np.array(tail, np.int32)])
        self.submit(prompt, params, n=n, priority=priority, owner=owner, adapted=adapted, whole=whole)
        self.keep_few()

    def keep_few(self) -> None:
        while len(self.live) > 12:
            self.collect(len(self.live) - 1)

    @precondition(lambda self: hasattr(self, "engine"))
    @rule(chance=st.integers(0, 2**31), n=st.integers(2, 6), steps=st.integers(0, 12))
    def burst(self, chance: int, n: int, steps: int) -> None:
        """Several at once, and then a few steps."""
        self.sure = None
        self.hold()
        rng = random.Random(chance)
        for _ in range(n):
            tail = [rng.randrange(270, 290) for _ in range(rng.choice([0, 0, 1, 20]))]
            prompt = np.concatenate([rng.choice(POOL), np.array(tail, np.int32)])
            params = GenerationParams(
                ignore_eos=True, seed=chance, temperature=0, max_tokens=rng.choice([3, 10, 30, 80, None]),
                logprobs=rng.choice([None, 1]), stop=rng.choice([(), (), ("th", "a")]),
            )  # fmt: skip
            how = {"n": rng.choice([1, 1, 1, 2]), "priority": rng.choice([0, 0, 1, 2])}
            self.submit(prompt, params, adapted=rng.random() < 0.2, whole=rng.random() < 0.5, **how)
        self.step(steps)
        self.keep_few()

    def answer(self, live: Live) -> Completion | None:
        """Read to the end; None where it failed with an error that is owed to what was injected, or to want of room."""
        self.go()
        try:
            for _ in live.stream:
                pass
            return live.stream.completion
        except EXCUSED as error:
            self.excuse(error)
            return None

    def excuse(self, error: Exception) -> None:
        """There is a reason for every failure: it was injected, or what is pinned leaves too little room."""
        type(self).failures[type(error).__name__] = self.failures.get(type(error).__name__, 0) + 1
        pinned = self.pinned or any(sequence.pinned for sequence in self.sequences)
        assert self.injected or (isinstance(error, errors.ContextOverflowError) and pinned), error

    @precondition(lambda self: getattr(self, "live", None))
    @rule(place=places)
    def collect(self, place: int) -> None:
        live = self.live.pop(len(self.live) - 1 - place % len(self.live))
        self.check(live, self.answer(live))

    @told()
    def check(self, live: Live, out: Completion | None) -> None:
        request = live.request
        progress, tokens = request.job.progress, request.job.tokens
        type(self).preempted += request.preempted
        # whatever was computed before, or runs at the same time, and no more
        known = self.known[live.adapted]
        running = [other.request.job.tokens for other in self.live if other.adapted == live.adapted]
        perfect = PerfectCache(True, [*known.logs, *running])
        known.add(tokens)
        usage = request.usage()
        assert usage.prompt_tokens == len(request.prompt) == usage.cached_tokens + usage.computed_tokens
        assert usage.cached_tokens <= len(request.prompt)
        if not request.follows and request.preempted == 0:
            assert usage.cached_tokens <= min(perfect.longest(request.prompt), len(request.prompt) - 1)
        if out is None:
            return
        why = out.explanation
        assert why is not None
        assert (why.cached_tokens, why.computed_tokens) == (usage.cached_tokens, usage.computed_tokens)
        assert why.preempted == request.preempted
        if progress["fed_us"]:  # it got through its prompt
            assert progress["n_computed"] == usage.computed_tokens + why.recomputed_tokens
            if not request.preempted and self.kind.parts:
                assert why.recomputed_tokens == 0
        assert np.array_equal(np.concatenate([request.prompt, out.tokens]), tokens)
        assert len(out.tokens) == usage.completion_tokens <= request.limit
        if out.finish_reason == "length" and len(out.tokens) < request.limit:
            assert self.engine.scheduler.demand.bounded(request) is False, "it ended before its time"
        self.alone[live.adapted].check(request.prompt, out, greedy=live.greedy)

    @precondition(lambda self: hasattr(self, "engine"))
    @rule(
        which=prompts, tail=tails, max_tokens=st.sampled_from([1, 4, 12]), sampled=st.booleans(),
        fresh=st.booleans(), adapted=adapted_or_not,
    )  # fmt: skip
    def ask_alone(
        self, which: int, tail: list[int], max_tokens: int, sampled: bool, fresh: bool, adapted: bool
    ) -> None:
        """With nothing else in the engine, what is cached is known exactly, unless something was lost."""
        self.go()
        while self.live:
            self.collect(0)
        self.quiet()
        if fresh and self.sure is None:
            self.clear()
        prompt = np.concatenate([POOL[which], np.array(tail, np.int32)])
        params = GenerationParams(
            max_tokens=max_tokens, temperature=0.8 * sampled, ignore_eos=True, logprobs=1, seed=self.steps
        )
        free = self.engine.residency.n_free
        (live,) = self.submit(prompt, params, adapted=adapted)
        out = self.answer(live)
        self.live.remove(live)
        self.check(live, out)
        self.quiet()
        if self.sure is None or self.lost() != self.losses or out is None:
            self.sure = None
            return
        type(self).exact_checks += 1
        sure = self.sure[adapted]
        found, known = sure.finds(prompt, len(prompt) - 1), sure.longest(prompt)
        assert out.usage.cached_tokens == found, f"{out.explanation}: {found} of {known} had to be found"
        assert live.request.job.progress["n_computed"] == len(prompt) - found
        sure.add(live.request.job.tokens[:-1])  # the last one is sampled and not read
        if not self.kind.parts and known - found >= MARK and free > 1:
            sure.add(prompt[: min(known, len(prompt) - 1)])

    @precondition(lambda self: getattr(self, "live", None))
    @rule(place=places, collect=st.booleans())
    def cancel(self, place: int, collect: bool) -> None:
        self.sure = None
        self.engine.cancel(self.live[len(self.live) - 1 - place % len(self.live)].request)
        if collect:
            self.collect(place)

    @precondition(lambda self: getattr(self, "live", None))
    @rule(place=places, chunks=st.integers(0, 3))
    def leave_a_stream(self, place: int, chunks: int) -> None:
        self.sure = None
        self.go()
        live = self.live.pop(len(self.live) - 1 - place % len(self.live))
        try:
            with live.stream as stream:
                for _ in range(chunks):
                    next(stream, None)
            out: Completion | None = live.stream.completion
        except EXCUSED as error:
            self.excuse(error)
            out = None
        assert live.request.ended
        self.check(live, out)

    # --- sequences

    @rule(which=prompts, compute=st.booleans(), adapted=adapted_or_not)
    def make_a_sequence(self, which: int, compute: bool, adapted: bool) -> None:
        self.sure = None
        self.drop_sequences()
        start = () if compute else POOL[which]
        sequence = Sequence(self.engine, start, priority=1, adapters=self.adapters(adapted))
        self.sequences.append(sequence)
        if compute:
            self.attempt(lambda: sequence.extend(POOL[which]))
            assert sequence.tokens.tolist() in ([], POOL[which].tolist())
            self.known[adapted].add(POOL[which])

    def drop_sequences(self) -> None:
        while len(self.sequences) > 6:
            self.sequences.pop(0).unpin()

    def attempt(self, call: Any) -> Any:
        """The result, or None after an error owed to an injected failure or to want of room."""
        self.sure = None
        self.go()
        try:
            result = call()
            self.computed()
            return result
        except EXCUSED as error:
            self.excuse(error)
            return None

    def computed(self) -> None:
        """What the sequences hold may have been computed just now."""
        for sequence in self.sequences:
            self.known[bool(sequence.adapters)].add(sequence.tokens.copy())

    def sequence(self, place: int) -> Sequence:
        return self.sequences[place % len(self.sequences)]

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, tokens=st.lists(st.integers(270, 290), max_size=20))
    def extend(self, place: int, tokens: list[int]) -> None:
        sequence = self.sequence(place)
        before = sequence.tokens.tolist()
        computed = self.attempt(lambda: sequence.extend(tokens))
        assert sequence.tokens.tolist() == before + (tokens if computed is not None else [])
        assert computed is None or 0 <= computed <= len(sequence)
        self.known[bool(sequence.adapters)].add(np.array(before + tokens, np.int32))

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, keep=st.integers(0, 80))
    def truncate(self, place: int, keep: int) -> None:
        sequence = self.sequence(place)
        keep = min(keep, len(sequence))
        before = sequence.tokens.tolist()
        sequence.truncate(keep)
        assert sequence.tokens.tolist() == before[:keep]

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, n=st.integers(1, 2))
    def fork(self, place: int, n: int) -> None:
        made = self.sequence(place).fork(n)
        assert all(fork.tokens.tolist() == self.sequence(place).tokens.tolist() for fork in made)
        self.sequences += made
        self.drop_sequences()

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, max_tokens=st.integers(1, 12))
    def generate(self, place: int, max_tokens: int) -> None:
        sequence = self.sequence(place)
        if not 0 < len(sequence) < N_CTX - max_tokens:
            return
        before = sequence.tokens.copy()
        how = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "logprobs": 0}
        out = self.attempt(lambda: sequence.generate(**how))
        self.known[bool(sequence.adapters)].add(sequence.tokens.copy())
        if out is None:
            assert np.array_equal(sequence.tokens, before)
            return
        assert np.array_equal(sequence.tokens, np.concatenate([before, out.tokens]))
        self.alone[bool(sequence.adapters)].check(before, out, greedy=True)

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places)
    def look(self, place: int) -> None:
        sequence = self.sequence(place)
        if 0 < len(sequence) <= N_CTX - 1:
            row = self.attempt(lambda: sequence.logits)
            if row is not None:
                row = row - row.max()
                row = row - np.log(np.exp(row).sum())
                alone = self.alone[bool(sequence.adapters)]
                assert np.abs(row - alone.logprobs(sequence.tokens.copy())[-1]).max() < CLOSE

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, tokens=st.lists(st.integers(270, 290), min_size=1, max_size=12))
    def score(self, place: int, tokens: list[int]) -> None:
        sequence = self.sequence(place)
        if len(sequence):
            scores = self.attempt(lambda: sequence.score(tokens))
            whole = np.concatenate([sequence.tokens, np.array(tokens, np.int32)])
            self.known[bool(sequence.adapters)].add(whole)
            if scores is not None:
                expected = self.alone[bool(sequence.adapters)].logprobs(whole)[len(sequence) - 1 : -1]
                assert np.abs(scores - expected[np.arange(len(tokens)), tokens]).max() < CLOSE

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places, keep=st.booleans())
    def pin(self, place: int, keep: bool) -> None:
        self.pinned = True
        if keep:
            self.attempt(self.sequence(place).pin)
        else:
            self.sequence(place).unpin()
            assert not self.sequence(place).pinned

    @precondition(lambda self: getattr(self, "sequences", None))
    @rule(place=places)
    def snapshot(self, place: int) -> None:
        self.snapshots = [*self.snapshots[-2:], self.sequence(place).snapshot()]

    @precondition(lambda self: getattr(self, "sequences", None) and self.snapshots)
    @rule(place=places, of=places)
    def restore(self, place: int, of: int) -> None:
        snapshot = self.snapshots[of % len(self.snapshots)]
        self.sequence(place).restore(snapshot)
        assert np.array_equal(self.sequence(place).tokens, snapshot.tokens)

    # --- from below

    @precondition(lambda self: hasattr(self, "engine"))
    @rule(n=st.integers(1, 3), keep=st.booleans())
    def evict(self, n: int, keep: bool) -> None:
        with self.engine.paused():
            for _ in range(n):
                self.engine.residency.evict_one(keep=keep)

    @precondition(lambda self: getattr(self, "live", None))
    @rule(place=places)
    def preempt(self, place: int) -> None:
        with self.engine.paused():
            running = list(self.engine.scheduler.running.values())
            if running:
                self.engine.scheduler.preempt(running[place % len(running)])
        self.engine.loop.wake()

    @precondition(lambda self: hasattr(self, "engine"))
    @rule()
    def clear(self) -> None:
        self.engine.clear()
        if self.live or any(sequence.pinned for sequence in self.sequences):
            self.sure = None
            return
        self.go()
        self.quiet()
        self.engine.clear()
        assert self.context.memory.n_used == 0 == len(list(self.engine.residency.tree.nodes()))
        self.forget()

    @precondition(lambda self: hasattr(self, "engine"))
    @rule(code=st.sampled_from([*INJECTED, 1, 1]), n=st.sampled_from([1, 2, 3, 6, 20]))
    def fail(self, code: int, n: int) -> None:
        self.injected = True
        self.engine.loop._fail_next(code, n)

    @precondition(lambda self: hasattr(self, "engine"))
    @rule(sure=st.integers(0, 2))
    def restart(self, sure: int) -> None:
        if sure:
            return
        self.go()
        live, self.live = self.live, []
        sequences = [(sequence.tokens.copy(), bool(sequence.adapters)) for sequence in self.sequences]
        for sequence in self.sequences:
            sequence.unpin()
        self.sequences.clear()
        self.end()
        for each in live:
            try:
                for _ in each.stream:
                    pass
            except (errors.ClosedError, *EXCUSED):
                pass
            assert each.request.ended
            self.known[each.adapted].add(each.request.job.tokens)
        self.open()
        self.sure = None
        self.sequences += [Sequence(self.engine, t, adapters=self.adapters(a)) for t, a in sequences]
