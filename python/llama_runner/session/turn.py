"""One turn of a session: from the new messages to the reply, read whole or while it comes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from llama_runner._hold import Hold
from llama_runner._response import Response
from llama_runner._single import Single
from llama_runner.chat._results_json import clean
from llama_runner.chat.messages import readable_arguments
from llama_runner.chat_types import ChatDelta, ChatMessage, ChatPrompt, ToolCall
from llama_runner.core import ChatParser, SamplerChain
from llama_runner.engine import AsyncStream, LogitsProcessor, Request, Stream
from llama_runner.errors import ContextOverflowError, InvalidArgumentError, ResponseParseError
from llama_runner.params import GenerationParams
from llama_runner.receipts import Receipt
from llama_runner.results import Chunk, Completion, Timings, TokenLogprob
from llama_runner.session.message import Message
from llama_runner.session.rendering import Options
from llama_runner.session.reply import Reply, ReplyChunk

if TYPE_CHECKING:
    from llama_runner.session.session import Session

__all__ = ["AsyncReplyStream", "ReplyStream", "Turn"]

Tokens = npt.NDArray[np.int32]
Notify = Callable[[], None] | None
S = TypeVar("S", Stream, AsyncStream)


@dataclasses.dataclass(slots=True)
class Turn:
    """A turn that is prepared: nothing of the session has changed yet, and it is nobody else's turn."""

    session: Session
    hold: Hold
    kept: Sequence[Message]  # of the session's messages
    added: Sequence[Mapping[str, Any]]
    options: Options
    prompt: ChatPrompt
    opening: str  # what the reply was made to begin with, as if the model had said it
    tokens: Tokens
    params: GenerationParams
    chain: SamplerChain
    shown: Sequence[int]
    processor: LogitsProcessor | None
    parser: ChatParser
    receipt: Receipt | None = None  # of what made room
    read: list[int] = dataclasses.field(default_factory=list)
    over: bool = False
    began: float = 0.0  # when its first part was submitted, where its time is limited
    _request: Request | None = None
    _done: list[Completion] = dataclasses.field(
        default_factory=list
    )  # parts that ended with the context full
    _raw: list[str] = dataclasses.field(default_factory=list)
    _logprobs: list[TokenLogprob] = dataclasses.field(
        default_factory=list
    )  # of what was read, where asked for
    _problem: ResponseParseError | None = None

    def submit(self, notify: Notify = None) -> Request:
        """Queue it, or the rest of it."""
        session = self.session
        read = np.asarray(self.read, dtype=np.int32)
        params = self.params
        if self.read and params.max_tokens is not None:
            params = params.replace(max_tokens=params.max_tokens - len(read))
        if params.timeout is not None:
            self.began = self.began or time.monotonic()
            left = params.timeout - (time.monotonic() - self.began)
            params = params.replace(timeout=max(left, 1e-3))
        self._request = session.engine.submit(
            np.concatenate([self.tokens, read]),
            params,
            priority=session.priority,
            owner=session.owner,
            adapters=session.adapters,
            logits_processor=self.processor,
            chain=self.chain,
            shown_tokens=self.shown,
            notify=notify,
            endless=bool(self._done),
        )[0]
        return self._request

    # --- while it comes

    def take(self, chunk: Chunk) -> ReplyChunk:
        """What a piece of the text adds to the message."""
        self.read += chunk.tokens
        self._raw.append(chunk.text)
        self._logprobs += chunk.logprobs or ()
        if self._problem is not None:  # what cannot be taken apart is content
            return self._chunk(chunk, [ChatDelta(content=chunk.text)])
        return self._chunk(chunk, self._parsed(lambda: self.parser.push(chunk.text)))

    def _parsed(self, parse: Callable[[], list[ChatDelta]]) -> list[ChatDelta]:
        """What the parser makes of it, until it meets what it cannot read."""
        if self._problem is None:
            try:
                return parse()
            except ResponseParseError as problem:
                self._problem = problem
        return []

    @staticmethod
    def _chunk(chunk: Chunk, deltas: list[ChatDelta]) -> ReplyChunk:
        return ReplyChunk(
            "".join(delta.content for delta in deltas),
            chunk.tokens,
            chunk.logprobs,
            chunk.finish_reason,
            tuple(deltas),
        )

    def goes_on(self, completion: Completion) -> bool:
        """Whether memory or a quota ended before the reply did, and room was made for the rest; ``submit`` it then.

        Raises ContextOverflowError where the session's policy is to have no half replies.
        """
        session = self.session
        n_ctx = session.engine.context.n_ctx
        wanted = self.params.max_tokens is None or len(self.read) < self.params.max_tokens
        if completion.finish_reason != "length" or not wanted or session.on_full == "stop":
            return False
        held = len(self.tokens) + len(self.read)
        if session.on_full == "error":
            full = (
                f"the context of {n_ctx} tokens was"
                if held >= n_ctx
                else "what is left of its owner's quota, or of the context beside what is pinned, was"
            )
            raise ContextOverflowError(
                f"{full} full after {len(self.read)} tokens of the reply; the session is as it was: gc() it, make "
                "n_ctx or the quota larger, or choose another on_full",
                held + 1,
                min(held, n_ctx),
            )
        if not session._make_room(self):
            return False
        self._done.append(completion)
        return True

    # --- the end

    def last(self, completion: Completion) -> tuple[list[ChatDelta], Reply]:
        """The last deltas, and the reply, which is part of the session now."""
        deltas = self._parsed(self.parser.finish)
        data, problem = self._message(completion.finish_reason)
        if self.read or completion.finish_reason not in ("cancelled", "timeout"):
            made = self.session._commit(self, data, completion.finish_reason)
            self.over = True
        else:  # nothing was said
            made = Message.new(data, completion.finish_reason)
            self.abandon()
        whole = self._joined(completion)
        values = {field.name: getattr(whole, field.name) for field in dataclasses.fields(Completion)}
        values["text"] = made.content
        reply = Reply(
            **values,
            message=made,
            raw_text=self.opening + "".join(self._raw),
            parse_error=problem,
            receipt=self.receipt,
        )
        return deltas, reply

    def _message(self, finish_reason: str) -> tuple[dict[str, Any], ResponseParseError | None]:
        """The message that the text says; where it cannot be read, or was cut, what of it can stand in a history."""
        raw = self.opening + "".join(self._raw)
        cut = finish_reason in ("length", "timeout", "cancelled")
        problem = self._problem
        if problem is None and not cut:
            found = self.parser.message
        else:
            try:
                found = self.prompt.parser().parse(raw, partial=cut)
                problem = None if cut else problem
            except ResponseParseError as error:
                found, problem = ChatMessage(raw), error
        filled = list(found.tool_calls)
        if self.options.parallel_tool_calls is False:
            filled = filled[:1]  # not every template's grammar keeps to one
        if cut:  # the last call may be half of one
            filled = [call for call in filled if readable_arguments(call.arguments) == call.arguments]
        # no template reads arguments that are no object; the model sees what it wrote, in one
        calls = tuple(
            ToolCall(clean(call.name), readable_arguments(call.arguments), clean(call.id))
            for call in filled
            if call.name
        )
        # a model may say what no conversation can hold; raw_text has it
        return ChatMessage(clean(found.content), clean(found.reasoning_content), calls).to_dict(), problem

    def _joined(self, last: Completion) -> Completion:
        """One completion of all parts: their tokens and their costs together."""
        if not self._done:
            return last
        parts = [*self._done, last]
        timings = Timings(
            sum(part.timings.prompt_seconds for part in parts),
            sum(part.timings.generation_seconds for part in parts),
            parts[0].timings.first_token_seconds,
            sum(part.timings.computed_tokens for part in parts),
            sum(part.timings.completion_tokens for part in parts),
        )
        logprobs = None
        if last.logprobs is not None:
            logprobs = tuple(entry for part in parts for entry in part.logprobs or ())
        return dataclasses.replace(
            last,
            tokens=np.concatenate([part.tokens for part in parts]),
            usage=sum((part.usage for part in parts[1:]), parts[0].usage),
            timings=timings,
            logprobs=logprobs,
            explanation=parts[0].explanation,
            response=self._response(last.finish_reason),
        )

    def _response(self, finish_reason: str) -> Response | None:
        """What all that was read is to become."""
        return self.params.response("".join(self._raw), finish_reason)

    def cut(self) -> Reply | None:
        """Its reader has left: what was read stays, as a reply that was cancelled, where anything was."""
        if self.over:
            return None
        if self._request is not None and not self._request.ended:
            self.session.engine.cancel(self._request)
        if not self.read or self._request is None:
            self.abandon()
            return None
        done = sum(len(part.tokens) for part in self._done)
        usage = self._request.usage()
        completion = Completion(
            text="",  # the message says it
            tokens=np.asarray(self.read[done:], dtype=np.int32),
            finish_reason="cancelled",
            stop_match=None,
            usage=usage,
            timings=Timings(0.0, 0.0, 0.0, usage.computed_tokens, usage.completion_tokens),
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs[done:]),
            seed=self._request.seed,
            explanation=self._request.explain(),
            response=self._response("cancelled"),
        )
        try:
            return self.last(completion)[1]
        finally:
            self.abandon()

    def abandon(self) -> None:
        """It came to nothing: the session is as it was, and free for another."""
        if not self.over:
            self.over = True
            self.session._turn.release(self.hold)


class _Reading(Single, Generic[S]):
    """A turn and the stream of its tokens, of either kind."""

    _stream: S

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._reply: Reply | None = None
        self._whole = False  # nobody wants to see it in pieces
        self._cancelled = False
        try:
            self._stream = self._submitted()
        except BaseException:
            turn.abandon()
            raise

    def _submitted(self) -> S:
        """The stream of what is submitted now."""
        raise NotImplementedError

    def _read(self, chunk: Chunk) -> ReplyChunk:
        """What a piece adds; the last one ends the turn, or begins its next part."""
        turn = self._turn
        piece = turn.take(chunk)
        if chunk.finish_reason is None:
            return piece
        if turn.goes_on(self._stream.completion):
            self._stream = self._submitted()
            if self._whole:
                self._stream.read_whole()
            if self._cancelled:  # while it was between two parts
                self._stream.cancel()
            return dataclasses.replace(piece, finish_reason=None)
        deltas, self._reply = turn.last(self._stream.completion)
        return _with(piece, deltas)

    def _read_whole(self) -> None:
        self._whole = True
        self._stream.read_whole()

    def _fail(self) -> None:
        self._stream.cancel()
        self._turn.abandon()

    def cancel(self) -> None:
        """End it within a step; what has come can still be read, and the reply is what that is."""
        self._cancelled = True
        self._stream.cancel()

    def close(self) -> None:
        """End it here: what was read stays; never blocks, and closing twice is no error."""
        if not self._turn.session.engine.forked:
            self._reply = self._turn.cut() or self._reply

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()

    @property
    def reply(self) -> Reply:
        """The reply, once the stream is exhausted or closed; InvalidArgumentError before, or where nothing was read."""
        if self._reply is None:
            raise InvalidArgumentError("there is no reply: exhaust the stream first")
        return self._reply


class ReplyStream(_Reading[Stream], Iterator[ReplyChunk]):
    """A reply under way: iterate over its chunks; ``reply`` is there at the end, and part of the session then.

    ``close()``, leaving a ``with`` block, or dropping the last reference ends it early: what was read stays in the
    session, as a reply that was cancelled. An error leaves the session as it was. One thread at a time.
    """

    def _submitted(self) -> Stream:
        return Stream(self._turn.session.engine, self._turn.submit())

    def __next__(self) -> ReplyChunk:
        if self._turn.over:
            raise StopIteration
        try:
            return self._read(next(self._stream))
        except BaseException:
            self._fail()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def result(self) -> Reply:
        """Read to the end; an error, or an interrupt, leaves the session as it was."""
        self._read_whole()
        try:
            for _ in self:
                pass
        finally:
            self._turn.abandon()
        return self.reply


class AsyncReplyStream(_Reading[AsyncStream], AsyncIterator[ReplyChunk]):
    """``ReplyStream`` for asyncio: ``async for``, or ``async with`` to end it where it is left."""

    def _submitted(self) -> AsyncStream:
        return AsyncStream(self._turn.session.engine, self._turn.submit)

    async def __anext__(self) -> ReplyChunk:
        if self._turn.over:
            raise StopAsyncIteration
        try:
            return self._read(await self._stream.__anext__())
        except asyncio.CancelledError:
            self.close()
            raise
        except BaseException:
            self._fail()
            raise

    async def aclose(self) -> None:
        """``close``, as an asynchronous generator has it."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def result(self) -> Reply:
        """Read to the end; an error, or a task that is cancelled, leaves the session as it was."""
        self._read_whole()
        try:
            while not self._turn.over:
                self._read(await self._stream.__anext__())
        finally:
            self._fail()
        return self.reply


def _with(piece: ReplyChunk, deltas: list[ChatDelta]) -> ReplyChunk:
    """The last chunk, with what the end of the text made certain."""
    return dataclasses.replace(
        piece,
        text=piece.text + "".join(delta.content for delta in deltas),
        deltas=(*piece.deltas, *deltas),
    )
