"""``Session``: turns, branches, edits and their receipts, plans, reading ahead; the cache follows every message."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, Reply, Session
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    InvalidArgumentError,
    MessageError,
    ModelCapabilityError,
    UnknownMessageError,
    UnknownParameterError,
)
from session_use import GREEDY, TEMPLATES, add, with_tools

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def runner(smollm2: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(smollm2, n_ctx=2048) as made:
        yield made


@pytest.fixture
def chat(runner: LlamaRunner) -> Session:
    runner.clear_context()
    return runner.session(system="You are terse.")


def whole_prompt(runner: LlamaRunner, session: Session, generates: bool = True) -> list[int]:
    """What a stateless call would send."""
    return runner.chat_tokens(session.to_messages(), add_generation_prompt=generates).tolist()


# --- turns


def test_a_turn_is_what_a_stateless_call_gives(runner: LlamaRunner, chat: Session) -> None:
    reply = chat.send("What is 2+2?", **GREEDY)
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is 2+2?"}]
    alone = runner.generate(runner.chat_tokens(messages), **GREEDY)
    assert reply.tokens.tolist() == alone.tokens.tolist()
    assert reply.text == alone.text == reply.message.content == reply.raw_text
    assert reply.finish_reason == "length" and not reply.message.complete
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1] is reply.message and reply.message_id == chat.messages[-1].id
    assert chat.to_messages() == [*messages, {"role": "assistant", "content": reply.text}]
    assert json.loads(json.dumps(reply.to_dict()))["message_id"] == reply.message_id
    assert pickle.loads(pickle.dumps(reply)) == reply and "Reply" in repr(reply)
    assert len(chat) == 3 and chat.n_tokens == reply.usage.total_tokens


def test_only_what_is_new_is_computed(chat: Session) -> None:
    first = chat.send("Name a colour.", **GREEDY)
    second = chat.send("Another one.", **GREEDY)
    # the last sampled token was never decoded, and is the first of what is new
    assert second.usage.cached_tokens == first.usage.total_tokens - 1
    assert second.usage.prompt_tokens == len(chat.tokens) - len(second.tokens)
    assert second.explain().reason == "the rest is new"


def test_streams_say_the_same_as_send(chat: Session) -> None:
    twin = chat.fork()
    reply = chat.send("Say something.", **GREEDY)
    stream = twin.stream("Say something.", **GREEDY)
    with pytest.raises(InvalidArgumentError, match="exhaust"):
        _ = stream.reply
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == reply.text == stream.reply.text
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert twin.to_messages() == chat.to_messages()
    stream.close()
    assert stream.reply is stream.reply and len(twin) == 3
    assert all(chunk.reasoning == "" and "deltas" in chunk.to_dict() for chunk in chunks)


def test_contents_of_every_kind(chat: Session) -> None:
    assert chat.send({"role": "user", "content": "one"}, max_tokens=2).message.role == "assistant"
    chat.send([{"role": "user", "content": [{"type": "text", "text": "two"}]}], max_tokens=2)
    added = chat.add("three")
    assert [m.content for m in added] == ["three"]
    chat.send(max_tokens=2)
    assert [m.role for m in chat.messages] == ["system", *["user", "assistant"] * 3]
    assert chat.messages[3].content == "two"
    # the assistant said the last word: it may say another
    chat.send(None, max_tokens=2)
    assert [m.role for m in chat.messages[-2:]] == ["assistant", "assistant"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"role": "nobody", "content": "x"}, MessageError),
        ({"role": "tool", "content": "x"}, MessageError),
        ({"content": "x"}, MessageError),
        ("\ud800", MessageError),
        ("a\0b", MessageError),
        (7, MessageError),
        (b"bytes", MessageError),
        ([{"role": "user", "content": "x"}, 3], MessageError),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], MessageError),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_makes_no_message_changes_nothing(
    chat: Session, content: object, error: type[Exception]
) -> None:
    chat.add("hello")
    before = chat.to_messages()
    with pytest.raises(error):
        chat.send(content, max_tokens=1)  # type: ignore[arg-type]
    assert chat.to_messages() == before
    assert chat.send(max_tokens=1).usage.completion_tokens == 1


def test_wrong_options_change_nothing(runner: LlamaRunner, chat: Session) -> None:
    for options in (
        {"max_tokens": 0}, {"temperature": -1}, {"tool_choice": "sometimes"}, {"grammar": "root ::= ["},
        {"enable_thinking": 3}, {"template_kwargs": {1: 2}},
    ):  # fmt: skip
        with pytest.raises((InvalidArgumentError, ArgumentTypeError, KeyError)):
            chat.send("x", **options)
    with pytest.raises(UnknownParameterError, match="max_tokens"):
        chat.send("x", max_token=3)
    with pytest.raises(InvalidArgumentError, match="empty"):
        runner.session().send()
    with pytest.raises(InvalidArgumentError, match="on_full"):
        runner.session(on_full="explode")
    with pytest.raises(InvalidArgumentError, match="memory_limit"):
        runner.session(memory_limit=1_000_000)
    with pytest.raises(MessageError, match="nobody"):
        runner.session(messages=[{"role": "nobody", "content": "x"}])
    assert len(chat) == 1


def test_a_second_thread_is_refused(chat: Session) -> None:
    stream = chat.stream("Tell me a long story.", max_tokens=400, ignore_eos=True)
    next(stream)
    for call in (
        lambda: chat.send("x"), lambda: chat.stream("x"), chat.fork, chat.plan, lambda: chat.sync([]), chat.gc,
        lambda: chat.rollback(None), lambda: chat.save("nowhere"), chat.warm, lambda: chat.add("x"),
    ):  # fmt: skip
        with pytest.raises(ContextBusyError, match="under way"):
            call()
    stream.close()
    assert chat.messages[-1].finish_reason == "cancelled"
    assert chat.send("x", max_tokens=1).finish_reason == "length"


def test_a_reply_that_is_left_stays_as_far_as_it_was_read(chat: Session) -> None:
    said = ""
    for i, chunk in enumerate(chat.stream("Tell me a long story.", max_tokens=400, ignore_eos=True)):
        said += chunk.text
        if i == 3:
            break
    assert chat.messages[-1].content == said and chat.messages[-1].finish_reason == "cancelled"
    again = chat.send("Go on.", **GREEDY)
    assert again.usage.cached_tokens > again.usage.prompt_tokens - 16
    with chat.stream("And now?", max_tokens=400, ignore_eos=True) as stream:
        next(stream)
    assert not stream.reply.message.complete and stream.reply.usage.completion_tokens >= 1
    n = len(chat)
    stream = chat.stream("Nobody reads this.", max_tokens=400)
    stream.close()
    del stream
    gc.collect()
    assert len(chat) == n
    stream = chat.stream("Stopped from elsewhere.", max_tokens=1500, ignore_eos=True)
    next(stream)
    threading.Timer(0.2, stream.cancel).start()
    reply = stream.result()
    assert reply.finish_reason == "cancelled" and 0 < reply.usage.completion_tokens < 1500
    assert chat.messages[-1] is reply.message


def test_a_reply_of_nothing_leaves_the_session_as_it_was(chat: Session) -> None:
    begin = time.monotonic()
    chat.send("Hello.", **GREEDY)
    took = time.monotonic() - begin
    before = chat.to_messages()
    reply = chat.send("word " * 1200, timeout=0.05)
    assert (reply.finish_reason, reply.usage.completion_tokens) == ("timeout", 0)
    assert chat.to_messages() == before
    cut = chat.send("Tell me a long story.", timeout=max(0.5, 3 * took), max_tokens=1500, ignore_eos=True)
    assert cut.finish_reason == "timeout" and chat.messages[-1] is cut.message


def test_asyncio_is_one_batch(runner: LlamaRunner, chat: Session) -> None:
    forks = chat.fork(4)
    chat.sync(chat.to_messages())
    steps = runner.counters.loop["steps"]

    async def all_of_them() -> list[Reply]:
        options = {**GREEDY, "ignore_eos": True}
        return await asyncio.gather(*(f.asend(f"Number {i}?", **options) for i, f in enumerate(forks)))

    replies = asyncio.run(all_of_them())
    assert [len(reply.tokens) for reply in replies] == [12] * 4
    assert runner.counters.loop["steps"] - steps < 30  # one after another they were 48
    for fork, reply in zip(forks, replies, strict=True):
        assert fork.messages[-1] is reply.message

    async def leave() -> None:
        session = chat.fork()
        async for chunk in session.astream("A long story.", max_tokens=500, ignore_eos=True):
            if chunk.text:
                break
        await asyncio.sleep(0)
        gc.collect()
        assert session.messages[-1].finish_reason == "cancelled"
        async with session.astream("More.", max_tokens=500, ignore_eos=True) as stream:
            await stream.__anext__()
        assert stream.reply.finish_reason == "cancelled" and session.messages[-1] is stream.reply.message
        task = asyncio.create_task(session.asend("And more.", max_tokens=1500, ignore_eos=True))
        await asyncio.sleep(0.2)
        n = len(session)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(session) == n  # nobody has the reply: the session is as it was
        assert (await session.asend("Still here?", max_tokens=2)).usage.completion_tokens

    asyncio.run(leave())


def test_seeds_repeat_conversations(runner: LlamaRunner) -> None:
    def talk(seed: int | None) -> list[str]:
        session = runner.session(seed=seed)
        texts = [session.send(word, max_tokens=8).text for word in ("Hello", "Why?")]
        return [*texts, *(fork.send("And?", max_tokens=8).text for fork in session.fork(2))]

    assert talk(5) == talk(5) != talk(6)
    told = talk(5)
    assert told[2] != told[3]  # branches differ
    assert talk(None) != talk(None)


def test_prefixes_are_shared_between_sessions(runner: LlamaRunner) -> None:
    runner.clear_context()
    system = "You know a lot about the sea. " * 10
    first = runner.session(system=system).send("Hello", **GREEDY)
    second = runner.session(system=system).send("Goodbye", **GREEDY)
    assert first.usage.cached_tokens == 0
    assert second.usage.computed_tokens < 20


# --- branches and edits


def test_fork_rollback_and_branches(runner: LlamaRunner, chat: Session) -> None:
    first = chat.send("One?", **GREEDY)
    fork = chat.fork()
    left, right = chat.send("Left?", **GREEDY), fork.send("Right?", **GREEDY)
    assert left.usage.cached_tokens == first.usage.total_tokens - 1
    assert right.usage.cached_tokens > left.usage.cached_tokens  # it shares the other's header as well
    tokens = chat.n_tokens
    receipt = chat.rollback(first.message_id)
    assert receipt.tokens_before == tokens and receipt.kept == receipt.tokens_after and receipt.computed == 0
    assert (
        receipt.kept + receipt.dropped == receipt.tokens_before
        and len(receipt.messages) == 2
        and receipt.exact
    )
    assert chat.messages[-1] is first.message
    other = chat.send("Up?", **GREEDY)
    tree = chat.branches
    assert [tip.message for tip in tree.tips] == [left.message, other.message]
    assert [tip.current for tip in tree.tips] == [False, True]
    fork_point = tree.children[0].children[0].children[0]
    assert fork_point.message is first.message and len(fork_point.children) == 2
    assert [m.content for m in tree.tips[0].messages()][:2] == ["You are terse.", "One?"]
    chat.checkout(tree.tips[0])
    assert chat.messages[-1] is left.message
    assert {tip.message for tip in chat.branches.tips} == {left.message, other.message}
    assert "* " in str(tree) and str(tree).count("assistant") == 3
    assert chat.prune() == 1 and len(chat.branches.tips) == 1
    assert chat.rollback(None).tokens_after == 0 and len(chat) == 0
    assert chat.checkout(tree.tips[1]).pending <= 3
    assert fork.messages[-1] is right.message
    with pytest.raises(UnknownMessageError, match="no message of this conversation"):
        chat.rollback(right.message_id)
    with pytest.raises(ArgumentTypeError):
        chat.rollback(3)  # type: ignore[arg-type]
    assert not [*fork_point.children[0].children[0]]


def test_edits_give_the_templates_tokens(runner: LlamaRunner, chat: Session) -> None:
    replies = [chat.send(text, **GREEDY) for text in ("One?", "Two?", "Three?")]
    receipt = chat.edit(replies[1].message_id, "Something else altogether.")
    assert [m.content for m in chat.messages][4] == "Something else altogether."
    assert [m.id for m in chat.messages][-1] == replies[2].message_id  # what follows keeps its names
    assert chat.tokens.tolist() == whole_prompt(runner, chat, generates=False)
    assert 0 < receipt.pending < receipt.tokens_after and receipt.kept < receipt.tokens_before
    assert receipt.messages == (replies[1].message_id,)
    plan = chat.plan([*chat.to_messages(), {"role": "user", "content": "Four?"}])
    after = chat.send("Four?", **GREEDY)
    assert (plan.cached_tokens, plan.prompt_tokens) == (after.usage.cached_tokens, after.usage.prompt_tokens)
    # the branch that was left has what was said then
    assert replies[2].message in {tip.message for tip in chat.branches.tips}
    user = chat.messages[1]
    receipt = chat.drop(user, chat.messages[2].id)
    assert (
        receipt.action == "drop"
        and len(chat) == 7
        and chat.tokens.tolist() == whole_prompt(runner, chat, False)
    )
    assert chat.replace(chat.messages[1], "A question.").action == "edit"
    with pytest.raises(UnknownMessageError):
        chat.edit(user, "gone")
    before = chat.to_messages()
    with pytest.raises(MessageError):
        chat.edit(chat.messages[1], 7)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError):
        chat.edit(chat.messages[1], "word " * 5000)
    assert chat.to_messages() == before
    assert str(receipt).startswith("drop: ") and receipt.to_dict()["messages"]


def test_calls_and_results_stay_together(runner: LlamaRunner) -> None:
    session = runner.session(tools=[add], template=with_tools())
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    session.add(
        [
            {"role": "user", "content": "1+2?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": "3"},
        ]
    )
    _, asks, answer, _ = session.messages
    for lonely in (asks, answer):
        with pytest.raises(MessageError):
            session.drop(lonely)
    assert len(session) == 4
    session.drop(asks, answer)
    assert [m.role for m in session.messages] == ["user", "assistant"]
    assert session.messages[1].tool_calls == ()
    assert asks.tool_calls[0].name == "add" and answer.tool_call_id == "c1"


# --- plans, sync, reading ahead


def test_plans_come_true(runner: LlamaRunner, chat: Session) -> None:
    for text in ("One?", "Two?"):
        messages = [*chat.to_messages(), {"role": "user", "content": text}]
        plan = chat.plan(messages)
        assert plan.fits and len(plan.messages) == len(messages)
        assert sum(part.stop - part.start for part in plan.messages) == plan.prompt_tokens
        assert sum(part.cached for part in plan.messages) == plan.cached_tokens
        assert sum(part.computed for part in plan.messages) == plan.computed_tokens
        assert plan == chat.plan(messages)  # it changes nothing
        reply = chat.send(text, **GREEDY)
        assert plan.explanation.prompt_tokens == reply.usage.prompt_tokens
        assert plan.cached_tokens == reply.usage.cached_tokens
        assert plan.reason == reply.explain().reason
    changed = chat.to_messages()
    changed[2]["content"] = "no such thing"
    plan = chat.plan(changed)
    assert plan.explanation.cache_differs_at and plan.reason == "the cached text goes on differently"
    assert plan.messages[1].computed == 0 < plan.messages[3].computed
    assert json.dumps(plan.to_dict()) and "tokens were cached" in str(plan)
    assert not chat.plan([{"role": "user", "content": "word " * 3000}]).fits
    with pytest.raises(InvalidArgumentError, match="empty"):
        runner.session().plan()


def test_sync_computes_what_is_new(runner: LlamaRunner, chat: Session) -> None:
    chat.send("One?", **GREEDY)
    ids = [m.id for m in chat.messages]
    messages = [*chat.to_messages(), {"role": "user", "content": "Two?"}]
    plan = chat.plan(messages)
    receipt = chat.sync(messages)
    assert (
        receipt.computed == plan.computed_tokens - 1 and receipt.pending == 1
    )  # the reply computes the last itself
    assert receipt.kept == receipt.tokens_before and receipt.dropped == 0
    assert [m.id for m in chat.messages][:3] == ids
    reply = chat.send(**GREEDY)
    assert reply.usage.computed_tokens == 1
    assert chat.sync(chat.to_messages()).computed <= 3  # the last token, and what ends a message
    other = chat.to_messages()
    other[1]["content"] = "Eins?"
    receipt = chat.sync(other)
    assert receipt.dropped > 0 and receipt.computed > 0
    assert chat.tokens.tolist() == whole_prompt(runner, chat, generates=False)
    assert chat.messages[0].id == ids[0] and chat.messages[1].id != ids[1]
    before = chat.to_messages()
    for wrong, error in (
        ([{"role": "nobody"}], MessageError),
        ([{"role": "user", "content": "word " * 5000}], ContextOverflowError),
        ("text", MessageError),
    ):
        with pytest.raises(error):
            chat.sync(wrong)  # type: ignore[arg-type]
        assert chat.to_messages() == before
    assert chat.sync([]).tokens_after == 0 and len(chat) == 0


def test_a_template_that_rewrites_history(runner: LlamaRunner) -> None:
    """Qwen3's drops old reasoning: what is computed again is what the template really changed."""
    source = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
    session = runner.session(template=source)
    session.add(
        [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because.", "reasoning_content": "Let me see. " * 5},
        ]
    )
    session.sync(session.to_messages())
    reply = session.send("Really?", **GREEDY)
    tokens = runner.chat_tokens(session.to_messages()[:3], template=source)
    assert session.tokens[: len(tokens)].tolist() == tokens.tolist()
    assert reply.usage.prompt_tokens == len(tokens)
    assert "Let me see" not in runner.model.vocab.detokenize(tokens)
    assert reply.explain().reason == "the cached text goes on differently"


def test_warm_reads_ahead(runner: LlamaRunner, chat: Session) -> None:
    chat.send("One?", **GREEDY)
    warm = chat.warm()
    assert warm.wait() > 0 and warm.done and warm.wait() == warm.wait()
    reply = chat.send("Two?", **GREEDY)
    assert reply.usage.computed_tokens <= 8  # "Two?" and the rest of the template alone
    coming = [{"role": "user", "content": "A document. " * 20}]
    chat.warm(coming).wait()
    assert len(chat) == 5
    assert chat.send(coming, **GREEDY).usage.computed_tokens == 1
    long = chat.warm([{"role": "user", "content": "word " * 800}])
    long.cancel()
    assert long.wait() < 800
    with pytest.raises(ContextOverflowError):
        chat.warm([{"role": "user", "content": "word " * 8000}])
    assert runner.session().warm().wait() > 0  # what every first message has before it
    # results of calls that are open
    session = runner.session(tools=[add], template=with_tools())
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    session.add([{"role": "user", "content": "1+2?"}, {"role": "assistant", "tool_calls": [call]}])
    assert session.warm().wait() > 100
    assert session.send({"role": "tool", "content": "3"}, **GREEDY).usage.computed_tokens < 14


# --- room


def test_a_full_context(smollm2: Path) -> None:
    with LlamaRunner(smollm2, n_ctx=256) as small:
        stop = small.session(on_full="stop")
        cut = stop.send("Count to a hundred.", max_tokens=2000, ignore_eos=True)
        assert cut.finish_reason == "length" and cut.usage.total_tokens == 256
        with pytest.raises(ContextOverflowError, match="gc"):
            stop.send("And on?")
        assert len(stop) == 2
        error = small.session(on_full="error")
        with pytest.raises(ContextOverflowError, match="the session is as it was"):
            error.send("Count to a hundred.", max_tokens=2000, ignore_eos=True)
        assert len(error) == 0
        drop = small.session(system="Be kind.", on_full="drop", params=None)
        receipts = []
        for i in range(12):
            reply = drop.send(f"Tell me of number {i}.", max_tokens=40, temperature=0, ignore_eos=True)
            assert reply.usage.completion_tokens == 40 and reply.usage.prompt_tokens < 256
            prompt = small.chat_tokens(drop.to_messages()[:-1]).tolist()
            assert drop.tokens[: len(prompt)].tolist() == prompt
            receipts.append(reply.receipt)
        assert any(receipts) and not all(receipts)  # room is made in big steps
        assert drop.messages[0].content == "Be kind."
        assert all(receipt.messages for receipt in receipts if receipt)
        with pytest.raises(ContextOverflowError, match="stay"):
            drop.send("word " * 400)


def test_a_reply_goes_on_after_room_was_made(smollm2: Path) -> None:
    with LlamaRunner(smollm2, n_ctx=256) as small:
        session = small.session(on_full="drop")
        for i in range(3):
            session.send(f"Number {i}.", max_tokens=30, temperature=0, ignore_eos=True)
        chunks = []
        stream = session.stream("Now count.", max_tokens=150, temperature=0, ignore_eos=True)
        for chunk in stream:
            chunks.append(chunk)
        reply = stream.reply
        assert reply.receipt is not None and len(reply.receipt.messages) >= 2
        assert len(reply.tokens) == 150 and reply.usage.completion_tokens == 150
        assert "".join(chunk.text for chunk in chunks) == reply.text
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
        assert session.messages[0].content != "Number 0."
        prompt = small.chat_tokens(session.to_messages()[:-1]).tolist()
        assert session.tokens.tolist() == [*prompt, *reply.tokens.tolist()]


def test_gc_keeps_what_matters(runner: LlamaRunner, chat: Session) -> None:
    replies = [chat.send(f"Number {i}?", **GREEDY) for i in range(8)]
    chat.pin(replies[1].message)
    limit = chat.n_tokens / 2 / (runner.context.n_ctx - 1)
    before = chat.n_tokens
    receipt = chat.gc(limit)
    assert chat.n_tokens <= before / 2 and receipt.tokens_after == chat.n_tokens
    kept = chat.messages
    assert kept[0].role == "system" and replies[1].message in kept and replies[7].message in kept
    assert replies[0].message not in kept and replies[0].message_id in receipt.messages
    assert chat.tokens.tolist() == whole_prompt(runner, chat, generates=False)
    assert replies[0].message not in {tip.message for tip in chat.branches.tips}
    chat.unpin(replies[1].message)
    assert chat.gc(0.0).tokens_after < receipt.tokens_after
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.gc(0.0).reason == "nothing had to go, or nothing may"
    assert runner.session().gc().tokens_after == 0
    for wrong in (-0.1, 1.5, "half"):
        with pytest.raises((InvalidArgumentError, ArgumentTypeError)):
            chat.gc(wrong)  # type: ignore[arg-type]
    assert chat.send("Still there?", **GREEDY).text


def test_memory_limit(runner: LlamaRunner) -> None:
    session = runner.session(memory_limit=120)
    session.send("word " * 60, max_tokens=2)
    with pytest.raises(ContextOverflowError, match="a prompt may have 120"):
        session.send("word " * 60, max_tokens=2)
    assert len(session) == 2


# --- models and templates


def test_a_model_without_a_template(tiny_model: TinyModelFactory) -> None:
    with LlamaRunner(tiny_model("llama", chat_template=False), n_ctx=256) as tiny:
        with pytest.raises(ModelCapabilityError, match="template"):
            tiny.session()
        named = tiny.session(template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
        assert named.send("hello", max_tokens=3, ignore_eos=True).usage.completion_tokens == 3


def test_every_memory_kind_follows_a_conversation(tiny_model: TinyModelFactory) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    for kind in ("llama", "swa", "mamba", "hybrid"):
        with LlamaRunner(tiny_model(kind), n_ctx=512) as tiny:
            session = tiny.session(template=template)
            told = []
            for i in range(4):
                reply = session.send(f"turn {i}", max_tokens=6, temperature=0, ignore_eos=True)
                fresh = tiny.session(template=template, messages=session.to_messages()[:-1])
                again = fresh.send(max_tokens=6, temperature=0, ignore_eos=True)
                assert again.tokens.tolist() == reply.tokens.tolist(), kind
                told.append(reply)
            session.rollback(told[1].message)
            assert session.send("other", max_tokens=4, ignore_eos=True).usage.completion_tokens == 4


def test_closed(smollm2: Path) -> None:
    runner = LlamaRunner(smollm2, n_ctx=256)
    session = runner.session()
    stream = session.stream("Hello", max_tokens=200)
    runner.close()
    with pytest.raises(ClosedError):
        for _ in stream:
            pass
    with pytest.raises(ClosedError):
        session.send("Hello")
    with pytest.raises(ClosedError):
        runner.session()
    assert len(session) == 0


def test_sessions_cost_little(runner: LlamaRunner) -> None:
    before = runner.get_context_info().used
    sessions = [runner.session(system=f"You are number {i}.") for i in range(500)]
    assert runner.get_context_info().used == before
    assert len(sessions[0].fork(100)) == 100
    assert sessions[0].fork(0) == []


def test_thoughts_are_taken_apart(runner: LlamaRunner) -> None:
    source = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
    session = runner.session(template=source)
    grammar = 'root ::= "<think>\\nOne, two.\\n</think>\\n\\nThree."'
    # a grammar binds the answer from its first token on: here it writes thoughts, which the parser takes apart
    stream = session.stream("Count.", grammar=grammar, enable_thinking=True, max_tokens=60)
    chunks = list(stream)
    reply = stream.reply
    assert (reply.reasoning.strip(), reply.text.strip()) == ("One, two.", "Three.")
    assert "".join(chunk.reasoning for chunk in chunks).strip() == "One, two."
    assert session.messages[-1].reasoning_content.strip() == "One, two."
    assert "<think>" in reply.raw_text
    plain = session.send("Again.", grammar='root ::= "Four."', max_tokens=20)
    assert (plain.text, plain.reasoning) == ("Four.", "")
