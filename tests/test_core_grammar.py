"""``SamplerChain.grammar``: text that keeps to a GBNF grammar, and grammars that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import errors
from llama_runner.core import Model, SamplerChain, Vocab


@pytest.fixture
def vocab(tiny_model: TinyModelFactory) -> Vocab:
    return Model(tiny_model("llama")).vocab


def generate(chain: SamplerChain, vocab: Vocab, logits: np.ndarray, most: int = 40) -> str:
    tokens: list[int] = []
    while len(tokens) < most:
        token = chain.apply(logits)
        if vocab.is_eog(token):
            break
        chain.accept(token)
        tokens.append(token)
    return vocab.detokenize_bytes(tokens).decode()


def test_a_grammar_is_kept_to_the_end(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    grammar = 'root ::= "yes" | "no, " [0-9]{3} "."'
    seen = {generate(SamplerChain().grammar(vocab, grammar).dist(seed), vocab, flat) for seed in range(40)}
    assert "yes" in seen
    others = seen - {"yes"}
    assert others
    assert all(len(text) == 8 and text.startswith("no, ") and text[4:7].isdigit() for text in others)


def test_a_grammar_with_another_root(vocab: Vocab) -> None:
    chain = SamplerChain().grammar(vocab, 'root ::= "a"\nother ::= "bbb"', root="other").greedy()
    assert generate(chain, vocab, np.zeros(len(vocab), np.float32)) == "bbb"


def test_a_token_against_the_grammar_breaks_the_chain_until_reset(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    wrong = int(vocab.tokenize("z", add_special=False)[-1])
    for bad in (wrong, vocab.eos, len(vocab), 2**31 - 1):
        with pytest.raises(errors.SamplingError):
            chain.accept(bad)
        with pytest.raises(errors.SamplingError, match="reset"):
            chain.apply(flat)
        with pytest.raises(errors.SamplingError, match="reset"):
            chain.top_k(3)
        chain.reset()
        assert generate(chain, vocab, flat) == "ab"
        chain.reset()


@pytest.mark.parametrize(
    "grammar",
    ["", "  ", "root", "root ::= (", "root ::= nothing", 'x ::= "a"', 'root ::= root "a"', "root ::= [a"],
)
def test_grammars_that_cannot_be_parsed(vocab: Vocab, grammar: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="grammar"):
        SamplerChain().grammar(vocab, grammar)


@pytest.mark.parametrize("wrong", [None, 3, ["root"], object()])
def test_grammars_of_a_wrong_type(vocab: Vocab, wrong: object) -> None:
    for arguments, name in (((wrong,), "grammar"), (('root ::= "a"', wrong), "root")):
        with pytest.raises(errors.ArgumentTypeError, match=name):
            SamplerChain().grammar(vocab, *arguments)


def test_a_clone_has_a_state_of_its_own_and_outlives_its_original(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    token = chain.apply(flat)
    copy = chain.clone()
    chain.accept(token)
    assert chain.apply(flat) != token
    assert copy.apply(flat) == token
    del chain
    assert generate(copy, vocab, flat) == "ab"
