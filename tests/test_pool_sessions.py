"""Sessions in worker processes: what a session in this process does, and that they outlive their worker."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, RunnerPool, Session, WorkerRunner
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    InvalidArgumentError,
    MessageError,
    StateError,
    UnknownMessageError,
    UnknownParameterError,
    WorkerDiedError,
)
from llama_runner.pool import WorkerSession
from session_use import add, with_tools

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]
OPTIONS: dict[str, Any] = {"n_ctx": 2048, "n_seq_max": 8}
ALL = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE = ALL + "{% if add_generation_prompt %}<assistant>{% endif %}"
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
ENDLESS: dict[str, Any] = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def worker(smollm2: Path) -> Iterator[WorkerRunner]:
    with WorkerRunner(smollm2, max_restarts=1000, **OPTIONS) as runner:
        yield runner


@pytest.fixture(scope="module")
def tiny(tiny_model: TinyModelFactory) -> Path:
    return tiny_model("llama", n_ctx_train=2048)


@pytest.fixture(scope="module")
def tiny_here(tiny: Path) -> Iterator[LlamaRunner]:
    """Its weights are F32: how rows are put into batches changes none of its tokens."""
    with LlamaRunner(tiny, n_threads=1, **OPTIONS) as runner:
        yield runner


@pytest.fixture(scope="module")
def tiny_worker(tiny: Path) -> Iterator[WorkerRunner]:
    with WorkerRunner(tiny, n_threads=1, max_restarts=1000, **OPTIONS) as runner:
        yield runner


def kill(worker: WorkerRunner) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not worker._process.dead:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said(session: Session | WorkerSession) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in session.messages]


def both(here: LlamaRunner, worker: WorkerRunner, **options: Any) -> tuple[Session, WorkerSession]:
    return here.session(template=TEMPLATE, **options), worker.session(template=TEMPLATE, **options)


def same(own: Session, theirs: WorkerSession) -> None:
    assert said(own) == said(theirs)
    assert own.tokens.tolist() == theirs.tokens.tolist()
    assert str(own.branches) == str(theirs.branches)
    assert len(own) == len(theirs)
    assert own.n_tokens == theirs.n_tokens


def test_it_does_what_a_session_in_this_process_does(
    tiny_here: LlamaRunner, tiny_worker: WorkerRunner
) -> None:
    own, theirs = both(tiny_here, tiny_worker, system="You are terse.", seed=7)
    for question in ("What is 2+2?", "And 3+3?", "Name a city."):
        replies = [chat.send(question, temperature=0.9, max_tokens=8) for chat in (own, theirs)]
        assert replies[0].text == replies[1].text
        assert replies[0].tokens.tolist() == replies[1].tokens.tolist()
        assert replies[1].message_id == theirs.messages[-1].id
        assert (
            replies[1].usage.cached_tokens + replies[1].usage.computed_tokens
            == replies[1].usage.prompt_tokens
        )
        same(own, theirs)
    for act in (
        lambda chat: chat.edit(chat.messages[1], "What is 5+5?"),
        lambda chat: chat.drop(chat.messages[3].id, chat.messages[4].id),
        lambda chat: chat.rollback(chat.messages[2]),
        lambda chat: chat.checkout(chat.branches.tips[0]),
        lambda chat: chat.checkout(chat.messages[2].id),
        lambda chat: chat.sync([*chat.to_messages(), {"role": "user", "content": "And now?"}]),
        lambda chat: chat.replace(chat.messages[-1], "And then?"),
        lambda chat: chat.gc(0.9),
        lambda chat: chat.rollback(None),
    ):
        receipts = [act(chat) for chat in (own, theirs)]
        assert dataclasses.replace(receipts[0], messages=()) == dataclasses.replace(receipts[1], messages=())
        same(own, theirs)
    assert own.prune() == theirs.prune() > 0
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert own.plan(messages).prompt_tokens == theirs.plan(messages).prompt_tokens
    assert [m.content for m in theirs.add("Remember 17.")] == ["Remember 17."]
    theirs.pin(theirs.messages[-1])
    theirs.unpin(theirs.messages[-1].id)
    theirs.warm()
    assert theirs.info().n_messages == 1
    assert theirs.to_messages() == [{"role": "user", "content": "Remember 17."}]
    assert repr(theirs).startswith("<WorkerSession of 1 messages")


def test_streams(tiny_here: LlamaRunner, tiny_worker: WorkerRunner, worker: WorkerRunner) -> None:
    own, theirs = both(tiny_here, tiny_worker)
    expected = own.send("Tell me a story.", temperature=0, max_tokens=30)
    stream = theirs.stream("Tell me a story.", temperature=0, max_tokens=30)
    with pytest.raises(InvalidArgumentError, match="not finished"):
        _ = stream.reply
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == expected.text == stream.reply.text
    assert stream.result() is stream.reply
    same(own, theirs)
    theirs = worker.session()
    assert len(list(theirs.stream("A story.", temperature=0, max_tokens=30, ignore_eos=True))) > 5
    with theirs.stream("Another one.", **ENDLESS) as stream:
        first = next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text.startswith(first.text)
    assert theirs.messages[-1].content == stream.reply.text
    assert not theirs.messages[-1].complete
    later = theirs.stream("And another.", **ENDLESS)
    threading.Timer(0.3, later.cancel).start()
    assert later.result().finish_reason == "cancelled"


def test_it_outlives_its_worker(tiny_here: LlamaRunner, tiny_worker: WorkerRunner) -> None:
    own, theirs = both(tiny_here, tiny_worker, system="You are terse.", seed=3)
    for chat in (own, theirs):
        chat.send("What is 2+2?", temperature=0.8, max_tokens=8)
        chat.send("And 3+3?", temperature=0.8, max_tokens=8)
        chat.edit(chat.messages[3], "And 4+4?")
    before = tiny_worker.restarts
    kill(tiny_worker)
    same(own, theirs)  # which asks nobody
    replies = [chat.send("And 5+5?", temperature=0.8, max_tokens=8) for chat in (own, theirs)]
    assert replies[0].text == replies[1].text
    assert tiny_worker.restarts == before + 1
    assert replies[1].usage.cached_tokens == 0
    same(own, theirs)
    again = theirs.send("And 6+6?", **SHORT)
    assert again.usage.computed_tokens < again.usage.prompt_tokens / 2


def test_a_turn_that_its_worker_died_in_has_not_been(worker: WorkerRunner) -> None:
    chat = worker.session()
    chat.send("Hello.", **SHORT)
    before, tokens = said(chat), chat.tokens.tolist()
    stream = chat.stream("Tell me a very long story.", **ENDLESS)
    next(stream)
    kill(worker)
    with pytest.raises(WorkerDiedError):
        list(stream)
    with pytest.raises(WorkerDiedError):
        _ = stream.reply
    assert (said(chat), chat.tokens.tolist()) == (before, tokens)
    assert chat.send("Still there?", **SHORT).text
    assert len(chat) == 4


def test_an_interrupt_leaves_it_as_it_was(worker: WorkerRunner) -> None:
    chat = worker.session()
    chat.send("Hello.", **SHORT)
    before = said(chat)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - also where it comes before the call
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        chat.send("Tell me a very long story.", **ENDLESS)
    assert said(chat) == before
    assert chat.send("Hello again.", **SHORT).text
    assert said(chat)[:-2] == before


def test_forks_share_what_they_have_in_common(worker: WorkerRunner) -> None:
    chat = worker.session(system="You are an agent that looks after a customer's project. " * 20, seed=1)
    chat.send("Begin.", **SHORT)
    forks = chat.fork(3)
    assert chat.fork(0) == []
    replies = [fork.send(f"Take way {i}.", temperature=0.9, max_tokens=8) for i, fork in enumerate(forks)]
    assert all(reply.usage.computed_tokens < 40 for reply in replies)
    assert [len(fork) for fork in forks] == [5, 5, 5]
    assert len(chat) == 3
    one = chat.fork()
    assert isinstance(one, WorkerSession)
    kill(worker)
    assert [len(fork) for fork in (*forks, one)] == [5, 5, 5, 3]
    assert forks[1].send("Go on.", **SHORT).text
    assert one.send("Go on.", **SHORT).text


def test_tools_run_here(worker: WorkerRunner) -> None:
    ran: list[int] = []

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        ran.append(os.getpid())
        return a * b

    chat = worker.session(system="You multiply.", tools=[multiply], template=with_tools())
    how = {"parallel_tool_calls": False, "temperature": 0, "max_tokens": 60}
    run = chat.run("Multiply 3 and 4.", tool_choice="multiply", max_steps=2, **how)
    arguments = json.loads(run.steps[0].reply.tool_calls[0].arguments)
    assert run.steps[0].results[0].value == arguments["a"] * arguments["b"]
    assert ran == [os.getpid()]
    assert [role for role, _ in said(chat)][:4] == ["system", "user", "assistant", "tool"]
    other = asyncio.run(chat.arun("Add 1 and 2.", [add], tool_choice="add", max_steps=1, **how))
    assert other.steps[0].results[0].ok
    assert chat.messages[-1].role == "tool"


@dataclasses.dataclass
class City:
    name: str
    large: bool


def test_an_answer_has_the_type_that_was_asked_for(worker: WorkerRunner) -> None:
    pytest.importorskip("llguidance")
    chat = worker.session()
    reply = chat.send("Name a city.", json_schema=City, temperature=0, max_tokens=60)
    assert isinstance(reply.parsed, City)
    assert isinstance(
        asyncio.run(chat.asend("Another.", json_schema=City, temperature=0, max_tokens=60)).parsed, City
    )


def test_asyncio(tiny_here: LlamaRunner, tiny_worker: WorkerRunner, worker: WorkerRunner) -> None:
    own, theirs = both(tiny_here, tiny_worker)
    expected = own.send("Tell me a story.", temperature=0, max_tokens=20)

    async def talk() -> None:
        stream = theirs.astream("Tell me a story.", temperature=0, max_tokens=20)
        text = "".join([chunk.text async for chunk in stream])
        assert text == expected.text == stream.reply.text
        same(own, theirs)
        chat = worker.session()
        await chat.asend("Hello.", **SHORT)
        async with chat.astream("Another one.", **ENDLESS) as left:
            async for _ in left:
                break
        deadline = time.monotonic() + 10
        while len(chat) < 4:  # as soon as the worker has told
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert chat.messages[-1].finish_reason == "cancelled"
        before = said(chat)
        task = asyncio.create_task(chat.asend("And a third.", **ENDLESS))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (
            await chat.asend("Hello.", **SHORT)
        ).text  # at once: it waits for the end of the one that was given up
        assert said(chat)[:-2] == before
        forks = await chat.afork(3)
        assert isinstance(forks, list)
        replies = await asyncio.gather(*(fork.asend("Hello again.", **SHORT) for fork in forks))
        assert all(reply.text for reply in replies)
        exact = await theirs.afork(3)  # its weights are F32: what shares a step changes no token
        assert isinstance(exact, list)
        replies = await asyncio.gather(*(fork.asend("Hello again.", **SHORT) for fork in exact))
        assert len({reply.text for reply in replies}) == 1
        assert (await chat.ainfo()).n_messages == len(chat)
        assert (await chat.aplan()).prompt_tokens > 0
        await chat.aadd("One more.")
        await chat.aedit(chat.messages[-1], "Another one more.")
        await chat.areplace(chat.messages[-1], "One.")
        await chat.apin(chat.messages[-1])
        await chat.aunpin(chat.messages[-1])
        await chat.awarm()
        await chat.adrop(chat.messages[-1])
        await chat.async_([{"role": "user", "content": "Hello."}])
        await chat.arollback(None)
        await chat.acheckout(chat.branches.tips[0])
        await chat.agc(0.9)
        await chat.aprune()
        assert len(chat.branches.tips) == 1

    asyncio.run(talk())


def test_files(tiny_here: LlamaRunner, tiny_worker: WorkerRunner, tmp_path: Path) -> None:
    here, worker = tiny_here, tiny_worker
    chat = worker.session(system="You are terse.", template=TEMPLATE)
    chat.send("What is 2+2?", **SHORT)
    assert chat.save(tmp_path / "chat.kv") > 1000
    asyncio.run(chat.asave(tmp_path / "again.kv"))
    own = here.load_session(tmp_path / "chat.kv")
    theirs = worker.load_session(tmp_path / "again.kv")
    assert own.send("And 3+3?", **SHORT).text == theirs.send("And 3+3?", **SHORT).text
    same(own, theirs)
    (tmp_path / "bad.kv").write_bytes(b"nothing of the kind")
    with pytest.raises(StateError):
        worker.load_session(tmp_path / "bad.kv")
    assert len(asyncio.run(worker.aload_session(tmp_path / "chat.kv"))) == 3


def test_what_is_wrong_is_a_typed_error_and_changes_nothing(worker: WorkerRunner) -> None:
    chat = worker.session()
    chat.send("Hello.", **SHORT)
    before = said(chat)
    wrong: list[tuple[type[Exception], Any]] = [
        (MessageError, lambda: chat.send({"role": "oracle", "content": "?"})),
        (MessageError, lambda: chat.sync([{"role": "tool", "content": "?"}])),
        (UnknownMessageError, lambda: chat.rollback("msg_nobody")),
        (UnknownMessageError, lambda: chat.edit("msg_nobody", "?")),
        (UnknownParameterError, lambda: chat.send("?", temprature=1)),
        (ArgumentTypeError, lambda: chat.send("?", logits_processor=lambda tokens, logits: None)),
        (InvalidArgumentError, lambda: chat.fork(-1)),
        (UnknownParameterError, lambda: asyncio.run(chat.asend("?", temprature=1))),
        (MessageError, lambda: asyncio.run(chat.asend({"role": "oracle", "content": "?"}))),
    ]
    for kind, act in wrong:
        with pytest.raises(kind):
            act()
        assert said(chat) == before
    left = chat.fork()
    branch = left.branches.tips[0]
    left.sync([{"role": "user", "content": "Something else."}])
    left.prune()
    with pytest.raises(UnknownMessageError, match="branch"):
        left.checkout(branch)
    stream = chat.stream("A very long story.", **ENDLESS)
    with pytest.raises(ContextBusyError):
        chat.send("Me too.")
    stream.close()
    assert chat.send("Hello again.", **SHORT).text


def test_a_session_that_is_dropped_is_dropped_there(worker: WorkerRunner) -> None:
    gc.collect()
    chats = [worker.session() for i in range(3)]
    for chat in chats:
        chat.send("Hello.", **SHORT)
    there = len(worker.get_context_info().sessions)
    assert there >= 3
    del chats, chat
    deadline = time.monotonic() + 10
    gc.collect()
    while len(worker.get_context_info().sessions) > there - 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_runner_that_is_closed(smollm2: Path) -> None:
    with (
        RunnerPool({"m": {"model": str(smollm2), "worker": True, **OPTIONS}}) as pool,
        pool.get("m") as runner,
    ):
        assert isinstance(runner, WorkerRunner)
        chat = runner.session()
        chat.send("Hello.", **SHORT)
        runner.close()
        with pytest.raises(ClosedError):
            chat.send("Hello?")
        assert len(chat) == 2
        with pytest.raises(ClosedError):
            runner.session()


class Odd:
    """What is found here is not there."""

    def __reduce__(self) -> Any:
        return getattr, ("a text", "nothing_of_the_kind")


def test_what_the_worker_cannot_read_is_an_error_of_that_call_alone(worker: WorkerRunner) -> None:
    chat = worker.session()
    other = chat.stream("A long story.", temperature=0, max_tokens=60, ignore_eos=True)
    pid = worker.pid
    with pytest.raises(ArgumentTypeError, match="cannot be read in the worker"):
        worker.session().send({"role": "user", "content": Odd()}, **SHORT)
    assert len(other.result().tokens) == 60
    assert worker.pid == pid


def test_an_async_stream_that_is_dropped_is_ended(worker: WorkerRunner) -> None:
    async def talk() -> None:
        chat = worker.session()
        stream = chat.astream("Tell me a very long story.", **ENDLESS)
        await stream.__anext__()
        del stream
        gc.collect()
        assert (await chat.asend("Hello.", **SHORT)).text
        assert [message.finish_reason for message in chat.messages][1] == "cancelled"
        early = chat.astream("And another.", **ENDLESS)
        early.cancel()
        assert (await early.result()).finish_reason == "cancelled"
        # what is asked meanwhile does not set the session back
        for _ in range(5):
            reply, _ = await asyncio.gather(chat.asend("Go on.", **SHORT), chat.ainfo())
            assert chat.messages[-1].id == reply.message_id

    asyncio.run(talk())


def test_a_fork_right_after_a_turn_that_was_given_up(worker: WorkerRunner) -> None:
    chat = worker.session()

    async def give_up() -> None:
        task = asyncio.create_task(chat.asend("A very long story.", **ENDLESS))
        await asyncio.sleep(0.2)
        task.cancel()

    for _ in range(3):
        asyncio.run(give_up())
        assert len(chat.fork()) == len(chat) == 0
