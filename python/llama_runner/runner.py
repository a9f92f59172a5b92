"""``LlamaRunner``: a model and a context, ready to generate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_choice, check_float, check_int, check_process
from llama_runner.core import ChatTemplate, Context, Model
from llama_runner.engine import (
    Adapters,
    AsyncStream,
    Engine,
    EngineCounters,
    KvMap,
    Stream,
    exhaust,
)
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    InvalidArgumentError,
    ModelCapabilityError,
    unknown_name,
)
from llama_runner.generating import Generating, Prompt
from llama_runner.params import GenerationParams
from llama_runner.receipts import Receipt
from llama_runner.results import Completion, ContextInfo, SequenceInfo
from llama_runner.session import Session
from llama_runner.session.conversation import Registry
from llama_runner.session.session import Tools
from llama_runner.session.store import Snapshot
from llama_runner.stateful import StatefulLog, StatefulTurn

__all__ = ["LlamaRunner", "Stream"]

GcPolicy = Literal["oldest", "idle"]
DEFAULT_N_SEQ_MAX = 128
CLOSE_SECONDS = 10.0
STATE_BYTES = 256 << 20  # for recurrent states, unasked
DEFAULT_N_CTX = 8192  # a model trained for 128k tokens would otherwise take gigabytes unasked

CONTEXT_OPTIONS = frozenset(
    {
        "embeddings",
        "flash_attn",
        "n_batch",
        "n_threads",
        "n_threads_batch",
        "n_ubatch",
        "offload_kqv",
        "op_offload",
        "pooling",
        "rope_freq_base",
        "rope_freq_scale",
        "swa_full",
        "type_k",
        "type_v",
    }
)
MODEL_OPTIONS = frozenset(
    {"check_tensors", "main_gpu", "n_gpu_layers", "split_mode", "use_mlock", "use_mmap"}
)
ENGINE_OPTIONS = frozenset(
    {
        "disk_cache",
        "disk_cache_bytes",
        "host_cache_bytes",
        "max_running",
        "max_waiting",
        "pace",
        "quotas",
        "slice_seconds",
    }
)


def close_when_idle(what: Model | Context) -> None:
    """Close a model or context; whoever looks at it, or closes it, at this moment may end that first."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while True:
        try:
            return what.close()
        except ContextBusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.001)


class LlamaRunner(Generating):
    """A model and a context, ready to generate.

        with LlamaRunner("smollm2-135m") as runner:
            print(runner.generate("The capital of France is", max_tokens=8).text)

    Parameters
    ----------
    model : a path, ``"hf:owner/repo/file.gguf"``, ``"pypi:dist==version/file.gguf"``, a short name, a metadata .json,
        or a ``Model``, which then stays open when the runner closes.
    n_ctx : tokens that fit into the context; None for what the model was trained with, at most 8192.
    n_seq_max : sequences in the cache: one for ``generate_stateful``, the others for as many generations at a time.
    auto_gc : the share of the context that the conversation of ``generate_stateful`` may fill before its oldest turns
        are dropped, down to half of that; None never drops any, and a conversation that is full raises.
    progress : called with 0.0 to 1.0 while the model loads; returning False cancels.
    download_progress : called with (what, bytes done, bytes in all or None) while the model is fetched.
    **options : those of ``core.Model`` (``n_gpu_layers``, …) and ``core.Context`` (``n_threads``, ``type_k``, …).

    Any thread may call it, several at once: generations take turns, token by token. A call that finds no free sequence
    raises ContextBusyError. After any error the runner is usable, and the conversation of ``generate_stateful`` is as
    it was before the call.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        n_ctx: int | None = None,
        n_seq_max: int | None = None,
        auto_gc: float | None = 0.8,
        progress: Callable[[float], object] | None = None,
        download_progress: Callable[[str, int, int | None], None] | None = None,
        **options: Any,
    ) -> None:
        self._closed = True
        for name in options:
            if name not in CONTEXT_OPTIONS | MODEL_OPTIONS | ENGINE_OPTIONS:
                known = {
                    *CONTEXT_OPTIONS,
                    *MODEL_OPTIONS,
                    *ENGINE_OPTIONS,
                    "auto_gc",
                    "n_ctx",
                    "n_seq_max",
                    "progress",
                    "download_progress",
                }
                raise unknown_name(name, known, "LlamaRunner()")
        for_model = {name: options.pop(name) for name in MODEL_OPTIONS & options.keys()}
        for_engine = {name: options.pop(name) for name in ENGINE_OPTIONS & options.keys()}
        self.auto_gc = None if auto_gc is None else check_float("auto_gc", auto_gc, 0.01, 1.0)
        if n_ctx is not None:
            check_int("n_ctx", n_ctx, 1, 2**31 - 256)
        self._owns_model = not isinstance(model, Model)
        if isinstance(model, Model):
            if for_model:
                raise InvalidArgumentError(f"{', '.join(sorted(for_model))}: the Model is loaded already")
            self.model = model
        else:
            from llama_runner.models import resolve_model  # brings archives and locks along

            path = resolve_model(model, progress=download_progress)
            self.model = Model(path, progress=progress, **for_model)
        try:
            self._open(n_ctx, n_seq_max, for_engine, options)
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise

    def _open(
        self, n_ctx: int | None, n_seq_max: int | None, engine: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        if not self.model.has_decoder or self.model.architecture.endswith("bert"):
            raise ModelCapabilityError(
                f"{self.model!r} is an encoder and cannot generate: use core.Context with embeddings=True"
            )
        if n_ctx is None:
            n_ctx = min(self.model.n_ctx_train, DEFAULT_N_CTX)
        if n_seq_max is None:
            if "n_batch" in options:
                check_int("n_batch", options["n_batch"], 1, 2**31 - 1)
            n_seq_max = max(2, min(self._default_n_seq_max(n_ctx), options.get("n_batch", DEFAULT_N_CTX)))
        check_int("n_seq_max", n_seq_max, 2, 256)
        self.context = Context(self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, **options)
        try:
            self.engine = Engine(self.context, **engine)
        except BaseException:
            self.context.close()
            raise
        self._stateful = StatefulLog(self.engine)
        self.last_gc: Receipt | None = None
        """What the last collection did that ran by itself."""
        self._template: ChatTemplate | None = None
        self._sessions = Registry()
        self._lock = threading.RLock()
        self._closed = False

    def _default_n_seq_max(self, n_ctx: int) -> int:
        """A cell of attention costs nothing until it is used; each recurrent state is there from the start."""
        if not (self.model.is_recurrent or self.model.is_hybrid):
            return min(DEFAULT_N_SEQ_MAX, n_ctx)
        return max(4, min(32, STATE_BYTES // max(1, self.model.state_bytes)))

    def generate_stateless(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows ``prompt``; nothing of the call is visible to the next one."""
        return exhaust(self.stream(prompt, max_tokens=max_tokens, **kwargs)).text

    def generate_stateful(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows all earlier stateful prompts and answers, and now ``prompt``.

        The conversation lives in the KV cache: only what is new is computed. ``clear_context()`` forgets it. Where it
        would come to fill more than ``auto_gc`` of the context, its oldest turns are dropped first (``last_gc`` tells).
        After an error, ContextOverflowError included, it is as it was before the call. A second thread gets
        ContextBusyError.
        """
        params = kwargs.pop("params", None)
        settings = GenerationParams.from_kwargs(
            params, {"max_tokens": max_tokens, **kwargs}, where="generate_stateful()"
        )
        with self._stateful.turn() as log:
            turn = self._next_turn(log, prompt)
            completion = exhaust(Stream(self.engine, self.engine.submit(turn.tokens, settings)[0]))
            self._end_turn(log, turn, completion)
            return completion.text

    async def agenerate_stateless(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """``generate_stateless`` for asyncio."""
        out: Completion = await self.agenerate(prompt, max_tokens=max_tokens, **kwargs)
        return out.text

    async def agenerate_stateful(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """``generate_stateful`` for asyncio."""
        params = kwargs.pop("params", None)
        settings = GenerationParams.from_kwargs(
            params, {"max_tokens": max_tokens, **kwargs}, where="agenerate_stateful()"
        )
        with self._stateful.turn() as log:
            turn = self._next_turn(log, prompt)
            stream = AsyncStream(
                self.engine, lambda notify: self.engine.submit(turn.tokens, settings, notify=notify)[0]
            )
            completion = (await stream.result()).completion()
            await asyncio.to_thread(self._end_turn, log, turn, completion)
            return completion.text

    def _next_turn(self, log: StatefulLog, prompt: Prompt) -> StatefulTurn:
        """The conversation with one more prompt, without its oldest turns where it would be too long."""
        new = self._tokens(prompt, add_special=len(log) == 0)
        if self.auto_gc is None:
            return log.with_prompt(new)
        return log.with_prompt(new, most=int(self.auto_gc * self.context.n_ctx))

    def _end_turn(self, log: StatefulLog, turn: StatefulTurn, completion: Completion) -> None:
        log.commit(turn, completion.tokens)
        self.last_gc = turn.receipt or self.last_gc

    # --- chat

    def session(
        self,
        *,
        system: str | None = None,
        messages: Iterable[Mapping[str, Any]] = (),
        tools: Tools = (),
        template: str | ChatTemplate | None = None,
        **options: Any,
    ) -> Session:
        """A ``Session``: a conversation that the cache follows; any number of them side by side.

        ``template`` is a Jinja text or a ``ChatTemplate`` in place of the model's own; other keywords are those of
        ``Session``. Raises ModelCapabilityError for a model without a template, and for tools that it has no place for.
        """
        chosen = self._chat_template(template)
        made = Session(self.engine, chosen, system=system, messages=messages, tools=tools, **options)
        self._sessions.add(made)
        return made

    def load_session(
        self,
        path: str | os.PathLike[str],
        *,
        tools: Tools | None = None,
        adapters: Adapters | None = None,
        kv: bool = True,
    ) -> Session:
        """A session that ``Session.save`` wrote: it goes on as if it had never been away.

        Nothing is used before it is verified: the file by its checksum, the state by model, tokens and a row of logits.
        ``kv=False`` takes the messages alone, and another model may compute them anew. ``tools`` in place of the saved
        descriptions, which nobody can call. Raises StateError, StorageError.
        """
        self._check_open()
        template = self._chat_template() if self.model.chat_template() else None
        made = Session.load(path, self.engine, template=template, tools=tools, adapters=adapters, kv=kv)
        self._sessions.add(made)
        return made

    async def aload_session(
        self,
        path: str | os.PathLike[str],
        *,
        tools: Tools | None = None,
        adapters: Adapters | None = None,
        kv: bool = True,
    ) -> Session:
        """``load_session`` for asyncio."""
        return await asyncio.to_thread(lambda: self.load_session(path, tools=tools, adapters=adapters, kv=kv))

    def _restored_session(self, taken: Snapshot) -> Session:
        """The session that a snapshot is of; its tokens are computed when it goes on."""
        template = self._chat_template() if self.model.chat_template() else None
        made = Session._restored(taken, self.engine, template=template)
        made._log = taken.tokens
        self._sessions.add(made)
        return made

    def _chat_template(self, template: str | ChatTemplate | None = None) -> ChatTemplate:
        self._check_open()
        if isinstance(template, ChatTemplate):
            return template
        if template is not None:
            return ChatTemplate(self.model, template)
        with self._lock:
            if self._template is None:
                self._template = ChatTemplate(self.model)
            return self._template

    def apply_chat_template(
        self,
        messages: abc.Sequence[Mapping[str, Any]],
        *,
        template: str | ChatTemplate | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Render OpenAI-style messages with the model's own chat template, or another; see ``ChatTemplate.apply``.

        The text holds special tokens: give it to ``generate`` as ``chat_tokens(messages)``, not as a string.
        """
        chosen = self._chat_template(template)
        return chosen.apply(messages, add_generation_prompt=add_generation_prompt, **kwargs)

    def chat_tokens(
        self, messages: abc.Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> npt.NDArray[np.int32]:
        """``apply_chat_template`` as token ids, special tokens read as such: a prompt for ``generate``."""
        text = self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return self.model.vocab.tokenize(text, add_special=True, parse_special=True)

    # --- the context

    def get_context_info(self) -> ContextInfo:
        """How full the context is, in all, for each sequence and each session, and which prefixes would go first."""
        self._check_open()
        with self.engine.paused() as context:
            memory = context.memory
            sessions = tuple(session.info() for session in self._sessions if session.n_tokens)
            going = tuple(self.engine.next_to_go())
            ends = {seq: memory.seq_pos_max(seq) + 1 for seq in range(context.n_seq_max)}
            sequences = tuple(
                SequenceInfo(seq, memory.seq_pos_min(seq), end - 1, end) for seq, end in ends.items() if end
            )
            if self.model.is_recurrent:  # a state a sequence, however long it is
                used, cells = len(sequences), context.n_seq_max
            else:
                used, cells = memory.n_used, context.n_ctx
            return ContextInfo(cells, used, context.n_seq_max, sequences, sessions, going)

    def kv_map(self) -> KvMap:
        """Who owns each cell of the KV memory, and since when it has not been of use."""
        self._check_open()
        return self.engine.kv_map()

    @property
    def counters(self) -> EngineCounters:
        """Hits, misses, evictions, preemptions, steps and times since the start."""
        self._check_open()
        return self.engine.counters

    def clear_context(self) -> None:
        """Forget the conversation of ``generate_stateful`` and every cached prompt; generations under way go on."""
        self._check_open()
        with contextlib.suppress(ContextBusyError), self._stateful.turn() as log:
            log.clear()
        self.engine.clear()

    def gc_context(self, target: float = 0.5, *, policy: GcPolicy = "oldest") -> Receipt:
        """Make room: until at most ``target`` of the context is used, or nothing more may go.

        First the prefixes that nobody uses leave the KV memory, the least recently used first, for host memory and disk
        where there is room: they come back when they are asked for. With the policy ``"oldest"`` the oldest turns of
        ``generate_stateful`` go as well, where that is not enough; with ``"idle"`` they do not. Sessions stay:
        each has its own ``gc``. The receipt counts cells. Takes up to a step of what runs.
        """
        check_float("target", target, 0.0, 1.0)
        check_choice("policy", policy, ("oldest", "idle"))
        self._check_open()
        most = int(target * self.context.n_ctx)
        before, after = self.engine.evict_down_to(most)
        reason = f"{before - after} cells of idle prefixes were evicted"
        if policy == "oldest" and after > most:
            with contextlib.suppress(ContextBusyError), self._stateful.turn() as log:
                if log.drop_oldest(max(0, len(log) - (after - most))):
                    reason += ", and the oldest turns of the conversation were dropped"
            after = self.engine.evict_down_to(most)[1]
        if after > most:
            reason += "; what is left is in use, or pinned"
        return Receipt("gc", before, after, after, before - after, reason=reason)

    async def agc_context(self, target: float = 0.5, *, policy: GcPolicy = "oldest") -> Receipt:
        """``gc_context`` for asyncio."""
        return await asyncio.to_thread(lambda: self.gc_context(target, policy=policy))

    async def aget_context_info(self) -> ContextInfo:
        """``get_context_info`` for asyncio."""
        return await asyncio.to_thread(self.get_context_info)

    async def aclear_context(self) -> None:
        """``clear_context`` for asyncio."""
        await asyncio.to_thread(self.clear_context)

    async def akv_map(self) -> KvMap:
        """``kv_map`` for asyncio."""
        return await asyncio.to_thread(self.kv_map)

    # --- lifetime

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has been called."""
        return self._closed

    def close(self) -> None:
        """Free the context, and the model unless it was passed in; closing twice is no error. Streams end.

        What an interrupt has broken off is done by the next call. Raises ContextBusyError, with nothing closed, in a
        logits processor.
        """
        if self.engine.loop.inside:
            raise ContextBusyError(
                "this is a logits processor: close() would wait for the step that waits for it"
            )
        self._closed = True
        self.engine.close()
        if not self.engine.ended and not self.engine.forked:
            return  # whoever is at it goes on; this thread is in its way
        close_when_idle(self.context)
        if self._owns_model:
            close_when_idle(self.model)

    def _check_open(self) -> None:
        check_process(self.engine.pid, "LlamaRunner")
        if self._closed:
            raise ClosedError("this LlamaRunner is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed or self.engine.forked:
            return f"<LlamaRunner {'closed' if self._closed else 'of another process'}>"
        return f"<LlamaRunner {self.get_context_info()} {self.model!r}>"
