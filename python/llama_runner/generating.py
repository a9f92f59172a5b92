"""``Generating``: what a runner makes of prompts, one or many, waiting or not."""

from __future__ import annotations

import functools
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_int, check_prompts
from llama_runner._single import Single
from llama_runner.core import Model
from llama_runner.core.vocab import as_tokens
from llama_runner.engine import (
    Adapters,
    AsyncStream,
    Engine,
    LogitsProcessor,
    Request,
    Sequence,
    Stream,
    exhaust,
)
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError
from llama_runner.params import GenerationParams
from llama_runner.results import Chunk, Completion

__all__ = ["Generating", "Prompt"]

Prompt = str | bytes | abc.Sequence[int] | npt.NDArray[np.integer[Any]] | Sequence
REQUEST_OPTIONS = frozenset({"adapters", "logits_processor", "owner", "priority"})


def best(completions: list[Completion], n: int | None) -> list[Completion]:
    """Those with the largest mean log-probability, best first; all as they come where ``n`` is None."""
    if n is None:
        return completions

    def mean(completion: Completion) -> float:
        scores = [token.logprob for token in completion.logprobs or ()]
        return sum(scores) / len(scores) if scores else float("-inf")

    return sorted(completions, key=mean, reverse=True)[:n]


class Generating(Single):
    """Stateless generation on an engine: nothing of one call is visible to the next, prefix reuse aside."""

    model: Model
    engine: Engine

    def _check_open(self) -> None:
        raise NotImplementedError

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
        if prefill_progress is not None and not callable(prefill_progress):
            raise ArgumentTypeError(f"prefill_progress is a callable, not {prefill_progress!r:.60}")
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
            for stream in streams:
                stream.read_whole()
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
            for stream in streams:
                stream.read_whole()
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
        check_prompts(prompts)
        return [self._tokens(prompt) for prompt in prompts]
