"""Many rows of a step, a chain for each, in one call."""

import numpy as np

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from llama_runner._c.llama cimport llama_n_threads
from llama_runner._c.native cimport LR_PICK_DONE, lr_pick_rows, lr_picker
from llama_runner.core.context cimport Context
from llama_runner.core.sampler cimport SamplerChain

from llama_runner import errors
from llama_runner._check import check_int


cdef class Step:
    """The chains and rows of one call, as C wants them."""

    cdef list chains
    cdef int n, n_inside
    cdef lr_picker **pickers
    cdef const float **rows
    cdef int *codes
    cdef object tokens  # int32, -1 where nothing was selected
    cdef dict failures
    cdef object matrix  # held: what `rows` point to, where a processor was at it

    def __cinit__(self, chains):
        self.chains = check_chains(chains)
        self.n = len(self.chains)
        self.pickers = <lr_picker **> malloc((self.n + 1) * sizeof(lr_picker *))
        self.rows = <const float **> malloc((self.n + 1) * sizeof(float *))
        self.codes = <int *> malloc((self.n + 1) * sizeof(int))
        if self.pickers == NULL or self.rows == NULL or self.codes == NULL:
            raise MemoryError()
        self.tokens = np.full(self.n, -1, np.int32)
        self.failures = {}

    def __dealloc__(self):
        free(self.pickers)
        free(self.rows)
        free(self.codes)

    cdef int enter(self) except -1:
        """Enter every chain, or none."""
        cdef SamplerChain chain
        try:
            for chain in self.chains:
                chain.enter()
                self.n_inside += 1
        except errors.LlamaRunnerError:
            self.leave()
            raise
        return 0

    cdef void leave(self) noexcept:
        cdef SamplerChain chain
        while self.n_inside > 0:
            self.n_inside -= 1
            chain = self.chains[self.n_inside]
            chain.leave()

    cdef int check(self, int n_vocab) except -1:
        cdef SamplerChain chain
        cdef int i
        for i in range(self.n):
            chain = self.chains[i]
            try:
                chain.check_free("use")
                chain.check_row(n_vocab)
            except errors.InvalidArgumentError as error:
                raise errors.InvalidArgumentError(f"chains[{i}]: {error}") from None
            self.pickers[i] = chain.picker
        return 0

    cdef int run(self, int n_vocab, int n_threads) except -1:
        """Select for each row; then ``tokens`` and ``failures`` say what came of it."""
        cdef int32_t[::1] tokens = self.tokens
        cdef SamplerChain chain
        cdef int i
        if self.n == 0:
            return 0
        with nogil:
            lr_pick_rows(self.pickers, self.rows, self.n, n_vocab, n_threads, &tokens[0], self.codes)
        for i in range(self.n):
            if self.codes[i] != <int> LR_PICK_DONE:
                tokens[i] = -1
                chain = self.chains[i]
                try:
                    chain.fail(self.codes[i])
                except Exception as error:
                    self.failures[i] = error
        return 0

    cdef int accept(self) except -1:
        cdef int32_t[::1] tokens = self.tokens
        cdef SamplerChain chain
        cdef int i
        for i in range(self.n):
            if tokens[i] >= 0:
                chain = self.chains[i]
                try:
                    chain.accept_token(tokens[i])
                except errors.LlamaRunnerError as error:
                    tokens[i] = -1
                    self.failures[i] = error
        return 0

    cdef object result(self):
        if not self.failures:
            return self.tokens
        first = min(self.failures)
        raise errors.RowSamplingError(
            f"{len(self.failures)} of {self.n} rows have no token; chains[{first}]: {self.failures[first]}",
            self.tokens, self.failures,
        ) from self.failures[first]


cdef list check_chains(chains):
    try:
        found = list(chains)
    except TypeError:
        raise errors.ArgumentTypeError(f"chains={chains!r:.60}: it is a sequence of SamplerChain") from None
    seen = {}
    for i, chain in enumerate(found):
        if not isinstance(chain, SamplerChain):
            raise errors.ArgumentTypeError(f"chains[{i}]={chain!r:.60}: it is a SamplerChain")
        if id(chain) in seen:
            raise errors.InvalidArgumentError(
                f"chains[{i}] is chains[{seen[id(chain)]}]: a chain keeps state and selects once a call; clone() it"
            )
        seen[id(chain)] = i
    return found


cdef int check_threads(n_threads) except -1:
    return check_int("n_threads", n_threads, 1, 64)


def sample_rows(Context ctx not None, chains, rows=None, *, processor=None, n_threads=None):
    """Select and accept a token for each of many rows of the last decode: ``chains[i]`` from row ``rows[i]``.

    Returns an int32 array of shape (n,). Does what ``SamplerChain.sample`` does for one after another, in one native
    call without the GIL; in up to ``n_threads`` threads where that is worth while (None: as many as the context uses
    for one row). ``rows`` are indices as ``Context.logits`` takes them; None for the first n outputs in their order. A
    chain may occur once.

    ``processor(logits, rows)`` is called once before that with a copy of the rows, float32 of shape (n, n_vocab), and
    their indices, int32; it changes ``logits``, or returns others of the same shape.

    A row from which nothing can be selected does not hold the others up: their tokens are accepted, and then
    RowSamplingError is raised, whose ``tokens`` has -1 for that row and whose ``failures`` maps its place to its error.
    Any other error (bad rows, a busy chain, what ``processor`` raises) comes before anything is selected.
    """
    cdef Step step = Step(chains)
    cdef int i, threads
    indices = check_rows(rows, step.n)
    if processor is not None and not callable(processor):
        raise errors.ArgumentTypeError(f"processor={processor!r:.60}: it cannot be called")
    step.enter()
    try:
        ctx.enter()
        try:
            threads = llama_n_threads(ctx.ptr) if n_threads is None else check_threads(n_threads)
            step.check(ctx.n_vocab)
            if rows is None:
                if step.n > ctx.n_outputs:
                    raise errors.IndexOutOfRangeError(
                        f"{step.n} chains: the last decode has {ctx.n_outputs} rows of output"
                    )
                indices = [i - ctx.n_outputs for i in range(step.n)]
            for i in range(step.n):
                step.rows[i] = ctx.logits_row(indices[i])
            if processor is not None:
                step.matrix = process(step, ctx.n_vocab, processor, np.array(indices, np.int32))
            step.run(ctx.n_vocab, threads)
        finally:
            ctx.leave()
        step.accept()
    finally:
        step.leave()
    return step.result()


def apply_rows(logits, chains, *, n_threads=None):
    """Select a token from each row of a float32 array of shape (n, n_vocab), without accepting any.

    ``chains[i]`` selects from ``logits[i]``; otherwise as ``sample_rows``, with the physical cores that this process
    may use as the default of ``n_threads``.
    """
    cdef Step step = Step(chains)
    cdef const float[:, ::1] view
    cdef int i, threads
    if not (isinstance(logits, np.ndarray) and logits.dtype == np.float32 and logits.ndim == 2
            and logits.flags.c_contiguous):
        raise errors.ArgumentTypeError("logits is a contiguous float32 array of shape (n, n_vocab)")
    if len(logits) != step.n or not 0 < logits.shape[1] < 2**31:
        raise errors.InvalidArgumentError(
            f"logits has the shape {logits.shape}: {step.n} chains need ({step.n}, n_vocab)"
        )
    if n_threads is None:
        from llama_runner.system import usable_physical_cores

        n_threads = min(64, usable_physical_cores())
    threads = check_threads(n_threads)
    if step.n == 0:
        return step.tokens
    view = logits
    step.enter()
    try:
        step.check(<int> view.shape[1])
        for i in range(step.n):
            step.rows[i] = &view[i, 0]
        step.run(<int> view.shape[1], threads)
    finally:
        step.leave()
    return step.result()


cdef list check_rows(rows, int n):
    if rows is None:
        return []
    try:
        found = [check_int(f"rows[{i}]", row, -(2**31), 2**31 - 1) for i, row in enumerate(rows)]
    except errors.LlamaRunnerError:
        raise
    except TypeError:
        raise errors.ArgumentTypeError(f"rows={rows!r:.60}: it is a sequence of row indices") from None
    if len(found) != n:
        raise errors.InvalidArgumentError(f"{len(found)} rows for {n} chains: as many of one as of the other")
    return found


cdef object process(Step step, int n_vocab, processor, indices):
    """Let ``processor`` at a copy of the rows, and take what it makes of them: the array that the rows are then in."""
    cdef int i
    cdef float[:, ::1] filled
    cdef const float[:, ::1] view
    matrix = np.empty((step.n, n_vocab), np.float32)
    filled = matrix
    for i in range(step.n):
        memcpy(&filled[i, 0], step.rows[i], n_vocab * sizeof(float))
    changed = processor(matrix, indices)
    if changed is not None and changed is not matrix:
        if not isinstance(changed, np.ndarray) or changed.shape != matrix.shape or changed.dtype.kind != "f":
            raise errors.ArgumentTypeError(
                f"processor returned {changed!r:.60}: it returns None, or a float array of shape {matrix.shape}"
            )
        matrix = changed
    matrix = np.array(matrix, np.float32, order="C")  # of our own: the processor may have kept the other
    if step.n > 0:
        view = matrix
        for i in range(step.n):
            step.rows[i] = &view[i, 0]
    return matrix
