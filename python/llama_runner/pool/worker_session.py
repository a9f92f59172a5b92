"""``WorkerSession``: a ``Session`` in a worker process, which outlives it."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_int
from llama_runner._single import Single
from llama_runner.chat import CancelFlag, ToolSet
from llama_runner.chat.messages import listed
from llama_runner.engine.stream import HomeEvent, waker
from llama_runner.errors import InvalidArgumentError
from llama_runner.params import GenerationParams
from llama_runner.pool.process import Call, WorkerProcess
from llama_runner.pool.worker_stream import WorkerStream
from llama_runner.receipts import Plan, Receipt
from llama_runner.results import SessionInfo
from llama_runner.session.message import Branch, Message, branch_tree, path_to
from llama_runner.session.reply import Reply, ReplyChunk
from llama_runner.session.session import Content, Tools, as_tool_set
from llama_runner.session.steps import Limits, Run, Step, arun_steps, run_steps
from llama_runner.session.store import Snapshot

if TYPE_CHECKING:
    from llama_runner.pool.worker_runner import WorkerRunner

__all__ = ["AsyncWorkerReplyStream", "WorkerReplyStream", "WorkerSession"]

_ids = itertools.count(1)
Messages = Iterable[Mapping[str, Any]]


class SessionCall(Call):
    """A call that a session's worker answers: how the session is then is taken down as it arrives, read or not."""

    def __init__(self, session: WorkerSession, notify: Callable[[], None] | None = None) -> None:
        super().__init__(notify)
        self._session = session

    def put(self, message: tuple[Any, ...]) -> None:
        if message[0] == "end":
            *rest, taken = message
            self._session._take_down(*taken)
            message = tuple(rest)
        elif message[0] == "result":
            kind, (value, taken) = message
            self._session._take_down(*taken)
            message = (kind, value)
        super().put(message)


class WorkerReplyStream(WorkerStream):
    """A reply under way in a worker: iterate over its chunks; ``reply`` is there at the end.

    ``close()``, leaving a ``with`` block, or dropping the last reference ends it early: what the worker had generated
    by then stays in the session. An error, the worker's death included, leaves the session as it was.
    """

    @property
    def reply(self) -> Reply:
        """The reply, once the stream is exhausted or closed; InvalidArgumentError before; its error if it failed."""
        return cast("Reply", self.completion)

    def result(self) -> Reply:
        """Read to the end; an error, or an interrupt, leaves the session as it was."""
        self._keeps = False
        for _ in self:
            pass
        return self.reply


class AsyncWorkerReplyStream(Single, AsyncIterator[ReplyChunk]):
    """``WorkerReplyStream`` for asyncio: ``async for``, or ``async with`` to end it where it is left."""

    def __init__(self, session: WorkerSession, content: Any, options: dict[str, Any]) -> None:
        self._session = session
        self._asked = session._asked(content, options)
        self._there = HomeEvent()
        # what wakes it must not hold the stream: nobody would see it dropped
        self._call = SessionCall(session, waker([self._there]))
        self._process: WorkerProcess | None = None
        self._cancelled = self._ended = self._quiet = False
        self._reply: Reply | None = None

    async def __anext__(self) -> ReplyChunk:
        try:
            chunk = await self._next()
        except asyncio.CancelledError:
            self.close()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _next(self) -> ReplyChunk | None:
        if self._process is None and not self._ended:
            process = await self._session._aliving()
            process.begin(self._call, "reply", self._session._id, *self._asked[:2], self._quiet)
            self._process = process
            if self._cancelled:
                self.cancel()
        while not self._ended:
            self._there.clear()
            try:
                kind, *rest = self._call.messages.get_nowait()
            except queue.Empty:
                await self._there.wait()
                continue
            if kind == "chunk":
                return cast("ReplyChunk", rest[0])
            if kind == "error":
                self._ended = True
                raise rest[0]
            if kind == "end":
                self._ended = True
                chunk, reply, _ = rest
                self._reply = cast("Reply", reply.as_type(self._asked[2]))
                if chunk is not None:
                    return cast("ReplyChunk", chunk)
        return None

    def cancel(self) -> None:
        """End it within a step; what has come can still be read, and the reply is what that is."""
        self._cancelled = True
        if self._process is not None and not self._ended:
            self._process.cancel(self._call)

    def close(self) -> None:
        """End it here: what the worker had generated by then stays; never blocks, and closing twice is no error."""
        self.cancel()

    async def aclose(self) -> None:
        """``close``, as an asynchronous generator has it."""
        self.close()

    def __del__(self) -> None:
        # nobody will read it: tell the worker
        if getattr(self, "_process", None) is not None and not self._ended:
            self._process.cancel(self._call)  # type: ignore[union-attr]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The reply, once the stream is exhausted; InvalidArgumentError before."""
        if self._reply is None:
            raise InvalidArgumentError("there is no reply: exhaust the stream first")
        return self._reply

    async def result(self) -> Reply:
        """Read to the end; an error, or a task that is cancelled, leaves the session as it was."""
        self._quiet = self._process is None
        try:
            while await self._next() is not None:
                pass
        except BaseException:
            if self._process is not None and not self._ended:
                self._process.cancel(self._call, keep=False)
            raise
        return self.reply


class WorkerSession(Single):
    """A ``Session`` in a worker process; its methods are that one's, and are called from any thread in the same way.

    What was said is kept here after each call that succeeded, as messages, branches and tokens: when the worker dies,
    the call that is in it raises WorkerDiedError and the session is as it was before; the next call starts a new
    worker, which computes the conversation anew. Reading ``messages`` and the like asks nobody. Functions of tools stay
    here, and ``run`` calls them here. Adapters and logits processors cannot cross.
    """

    _instead = ": fork() it, or save() it to a file"

    def __init__(
        self,
        runner: WorkerRunner,
        process: WorkerProcess,
        tools: ToolSet | None,
        params: GenerationParams | None,
        opening: str,
        *how: Any,
    ) -> None:
        self._runner = runner
        self._id = next(_ids)
        self._home: WorkerProcess | None = None  # where it is
        self._lock = threading.Lock()
        weakref.finalize(self, _forget, runner._processes, self._id)
        self._number, self._taken = cast(
            "tuple[int, Snapshot]", runner._result(process, opening, self._id, *how)
        )
        header = self._taken.header
        self.tools = ToolSet(header["tools"]) if tools is None else tools
        self.params = GenerationParams.from_dict(header["params"]) if params is None else params
        self._home = process

    def __repr__(self) -> str:
        return f"<WorkerSession of {len(self)} messages, {self.n_tokens} tokens>"

    # --- the worker

    def _living(self) -> WorkerProcess:
        """The worker, with this session in it."""
        process = self._runner._living()
        with self._lock:
            if process is not self._home:
                self._number, _ = self._runner._result(process, "restore", self._id, self._taken)
                self._home = process
        return process

    def _take_down(self, number: int, taken: Snapshot) -> None:
        """How it is now, as the worker tells, in whatever order that comes."""
        if number > self._number:
            self._number, self._taken = number, taken

    async def _aliving(self) -> WorkerProcess:
        self._runner._check_open()
        process = self._runner._process
        if process is self._home and process.ready and not process.dead and not self._runner.closed:
            return process
        return await asyncio.to_thread(self._living)

    def _ask(self, action: str, *args: Any, **kwargs: Any) -> Any:
        """Have the worker's session do something, and take down how it is then."""
        call = self._living().begin(SessionCall(self), "session", self._id, action, args, kwargs)
        return self._runner._answer(call)

    # --- what it says

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, from its first message to the last."""
        return tuple(node.message for node in path_to(self._taken.ends()[0]))

    def __len__(self) -> int:
        return len(self.messages)

    def to_messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form: copies."""
        return [message.to_dict() for message in self.messages]

    @property
    def branches(self) -> Branch:
        """The tree of all conversations that were had here; ``checkout(branch)`` goes there."""
        head, tips = self._taken.ends()
        return branch_tree(tips, head)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation, as of the last turn, ``sync`` or edit."""
        return len(self._taken.tokens)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Those tokens, int32, read-only."""
        view = self._taken.tokens.view()
        view.flags.writeable = False
        return view

    def info(self) -> SessionInfo:
        """How much of it the worker's cache holds now."""
        return cast("SessionInfo", self._ask("info"))

    # --- turns

    def send(self, content: Content = None, **options: Any) -> Reply:
        """As ``Session.send``."""
        return self._stream(content, options, quiet=True).result()

    def stream(self, content: Content = None, **options: Any) -> WorkerReplyStream:
        """``send``, a ``ReplyChunk`` at a time."""
        return self._stream(content, options, quiet=False)

    def _stream(self, content: Content, options: dict[str, Any], *, quiet: bool) -> WorkerReplyStream:
        asked, given, response_type = self._asked(content, options)
        process = self._living()
        call = process.begin(SessionCall(self), "reply", self._id, asked, given, quiet)
        return WorkerReplyStream(process, call, None, response_type)

    def _asked(self, content: Content, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        """What the worker is to be asked for, in what can cross, and the type that an answer is to have."""
        given = dict(options)
        turn = {name: given.pop(name) for name in TURN_OPTIONS & given.keys()}
        settings = GenerationParams.from_kwargs(
            given.pop("params", None) or self.params, given, where="send()"
        )
        if turn.get("tools") is not None:
            turn["tools"] = as_tool_set(turn["tools"]).to_list()
        if content is not None and not isinstance(content, str | Mapping) and hasattr(content, "__iter__"):
            content = list(content)
        return content, {**turn, "params": settings}, settings.response_type

    async def asend(self, content: Content = None, **options: Any) -> Reply:
        """``send`` for asyncio."""
        return await self.astream(content, **options).result()

    def astream(self, content: Content = None, **options: Any) -> AsyncWorkerReplyStream:
        """``stream`` for asyncio."""
        return AsyncWorkerReplyStream(self, content, options)

    def run(
        self,
        content: Content = None,
        tools: Tools | None = None,
        *,
        max_steps: int = 8,
        timeout: float | None = None,
        tool_timeout: float | None = None,
        parallel: bool = True,
        cancel: CancelFlag | None = None,
        on_step: Callable[[Step], object] | None = None,
        **options: Any,
    ) -> Run:
        """As ``Session.run``; the tools run in this process."""
        chosen, limits = self._limited(
            tools, options, max_steps=max_steps, timeout=timeout, tool_timeout=tool_timeout, parallel=parallel,
            cancel=cancel, on_step=on_step,
        )  # fmt: skip
        return run_steps(self, content, chosen, limits, options)

    async def arun(
        self,
        content: Content = None,
        tools: Tools | None = None,
        *,
        max_steps: int = 8,
        timeout: float | None = None,
        tool_timeout: float | None = None,
        parallel: bool = True,
        cancel: CancelFlag | None = None,
        on_step: Callable[[Step], object] | None = None,
        **options: Any,
    ) -> Run:
        """``run`` for asyncio."""
        chosen, limits = self._limited(
            tools, options, max_steps=max_steps, timeout=timeout, tool_timeout=tool_timeout, parallel=parallel,
            cancel=cancel, on_step=on_step,
        )  # fmt: skip
        return await arun_steps(self, content, chosen, limits, options)

    def _limited(
        self, tools: Tools | None, options: Mapping[str, Any], **limits: Any
    ) -> tuple[ToolSet, Limits]:
        params = options.get("params") or self.params
        reply_timeout = params.timeout if isinstance(params, GenerationParams) else None
        return self.tools if tools is None else as_tool_set(tools), Limits(
            **limits, reply_timeout=reply_timeout
        )

    # --- changes, each as ``Session`` has it

    def add(self, content: Content, *, role: str = "user") -> tuple[Message, ...]:
        """As ``Session.add``."""
        return cast("tuple[Message, ...]", self._ask("add", self._asked(content, {})[0], role=role))

    def sync(self, messages: Messages) -> Receipt:
        """As ``Session.sync``."""
        return cast("Receipt", self._ask("sync", listed(messages)))

    def plan(self, messages: Messages | None = None) -> Plan:
        """As ``Session.plan``."""
        return cast("Plan", self._ask("plan", None if messages is None else listed(messages)))

    def warm(self, messages: Messages | None = None, *, priority: int | None = None) -> None:
        """As ``Session.warm``; returns at once, and nobody is told when it is done."""
        self._ask("warm", None if messages is None else listed(messages), priority=priority)

    def rollback(self, to: str | Message | None) -> Receipt:
        """As ``Session.rollback``."""
        return cast("Receipt", self._ask("rollback", name_of(to)))

    def checkout(self, branch: Branch | str | Message) -> Receipt:
        """As ``Session.checkout``."""
        if not isinstance(branch, Branch):
            return cast("Receipt", self._ask("checkout", name_of(branch)))
        trail = tuple((message.id, dict(message.data)) for message in branch.messages())
        return cast("Receipt", self._ask("checkout", trail))

    def edit(self, message: str | Message, content: str) -> Receipt:
        """As ``Session.edit``."""
        return cast("Receipt", self._ask("edit", name_of(message), content))

    def replace(self, message: str | Message, content: str) -> Receipt:
        """``edit`` by its other name."""
        return self.edit(message, content)

    def drop(self, *messages: str | Message) -> Receipt:
        """As ``Session.drop``."""
        return cast("Receipt", self._ask("drop", *map(name_of, messages)))

    def gc(self, target: float = 0.5, *, policy: Literal["oldest"] = "oldest") -> Receipt:
        """As ``Session.gc``."""
        return cast("Receipt", self._ask("gc", target, policy=policy))

    def pin(self, message: str | Message) -> None:
        """As ``Session.pin``."""
        self._ask("pin", name_of(message))

    def unpin(self, message: str | Message) -> None:
        """As ``Session.unpin``."""
        self._ask("unpin", name_of(message))

    def prune(self) -> int:
        """As ``Session.prune``."""
        return cast("int", self._ask("prune"))

    def save(self, path: Any) -> int:
        """As ``Session.save``: the worker writes the file."""
        return cast("int", self._ask("save", path))

    @overload
    def fork(self, n: None = None) -> WorkerSession: ...
    @overload
    def fork(self, n: int) -> list[WorkerSession]: ...
    def fork(self, n: int | None = None) -> WorkerSession | list[WorkerSession]:
        """As ``Session.fork``: in the same worker, with every cell shared."""
        count = 1 if n is None else check_int("n", n, 0, 1_000_000)
        process = self._living()
        made = [
            WorkerSession(self._runner, process, self.tools, self.params, "fork", self._id)
            for _ in range(count)
        ]
        if made:
            self._ask("info")  # it has drawn their seeds
        return made[0] if n is None else made

    # --- for asyncio, each in a thread

    async def asave(self, path: Any) -> int:
        """``save`` for asyncio."""
        return await asyncio.to_thread(self.save, path)

    async def ainfo(self) -> SessionInfo:
        """``info`` for asyncio."""
        return await asyncio.to_thread(self.info)

    async def aadd(self, content: Content, *, role: str = "user") -> tuple[Message, ...]:
        """``add`` for asyncio."""
        return await asyncio.to_thread(lambda: self.add(content, role=role))

    async def async_(self, messages: Messages) -> Receipt:
        """``sync`` for asyncio; its name would be a word of the language's."""
        return await asyncio.to_thread(self.sync, messages)

    async def aplan(self, messages: Messages | None = None) -> Plan:
        """``plan`` for asyncio."""
        return await asyncio.to_thread(self.plan, messages)

    async def awarm(self, messages: Messages | None = None, *, priority: int | None = None) -> None:
        """``warm`` for asyncio."""
        await asyncio.to_thread(lambda: self.warm(messages, priority=priority))

    async def arollback(self, to: str | Message | None) -> Receipt:
        """``rollback`` for asyncio."""
        return await asyncio.to_thread(self.rollback, to)

    async def acheckout(self, branch: Branch | str | Message) -> Receipt:
        """``checkout`` for asyncio."""
        return await asyncio.to_thread(self.checkout, branch)

    async def aedit(self, message: str | Message, content: str) -> Receipt:
        """``edit`` for asyncio."""
        return await asyncio.to_thread(self.edit, message, content)

    async def areplace(self, message: str | Message, content: str) -> Receipt:
        """``replace`` for asyncio."""
        return await asyncio.to_thread(self.replace, message, content)

    async def adrop(self, *messages: str | Message) -> Receipt:
        """``drop`` for asyncio."""
        return await asyncio.to_thread(self.drop, *messages)

    async def agc(self, target: float = 0.5, *, policy: Literal["oldest"] = "oldest") -> Receipt:
        """``gc`` for asyncio."""
        return await asyncio.to_thread(lambda: self.gc(target, policy=policy))

    async def apin(self, message: str | Message) -> None:
        """``pin`` for asyncio."""
        await asyncio.to_thread(self.pin, message)

    async def aunpin(self, message: str | Message) -> None:
        """``unpin`` for asyncio."""
        await asyncio.to_thread(self.unpin, message)

    async def aprune(self) -> int:
        """``prune`` for asyncio."""
        return await asyncio.to_thread(self.prune)

    async def afork(self, n: int | None = None) -> WorkerSession | list[WorkerSession]:
        """``fork`` for asyncio."""
        return await asyncio.to_thread(self.fork, n)


TURN_OPTIONS = {
    "role", "tools", "tool_choice", "parallel_tool_calls", "enable_thinking", "template_kwargs", "logits_processor",
}  # fmt: skip


def name_of(message: Any) -> Any:
    """A message as the worker knows it: by its id."""
    return message.id if isinstance(message, Message) else message


def _forget(processes: list[WorkerProcess], session: int) -> None:
    for process in processes:
        process.forget(session)
