"""``Sequence``: a token log whose keys and values the engine keeps at hand."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_int
from llama_runner.core.vocab import as_tokens
from llama_runner.engine.engine import Engine
from llama_runner.engine.prefix import Node
from llama_runner.engine.request import Request
from llama_runner.engine.stream import Stream, exhaust
from llama_runner.errors import InvalidArgumentError
from llama_runner.params import GenerationParams
from llama_runner.results import Completion

__all__ = ["Sequence"]

Tokens = npt.NDArray[np.int32]


class Sequence:
    """A token log. Its tokens are the truth; the engine's cache follows them, and shares what sequences have in common.

    A sequence needs no place in the KV memory while nothing is done with it: there may be thousands. ``pin()`` keeps its
    cells from being evicted. One thread at a time; get one as ``runner.sequence(tokens)``.
    """

    def __init__(
        self, engine: Engine, tokens: Any = (), *, owner: str | None = None, priority: int = 0
    ) -> None:
        self._engine = engine
        self._tokens: Tokens = as_tokens(tokens, engine.vocab.n_tokens)
        self._logits: npt.NDArray[np.float32] | None = None
        self._pin: Node | None = None
        self.owner = owner
        self.priority = priority

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
        """Append tokens and compute them now; returns how many tokens of the whole had to be computed."""
        new = as_tokens(tokens, self._engine.vocab.n_tokens)
        whole = np.concatenate([self._tokens, new])
        if len(whole) == 0:
            return 0
        request = self._run(self._engine.feed(whole, owner=self.owner, priority=self.priority))
        self._set(whole)
        return len(whole) - request.cached_tokens

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` tokens. Costs nothing: cells that nobody needs go when room is wanted."""
        self._set(self._tokens[: check_int("n", n, 0, len(self))].copy())

    @overload
    def fork(self) -> Sequence: ...
    @overload
    def fork(self, n: int) -> list[Sequence]: ...
    def fork(self, n: int | None = None) -> Sequence | list[Sequence]:
        """A sequence of the same tokens, or a list of ``n``. They share every cell; no data is copied."""
        count = 1 if n is None else check_int("n", n, 0, 1_000_000)
        made = [
            Sequence(self._engine, self._tokens, owner=self.owner, priority=self.priority)
            for _ in range(count)
        ]
        for fork in made:
            fork._logits = self._logits
        return made[0] if n is None else made

    def _set(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._logits = None
        if self._pin is not None:
            self._pin = self._engine.pin(tokens, self._pin)

    # --- what the model makes of it

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """The logits that follow its last token, float32 (n_vocab,); computed when first asked for."""
        if self._logits is None:
            self._logits = self._want("logits")
        return self._logits

    def embed(self) -> npt.NDArray[np.float32]:
        """The embedding of its last token, or of the whole where the context pools; float32 (n_embd,)."""
        return self._want("embedding")

    def score(self, tokens: Any) -> npt.NDArray[np.float32]:
        """The log-probability of each of ``tokens``, given this sequence and those before it; float32 (n,)."""
        new = as_tokens(tokens, self._engine.vocab.n_tokens)
        if len(self) == 0:
            raise InvalidArgumentError(
                "the sequence is empty: the first token of a text has no probability; extend() it"
            )
        if len(new) == 0:
            return np.empty(0, dtype=np.float32)
        request = self._engine.feed(
            np.concatenate([self._tokens, new]),
            want="logprobs",
            want_from=len(self),
            owner=self.owner,
            priority=self.priority,
        )
        return self._run(request).job.wanted("logprobs")

    def _want(self, what: str) -> npt.NDArray[np.float32]:
        if len(self) == 0:
            raise InvalidArgumentError(f"the sequence is empty: it has no {what}; extend() it")
        request = self._engine.feed(self._tokens, want=what, owner=self.owner, priority=self.priority)
        return self._run(request).job.wanted(what)

    def _run(self, request: Request) -> Request:
        with Stream(self._engine, request) as stream:
            for _ in stream:
                pass
        return request

    def generate(self, params: GenerationParams | None = None, **kwargs: Any) -> Completion:
        """Generate from here, and append what was sampled."""
        settings = GenerationParams.from_kwargs(params, kwargs, where="Sequence.generate()")
        if len(self) == 0:
            raise InvalidArgumentError("the sequence is empty: there is nothing to continue; extend() it")
        request = self._engine.submit(self._tokens, settings, owner=self.owner, priority=self.priority)[0]
        completion = exhaust(Stream(self._engine, request))
        self._set(np.concatenate([self._tokens, completion.tokens]))
        return completion

    # --- staying

    @property
    def pinned(self) -> bool:
        """Whether ``pin`` keeps its cells."""
        return self._pin is not None

    def pin(self) -> None:
        """Keep its cells in the KV memory until ``unpin``; computes them where they are not there."""
        if self._pin is None:
            self.extend(())
            self._pin = self._engine.pin(self._tokens)

    def unpin(self) -> None:
        """Let its cells go when room is wanted."""
        if self._pin is not None:
            self._engine.pin(np.empty(0, dtype=np.int32), self._pin)
            self._pin = None

    def __del__(self) -> None:
        if getattr(self, "_pin", None) is not None:
            self.unpin()
