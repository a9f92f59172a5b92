"""``SamplerChain``: from a row of logits to a token."""

import cython
import numpy as np

from libc.stdint cimport uint32_t

from llama_runner._c.llama cimport (
    LLAMA_DEFAULT_SEED,
    llama_perf_sampler,
    llama_perf_sampler_data,
    llama_perf_sampler_reset,
    llama_sampler_chain_get,
    llama_sampler_clone,
    llama_sampler_copy,
    llama_sampler_get_seed,
    llama_sampler_reset,
    llama_token,
)
from llama_runner._c.native cimport (
    LR_PICK_DONE,
    LR_PICK_NO_NUMBER,
    LR_PICK_NOTHING,
    LR_PICK_OVERFLOW,
    LR_PICK_RULED_OUT,
    LR_SAMPLER,
    lr_link_bind,
    lr_live_add,
    lr_picker_accept,
    lr_picker_copy,
    lr_picker_error,
    lr_picker_pending,
    lr_picker_pick,
    lr_picker_redraw,
    lr_picker_reset,
)
from llama_runner.core._native cimport drain_log
from llama_runner.core.context cimport Context
from llama_runner.core.link cimport Link
from llama_runner.core.sampler_links cimport SamplerLinks

from llama_runner import errors
from llama_runner._check import check_int

# what Cython makes of the C++ exceptions that samplers throw
cdef tuple NATIVE_ERRORS = (RuntimeError, IndexError, ValueError, MemoryError)
backend_sampler = None  # the module, once a chain is attached: it knows this class


@cython.no_gc_clear  # as its base
cdef class SamplerChain(SamplerLinks):
    """A chain of samplers that it owns. Wraps ``llama_sampler_chain_init``; each link's method returns the chain.

        chain = SamplerChain().top_k(40).top_p(0.95).temp(0.8).dist(seed=1)
        token = chain.sample(ctx, -1)

    The last link must select: ``greedy``, ``dist``, ``mirostat``, ``mirostat_v2`` or ``adaptive_p``. Use one chain for
    each sequence, since links keep state; ``sample_rows`` takes many chains a step. One thread at a time: a second one
    gets ContextBusyError. A chain that begins with links of single tokens (``penalties``, ``dry``, ``logit_bias``) and
    then ``top_k`` of at most 128, ``min_p`` or ``greedy`` does not look at the whole row as candidates; what it selects
    is the same. With ``perf=True`` llama.cpp's own loop runs and takes the time.
    """

    cdef int check_row(self, int n_vocab) except -1:
        """Whether the chain can select from a row of ``n_vocab`` logits; the caller is inside."""
        cdef Link link
        if not self.selects:
            raise errors.InvalidArgumentError(f"the last link of {self!r} selects nothing: end with greedy() or dist()")
        if self.n_vocab and self.n_vocab != n_vocab:
            raise errors.InvalidArgumentError(
                f"{n_vocab} logits: {self!r} has links for a vocabulary of {self.n_vocab} tokens"
            )
        for link in self.chain:
            if link.python is not None:
                link.python.n_vocab = n_vocab
        return 0

    cdef llama_token pick(self, const float *logits, int n_vocab) except? -1:
        """Apply the chain to a row of logits; the caller is inside. The token is not accepted yet."""
        cdef llama_token token
        cdef int code
        self.check_row(n_vocab)
        with nogil:
            code = lr_picker_pick(self.picker, logits, n_vocab, &token)
        if code != <int> LR_PICK_DONE:
            self.fail(code)
        return token

    cdef llama_token pick_output(self, Context ctx, int i) except? -1:
        """The same for row ``i`` of the context's last decode; the caller is inside both."""
        global backend_sampler
        if self.attached:
            if backend_sampler is None:
                from llama_runner.core import backend_sampler
            return backend_sampler.pick(self, ctx, i)
        return self.pick(ctx.logits_row(i), ctx.n_vocab)

    cdef int fail(self, int code) except -1:
        """Raise what an ``lr_pick_code`` stands for."""
        raised = self.take_raised()
        if raised is not None:
            raise raised
        if code == <int> LR_PICK_NO_NUMBER:
            raise errors.SamplingError("the logits have NaN or +inf among them: no token is more likely than another")
        if code == <int> LR_PICK_NOTHING:
            raise errors.SamplingError(f"{self!r} left no token to select")
        if code == <int> LR_PICK_RULED_OUT:
            raise errors.SamplingError("every token is ruled out: the logits, biases or grammar leave no candidate")
        if code == <int> LR_PICK_OVERFLOW:
            raise errors.SamplingError(
                f"{self!r} made numbers that no float32 holds: a temperature or penalty is too extreme, or the best "
                "candidate was ruled out by a bias after it had been sorted to the front"
            )
        self.broken = lr_picker_error(self.picker).decode("utf-8", "replace")
        raise errors.SamplingError(f"a sampler failed: {self.broken}").with_log(drain_log())

    cdef int accept_token(self, llama_token token) except -1:
        cdef int code
        if self.n_vocab and not 0 <= token < self.n_vocab:
            raise errors.IndexOutOfRangeError(f"token={token}: the vocabulary has ids from 0 to {self.n_vocab - 1}")
        with nogil:
            code = lr_picker_accept(self.picker, token)
        if code != <int> LR_PICK_DONE:
            self.broken = lr_picker_error(self.picker).decode("utf-8", "replace")
            raise errors.SamplingError(f"a sampler refused token {token}: {self.broken}").with_log(drain_log())
        return 0

    cdef object take_raised(self):
        """What the function of a Python link raised last, where nobody has been told of it yet; else None."""
        cdef Link link
        for link in self.chain:
            if link.python is not None and link.python.raised is not None:
                raised, link.python.raised = link.python.raised, None
                return raised
        return None

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
                token = self.pick_output(ctx, index)
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
        if not 0 < len(logits) < 2**31:
            raise errors.InvalidArgumentError(f"logits has {len(logits)} items: it is empty, or no row of logits")
        view = logits
        self.enter()
        try:
            self.check_free("apply")
            return self.pick(&view[0], <int> len(view))
        finally:
            self.leave()

    def accept(self, token):
        """Tell the links that a token was taken (for penalties and grammars). Wraps ``llama_sampler_accept``.

        Raises SamplingError for a token that a grammar does not allow: the chain is of no use then until ``reset``.
        """
        cdef llama_token c_token = check_int("token", token, 0, 2**31 - 1)
        self.enter()
        try:
            self.accept_token(c_token)
        finally:
            self.leave()

    cdef int restart(self) except -1:
        """Enter, though a link may have failed: the caller brings it into a known state."""
        return self.admit(True, False)

    def reset(self):
        """Back to the state before the first token. Wraps ``llama_sampler_reset``."""
        self.restart()
        try:
            llama_sampler_reset(self.ptr)
            lr_picker_reset(self.picker)
            self.broken = None
        except NATIVE_ERRORS as error:
            self.broken = str(error)
            raise errors.SamplingError(f"a sampler cannot be reset: {error}").with_log(drain_log()) from None
        finally:
            self.leave()

    def clone(self):
        """A chain of its own in the same state, random state included. Wraps ``llama_sampler_clone``.

        Raises SamplingError while a token drawn by ``adaptive_p`` is not accepted: llama.cpp loses what it notes of it.
        """
        cdef SamplerChain made = SamplerChain.__new__(SamplerChain)
        self.admit(False, True)  # the one thing that can be done with a chain that was attached
        try:
            self.check_accepted()
            with nogil:
                made.ptr = llama_sampler_clone(self.ptr)
            lr_live_add(LR_SAMPLER, 1)
            made.perf_on = self.perf_on
            made.adopt(self)
            made.after_copy(self)
        finally:
            self.leave()
        return made

    def copy_from(self, SamplerChain source not None):
        """Take over the state of a chain with the same links, as a clone has. Wraps ``llama_sampler_copy``.

        The way back to an earlier state: ``saved = chain.clone()``, and later ``chain.copy_from(saved)``. Python links
        keep their functions. Raises InvalidArgumentError unless every link has the same arguments, seeds included;
        errors otherwise as for ``clone``.
        """
        if source is self:
            return
        self.restart()
        try:
            source.enter()
            try:
                self.check_same(source)
                source.check_accepted()
                self.broken = "copying its state has failed"
                llama_sampler_copy(source.ptr, self.ptr)
                self.after_copy(source)
                self.broken = None
            finally:
                source.leave()
        finally:
            self.leave()

    cdef int adopt(self, SamplerChain source) except -1:
        """Describe the links of a native chain that is a copy of another's."""
        cdef Link link, mine
        cdef int i
        for i in range(len(source.chain)):
            link = source.chain[i]
            if link.python is not None:
                mine = Link.__new__(Link)
                mine.name, mine.arguments = link.name, link.arguments
                mine.python = link.python.copy()
                mine.python.picker = self.picker
                lr_link_bind(llama_sampler_chain_get(self.ptr, i), <void *> mine.python)
                link = mine
            self.chain.append(link)
        self.replan()
        return 0

    cdef int after_copy(self, SamplerChain source) except -1:
        """What upstream leaves out of a copied state."""
        cdef int last = len(self.chain) - 1
        if lr_picker_copy(source.picker, self.picker) != <int> LR_PICK_DONE:
            raise MemoryError()
        if last >= 0 and (<Link> self.chain[last]).name == "adaptive_p":
            if lr_picker_redraw(self.picker, llama_sampler_chain_get(self.ptr, last)) != <int> LR_PICK_DONE:
                raise errors.SamplingError(f"adaptive_p cannot be copied: {lr_picker_error(self.picker).decode()}")
        return 0

    cdef int check_accepted(self) except -1:
        cdef Link link
        for link in self.chain:
            if link.name == "adaptive_p" and lr_picker_pending(self.picker):
                raise errors.SamplingError(
                    "adaptive_p has drawn a token that is not accepted yet: accept it, or reset(), before copying"
                )
        return 0

    cdef int check_same(self, SamplerChain source) except -1:
        cdef Link mine, other
        same = len(self.chain) == len(source.chain)
        for mine, other in zip(self.chain, source.chain):
            same = same and mine.name == other.name and mine.arguments == other.arguments
            same = same and mine.n_vocab == other.n_vocab and mine.vocab is other.vocab
        if not same:
            raise errors.InvalidArgumentError(f"{source!r} has other links, or other arguments, than {self!r}")
        return 0

    @property
    def seed(self):
        """The seed of the last link that has one, or None. Wraps ``llama_sampler_get_seed``."""
        cdef Link link
        cdef uint32_t seed
        self.enter()
        try:
            seed = llama_sampler_get_seed(self.ptr)
            if seed != LLAMA_DEFAULT_SEED:
                return seed
            for link in reversed(self.chain):  # upstream does not tell those of xtc and adaptive_p
                if link.seed is not None:
                    return link.seed
            return None
        finally:
            self.leave()

    @property
    def perf(self):
        """What sampling took: a dict with ``sample_ms`` and ``n_sample``, the tokens accepted.

        Wraps ``llama_perf_sampler``. The time is 0 unless the chain was made with ``perf=True``.
        """
        cdef llama_perf_sampler_data data
        self.enter()
        try:
            data = llama_perf_sampler(self.ptr)
        finally:
            self.leave()
        return {"sample_ms": data.t_sample_ms, "n_sample": data.n_sample}

    def perf_reset(self):
        """Count from zero again. Wraps ``llama_perf_sampler_reset``."""
        self.enter()
        try:
            llama_perf_sampler_reset(self.ptr)
        finally:
            self.leave()
