"""The sampler chain that generation parameters describe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llama_runner.chat_types import GrammarTrigger
from llama_runner.core import SamplerChain, Vocab
from llama_runner.params import GenerationParams
from llama_runner.structured import constrain

__all__ = ["sampler_chain"]


def sampler_chain(
    params: GenerationParams,
    vocab: Vocab,
    seed: int,
    prompt: npt.NDArray[np.int32],
    *,
    triggers: Sequence[GrammarTrigger] | None = None,
) -> SamplerChain:
    """The chain that ``params`` describe, in llama.cpp's usual order, its penalties knowing the end of ``prompt``.

    With ``triggers`` the grammar binds the text from where one of them occurs.
    """
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
    # after the prompt was accepted: a constraint is about the answer alone
    if params.grammar is not None and triggers is not None:
        chain.grammar_lazy(
            vocab,
            params.grammar,
            patterns=[trigger.pattern for trigger in triggers if trigger.pattern is not None],
            tokens=[trigger.token for trigger in triggers if trigger.token is not None],
        )
    else:
        constrain(chain, vocab, params)
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
