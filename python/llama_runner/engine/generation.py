"""One generation: prefill what is not in the cache, then a token a step, until something ends it."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_runner.core import Batch, Context, SamplerChain, Stepper, Vocab
from llama_runner.engine.slots import Slot, Slots
from llama_runner.errors import ContextOverflowError, DecodeAbortedError, NoSlotError
from llama_runner.params import GenerationParams
from llama_runner.results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from llama_runner.streaming import TextAssembler

__all__ = ["Generation", "sampler_chain"]

PrefillProgress = Callable[[int, int], object]
_TIMED_OUT = object()


class Generation:
    """Generates into one slot, which it holds until ``release``.

    ``lock`` guards the context and is held for one decode and the sampling after it, never between two steps: several
    generations take turns. The account in ``slot.tokens`` is brought up to date after each successful decode only, so
    that an exception at any point, KeyboardInterrupt included, leaves it true or is mended by ``Slot.truncate``.
    """

    def __init__(
        self,
        context: Context,
        slots: Slots,
        slot: Slot,
        lock: threading.RLock,
        params: GenerationParams,
        *,
        pinned: set[int],
    ) -> None:
        self.context = context
        self.slots = slots
        self.slot = slot
        self.lock = lock
        self.params = params
        self.pinned = pinned  # sequences that are never emptied to make room
        self.vocab: Vocab = context.model.vocab
        self.seed = (
            params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little") % (2**32 - 1)
        )
        self.batch = Batch(context.n_ubatch)
        self.assembler = TextAssembler(params.stop)
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = 0
        self.prompt_tokens = 0
        self.limit = 0  # most tokens to generate
        self._stepper: Stepper | None = None
        self._following: Callable[[int, int], Any]  # decodes a token at a position and selects the next
        self._pending: tuple[int, bytes, bool] | None = None  # sampled, not yet decoded: token, piece, is EOG
        self._started = time.perf_counter()
        self._prefilled = self._first = self._ended = 0.0
        self._deadline = None if params.timeout is None else self._started + params.timeout

    # --- prompt

    def prefill(self, prompt: npt.NDArray[np.int32], progress: PrefillProgress | None = None) -> None:
        """Bring the slot's cache to hold ``prompt``; raises ContextOverflowError when it can never fit."""
        n, n_ctx = len(prompt), self.context.n_ctx
        if n >= n_ctx:
            raise ContextOverflowError(
                f"the prompt has {n} tokens and the context holds {n_ctx}, one of which the answer needs: shorten the "
                f"prompt or make n_ctx at least {n + 1}",
                n,
                n_ctx,
            )
        chain = sampler_chain(self.params, self.vocab, self.seed, prompt)
        with self.lock:
            self._stepper = Stepper(self.context, chain, self.vocab, self.slot.seq_id)
            self._following = self._stepper.advance
            if self._deadline is not None:
                self._following = functools.partial(self._within_time, self._stepper.advance)
            # the last token is always computed: its logits are where generation starts
            keep = self.slot.truncate(min(self.slot.common_prefix(prompt), n - 1))
            self.prompt_tokens, self.cached_tokens = n, keep
            self._reserve(n - keep + 1)
        room = n_ctx - n
        self.limit = room if self.params.max_tokens is None else min(self.params.max_tokens, room)
        step = self.batch.capacity
        for start in range(keep, n, step):
            if progress is not None:
                progress(start - keep, n - keep)
            if not self._decode(prompt[start : start + step], start):
                return
        if progress is not None:
            progress(n - keep, n - keep)
        self._prefilled = time.perf_counter()

    def _reserve(self, n: int) -> None:
        """Free ``n`` cells by emptying idle sequences, or say who holds them."""
        if self.context.model.is_recurrent:
            return
        if not self.slots.make_room(n, self.context.n_ctx, self.pinned | {self.slot.seq_id}):
            held = self.slots.used() - len(self.slot.tokens)
            raise ContextOverflowError(
                f"{n} more tokens do not fit: other sequences hold {held} of the {self.context.n_ctx} cells of the "
                "context; clear_context() frees the conversation's, or make n_ctx larger",
                n,
                self.context.n_ctx,
            )

    def _decode(self, tokens: npt.NDArray[np.int32], pos: int) -> bool:
        """Decode a run of tokens at ``pos`` and note it down; False when the time is over."""
        assert self._stepper is not None
        with self.lock:
            self.batch.clear()
            row = self.batch.add_sequence(tokens, pos=pos, seq_id=self.slot.seq_id)
            if self._within_time(self.context.decode, self.batch) is _TIMED_OUT:
                return False
            self.slot.tokens.extend(tokens.tolist())
            if pos + len(tokens) == self.prompt_tokens:
                self._pending = self._stepper.select(row)
                if self.logprobs is not None:
                    self.logprobs.append(self._logprob(self._pending[0], self._pending[1]))
        return True

    def _within_time(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a call that decodes, or ``_TIMED_OUT`` when the generation's time is over."""
        if self._deadline is None:
            return call(*args)
        left = self._deadline - time.perf_counter()
        try:
            if left > 0:
                return call(*args, timeout=left)
        except DecodeAbortedError:
            if time.perf_counter() < self._deadline:
                raise
        self._finish("timeout")
        return _TIMED_OUT

    # --- one token a step

    def step(self) -> Chunk:
        """Take the sampled token, emit its text, and sample the next one. Call until ``finish_reason`` is set."""
        if self._pending is None or self.finish_reason is not None:
            return self._last_chunk()
        token, piece, ends = self._pending
        self._pending = None
        if not self.tokens:
            self._first = time.perf_counter()
        self.tokens.append(token)
        if ends and not self.params.ignore_eos:
            self._finish("eos")
            return self._last_chunk(token)
        text = self.assembler.push(piece)
        if self.assembler.stopped is not None:
            self._finish("stop")
        elif len(self.tokens) >= self.limit:
            self._finish("length")
        else:
            self._advance(token)
        if self.finish_reason is not None:
            return self._last_chunk(token, text)
        self.pieces.append(text)
        return Chunk(
            text, (token,), None if self.logprobs is None else (self.logprobs[len(self.tokens) - 1],)
        )

    def _advance(self, token: int) -> None:
        """Decode ``token`` and sample the one after it.

        The path of every token: after a decode the caches are cold, and each Python call costs microseconds.
        """
        resident = self.slot.tokens
        with self.lock:
            try:
                following = self._following(token, len(resident))
            except NoSlotError:
                # another generation took the cells meanwhile
                self._reserve(1)
                following = self._following(token, len(resident))
            if following is not _TIMED_OUT:
                resident.append(token)
                self._pending = following
                if self.logprobs is not None:
                    self.logprobs.append(self._logprob(following[0], following[1]))

    def _logprob(self, token: int, piece: bytes) -> TokenLogprob:
        """Of the token just sampled; the caller holds the lock, so the logits are still those."""
        row = self.context.logits(-1).astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        top: tuple[tuple[int, float], ...] = ()
        if self.params.logprobs:
            best = np.argpartition(row, -self.params.logprobs)[-self.params.logprobs :]
            top = tuple((int(i), float(row[i])) for i in best[np.argsort(-row[best], kind="stable")])
        return TokenLogprob(token, piece.decode(errors="replace"), piece, float(row[token]), top)

    # --- the end

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._ended = time.perf_counter()

    def cancel(self) -> None:
        """End where it is; what was generated stays."""
        if self.finish_reason is None:
            self._finish("cancelled")
            self.pieces.append(self.assembler.flush())

    def _last_chunk(self, token: int | None = None, text: str = "") -> Chunk:
        text += "" if self.assembler.stopped is not None else self.assembler.flush()
        if self.assembler.stopped is not None:
            self.finish_reason = "stop"  # a stop string that only the end of the text made certain
        self.pieces.append(text)
        logprobs = None if token is None or self.logprobs is None else (self.logprobs[len(self.tokens) - 1],)
        return Chunk(text, () if token is None else (token,), logprobs, self.finish_reason)

    def completion(self) -> Completion:
        """The result, once ``finish_reason`` is set."""
        assert self.finish_reason is not None
        n = len(self.tokens)
        prefilled = self._prefilled or self._ended
        computed = self.prompt_tokens - self.cached_tokens
        return Completion(
            text="".join(self.pieces),
            tokens=np.asarray(self.tokens, dtype=np.int32),
            finish_reason=self.finish_reason,
            stop_match=self.assembler.stopped,
            usage=Usage(self.prompt_tokens, self.cached_tokens, computed, n),
            timings=Timings(
                prompt_seconds=prefilled - self._started,
                generation_seconds=self._ended - prefilled,
                first_token_seconds=(self._first or self._ended) - self._started,
                computed_tokens=computed,
                completion_tokens=n,
            ),
            logprobs=None if self.logprobs is None else tuple(self.logprobs[:n]),
            seed=self.seed,
        )


def sampler_chain(
    params: GenerationParams, vocab: Vocab, seed: int, prompt: npt.NDArray[np.int32]
) -> SamplerChain:
    """The chain that ``params`` describe, in llama.cpp's usual order, its penalties knowing the end of ``prompt``."""
    chain = SamplerChain()
    penalties = params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    if penalties and params.penalty_last_n:
        chain.penalties(
            vocab,
            params.penalty_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        for token in prompt[-params.penalty_last_n :].tolist():
            chain.accept(token)
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update(dict.fromkeys(vocab.eog_tokens, -np.inf))
    if bias:
        chain.logit_bias(vocab, bias)
    # after the prompt was accepted: a grammar is about the answer alone
    if params.grammar is not None:
        chain.grammar(vocab, params.grammar)
    if params.is_greedy:
        return chain.greedy()
    if params.top_k:
        chain.top_k(params.top_k)
    if params.typical_p < 1:
        chain.typical(params.typical_p)
    if params.top_p < 1:
        chain.top_p(params.top_p)
    if params.min_p > 0:
        chain.min_p(params.min_p)
    return chain.temp(params.temperature).dist(seed)
