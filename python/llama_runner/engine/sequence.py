"""``Sequence``: a token log whose keys and values the engine keeps at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_int
from llama_runner._single import Single
from llama_runner.core import SamplerChain
from llama_runner.core.vocab import as_tokens
from llama_runner.engine.engine import Adapters, Engine, LogitsProcessor
from llama_runner.engine.prefix import Node
from llama_runner.engine.request import Request
from llama_runner.engine.sampling import sampler_chain
from llama_runner.engine.stream import AsyncStream, Stream, drain, exhaust
from llama_runner.errors import ContextOverflowError, InvalidArgumentError, ModelCapabilityError
from llama_runner.params import GenerationParams
from llama_runner.results import Completion

__all__ = ["Sequence", "Snapshot"]

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Notify = Callable[[], None] | None


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Where a sequence was: its tokens, and the state of its sampler, grammar and random numbers included."""

    tokens: Tokens
    params: GenerationParams | None
    sampler: SamplerChain | None
    n_vocab: int
    """Tokens of the vocabulary that it speaks of."""


class Sequence(Single):
    """A token log. Its tokens are the truth; the engine's cache follows them, and shares what sequences have in common.

    A sequence needs no place in the KV memory while nothing is done with it: there may be thousands. ``pin()`` keeps
    its cells from being evicted. It has a sampler of its own, which goes on from one ``generate`` to the next and which
    a fork gets a copy of. One thread, or task, at a time. Every method that computes has a twin for asyncio:
    ``aextend``, …, so that ``asyncio.gather`` over branches is one batch. Get one as ``runner.sequence(tokens)``.
    """

    _instead = ": fork() it"

    def __init__(
        self,
        engine: Engine,
        tokens: Any = (),
        *,
        owner: str | None = None,
        priority: int = 0,
        adapters: Adapters | None = None,
    ) -> None:
        self._engine = engine
        self._key = engine.prefix_key(adapters)
        self._tokens: Tokens = self._ids(tokens)
        self._logits: Logits | None = None
        self._keeps = False  # between pin() and unpin()
        self._pin: Node | None = None  # None as well while it has no tokens
        self._params: GenerationParams | None = None
        self._sampler: SamplerChain | None = None
        self.owner = owner
        self.priority = priority
        self.adapters = adapters

    def _ids(self, tokens: Any) -> Tokens:
        if isinstance(tokens, (str, bytes)):
            return self._engine.vocab.tokenize(tokens, add_special=False, parse_special=False)
        return as_tokens(tokens, self._engine.vocab.n_tokens)

    @property
    def tokens(self) -> Tokens:
        """Its tokens, an int32 array, read-only."""
        view = self._tokens.view()
        view.flags.writeable = False
        return view

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"<Sequence of {len(self)} tokens{', pinned' if self.pinned else ''}>"

    @property
    def text(self) -> str:
        """What its tokens say."""
        return self._engine.vocab.detokenize(self._tokens, unparse_special=True)

    # --- growing and shrinking

    def extend(self, tokens: Any) -> int:
        """Append token ids, or text, and compute them now; returns how many tokens of the whole had to be computed.

        After an error the sequence is as it was.
        """
        whole = self._extended(tokens)
        return 0 if len(whole) == 0 else self._grown(whole, self._run(self._feed(whole)))

    async def aextend(self, tokens: Any) -> int:
        """``extend`` for asyncio."""
        whole = self._extended(tokens)
        return (
            0
            if len(whole) == 0
            else self._grown(whole, await self._arun(lambda n: self._feed(whole, notify=n)))
        )

    def _extended(self, tokens: Any) -> Tokens:
        return np.concatenate([self._tokens, self._ids(tokens)])

    def _grown(self, whole: Tokens, request: Request) -> int:
        self._set(whole)
        return request.usage().computed_tokens

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` tokens. Costs nothing: cells that nobody needs go when room is wanted."""
        self._set(self._tokens[: check_int("n", n, 0, len(self))].copy())

    @overload
    def fork(self) -> Sequence: ...
    @overload
    def fork(self, n: int) -> list[Sequence]: ...
    def fork(self, n: int | None = None) -> Sequence | list[Sequence]:
        """A sequence of the same tokens, or a list of ``n``, each with a copy of the sampler.

        They share every cell; no key or value is copied.
        """
        count = 1 if n is None else check_int("n", n, 0, 1_000_000)
        made = []
        for _ in range(count):
            fork = Sequence(
                self._engine, self._tokens, owner=self.owner, priority=self.priority, adapters=self.adapters
            )
            fork._logits, fork._params = self._logits, self._params
            fork._sampler = None if self._sampler is None else self._sampler.clone()
            made.append(fork)
        return made[0] if n is None else made

    def snapshot(self) -> Snapshot:
        """Where it is now, to come back to with ``restore``; costs a copy of the tokens and of the sampler."""
        sampler = None if self._sampler is None else self._sampler.clone()
        return Snapshot(self._tokens.copy(), self._params, sampler, self._engine.vocab.n_tokens)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, of this sequence or another of the same model: what follows is what followed then."""
        if not isinstance(snapshot, Snapshot):
            raise InvalidArgumentError(f"snapshot is what snapshot() returned, not {type(snapshot).__name__}")
        n_vocab = self._engine.vocab.n_tokens
        if snapshot.n_vocab != n_vocab:
            raise InvalidArgumentError(
                f"the snapshot is of a model with a vocabulary of {snapshot.n_vocab} tokens, and this one has {n_vocab}"
            )
        self._set(self._ids(snapshot.tokens).copy())
        self._params = snapshot.params
        self._sampler = None if snapshot.sampler is None else snapshot.sampler.clone()

    def _set(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._logits = None
        if self._keeps:
            self._pin_at(tokens)

    # --- what the model makes of it

    @property
    def logits(self) -> Logits:
        """The logits that follow its last token, float32 (n_vocab,); computed when first asked for."""
        if self._logits is None:
            self._logits = self._run(self._wanting("logits")).job.wanted("logits")
        return self._logits

    async def alogits(self) -> Logits:
        """``logits`` for asyncio."""
        if self._logits is None:
            request = await self._arun(lambda n: self._wanting("logits", n))
            self._logits = request.job.wanted("logits")
        return self._logits

    def embed(self) -> npt.NDArray[np.float32]:
        """The embedding of its last token, or of the whole where the context pools; float32 (n_embd,).

        Raises ModelCapabilityError in a context made without ``embeddings=True``.
        """
        return self._embedding(self._run(self._wanting("embedding")))

    async def aembed(self) -> npt.NDArray[np.float32]:
        """``embed`` for asyncio."""
        return self._embedding(await self._arun(lambda n: self._wanting("embedding", n)))

    @staticmethod
    def _embedding(request: Request) -> npt.NDArray[np.float32]:
        found = request.job.wanted("embedding")
        if len(found) == 0:
            raise ModelCapabilityError("this context gives no embeddings: make it with embeddings=True")
        return found

    def score(self, tokens: Any) -> npt.NDArray[np.float32]:
        """The log-probability of each of ``tokens``, given this sequence and those before it; float32 (n,)."""
        new = self._to_score(tokens)
        return self._run(self._scoring(new)).job.wanted("logprobs") if len(new) else np.empty(0, np.float32)

    async def ascore(self, tokens: Any) -> npt.NDArray[np.float32]:
        """``score`` for asyncio."""
        new = self._to_score(tokens)
        if len(new) == 0:
            return np.empty(0, np.float32)
        return (await self._arun(lambda n: self._scoring(new, n))).job.wanted("logprobs")

    def _to_score(self, tokens: Any) -> Tokens:
        if len(self) == 0:
            raise InvalidArgumentError(
                "the sequence is empty: the first token of a text has no probability; extend() it"
            )
        return self._ids(tokens)

    def _scoring(self, new: Tokens, notify: Notify = None) -> Request:
        return self._feed(np.concatenate([self._tokens, new]), "logprobs", len(self), notify)

    def _wanting(self, what: str, notify: Notify = None) -> Request:
        if len(self) == 0:
            raise InvalidArgumentError(f"the sequence is empty: it has no {what}; extend() it")
        return self._feed(self._tokens, what, notify=notify)

    def _feed(self, tokens: Tokens, want: str = "", want_from: int = 1, notify: Notify = None) -> Request:
        return self._engine.feed(
            tokens, want=want, want_from=want_from, owner=self.owner, priority=self.priority, adapters=self.adapters,
            notify=notify,
        )  # fmt: skip

    def _run(self, request: Request) -> Request:
        return drain(self._engine, request)

    async def _arun(self, submit: Callable[[Callable[[], None]], Request]) -> Request:
        return await AsyncStream(self._engine, submit).result()

    # --- generating

    def generate(
        self,
        params: GenerationParams | None = None,
        *,
        logits_processor: LogitsProcessor | None = None,
        **kwargs: Any,
    ) -> Completion:
        """Generate from here, and append what was sampled.

        With neither ``params`` nor keywords it goes on with the sampler of the last time: its random state, and the
        grammar where that has got to. After an error the sequence is as it was.
        """
        chain, settings = self._prepared(params, kwargs)
        request = self._generating(settings, chain, logits_processor, None)
        return self._generated(settings, chain, exhaust(Stream(self._engine, request)))

    async def agenerate(
        self,
        params: GenerationParams | None = None,
        *,
        logits_processor: LogitsProcessor | None = None,
        **kwargs: Any,
    ) -> Completion:
        """``generate`` for asyncio."""
        chain, settings = self._prepared(params, kwargs)
        request = await self._arun(lambda n: self._generating(settings, chain, logits_processor, n))
        return self._generated(settings, chain, request.completion())

    def _prepared(
        self, params: GenerationParams | None, kwargs: dict[str, Any]
    ) -> tuple[SamplerChain, GenerationParams]:
        """A copy of the sampler to go on with, or a new one: what fails leaves that of the sequence alone."""
        if len(self) == 0:
            raise InvalidArgumentError("the sequence is empty: there is nothing to continue; extend() it")
        if params is None and not kwargs and self._sampler is not None and self._params is not None:
            return self._sampler.clone(), self._params
        settings = GenerationParams.from_kwargs(params, kwargs, where="Sequence.generate()")
        seed = settings.seed if settings.seed is not None else self._engine.new_seed()
        settings = settings.replace(seed=seed)
        return sampler_chain(settings, self._engine.vocab, seed, self._tokens), settings

    def _generating(
        self, params: GenerationParams, chain: SamplerChain, processor: LogitsProcessor | None, notify: Notify
    ) -> Request:
        return self._engine.submit(
            self._tokens, params, owner=self.owner, priority=self.priority, adapters=self.adapters, chain=chain,
            logits_processor=processor, notify=notify,
        )[0]  # fmt: skip

    def _generated(self, params: GenerationParams, chain: SamplerChain, completion: Completion) -> Completion:
        self._set(np.concatenate([self._tokens, completion.tokens]))
        self._sampler, self._params = chain, params
        return completion

    # --- staying

    @property
    def pinned(self) -> bool:
        """Whether ``pin`` keeps its cells."""
        return self._keeps

    def pin(self) -> None:
        """Keep its cells in the KV memory until ``unpin``, also those to come; computes what is not there."""
        if self._pin is None and len(self):
            self.extend(())
            self._pin_at(self._tokens)
            if self._pin is None or not self._pin.resident:
                self.unpin()
                raise ContextOverflowError(
                    f"the {len(self)} tokens were evicted before they could be pinned: "
                    f"n_ctx={self._engine.context.n_ctx} is too small for all that runs",
                    len(self),
                    self._engine.context.n_ctx,
                )
        self._keeps = True

    def unpin(self) -> None:
        """Let its cells go when room is wanted."""
        self._keeps = False
        if self._pin is not None:
            self._pin_at(np.empty(0, dtype=np.int32))

    def _pin_at(self, tokens: Tokens) -> None:
        """Pin what is cached of these, and no longer what was pinned: that is over whatever happens."""
        before, self._pin = self._pin, None
        self._pin = self._engine.pin(tokens, before, self._key)

    def __del__(self) -> None:
        pin = getattr(self, "_pin", None)
        if pin is not None:
            self._engine.unpin_soon(pin)
