"""The engine as its user meets it: what runs together, what is shared, who goes first, and what is said about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_use import GREEDY, SLOW, Tokens, assert_same, make, prompt, wait_for
from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.core import LoraAdapter
from llama_runner.engine import exhaust
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    IndexOutOfRangeError,
    InvalidArgumentError,
    SamplingError,
    StorageError,
    UnknownParameterError,
)
from tiny_adapters import random_pairs, write_lora


@pytest.fixture(scope="module")
def path(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama")


@pytest.fixture
def runner(path: Path) -> Iterator[LlamaRunner]:
    with make(path) as made:
        yield made


# --- generating


def test_n_answers_share_their_prompt(runner: LlamaRunner) -> None:
    outs = runner.generate(prompt(300), n=8, max_tokens=20, seed=5, ignore_eos=True)
    assert [out.seed for out in outs] == list(range(5, 13))
    assert len({out.tokens.tobytes() for out in outs}) > 1
    assert [out.usage.computed_tokens for out in outs] == [300, 0, 0, 0, 0, 0, 0, 0]
    assert runner.counters.loop["rows_fed"] == 300
    alone = runner.generate(prompt(300), max_tokens=20, seed=7, ignore_eos=True)
    assert alone.tokens.tolist() == outs[2].tokens.tolist()
    assert alone.usage.cached_tokens == 299
    assert runner.get_context_info().used <= 300 + 8 * 20


def test_best_of_is_the_likeliest(runner: LlamaRunner) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "seed": 1, "temperature": 1.5, "ignore_eos": True}
    every = runner.generate(prompt(20), n=8, logprobs=0, **options)
    means = [np.mean([t.logprob for t in out.logprobs or ()]) for out in every]
    best = runner.generate(prompt(20), n=2, best_of=8, **options)
    order = sorted(range(8), key=lambda i: -means[i])
    assert [out.tokens.tolist() for out in best] == [every[i].tokens.tolist() for i in order[:2]]
    (one,) = runner.generate(prompt(20), best_of=8, **options)
    assert one.tokens.tolist() == best[0].tokens.tolist()
    with pytest.raises(InvalidArgumentError, match="best_of"):
        runner.generate(prompt(20), n=3, best_of=2)


def test_generate_many_keeps_the_order(runner: LlamaRunner) -> None:
    prompts = [prompt(10 + i, i) for i in range(40)]
    outs = runner.generate_many(prompts, max_tokens=4, **GREEDY)
    assert [out.usage.prompt_tokens for out in outs] == [len(p) for p in prompts]
    for i in (0, 17, 39):
        assert runner.generate(prompts[i], max_tokens=4, **GREEDY).tokens.tolist() == outs[i].tokens.tolist()
    assert runner.generate_many([]) == []
    pairs = runner.generate_many(prompts[:2], n=2, max_tokens=4, seed=3)
    assert [out.seed for out in pairs] == [3, 4, 3, 4]


def test_many_prompts_are_no_string(runner: LlamaRunner) -> None:
    for prompts in ("abc", b"abc", None, 3):
        with pytest.raises(ArgumentTypeError, match="iterable of prompts"):
            runner.generate_many(prompts)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="NoneType"):
        runner.sequence(None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="owner=3"):
        runner.generate(prompt(3), owner=3)
    assert len(runner.sequence("")) == len(runner.sequence(())) == 0


def test_what_fails_among_many_cancels_the_others(runner: LlamaRunner) -> None:
    def fails(tokens: list[Tokens], logits: Any) -> None:
        raise ZeroDivisionError("of the user's")

    with pytest.raises(SamplingError, match="ZeroDivisionError: of the user's") as caught:
        runner.generate_many([prompt(5), prompt(6)], max_tokens=500, logits_processor=fails)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    wait_for(lambda: runner.counters.running == 0)


def test_echo_and_stop_tokens(runner: LlamaRunner) -> None:
    given = prompt(8)
    plain = runner.generate(given, max_tokens=8, **GREEDY)
    echoed = runner.generate(given, max_tokens=8, echo=True, **GREEDY)
    assert echoed.text == runner.model.vocab.detokenize(given, unparse_special=True) + plain.text
    assert echoed.tokens.tolist() == plain.tokens.tolist()
    at = next(i for i, token in enumerate(plain.tokens.tolist()) if i and token not in plain.tokens[:i])
    stop = int(plain.tokens[at])
    stopped = runner.generate(given, max_tokens=8, stop_tokens=[stop], **GREEDY)
    assert stopped.finish_reason == "stop"
    assert stopped.tokens.tolist() == plain.tokens[: at + 1].tolist()
    assert stopped.stop_match is None
    with pytest.raises(IndexOutOfRangeError, match="100000"):
        runner.generate(given, stop_tokens=[100000])


def test_logprobs_are_those_of_a_score(runner: LlamaRunner) -> None:
    given = prompt(30)
    out = runner.generate(given, max_tokens=10, logprobs=2, seed=1, ignore_eos=True)
    assert out.logprobs is not None
    scores = runner.sequence(given).score(out.tokens)
    # ignore_eos takes the ends out of the sampler, not out of what is reported
    np.testing.assert_allclose([t.logprob for t in out.logprobs], scores, atol=2e-3)


def test_a_logits_processor_is_called_once_a_step_for_all(runner: LlamaRunner) -> None:
    calls: list[tuple[int, int]] = []
    wanted = [300, 301, 302, 303]

    def only(tokens: list[Tokens], logits: Any) -> None:
        assert logits.dtype == np.float32 and logits.shape == (len(tokens), runner.model.vocab.n_tokens)
        calls.append((len(tokens), max(map(len, tokens))))
        keep = logits[:, wanted]
        logits[:] = -np.inf
        logits[:, wanted] = keep

    outs = runner.generate_many([prompt(4, i) for i in range(6)], max_tokens=5, logits_processor=only, seed=1)
    assert {token for out in outs for token in out.tokens.tolist()} <= set(wanted)
    assert sum(n for n, _ in calls) == 30
    assert len(calls) < 15
    assert max(length for _, length in calls) == 8

    def other(tokens: list[Tokens], logits: Any) -> Any:
        changed = np.full_like(logits, -1.0)
        changed[:, 311] = 5.0
        return changed

    assert (
        runner.generate(prompt(4), max_tokens=3, logits_processor=other, **GREEDY).tokens.tolist()
        == [311] * 3
    )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("text", "returned 'text'"),
        (np.zeros(3, np.float32), "shape"),
        (np.zeros((1, 548), int), "float array"),
    ],
)
def test_a_processor_that_returns_nonsense_costs_its_own_request(
    runner: LlamaRunner, made: Any, message: str
) -> None:
    other = runner.stream(prompt(9), max_tokens=40, **SLOW)
    with pytest.raises(SamplingError, match=message) as caught:
        runner.generate(prompt(5), max_tokens=5, logits_processor=lambda tokens, logits: made)
    assert isinstance(caught.value.__cause__, ArgumentTypeError)
    assert len([t for chunk in other for t in chunk.tokens]) == 40
    with pytest.raises(ArgumentTypeError, match="callable"):
        runner.generate(prompt(5), logits_processor=7)


def test_each_request_has_its_own_adapters(runner: LlamaRunner, path: Path, tmp_path: Path) -> None:
    given = prompt(40)
    file = write_lora(tmp_path / "a.gguf", random_pairs(path, seed=1, gain=3.0))
    other = write_lora(tmp_path / "b.gguf", random_pairs(path, seed=2, gain=3.0))
    adapter, second = LoraAdapter(runner.model, file), LoraAdapter(runner.model, other)
    variants: list[Any] = [None, {adapter: 1.0}, [(adapter, 0.5)], {adapter: 1.0, second: -0.5}]
    alone = []
    for adapters in variants:
        with make(path) as fresh:  # the adapters are of the other model: load them again
            again = {LoraAdapter(fresh.model, a.path): scale for a, scale in dict(adapters or {}).items()}
            alone.append(fresh.generate(given, max_tokens=12, adapters=again, **GREEDY).tokens.tolist())
            fresh_adapters = list(again)
        for one in fresh_adapters:
            one.close()
    assert len({tuple(tokens) for tokens in alone}) == len(variants)
    streams = [
        runner.stream(given, max_tokens=12, adapters=adapters, **GREEDY)
        for adapters in variants
        for _ in range(2)
    ]
    together = [[t for chunk in stream for t in chunk.tokens] for stream in streams]
    assert together == [tokens for tokens in alone for _ in range(2)]
    assert runner.counters.loop["adapter_switches"] > 3
    # what was computed with one is no prefix for another
    cached = [
        runner.generate(given, max_tokens=1, adapters=a, **GREEDY).usage.cached_tokens for a in variants
    ]
    assert cached == [39] * 4
    assert runner.generate(given, max_tokens=1, adapters={adapter: 0.25}, **GREEDY).usage.cached_tokens == 0
    with pytest.raises(InvalidArgumentError, match="twice"):
        runner.generate(given, adapters=[(adapter, 1.0), (adapter, 1.0)])
    with pytest.raises(ArgumentTypeError, match="maps each LoraAdapter"):
        runner.generate(given, adapters=[1.0])
    wait_for(lambda: not len(runner.engine.adapter_sets))
    adapter.close()  # nothing uses it any more
    second.close()


def test_nobody_can_wait_for_himself(runner: LlamaRunner) -> None:
    with runner.engine.paused(), pytest.raises(ContextBusyError, match="inside paused"):
        runner.generate(prompt(3), max_tokens=3)
    caught: list[type[BaseException]] = []

    def calls_back(tokens: list[Tokens], logits: Any) -> None:
        for call in (
            lambda: runner.generate(prompt(3), max_tokens=3),
            runner.kv_map,
            runner.clear_context,
            lambda: runner.counters,
            lambda: runner.sequence(prompt(3)).logits,
            runner.engine.loop.pause,
        ):
            try:
                call()
            except ContextBusyError as error:
                caught.append(type(error))

    assert len(runner.generate(prompt(5), max_tokens=2, logits_processor=calls_back, **GREEDY).tokens) == 2
    assert caught == [ContextBusyError] * 12
    wait_for(lambda: runner.counters.running == runner.counters.waiting == 0)


# --- what is shared


def test_cached_tokens_are_exact(runner: LlamaRunner) -> None:
    system, a, b = prompt(100), prompt(20, 1), prompt(30, 2)
    first = runner.generate(np.concatenate([system, a]), max_tokens=4, **GREEDY)
    assert (first.usage.cached_tokens, first.usage.computed_tokens) == (0, 120)
    second = runner.generate(np.concatenate([system, b]), max_tokens=4, **GREEDY)
    assert (second.usage.cached_tokens, second.usage.computed_tokens) == (100, 30)
    third = runner.generate(np.concatenate([system, a, first.tokens]), max_tokens=4, **GREEDY)
    assert (third.usage.cached_tokens, third.usage.computed_tokens) == (123, 1)
    assert runner.counters.loop["rows_fed"] == 120 + 30 + 1
    why = second.explain()
    vocab = runner.model.vocab
    assert (why.known_tokens, why.cached_tokens, why.computed_tokens) == (100, 100, 30)
    assert why.prompt_differs_at == vocab.token_to_piece(int(b[0]), special=True).decode(errors="replace")
    assert why.cache_differs_at == vocab.token_to_piece(int(a[0]), special=True).decode(errors="replace")
    assert "differently" in why.reason
    assert "nothing" in first.explain().reason
    assert str(second.explain()).startswith("100 of 130 tokens were cached")


def test_a_prompt_is_shared_with_one_that_still_runs(runner: LlamaRunner) -> None:
    system = prompt(200)
    running = runner.stream(np.concatenate([system, prompt(5, 1)]), max_tokens=700, **GREEDY)
    next(running)
    second = runner.generate(np.concatenate([system, prompt(5, 2)]), max_tokens=4, **GREEDY)
    assert second.usage.cached_tokens == 200
    running.close()


def test_prompts_that_begin_alike_are_read_once(runner: LlamaRunner) -> None:
    system = prompt(300)
    prompts = [np.concatenate([system, prompt(10, i)]) for i in range(1, 9)]
    with runner.engine.paused():
        streams = [runner.stream(p, max_tokens=4, **GREEDY) for p in prompts]
    outs = [exhaust(stream) for stream in streams]
    computed = [out.usage.computed_tokens for out in outs]
    assert sorted(computed) == [10] * 7 + [310]
    with_cache = [out.tokens.tolist() for out in outs]
    runner.clear_context()
    assert [runner.generate(p, max_tokens=4, **GREEDY).tokens.tolist() for p in prompts] == with_cache


def test_what_is_evicted_comes_back_from_host_memory(path: Path) -> None:
    with make(path, n_ctx=256, host_cache_bytes=1 << 24) as runner:
        first = runner.generate(prompt(150), max_tokens=4, **GREEDY)
        runner.generate(prompt(150, 1), max_tokens=4, **GREEDY)
        cache = runner.counters.cache
        assert (cache.evictions, cache.evicted_for_good) == (1, 0)
        assert cache.host_bytes == cache.bytes_saved > 0
        again = runner.generate(prompt(150), max_tokens=4, **GREEDY)
        assert again.usage.cached_tokens == 149
        assert again.explain().restored_tokens == 149
        assert again.tokens.tolist() == first.tokens.tolist()
        runner.clear_context()
        assert runner.counters.cache.host_bytes == 0
    with make(path, n_ctx=256, host_cache_bytes=0) as runner:
        for seed in (0, 1, 0):
            assert runner.generate(prompt(150, seed), max_tokens=4, **GREEDY).usage.cached_tokens == 0
        assert runner.counters.cache.evicted_for_good == 2


def evict_all(runner: LlamaRunner) -> None:
    with runner.engine.paused():
        while runner.engine.residency.evict_one():
            pass


def test_what_makes_room_for_a_state_does_not_push_that_out(path: Path) -> None:
    """A state is read whole though only its beginning is wanted, and host memory has no room for what leaves for it."""
    with make(path, n_ctx=256, host_cache_bytes=1 << 24) as runner:
        runner.generate(prompt(200), max_tokens=1, **GREEDY)
        evict_all(runner)
        size = runner.counters.cache.host_bytes
    with make(path, n_ctx=256, host_cache_bytes=size) as runner:
        branch = np.concatenate([prompt(100), prompt(10, 3)])
        runner.generate(prompt(150), max_tokens=1, **GREEDY)
        evict_all(runner)
        first = runner.generate(branch, max_tokens=1, **GREEDY)
        assert first.usage.cached_tokens == 100
        evict_all(runner)
        runner.generate(prompt(120, 2), max_tokens=1, **GREEDY)
        assert runner.counters.cache.evicted_for_good == 0
        again = runner.generate(branch, max_tokens=1, **GREEDY)
        assert again.usage.cached_tokens == again.explain().restored_tokens == 109
        assert runner.counters.cache.evicted_for_good == 1
        assert again.tokens.tolist() == first.tokens.tolist()


def test_a_state_that_others_have_cut_is_read_back_once(path: Path) -> None:
    """Prompts that leave a saved one at three places cut it into four, all of which one state holds."""
    with make(path, n_ctx=1024, host_cache_bytes=1 << 24) as runner:
        first = runner.generate(prompt(200), max_tokens=4, **GREEDY)
        evict_all(runner)
        size = runner.counters.cache.bytes_saved
        for cut in (50, 100, 150):
            branch = runner.generate(np.concatenate([prompt(cut), prompt(9, cut)]), max_tokens=1, **GREEDY)
            assert branch.usage.cached_tokens == cut
        evict_all(runner)
        before = runner.counters.cache
        again = runner.generate(prompt(200), max_tokens=4, **GREEDY)
        cache = runner.counters.cache
        assert (again.usage.cached_tokens, again.explain().restored_tokens) == (199, 199)
        assert again.tokens.tolist() == first.tokens.tolist()
        assert cache.tokens_restored - before.tokens_restored == 199
        assert cache.bytes_restored - before.bytes_restored == size


def test_a_saved_state_that_does_not_fit_now_is_kept(path: Path) -> None:
    with make(path, n_ctx=1024) as runner:
        runner.generate(prompt(900), max_tokens=1, **GREEDY)
        runner.generate(prompt(300, 1), max_tokens=1, **GREEDY)  # the first goes to host memory
        stream = runner.stream(prompt(300, 1), max_tokens=600, **SLOW)
        next(stream)
        part = runner.generate(np.concatenate([prompt(100), prompt(4, 2)]), max_tokens=1, **GREEDY)
        assert part.usage.cached_tokens == 0
        stream.close()
        assert runner.counters.cache.damaged == 0
        assert runner.generate(prompt(900), max_tokens=1, **GREEDY).usage.cached_tokens == 899


def test_pinned_sequences_leave_nobody_waiting_for_ever(path: Path) -> None:
    with make(path, n_seq_max=2) as runner:
        for seed in (1, 2):
            given = np.concatenate([prompt(50), prompt(5, seed)])
            assert len(runner.generate(given, max_tokens=3, timeout=20, **GREEDY).tokens) == 3
    with make(path, n_seq_max=4) as runner:
        pinned = [runner.sequence(prompt(20, i)) for i in range(3)]
        for seq in pinned:
            seq.pin()
        with pytest.raises(ContextOverflowError, match="n_seq_max"):
            runner.generate(prompt(30, 9), max_tokens=3, timeout=20)
        pinned[0].unpin()
        assert len(runner.generate(prompt(30, 9), max_tokens=3, timeout=20, **GREEDY).tokens) == 3


def test_a_disk_cache_outlives_its_process(path: Path, tmp_path: Path) -> None:
    given, branch = prompt(200), np.concatenate([prompt(150), prompt(30, 7)])
    with make(path, disk_cache=tmp_path) as runner:
        first = runner.generate(given, max_tokens=4, **GREEDY)
        runner.generate(branch, max_tokens=4, **GREEDY)
    files = list(tmp_path.glob("*/*.kv"))
    assert len(files) == 3  # what both begin with, and what each goes on with
    with make(path, disk_cache=tmp_path) as runner:
        again = runner.generate(given, max_tokens=4, **GREEDY)
        assert (again.usage.cached_tokens, again.explain().restored_tokens) == (199, 199)
        assert again.tokens.tolist() == first.tokens.tolist()
        assert runner.generate(branch, max_tokens=1, **GREEDY).usage.cached_tokens == 179
        # another process that wants the same folder meanwhile works beside it
        with make(path, disk_cache=tmp_path) as other:
            assert other.generate(given, max_tokens=1, **GREEDY).usage.cached_tokens == 0
    # damaged files are found out, and what they held is computed
    for file in tmp_path.glob("*/*.kv"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    (files[0].parent / "stray.kv").write_bytes(b"no prefix at all")
    with make(path, disk_cache=tmp_path) as runner:
        assert not (files[0].parent / "stray.kv").exists()
        out = runner.generate(given, max_tokens=4, **GREEDY)
        assert (out.usage.cached_tokens, out.tokens.tolist()) == (0, first.tokens.tolist())
        assert runner.counters.cache.damaged > 0
    # a context of other keys has a folder of its own
    with make(path, disk_cache=tmp_path, type_k="f32") as runner:
        assert runner.generate(given, max_tokens=1, **GREEDY).usage.cached_tokens == 0
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="disk_cache"):
        make(path, disk_cache=file)


def test_the_disk_tier_has_a_size(path: Path, tmp_path: Path) -> None:
    with make(path, n_ctx=256, host_cache_bytes=0, disk_cache=tmp_path) as runner:
        runner.generate(prompt(150), max_tokens=4, **GREEDY)
        runner.generate(prompt(150, 1), max_tokens=4, **GREEDY)
        one = runner.counters.cache.disk_bytes
        assert one > 0
    for file in tmp_path.glob("*/*.kv"):
        file.unlink()
    with make(path, n_ctx=256, host_cache_bytes=0, disk_cache=tmp_path, disk_cache_bytes=2 * one) as runner:
        for seed in range(6):
            runner.generate(prompt(150, seed), max_tokens=4, **GREEDY)
            assert runner.counters.cache.disk_bytes <= 2 * one
        assert runner.generate(prompt(150, 4), max_tokens=1, **GREEDY).usage.cached_tokens == 149
        assert runner.generate(prompt(150, 0), max_tokens=1, **GREEDY).usage.cached_tokens == 0


@pytest.mark.parametrize("kind", ["mamba", "hybrid", "swa"])
def test_memories_that_cannot_be_cut_use_checkpoints(tiny_model: TinyModelFactory, kind: str) -> None:
    options: dict[str, Any] = {"swa_full": False} if kind == "swa" else {}
    system = prompt(120)
    prompts = [np.concatenate([system, prompt(20, i)]) for i in range(1, 5)]
    with make(tiny_model(kind), **options) as runner:
        first = runner.generate(prompts[0], max_tokens=4, **GREEDY)
        longer = np.concatenate([prompts[0], first.tokens, prompt(10, 9)])
        assert runner.generate(longer, max_tokens=2, **GREEDY).usage.cached_tokens == 143
        second = runner.generate(prompts[1], max_tokens=4, **GREEDY)
        assert second.usage.cached_tokens == 0
        assert "checkpoints" in second.explain().reason
        # where the second left the first there is a checkpoint now
        cached = [runner.generate(p, max_tokens=4, **GREEDY) for p in prompts[2:]]
        assert [out.usage.cached_tokens for out in cached] == [120, 120]
        with make(tiny_model(kind), **options) as fresh:
            for given, out in zip(prompts[1:], [second, *cached], strict=True):
                assert fresh.generate(given, max_tokens=4, **GREEDY).tokens.tolist() == out.tokens.tolist()
    with make(tiny_model(kind), **options) as runner:  # and those that come together
        with runner.engine.paused():
            streams = [runner.stream(p, max_tokens=4, **GREEDY) for p in prompts]
        outs = [exhaust(stream) for stream in streams]
        assert sorted(out.usage.computed_tokens for out in outs) == [20, 20, 20, 140]


# --- who goes first


def test_a_higher_priority_preempts_and_the_other_goes_on_as_if_nothing_had_been(path: Path) -> None:
    with make(path, n_ctx=512) as runner:
        alone = runner.generate(prompt(100), max_tokens=300, logprobs=2, **GREEDY)
        runner.clear_context()
        low = runner.stream(prompt(100), max_tokens=300, **SLOW)
        next(low)
        high = runner.generate(prompt(100, 1), max_tokens=200, priority=1, **GREEDY)
        assert len(high.tokens) == 200
        rest = [t for chunk in low for t in chunk.tokens]
        assert_same([low.completion], [alone])
        assert rest
        assert runner.counters.preemptions == 1
        assert low.completion.explain().preempted == 1
        assert low.completion.usage.computed_tokens == 100


def test_what_does_not_fit_waits(path: Path) -> None:
    with make(path, n_ctx=512) as runner:
        first = runner.stream(prompt(100), max_tokens=300, **SLOW)
        second = runner.stream(prompt(100, 1), max_tokens=300, **GREEDY)
        wait_for(lambda: runner.counters.waiting == 1)
        assert runner.counters.running == 1
        assert [len([t for c in s for t in c.tokens]) for s in (first, second)] == [300, 300]
        assert runner.counters.preemptions == 0


def test_unbounded_generations_give_way_when_the_memory_is_full(path: Path) -> None:
    with make(path, n_ctx=1024) as runner:
        alone = [runner.generate(prompt(60, i), max_tokens=400, logprobs=2, **GREEDY) for i in range(3)]
        runner.clear_context()
        streams = [runner.stream(prompt(60, i), max_tokens=None, stop_tokens=[], **GREEDY) for i in range(3)]
        assert [len([t for c in s for t in c.tokens]) for s in streams] == [964, 964, 964]
        assert_same([s.completion for s in streams], alone)
        assert runner.counters.preemptions > 0


def test_room_that_was_found_meanwhile_is_not_looked_for_again(path: Path) -> None:
    """Two that are held back in one step may ask twice: the second time there is nothing to be done."""
    with make(path) as runner:
        low, high = (runner.stream(prompt(60, i), max_tokens=100, priority=i, **SLOW) for i in range(2))
        next(low), next(high)
        with runner.engine.paused():
            runner.engine.scheduler.relieve()
        list(low), list(high)
        assert [len(stream.completion.tokens) for stream in (low, high)] == [100, 100]
        assert runner.counters.preemptions == 0
        alone = runner.stream(prompt(60, 2), max_tokens=None, stop_tokens=[], **SLOW)
        next(alone)
        runner.clear_context()
        with runner.engine.paused():
            runner.engine.scheduler.relieve()
        for _ in range(5):
            next(alone)
        alone.close()


def test_one_that_had_no_room_is_tried_again_before_it_ends(path: Path) -> None:
    with make(path) as runner:
        stream = runner.stream(prompt(60), max_tokens=100, **SLOW)
        next(stream)
        runner.engine.loop._fail_next(1, 1)
        list(stream)
        assert len(stream.completion.tokens) == 100
        assert runner.counters.loop["failed_decodes"] == 1
        stream = runner.stream(prompt(60), max_tokens=100, **SLOW)
        next(stream)
        runner.engine.loop._fail_next(1, 1000)
        with pytest.raises(ContextOverflowError, match="1024 cells is full"):
            list(stream)
        runner.engine.loop._fail_next(0, 0)


def test_a_sequence_may_fill_the_context(path: Path) -> None:
    with make(path, n_ctx=512) as runner:
        seq = runner.sequence(prompt(512))
        assert seq.extend(()) == 512
        assert runner.get_context_info().used == 512
        with pytest.raises(ContextOverflowError, match="513 tokens"):
            seq.extend(prompt(1))


# --- ending early


def test_cancel_from_another_thread(runner: LlamaRunner) -> None:
    stream = runner.stream(prompt(10), max_tokens=900, **SLOW)
    other = runner.stream(prompt(10, 1), max_tokens=200, **GREEDY)
    next(stream)
    threading.Timer(0.01, stream.cancel).start()
    seen = [t for chunk in stream for t in chunk.tokens]
    assert stream.completion.finish_reason == "cancelled"
    assert len(seen) < 900
    assert len([t for chunk in other for t in chunk.tokens]) == 200
    # it is left at a position that the next one goes on from
    again = runner.generate(np.concatenate([prompt(10), stream.completion.tokens]), max_tokens=1, **GREEDY)
    assert again.usage.cached_tokens == 10 + len(stream.completion.tokens) - 1


def test_cancel_while_waiting(path: Path) -> None:
    with make(path, max_running=1) as runner:
        first = runner.stream(prompt(10), max_tokens=900, **SLOW)
        wait_for(lambda: runner.counters.running == 1)
        group = runner.engine.submit(prompt(10, 1), runner_params(), n=1)
        waiting = runner.stream(prompt(10, 2), max_tokens=5, timeout=0.05, **GREEDY)
        assert list(waiting)[-1].finish_reason == "timeout"
        runner.engine.cancel(group[0])
        assert group[0].chunk().finish_reason == "cancelled"
        first.close()


def runner_params() -> Any:
    from llama_runner import GenerationParams

    return GenerationParams(max_tokens=5, **GREEDY)


def test_a_follower_that_is_cancelled_takes_nobody_along(path: Path) -> None:
    with make(path, max_running=4) as runner:
        blocker = runner.stream(prompt(10), max_tokens=900, **SLOW)
        wait_for(lambda: runner.counters.running == 1)
        group = runner.engine.submit(prompt(50, 1), runner_params(), n=4)
        runner.engine.cancel(group[0])  # the one that was to read for all
        wait_for(lambda: group[0].job.end_reason == "cancelled")
        blocker.close()
        for request in group[1:]:
            while not request.ended:
                request.chunk()
            assert len(request.completion().tokens) == 5
        assert sorted(r.usage().computed_tokens for r in group[1:]) == [0, 0, 50]


def test_a_dropped_stream_ends(runner: LlamaRunner) -> None:
    runner.stream(prompt(10), max_tokens=900, **SLOW)
    wait_for(lambda: runner.counters.finished == 1)
    assert runner.counters.cancelled == 1


def test_closing_ends_every_waiter(path: Path) -> None:
    runner = make(path, n_ctx=8192, max_running=2)
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            runner.generate(prompt(10, i), max_tokens=3000, **SLOW)
        except ClosedError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: runner.counters.running == 2)
    began = time.monotonic()
    runner.close()
    for thread in threads:
        thread.join(10)
    assert len(failures) == 6
    assert time.monotonic() - began < 5
    runner.close()
    with pytest.raises(ClosedError):
        _ = runner.counters


# --- faults


@pytest.mark.parametrize("code", [1, -2, -3])
def test_a_failed_decode_is_tried_again_with_less(runner: LlamaRunner, code: int) -> None:
    alone = [runner.generate(prompt(40, i), max_tokens=8, logprobs=2, **GREEDY) for i in range(4)]
    runner.clear_context()
    runner.engine.loop._fail_next(code, 2)
    outs = runner.generate_many([prompt(40, i) for i in range(4)], max_tokens=8, **GREEDY)
    assert_same(outs, alone)
    assert runner.counters.loop["failed_decodes"] == 2


def test_what_cannot_be_computed_costs_its_own_request(runner: LlamaRunner) -> None:
    from llama_runner.errors import DecodeError, OutOfMemoryError

    for code, kind in ((-3, DecodeError), (-2, OutOfMemoryError)):
        runner.engine.loop._fail_next(code, 50)
        with pytest.raises(kind) as caught:
            runner.generate(prompt(1), max_tokens=4, **GREEDY)
        assert getattr(caught.value, "code", code) == code
        runner.engine.loop._fail_next(0, 0)
        assert len(runner.generate(prompt(4), max_tokens=4, **GREEDY).tokens) == 4


def test_bad_options_name_their_value(path: Path) -> None:
    for name, value in (
        ("max_waiting", 0), ("max_running", 0), ("max_running", 999), ("host_cache_bytes", -1),
        ("disk_cache_bytes", -1), ("slice_seconds", 0), ("pace", 0.5),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=name):
            make(path, **{name: value})
    with pytest.raises(UnknownParameterError, match="max_runing"):
        make(path, max_runing=3)
    with make(path) as runner:
        with pytest.raises(InvalidArgumentError, match="n=0"):
            runner.generate(prompt(3), n=0)
        with pytest.raises(ContextBusyError, match="loop"):
            runner.context.close()
