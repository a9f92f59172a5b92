"""``RunnerPool`` in one process: loading, sharing, the budget, waiting, and the end."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, RunnerPool
from llama_runner.core import estimate_memory
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ForkedProcessError,
    InvalidArgumentError,
    LlamaRuntimeError,
    ModelCapabilityError,
    ModelFormatError,
    ModelNotFoundError,
    OutOfMemoryError,
    PoolTimeoutError,
    UnknownParameterError,
)
from llama_runner.pool.copies import Copy, Entry, State, bytes_of, room_for
from llama_runner.pool.spec import Measured

SIZES = {"n_ctx": 256, "n_seq_max": 4, "n_threads": 1, "n_batch": 64}
SHORT = {"max_tokens": 8, "temperature": 0, "seed": 1, "ignore_eos": True}


class Gate(os.PathLike[str]):
    """A path that tells where it leads only when it is opened: a load that takes as long as a test wants."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.opened = path, threading.Event(), threading.Event()
        self.times = 0

    def __fspath__(self) -> str:
        self.times += 1
        self.asked.set()
        assert self.opened.wait(30)
        return str(self.path)


@pytest.fixture(scope="module")
def paths(tiny_model: TinyModelFactory) -> dict[str, Path]:
    """Three models that differ in their weights, the last one in its size too."""
    return {
        "a": tiny_model("llama", seed=1),
        "b": tiny_model("llama", seed=2),
        "c": tiny_model("llama", seed=3, n_layer=4),
    }


@pytest.fixture(scope="module")
def sizes(paths: dict[str, Path]) -> dict[str, int]:
    return {name: estimate_memory(path, **SIZES).total for name, path in paths.items()}


@pytest.fixture
def pools() -> Iterator[list[RunnerPool]]:
    made: list[RunnerPool] = []
    yield made
    for pool in made:
        pool.close()


def loaded(pool: RunnerPool) -> dict[str, int]:
    return {info.name: info.copies for info in pool.info() if info.copies}


def really_used(pool: RunnerPool) -> int:
    """What llama.cpp says of everything that is loaded; weights that are shared count once."""
    contexts, weights = 0, {}
    for entry in pool._entries.values():
        for copy in entry.copies:
            with copy.runner.engine.paused() as context:
                found = context.memory_breakdown
            contexts += found["context"] + found["compute"]
            weights[id(copy.runner.model)] = found["model"]
    return contexts + sum(weights.values())


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.005)


def waiting(pool: RunnerPool) -> int:
    return sum(info.waiting for info in pool.info())


# --- loading -----------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_asked_for(paths, sizes, pools):
    pools.append(pool := RunnerPool(paths, **SIZES))
    assert loaded(pool) == {}
    assert pool.memory_used == 0
    with pool.get("a") as runner:
        assert loaded(pool) == {"a": 1}
        said = runner.generate("hello world", **SHORT)
        assert next(info.checkouts for info in pool.info()) == 1
    with LlamaRunner(paths["a"], **SIZES) as alone:
        assert alone.generate("hello world", **SHORT) == said
    assert pool.memory_used == sizes["a"]
    with pool.get("a") as again:
        assert again is runner
    info = pool.info()[0]
    assert (info.name, info.copies, info.max_copies, info.checkouts, info.bytes) == ("a", 1, 1, 0, sizes["a"])
    assert abs(info.last_use - time.time()) < 60
    assert pool.info()[1].last_use is None
    assert info.to_dict()["restarts"] == 0


@pytest.mark.parametrize("kind", ["llama", "mamba", "hybrid"])
def test_sizes_left_out_are_measured_as_they_are_loaded(tiny_model, pools, kind):
    pools.append(pool := RunnerPool({"m": tiny_model(kind)}, n_threads=1))
    with pool.get("m") as runner:
        assert pool.memory_used == really_used(pool)
        assert runner.context.n_ctx == 512


@pytest.mark.real_model
def test_by_a_short_name(smollm2, pools):
    pools.append(pool := RunnerPool({"small": "smollm2-135m"}, n_ctx=512, n_threads=1))
    with pool.get("small") as runner:
        assert runner.generate("The capital of France is", max_tokens=4, temperature=0).text.startswith(
            " Paris"
        )
    assert pool.memory_used == really_used(pool)


def test_many_threads_load_once_and_share(paths, pools):
    gate = Gate(paths["a"])
    gate.opened.set()
    pools.append(pool := RunnerPool({"a": gate}, **{**SIZES, "n_seq_max": 8}))

    def work(n: int) -> tuple[int, str]:
        with pool.get("a") as runner:
            return id(runner), runner.generate(f"hello {n % 2}", **SHORT).text

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(work, range(6)))
    assert gate.times == 1
    assert len({runner for runner, _ in results}) == 1
    assert len({text for _, text in results[::2]}) == len({text for _, text in results[1::2]}) == 1
    assert results[0][1] != results[1][1]


def test_a_load_keeps_nobody_else_waiting(paths, pools):
    slow = Gate(paths["a"])
    pools.append(pool := RunnerPool({"slow": slow, "b": paths["b"]}, **SIZES))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(pool.preload, "slow")
        assert slow.asked.wait(10)
        with pool.get("b", timeout=10) as runner:
            assert runner.generate("hello", **SHORT).usage.completion_tokens == 8
        with pytest.raises(PoolTimeoutError, match="'slow' in time: the model is being found"):
            pool.preload("slow", timeout=0.05)
        assert not first.done()
        slow.opened.set()
        first.result(20)
    assert loaded(pool) == {"slow": 1, "b": 1}


def test_a_load_that_fails_tells_everyone_and_the_next_tries_again(paths, tmp_path, pools):
    late = tmp_path / "late.gguf"
    gate = Gate(late)
    pools.append(pool := RunnerPool({"late": gate}, **SIZES))
    with ThreadPoolExecutor(3) as threads:
        tries = [threads.submit(pool.preload, "late") for _ in range(3)]
        wait_until(lambda: waiting(pool) == 3)
        gate.opened.set()
        errors = [work.exception(20) for work in tries]
    assert [type(error) for error in errors] == [ModelNotFoundError] * 3
    assert len({id(error) for error in errors}) == 3
    assert gate.times == 1
    assert "late.gguf" in str(errors[0])
    shutil.copy(paths["a"], late)
    with pool.get("late") as runner:
        assert runner.generate("hello", **SHORT).tokens.size == 8


def test_what_cannot_be_loaded_leaves_nothing_behind(paths, tiny_model, tmp_path, pools):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and no more")
    models = {
        "broken": broken,
        "encoder": tiny_model("bert"),
        "a": paths["a"],
        "typed": {"model": paths["a"], "type_k": 7},
    }
    pools.append(pool := RunnerPool(models, memory_budget=1 << 30, **SIZES))
    for name, kind in (
        ("broken", ModelFormatError),
        ("encoder", ModelCapabilityError),
        ("typed", InvalidArgumentError),
    ):
        with pytest.raises(kind):
            pool.preload(name)
        assert pool.memory_used == 0
    pool.preload("a")
    assert loaded(pool) == {"a": 1}


def test_a_file_that_changed_is_measured_anew(paths, sizes, tmp_path, pools):
    file = tmp_path / "model.gguf"
    shutil.copy(paths["a"], file)
    pools.append(pool := RunnerPool({"m": file}, **SIZES))
    pool.preload("m")
    assert pool.memory_used == sizes["a"]
    file.unlink()
    shutil.copy(paths["c"], file)
    assert pool.unload("m") == 1
    assert (pool.memory_used, loaded(pool), pool.unload("m")) == (0, {}, 0)
    pool.preload("m")
    assert pool.memory_used == sizes["c"] == really_used(pool)


# --- the budget --------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_to_the_byte(paths, sizes, pools):
    assert sizes["a"] == sizes["b"] < sizes["c"]
    budget = sizes["a"] + sizes["c"]
    pools.append(pool := RunnerPool(paths, memory_budget=budget, **SIZES))
    pool.preload("a", "b")
    assert pool.memory_used == really_used(pool) == 2 * sizes["a"]
    with pool.get("a"):
        pass  # now b is the older one
    pool.preload("c")
    assert loaded(pool) == {"a": 1, "c": 1}
    assert pool.memory_used == really_used(pool) == budget  # nothing was left over
    pool.preload("b")
    assert loaded(pool) == {"b": 1, "c": 1}  # a was the older one, and c could stay
    assert pool.memory_used == really_used(pool)


def test_one_byte_less_and_it_goes_for_another(paths, sizes, pools):
    pools.append(pool := RunnerPool(paths, memory_budget=sizes["a"] + sizes["b"] - 1, **SIZES))
    pool.preload("a", "b")
    assert loaded(pool) == {"b": 1}
    with pytest.raises(OutOfMemoryError) as caught:
        RunnerPool(paths, memory_budget=sizes["c"] - 1, **SIZES).preload("c")
    assert str(sizes["c"]) in str(caught.value)
    assert str(sizes["c"] - 1) in str(caught.value)
    assert "'c'" in str(caught.value)


def test_nothing_is_closed_in_vain(paths, sizes, tiny_model, pools):
    big = estimate_memory(paths["c"], **{**SIZES, "n_ctx": 1024}).total
    models = {
        "little": paths["a"],
        "middle": {"model": paths["b"], "n_ctx": 512},
        "big": {"model": paths["c"], "n_ctx": 1024},
        "other": tiny_model("llama", seed=4, n_layer=4),
    }
    pools.append(pool := RunnerPool(models, memory_budget=sizes["a"] + big, **SIZES))
    pool.preload("little", "middle", "big")  # closing the oldest, which is little, would not have been enough
    assert loaded(pool) == {"little": 1, "big": 1}
    # for what has no room in either case, nothing is closed
    with pool.get("big"), pytest.raises(PoolTimeoutError, match="'other' in time"):
        pool.preload("other", timeout=0.1)
    assert loaded(pool) == {"little": 1, "big": 1}


def test_what_is_being_closed_is_there_until_it_is_gone():
    def copy(size: int, state: State, last_use: int = 0) -> Copy:
        made = Copy(Entry(None), 0, Measured("", None, 256, 4, size, 0), state)
        made.last_use = last_use
        return made

    going, coming, new = copy(6, State.CLOSING), copy(6, State.LOADING), copy(4, State.LOADING)
    assert bytes_of([going, coming, new]) == 16
    assert room_for(new, [going, coming], 15, False) is None  # later, once ``going`` is gone
    assert room_for(new, [coming], 15, False) == []
    old, young = copy(5, State.READY, 1), copy(5, State.READY, 2)
    assert room_for(new, [young, old, going, coming], 15, False) is None
    assert room_for(new, [young, old, coming], 15, False) == [old]
    assert room_for(new, [young, old, coming], 15, True) is None
    assert room_for(new, [young, old, coming], 10, False) == [old, young]
    old.checkouts = 1
    assert room_for(new, [young, old, coming], 15, False) == [young]
    young.entry.pinned = True
    assert room_for(new, [young, old, coming], 15, False) is None


def test_what_is_taken_is_waited_for(paths, sizes, pools):
    pools.append(pool := RunnerPool(paths, memory_budget=sizes["c"], **SIZES))
    with ThreadPoolExecutor(2) as threads:
        with pool.get("a") as runner:
            began = time.monotonic()
            with pytest.raises(
                PoolTimeoutError, match=r"'b' in time: it takes .* were not returned"
            ) as caught:
                pool.preload("b", timeout=0.1)
            assert 0.1 <= time.monotonic() - began < 10
            assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, LlamaRuntimeError)
            others = [threads.submit(pool.preload, name) for name in ("b", "c")]
            wait_until(lambda: waiting(pool) == 2)
            assert runner.generate("hello", **SHORT).tokens.size == 8
            assert not any(work.done() for work in others)
        for work in others:
            work.result(20)
    assert waiting(pool) == 0
    assert runner.closed
    with pytest.raises(ClosedError):
        runner.generate("hello")
    assert len(loaded(pool)) == 1


def test_never_more_than_the_budget_whoever_comes(paths, sizes, pools):
    models = {**paths, "a2": {"model": paths["a"], "copies": 2}, "b2": {"model": paths["b"], "n_ctx": 512}}
    budget = sizes["a"] + sizes["c"]
    pools.append(pool := RunnerPool(models, memory_budget=budget, **SIZES))
    with LlamaRunner(paths["a"], **SIZES) as alone:
        expected = alone.generate("hello", **SHORT).text
    over, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.0005):
            used = pool.memory_used
            if used > budget:
                over.append(used)

    def work(seed: int) -> int:
        draw, done = random.Random(seed), 0
        for _ in range(25):
            name = draw.choice(sorted(models))
            with pool.get(name, exclusive=draw.random() < 0.3, timeout=30) as runner:
                text = runner.generate("hello", **SHORT).text
                assert (text == expected) == (name in ("a", "a2"))
                done += 1
        return done

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(work, range(3))) == [25] * 3
    finally:
        ended.set()
        watcher.join()
    assert over == []
    assert sum(info.checkouts for info in pool.info()) == 0
    assert pool.memory_used == really_used(pool) <= budget


def test_what_is_pinned_stays(paths, sizes, pools):
    pools.append(pool := RunnerPool(paths, memory_budget=sizes["a"] + sizes["b"], **SIZES))
    pool.pin("a")
    pool.preload("b")
    assert [info.pinned for info in pool.info()] == [True, False, False]
    with pytest.raises(OutOfMemoryError, match=f"besides the {sizes['a']} of what is pinned"):
        pool.preload("c")
    assert loaded(pool) == {"a": 1, "b": 1}
    pool.unpin("a")
    pool.preload("c")
    assert loaded(pool) == {"c": 1}


def test_a_conversation_outlives_its_runner(paths, pools):
    prompts = ["hello world", " you that", " from one"]
    with LlamaRunner(paths["a"], **SIZES) as alone:
        expected = [alone.generate_stateful(prompt, **SHORT) for prompt in prompts]
        assert expected[1] != alone.generate(prompts[1], **SHORT).text  # it matters what was said before
    pools.append(pool := RunnerPool(paths, **SIZES))
    answers = []
    for prompt in prompts:
        with pool.get("a") as runner:
            answers.append(runner.generate_stateful(prompt, **SHORT))
        assert pool.unload("a") == 1
    assert answers == expected
    with pool.get("a") as runner:
        runner.clear_context()
    pool.unload("a")
    with pool.get("a") as runner:
        assert runner.generate_stateful(prompts[0], **SHORT) == expected[0]


# --- copies and exclusive ----------------------------------------------------------------------------


def test_copies_share_the_weights_and_the_least_busy_is_given(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, copies=2, **SIZES))
    estimate = estimate_memory(paths["a"], **SIZES)
    with pool.get("a") as one, pool.get("a") as two:
        assert one is not two
        assert one.model is two.model
        assert pool.memory_used == estimate.weights + 2 * (estimate.kv + estimate.compute)
        assert pool.memory_used == really_used(pool)
        assert one.generate("hello", **SHORT) == two.generate("hello", **SHORT)
        with pool.get("a") as three, pool.get("a") as four:
            assert {id(three), id(four)} == {id(one), id(two)}
            assert pool.info()[0].checkouts == 4
    with pool.get("a") as again:
        assert again in (one, two)
    assert loaded(pool) == {"a": 2}
    assert pool.unload("a") == 2


def test_names_of_one_file_share_its_weights(paths, pools):
    models = {"short": {"model": paths["a"], "n_ctx": 256}, "long": {"model": paths["a"], "n_ctx": 512}}
    pools.append(pool := RunnerPool(models, **SIZES))
    with pool.get("short") as short, pool.get("long") as long:
        assert short.model is long.model
        assert (short.context.n_ctx, long.context.n_ctx) == (256, 512)
    assert pool.memory_used == really_used(pool) == sum(info.bytes for info in pool.info())
    pool.unload("short")  # the weights stay with the other
    assert pool.memory_used == really_used(pool)
    with pool.get("long") as runner:
        assert runner.generate("hello", **SHORT).tokens.size == 8
    pool.unload("long")
    assert long.model.closed


def test_one_more_copy_closes_nothing(paths, sizes, pools):
    estimate = estimate_memory(paths["a"], **SIZES)
    budget = sizes["a"] + sizes["b"]
    pools.append(pool := RunnerPool(paths, copies=2, memory_budget=budget, **SIZES))
    pool.preload("b")
    with pool.get("a") as one, pool.get("a", timeout=10) as two:
        assert one is two
        assert loaded(pool) == {"a": 1, "b": 1}
        # who wants one alone cannot share, and it does
        with pool.get("a", exclusive=True, timeout=10) as three:
            assert three is not one
            assert loaded(pool) == {"a": 2}
            assert pool.memory_used == sizes["a"] + estimate.kv + estimate.compute


def test_exclusive_has_it_alone(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, **SIZES))
    order = []

    def work(exclusive: bool) -> None:
        with pool.get("a", exclusive=exclusive, timeout=20):
            order.append(exclusive)

    with ThreadPoolExecutor(2) as threads:
        with pool.get("a", exclusive=True):
            with pytest.raises(PoolTimeoutError, match="1 of 1 copies are loaded, and all are taken"):
                pool.preload("a", timeout=0.05)
            done = [threads.submit(work, True), threads.submit(work, False)]
            wait_until(lambda: waiting(pool) == 2)
            assert order == []
        for future in done:
            future.result(20)
        assert sorted(order) == [False, True]
        with pool.get("a"), pool.get("a"), pytest.raises(PoolTimeoutError):
            pool.get("a", exclusive=True, timeout=0.05).__enter__()
        with pool.get("a", exclusive=True, timeout=10):
            pass


def test_who_closes_a_runner_gets_a_new_one_next_time(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, **SIZES))
    with pool.get("a") as first:
        first.close()
    with pool.get("a", timeout=10) as second:
        assert second is not first
        assert second.generate("hello", **SHORT).tokens.size == 8
    assert loaded(pool) == {"a": 1}


def test_a_checkout_is_entered_once_at_a_time(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, **SIZES))
    checkout = pool.get("a")
    with checkout, pytest.raises(InvalidArgumentError, match="in use"):
        checkout.__enter__()
    with checkout:
        assert pool.info()[0].checkouts == 1
    assert pool.info()[0].checkouts == 0


# --- asyncio -----------------------------------------------------------------------------------------


def test_async_waits_without_blocking(paths, sizes, pools):
    slow = Gate(paths["a"])
    options = {**SIZES, "n_seq_max": 40}
    budget = estimate_memory(paths["b"], **options).total
    pools.append(pool := RunnerPool({"slow": slow, "b": paths["b"]}, memory_budget=budget, **options))

    async def take(name: str, timeout: float | None = None) -> int:
        async with pool.aget(name, timeout=timeout) as runner:
            return (await asyncio.to_thread(runner.generate, "hello", **SHORT)).tokens.size

    async def main() -> None:
        first = asyncio.create_task(take("slow"))
        await asyncio.to_thread(slow.asked.wait, 10)
        assert await asyncio.wait_for(take("b"), 20) == 8  # in the same loop, meanwhile
        with pytest.raises(PoolTimeoutError, match="'slow' in time"):
            await take("slow", timeout=0.05)
        given_up = asyncio.create_task(take("slow"))
        await asyncio.sleep(0.05)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert waiting(pool) == 1
        slow.opened.set()
        assert await asyncio.wait_for(first, 20) == 8
        # more who wait than the loop's own threads, while the one who has it needs such a thread
        assert (
            await asyncio.wait_for(asyncio.gather(*(take(name) for name in ("slow", "b") * 20)), 60)
            == [8] * 40
        )

    asyncio.run(main())
    assert waiting(pool) == 0
    assert not any(info.checkouts for info in pool.info())


@pytest.mark.skipif(not hasattr(LlamaRunner, "agenerate"), reason="this LlamaRunner has no asyncio")
def test_async_generation(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, **SIZES))

    async def main() -> None:
        async with pool.aget("a") as runner:
            one, two = await asyncio.gather(
                runner.agenerate("hello", **SHORT), runner.agenerate("world", **SHORT)
            )
            assert one.text == "".join([chunk.text async for chunk in runner.astream("hello", **SHORT)])
            assert one != two

    asyncio.run(main())


# --- the end -----------------------------------------------------------------------------------------


def test_close_ends_what_is_out_and_who_waits(paths, sizes, pools):
    pool = RunnerPool(paths, memory_budget=sizes["c"], **SIZES)
    with ThreadPoolExecutor(1) as threads:
        with pool.get("a") as runner:
            stream = runner.stream("hello", max_tokens=100, ignore_eos=True)
            next(stream)
            other = threads.submit(pool.preload, "b")
            wait_until(lambda: waiting(pool) == 1)
            pool.close()
            with pytest.raises(ClosedError, match="RunnerPool was closed"):
                other.result(20)
            with pytest.raises(ClosedError):
                runner.generate("hello")
            stream.close()
        pool.close()
    assert pool.closed
    assert repr(pool) == "<RunnerPool closed>"
    for call in (lambda: pool.get("a"), lambda: pool.preload("a"), pool.__enter__):
        with pytest.raises(ClosedError):
            call()
    assert pool.memory_used == 0


def test_close_can_wait_for_what_is_out(paths):
    pool = RunnerPool({"a": paths["a"]}, **SIZES)
    with ThreadPoolExecutor(1) as threads:
        with pool.get("a") as runner:
            closing = threads.submit(pool.close, timeout=None)
            wait_until(lambda: pool.closed)
            assert runner.generate("hello", **SHORT).tokens.size == 8
            assert not closing.done()
        closing.result(20)
    assert runner.closed


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("llama-runner-")}


def test_close_ends_a_load(paths):
    before = own_threads()
    gate = Gate(paths["a"])
    pool = RunnerPool({"a": gate}, **SIZES)
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(pool.preload, "a")
        assert gate.asked.wait(10)
        closing = threads.submit(pool.close)
        with pytest.raises(ClosedError):
            loading.result(20)
        gate.opened.set()
        closing.result(20)
    assert pool.memory_used == 0
    assert own_threads() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_refused(paths, pools):
    pools.append(pool := RunnerPool({"a": paths["a"]}, **SIZES))
    with pool.get("a") as runner:
        checkout = pool.get("a")
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                with pytest.raises(ForkedProcessError):
                    pool.get("a")
                with pytest.raises(ForkedProcessError):
                    checkout.__enter__()
                with pytest.raises(ForkedProcessError):
                    pool.info()
                with pytest.raises(ForkedProcessError):
                    pool.unload("a")
                pool.close()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert runner.generate("hello", **SHORT).tokens.size == 8


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "options", "kind", "named"),
    [
        ([("a", "x")], {}, ArgumentTypeError, "list"),
        ({}, {}, InvalidArgumentError, "empty"),
        ({"": "x"}, {}, InvalidArgumentError, "name"),
        ({1: "x"}, {}, ArgumentTypeError, "1"),
        ({"a": 5}, {}, ArgumentTypeError, "'a'"),
        ({"a": {"path": "x"}}, {}, InvalidArgumentError, "'model'"),
        ({"a": {"model": "x", "n_cxt": 1}}, {}, UnknownParameterError, "n_ctx"),
        ({"a": {"model": "x", "copies": 0}}, {}, InvalidArgumentError, "copies=0"),
        ({"a": {"model": "x", "worker": 1}}, {}, ArgumentTypeError, "worker=1"),
        ({"a": {"model": "x", "n_ctx": 0}}, {}, InvalidArgumentError, "n_ctx=0"),
        ({"a": "x"}, {"n_threds": 1}, UnknownParameterError, "n_threads"),
        ({"a": "x"}, {"memory_budget": 0}, InvalidArgumentError, "memory_budget=0"),
        ({"a": "x"}, {"memory_budget": 1.5}, ArgumentTypeError, "memory_budget=1.5"),
        ({"a": "x"}, {"copies": True}, ArgumentTypeError, "copies=True"),
        ({"a": "x"}, {"workers": "no"}, ArgumentTypeError, "workers='no'"),
        ({"a": "x"}, {"max_restarts": -1}, InvalidArgumentError, "max_restarts=-1"),
        ({"a": "x"}, {"restart_window": float("nan")}, InvalidArgumentError, "restart_window=nan"),
    ],
)
def test_bad_pools(models, options, kind, named):
    with pytest.raises(kind, match=named):
        RunnerPool(models, **options)


def test_bad_calls(paths, pools):
    pools.append(pool := RunnerPool(paths, **SIZES))
    assert "a" in pool and "z" not in pool
    for method in (pool.get, pool.aget, pool.preload, pool.pin, pool.unpin, pool.unload):
        with pytest.raises(InvalidArgumentError, match="'z'"):
            method("z")
        with pytest.raises(ArgumentTypeError, match="name=3"):
            method(3)
    with pytest.raises(InvalidArgumentError, match="timeout=-1"):
        pool.get("a", timeout=-1)
    with pytest.raises(ArgumentTypeError, match="exclusive=1"):
        pool.get("a", exclusive=1)
    with pool.get("a", timeout=1e300) as runner, pytest.raises(UnknownParameterError):
        runner.generate("hello", max_tokns=3)
