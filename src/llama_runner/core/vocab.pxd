from llama_runner._c.llama cimport llama_token, llama_vocab
from llama_runner._c.native cimport lr_constraint_vocab, lr_vocab
from llama_runner.core.model cimport Model
from llama_runner.core.text_job cimport TextJob

ctypedef llama_token (*token_getter)(const llama_vocab *vocab) except +


cdef class Vocab:
    # held, since the vocabulary lives inside the model
    cdef readonly Model model
    cdef readonly int n_tokens
    cdef lr_vocab *native
    cdef lr_constraint_vocab *constraints  # NULL until the first constraint is made
    cdef int kind
    cdef object __weakref__

    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef int check_open(self) except -1
    cdef llama_token check_token(self, token) except? -1
    cdef bytes piece(self, llama_token token, int lstrip, bint special)
    cdef object special_token(self, token_getter get)
    cdef TextJob tokenizing(self, add_special, parse_special)
    cdef TextJob detokenizing(self, lists, remove_special, unparse_special, n_threads)
