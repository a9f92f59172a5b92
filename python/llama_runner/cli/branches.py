"""Several continuations of one prompt, decoded together: the cells of the prompt are computed once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_runner.errors import InvalidArgumentError
from llama_runner.streaming import TextAssembler

if TYPE_CHECKING:
    import numpy.typing as npt

    from llama_runner.core import Model, SamplerChain, Vocab

__all__ = ["ForkResult", "fork_branches"]

_N_BATCH = 512
_TEMPERATURE = 0.8
_TOP_K = 40
_TOP_P = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class ForkResult:
    """The branches, and what they cost."""

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    prompt_tokens: int
    """Tokens of the prompt, each computed once."""
    shared_tokens: int
    """Tokens of the prompt that the other branches did not have to compute."""
    decoded_tokens: int
    """Rows decoded after the prompt, over all branches."""
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all branches together."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        branches = [
            {"text": text, "tokens": list(tokens)}
            for text, tokens in zip(self.texts, self.tokens, strict=True)
        ]
        return {
            "branches": branches,
            "prompt_tokens_computed": self.prompt_tokens,
            "prompt_tokens_shared": self.shared_tokens,
            "decoded_tokens": self.decoded_tokens,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "tokens_per_second": self.tokens_per_second,
        }


class _Branch:
    """One continuation: a sequence in the cache, a sampler with a seed of its own, and its text."""

    def __init__(
        self, index: int, vocab: Vocab, sampler: SamplerChain, on_text: Callable[[int, str], object] | None
    ) -> None:
        self.index = index
        self.sampler = sampler
        self.tokens: list[int] = []
        self.text = ""
        self._vocab = vocab
        self._on_text = on_text
        self._assembler = TextAssembler()

    def take(self, token: int) -> bool:
        """Add the token; False when it ends the branch."""
        if self._vocab.is_eog(token):
            return False
        self.tokens.append(token)
        self._show(self._assembler.push(self._vocab.token_to_piece(token, special=False)))
        return True

    def finish(self) -> None:
        self._show(self._assembler.flush())

    def _show(self, text: str) -> None:
        self.text += text
        if text and self._on_text is not None:
            self._on_text(self.index, text)


def fork_branches(
    model: Model,
    prompt_tokens: Sequence[int],
    n_branches: int = 4,
    *,
    max_tokens: int = 64,
    seed: int = 0,
    n_threads: int | None = None,
    on_text: Callable[[int, str], object] | None = None,
) -> ForkResult:
    """Continue ``prompt_tokens`` in ``n_branches`` ways, each beginning with another token.

    The prompt is decoded once, in sequence 0. ``seq_cp`` then lets the other sequences see the same
    cells, and each step decodes one row for every branch that goes on, in one batch. ``on_text`` gets
    the branch's index and its next text.
    """
    from llama_runner.core import Batch, Context, SamplerChain

    n_prompt = len(prompt_tokens)
    if n_prompt < 1 or n_branches < 1 or max_tokens < 1:
        raise InvalidArgumentError(
            f"a fork needs at least one token, branch and step, not {n_prompt}, {n_branches} and {max_tokens}"
        )
    vocab = model.vocab
    context = Context(
        model,
        n_ctx=n_prompt + n_branches * max_tokens,
        n_batch=_N_BATCH,
        n_seq_max=n_branches,
        n_threads=n_threads,
        kv_unified=True,  # one pool of cells: with one for each sequence, seq_cp would copy them
    )
    with context:
        batch = Batch(max(_N_BATCH, n_branches))
        start = time.perf_counter()
        for begin in range(0, n_prompt, _N_BATCH):
            batch.clear()
            batch.add_sequence(prompt_tokens[begin : begin + _N_BATCH], pos=begin, seq_id=0, logits="last")
            context.decode(batch)
        firsts = _first_tokens(context.logits(-1), vocab, n_branches, seed)
        prefill_seconds = time.perf_counter() - start

        branches = []
        for index in range(n_branches):
            if index:
                context.memory.seq_cp(0, index, 0, -1)
            sampler = SamplerChain().top_k(_TOP_K).top_p(_TOP_P).temp(_TEMPERATURE).dist(seed=seed + index)
            branches.append(_Branch(index, vocab, sampler, on_text))

        start = time.perf_counter()
        decoded = 0
        live = [branch for branch, token in zip(branches, firsts, strict=True) if branch.take(token)]
        for position in range(n_prompt, n_prompt + max_tokens - 1):
            if not live:
                break
            batch.clear()
            for branch in live:
                batch.add(branch.tokens[-1], position, [branch.index], logits=True)
            context.decode(batch)
            decoded += len(live)
            # Row r of the batch is the r-th branch that is still going on.
            live = [b for row, b in enumerate(live) if b.take(b.sampler.sample(context, row))]
        decode_seconds = time.perf_counter() - start
    for branch in branches:
        branch.finish()
    return ForkResult(
        texts=tuple(branch.text for branch in branches),
        tokens=tuple(tuple(branch.tokens) for branch in branches),
        prompt_tokens=n_prompt,
        shared_tokens=(n_branches - 1) * n_prompt,
        decoded_tokens=decoded,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )


def _first_tokens(logits: npt.NDArray[np.float32], vocab: Vocab, count: int, seed: int) -> list[int]:
    """``count`` different tokens from one row of logits, drawn without replacement.

    Adding Gumbel noise to the logits and taking the highest draws exactly so. A token that would end
    the branch before it began is passed over.
    """
    candidates = np.argsort(logits)[::-1][: max(_TOP_K, count)]
    candidates = np.array([token for token in candidates if not vocab.is_eog(int(token))])
    noise = np.random.default_rng(seed).gumbel(size=len(candidates))
    drawn = np.argsort(logits[candidates] / _TEMPERATURE + noise)[::-1][:count]
    if len(drawn) < count:
        raise InvalidArgumentError(
            f"{count} branches need {count} different tokens, and there are {len(drawn)}"
        )
    return [int(token) for token in candidates[drawn]]
