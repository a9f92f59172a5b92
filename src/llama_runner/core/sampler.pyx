"""``SamplerChain``: from a row of logits to a token."""

import os

import cython
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport UINT32_MAX, int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc

from llama_runner._c.llama cimport (
    LLAMA_DEFAULT_SEED,
    llama_logit_bias,
    llama_sampler,
    llama_sampler_accept,
    llama_sampler_apply,
    llama_sampler_chain_add,
    llama_sampler_chain_default_params,
    llama_sampler_chain_init,
    llama_sampler_clone,
    llama_sampler_free,
    llama_sampler_get_seed,
    llama_sampler_init_dist,
    llama_sampler_init_grammar,
    llama_sampler_init_greedy,
    llama_sampler_init_logit_bias,
    llama_sampler_init_min_p,
    llama_sampler_init_mirostat_v2,
    llama_sampler_init_penalties,
    llama_sampler_init_temp,
    llama_sampler_init_temp_ext,
    llama_sampler_init_top_k,
    llama_sampler_init_top_n_sigma,
    llama_sampler_init_top_p,
    llama_sampler_init_typical,
    llama_sampler_init_xtc,
    llama_sampler_reset,
    llama_token,
    llama_token_data,
    llama_token_data_array,
)
from llama_runner._c.native cimport (
    LR_SAMPLER,
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_live_add,
)
from llama_runner.core._native cimport drain_log, ensure_runtime, enter_exclusive, enter_shared
from llama_runner.core.context cimport Context
from llama_runner.core.vocab cimport Vocab

from llama_runner import errors
from llama_runner._check import check_float, check_int, check_text
from llama_runner._syntax import check_grammar

cdef float FLOAT_MAX = 3.0e38
# what Cython makes of the C++ exceptions that samplers throw
cdef tuple NATIVE_ERRORS = (RuntimeError, IndexError, ValueError, MemoryError)


@cython.no_gc_clear
cdef class SamplerChain:
    """A chain of samplers that it owns. Wraps ``llama_sampler_chain_init``; each link's method returns the chain.

        chain = SamplerChain().top_k(40).top_p(0.95).temp(0.8).dist(seed=1)
        token = chain.sample(ctx, -1)

    The last link must select: ``greedy``, ``dist`` or ``mirostat_v2``. Use one chain for each sequence, since links
    keep state. One thread at a time: a second one gets ContextBusyError.
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        self.links = []
        self.held = []
        if self.guard == NULL:
            raise MemoryError()

    def __init__(self):
        if self.ptr == NULL:
            ensure_runtime()
            self.ptr = llama_sampler_chain_init(llama_sampler_chain_default_params())
            lr_live_add(LR_SAMPLER, 1)

    def __dealloc__(self):
        if self.ptr != NULL and not lr_forked():
            llama_sampler_free(self.ptr)
            lr_live_add(LR_SAMPLER, -1)
        free(self.candidates)
        lr_guard_free(self.guard)

    def __len__(self):
        return len(self.links)

    def __repr__(self):
        return f"<SamplerChain {' '.join(self.links) or 'empty'}>"

    cdef int enter(self) except -1:
        """Keep other threads out of the chain, and the models that its grammars point into from being closed."""
        cdef int i = 0
        cdef Vocab vocab
        enter_exclusive(self.guard, "sampler chain")
        try:
            if self.ptr == NULL:  # a subclass that did not call __init__
                raise errors.InvalidArgumentError("this SamplerChain was never made: call SamplerChain.__init__")
            if self.broken is not None:
                raise errors.SamplingError(f"this chain cannot go on; reset() it: {self.broken}")
            for i in range(len(self.held)):
                vocab = self.held[i]
                enter_shared(vocab.model.guard, "model")
                self.inside += 1
                vocab.model.check_open()
        except errors.LlamaRunnerError:
            self.leave()
            raise
        return 0

    cdef void leave(self) noexcept:
        cdef Vocab vocab
        while self.inside > 0:
            self.inside -= 1
            vocab = self.held[self.inside]
            lr_guard_end_shared(vocab.model.guard)
        lr_guard_end_exclusive(self.guard)

    cdef object push(self, llama_sampler *link, str name, bint selects):
        if link == NULL:
            raise errors.OutOfMemoryError(f"llama.cpp could not make the sampler {name}")
        try:
            self.enter()
        except errors.LlamaRunnerError:
            llama_sampler_free(link)
            raise
        llama_sampler_chain_add(self.ptr, link)
        self.links.append(name)
        self.selects = selects
        self.leave()
        return self

    # --- links that select a token

    def greedy(self):
        """Select the most likely token. Wraps ``llama_sampler_init_greedy``."""
        return self.push(llama_sampler_init_greedy(), "greedy", True)

    def dist(self, seed=None):
        """Draw a token by its probability. Wraps ``llama_sampler_init_dist``.

        ``seed`` is from 0 to 2**32 - 2; None draws one, which ``seed`` then tells.
        """
        return self.push(llama_sampler_init_dist(check_seed(seed)), "dist", True)

    def mirostat_v2(self, tau=5.0, eta=0.1, seed=None):
        """Mirostat 2.0: draw so that the surprise stays near ``tau``. Wraps ``llama_sampler_init_mirostat_v2``."""
        cdef float c_tau = check_float("tau", tau, 0, FLOAT_MAX)
        cdef float c_eta = check_float("eta", eta, 0, FLOAT_MAX)
        return self.push(llama_sampler_init_mirostat_v2(check_seed(seed), c_tau, c_eta), "mirostat_v2", True)

    # --- links that narrow or reshape the candidates

    def top_k(self, k):
        """Keep the ``k`` most likely; 0 keeps all. Wraps ``llama_sampler_init_top_k``."""
        return self.push(llama_sampler_init_top_k(check_int("k", k, 0, 2**31 - 1)), f"top_k({k})", False)

    def top_p(self, p, min_keep=1):
        """Keep the most likely whose probabilities add up to ``p``. Wraps ``llama_sampler_init_top_p``."""
        cdef float c_p = check_float("p", p, 0, 1)
        return self.push(llama_sampler_init_top_p(c_p, check_keep(min_keep)), f"top_p({p})", False)

    def min_p(self, p, min_keep=1):
        """Drop what is less likely than ``p`` times the best. Wraps ``llama_sampler_init_min_p``."""
        cdef float c_p = check_float("p", p, 0, 1)
        return self.push(llama_sampler_init_min_p(c_p, check_keep(min_keep)), f"min_p({p})", False)

    def typical(self, p, min_keep=1):
        """Locally typical sampling. Wraps ``llama_sampler_init_typical``."""
        cdef float c_p = check_float("p", p, 0, 1)
        return self.push(llama_sampler_init_typical(c_p, check_keep(min_keep)), f"typical({p})", False)

    def top_n_sigma(self, n):
        """Keep logits within ``n`` standard deviations of the best. Wraps ``llama_sampler_init_top_n_sigma``."""
        return self.push(llama_sampler_init_top_n_sigma(check_float("n", n, -1, FLOAT_MAX)), f"top_n_sigma({n})", False)

    def xtc(self, p, threshold, min_keep=1, seed=None):
        """Exclude top choices. Wraps ``llama_sampler_init_xtc``."""
        cdef float c_p = check_float("p", p, 0, 1)
        cdef float c_t = check_float("threshold", threshold, 0, 1)
        return self.push(llama_sampler_init_xtc(c_p, c_t, check_keep(min_keep), check_seed(seed)), f"xtc({p})", False)

    def temp(self, t):
        """Divide the logits by ``t``; 0 leaves the best alone. Wraps ``llama_sampler_init_temp``."""
        return self.push(llama_sampler_init_temp(check_float("t", t, 0, FLOAT_MAX)), f"temp({t})", False)

    def temp_ext(self, t, delta, exponent=1.0):
        """Dynamic temperature. Wraps ``llama_sampler_init_temp_ext``."""
        cdef float c_t = check_float("t", t, 0, FLOAT_MAX)
        cdef float c_d = check_float("delta", delta, 0, FLOAT_MAX)
        cdef float c_e = check_float("exponent", exponent, 0, FLOAT_MAX)
        return self.push(llama_sampler_init_temp_ext(c_t, c_d, c_e), f"temp_ext({t})", False)

    def penalties(self, Vocab vocab not None, last_n=64, repeat=1.0, frequency=0.0, presence=0.0):
        """Penalize the last ``last_n`` accepted tokens. Wraps ``llama_sampler_init_penalties``."""
        cdef int32_t n = check_int("last_n", last_n, 0, 1 << 24)
        cdef float c_repeat = check_float("repeat", repeat, 1e-6, FLOAT_MAX)
        cdef float c_frequency = check_float("frequency", frequency, -FLOAT_MAX, FLOAT_MAX)
        cdef float c_presence = check_float("presence", presence, -FLOAT_MAX, FLOAT_MAX)
        return self.push(
            llama_sampler_init_penalties(vocab.n_tokens, n, c_repeat, c_frequency, c_presence), "penalties", False
        )

    def logit_bias(self, Vocab vocab not None, bias):
        """Add to the logits of tokens: a mapping of id to a float; -inf rules a token out.

        Wraps ``llama_sampler_init_logit_bias``.
        """
        try:
            bias = dict(bias)
        except (TypeError, ValueError):
            raise errors.ArgumentTypeError(f"bias maps token ids to floats; it is no {type(bias).__name__}") from None
        pairs = [(vocab.check_token(token), check_bias(token, value)) for token, value in bias.items()]
        cdef int32_t n = <int32_t> len(pairs), i
        cdef llama_logit_bias *c_pairs = <llama_logit_bias *> malloc((n + 1) * sizeof(llama_logit_bias))
        if c_pairs == NULL:
            raise MemoryError()
        try:
            for i in range(n):
                c_pairs[i].token, c_pairs[i].bias = pairs[i]
            return self.push(llama_sampler_init_logit_bias(vocab.n_tokens, n, c_pairs), "logit_bias", False)
        finally:
            free(c_pairs)

    def grammar(self, Vocab vocab not None, grammar, root="root"):
        """Allow only what a GBNF grammar allows. Wraps ``llama_sampler_init_grammar``.

        Raises InvalidArgumentError when the grammar cannot be parsed or has no rule named ``root``.
        """
        cdef bytes text = check_text("grammar", grammar), start = check_text("root", root)
        cdef llama_sampler *link = NULL
        check_grammar(text)
        drain_log()
        enter_shared(vocab.model.guard, "model")
        try:
            vocab.check_open()
            link = llama_sampler_init_grammar(vocab.model.vocab_ptr, text, start)
        except NATIVE_ERRORS as error:
            if isinstance(error, errors.LlamaRunnerError):
                raise
            raise errors.InvalidArgumentError(f"the grammar is refused: {error}").with_log(drain_log()) from None
        finally:
            lr_guard_end_shared(vocab.model.guard)
        if link == NULL:
            raise errors.InvalidArgumentError(
                f"the grammar cannot be parsed, or has no rule {root!r}"
            ).with_log(drain_log())
        self.push(link, "grammar", False)
        self.held.append(vocab)
        return self

    # --- use

    cdef llama_token pick(self, const float *logits, int n_vocab) except? -1:
        """Apply the chain to a row of logits; the caller is inside. The token is not accepted yet."""
        cdef llama_token_data_array array
        cdef llama_token i
        cdef bint nan = False
        if not self.selects:
            raise errors.InvalidArgumentError(f"the last link of {self!r} selects nothing: end with greedy() or dist()")
        if self.n_candidates != n_vocab:
            free(self.candidates)
            self.n_candidates = 0
            self.candidates = <llama_token_data *> malloc(n_vocab * sizeof(llama_token_data))
            if self.candidates == NULL:
                raise MemoryError()
            self.n_candidates = n_vocab
        try:
            with nogil:
                for i in range(n_vocab):
                    self.candidates[i].id = i
                    self.candidates[i].logit = logits[i]
                    self.candidates[i].p = 0
                    nan |= logits[i] != logits[i]
                array.data = self.candidates
                array.size = n_vocab
                array.selected = -1
                array.sorted = False
                if not nan:
                    llama_sampler_apply(self.ptr, &array)
        except NATIVE_ERRORS as error:
            self.broken = str(error) or type(error).__name__
            raise errors.SamplingError(f"a sampler failed: {error}").with_log(drain_log()) from None
        if nan:
            raise errors.SamplingError("the logits have NaN among them: no token is more likely than another")
        if array.selected < 0 or array.selected >= <int64_t> array.size:
            raise errors.SamplingError(f"{self!r} left no token to select")
        # `dist` takes the last candidate when every one is ruled out; that is no choice
        if not array.data[array.selected].logit > -INFINITY:
            raise errors.SamplingError("every token is ruled out: the logits, biases or grammar leave no candidate")
        return array.data[array.selected].id

    cdef int accept_token(self, llama_token token) except -1:
        try:
            with nogil:
                llama_sampler_accept(self.ptr, token)
        except NATIVE_ERRORS as error:
            self.broken = str(error) or type(error).__name__
            raise errors.SamplingError(f"a sampler refused token {token}: {error}").with_log(drain_log()) from None
        return 0

    def sample(self, Context ctx not None, i=-1):
        """Select and accept a token from row ``i`` of the last decode. Wraps ``llama_sampler_sample``, without the GIL.

        Raises SamplingError when no token is left to select, IndexOutOfRangeError for a row without logits.
        """
        cdef int index = check_int("i", i, -(2**31), 2**31 - 1)
        cdef llama_token token
        self.enter()
        try:
            ctx.enter()
            try:
                token = self.pick(ctx.logits_row(index), ctx.n_vocab)
            finally:
                ctx.leave()
            self.accept_token(token)
            return token
        finally:
            self.leave()

    def apply(self, logits):
        """Select a token from a float32 array of logits, shape (n_vocab,), without accepting it.

        Wraps ``llama_sampler_apply``; errors as for ``sample``.
        """
        cdef const float[::1] view
        if not (isinstance(logits, np.ndarray) and logits.dtype == np.float32 and logits.ndim == 1
                and logits.flags.c_contiguous):
            raise errors.ArgumentTypeError("logits is a contiguous float32 array of shape (n_vocab,)")
        if len(logits) == 0:
            raise errors.InvalidArgumentError("logits is empty")
        view = logits
        self.enter()
        try:
            return self.pick(&view[0], <int> len(view))
        finally:
            self.leave()

    def accept(self, token):
        """Tell the links that a token was taken (for penalties and grammars). Wraps ``llama_sampler_accept``."""
        cdef llama_token c_token = check_int("token", token, 0, 2**31 - 1)
        self.enter()
        try:
            self.accept_token(c_token)
        finally:
            self.leave()

    def reset(self):
        """Back to the state before the first token. Wraps ``llama_sampler_reset``."""
        broken, self.broken = self.broken, None
        try:
            self.enter()
        except errors.LlamaRunnerError:
            self.broken = broken
            raise
        try:
            llama_sampler_reset(self.ptr)
        finally:
            self.leave()

    def clone(self):
        """A chain of its own in the same state, random state included. Wraps ``llama_sampler_clone``."""
        cdef SamplerChain copy = SamplerChain.__new__(SamplerChain)
        self.enter()
        try:
            copy.ptr = llama_sampler_clone(self.ptr)
            lr_live_add(LR_SAMPLER, 1)
        finally:
            self.leave()
        copy.links = list(self.links)
        copy.held = list(self.held)
        copy.selects = self.selects
        return copy

    @property
    def seed(self):
        """The seed of the last link that has one, or None. Wraps ``llama_sampler_get_seed``."""
        self.enter()
        cdef uint32_t seed = llama_sampler_get_seed(self.ptr)
        self.leave()
        return None if seed == LLAMA_DEFAULT_SEED else seed


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
