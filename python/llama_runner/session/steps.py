"""``run``: the model calls tools, gets their results, and goes on until it has an answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llama_runner._check import check_bool, check_float, check_int
from llama_runner.chat.tools import (
    CancelFlag,
    ToolContext,
    ToolResult,
    ToolSet,
    ValidatedCall,
    arun_calls,
    run_calls,
)
from llama_runner.errors import (
    ArgumentTypeError,
    ContextBusyError,
    LlamaRunnerError,
    ToolArgumentError,
    WorkerDiedError,
)
from llama_runner.results import Usage
from llama_runner.session.reply import Reply

if TYPE_CHECKING:
    from llama_runner.session.message import Message
    from llama_runner.session.session import Content

__all__ = ["Limits", "Run", "Step", "arun_steps", "run_steps"]

Why = Literal["done", "max_steps", "timeout", "cancelled", "length", "pending"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One reply of the model, and what came of the tools that it called."""

    index: int
    reply: Reply
    results: tuple[ToolResult, ...] = ()
    """One for each of ``reply.tool_calls``, in their order; a call that was refused has an error."""
    reply_seconds: float = 0.0
    tool_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "reply": self.reply.to_dict(),
            "results": [{**result.to_message(), "ok": result.ok} for result in self.results],
            "reply_seconds": self.reply_seconds,
            "tool_seconds": self.tool_seconds,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What a run did: its steps, and how it ended.

    ``why`` is ``"done"`` (the model answered), ``"max_steps"`` (it was made to answer without tools), ``"timeout"``,
    ``"cancelled"``, ``"length"`` (its reply was cut off), or ``"pending"`` (it called a tool that is a description
    alone: answer with ``session.send(results)``).
    """

    steps: tuple[Step, ...]
    why: Why

    @property
    def reply(self) -> Reply | None:
        """The last reply; None where the time was over before the first."""
        return self.steps[-1].reply if self.steps else None

    @property
    def text(self) -> str:
        """What the last reply says."""
        return "" if self.reply is None else self.reply.text

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """Those of all steps."""
        return tuple(result for step in self.steps for result in step.results)

    @property
    def usage(self) -> Usage:
        """That of all replies together."""
        return sum((step.reply.usage for step in self.steps), Usage(0, 0, 0, 0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "why": self.why,
            "steps": [step.to_dict() for step in self.steps],
            "usage": self.usage.to_dict(),
        }


class Limits:
    """How long a run may go on, and who may end it."""

    def __init__(
        self,
        *,
        max_steps: int,
        timeout: float | None,
        tool_timeout: float | None,
        parallel: bool,
        cancel: CancelFlag | None,
        on_step: Callable[[Step], object] | None,
        reply_timeout: float | None = None,
    ) -> None:
        self.max_steps = check_int("max_steps", max_steps, 1, 10_000)
        self.deadline = None
        if timeout is not None:
            self.deadline = time.monotonic() + check_float("timeout", timeout, 0.0, 1e9)
        self.tool_timeout = (
            None if tool_timeout is None else check_float("tool_timeout", tool_timeout, 0.0, 1e9)
        )
        self.parallel = check_bool("parallel", parallel)
        if cancel is not None and not isinstance(cancel, CancelFlag):
            raise ArgumentTypeError(f"cancel is a CancelFlag, not {cancel!r:.60}")
        if on_step is not None and not callable(on_step):
            raise ArgumentTypeError(f"on_step is a callable, not {on_step!r:.60}")
        self.cancel = CancelFlag() if cancel is None else cancel
        self.on_step = on_step
        self.reply_timeout = reply_timeout

    @property
    def left(self) -> float | None:
        """Seconds; None where there is no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def for_reply(self) -> float | None:
        """Seconds for the next reply."""
        limits = [limit for limit in (self.left, self.reply_timeout) if limit is not None]
        return min(limits, default=None)

    def for_tools(self) -> float | None:
        """Seconds for the calls of a step together."""
        limits = [limit for limit in (self.left, self.tool_timeout) if limit is not None]
        return min(limits, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What the loop wants next: a reply to ``content``, with these keywords."""

    content: Any
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What the loop wants next: the results of these calls."""

    calls: list[ValidatedCall]
    step: int


Loop = Generator[Ask | Call, Any, Run]


def loop(
    content: Content, tools: ToolSet, limits: Limits, options: Mapping[str, Any], steps: list[Step]
) -> Loop:
    """The steps, whoever takes them: yields what is to be done, is sent what came of it, returns the run."""
    choice = options.get("tool_choice")
    for index in range(limits.max_steps):
        if limits.cancel.is_set():
            return Run(tuple(steps), "cancelled")
        if limits.left == 0.0:
            return Run(tuple(steps), "timeout")
        last = index + 1 == limits.max_steps
        given = {**options, "tools": tools, "tool_choice": "none" if last and index else choice}
        if limits.deadline is not None:
            given["timeout"] = limits.for_reply()
        began = time.monotonic()
        reply: Reply = yield Ask(content, given)
        seconds = time.monotonic() - began
        choice = "auto"  # what was required has been done: the next reply may be the answer
        if not reply.tool_calls:
            steps.append(Step(index, reply, (), seconds))
            _tell(limits, steps[-1])
            return Run(tuple(steps), _why(reply, limits, last and index > 0))
        refused: dict[int, ToolResult] = {}
        good: list[ValidatedCall] = []
        for i, call in enumerate(reply.tool_calls):
            try:
                good.append(tools.validate(call))
            except ToolArgumentError as error:
                refused[i] = ToolResult.from_error(error, call.id, call.name)
        if any(call.tool.call is None for call in good):
            steps.append(Step(index, reply, (), seconds))
            _tell(limits, steps[-1])
            return Run(tuple(steps), "pending")
        began = time.monotonic()
        ran = iter((yield Call(good, index)) if good else ())
        results = tuple(refused[i] if i in refused else next(ran) for i in range(len(reply.tool_calls)))
        steps.append(Step(index, reply, results, seconds, time.monotonic() - began))
        _tell(limits, steps[-1])
        content = [result.to_message() for result in results]
    # only a single step with tools comes here: its results stand, and nobody has replied to them
    return Run(tuple(steps), "max_steps")


def _tell(limits: Limits, step: Step) -> None:
    if limits.on_step is not None:
        limits.on_step(step)


def _why(reply: Reply, limits: Limits, forced: bool) -> Why:
    if reply.finish_reason == "timeout":
        return "timeout"
    if reply.finish_reason == "cancelled":
        return "cancelled"
    if reply.finish_reason == "length":
        return "length"
    return "max_steps" if forced else "done"


class Speaker(Protocol):
    """A session, wherever it is."""

    @property
    def messages(self) -> tuple[Message, ...]: ...
    def stream(self, content: Content = None, **options: Any) -> Any: ...
    def astream(self, content: Content = None, **options: Any) -> Any: ...
    def warm(self) -> object: ...
    def add(self, content: Content) -> object: ...


def run_steps(
    session: Speaker, content: Content, tools: ToolSet, limits: Limits, options: Mapping[str, Any]
) -> Run:
    """Take the steps in this thread."""
    taken: list[Step] = []
    steps = loop(content, tools, limits, options, taken)
    try:
        wanted = next(steps)
        while True:
            if isinstance(wanted, Ask):
                wanted = steps.send(_replied(session, wanted, limits.cancel))
            else:
                _read_ahead(session)
                context = ToolContext(session=session, step=wanted.step, cancelled=limits.cancel)
                results = run_calls(
                    wanted.calls, parallel=limits.parallel, timeout=limits.for_tools(), context=context
                )
                wanted = steps.send(results)
    except StopIteration as stop:
        run: Run = stop.value
        return run
    finally:
        _keep_results(session, taken)


def _replied(session: Speaker, wanted: Ask, cancel: CancelFlag) -> Reply:
    stream = session.stream(wanted.content, **wanted.options)
    forget = cancel.subscribe(stream.cancel)
    try:
        reply: Reply = stream.result()
        return reply
    finally:
        forget()


async def arun_steps(
    session: Speaker, content: Content, tools: ToolSet, limits: Limits, options: Mapping[str, Any]
) -> Run:
    """Take the steps on the running event loop."""
    taken: list[Step] = []
    steps = loop(content, tools, limits, options, taken)
    try:
        wanted = next(steps)
        while True:
            if isinstance(wanted, Ask):
                stream = session.astream(wanted.content, **wanted.options)
                forget = limits.cancel.subscribe(stream.cancel)
                try:
                    wanted = steps.send(await stream.result())
                finally:
                    forget()
            else:
                await asyncio.to_thread(_read_ahead, session)
                context = ToolContext(session=session, step=wanted.step, cancelled=limits.cancel)
                wanted = steps.send(
                    await arun_calls(
                        wanted.calls, parallel=limits.parallel, timeout=limits.for_tools(), context=context
                    )
                )
    except StopIteration as stop:
        run: Run = stop.value
        return run
    finally:
        await asyncio.shield(asyncio.to_thread(_keep_results, session, taken))


def _read_ahead(session: Speaker) -> None:
    """While the tools run, read what stands before their results. It is help, not work: what fails is left."""
    try:
        session.warm()
    except LlamaRunnerError:
        pass


def _keep_results(session: Speaker, steps: list[Step]) -> None:
    """Results that nobody has replied to are part of the conversation all the same.

    Where a tool that was given up still has the session, they are in the steps alone: nobody waits for it here.
    """
    last = next((step for step in reversed(steps) if step.results), None)
    messages = session.messages
    if last is not None and messages and messages[-1].id == last.reply.message_id:
        with contextlib.suppress(ContextBusyError, WorkerDiedError):
            session.add(result.to_message() for result in last.results)
