"""``Stepper``: from one token of a sequence to the next in a single call."""

import cython

from libc.stdint cimport INT32_MAX

from llama_runner._c.llama cimport llama_token, llama_vocab_is_eog
from llama_runner.core.batch cimport Batch
from llama_runner.core.context cimport Context
from llama_runner.core.sampler cimport SamplerChain
from llama_runner.core.vocab cimport Vocab

from llama_runner import errors
from llama_runner._check import check_int


@cython.no_gc_clear
cdef class Stepper:
    """Decodes a token of one sequence and samples the one after it, with nothing of Python in between.

    What ``Batch.add``, ``Context.decode``, ``SamplerChain.sample``, ``Vocab.token_to_piece`` and ``Vocab.is_eog`` do
    one after another, for a loop where Python's own time counts. Thread rule of the context.
    """

    cdef readonly Context context
    cdef readonly SamplerChain chain
    cdef readonly Vocab vocab
    cdef readonly int seq_id
    cdef Batch batch  # its one row

    def __init__(self, Context context not None, SamplerChain chain not None, Vocab vocab not None, seq_id=0):
        if vocab.model is not context.model:
            raise errors.InvalidArgumentError("vocab is that of another model than the context's")
        self.context = context
        self.chain = chain
        self.vocab = vocab
        context.enter()
        try:
            self.seq_id = context.check_seq(seq_id)
        finally:
            context.leave()
        self.batch = Batch(1)

    def __repr__(self):
        return f"<Stepper of sequence {self.seq_id} of {self.context!r}>"

    def advance(self, token, pos, timeout=None):
        """Decode ``token`` at ``pos`` and select the next: ``(token, piece as bytes, whether it ends a generation)``.

        Errors as for ``Context.decode`` and ``SamplerChain.sample``; after a SamplingError the token stays decoded.
        """
        cdef llama_token c_token = check_int("token", token, 0, INT32_MAX)
        cdef int c_pos = check_int("pos", pos, 0, INT32_MAX - 1)
        self.context.enter()
        try:
            self.batch.c.n_tokens = self.batch.n_outputs = 0
            self.batch.put(c_token, c_pos, self.seq_id, True)
            self.context.run(self.batch, False, timeout)
            return self.pick(0)
        finally:
            self.context.leave()

    def select(self, i=-1):
        """Select from row ``i`` of the last decode, whoever made it: the same triple.

        Errors as for ``SamplerChain.sample``.
        """
        cdef int index = check_int("i", i, -INT32_MAX, INT32_MAX)
        self.context.enter()
        try:
            return self.pick(index)
        finally:
            self.context.leave()

    cdef tuple pick(self, int row):
        cdef llama_token token
        self.chain.enter()
        try:
            token = self.chain.pick_output(self.context, row)
            self.chain.accept_token(token)
        finally:
            self.chain.leave()
        return token, self.vocab.piece(token, 0, False), llama_vocab_is_eog(self.vocab.model.vocab_ptr, token)
