"""Hazards of samplers and grammars."""

from __future__ import annotations

import gc

import numpy as np

from hostile.hazard import World, hazard, rows
from llama_runner import errors
from llama_runner.core import Batch, SamplerChain, Stepper

FLAT = np.zeros(548, np.float32)


def checks(chain: SamplerChain) -> None:
    """The chain selects, accepts and copies itself."""
    chain.accept(chain.apply(FLAT))
    chain.clone().apply(FLAT)


@hazard(
    "llama_context::output_resolve_row, llama_sampler_sample",
    "sampling a row without logits",
    "Context.logits_row",
)
def sampling_a_row_without_logits(w: World) -> None:
    chain = SamplerChain().greedy()
    with w.context() as fresh, w.refuses(errors.IndexOutOfRangeError):
        chain.sample(fresh)
    ctx = w.fed()
    for i in (0, 6, 8, -2, 2**31 - 1, -(2**31)):
        with w.refuses(errors.IndexOutOfRangeError):
            chain.sample(ctx, i)
    assert chain.sample(ctx) == chain.apply(ctx.logits())
    w.works(ctx)


@hazard(
    "llama_sampler_sample, llama_sampler_apply",
    "a chain whose last link selects nothing, and an empty chain",
    "SamplerChain.pick",
)
def chain_that_selects_nothing(w: World) -> None:
    ctx = w.fed()
    for chain in (SamplerChain(), SamplerChain().top_k(3), SamplerChain().greedy().temp(1.0)):
        with w.refuses(errors.InvalidArgumentError, "selects nothing"):
            chain.sample(ctx)
        with w.refuses(errors.InvalidArgumentError, "selects nothing"):
            chain.apply(FLAT)
        checks(chain.greedy())
    w.works(ctx)


@hazard(
    "llama_sampler_chain_add",
    "one link in two chains (freed twice), a chain in a chain, a link that is no chain (SIGSEGV)",
    "links are made by the chain that owns them",
)
def links_belong_to_one_chain(w: World) -> None:
    chains = [SamplerChain().top_k(5).temp(0.5).dist(1)]
    chains += [chains[0].clone() for _ in range(10)]
    checks(chains[0])
    del chains[0]
    gc.collect()
    for chain in chains:
        checks(chain)
    assert not {name for name in dir(SamplerChain) if "add" in name}


@hazard(
    "llama_perf_sampler, llama_sampler_clone",
    "a sampler that is no chain, or that cannot be cloned",
    "SamplerChain holds a chain from the start",
)
def chains_that_were_never_made(w: World) -> None:
    class Forgetful(SamplerChain):
        def __init__(self) -> None:
            pass

    chain = Forgetful()
    for call in (chain.greedy, chain.clone, chain.reset, lambda: chain.apply(FLAT), lambda: chain.accept(1)):
        with w.refuses(errors.InvalidArgumentError, "never made"):
            call()


@hazard(
    "llama_sampler_dist_apply", "every logit -inf (the last candidate is drawn), or NaN", "SamplerChain.pick"
)
def nothing_left_to_select(w: World) -> None:
    for build in (SamplerChain().greedy, lambda: SamplerChain().dist(1), lambda: SamplerChain().top_k(3).dist(1),
                  lambda: SamplerChain().mirostat_v2(seed=1),
                  lambda: SamplerChain().top_p(0.9).temp(0.5).dist(1)):  # fmt: skip
        chain = build()
        for bad in (-np.inf, np.nan):
            with w.refuses(errors.SamplingError):
                chain.apply(np.full(548, bad, np.float32))
        checks(chain)


@hazard(
    "llama_sampler_softmax_impl, llama_sampler_top_k_impl",
    "no candidates, and numbers at the edges of float",
    "SamplerChain.apply, pick",
)
def logits_at_the_edges(w: World) -> None:
    special = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 0, 1e-45, -1], np.float32)
    rng = np.random.default_rng(0)
    links = {
        "greedy": (), "dist": (1,), "mirostat_v2": (), "top_k": (40,), "top_p": (0.9,), "min_p": (0.1,),
        "typical": (0.9,),
        "top_n_sigma": (1.0,), "xtc": (1.0, 0.0), "temp": (0.5,), "temp_ext": (1.0, 0.5),
    }  # fmt: skip
    for name, arguments in links.items():
        chain = getattr(SamplerChain(), name)(*arguments)
        chain = chain if name == "greedy" else chain.dist(1)
        with w.refuses(errors.InvalidArgumentError, "empty"):
            chain.apply(np.zeros(0, np.float32))
        for size in (1, 2, 127, 548, 5000):
            try:
                assert 0 <= chain.apply(rng.choice(special, size)) < size
            except errors.SamplingError:
                chain.reset()
        checks(chain)


@hazard(
    "llama_sampler_top_k_apply and its like",
    "parameters out of range: negative, NaN, infinite, 2**64",
    "the link's method",
)
def sampler_parameters_out_of_range(w: World) -> None:
    vocab = w.model().vocab
    chain = SamplerChain()
    for call in (
        lambda: chain.top_k(-1), lambda: chain.top_k(2**31), lambda: chain.top_p(float("nan")),
        lambda: chain.top_p(1.5),
        lambda: chain.min_p(-0.1), lambda: chain.typical(2.0), lambda: chain.temp(-1.0),
        lambda: chain.temp(float("inf")),
        lambda: chain.dist(2**32), lambda: chain.dist(-1), lambda: chain.xtc(2.0, 0.1), lambda: chain.top_p(0.5, 0),
        lambda: chain.top_p(0.5, 2**63), lambda: chain.penalties(vocab, -1), lambda: chain.penalties(vocab, 2**40),
        lambda: chain.penalties(vocab, 64, 0.0), lambda: chain.mirostat_v2(-1.0),
    ):  # fmt: skip
        with w.refuses(errors.InvalidArgumentError):
            call()
    assert len(chain) == 0
    checks(chain.greedy())


@hazard(
    "llama_sampler_logit_bias_apply, llama_sampler_penalties_accept",
    "a biased or accepted token outside the vocabulary",
    "SamplerChain.logit_bias, accept",
)
def biases_of_no_token(w: World) -> None:
    vocab = w.model().vocab
    for token in (-1, len(vocab), 2**31 - 1):
        with w.refuses(errors.IndexOutOfRangeError, "token"):
            SamplerChain().logit_bias(vocab, {token: 1.0})
    chain = SamplerChain().penalties(vocab, presence=1.0).logit_bias(vocab, {5: 1.0}).greedy()
    with w.refuses(errors.InvalidArgumentError, "token"):
        chain.accept(-1)
    with w.refuses(errors.IndexOutOfRangeError, "token"):
        chain.accept(2**31 - 1)
    checks(chain)


# ---------------------------------------------------------------------------------------- grammars


@hazard(
    "llama_grammar_parser::parse, parse_sequence, parse_rule, parse_char, parse_hex, parse_name, parse_int",
    "grammars that do not parse",
    "SamplerChain.grammar: NULL and exceptions become a typed error",
)
def grammars_that_do_not_parse(w: World) -> None:
    vocab = w.model().vocab
    for text in (
        "", "   ", "root", "root ::=", "root ::= (", 'root ::= "a', "root ::= [a", 'root ::= "\\q"', 'root ::= "\\x1"',
        "root ::= b", "root ::= *", 'root ::= "a"{', 'root ::= "a"{2,1}', 'root ::= "a"{99999999999999999999}',
        "::=", "root ::= <[99999999999]>", "root ::= <[1", "root ::= <x>", "root ::= <", 'root ::= "a" )',
        '"a" ::= root',
        "root ::= root", "root ::= root \"a\"", "root ::= [z-a]", "root ::= \"\\UFFFFFFFF\"",
    ):  # fmt: skip
        try:
            SamplerChain().grammar(vocab, text).greedy().apply(FLAT)
        except (errors.InvalidArgumentError, errors.SamplingError):
            pass
    checks(SamplerChain().grammar(vocab, 'root ::= "a"+').greedy())


@hazard(
    "llama_sampler_init_grammar_impl, llama_grammar_init_impl",
    "a root that is NULL, empty, or no rule",
    "SamplerChain.grammar",
)
def grammar_without_its_root(w: World) -> None:
    vocab = w.model().vocab
    for root in ("", "start", "\x01"):
        with w.refuses(errors.InvalidArgumentError):
            SamplerChain().grammar(vocab, 'root ::= "a"', root)
    with w.refuses(errors.ArgumentTypeError):
        SamplerChain().grammar(vocab, 'root ::= "a"', None)
    with w.refuses(errors.ArgumentTypeError):
        SamplerChain().grammar(vocab, None)


@hazard(
    "llama_grammar_parser::parse_alternates, llama_grammar_advance_stack",
    "a grammar nested or chained very deep (SIGSEGV: the stack overflows)",
    "_syntax.check_grammar",
)
def deep_grammars(w: World) -> None:
    vocab = w.model().vocab
    deep = "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000
    chained = "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(50_000)) + 'a50000 ::= "a"'
    for text in (deep, chained):
        with w.refuses(errors.InvalidArgumentError, "at most"):
            SamplerChain().grammar(vocab, text)
    at_the_limit = "root ::= " + "(" * 199 + '"a"' + ")" * 199
    SamplerChain().grammar(vocab, at_the_limit).greedy().apply(FLAT)


@hazard(
    "llama_grammar_accept_impl, llama_grammar_accept_token",
    "EOG accepted before the grammar's end (abort)",
    "SamplerChain.accept_token: the last net; the chain wants reset()",
)
def end_of_generation_too_early(w: World) -> None:
    vocab = w.model().vocab
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    with w.refuses(errors.SamplingError):
        chain.accept(vocab.eos)
    with w.refuses(errors.SamplingError, "reset()"):
        chain.apply(FLAT)
    chain.reset()
    checks(chain)


@hazard(
    "llama_grammar_accept_str, llama_grammar_apply_impl",
    "a token that the grammar rules out, and apply after it (abort)",
    "SamplerChain.accept_token: broken until reset()",
)
def apply_after_a_failed_accept(w: World) -> None:
    vocab = w.model().vocab
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    with w.refuses(errors.SamplingError):
        chain.accept(int(vocab.tokenize("z", False)[0]))
    for call in (lambda: chain.apply(FLAT), lambda: chain.accept(1), chain.clone):
        with w.refuses(errors.SamplingError, "reset()"):
            call()
    chain.reset()
    checks(chain)


@hazard(
    "llama_vocab::token_get_text, llama_grammar_accept_impl",
    "a grammar that is told a token outside the vocabulary (exception)",
    "SamplerChain.accept_token",
)
def grammar_accepts_no_token(w: World) -> None:
    vocab = w.model().vocab
    chain = SamplerChain().grammar(vocab, 'root ::= "ab"').greedy()
    for token in (len(vocab), 2**31 - 1):
        with w.refuses(errors.IndexOutOfRangeError, "token"):
            chain.accept(token)
    checks(chain)


@hazard(
    "llama_grammar_reject_candidates",
    "logits of another vocabulary's length, under a grammar",
    "SamplerChain.check_row",
)
def grammar_on_a_row_of_another_length(w: World) -> None:
    vocab = w.model().vocab
    for size in (1, 100, 547, 549, 5000):
        chain = SamplerChain().grammar(vocab, "root ::= [a-z]+").greedy()
        with w.refuses(errors.InvalidArgumentError, "548 tokens"):
            chain.apply(np.zeros(size, np.float32))
    checks(SamplerChain().grammar(vocab, "root ::= [a-z]+").greedy())


@hazard("llama_sampler_init_grammar_impl", "a grammar whose model is closed under it", "SamplerChain.enter")
def grammar_of_a_closed_model(w: World) -> None:
    from llama_runner.core import Model

    model = Model(w.path())
    chain = SamplerChain().grammar(model.vocab, 'root ::= "a"').greedy()
    model.close()
    for call in (lambda: chain.apply(FLAT), lambda: chain.accept(1), chain.clone, chain.reset):
        with w.refuses(errors.ClosedError):
            call()


@hazard(
    "llama_context::decode, llama_sampler_sample",
    "a step of one sequence with bad tokens, positions and rows",
    "Stepper.advance, select",
)
def stepper_with_bad_values(w: World) -> None:
    ctx = w.fed()
    step = Stepper(ctx, SamplerChain().greedy(), ctx.model.vocab)
    for token, pos, kind in (
        (ctx.n_vocab, 8, errors.IndexOutOfRangeError), (-1, 8, errors.InvalidArgumentError),
        (300, 9, errors.InvalidArgumentError), (300, -1, errors.InvalidArgumentError),
        (300, 2**31 - 1, errors.InvalidArgumentError),
    ):  # fmt: skip
        with w.refuses(kind):
            step.advance(token, pos)
    with w.refuses(errors.IndexOutOfRangeError):
        step.select(5)
    token, piece, ends = step.advance(300, 8)
    assert 0 <= token < ctx.n_vocab and isinstance(piece, bytes) and isinstance(ends, bool)
    for seq in (-1, 2):
        with w.refuses(errors.IndexOutOfRangeError):
            Stepper(ctx, SamplerChain().greedy(), ctx.model.vocab, seq)
    w.works(ctx)


@hazard(
    "llama_batch_init",
    "a batch of no rows, of 2**31, and one that is full",
    "Batch.__init__, Batch._check_room",
)
def batches_of_impossible_sizes(w: World) -> None:
    for n in (0, -1, 2**31, 2**63):
        with w.refuses(errors.InvalidArgumentError, "capacity"):
            Batch(n)
    batch = rows(4)
    with w.refuses(errors.InvalidArgumentError, "do not fit"):
        batch.add(1, 4, 0)
    with w.refuses(errors.InvalidArgumentError, "do not fit"):
        batch.add_sequence([1, 2, 3])
    assert len(batch) == 4
