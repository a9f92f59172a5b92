"""``Session``: a conversation with a model, whose messages the KV cache follows."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_bool, check_int
from llama_runner._hold import Hold
from llama_runner.chat.messages import check_messages, listed
from llama_runner.chat.tools import CancelFlag, Tool, ToolSet
from llama_runner.chat_types import ChatPrompt
from llama_runner.core import ChatTemplate, SamplerChain
from llama_runner.engine import Adapters, Engine, LogitsProcessor
from llama_runner.engine.sampling import sampler_chain
from llama_runner.errors import (
    ContextBusyError,
    ContextOverflowError,
    InvalidArgumentError,
    ModelCapabilityError,
    StateError,
)
from llama_runner.params import GenerationParams
from llama_runner.receipts import Plan, Receipt
from llama_runner.session.conversation import Conversation, OnFull, Warmup
from llama_runner.session.message import Branch, Message, Node
from llama_runner.session.rendering import Options, checked_variables
from llama_runner.session.reply import Reply
from llama_runner.session.steps import Limits, Run, Step, arun_steps, run_steps
from llama_runner.session.store import Snapshot, describe_tree, making_sense, read_file, save_file, verify
from llama_runner.session.turn import AsyncReplyStream, ReplyStream, Turn

__all__ = ["Session"]

Tokens = npt.NDArray[np.int32]
Content = str | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None
Tools = ToolSet | Iterable[Tool | Callable[..., Any] | Mapping[str, Any]]
"""Fields of ``GenerationParams`` that bind the whole answer."""


class Session(Conversation):
    """A conversation. Get one as ``runner.session(system="…")``.

    Its messages are the truth: each turn's prompt is exactly what the template makes of them, and what of its tokens is
    cached is not computed again.

        chat = runner.session(system="You are terse.")
        print(chat.send("What is 2+2?").text)

    Parameters
    ----------
    system : the first message, of the system. ``messages`` : a conversation to go on with, in OpenAI's form.
    tools : what the model may call: functions, ``Tool``, JSON schemas or MCP descriptions.
    params : defaults for each turn's generation; other keywords of a turn are laid over them.
    on_full : what happens when the context is full: ``"stop"`` ends the reply there (finish_reason ``"length"``; a
        prompt that does not fit raises ContextOverflowError), ``"error"`` raises in both cases, ``"drop"`` drops the
        oldest turns, and goes on.
    memory_limit : tokens that a prompt may have; None for what the context holds. Beyond it is as beyond the context.
    seed : repeats the whole conversation: each turn, and each fork, has a seed that follows from it.
    owner, priority, adapters : as for ``LlamaRunner.stream``.
    enable_thinking, template_kwargs, reasoning_format : as for ``ChatTemplate.render``.

    A session needs no place in the KV memory while nothing is done with it. Any thread may use it, one at a time:
    another gets ContextBusyError. What raises leaves it as it was. Every method that waits has a twin for asyncio:
    ``asend``, ``aplan``, …; that of ``sync`` is ``async_``.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        *,
        system: str | None = None,
        messages: Iterable[Mapping[str, Any]] = (),
        tools: Tools = (),
        params: GenerationParams | None = None,
        on_full: OnFull = "stop",
        memory_limit: int | None = None,
        seed: int | None = None,
        owner: str | None = None,
        priority: int = 0,
        adapters: Adapters | None = None,
        enable_thinking: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        reasoning_format: str = "auto",
    ) -> None:
        self.tools = as_tool_set(tools)
        options = Options(
            tools=tuple(self.tools.to_list()),
            enable_thinking=enable_thinking,
            template_kwargs={} if template_kwargs is None else template_kwargs,
            reasoning_format=reasoning_format,
        )
        super().__init__(
            engine, template, options, on_full=on_full, memory_limit=memory_limit, owner=owner, priority=priority,
            adapters=adapters,
        )  # fmt: skip
        self._check_tools(self.tools)
        self.params = GenerationParams.from_kwargs(params, {})
        self.seed = None if seed is None else check_int("seed", seed, 0, 2**32 - 2)
        self._draws = 0  # turns that were taken, and forks that were made: each has a seed of its own
        first = [] if system is None else [{"role": "system", "content": system}]
        self._head = self._grown(None, check_messages([*first, *listed(messages)]))

    def __repr__(self) -> str:
        return f"<Session of {len(self)} messages, {self.n_tokens} tokens>"

    # --- turns

    def send(self, content: Content = None, **options: Any) -> Reply:
        """Add a message of the user, or several messages, and have the model reply.

        Parameters
        ----------
        content : text of the user; a message, or several, in OpenAI's form (a tool's results, for example); None to
            have the model reply to the conversation as it is.
        role : whose text it is. ``tools`` : others than the session's, for this turn.
        tool_choice : ``"auto"``, ``"none"``, ``"required"``, or the name of a tool. ``parallel_tool_calls`` : whether
            the model may ask for several at once; None as its template can.
        enable_thinking, template_kwargs : others than the session's, for this turn.
        logits_processor : as for ``LlamaRunner.stream``.
        params, and other keywords : those of ``GenerationParams``. An answer bound by a schema or grammar is bound from
            its first token on: the model does not think before it, and calls no tools.

        Raises MessageError for messages that make no conversation, ContextOverflowError, ContextBusyError (a reply is
        under way), InvalidArgumentError, ClosedError; the session is as it was. So it is after a reply that was
        cancelled, or ran out of time, before its first token.
        """
        return self.stream(content, **options).result()

    def stream(self, content: Content = None, **options: Any) -> ReplyStream:
        """``send``, a ``ReplyChunk`` at a time. The messages are part of the session once the last has been read."""
        return ReplyStream(self._prepare(content, **options))

    async def asend(self, content: Content = None, **options: Any) -> Reply:
        """``send`` for asyncio: ``asyncio.gather`` over several sessions is one batch."""
        return await self.astream(content, **options).result()

    def astream(self, content: Content = None, **options: Any) -> AsyncReplyStream:
        """``stream`` for asyncio: ``async for chunk in chat.astream("…")``."""
        return AsyncReplyStream(self._prepare(content, **options))

    def add(self, content: Content, *, role: str = "user") -> tuple[Message, ...]:
        """Add messages without a reply: a document, what another model said, results of tools. Returns them."""
        with self._turn.taken():
            new = tuple(Message.new(data) for data in self._new_messages(content, role))
            self._head = self._grown(self._head, new)
            return new

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
        """``send``, and as long as the model calls tools, run them and have it go on; returns all steps.

        Parameters
        ----------
        tools : in place of the session's. A call of an unknown tool, or with wrong arguments, is answered with what is
            wrong with it; so is a tool that raises, hangs or returns what cannot be written.
        max_steps : replies at most; at the last one the model must answer without tools.
        timeout : seconds for all of it; ``tool_timeout`` for the calls of one step. ``parallel`` : run those together.
        cancel : set it from anywhere to end the run; tools that take a ``ToolContext`` see it.
        on_step : called with each ``Step`` once its tools are done.
        other keywords : as for ``send``, for each step; ``tool_choice`` for the first.

        What was said and done until an error, a cancel or the end of the time stays in the session; after an interrupt
        of tools, their calls are open: answer them, or roll back. While tools run, what stands before their results is
        read ahead. A tool may look at its session (``ToolContext``), plan and fork it; where it changes the
        conversation, or keeps it busy, the results have no place any more: MessageError, ContextBusyError.
        """
        chosen = self.tools if tools is None else as_tool_set(tools)
        limits = Limits(
            max_steps=max_steps, timeout=timeout, tool_timeout=tool_timeout, parallel=parallel, cancel=cancel,
            on_step=on_step, reply_timeout=self._timeout_of(options),
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
        """``run`` for asyncio: coroutine tools run on this loop, others in threads."""
        chosen = self.tools if tools is None else as_tool_set(tools)
        limits = Limits(
            max_steps=max_steps, timeout=timeout, tool_timeout=tool_timeout, parallel=parallel, cancel=cancel,
            on_step=on_step, reply_timeout=self._timeout_of(options),
        )  # fmt: skip
        return await arun_steps(self, content, chosen, limits, options)

    def _timeout_of(self, options: Mapping[str, Any]) -> float | None:
        """What ``params`` say of a reply's time, which a run's keyword must not make longer."""
        params = options.get("params") or self.params
        return params.timeout if isinstance(params, GenerationParams) else None

    def _prepare(
        self,
        content: Content,
        *,
        role: str = "user",
        params: GenerationParams | None = None,
        tools: Tools | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        enable_thinking: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        logits_processor: LogitsProcessor | None = None,
        **kwargs: Any,
    ) -> Turn:
        settings = GenerationParams.from_kwargs(params or self.params, kwargs, where="send()")
        offered = self.tools if tools is None else as_tool_set(tools)
        if tools is not None:
            self._check_tools(offered)
        choice = offered.choice(tool_choice)
        thinks = self.options.enable_thinking if enable_thinking is None else enable_thinking
        bound = settings.constraint
        if bound is not None:
            if choice.mode == "required":
                raise InvalidArgumentError(
                    f"{bound} binds the whole answer, and tool_choice={tool_choice!r} asks for a call: use one of them"
                )
            thinks = bool(enable_thinking)
        options = dataclasses.replace(
            self.options,
            tools=tuple(offered.to_list()),
            only=tuple(offered.chosen(choice).to_list()) if choice.name is not None else (),
            tool_choice="none" if bound and len(offered) else choice.mode if len(offered) else "auto",
            parallel_tool_calls=parallel_tool_calls,
            enable_thinking=thinks,
            template_kwargs={**self.options.template_kwargs, **checked_variables(template_kwargs or {})},
        )
        hold = self._turn.take()
        try:
            self._check_open()
            added = self._new_messages(content, role)
            return self._turn_of(hold, added, options, settings, bound is not None, logits_processor)
        except BaseException as problem:
            self._turn.release(hold)
            if isinstance(problem, ContextBusyError):  # of a model that is being closed meanwhile
                self._check_open()
            raise

    def _new_messages(self, content: Content, role: str) -> list[dict[str, Any]]:
        """What a turn adds, checked together with what there is."""
        before = self._dicts()
        new: Iterable[Any]
        if content is None:
            new = ()
        elif isinstance(content, str):
            new = [{"role": role, "content": content}]
        elif isinstance(content, Mapping) or not hasattr(content, "__iter__"):
            new = [content]
        else:
            new = listed(content)
        whole = check_messages([*before, *new])
        if not whole:
            raise InvalidArgumentError("the conversation is empty: send a message")
        return whole[len(before) :]

    def _check_tools(self, tools: ToolSet) -> None:
        if len(tools) and not self.template.capabilities.get("supports_tools", False):
            raise ModelCapabilityError(
                "this chat template has no place for tools, and the model would not hear of them: pass template= with "
                f"one that has, or leave out {', '.join(tools)}"
            )

    def _turn_of(
        self,
        hold: Hold,
        added: list[dict[str, Any]],
        options: Options,
        settings: GenerationParams,
        bound: bool,
        processor: LogitsProcessor | None,
    ) -> Turn:
        kept: tuple[Message, ...] = self.messages
        prompt, tokens = self._rendered(kept, added, options)
        receipt = None
        if len(tokens) > self._most():
            if self.on_full != "drop":
                raise self._too_long(len(tokens))
            kept, prompt, tokens = self._shortened(kept, added, options, self._most())
            receipt = self._dropped(kept, tokens)
        opening = self._opening(prompt, [*(message.data for message in kept), *added], options, bound)
        if opening:
            tokens = self._renderer.tokens(prompt.prompt + opening)
        seed = self._next_seed() if settings.seed is None else settings.seed
        settings = settings.replace(seed=seed, stop=(*settings.stop, *prompt.additional_stops))
        turn = Turn(
            session=self,
            hold=hold,
            kept=kept,
            added=added,
            options=options,
            prompt=prompt,
            tokens=tokens,
            params=settings,
            chain=self._chain(settings, prompt, opening, seed, tokens, bound),
            opening=opening,
            shown=self._renderer.token_ids(prompt.preserved_tokens),
            processor=processor,
            parser=prompt.parser(),
            receipt=receipt,
        )
        if opening:
            turn.parser.push(opening)
        return turn

    def _opening(
        self, prompt: ChatPrompt, dicts: list[Mapping[str, Any]], options: Options, bound: bool
    ) -> str:
        """What the reply is made to begin with, behind the generation prompt."""
        if bound:
            # a template that opens the thoughts itself: they are closed again, and the answer comes
            return prompt.thinking_end_tags[0] + "\n\n" if thinks_first(prompt) else ""
        if options.tool_choice != "required" or (options.enable_thinking and prompt.supports_thinking):
            return ""
        # the grammar of a required call lets the model talk first, without end; what would trigger it begins the call
        free = dataclasses.replace(options, tool_choice="auto")
        words = [t.value for t in self._renderer.render(dicts, free).grammar_triggers if t.type == "word"]
        return words[0] if len(words) == 1 else ""

    def _chain(
        self,
        settings: GenerationParams,
        prompt: ChatPrompt,
        opening: str,
        seed: int,
        tokens: Tokens,
        bound: bool,
    ) -> SamplerChain:
        """The sampler of a turn, held to the form of tool calls where the template knows it."""
        vocab = self.engine.vocab
        if bound or prompt.grammar is None:
            return sampler_chain(settings, vocab, seed, tokens)
        settings = settings.replace(grammar=prompt.grammar)
        if prompt.grammar_lazy:
            return sampler_chain(settings, vocab, seed, tokens, triggers=prompt.grammar_triggers)
        chain = sampler_chain(settings, vocab, seed, tokens)
        begun = prompt.generation_prompt + opening
        for token in vocab.tokenize(begun, add_special=False, parse_special=True).tolist():
            chain.accept(token)
        return chain

    def _next_seed(self) -> int:
        return self.engine.new_seed() if self.seed is None else derived_seed(self.seed, self._draws)

    def _commit(self, turn: Turn, data: Mapping[str, Any], finish_reason: str) -> Message:
        """A turn has come to its end: its messages are part of the conversation, and it is another's turn."""
        head = self._head if len(turn.kept) == len(self) else self._grown(None, turn.kept)
        head = self._grown(head, turn.added)
        whole = check_messages([*(message.data for message in turn.kept), *turn.added, data])
        message = Message.new(whole[-1], finish_reason)
        self._head = Node.after(head, message)
        self._log = np.concatenate([turn.tokens, np.asarray(turn.read, dtype=np.int32)])
        self._draws += 1
        self.used_at = time.monotonic()
        self._turn.release(turn.hold)
        return message

    def _make_room(self, turn: Turn) -> bool:
        """Drop the oldest turns under a reply that is under way; False where that gives no room."""
        most = min(self._most(), len(turn.tokens) + len(turn.read)) - len(turn.read) - 1
        if most < 1:
            return False
        try:
            kept, prompt, tokens = self._shortened(turn.kept, turn.added, turn.options, most)
        except (InvalidArgumentError, ContextOverflowError):
            return False
        if len(kept) == len(turn.kept):
            return False
        turn.receipt = self._dropped(kept, tokens)
        turn.kept, turn.prompt, turn.tokens = kept, prompt, tokens
        return True

    # --- branches

    @overload
    def fork(self, n: None = None) -> Session: ...
    @overload
    def fork(self, n: int) -> list[Session]: ...
    def fork(self, n: int | None = None) -> Session | list[Session]:
        """A session that goes on from here by itself, or a list of ``n``. They share every cell; nothing is copied.

        Each has a seed of its own, which follows from this one's.
        """
        count = 1 if n is None else check_int("n", n, 0, 1_000_000)
        with self._taken():
            made = [self._forked() for _ in range(count)]
        return made[0] if n is None else made

    def _forked(self) -> Session:
        fork = Session(
            self.engine, self.template, tools=self.tools, params=self.params, on_full=self.on_full,
            memory_limit=self.memory_limit, owner=self.owner, priority=self.priority, adapters=self.adapters,
            seed=None if self.seed is None else derived_seed(self.seed, self._draws, "fork"),
        )  # fmt: skip
        self._draws += 1
        fork.options = self.options
        fork._renderer = self._renderer.copy()
        fork._head, fork._tips, fork._log = self._head, list(self._tips), self._log
        fork._pinned, fork._tree = set(self._pinned), self._tree
        self.registry.add(fork)
        return fork

    # --- files

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write all of it into a file: messages, branches, tokens, their keys and values, where its seeds have got to.

        Returns the file's size in bytes. ``runner.load_session(path)`` takes it up again, in any process with the same
        model. The file is written whole or not at all. Functions of tools are not part of it: give them to
        ``load_session`` again. Raises StorageError, ContextOverflowError, and StateError where the memory's state
        cannot be saved.
        """
        with self._taken():
            taken = self._snapshot()
            return save_file(path, self.engine, taken.header, taken.tokens, adapters=self.adapters)

    def _snapshot(self) -> Snapshot:
        header = {
            **describe_tree(self._head, self._tips),
            "pinned": sorted(self._pinned),
            "tools": self.tools.to_list(),
            "template": self.template.source,
            "params": self.params.to_dict(),
            "options": {
                "enable_thinking": self.options.enable_thinking,
                "template_kwargs": dict(self.options.template_kwargs),
                "reasoning_format": self.options.reasoning_format,
                "on_full": self.on_full,
                "memory_limit": self.memory_limit,
                "owner": self.owner,
                "priority": self.priority,
            },
            "seed": self.seed,
            "draws": self._draws,
            "adapters": repr(self.engine.prefix_key(self.adapters)),
        }
        return Snapshot(header, self._log)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        engine: Engine,
        *,
        template: ChatTemplate | None = None,
        tools: Tools | None = None,
        adapters: Adapters | None = None,
        kv: bool = True,
    ) -> Session:
        """A session from its file; see ``LlamaRunner.load_session``."""
        check_bool("kv", kv)
        key = engine.prefix_key(adapters)
        chosen = None if tools is None else as_tool_set(tools)
        saved = read_file(path)
        header = saved.header
        if repr(key) != header["adapters"]:
            raise StateError("the session was saved with other adapters: pass those as adapters=")
        with making_sense():
            made = cls._restored(saved, engine, template=template, tools=chosen, adapters=adapters)
        if kv:
            verify(saved, engine, adapters=adapters)
            made._log = saved.tokens
        return made

    @classmethod
    def _restored(
        cls,
        taken: Snapshot,
        engine: Engine,
        *,
        template: ChatTemplate | None = None,
        tools: ToolSet | None = None,
        adapters: Adapters | None = None,
    ) -> Session:
        """The session that a snapshot is of, with no tokens yet."""
        header = taken.header
        if template is None or template.source != header["template"]:
            template = ChatTemplate(engine.context.model, header["template"])
        made = cls(
            engine,
            template,
            tools=ToolSet(header["tools"]) if tools is None else tools,
            params=GenerationParams.from_dict(header["params"]),
            seed=header["seed"],
            adapters=adapters,
            **header["options"],
        )
        made._head, made._tips = taken.ends()
        made._pinned = set(header["pinned"])
        made._draws = header["draws"]
        return made

    # --- for asyncio

    async def asave(self, path: str | os.PathLike[str]) -> int:
        """``save`` for asyncio."""
        return await asyncio.to_thread(self.save, path)

    async def async_(self, messages: Iterable[Mapping[str, Any]]) -> Receipt:
        """``sync`` for asyncio; its name would be a word of the language's."""
        return await asyncio.to_thread(self.sync, messages)

    async def aplan(self, messages: Iterable[Mapping[str, Any]] | None = None) -> Plan:
        """``plan`` for asyncio."""
        return await asyncio.to_thread(self.plan, messages)

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

    async def agc(self, target: float = 0.5, *, policy: Any = "oldest") -> Receipt:
        """``gc`` for asyncio."""
        return await asyncio.to_thread(lambda: self.gc(target, policy=policy))

    async def awarm(
        self, messages: Iterable[Mapping[str, Any]] | None = None, *, priority: int | None = None
    ) -> Warmup:
        """``warm`` for asyncio."""
        return await asyncio.to_thread(lambda: self.warm(messages, priority=priority))


def as_tool_set(tools: Tools) -> ToolSet:
    return tools if isinstance(tools, ToolSet) else ToolSet(tools)


def thinks_first(prompt: ChatPrompt) -> bool:
    """Whether the template has opened the model's thoughts already."""
    start, ends = prompt.thinking_start_tag.strip(), prompt.thinking_end_tags
    if not prompt.supports_thinking or not start or not ends:
        return False
    after = prompt.generation_prompt.rfind(start)
    return after >= 0 and prompt.generation_prompt.find(ends[0].strip(), after) < 0


def derived_seed(seed: int, draw: int, what: str = "turn") -> int:
    """The seed of a turn or a fork: another for each, and always the same."""
    digest = hashlib.blake2b(f"{seed} {what} {draw}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % (2**32 - 1)
