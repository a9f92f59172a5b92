"""``Conversation``: the messages of a session, the tree they form, and what of them the KV cache holds."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_choice, check_float, check_int, check_name
from llama_runner._hold import OneAtATime
from llama_runner._single import Single
from llama_runner.chat.messages import check_messages, listed
from llama_runner.chat_types import ChatPrompt
from llama_runner.core import ChatTemplate
from llama_runner.engine import Adapters, Engine, Request
from llama_runner.engine.prefix import common_length
from llama_runner.engine.stream import drain
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    ContextOverflowError,
    InvalidArgumentError,
    UnknownMessageError,
)
from llama_runner.receipts import MessagePlan, Plan, Receipt
from llama_runner.results import SessionInfo
from llama_runner.session.collect import KEPT, fewest_dropped
from llama_runner.session.message import Branch, Message, Node, branch_tree, is_above, path_to
from llama_runner.session.rendering import Options, Renderer

__all__ = ["Conversation", "OnFull", "Registry", "Warmup"]

Tokens = npt.NDArray[np.int32]
Dicts = Sequence[Mapping[str, Any]]
OnFull = Literal["stop", "error", "drop"]
NONE: Tokens = np.empty(0, dtype=np.int32)


class Conversation(Single):
    """Messages, and their tokens in the cache. ``Session`` adds turns to it."""

    _instead = ": fork() it, or save() it to a file"

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        options: Options,
        *,
        on_full: OnFull,
        memory_limit: int | None,
        owner: str | None,
        priority: int,
        adapters: Adapters | None,
    ) -> None:
        self.engine = engine
        self.template = template
        self.options = options
        self.on_full: OnFull = check_choice("on_full", on_full, ("stop", "error", "drop"))
        n_ctx = engine.context.n_ctx
        self.memory_limit = (
            None if memory_limit is None else check_int("memory_limit", memory_limit, 1, n_ctx)
        )
        if owner is not None:
            check_name("owner", owner)
        self.owner = owner
        self.priority = check_int("priority", priority, -(2**31) + 1, 2**31 - 1)
        self.adapters = adapters
        engine.prefix_key(adapters)
        self._renderer = Renderer(template, engine.vocab)
        self._head: Node | None = None
        self._tips: list[Node | None] = []  # where branches end that were left
        self._pinned: set[str] = set()
        self._tree = uuid.uuid4().hex  # whose branches it takes: its own and those of its forks
        self._log: Tokens = NONE  # its tokens as of the last turn
        self._turn = OneAtATime(
            "a reply of this session is under way, or a thread in one of its methods: it takes one turn at a time, so "
            "fork() it"
        )
        self.registry = Registry()
        """Where its forks are put down as well."""
        self.used_at = time.monotonic()

    # --- what it says

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, from its first message to the last."""
        return tuple(node.message for node in path_to(self._head))

    def __len__(self) -> int:
        return 0 if self._head is None else self._head.depth

    def to_messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form: copies, ready for ``json.dumps``, for another library, or for ``sync``."""
        return [message.to_dict() for message in self.messages]

    @property
    def branches(self) -> Branch:
        """The tree of all conversations that were had here: what was rolled back or edited is a branch that was left.

        ``checkout(branch)`` goes there; ``prune()`` forgets those that were left.
        """
        return branch_tree(self._tips, self._head, self._tree)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation, as of the last turn, ``sync`` or edit."""
        return len(self._log)

    @property
    def tokens(self) -> Tokens:
        """Those tokens, int32, read-only."""
        view = self._log.view()
        view.flags.writeable = False
        return view

    def info(self) -> SessionInfo:
        """How much of it the cache holds now."""
        held = 0
        if len(self._log):
            found = self.engine.foresee(self._log, generates=False, adapters=self.adapters)
            held = found.cached_tokens - found.restored_tokens
        return SessionInfo(len(self), self.n_tokens, held, time.monotonic() - self.used_at, self.owner)

    def _dicts(self) -> list[Mapping[str, Any]]:
        return [node.message.data for node in path_to(self._head)]

    def _find(self, wanted: str | Message) -> Node:
        """The place of a message in the conversation as it is now."""
        name = wanted.id if isinstance(wanted, Message) else wanted
        if not isinstance(name, str):
            raise ArgumentTypeError(f"a message is named by its id, not {wanted!r:.60}")
        node = self._head
        while node is not None:
            if node.message.id == name:
                return node
            node = node.parent
        raise UnknownMessageError(
            f"{name!r} is no message of this conversation as it is now: see messages, and checkout() for other branches"
        )

    # --- one at a time

    @contextlib.contextmanager
    def _taken(self) -> Iterator[None]:
        """Have the conversation to oneself, and an engine that is there."""
        with self._turn.taken():
            self._check_open()
            try:
                yield
            except ContextBusyError:  # of a model that is being closed meanwhile
                self._check_open()
                raise

    def _check_open(self) -> None:
        if self.engine.closed:
            raise ClosedError("the runner of this session is closed; its messages are still there to read")

    @property
    def busy(self) -> bool:
        """Whether a reply is under way, or a thread in a method: anything but reading gets ContextBusyError now."""
        return self._turn.busy

    # --- tokens

    def _rendered(
        self, kept: Sequence[Message], added: Dicts, options: Options, **more: Any
    ) -> tuple[ChatPrompt, Tokens]:
        prompt = self._renderer.render([*(message.data for message in kept), *added], options, **more)
        return prompt, self._renderer.tokens(prompt.prompt)

    def _tokens_of(self, dicts: Dicts) -> Tokens:
        """The tokens of a conversation; of what the template writes only together with what comes next, none."""
        if not dicts:
            return NONE
        try:
            text = self._renderer.text(dicts, self.options, replies_to(dicts))
        except InvalidArgumentError:
            return NONE
        return self._renderer.tokens(text)

    def plan(self, messages: Iterable[Mapping[str, Any]] | None = None) -> Plan:
        """What a reply would compute: of the conversation as it is, or of ``messages`` in its place. Changes nothing.

        ``plan(chat.to_messages() + [new])`` tells what a turn costs before it is taken. True as long as nobody else
        comes, except that less of what was stored outside the KV memory comes back where the prompt leaves no room for
        it; takes up to a step of the engine. Raises MessageError, and InvalidArgumentError for what the template
        refuses.
        """
        with self._taken():
            dicts = self._dicts() if messages is None else check_messages(messages)
            if not dicts:
                raise InvalidArgumentError("the conversation is empty: there is nothing to plan")
            text = self._renderer.text(dicts, self.options, True)
            tokens = self._renderer.tokens(text)
        spans = self._renderer.spans(dicts, text, tokens)
        explanation = self.engine.foresee(tokens, adapters=self.adapters)
        parts = tuple(
            MessagePlan(
                str(message["role"]), start, stop, min(stop, max(start, explanation.cached_tokens)) - start
            )
            for message, (start, stop) in zip(dicts, spans, strict=True)
        )
        return Plan(explanation, parts, len(tokens) <= self._most())

    # --- changes, each with a receipt

    def sync(self, messages: Iterable[Mapping[str, Any]]) -> Receipt:
        """Make this the conversation of ``messages``, in OpenAI's form, and compute what of it the cache lacks.

        Messages that it begins with already keep their ids. ``send()`` without a message then has the model reply.
        After an error the conversation is as it was.
        """
        with self._taken():
            head, tokens = self._synced(messages)
            # the last one the reply has to compute itself
            computed = 0 if len(tokens) < 2 else self._wait(self._feed(tokens[:-1]))
            return self._set(head, tokens, "sync", computed=computed)

    def _synced(self, messages: Iterable[Mapping[str, Any]]) -> tuple[Node | None, Tokens]:
        """Where the conversation ends then, and what of its tokens can be read ahead of a reply."""
        dicts = check_messages(messages)
        if not dicts:
            return None, NONE
        head, same = None, True
        for node, data in zip(path_to(self._head), dicts, strict=False):
            same = same and node.message.data == data
            if not same:
                break
            head = node
        head = self._grown(head, dicts[0 if head is None else head.depth :])
        tokens = self._tokens_of(dicts)
        if len(tokens) > self._most():
            raise self._too_long(len(tokens))
        return head, tokens

    def _feed(self, tokens: Tokens, **options: Any) -> Request:
        """Read tokens into the cache."""
        options = {"owner": self.owner, "priority": self.priority, "adapters": self.adapters, **options}
        return self.engine.feed(tokens, **options)

    def _wait(self, request: Request) -> int:
        drain(self.engine, request)
        return int(request.job.progress["n_computed"])

    def rollback(self, to: str | Message | None) -> Receipt:
        """Go back to where ``to`` was the last message; None for before the first. What came after it is a branch."""
        with self._taken():
            return self._move(None if to is None else self._find(to), "rollback")

    def checkout(self, branch: Branch | str | Message) -> Receipt:
        """Go on from any message of the tree: one of ``branches``, or one of the conversation as it is now."""
        with self._taken():
            return self._move(
                self._own(branch) if isinstance(branch, Branch) else self._find(branch), "checkout"
            )

    def _own(self, branch: Branch) -> Node | None:
        """Where a branch of this session, or of one that was forked off with it, ends."""
        if branch.tree != self._tree:
            raise UnknownMessageError(f"{branch.message!r:.80} is in no branch of this session: see branches")
        return branch.node

    def prune(self) -> int:
        """Forget the branches that were left; returns how many there were."""
        with self._turn.taken():
            n = len(self._tips)
            self._tips = []
            return n

    def edit(self, message: str | Message, content: str) -> Receipt:
        """Put another text in a message's place; what comes after it stays, and is computed anew with the next turn.

        As it was, it is a branch. A reply that called tools keeps its calls.
        """
        with self._taken():
            node = self._find(message)
            changed = [
                *(above.message.data for above in path_to(node.parent)),
                {**node.message.data, "content": content},
            ]
            data = check_messages(changed)[-1]
            return self._rewrite({node.message.id: Message(node.message.id, data)}, "edit")

    def replace(self, message: str | Message, content: str) -> Receipt:
        """``edit`` by its other name."""
        return self.edit(message, content)

    def drop(self, *messages: str | Message) -> Receipt:
        """Take messages out; those after them stay. A call cannot go without its results, nor they without it.

        As it was, it is a branch.
        """
        with self._taken():
            return self._rewrite({self._find(message).message.id: None for message in messages}, "drop")

    def pin(self, message: str | Message) -> None:
        """Keep a message, and its turn, when the oldest ones are dropped."""
        self._pinned.add(self._find(message).message.id)

    def unpin(self, message: str | Message) -> None:
        """Let it go with its turn."""
        self._pinned.discard(self._find(message).message.id)

    def gc(self, target: float = 0.5, *, policy: Literal["oldest"] = "oldest") -> Receipt:
        """Drop the oldest turns, until the conversation has at most ``target`` of the tokens that there is room for.

        What the system says, what is pinned, and the last turn stay. What goes is no branch: it is forgotten.
        """
        check_float("target", target, 0.0, 1.0)
        check_choice("policy", policy, ("oldest",))
        with self._taken():
            if self._head is None:
                return self._set(None, NONE, "gc")

            def attempt(kept: Sequence[Message]) -> Tokens:
                return self._tokens_of([message.data for message in kept])

            before = self.messages
            kept, tokens = fewest_dropped(
                before, self._pinned, attempt, len, int(target * self._most()), keeps_last=True
            )
            stays = {message.id for message in kept}
            gone = tuple(message.id for message in before if message.id not in stays)
            reason = "the oldest turns were dropped" if gone else "nothing had to go, or nothing may"
            head = self._grown(None, kept) if gone else self._head
            return self._set(head, tokens, "gc", reason=reason, messages=gone)

    def _move(self, head: Node | None, action: str) -> Receipt:
        gone = tuple(
            node.message.id for node in path_to(self._head)[0 if head is None else head.depth :]
        ) if is_above(head, self._head) else ()  # fmt: skip
        tokens = self._tokens_of([node.message.data for node in path_to(head)])
        return self._set(head, tokens, action, messages=gone, leaves=True)

    def _rewrite(self, changes: Mapping[str, Message | None], action: str) -> Receipt:
        """Put other messages in the place of some, or none."""
        path = path_to(self._head)
        kept = [
            message
            for message in (changes.get(node.message.id, node.message) for node in path)
            if message is not None
        ]
        check_messages([message.data for message in kept])
        first = next((node for node in path if node.message.id in changes), None)
        if first is None:
            return self._set(self._head, self._log, action)
        tokens = self._tokens_of([message.data for message in kept])
        if len(tokens) > self._most():
            raise self._too_long(len(tokens))
        head = self._grown(first.parent, kept[first.depth - 1 :])
        return self._set(head, tokens, action, messages=tuple(changes), leaves=True)

    def _leave(self, head: Node | None) -> None:
        """Remember the branch that is left for ``head``, where it is one."""
        self._tips = [tip for tip in self._tips if not is_above(tip, head)]
        if not is_above(self._head, head) and not any(is_above(self._head, tip) for tip in self._tips):
            self._tips.append(self._head)

    def _set(
        self, head: Node | None, tokens: Tokens, action: str, *, computed: int = 0, reason: str = "",
        messages: tuple[str, ...] = (), leaves: bool = False,
    ) -> Receipt:  # fmt: skip
        """Have the conversation end in ``head``, whose tokens these are; says what that means for the cache.

        With ``leaves``, what it was is a branch. Nothing changes before all is known.
        """
        before = self._log
        same = common_length(before, tokens)
        pending = 0
        if len(tokens):
            pending = self.engine.foresee(tokens, generates=False, adapters=self.adapters).computed_tokens
        if not reason and head is not None and len(tokens) == 0:
            reason = "the template does not write it as it is: plan() tells why, and nothing is read before it goes on"
        if not reason and len(tokens):
            reason = (
                "the rest is new"
                if same == len(before)
                else "it goes on differently"
                if same < len(tokens)
                else ""
            )
        if leaves:
            self._leave(head)
        self._head, self._log = head, tokens
        self.used_at = time.monotonic()
        return Receipt(
            action,
            len(before),
            len(tokens),
            same,
            len(before) - same,
            computed,
            pending,
            True,
            reason,
            messages,
        )

    def _grown(self, head: Node | None, new: Iterable[Message | Mapping[str, Any]]) -> Node | None:
        for each in new:
            head = Node.after(head, each if isinstance(each, Message) else Message.new(each))
        return head

    # --- reading ahead

    def warm(
        self, messages: Iterable[Mapping[str, Any]] | None = None, *, priority: int | None = None
    ) -> Warmup:
        """Read ahead what the next prompt begins with, while a tool runs or the user types; returns at once.

        ``messages`` are what will be sent, as far as it is known. Without them, it is what every next message of the
        kind that is due (results of the calls that are open, or the user's) has before its text. Nothing of the
        conversation changes. It goes after what runs already, unless ``priority`` says otherwise.
        """
        with self._taken():
            before = self._dicts()
            if messages is not None:
                dicts = check_messages([*before, *listed(messages)])
                tokens = self._tokens_of(dicts)[:-1]  # the reply computes the last one itself
            else:
                tokens = self._due(before)
            if len(tokens) > self._most():
                raise self._too_long(len(tokens))
        if len(tokens) == 0:
            return Warmup(self, None, 0)
        chosen = self.priority - 1 if priority is None else priority
        return Warmup(self, self._feed(tokens, priority=chosen), len(tokens))

    def _due(self, before: Dicts) -> Tokens:
        """The tokens that the next prompt begins with, whatever the next message says."""
        found = []
        for filler in ("0", "x"):
            calls = before[-1].get("tool_calls") if before else None
            due = (
                [{"role": "tool", "tool_call_id": call.get("id", ""), "content": filler} for call in calls]
                if calls
                else [{"role": "user", "content": filler}]
            )
            try:
                text = self._renderer.text([*before, *due], self.options, True)
            except InvalidArgumentError:
                return NONE
            found.append(self._renderer.tokens(text))
        return found[0][: common_length(*found)]

    # --- room

    def _most(self) -> int:
        """Tokens that a prompt may have: one at least is the answer's."""
        most = self.engine.context.n_ctx - 1
        return most if self.memory_limit is None else min(most, self.memory_limit)

    def _too_long(self, n_tokens: int) -> ContextOverflowError:
        return ContextOverflowError(
            f"the conversation has {n_tokens} tokens, and a prompt may have {self._most()}: gc() or roll back the "
            "session, make n_ctx larger, or choose on_full='drop'",
            n_tokens,
            self._most(),
        )

    def _shortened(
        self, kept: Sequence[Message], added: Dicts, options: Options, most: int
    ) -> tuple[tuple[Message, ...], ChatPrompt, Tokens]:
        """The conversation without its oldest turns: a prompt has at most ``most`` tokens then, and for some turns.

        Raises ContextOverflowError where what must stay is more than that.
        """
        messages, (prompt, tokens) = fewest_dropped(
            kept,
            self._pinned,
            lambda messages: self._rendered(messages, added, options),
            lambda found: len(found[1]),
            int(most * KEPT),
            keeps_last=not added or added[0]["role"] != "user",  # it goes on with the last turn
        )
        if len(tokens) > most:
            raise ContextOverflowError(
                f"{len(tokens)} tokens are left without the oldest turns, and the prompt may have {most}: the last "
                "turn, what is pinned, and what the system says stay",
                len(tokens),
                most,
            )
        return tuple(messages), prompt, tokens

    def _dropped(self, kept: Sequence[Message], tokens: Tokens) -> Receipt:
        """What dropping all messages but ``kept`` for a prompt of ``tokens`` does."""
        stays = {message.id for message in kept}
        same = common_length(self._log, tokens)
        return Receipt(
            "drop",
            len(self._log),
            len(tokens),
            same,
            len(self._log) - same,
            pending=len(tokens) - same,
            reason="the oldest turns made room",
            messages=tuple(message.id for message in self.messages if message.id not in stays),
        )


class Registry:
    """The sessions that somebody holds; any thread may add and look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: weakref.WeakSet[Conversation] = weakref.WeakSet()

    def add(self, session: Conversation) -> None:
        with self._lock:
            self._sessions.add(session)
        session.registry = self

    def __iter__(self) -> Iterator[Conversation]:
        with self._lock:
            found = list(self._sessions)
        return iter(found)


class Warmup(Single):
    """Reading ahead, under way. It goes on by itself; ``wait()`` tells what it computed, ``cancel()`` ends it."""

    def __init__(self, conversation: Conversation, request: Request | None, n_tokens: int) -> None:
        self._engine = conversation.engine
        self._request = request
        self.n_tokens = n_tokens
        """Tokens that it brings into the cache, or finds there."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to read."""
        return self._request is None or self._request.job.end_reason is not None

    def wait(self) -> int:
        """Wait for its end; returns how many tokens were computed."""
        if self._request is None:
            return 0
        drain(self._engine, self._request)
        return int(self._request.job.progress["n_computed"])

    def cancel(self) -> None:
        """End it; what was read stays in the cache."""
        if self._request is not None and not self._request.ended:
            self._engine.cancel(self._request)


def replies_to(dicts: Dicts) -> bool:
    """Whether a conversation waits for a reply."""
    return bool(dicts) and dicts[-1]["role"] != "assistant"
