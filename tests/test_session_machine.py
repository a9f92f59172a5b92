"""Thousands of random operations on sessions of each memory kind, against a plain account of their messages.

After every step each session's messages, names, tree and tokens are compared with the account, and its tokens with
those of the template; what a reply or a receipt says was computed with the rows that the loop decoded; what was sampled
with the same text alone in a fresh context; and what a plan promised with what came of it.
"""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine_truth import EXACT, Alone, told
from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, Receipt, Reply, Session, errors
from llama_runner.core import ChatTemplate, Model, live_objects
from llama_runner.session.message import Branch, Message, path_to

N_CTX = 256
STEPS = 40  # of one run
RUNS = {"llama": 48, "swa": 14, "mamba": 14}
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
CHATML = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
WORDS = ("hello", "the capital of france", "x", "", "you and me\n\nare", "one two three " * 4, "time " * 30)
texts = st.sampled_from(WORDS)
places = st.integers(0, 11)
Dict = dict[str, Any]


@dataclass(eq=False)
class Entry:
    """A message at its place in the tree, as the account has it."""

    id: str
    data: Dict


@dataclass(eq=False)
class Account:
    """What a session is to be."""

    session: Session
    path: tuple[Entry, ...] = ()
    tips: list[tuple[Entry, ...]] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    exact: bool = True
    """Whether its tokens are the template's of all its messages, and not those of a prompt and a reply."""
    stale: bool = False
    """Whether messages were added since its tokens were counted."""

    def dicts(self) -> list[Dict]:
        return [entry.data for entry in self.path]

    def leave(self, path: tuple[Entry, ...]) -> None:
        """Go to ``path``; where it was is a branch, unless it is on the way to there, or to another branch."""
        self.tips = [tip for tip in self.tips if not above(tip, path)]
        if not above(self.path, path) and not any(above(self.path, tip) for tip in self.tips):
            self.tips.append(self.path)
        self.path = path


def above(path: tuple[Entry, ...], other: tuple[Entry, ...]) -> bool:
    return len(path) <= len(other) and all(a is b for a, b in zip(path, other, strict=False))


def user(text: str) -> Dict:
    return {"role": "user", "content": text}


class SessionMachine(RuleBasedStateMachine):
    """Drives the sessions of one runner; the test sets what is below."""

    model: Model
    alone: Alone
    folder: Path
    counts: dict[str, int]

    @initialize(on_full=st.sampled_from(["stop", "error", "drop"]), system=st.booleans())
    def start(self, on_full: str, system: bool) -> None:
        self.runner = LlamaRunner(self.model, n_ctx=N_CTX, n_batch=64, n_ubatch=64, **EXACT)
        self.template = ChatTemplate(self.model, CHATML)
        first = self.runner.session(
            template=self.template, on_full=on_full, system="be good" if system else None, seed=7
        )
        self.all = [Account(first, tuple(Entry(m.id, m.to_dict()) for m in first.messages), stale=True)]
        self.count("runs")

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        failed = isinstance(sys.exc_info()[1], Exception)  # what failed is told, and not what comes of it
        del self.all
        gc.collect()
        if not failed:
            self.runner.clear_context()
            info = self.runner.get_context_info()
            assert info.used == 0 and info.sessions == ()
            assert self.runner.counters.running == self.runner.counters.waiting == 0
        self.runner.close()
        del self.runner, self.template
        gc.collect()
        assert failed or live_objects()["jobs"] == 0

    def count(self, what: str, n: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + n

    # --- what holds after each step

    @invariant()
    @told()
    def accounts_hold(self) -> None:
        if not hasattr(self, "all"):
            return
        self.count("steps")
        for account in self.all:
            session = account.session
            assert not session.busy
            assert session.to_messages() == account.dicts()
            assert [m.id for m in session.messages] == [entry.id for entry in account.path]
            assert len(session) == len(account.path)
            left = [[(n.message.id, n.message.to_dict()) for n in path_to(tip)] for tip in session._tips]
            assert left == [[(entry.id, entry.data) for entry in tip] for tip in account.tips]
            tips = [*account.tips]
            if not any(above(account.path, tip) for tip in tips):
                tips.append(account.path)
            assert sorted(ids(tip.messages()) for tip in session.branches.tips) == sorted(
                [entry.id for entry in tip] for tip in tips
            )
            assert session._pinned == account.pinned
            if account.exact and not account.stale:
                assert session.tokens.tolist() == self.template_of(account.dicts())

    def template_of(self, dicts: Sequence[Dict], generates: bool | None = None) -> list[int]:
        if not dicts:
            return []
        ask = dicts[-1]["role"] != "assistant" if generates is None else generates
        tokens = self.runner.chat_tokens(dicts, template=self.template, add_generation_prompt=ask)
        return list(map(int, tokens))

    def unchanged(self, account: Account, call: Callable[[], object], *kinds: type[Exception]) -> None:
        """``call`` raises, and nothing is another."""
        session = account.session
        before = (session.tokens.tolist(), session._head, list(session._tips), session._draws, str(session))
        with pytest.raises(kinds):
            call()
        after = (session.tokens.tolist(), session._head, list(session._tips), session._draws, str(session))
        assert after == before
        self.count("errors")

    def rows(self) -> int:
        return int(self.runner.counters.loop["rows"])

    def changed(self, account: Account, receipt: Receipt, computed: int) -> None:
        """A change came to be: its receipt adds up, and what is pending is what the cache lacks."""
        session = account.session
        account.exact, account.stale = True, False
        assert receipt.tokens_before == receipt.kept + receipt.dropped
        assert receipt.tokens_after == session.n_tokens and receipt.kept <= receipt.tokens_after
        assert receipt.computed == computed and receipt.exact
        if 1 < session.n_tokens < N_CTX and zlib.crc32(session.tokens.tobytes()) % 4 == 0:
            before, engine = self.rows(), self.runner.engine
            restored = engine.foresee(session.tokens, generates=False).restored_tokens
            request = engine.feed(session.tokens)
            while not request.ended:
                request.chunk()
            assert receipt.pending <= self.rows() - before <= receipt.pending + restored
            self.count("receipts")

    # --- turns

    def account(self, place: int) -> Account:
        return self.all[place % len(self.all)]

    def check_reply(self, reply: Reply, prompt: list[int], before: int) -> None:
        usage = reply.usage
        assert usage.prompt_tokens == usage.cached_tokens + usage.computed_tokens
        assert usage.completion_tokens == len(reply.tokens)
        if len(reply.tokens) and reply.finish_reason == "length":
            assert self.rows() - before == usage.computed_tokens + len(reply.tokens) - 1
        self.alone.check(np.array(prompt, np.int32), reply, greedy=True)
        self.count("replies")

    @rule(place=places, said=st.lists(texts, min_size=2, max_size=4))
    @told()
    def talk(self, place: int, said: list[str]) -> None:
        for i, text in enumerate(said):
            self.send_one(place, text, 1 + i, bool(i % 2))

    @rule(place=places, text=st.none() | texts, max_tokens=st.integers(1, 6), stream=st.booleans())
    @told()
    def send(self, place: int, text: str | None, max_tokens: int, stream: bool) -> None:
        self.send_one(place, text, max_tokens, stream)

    def send_one(self, place: int, text: str | None, max_tokens: int, stream: bool) -> None:
        account = self.account(place)
        session = account.session
        added = [] if text is None else [user(text)]
        options = {**GREEDY, "max_tokens": max_tokens}
        whole = [*account.dicts(), *added]
        if not whole:
            return self.unchanged(account, lambda: session.send(text, **options), errors.InvalidArgumentError)
        plan = session.plan(whole)
        prompt = self.template_of(whole, generates=True)
        assert plan.prompt_tokens == len(prompt) and plan.fits == (len(prompt) < N_CTX)
        full = len(prompt) + max_tokens > N_CTX
        if session.on_full == "drop" and full:
            return self.send_and_drop(account, text, options)
        if not plan.fits or (full and session.on_full == "error"):
            return self.unchanged(account, lambda: session.send(text, **options), errors.ContextOverflowError)
        before = self.rows()
        reply = session.stream(text, **options).result() if stream else session.send(text, **options)
        assert reply.usage.prompt_tokens == plan.prompt_tokens
        if plan.explanation.restored_tokens and reply.usage.cached_tokens < plan.cached_tokens:
            self.count("not restored")  # there was no room for it
            assert reply.usage.cached_tokens >= plan.cached_tokens - plan.explanation.restored_tokens
        else:
            assert reply.usage.cached_tokens == plan.cached_tokens, f"{plan.explanation}: {reply.explanation}"
        assert len(reply.tokens) == min(max_tokens, N_CTX - len(prompt)) and reply.finish_reason == "length"
        self.check_reply(reply, prompt, before)
        assert session.tokens.tolist() == [*prompt, *reply.tokens.tolist()]
        self.took(account, added, reply.message)

    def took(self, account: Account, added: Sequence[Dict], said: Message) -> None:
        """A turn is over: these are new, with names of their own."""
        new = account.session.messages[-1 - len(added) :]
        assert new[-1] is said and [m.to_dict() for m in new[:-1]] == list(added)
        known = {entry.id for each in self.all for entry in each.path}
        assert known.isdisjoint(ids(new))
        account.path += tuple(Entry(m.id, m.to_dict()) for m in new)
        account.exact = account.stale = False

    def send_and_drop(self, account: Account, text: str | None, options: Dict) -> None:
        session, before = account.session, account.path
        try:
            reply = session.send(text, **options)
        except errors.ContextOverflowError:
            return
        n_added = 0 if text is None else 1
        gone = reply.receipt.messages if reply.receipt is not None else ()
        kept = [entry for entry in before if entry.id not in gone]
        assert account.pinned.isdisjoint(gone) and all(
            e.data["role"] != "system" or e in kept for e in before
        )
        assert ids(session.messages[: len(kept)]) == [entry.id for entry in kept]
        if gone:
            account.path = tuple(Entry(entry.id, entry.data) for entry in kept)
            self.count("dropped")
        self.took(account, [user(text)] if n_added and text is not None else [], reply.message)

    @rule(place=places, text=texts, chunks=st.integers(0, 3))
    @told()
    def leave_a_stream(self, place: int, text: str, chunks: int) -> None:
        account = self.account(place)
        session = account.session
        prompt = self.template_of([*account.dicts(), user(text)])
        if len(prompt) + 40 > N_CTX:
            return
        stream = session.stream(text, max_tokens=40, **GREEDY)
        read: list[int] = []
        over = False
        for _, chunk in zip(range(chunks), stream, strict=False):  # each has all that has come until then
            read += chunk.tokens
            over = chunk.finish_reason is not None
        for call in (lambda: session.send("x"), session.fork, session.plan, lambda: session.edit("x", "y")):
            if not over:
                with pytest.raises(errors.ContextBusyError):
                    call()
        if chunks % 2:
            stream.close()
        del stream
        self.quiet()
        if read:
            assert session.tokens.tolist() == [*prompt, *read]
            assert session.messages[-1].finish_reason == ("length" if over else "cancelled")
            self.took(account, [user(text)], session.messages[-1])

    def quiet(self) -> None:
        """Wait until nothing runs: a reply that was left ends within a step."""
        while True:
            counters = self.runner.counters
            if counters.running == counters.waiting == 0:
                return

    @rule(place=places, text=texts, role=st.sampled_from(["user", "assistant"]))
    @told()
    def add(self, place: int, text: str, role: str) -> None:
        account = self.account(place)
        new = account.session.add(text, role=role)
        assert new == account.session.messages[-1:]
        account.path += (Entry(new[0].id, {"role": role, "content": text}),)
        account.stale = True

    # --- branches and edits

    @rule(place=places, n=st.none() | st.integers(0, 2))
    @told()
    def fork(self, place: int, n: int | None) -> None:
        account = self.account(place)
        forks = account.session.fork(n)
        for made in [forks] if isinstance(forks, Session) else forks:
            self.all.append(
                Account(
                    made,
                    account.path,
                    list(account.tips),
                    set(account.pinned),
                    account.exact,
                    account.stale,
                )
            )
        while len(self.all) > 4:
            self.all.pop(0)

    @rule(place=places, at=places)
    @told()
    def rollback(self, place: int, at: int) -> None:
        account = self.account(place)
        path = account.path[: at % (len(account.path) + 1)]
        gone = account.path[len(path) :]
        receipt = account.session.rollback(path[-1].id if path else None)
        assert receipt.messages == tuple(entry.id for entry in gone)
        account.leave(path)
        self.changed(account, receipt, 0)

    @rule(place=places, at=places, up=st.integers(0, 2))
    @told()
    def checkout(self, place: int, at: int, up: int) -> None:
        account = self.account(place)
        session = account.session
        branch: Branch = session.branches.tips[at % len(session.branches.tips)]
        where = [
            tip is branch.node for tip in session._tips
        ]  # an edited message has its name in both branches
        path = account.tips[where.index(True)] if any(where) else account.path
        receipt = account.session.checkout(branch)
        account.leave(path)
        self.changed(account, receipt, 0)
        if up and path:
            account.session.checkout(path[-1].id)

    @rule(place=places)
    @told()
    def prune(self, place: int) -> None:
        account = self.account(place)
        assert account.session.prune() == len(account.tips)
        account.tips = []

    def rewritten(self, account: Account, first: int, kept: list[Entry], call: Callable[[], Receipt]) -> None:
        """An edit: what is behind the first that changed is another place in the tree, of the same name."""
        tokens = self.template_of([entry.data for entry in [*account.path[:first], *kept]])
        if len(tokens) > N_CTX - 1:
            return self.unchanged(account, call, errors.ContextOverflowError)
        receipt = call()
        account.leave((*account.path[:first], *(Entry(entry.id, entry.data) for entry in kept)))
        self.changed(account, receipt, 0)

    @rule(place=places, at=places, text=texts)
    @told()
    def edit(self, place: int, at: int, text: str) -> None:
        account = self.account(place)
        if not account.path:
            return self.unchanged(
                account, lambda: account.session.edit("x", text), errors.UnknownMessageError
            )
        first = at % len(account.path)
        old = account.path[first]
        kept = [Entry(old.id, {**old.data, "content": text}), *account.path[first + 1 :]]
        edit = account.session.edit if at % 2 else account.session.replace
        self.rewritten(account, first, kept, lambda: edit(old.id, text))

    @rule(place=places, which=st.lists(places, min_size=1, max_size=3))
    @told()
    def drop(self, place: int, which: list[int]) -> None:
        account = self.account(place)
        if not account.path:
            return
        chosen = {at % len(account.path) for at in which}
        first = min(chosen)
        kept = [e for i, e in enumerate(account.path) if i >= first and i not in chosen]
        names = [account.path[at % len(account.path)].id for at in which]
        self.rewritten(account, first, kept, lambda: account.session.drop(*names))

    @rule(place=places, keep=places, new=st.lists(texts, max_size=2), change=st.booleans())
    @told()
    def sync(self, place: int, keep: int, new: list[str], change: bool) -> None:
        account = self.account(place)
        session = account.session
        dicts = [dict(data) for data in account.dicts()[: keep % (len(account.path) + 1)]]
        if change and dicts:
            dicts[-1]["content"] = "changed"
        dicts += [user(text) for text in new]
        tokens = self.template_of(dicts)
        if len(tokens) > N_CTX - 1:
            return self.unchanged(account, lambda: session.sync(dicts), errors.ContextOverflowError)
        same = 0
        while same < min(len(dicts), len(account.path)) and account.path[same].data == dicts[same]:
            same += 1
        before, old = self.rows(), account.path
        receipt = session.sync(dicts)
        assert ids(session.messages[:same]) == [entry.id for entry in old[:same]]
        assert {entry.id for entry in old}.isdisjoint(ids(session.messages[same:]))
        account.path = old[:same] + tuple(Entry(m.id, m.to_dict()) for m in session.messages[same:])
        self.changed(account, receipt, self.rows() - before)

    @rule(place=places, share=st.sampled_from([0.0, 0.1, 0.3, 1.0]))
    @told()
    def collect(self, place: int, share: float) -> None:
        account = self.account(place)
        receipt = account.session.gc(share)
        gone = set(receipt.messages)
        kept = [entry for entry in account.path if entry.id not in gone]
        assert account.pinned.isdisjoint(gone) and len(kept) + len(gone) == len(account.path)
        assert all(entry in kept for entry in account.path if entry.data["role"] == "system")
        if gone:
            account.path = tuple(Entry(entry.id, entry.data) for entry in kept)
        self.changed(account, receipt, 0)

    @rule(place=places, at=places, keep=st.booleans())
    @told()
    def pin(self, place: int, at: int, keep: bool) -> None:
        account = self.account(place)
        if not account.path:
            return
        name = account.path[at % len(account.path)].id
        if keep:
            account.session.pin(name)
            account.pinned.add(name)
        else:
            account.session.unpin(name)
            account.pinned.discard(name)

    # --- the cache, files

    @rule(place=places, text=st.none() | texts)
    @told()
    def warm(self, place: int, text: str | None) -> None:
        account = self.account(place)
        messages = None if text is None else [user(text)]
        if text is not None and len(self.template_of([*account.dicts(), user(text)])) > N_CTX:
            return self.unchanged(
                account, lambda: account.session.warm(messages), errors.ContextOverflowError
            )
        before = self.rows()
        try:
            warm = account.session.warm(messages)
        except errors.ContextOverflowError:
            return
        assert warm.wait() == self.rows() - before and warm.done

    @rule(evict=st.booleans())
    @told()
    def lose(self, evict: bool) -> None:
        if evict:
            self.runner.gc_context(0.2)
        else:
            self.runner.clear_context()

    @rule(place=places, kv=st.booleans())
    @told()
    def save_and_load(self, place: int, kv: bool) -> None:
        account = self.account(place)
        old, path = account.session, self.folder / "session"
        if old.n_tokens > N_CTX:
            return self.unchanged(account, lambda: old.save(path), errors.ContextOverflowError)
        old.save(path)
        account.session = new = self.runner.load_session(path, kv=kv)
        assert new.template.source == CHATML
        assert (new._draws, new.seed, new.on_full) == (old._draws, old.seed, old.on_full)
        if kv:
            assert new.tokens.tolist() == old.tokens.tolist()
        else:
            account.stale = True

    @rule(place=places, kind=st.integers(0, 9))
    @told()
    def wrong(self, place: int, kind: int) -> None:
        account = self.account(place)
        s = account.session
        calls: list[Callable[[], object]] = [
            lambda: s.send({"role": "nobody", "content": "x"}),
            lambda: s.send("x", max_tokens=0),
            lambda: s.send("x", no_such_option=1),
            lambda: s.add({"role": "tool", "content": "x"}),
            lambda: s.sync([user("x"), {"role": "user"}]),
            lambda: s.rollback("msg_none"),
            lambda: s.send("word " * 400, max_tokens=1),
            lambda: s.warm([user("word " * 400)]),
            lambda: s.sync([user("word " * 400)]),
            lambda: s.save(self.folder / "no" / "such" / "folder"),
        ]
        self.unchanged(account, calls[kind], errors.LlamaRunnerError)


def ids(messages: Sequence[Message]) -> list[str]:
    return [message.id for message in messages]


@pytest.fixture
def machine_of(tiny_model: TinyModelFactory, tmp_path: Path) -> Iterator[Any]:
    made: list[type[SessionMachine]] = []

    def make(kind: str) -> type[SessionMachine]:
        model = Model(tiny_model(kind))
        members = {"model": model, "alone": Alone(model), "folder": tmp_path, "counts": {}}
        made.append(type("Machine", (SessionMachine,), members))
        return made[-1]

    yield make
    for machine in made:  # hypothesis keeps the class
        machine.alone.close()
        del machine.model, machine.alone


@pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning")
@pytest.mark.parametrize("kind", RUNS)
def test_thousands_of_operations(machine_of: Any, kind: str) -> None:
    machine = machine_of(kind)
    run_state_machine_as_test(
        seed(zlib.crc32(kind.encode()))(machine),
        settings=settings(
            max_examples=RUNS[kind],
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
            report_multiple_bugs=False,
        ),
    )
    counts, alone = machine.counts, machine.alone
    print(f"{kind}: {counts}, {alone.compared} greedy tokens, {alone.near_ties} near ties")
    assert counts["steps"] > 20 * RUNS[kind]
    assert min(counts["replies"], counts["receipts"], counts["errors"]) > RUNS[kind]
    assert alone.near_ties <= alone.compared / 100
