"""``SamplerLinks``: what a ``SamplerChain`` is made of, a method for each kind of link."""

import os

import cython
import numpy as np

from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, int32_t, uint32_t
from libc.stdlib cimport free, malloc

from llama_runner._c.llama cimport (
    llama_logit_bias,
    llama_sampler,
    llama_sampler_chain_add,
    llama_sampler_chain_default_params,
    llama_sampler_chain_get,
    llama_sampler_chain_init,
    llama_sampler_chain_n,
    llama_sampler_chain_params,
    llama_sampler_chain_remove,
    llama_sampler_free,
    llama_sampler_init_adaptive_p,
    llama_sampler_init_dist,
    llama_sampler_init_dry,
    llama_sampler_init_greedy,
    llama_sampler_init_infill,
    llama_sampler_init_logit_bias,
    llama_sampler_init_min_p,
    llama_sampler_init_mirostat,
    llama_sampler_init_mirostat_v2,
    llama_sampler_init_penalties,
    llama_sampler_init_temp,
    llama_sampler_init_temp_ext,
    llama_sampler_init_top_k,
    llama_sampler_init_top_n_sigma,
    llama_sampler_init_top_p,
    llama_sampler_init_typical,
    llama_sampler_init_xtc,
    llama_sampler_name,
    llama_token,
    llama_vocab_eos,
    llama_vocab_eot,
)
from llama_runner._c.native cimport (
    LR_FIRST_GREEDY,
    LR_FIRST_MIN_P,
    LR_FIRST_OTHER,
    LR_FIRST_TOP_K,
    LR_PICK_DONE,
    LR_SAMPLER,
    lr_constraint_link,
    lr_forked,
    lr_grammar_new,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_link_bind,
    lr_link_new,
    lr_live_add,
    lr_picker_bias,
    lr_picker_free,
    lr_picker_new,
    lr_picker_plan,
    lr_plan,
)
from llama_runner.core._native cimport drain_log, ensure_runtime, enter_exclusive, enter_shared, take_string
from llama_runner.core.constraint cimport Constraint
from llama_runner.core.link cimport Link, PythonLink, describe, on_link
from llama_runner.core.vocab cimport Vocab

from llama_runner import errors
from llama_runner._check import check_float, check_int, check_text
from llama_runner._syntax import check_grammar, check_trigger

cdef float FLOAT_MAX = 3.0e38
cdef int MAX_INFILL = 1024  # candidates: `infill` compares each with each
cdef int MAX_WINDOW = 1 << 24
cdef int MAX_BREAKER = 40  # bytes; llama.cpp cuts longer ones off
# the last link must be one of these
cdef frozenset SELECTING = frozenset(["greedy", "dist", "mirostat", "mirostat_v2", "adaptive_p"])
# links that change the logits of accepted or biased tokens and of no others
cdef frozenset SPARSE = frozenset(["penalties", "dry", "logit_bias"])


@cython.no_gc_clear  # __dealloc__ frees native links that point into what is held
cdef class SamplerLinks:
    """The links of a chain, and the methods that add them; each returns the chain."""

    def __cinit__(self, *args, **options):
        self.guard = lr_guard_new()
        self.picker = lr_picker_new()
        self.chain = []
        self.inside = []
        if self.guard == NULL or self.picker == NULL:
            raise MemoryError()

    def __init__(self, *, perf=False):
        cdef llama_sampler_chain_params params
        if self.ptr == NULL:
            ensure_runtime()
            params = llama_sampler_chain_default_params()
            self.perf_on = bool(perf)
            params.no_perf = not self.perf_on
            self.ptr = llama_sampler_chain_init(params)
            lr_live_add(LR_SAMPLER, 1)

    def __dealloc__(self):
        if self.ptr != NULL and not lr_forked():
            with nogil:
                llama_sampler_free(self.ptr)
            lr_live_add(LR_SAMPLER, -1)
        lr_picker_free(self.picker)
        lr_guard_free(self.guard)

    def __len__(self):
        return len(self.chain)

    def __repr__(self):
        return f"<SamplerChain {' '.join(map(repr, self.chain)) or 'empty'}>"

    # --- guards

    cdef int enter(self) except -1:
        """Keep other threads out of the chain, and the models that its links point into from being closed."""
        return self.admit(False, False)

    cdef int admit(self, bint broken, bint spent) except -1:
        """The same, where ``broken`` or ``spent`` says so for a chain that is."""
        enter_exclusive(self.guard, "sampler chain")
        try:
            if self.ptr == NULL:  # a subclass that did not call __init__
                raise errors.InvalidArgumentError("this SamplerChain was never made: call SamplerChain.__init__")
            if self.broken is not None and not broken:
                raise errors.SamplingError(f"this chain cannot go on; reset() it: {self.broken}")
            if self.spent and not spent:
                raise errors.InvalidArgumentError(
                    "this SamplerChain was attached to a context: llama.cpp cannot use it otherwise; use its clone()"
                )
            self.hold()
        except errors.LlamaRunnerError:
            self.leave()
            raise
        return 0

    cdef int hold(self) except -1:
        cdef Link link
        for link in self.chain:
            if link.vocab is not None:
                enter_shared(link.vocab.model.guard, "model")
                self.inside.append(link.vocab)
                link.vocab.model.check_open()
        return 0

    cdef void leave(self) noexcept:
        cdef Vocab vocab
        while self.inside:
            vocab = self.inside.pop()
            lr_guard_end_shared(vocab.model.guard)
        lr_guard_end_exclusive(self.guard)

    cdef int check_free(self, str what) except -1:
        if self.attached:
            raise errors.InvalidArgumentError(f"this chain is attached to a context: {what} a clone() of it")
        return 0

    # --- the list

    cdef object push(self, llama_sampler *link, Link made):
        if link == NULL:
            raise errors.OutOfMemoryError(f"llama.cpp could not make the sampler {made.name}")
        try:
            self.enter()
            try:
                self.check_free("add links to")
                self.check_fits(made)
                for token in made.biased or ():
                    if lr_picker_bias(self.picker, token) != <int> LR_PICK_DONE:
                        raise MemoryError()
                llama_sampler_chain_add(self.ptr, link)
                link = NULL  # the chain's now
                self.chain.append(made)
                self.replan()
            finally:
                self.leave()
        finally:
            if link != NULL:
                llama_sampler_free(link)
        return self

    cdef int check_fits(self, Link made) except -1:
        if made.n_vocab and self.n_vocab and made.n_vocab != self.n_vocab:
            raise errors.InvalidArgumentError(
                f"{made!r} is for a vocabulary of {made.n_vocab} tokens: this chain has links for one of {self.n_vocab}"
            )
        if made.name == "infill" and not few_candidates(self.chain):
            raise errors.InvalidArgumentError(
                f"infill compares each candidate with each: put a top_k of 1 to {MAX_INFILL} before it"
            )
        return 0

    cdef str native_name(self, int i):
        return llama_sampler_name(llama_sampler_chain_get(self.ptr, i)).decode()

    cdef int replan(self) except -1:
        """After the links changed: what follows from their order."""
        cdef lr_plan plan
        cdef Link link
        cdef int i, n = len(self.chain)
        cdef int first = n > 0 and (<Link> self.chain[0]).name == "constraint"
        plan.n_sparse = plan.k = 0
        plan.first = LR_FIRST_OTHER
        plan.p = 0
        plan.min_keep = 0
        plan.calls_back = any([(<Link> link).python is not None for link in self.chain])
        plan.constrained = first and not self.perf_on
        for i in range(first, n):
            link = self.chain[i]
            # a name with a question mark is that of a link that does nothing, by its arguments
            if link.name not in SPARSE and not self.native_name(i).startswith("?"):
                if link.name == "top_k":
                    plan.first = LR_FIRST_TOP_K
                    plan.k = link.arguments[0]
                elif link.name == "min_p":
                    plan.first = LR_FIRST_MIN_P
                    plan.p, plan.min_keep = link.arguments
                elif link.name == "greedy" and i == n - 1:
                    plan.first = LR_FIRST_GREEDY
                break
            plan.n_sparse += 1
        if self.perf_on:
            plan.first = LR_FIRST_OTHER  # upstream's own loop over the links is the one that is timed
        lr_picker_plan(self.picker, self.ptr, plan)
        self.n_vocab = max([(<Link> link).n_vocab for link in self.chain], default=0)
        self.selects = n > 0 and (<Link> self.chain[n - 1]).name in SELECTING
        return 0

    @property
    def links(self):
        """The links in order, as this package calls them: a tuple of str such as ``"top_k(40)"``."""
        return tuple(map(repr, self.chain))

    @property
    def names(self):
        """The links in order, as llama.cpp calls them: a tuple of str. Wraps ``llama_sampler_name``.

        ``?`` marks one that its arguments leave nothing to do; ``+`` or ``-`` one that a context computes, or cannot.
        """
        self.enter()
        try:
            return tuple([self.native_name(i) for i in range(len(self.chain))])
        finally:
            self.leave()

    def remove(self, i):
        """Take link ``i`` out and free it; -1 is the last. Wraps ``llama_sampler_chain_remove``.

        Raises IndexOutOfRangeError for an index that no link has, InvalidArgumentError for the top_k of an infill.
        """
        cdef int index = check_int("i", i, -(2**31), 2**31 - 1), n
        cdef llama_sampler *link
        self.enter()
        try:
            self.check_free("remove links of")
            n = len(self.chain)
            if not -n <= index < n:
                raise errors.IndexOutOfRangeError(f"i={index}: the chain has {n} links")
            index %= n
            rest = self.chain[:index] + self.chain[index + 1:]
            for at in range(len(rest)):
                if (<Link> rest[at]).name == "infill" and not few_candidates(rest[:at]):
                    raise errors.InvalidArgumentError(f"i={index}: the infill after it needs this top_k")
            link = llama_sampler_chain_remove(self.ptr, index)
            removed = self.chain.pop(index)
            llama_sampler_free(link)
            self.replan()
        finally:
            self.leave()
        del removed  # a callable, perhaps with code of its own in its __del__: only now

    # --- links that select a token

    def greedy(self):
        """Select the most likely token. Wraps ``llama_sampler_init_greedy``."""
        return self.push(llama_sampler_init_greedy(), describe("greedy"))

    def dist(self, seed=None):
        """Draw a token by its probability. Wraps ``llama_sampler_init_dist``.

        ``seed`` is from 0 to 2**32 - 2; None draws one, which ``seed`` then tells.
        """
        cdef uint32_t c_seed = check_seed(seed)
        return self.push(llama_sampler_init_dist(c_seed), describe("dist", (c_seed,), c_seed))

    def mirostat(self, Vocab vocab not None, tau=5.0, eta=0.1, m=100, seed=None):
        """Mirostat 1.0: draw so that the surprise stays near ``tau``. Wraps ``llama_sampler_init_mirostat``.

        ``m``, at least 2, is how many of the most likely tokens tell the shape of the distribution.
        """
        cdef float c_tau = check_float("tau", tau, 0, FLOAT_MAX)
        cdef float c_eta = check_float("eta", eta, 0, FLOAT_MAX)
        cdef int32_t c_m = check_int("m", m, 2, 1 << 24)
        cdef uint32_t c_seed = check_seed(seed)
        return self.push(
            llama_sampler_init_mirostat(vocab.n_tokens, c_seed, c_tau, c_eta, c_m),
            describe("mirostat", (c_tau, c_eta, c_m, c_seed), c_seed, vocab.n_tokens),
        )

    def mirostat_v2(self, tau=5.0, eta=0.1, seed=None):
        """Mirostat 2.0: draw so that the surprise stays near ``tau``. Wraps ``llama_sampler_init_mirostat_v2``."""
        cdef float c_tau = check_float("tau", tau, 0, FLOAT_MAX)
        cdef float c_eta = check_float("eta", eta, 0, FLOAT_MAX)
        cdef uint32_t c_seed = check_seed(seed)
        return self.push(
            llama_sampler_init_mirostat_v2(c_seed, c_tau, c_eta),
            describe("mirostat_v2", (c_tau, c_eta, c_seed), c_seed),
        )

    def adaptive_p(self, target, decay=0.9, seed=None):
        """Draw tokens whose probability is near ``target``, over time. Wraps ``llama_sampler_init_adaptive_p``.

        ``target`` is from 0 to 1, or negative to draw by probability alone; ``decay``, from 0 to 0.99, says how long
        earlier tokens count: about 1 / (1 - decay) of them. Put no more than a mild ``min_p`` before it.
        """
        cdef float c_target = check_float("target", target, -1, 1)
        cdef float c_decay = check_float("decay", decay, 0, 0.99)
        cdef uint32_t c_seed = check_seed(seed)
        return self.push(
            llama_sampler_init_adaptive_p(c_target, c_decay, c_seed),
            describe("adaptive_p", (c_target, c_decay, c_seed), c_seed),
        )

    # --- links that narrow or reshape the candidates

    def top_k(self, k):
        """Keep the ``k`` most likely; 0 keeps all. Wraps ``llama_sampler_init_top_k``."""
        cdef int32_t c_k = check_int("k", k, 0, 2**31 - 1)
        return self.push(llama_sampler_init_top_k(c_k), describe("top_k", (c_k,)))

    def top_p(self, p, min_keep=1):
        """Keep the most likely whose probabilities add up to ``p``. Wraps ``llama_sampler_init_top_p``."""
        cdef float c_p = check_float("p", p, 0, 1)
        cdef size_t keep = check_keep(min_keep)
        return self.push(llama_sampler_init_top_p(c_p, keep), describe("top_p", (short(c_p), keep)))

    def min_p(self, p, min_keep=1):
        """Drop what is less likely than ``p`` times the best. Wraps ``llama_sampler_init_min_p``."""
        cdef float c_p = check_float("p", p, 0, 1)
        cdef size_t keep = check_keep(min_keep)
        return self.push(llama_sampler_init_min_p(c_p, keep), describe("min_p", (short(c_p), keep)))

    def typical(self, p, min_keep=1):
        """Locally typical sampling. Wraps ``llama_sampler_init_typical``.

        Where the probability of a candidate is 0 (ruled out, or more than about 100 below the best) llama.cpp finds no
        entropy, and keeps the most likely up to ``p`` as top_p does.
        """
        cdef float c_p = check_float("p", p, 0, 1)
        cdef size_t keep = check_keep(min_keep)
        return self.push(llama_sampler_init_typical(c_p, keep), describe("typical", (short(c_p), keep)))

    def top_n_sigma(self, n):
        """Keep logits within ``n`` standard deviations of the best. Wraps ``llama_sampler_init_top_n_sigma``."""
        cdef float c_n = check_float("n", n, -1, FLOAT_MAX)
        return self.push(llama_sampler_init_top_n_sigma(c_n), describe("top_n_sigma", (short(c_n),)))

    def xtc(self, p, threshold, min_keep=1, seed=None):
        """Exclude top choices. Wraps ``llama_sampler_init_xtc``."""
        cdef float c_p = check_float("p", p, 0, 1)
        cdef float c_t = check_float("threshold", threshold, 0, 1)
        cdef size_t keep = check_keep(min_keep)
        cdef uint32_t c_seed = check_seed(seed)
        return self.push(
            llama_sampler_init_xtc(c_p, c_t, keep, c_seed),
            describe("xtc", (short(c_p), c_t, keep, c_seed), c_seed),
        )

    def temp(self, t):
        """Divide the logits by ``t``; 0 leaves the best alone. Wraps ``llama_sampler_init_temp``."""
        cdef float c_t = check_float("t", t, 0, FLOAT_MAX)
        return self.push(llama_sampler_init_temp(c_t), describe("temp", (short(c_t),)))

    def temp_ext(self, t, delta, exponent=1.0):
        """Dynamic temperature. Wraps ``llama_sampler_init_temp_ext``."""
        cdef float c_t = check_float("t", t, 0, FLOAT_MAX)
        cdef float c_d = check_float("delta", delta, 0, FLOAT_MAX)
        cdef float c_e = check_float("exponent", exponent, 0, FLOAT_MAX)
        return self.push(llama_sampler_init_temp_ext(c_t, c_d, c_e), describe("temp_ext", (short(c_t), c_d, c_e)))

    def infill(self, Vocab vocab not None):
        """Merge candidates that begin alike, and end where ending is likely. Wraps ``llama_sampler_init_infill``.

        For filling in the middle, after ``top_k`` (1 to 1024, which must be there) and ``top_p``. Raises
        ModelCapabilityError when the vocabulary has no end of turn or text.
        """
        cdef Link made = describe("infill", (), None, vocab.n_tokens)
        made.vocab = vocab
        enter_shared(vocab.model.guard, "model")
        try:
            vocab.check_open()
            if llama_vocab_eot(vocab.model.vocab_ptr) < 0 and llama_vocab_eos(vocab.model.vocab_ptr) < 0:
                raise errors.ModelCapabilityError("infill needs a token that ends a turn or text: this model has none")
            return self.push(llama_sampler_init_infill(vocab.model.vocab_ptr), made)
        finally:
            lr_guard_end_shared(vocab.model.guard)

    # --- links that change single tokens

    def penalties(self, Vocab vocab not None, last_n=64, repeat=1.0, frequency=0.0, presence=0.0):
        """Penalize the last ``last_n`` accepted tokens. Wraps ``llama_sampler_init_penalties``."""
        cdef int32_t n = check_int("last_n", last_n, 0, MAX_WINDOW)
        cdef float c_repeat = check_float("repeat", repeat, 1e-6, FLOAT_MAX)
        cdef float c_frequency = check_float("frequency", frequency, -FLOAT_MAX, FLOAT_MAX)
        cdef float c_presence = check_float("presence", presence, -FLOAT_MAX, FLOAT_MAX)
        return self.push(
            llama_sampler_init_penalties(vocab.n_tokens, n, c_repeat, c_frequency, c_presence),
            describe("penalties", (n, c_repeat, c_frequency, c_presence), None, vocab.n_tokens),
        )

    def dry(self, Vocab vocab not None, multiplier, base=1.75, allowed_length=2, last_n=1024, breakers=()):
        """Penalize tokens that would go on repeating a sequence. Wraps ``llama_sampler_init_dry``.

        A token that makes a repetition n tokens long loses ``multiplier * base ** (n - allowed_length)``, looking back
        over ``last_n`` accepted tokens, up to the last of the ``breakers``: strings of 1 to 40 bytes, at most 64.
        """
        cdef float c_multiplier = check_float("multiplier", multiplier, 0, FLOAT_MAX)
        cdef float c_base = check_float("base", base, 1, FLOAT_MAX)
        cdef int32_t allowed = check_int("allowed_length", allowed_length, 0, MAX_WINDOW)
        cdef int32_t n = check_int("last_n", last_n, 0, MAX_WINDOW)
        cdef list texts = check_breakers(breakers)
        cdef const char *c_breakers[64]
        cdef size_t n_breakers = len(texts), i
        cdef llama_sampler *link
        for i in range(n_breakers):
            c_breakers[i] = texts[i]
        enter_shared(vocab.model.guard, "model")
        try:
            vocab.check_open()
            with nogil:  # it reads the whole vocabulary for each breaker
                link = llama_sampler_init_dry(
                    vocab.model.vocab_ptr, c_multiplier, c_base, allowed, n, c_breakers, n_breakers
                )
        finally:
            lr_guard_end_shared(vocab.model.guard)
        return self.push(
            link, describe("dry", (c_multiplier, c_base, allowed, n, tuple(texts)), None, vocab.n_tokens)
        )

    def logit_bias(self, Vocab vocab not None, bias):
        """Add to the logits of tokens: a mapping of id to a float; -inf rules a token out.

        Wraps ``llama_sampler_init_logit_bias``.
        """
        try:
            bias = dict(bias)
        except (TypeError, ValueError):
            raise errors.ArgumentTypeError(f"bias maps token ids to floats; it is no {type(bias).__name__}") from None
        cdef tuple pairs = tuple([
            (vocab.check_token(token), check_bias(token, value)) for token, value in bias.items()
        ])
        cdef int32_t n = <int32_t> len(pairs), i
        cdef Link made = describe("logit_bias", pairs, None, vocab.n_tokens)
        made.biased = [token for token, _ in pairs]
        cdef llama_logit_bias *c_pairs = <llama_logit_bias *> malloc((n + 1) * sizeof(llama_logit_bias))
        if c_pairs == NULL:
            raise MemoryError()
        try:
            for i in range(n):
                c_pairs[i].token, c_pairs[i].bias = pairs[i]
            return self.push(llama_sampler_init_logit_bias(vocab.n_tokens, n, c_pairs), made)
        finally:
            free(c_pairs)

    # --- grammars

    def grammar(self, Vocab vocab not None, grammar, root="root"):
        """Allow only what a GBNF grammar allows. Does what ``llama_sampler_init_grammar`` does.

        Raises InvalidArgumentError when the grammar cannot be parsed, has no rule named ``root``, or recurses or
        repeats beyond what can be computed.
        """
        return self.add_grammar(vocab, grammar, root, False, [], [])

    def grammar_lazy(self, Vocab vocab not None, grammar, root="root", *, patterns=(), tokens=()):
        """A grammar that begins at a trigger. Does what ``llama_sampler_init_grammar_lazy_patterns`` does.

        ``tokens`` trigger it by their ids, and it is about the text from them on. ``patterns`` are regular expressions
        of C++ (ECMAScript); it is about the text from the first non-empty group on that matched, or the whole match.
        They are looked for in the last 256 bytes of what was accepted, at every token, since their time grows by the
        square of that; one with ``^`` is looked for in all of it, and after 4096 bytes without a trigger ``accept``
        raises SamplingError. Patterns with back-references are refused where the compiler's library has no bound for
        them.
        """
        try:
            patterns, tokens = list(patterns), list(tokens)
        except TypeError:
            raise errors.ArgumentTypeError("patterns is a sequence of str, and tokens one of token ids") from None
        if not patterns and not tokens:
            raise errors.InvalidArgumentError("a lazy grammar needs a trigger: pass patterns, tokens or both")
        return self.add_grammar(
            vocab, grammar, root, True, [check_trigger(i, text) for i, text in enumerate(patterns)],
            [vocab.check_token(token) for token in tokens],
        )

    cdef object add_grammar(self, Vocab vocab, grammar, root, bint lazy, list patterns, list tokens):
        cdef bytes text = check_text("grammar", grammar), start = check_text("root", root)
        cdef size_t n_patterns = len(patterns), n_tokens = len(tokens), i
        cdef const char *c_text = text
        cdef const char *c_start = start
        cdef char *error = NULL
        cdef llama_sampler *link
        cdef Link made = describe("grammar_lazy" if lazy else "grammar", (
            text, start, lazy, tuple(patterns), tuple(tokens)), None, vocab.n_tokens)
        made.vocab = vocab
        check_grammar(text)
        cdef const char **c_patterns = <const char **> malloc((n_patterns + 1) * sizeof(char *))
        cdef llama_token *c_tokens = <llama_token *> malloc((n_tokens + 1) * sizeof(llama_token))
        enter_shared(vocab.model.guard, "model")
        try:
            vocab.check_open()
            if c_patterns == NULL or c_tokens == NULL:
                raise MemoryError()
            for i in range(n_patterns):
                c_patterns[i] = patterns[i]
            for i in range(n_tokens):
                c_tokens[i] = tokens[i]
            with nogil:
                link = lr_grammar_new(
                    vocab.model.vocab_ptr, c_text, c_start, lazy, c_patterns, n_patterns, c_tokens, n_tokens, &error
                )
            if error != NULL:
                raise errors.InvalidArgumentError(f"the grammar is refused: {take_string(error)}").with_log(drain_log())
            return self.push(link, made)
        finally:
            lr_guard_end_shared(vocab.model.guard)
            free(c_patterns)
            free(c_tokens)

    def constraint(self, Constraint constraint not None):
        """Allow only what a ``Constraint`` allows from where it is now; the chain takes a copy of it.

        It becomes the first link, wherever it is called: what it rules out, no other link sees. Tokens that the chain
        accepted before are none of its. A chain has one constraint; a ``grammar`` may be there besides.
        """
        cdef Link made = describe("constraint", (constraint.kind, constraint.text, constraint.limits), None,
                                  constraint.vocab.n_tokens)
        cdef llama_sampler *link
        made.vocab = constraint.vocab
        if any([(<Link> other).name == "constraint" for other in self.chain]):
            raise errors.InvalidArgumentError("this chain has a constraint already: remove() it first")
        constraint.enter()
        try:
            with nogil:
                link = lr_constraint_link(constraint.ptr)
        finally:
            constraint.leave()
        self.push(link, made)
        self.enter()
        try:
            self.rotate()
        finally:
            self.leave()
        return self

    cdef int rotate(self) except -1:
        """Make the last link the first."""
        cdef int others = llama_sampler_chain_n(self.ptr) - 1
        while others > 0:  # one by one they go to the end
            llama_sampler_chain_add(self.ptr, llama_sampler_chain_remove(self.ptr, 0))
            others -= 1
        self.chain.insert(0, self.chain.pop())
        self.replan()
        return 0

    # --- a link of one's own

    def python(self, function, *, clone=None):
        """Call ``function(logits, tokens)`` at this place of the chain; it changes ``logits`` or returns others.

        ``logits`` is a float32 array of shape (n_vocab,) of its own, by token id, with -inf for what earlier links
        ruled out or cut: what is written there is not looked at. ``tokens`` is an int32 array of what the chain
        accepted since it was made or reset. Returns None, or a float array of the same shape.

        What it raises is raised by the call that samples, and no token is accepted; only the random states of links
        before it have moved on. It may not use this chain or its context: it gets ContextBusyError. ``clone`` makes
        the function of a cloned chain from this one's; without it both share one.
        """
        cdef Link made = describe("python", (), None)
        cdef PythonLink python = PythonLink.__new__(PythonLink)
        cdef llama_sampler *link
        if not callable(function):
            raise errors.ArgumentTypeError(f"function={function!r:.60}: it cannot be called")
        if clone is not None and not callable(clone):
            raise errors.ArgumentTypeError(f"clone={clone!r:.60}: it cannot be called")
        python.callable = function
        python.clone_with = clone
        python.picker = self.picker
        made.python = python
        link = lr_link_new(on_link)
        if link != NULL:
            lr_link_bind(link, <void *> python)
        return self.push(link, made)


cdef bint few_candidates(list links):
    cdef Link link
    for link in links:
        if link.name == "top_k" and 0 < link.arguments[0] <= MAX_INFILL:
            return True
    return False


cdef uint32_t check_seed(seed) except? 0:
    # the largest value means "draw one" upstream; we draw it ourselves so that it can be told
    if seed is None:
        return int.from_bytes(os.urandom(4), "little") % (UINT32_MAX - 1)
    return check_int("seed", seed, 0, UINT32_MAX - 1)


cdef size_t check_keep(min_keep) except? 0:
    return check_int("min_keep", min_keep, 1, 1 << 24)


cdef object check_bias(token, value):
    if isinstance(value, float) and value == -INFINITY:
        return value
    return check_float(f"bias[{token}]", value, -FLOAT_MAX, FLOAT_MAX)


cdef list check_breakers(breakers):
    if isinstance(breakers, (str, bytes)):
        raise errors.ArgumentTypeError(f"breakers={breakers!r:.60}: it is a sequence of str")
    try:
        texts = [check_text(f"breakers[{i}]", text) for i, text in enumerate(breakers)]
    except errors.LlamaRunnerError:
        raise
    except TypeError:
        raise errors.ArgumentTypeError(f"breakers={breakers!r:.60}: it is a sequence of str") from None
    if len(texts) > 64:
        raise errors.InvalidArgumentError(f"{len(texts)} breakers: at most 64")
    for i, text in enumerate(texts):
        if not 1 <= len(text) <= MAX_BREAKER:
            raise errors.InvalidArgumentError(f"breakers[{i}] has {len(text)} bytes: from 1 to {MAX_BREAKER}")
    return texts


cdef object short(float value):
    """The shortest number that is this float, to be read in ``links``."""
    return float(str(np.float32(value)))
