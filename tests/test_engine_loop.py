"""``Job`` and ``DecodeLoop`` by themselves: every method, what they refuse, forks, poison, and the end under load."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_truth import EXACT, Alone
from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Context, DecodeLoop, Job, LoraAdapter, Model, SamplerChain, live_objects
from tiny_adapters import random_pairs, write_lora

TOKENS = np.arange(300, 320, dtype=np.int32)
PATIENCE = 30.0


@pytest.fixture
def ctx(tiny_model: TinyModelFactory) -> Iterator[Context]:
    with Context(Model(tiny_model("llama")), n_ctx=256, n_batch=32, n_seq_max=6, **EXACT) as made:
        yield made


@pytest.fixture
def loop(ctx: Context) -> Iterator[DecodeLoop]:
    with DecodeLoop(ctx) as made:
        yield made


def greedy() -> SamplerChain:
    return SamplerChain().greedy()


def job_of(loop: DecodeLoop, tokens: Any = TOKENS, **options: Any) -> Job:
    options = {"chain": greedy(), "max_tokens": 8, "ignore_eos": True, **options}
    return Job(loop.context.model.vocab, tokens, **options)


def until(done: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.001)
    return found


def read(job: Job) -> tuple[bytes, list[int], list[Any], str]:
    text, tokens, scores, end = b"", [], [], None
    while end is None:
        assert job.wait(PATIENCE)
        piece, new, more, end = job.take()
        text, tokens, scores = text + piece, tokens + new, scores + (more or [])
    return text, tokens, scores, end


def ended(loop: DecodeLoop, n: int = 1) -> list[Job]:
    found: list[Job] = []
    until(lambda: found.extend(loop.ended()) or len(found) >= n, f"{n} jobs end")
    return found


# ---------------------------------------------------------------------------------------------------- Job


def test_a_job_reads_samples_and_ends(loop: DecodeLoop) -> None:
    alone = Alone(loop.context.model)
    job = job_of(loop, logprobs=2, tag=7)
    assert repr(job) == "<Job not ended 0 of 20 tokens resident>"
    assert job.end_reason is None
    assert job.take() == (b"", [], [], None)
    assert job.wait(0) is False
    loop.add(job)
    text, tokens, scores, end = read(job)
    assert (end, len(tokens), len(scores)) == ("length", 8, 8)
    assert text == loop.context.model.vocab.detokenize(tokens).encode()
    assert np.array_equal(job.tokens, [*TOKENS, *tokens])
    rows = alone.logprobs(job.tokens)[len(TOKENS) - 1 : -1]
    for row, token, (score, top) in zip(rows, tokens, scores, strict=True):
        assert abs(row[token] - score) < 5e-3
        assert abs(top[0][1] - row.max()) < 5e-3
        assert len(top) == 2
        assert token == top[0][0]
    assert ended(loop) == [job]
    progress = job.progress
    assert progress["end"] == job.end_reason == "length"
    assert progress["error"] is None
    assert progress["tag"] == 7
    assert progress["n_tokens"] == 28
    assert progress["n_resident"] == progress["n_reached"] + 7 == 27
    assert (progress["n_sampled"], progress["n_computed"]) == (8, 20)
    times = [progress[name] for name in ("added_us", "fed_us", "first_us", "last_us")]
    assert times == sorted(times)
    assert times[0] > 0
    assert repr(job) == "<Job length 27 of 28 tokens resident>"
    assert (job.raised, job.stop_match, job.error_text) == (None, None, "")
    assert job.take() == (b"", [], [], "length")
    assert job.wait(0)
    alone.close()


def test_stop_strings_and_stop_tokens(loop: DecodeLoop) -> None:
    plain = job_of(loop, tag=1)
    loop.add(plain)
    text, tokens, _, _ = read(plain)
    ended(loop)
    word = text.decode()[3:6]
    for tag, stop in enumerate([(word,), (word.encode(), "never there")], 2):
        loop.pause()
        loop.context.memory.clear()
        loop.resume()
        job = job_of(loop, stop=stop, tag=tag)
        loop.add(job)
        found, _, _, end = read(job)
        assert end == "stop"
        assert job.stop_match == stop[0]
        assert found == text[: text.index(word.encode())]
        ended(loop)
    loop.pause()
    loop.context.memory.clear()
    loop.resume()
    job = job_of(loop, stop_tokens=[tokens[2]], tag=9)
    loop.add(job)
    assert read(job)[1::2] == (tokens[: tokens.index(tokens[2]) + 1], "stop")
    assert job.stop_match is None


def test_shown_tokens_are_written_out(loop: DecodeLoop) -> None:
    vocab = loop.context.model.vocab
    bos = vocab.bos
    assert bos is not None and not vocab.is_eog(bos) and vocab.token_to_piece(bos) == b""
    for tag, shown, text in ((1, (), b""), (2, [bos], vocab.token_to_piece(bos, special=True) * 3)):
        job = job_of(loop, chain=SamplerChain().logit_bias(vocab, {bos: 1e6}).greedy(), max_tokens=3, tag=tag,
                     shown_tokens=shown)  # fmt: skip
        loop.add(job)
        assert read(job)[:2] == (text, [bos] * 3)
        ended(loop)
        loop.pause()
        loop.context.memory.clear()
        loop.resume()
    with pytest.raises(errors.IndexOutOfRangeError):
        job_of(loop, shown_tokens=[len(vocab)])


def test_what_fed_tokens_leave(loop: DecodeLoop) -> None:
    alone = Alone(loop.context.model)
    expected = alone.logprobs(TOKENS)
    job = job_of(loop, chain=None, max_tokens=0, want=("logits", "logprobs"), want_from=5, tag=1)
    assert len(job.wanted("logits")) == 0
    assert np.isnan(job.wanted("logprobs")).all()
    loop.add(job)
    assert read(job)[3] == "fed"
    scored = job.wanted("logprobs")
    assert np.abs(scored - expected[np.arange(4, 19), TOKENS[5:]]).max() < 5e-3
    logits = job.wanted("logits")
    logits -= logits.max()
    assert np.abs(logits - np.log(np.exp(logits).sum()) - expected[-1]).max() < 5e-3
    assert len(job.wanted("embedding")) == 0
    with pytest.raises(errors.InvalidArgumentError, match="want="):
        job.wanted("nothing")
    alone.close()


def test_scores_are_of_the_rows_of_their_own_job(loop: DecodeLoop) -> None:
    """Those that read are ordered by what is left of them: the rows of a batch are not in the order of the jobs."""
    alone = Alone(loop.context.model)
    fed = [TOKENS[::-1].copy(), np.roll(TOKENS, 3), TOKENS[:4]]
    jobs = [
        job_of(loop, tokens, chain=None, max_tokens=0, seq_id=i, tag=i, want=("logprobs",) if i == 1 else ())
        for i, tokens in enumerate(fed)
    ]
    loop.pause()
    for job in jobs:
        loop.add(job)
    loop.resume()
    assert [read(job)[3] for job in jobs] == ["fed"] * 3
    expected = alone.logprobs(fed[1])[np.arange(19), fed[1][1:]]
    assert np.abs(jobs[1].wanted("logprobs") - expected).max() < 5e-3
    alone.close()


def test_a_feed_may_be_resident_already(loop: DecodeLoop) -> None:
    first = job_of(loop, chain=None, max_tokens=0, tag=1)
    loop.add(first)
    assert read(first)[3] == "fed"
    ended(loop)
    again = job_of(loop, chain=None, max_tokens=0, tag=2)
    loop.place(again, 0, len(TOKENS))
    loop.add(again)
    assert read(again)[3] == "fed"
    assert again.progress["n_computed"] == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tokens": []}, "empty"),
        ({"tokens": [5000]}, "5000"),
        ({"seq_id": 256}, "seq_id"),
        ({"n_resident": 20}, "n_resident"),
        ({"n_resident": -1}, "n_resident"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "chain": None}, "without a chain"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 10_000}, "logprobs"),
        ({"priority": 2**31}, "priority"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"want": "nothing"}, "want="),
        ({"want_from": 0}, "want_from"),
        ({"processor": -2}, "processor"),
        ({"adapters": -1}, "adapters"),
        ({"tag": -1}, "tag"),
        ({"tag": 2**64}, "tag"),
        ({"stop": [""]}, "stop string"),
        ({"stop_tokens": [-1]}, "-1"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"notify": "yes"}, "notify"),
    ],
)
def test_what_a_job_refuses(loop: DecodeLoop, options: dict[str, Any], match: str) -> None:
    tokens = options.pop("tokens", TOKENS)
    with pytest.raises(errors.LlamaRunnerError, match=match):
        job_of(loop, tokens, **options)


def test_methods_of_a_job_refuse(loop: DecodeLoop) -> None:
    job = job_of(loop, tag=1)
    for call in (
        lambda: job.__init__(loop.context.model.vocab, TOKENS),  # type: ignore[misc]
        lambda: job.wait(-1),
        lambda: job.wait("long"),
        lambda: job.mark(0, 1),
        lambda: job.mark(1, 256),
        lambda: job.watch(0),
        lambda: job.hold(-1),
        lambda: job.finish(None),
        lambda: job.finish("over"),
        lambda: job.finish("error", "nothing known"),
        lambda: job.finish("error", "decode", 3),
    ):
        with pytest.raises(errors.LlamaRunnerError):
            call()
    loop.pause()
    loop.add(job)
    with pytest.raises(errors.InvalidArgumentError, match="in a loop"):
        job.finish("cancelled")
    loop.resume()
    read(job)


def test_a_job_that_never_ran_can_be_finished(loop: DecodeLoop) -> None:
    job = job_of(loop)
    job.finish("error", "no_room", "there is no room")
    job.finish("cancelled")  # the first end counts
    assert job.take() == (b"", [], None, "error")
    assert (job.progress["error"], job.error_text) == ("no_room", "there is no room")


def test_cancel_and_timeout(loop: DecodeLoop) -> None:
    job, late = job_of(loop, max_tokens=200, tag=1), job_of(loop, max_tokens=200, timeout=0, tag=2, seq_id=1)
    loop.pause()
    loop.add(job)
    loop.add(late)
    job.cancel()
    job.cancel()
    loop.resume()
    assert read(job)[1:] == ([], [], "cancelled")
    assert read(late)[1:] == ([], [], "timeout")
    loop._fail_next(1, 10_000)  # what is held back can be cancelled, and run out of time
    stalled = job_of(loop, tag=3, seq_id=2)
    loop.add(stalled)
    until(lambda: loop.counters["n_stalled"], "it is held back")
    stalled.cancel()
    assert read(stalled)[3] == "cancelled"
    loop._fail_next(0, 0)


def test_one_that_is_held_goes_on_when_it_may(loop: DecodeLoop) -> None:
    job, other = job_of(loop, max_tokens=30, tag=1), job_of(loop, max_tokens=30, tag=2, seq_id=1)
    job.hold(25)
    loop.add(job)
    loop.add(other)
    read(other)
    until(lambda: loop.counters["n_stalled"] == 1, "it is held back")
    assert "room" in loop.wait(0)
    assert (job.progress["n_tokens"], job.progress["n_resident"]) == (25, 24)
    loop.pause()
    loop.unstall()  # without leave it does not get on
    loop.resume()
    until(lambda: "room" in loop.wait(1), "it asks again")
    assert job.progress["n_resident"] == 24
    loop.pause()
    job.hold(0)
    loop.unstall()
    loop.resume()
    assert len(read(job)[1]) == 30
    late = job_of(loop, tag=3, max_tokens=30)
    late.hold(25)
    loop.add(late)
    until(lambda: loop.counters["n_stalled"] == 1, "it is held back")
    late.cancel()
    assert read(late)[3] == "cancelled"


def test_a_mark_is_a_copy_and_a_second_one_another(loop: DecodeLoop) -> None:
    memory = loop.context.memory
    job = job_of(loop, np.tile(TOKENS, 4), tag=1)
    job.mark(33, 4)
    job.watch(40)
    loop.add(job)
    read(job)
    assert "wake" in loop.wait(0)
    ended(loop)
    assert job.progress["marked"]
    loop.pause()
    assert memory.seq_pos_max(4) == 32
    job.mark(200, 5)
    assert not job.progress["marked"]
    assert memory.seq_pos_max(5) == -1
    loop.resume()


# ---------------------------------------------------------------------------------------------------- DecodeLoop


def test_followers_share_what_their_leader_reads(loop: DecodeLoop) -> None:
    jobs = [job_of(loop, seq_id=i, tag=i) for i in range(4)]
    loop.add(jobs[0], jobs[1:])
    results = [read(job) for job in jobs]
    assert all(result == results[0] for result in results)
    assert {job.tokens.tobytes() for job in ended(loop, 4)} == {jobs[0].tokens.tobytes()}
    assert [job.progress["n_computed"] for job in jobs] == [20, 0, 0, 0]
    assert loop.counters["rows"] == 20 + 4 * 7
    assert loop.context.memory.n_used == 20 + 4 * 7


def test_followers_of_a_leader_that_ends_go_on(loop: DecodeLoop) -> None:
    jobs = [job_of(loop, seq_id=i, tag=i) for i in range(4)]
    loop.pause()
    loop.add(jobs[0], jobs[1:])
    jobs[0].cancel()
    jobs[2].cancel()
    loop.resume()
    assert [read(job)[3] for job in jobs] == ["cancelled", "length", "cancelled", "length"]
    assert [job.progress["n_computed"] for job in jobs] == [0, 20, 0, 0]


def test_followers_of_two_leaders_that_end_together_stay_apart(loop: DecodeLoop) -> None:
    other = TOKENS[::-1][:7].copy()
    plain = [job_of(loop, tokens, seq_id=i, tag=i) for i, tokens in enumerate((TOKENS, other))]
    for job in plain:
        loop.add(job)
    expected = [read(job)[1] for job in plain]
    ended(loop, 2)
    loop.pause()
    loop.context.memory.clear()
    leaders = [job_of(loop, tokens, seq_id=i, tag=10 + i) for i, tokens in enumerate((TOKENS, other))]
    followers = [job_of(loop, tokens, seq_id=2 + i, tag=20 + i) for i, tokens in enumerate((TOKENS, other))]
    for leader, follower in zip(leaders, followers, strict=True):
        loop.add(leader, [follower])
        leader.cancel()
    loop.resume()
    assert [read(job)[1] for job in followers] == expected
    assert [job.progress["n_computed"] for job in followers] == [20, 7]


def test_a_cancelled_follower_does_not_wait_for_its_leader(loop: DecodeLoop) -> None:
    leader, follower = job_of(loop, tag=1), job_of(loop, tag=2, seq_id=1)
    loop._fail_next(1, 10_000)
    loop.add(leader, [follower])
    until(lambda: loop.counters["n_stalled"], "the leader is held back")
    follower.cancel()
    assert read(follower)[3] == "cancelled"
    assert leader.end_reason is None
    loop._fail_next(0, 0)
    loop.pause()
    loop.unstall()
    loop.resume()
    assert read(leader)[3] == "length"


def test_take_out_place_and_add_again(loop: DecodeLoop) -> None:
    plain = job_of(loop, tag=1)
    loop.add(plain)
    _, expected, _, _ = read(plain)
    ended(loop)
    loop.pause()
    loop.context.memory.clear()
    leader, followers = job_of(loop, tag=2), [job_of(loop, tag=3 + i, seq_id=1 + i) for i in range(3)]
    leader.mark(10, 5)
    loop.add(leader, followers)
    with pytest.raises(errors.InvalidArgumentError, match="in a loop"):
        loop.place(leader, 0, 0)
    assert loop.take_out(followers[1]) == [followers[1]]
    assert loop.take_out(followers[1]) == []
    assert loop.take_out(leader) == [leader, followers[0], followers[2]]
    assert loop.take_out(leader) == []
    assert loop.ended() == []
    with pytest.raises(errors.InvalidArgumentError, match="seq_id"):
        loop.place(leader, 6, 0)
    with pytest.raises(errors.InvalidArgumentError, match="n_resident"):
        loop.place(leader, 0, 20)
    loop.place(leader, 4, 0)
    loop.add(leader, [followers[0]])
    loop.add(followers[1])
    loop.resume()
    assert [read(job)[1] for job in (leader, *followers[:2])] == [expected] * 3
    assert not leader.progress["marked"]
    loop.pause()
    assert loop.context.memory.seq_pos_max(5) == -1
    assert loop.context.memory.seq_pos_max(4) == 26
    loop.resume()
    followers[2].finish("cancelled")


def test_add_refuses_and_leaves_all_as_it_was(loop: DecodeLoop) -> None:
    chain = greedy()
    first, same_tag = job_of(loop, tag=1), job_of(loop, tag=1)
    shares_chain = [job_of(loop, tag=i, chain=chain) for i in (2, 3)]
    loop.pause()
    loop.add(first)
    with pytest.raises(errors.InvalidArgumentError, match="tag=1"):
        loop.add(same_tag)
    with pytest.raises(errors.LlamaRunnerError, match=r"loop already|tag=1"):
        loop.add(first)
    with pytest.raises(errors.ContextBusyError, match="chain"):
        loop.add(shares_chain[0], [shares_chain[1]])
    assert not shares_chain[0].running
    chain.reset()  # nobody has it
    loop.resume()
    read(first)
    for bad in (None, "job"):
        with pytest.raises(TypeError):
            loop.add(bad)  # type: ignore[arg-type]


def test_the_chain_is_free_once_the_end_is_read(loop: DecodeLoop) -> None:
    for tag in range(60):
        job = job_of(loop, tag=tag, seq_id=0, max_tokens=1)
        loop.add(job)
        read(job)
        assert job.chain is not None
        job.chain.clone()
        ended(loop)
        loop.pause()
        loop.context.memory.clear()
        loop.resume()


def test_injected_failures_end_as_they_should(loop: DecodeLoop) -> None:
    tag = iter(range(100))

    def run(code: int, n: int) -> Job:
        loop.pause()
        loop.context.memory.clear()
        loop.resume()
        loop._fail_next(code, n)
        job = job_of(loop, tag=next(tag))
        loop.add(job)
        return job

    expected = read(run(0, 0))[1]
    for code in (1, -2, -3):
        assert read(run(code, 3))[1:] == (expected, [], "length"), "fewer rows at a time must do"
    assert read(run(2, 3))[1] == expected
    for code, error in ((-2, "memory"), (-3, "decode"), (-1, "decode")):
        job = run(code, 10_000)
        assert read(job)[3] == "error"
        assert job.progress["error"] == error
        assert str(code) in job.error_text
    loop._fail_next(0, 0)
    loop.ended()
    job = run(1, 10_000)
    until(lambda: "room" in loop.wait(1), "the loop asks for room")
    loop.pause()
    loop.end(job, "error", "no_room", "nothing to spare")
    loop.resume()
    assert read(job)[3] == "error"
    assert (job.progress["error"], job.error_text) == ("no_room", "nothing to spare")
    with pytest.raises(errors.LlamaRunnerError):
        loop.end(job, "error", "unknown")
    loop._fail_next(0, 0)
    assert loop.counters["failed_decodes"] > 5
    assert loop.counters["retried_rows"] > 20


def test_processors(loop: DecodeLoop) -> None:
    seen: list[tuple[int, ...]] = []

    def only_300(tokens: list[np.ndarray], logits: np.ndarray) -> np.ndarray:
        seen.append(tuple(len(ids) for ids in tokens))
        return np.where(np.arange(logits.shape[1]) == 300, logits, -1e9)

    def raises(tokens: list[np.ndarray], logits: np.ndarray) -> None:
        raise ValueError("on purpose")

    def wrong(tokens: list[np.ndarray], logits: np.ndarray) -> str:
        return "logits"

    numbers = [loop.add_processor(function) for function in (only_300, raises, wrong)]
    assert len(set(numbers)) == 3
    assert loop.add_processor(raises) == numbers[1]
    jobs = [job_of(loop, tag=i, seq_id=i, processor=n, max_tokens=3) for i, n in enumerate(numbers)]
    plain = job_of(loop, tag=9, seq_id=4, max_tokens=3)
    loop.pause()
    for job in (*jobs, plain):
        loop.add(job)
    loop.resume()
    assert read(jobs[0])[1] == [300, 300, 300]
    assert seen == [(20,), (21,), (22,)]
    for job, kind in ((jobs[1], ValueError), (jobs[2], TypeError)):
        assert read(job)[1:] == ([], [], "error")
        assert isinstance(job.raised, kind)
        assert job.error_text == "the logits processor failed"
    assert read(plain)[3] == "length"
    loop.remove_processor(numbers[0])
    loop.remove_processor(99)
    with pytest.raises(errors.ArgumentTypeError):
        loop.add_processor("function")  # type: ignore[arg-type]
    gone = job_of(loop, tag=10, seq_id=5, processor=numbers[0])
    loop.add(gone)
    assert read(gone)[3] == "error"
    assert isinstance(gone.raised, KeyError)


def test_adapters(tiny_model: TinyModelFactory, loop: DecodeLoop, tmp_path: Path) -> None:
    model = loop.context.model
    adapter = LoraAdapter(model, write_lora(tmp_path / "lora.gguf", random_pairs(tiny_model("llama"))))
    loop.pause()
    loop.set_adapters(4, [(adapter, 1.0)])
    with pytest.raises(errors.LlamaRunnerError):
        loop.set_adapters(0, [(adapter, 1.0)])
    loop.adapters_changed()
    loop.resume()
    with pytest.raises(errors.ContextBusyError):
        adapter.close()
    jobs = [job_of(loop, tag=i, seq_id=i, adapters=n, logprobs=0) for i, n in enumerate((0, 4, 0, 5))]
    for job in jobs:
        loop.add(job)
    outs = [read(job) for job in jobs]
    first = [out[2][0][0] for out in outs[:3]]
    assert abs(first[0] - first[2]) < 1e-3 < abs(first[0] - first[1])
    assert outs[3][3] == "error"
    assert "adapters" in jobs[3].error_text
    assert loop.counters["adapter_switches"] >= 2
    ended(loop, 4)
    loop.pause()
    loop.set_adapters(4, ())
    loop.resume()
    adapter.close()


def test_events_and_pauses(loop: DecodeLoop) -> None:
    assert loop.wait(0) == set()
    loop.wake()
    assert loop.wait() == {"wake"}
    assert loop.wait(0) == set()
    with pytest.raises(errors.LlamaRunnerError):
        loop.wait(-1)
    job = job_of(loop, notify=True, tag=3)
    loop.pause()
    loop.pause()
    loop.add(job)
    loop.resume()
    assert not job.wait(0.05)
    loop.resume()
    read(job)
    events: set[str] = set()
    until(lambda: events.update(loop.wait(0.1)) or {"ended", "output"} <= events, "events")
    assert loop.ready() in ([job], [])
    assert ended(loop) == [job]
    assert loop.ended() == loop.ready() == []


def test_priority_goes_first(loop: DecodeLoop) -> None:
    low = job_of(loop, np.tile(TOKENS, 4), tag=1, priority=-5)
    high = job_of(loop, np.tile(TOKENS, 4), tag=2, seq_id=1, priority=5)
    loop.pause()
    loop.add(low)
    loop.add(high)
    loop.resume()
    read(low), read(high)
    assert high.progress["fed_us"] <= low.progress["fed_us"]


# ---------------------------------------------------------------------------------------------------- the end


def test_a_context_belongs_to_one_loop(ctx: Context) -> None:
    loop = DecodeLoop(ctx)
    with pytest.raises(errors.ContextBusyError, match="loop"):
        DecodeLoop(ctx)
    with pytest.raises(errors.ContextBusyError, match="loop"):
        ctx.close()
    with pytest.raises(errors.InvalidArgumentError, match="made already"):
        loop.__init__(ctx)  # type: ignore[misc]
    for options in ({"slice_seconds": 0}, {"slice_seconds": 1e6}, {"pace": 0.5}, {"pace": float("inf")}):
        with pytest.raises(errors.InvalidArgumentError):
            DecodeLoop(ctx, **options)
    loop.close()
    loop.close()
    with DecodeLoop(ctx):
        pass


def test_close_under_load(ctx: Context) -> None:
    for _ in range(10):
        loop = DecodeLoop(ctx)
        jobs = [job_of(loop, max_tokens=200, tag=i, seq_id=i) for i in range(4)]
        follower = job_of(loop, max_tokens=200, tag=9, seq_id=5)
        for job in jobs[:3]:
            loop.add(job)
        loop.add(jobs[3], [follower])
        waiting = threading.Thread(target=loop.wait)
        waiting.start()
        jobs[0].wait(PATIENCE)
        began = time.monotonic()
        loop.close()
        assert time.monotonic() - began < 5
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        for job in (*jobs, follower):
            assert read(job)[3] == "error"
            assert job.progress["error"] == "closed"
            assert job.chain is not None
            job.chain.reset()
        ctx.memory.clear()
        del loop, jobs, follower, job
    gc.collect()
    assert live_objects()["jobs"] == 0
