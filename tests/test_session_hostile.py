"""What users do to sessions that nobody meant: each case was wrong once."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import GenerationParams, LlamaRunner, Session
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    InvalidArgumentError,
    MessageError,
)

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CALLS = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}\n{% endfor %}"
)
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def runner(tiny_model: TinyModelFactory) -> Iterator[LlamaRunner]:
    with LlamaRunner(tiny_model("llama"), n_ctx=256, n_threads=1) as made:
        yield made


def look(x: int) -> str:
    """Look at something."""
    return "x" * x


def called() -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
    return [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]


# --- replies


def test_a_reply_that_no_conversation_can_hold(runner: LlamaRunner) -> None:
    """A NUL: the reply was lost, with MessageError. Now the message has U+FFFD, and ``raw_text`` what was said."""
    vocab = runner.model.vocab
    nul = next(i for i in range(vocab.n_tokens) if vocab.token_to_piece(i, special=True) == b"\0")
    session = runner.session(template=PLAIN)
    reply = session.send("x", max_tokens=3, logit_bias={nul: 100.0}, **GREEDY)
    assert reply.text == "\ufffd" * 3 and reply.raw_text == "\0" * 3
    assert reply.tokens.tolist() == [nul] * 3 == session.tokens[-3:].tolist()
    assert session.send("y", max_tokens=1, **GREEDY).usage.completion_tokens == 1


def test_dropping_goes_on_until_nothing_may_go(runner: LlamaRunner) -> None:
    """It raised, and the reply was lost, where the last turn itself filled the context."""
    session = runner.session(template=PLAIN, on_full="drop")
    session.send("first", max_tokens=10, **GREEDY)
    reply = session.send("second", max_tokens=2000, **GREEDY)
    assert reply.finish_reason == "length" and len(reply.tokens) > 240
    assert [m.content for m in session.messages][:-1] == ["second"]
    with pytest.raises(ValueError, match="stay"):
        session.send("third " * 300)


@pytest.mark.parametrize("cause", ["pins", "quota"])
def test_what_is_full_before_the_context_is_full_all_the_same(
    tiny_model: TinyModelFactory, cause: str
) -> None:
    """A reply that others' pins or the owner's quota cut short was taken for a finished one."""
    quotas = {"me": 250} if cause == "quota" else None
    with LlamaRunner(tiny_model("llama"), n_ctx=512, n_threads=1, quotas=quotas) as small:
        others = small.sequence([300] * 262)
        if cause == "pins":
            others.pin()
        session = small.session(template=PLAIN, on_full="drop", owner="me")
        for i in range(4):
            session.send(f"{i}", max_tokens=30, **GREEDY)
        left = 250 - len(session.tokens)
        reply = session.send("go on", max_tokens=None, **GREEDY)
        assert len(reply.tokens) > 220 > left
        assert reply.receipt is not None and reply.receipt.messages
        assert [m.content for m in session.messages][:-1] == ["go on"]
        for limit in (
            430,
            480,
        ):  # more than there is room for before turns are dropped, and less than the context after it
            longer = small.session(template=PLAIN, on_full="drop", owner="me")
            for i in range(4):
                longer.send(f"{i}", max_tokens=30, **GREEDY)
            reply = longer.send("go on", max_tokens=limit, **GREEDY)
            assert 220 < len(reply.tokens) < 260 and reply.receipt is not None
        strict = small.session(template=PLAIN, on_full="error", owner="me")
        small.clear_context()
        with pytest.raises(ContextOverflowError, match="quota, or of the context beside what is pinned"):
            strict.send("go on", max_tokens=None, **GREEDY)
        assert len(strict) == 0
        stop = small.session(template=PLAIN, owner="me").send("go on", max_tokens=None, **GREEDY)
        assert 200 < len(stop.tokens) < 260 and stop.finish_reason == "length"


def test_a_reply_in_parts_is_parsed_as_a_whole(runner: LlamaRunner) -> None:
    """Only its last part was."""
    session = runner.session(template=PLAIN, on_full="drop")
    for i in range(8):
        session.send(f"{i}", max_tokens=20, **GREEDY)
    reply = session.send("go", regex="(ab){60}", temperature=0)
    assert reply.receipt is not None, "the context was not full in the middle of it"
    assert reply.parsed == reply.text == "ab" * 60


def test_results_are_not_parted_from_their_calls(runner: LlamaRunner) -> None:
    """Room was made by dropping the turn whose call was answered."""
    session = runner.session(template=CALLS, tools=[look], on_full="drop")
    session.add([*HELLO, {"role": "assistant", "content": "word " * 40}])
    session.add(called())
    content = "word " * 300
    while len(runner.model.vocab.tokenize(content)) > 215:
        content = content[5:]
    reply = session.send({"role": "tool", "tool_call_id": "c1", "content": content}, max_tokens=1, **GREEDY)
    assert reply.receipt is not None and len(reply.receipt.messages) == 2
    assert [m.role for m in session.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_limit_of_time_is_for_all_parts_of_a_reply(runner: LlamaRunner) -> None:
    def slowly(tokens: Any, logits: Any) -> None:
        time.sleep(0.002)

    session = runner.session(template=PLAIN, on_full="drop")
    for i in range(12):
        session.send(f"{i}", max_tokens=10, **GREEDY)
    began = time.monotonic()
    reply = session.send("on", max_tokens=100_000, timeout=3.0, logits_processor=slowly, **GREEDY)
    assert time.monotonic() - began < 5.9 and reply.finish_reason in ("timeout", "length")


# --- edits


def test_an_edit_is_brought_into_form_and_copied(runner: LlamaRunner) -> None:
    session = runner.session(template=PLAIN, messages=HELLO)
    parts = [{"type": "text", "text": "a"}]
    session.edit(session.messages[0], parts)  # type: ignore[arg-type]
    parts.append({"type": "text", "text": "b"})
    assert session.messages[0].content == "a"
    session.edit(session.messages[0], ["c", "d"])  # type: ignore[arg-type]
    assert session.messages[0].content == "cd"
    assert session.tokens.tolist() == runner.chat_tokens(session.to_messages(), template=PLAIN).tolist()


def test_the_template_writes_the_sessions_messages(runner: LlamaRunner) -> None:
    """Variables could put others in their place, in the prompt alone."""
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(InvalidArgumentError, match=name):
            runner.session(template=PLAIN, template_kwargs={name: []})
        with pytest.raises(InvalidArgumentError, match=name):
            runner.session(template=PLAIN).send("x", template_kwargs={name: []})
    given = {"a": [1]}
    session = runner.session(template=PLAIN, template_kwargs=given)
    given["a"].append(2)
    assert session.options.template_kwargs == {"a": [1]}


def test_a_receipt_tells_of_what_no_template_writes(runner: LlamaRunner) -> None:
    """It said nothing, and nothing had been read."""
    source = "{% if messages[-1].content == 'no' %}{{ raise_exception('not that') }}{% endif %}" + PLAIN
    session = runner.session(template=source, messages=HELLO)
    no = [*HELLO, {"role": "assistant", "content": "no"}]
    assert "plan() tells why" in session.sync(no).reason and session.n_tokens == 0
    with pytest.raises(InvalidArgumentError, match="not that"):
        session.plan()
    assert session.send("go on", max_tokens=1, **GREEDY).usage.completion_tokens == 1


def test_an_error_of_the_engine_leaves_no_branch(runner: LlamaRunner) -> None:
    """The branch was left before the cache was asked, which raises in a logits processor."""
    session = runner.session(template=PLAIN)
    first = session.send("one", max_tokens=2, **GREEDY).message
    session.send("two", max_tokens=2, **GREEDY)
    problems: list[BaseException] = []

    def moves(tokens: Any, logits: Any) -> None:
        for call in (lambda: session.rollback(first), lambda: session.edit(first, "other")):
            try:
                call()
            except ContextBusyError as problem:
                problems.append(problem)

    runner.generate("x", max_tokens=1, logits_processor=moves)
    assert len(problems) == 2
    assert len(session) == 4 and len(session.branches.tips) == 1 and not session.busy


# --- lifetime and threads


CLOSED: dict[str, Callable[[Session], object]] = {
    "send": lambda s: s.send("x"),
    "stream": lambda s: s.stream("x"),
    "run": lambda s: s.run("x"),
    "fork": lambda s: s.fork(),
    "forks": lambda s: s.fork(0),
    "rollback": lambda s: s.rollback(None),
    "checkout": lambda s: s.checkout(s.messages[0]),
    "edit": lambda s: s.edit(s.messages[0], "x"),
    "drop": lambda s: s.drop(),
    "sync": lambda s: s.sync([]),
    "gc": lambda s: s.gc(),
    "plan": lambda s: s.plan(),
    "warm": lambda s: s.warm(),
    "save": lambda s: s.save("nowhere"),
}


def test_a_closed_runner(tiny_model: TinyModelFactory) -> None:
    """Some methods did half of their work, others all of it."""
    runner = LlamaRunner(tiny_model("llama"), n_ctx=256, n_threads=1)
    session, empty = runner.session(template=PLAIN), runner.session(template=PLAIN)
    session.send("one", max_tokens=2, **GREEDY)
    fork = session.fork()
    under_way, left = fork.stream("x", max_tokens=200), session.fork().stream("y", max_tokens=200)
    warm = session.warm()
    runner.close()
    before = (session.to_messages(), session.tokens.tolist(), str(session.branches))
    for name, call in CLOSED.items():
        for each in (session, empty) if name not in ("checkout", "edit") else (session,):
            with pytest.raises(ClosedError):
                call(each)
            assert not each.busy, name
    with pytest.raises(ClosedError):
        for _ in under_way:
            pass
    assert not fork.busy and len(fork) == 2
    left.close()
    warm.cancel()
    assert (session.to_messages(), session.tokens.tolist(), str(session.branches)) == before
    assert repr(session) and session.prune() == 0 and session.add("noted")[0].content == "noted"


def test_forks_are_among_the_sessions(runner: LlamaRunner) -> None:
    gc.collect()
    before = len(runner.get_context_info().sessions)
    session = runner.session(template=PLAIN)
    session.sync(HELLO)
    forks = session.fork(3)
    forks += forks[0].fork(1)
    assert len(runner.get_context_info().sessions) == before + 5
    del session, forks
    gc.collect()
    assert len(runner.get_context_info().sessions) == before


def test_looking_while_sessions_are_made(runner: LlamaRunner) -> None:
    """The set of them changed while it was read."""
    kept, stop, problems = [], threading.Event(), []

    def grow() -> None:
        while not stop.is_set() and len(kept) < 600:
            kept.append(runner.session(template=PLAIN, messages=HELLO))
            kept[-1]._log = kept[0]._log
            kept.extend(kept[-1].fork(8))

    kept.append(runner.session(template=PLAIN, messages=HELLO))
    kept[0].sync(HELLO)
    threads = [threading.Thread(target=grow) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            runner.get_context_info()
    except RuntimeError as problem:
        problems.append(problem)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems


def test_many_threads_on_one_session(runner: LlamaRunner) -> None:
    """They are refused, or have it alone: what is there at the end is what those that had it were told."""
    session = runner.session(template=PLAIN)
    done: list[str] = []
    refused = [0]
    problems: list[BaseException] = []

    def hammer(k: int) -> None:
        for i in range(25):
            text = f"{k}.{i}"
            try:
                if i % 3 == 0:
                    stream = session.stream(text, max_tokens=6, **GREEDY)
                    next(stream)
                    stream.close()
                    done.append(text)
                elif i % 3 == 1:
                    session.add(text)
                    done.append(text)
                else:
                    session.plan()
                    session.fork()
                    session.prune()
            except ContextBusyError:
                refused[0] += 1
            except (MessageError, ValueError) as problem:
                if "empty" not in str(problem):
                    problems.append(problem)
            if k == 0 and i % 10 == 9:
                gc.collect()

    threads = [threading.Thread(target=hammer, args=(k,)) for k in range(8)]
    runner.clear_context()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    overflow = [problem for problem in problems if "prompt may have" in str(problem)]
    assert len(problems) == len(overflow)
    assert refused[0] > 0 and not session.busy
    said = [m.content for m in session.messages if m.role == "user"]
    assert sorted(said) == sorted(done)


# --- runs


def test_a_runs_time_does_not_make_a_replys_longer(runner: LlamaRunner) -> None:
    def slowly(tokens: Any, logits: Any) -> None:
        time.sleep(0.005)

    session = runner.session(template=PLAIN)
    params = GenerationParams(timeout=0.3, max_tokens=2000, **GREEDY)
    for options in ({"params": params}, {}):
        session.params = params if not options else GenerationParams()
        began = time.monotonic()
        run = session.run("x", timeout=60, logits_processor=slowly, **options)
        assert run.why == "timeout" and time.monotonic() - began < 2
        session.rollback(None)


def test_what_is_wrong_with_options_is_said_at_once(runner: LlamaRunner, tmp_path: Path) -> None:
    session = runner.session(template=PLAIN)
    for wrong in (
        {"max_steps": 0},
        {"timeout": -1},
        {"timeout": "x"},
        {"tool_timeout": True},
        {"parallel": 1},
    ):
        with pytest.raises((InvalidArgumentError, ArgumentTypeError)):
            session.run("x", **wrong)  # type: ignore[arg-type]
    assert len(session) == 0 and not session.busy
