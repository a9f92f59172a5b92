"""``SamplerChain.grammar``: text that keeps to a GBNF grammar, and grammars that are refused."""

from __future__ import annotations

import re
from pathlib import Path

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
    for bad in (wrong, vocab.eos):
        with pytest.raises(errors.SamplingError):
            chain.accept(bad)
        with pytest.raises(errors.SamplingError, match="reset"):
            chain.apply(flat)
        with pytest.raises(errors.SamplingError, match="reset"):
            chain.top_k(3)
        chain.reset()
        assert generate(chain, vocab, flat) == "ab"
        chain.reset()


def test_a_token_outside_the_vocabulary_changes_nothing(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    for bad in (len(vocab), 2**31 - 1):
        with pytest.raises(errors.IndexOutOfRangeError, match=str(bad)):
            chain.accept(bad)
    assert generate(chain, vocab, flat) == "ab"


REFUSED = {
    "": "empty",
    "  ": "empty",
    "# only a comment": "no rule 'root'",
    "root": "expecting ::=",
    "root ::= (": r"expecting '\)'",
    "root ::= nothing": "'nothing' is not defined",
    'x ::= "a"': "no rule 'root'",
    'root ::= root "a"': "left recursion",
    'root ::= a\na ::= b\nb ::= "" a "x"': "left recursion",
    # what llama.cpp does not see, and what it then loops in
    'root ::= n root "x" | "y"\nn ::= e e\ne ::= "z" | ""': "left recursion",
    "root ::= [a": "end of input",
    'root ::= "a"{5,2}': "repeats",
    'root ::= "a"{2,5}{5,2}': "repeats",
    'root ::= "a"{ 5 #\r, 2}': "repeats",
    'root ::= "a"{3000}': "repetitions",
    f'root ::= "{"x" * 1000}"{{2000}}': "elements",
    "root ::= <[548]>": "no token",
    "root ::= a0\n"
    + "".join(f"a{i} ::= a{i + 1} a{i + 1}\n" for i in range(60))
    + 'a60 ::= "x" | ""': "chains|ways",
    "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(5000)) + 'a5000 ::= "x"': "chains",
}


@pytest.mark.parametrize("grammar", REFUSED)
def test_grammars_that_are_refused(vocab: Vocab, grammar: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="grammar") as caught:
        SamplerChain().grammar(vocab, grammar)
    assert re.search(REFUSED[grammar], str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 400
    assert capfd.readouterr() == ("", "")  # llama.cpp's own parser would write to stderr


def test_what_looks_like_a_bad_repetition_in_a_literal(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    grammar = r"""# {5,2}
root ::= "a{5,2}\"" [}{5,2}]{2}  # "
"""
    assert generate(SamplerChain().grammar(vocab, grammar).greedy(), vocab, flat).startswith('a{5,2}"')


def test_the_vendored_grammars(vocab: Vocab, llama_cpp_dir: Path) -> None:
    flat = np.random.default_rng(0).normal(size=len(vocab)).astype(np.float32)
    paths = sorted((llama_cpp_dir / "grammars").glob("*.gbnf"))
    assert len(paths) > 5
    for path in paths:
        chain = SamplerChain().grammar(vocab, path.read_bytes()).top_k(40).dist(1)
        for _ in range(5):
            token = chain.apply(flat)
            if vocab.is_eog(token):
                break
            chain.accept(token)


# ---------------------------------------------------------------------------------------------------- lazy grammars


def accept_text(chain: SamplerChain, vocab: Vocab, text: str) -> None:
    for token in vocab.tokenize(text, add_special=False).tolist():
        chain.accept(token)


def test_a_lazy_grammar_waits_for_its_pattern(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    flat[300] = 1.0
    chain = SamplerChain().grammar_lazy(vocab, 'root ::= "<go>" "ab"', patterns=["(<go>)"]).greedy()
    for _ in range(3):
        assert chain.apply(flat) == 300  # free
        accept_text(chain, vocab, "anything ")
    accept_text(chain, vocab, "<go>")
    copy = chain.clone()
    assert generate(chain, vocab, flat) == "ab"
    assert generate(copy, vocab, flat) == "ab"
    chain.reset()
    assert chain.apply(flat) == 300


def test_a_lazy_grammar_waits_for_its_token(vocab: Vocab) -> None:
    flat = np.zeros(len(vocab), np.float32)
    flat[300] = 1.0
    trigger = int(vocab.tokenize("z", add_special=False)[-1])
    chain = SamplerChain().grammar_lazy(vocab, 'root ::= "z" "ab"', tokens=[trigger]).greedy()
    chain.accept(300)
    assert chain.apply(flat) == 300
    chain.accept(trigger)
    assert generate(chain, vocab, flat) == "ab"


HARD = [
    r"[\s\S]*?(<go>)[\s\S]*",
    "(<go>)",
    r"(?:a|b|c|d|[^<])*(<go>)",
    "(x+x+)+y",
    "(" * 16 + "x" + ")" * 16 + "*y",
]


@pytest.mark.parametrize("pattern", HARD)
def test_waiting_long_is_no_danger(vocab: Vocab, pattern: str) -> None:
    # the usual std::regex recurses for each byte of what it looks at, and goes back 2^n times
    chain = SamplerChain().grammar_lazy(vocab, 'root ::= "<go>" "ab"', patterns=[pattern]).greedy()
    token = int(vocab.tokenize("x", add_special=False)[-1])
    others = vocab.tokenize("the world once upon a time " * 4, add_special=False).tolist()
    for other in (others * 4)[:200] + [token] * 200:
        chain.accept(other)
    if "<go>" in pattern:
        accept_text(chain, vocab, "<go>")
        assert generate(chain, vocab, np.zeros(len(vocab), np.float32)) == "ab"


def test_a_pattern_that_says_where_output_begins_does_not_wait_forever(vocab: Vocab) -> None:
    chain = SamplerChain().grammar_lazy(vocab, 'root ::= "a"', patterns=["^never$"]).greedy()
    token = int(vocab.tokenize("x", add_special=False)[-1])
    for _ in range(4097):
        chain.accept(token)
    with pytest.raises(errors.SamplingError, match="4096"):
        chain.accept(token)
    chain.reset()
    chain.accept(token)


@pytest.mark.parametrize(
    "bad", ["(", "[a", "a{99999999999}", "", "x" * 1001, "(" * 17 + ")" * 17, "a\0b", r"\p{x}", "*"]
)
def test_patterns_that_are_refused(vocab: Vocab, bad: str) -> None:
    chain = SamplerChain()
    with pytest.raises(errors.InvalidArgumentError):
        chain.grammar_lazy(vocab, 'root ::= "a"', patterns=[bad])
    assert len(chain) == 0


def test_triggers_of_a_wrong_kind(vocab: Vocab) -> None:
    def lazy(**options: object) -> object:
        return SamplerChain().grammar_lazy(vocab, 'root ::= "a"', **options)

    for options in (
        {"patterns": 3},
        {"patterns": [3]},
        {"tokens": 3},
        {"tokens": ["a"]},
        {"patterns": [None]},
    ):
        with pytest.raises(errors.ArgumentTypeError):
            lazy(**options)
    with pytest.raises(errors.InvalidArgumentError, match="trigger"):
        lazy()
    for token in (-1, len(vocab)):
        with pytest.raises(errors.IndexOutOfRangeError):
            lazy(tokens=[token])


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
