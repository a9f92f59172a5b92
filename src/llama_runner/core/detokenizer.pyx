"""``Detokenizer``: a stream of tokens as text, one token at a time."""

import cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8Stateful
from libc.stddef cimport size_t
from libc.stdint cimport int32_t

from llama_runner._c.llama cimport llama_token
from llama_runner._c.native cimport (
    lr_guard,
    lr_guard_end_exclusive,
    lr_guard_free,
    lr_guard_new,
    lr_pieces,
)
from llama_runner.core._native cimport enter_exclusive
from llama_runner.core.vocab cimport Vocab

from llama_runner import errors
from llama_runner._check import check_bool
from llama_runner.core.vocab import as_tokens


@cython.no_gc_clear
cdef class Detokenizer:
    """Text out of tokens as they come: whole characters at once, half a character when the rest has come.

    The texts that it returns, with the last one of ``flush()``, join to what the bytes of all pieces decode to with
    ``errors="replace"``: ``Vocab.token_to_piece`` of each token, never cleaned up or stripped as ``Vocab.detokenize``
    does for some vocabularies. ``special`` writes special tokens as text instead of nothing. It keeps all bytes until
    ``reset()``.

    One thread at a time; a second one gets ContextBusyError.
    """

    cdef readonly Vocab vocab
    cdef readonly bint special
    cdef lr_guard *guard
    cdef bytes held  # the beginning of a character, at most 3 bytes
    cdef bytearray taken

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()
        self.held = b""
        self.taken = bytearray()

    def __init__(self, Vocab vocab not None, *, special=False):
        if self.vocab is not None:
            raise errors.InvalidArgumentError("this Detokenizer is made already; make a new one")
        self.special = check_bool("special", special)
        self.vocab = vocab

    def __dealloc__(self):
        lr_guard_free(self.guard)

    def __repr__(self):
        return f"<Detokenizer {len(self.taken)} bytes, {len(self.held)} of them pending>"

    cdef int enter(self) except -1:
        if self.vocab is None:  # a subclass that did not call __init__
            raise errors.InvalidArgumentError("this Detokenizer was never made: call Detokenizer.__init__")
        return enter_exclusive(self.guard, "detokenizer")

    cdef str take(self, bytes piece):
        """The text that is certain once ``piece`` has come."""
        cdef bytes data = self.held + piece if self.held else piece
        # CPython 3.11.2 leaves it alone where all is ASCII (gh-99612)
        cdef Py_ssize_t used = PyBytes_GET_SIZE(data)
        text = PyUnicode_DecodeUTF8Stateful(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), "replace", &used)
        self.taken += piece
        self.held = data[used:]
        return text

    def push(self, token):
        """Take one token; return the text that is certain now, ``""`` inside a character.

        Wraps ``llama_token_to_piece``. Raises IndexOutOfRangeError for an id outside the vocabulary: nothing is taken.
        """
        cdef llama_token checked
        self.enter()
        try:
            checked = self.vocab.check_token(token)
            self.vocab.enter()
            try:
                piece = self.vocab.piece(checked, 0, self.special)
            finally:
                self.vocab.leave()
            return self.take(piece)
        finally:
            lr_guard_end_exclusive(self.guard)

    def push_many(self, tokens):
        """Take a sequence of tokens at once; return the text that is certain now. The GIL is released meanwhile.

        Wraps ``llama_token_to_piece``. Raises IndexOutOfRangeError for the first bad id, with nothing taken.
        """
        cdef const int32_t[::1] view
        cdef const llama_token *ids
        cdef size_t count, size
        cdef bytes pieces
        cdef char *out
        self.enter()
        try:
            checked = as_tokens(tokens, self.vocab.n_tokens)
            count = len(checked)
            self.vocab.enter()
            try:
                if count == 0:
                    return ""
                view = checked
                ids = &view[0]
                with nogil:
                    size = lr_pieces(self.vocab.model.vocab_ptr, ids, count, self.special, NULL, NULL)
                pieces = PyBytes_FromStringAndSize(NULL, size)
                out = PyBytes_AS_STRING(pieces)
                with nogil:
                    lr_pieces(self.vocab.model.vocab_ptr, ids, count, self.special, out, NULL)
            finally:
                self.vocab.leave()
            return self.take(pieces)
        finally:
            lr_guard_end_exclusive(self.guard)

    def flush(self):
        """End the text: return half a character that was held back as U+FFFD, else ``""``."""
        self.enter()
        try:
            held, self.held = self.held, b""
            return held.decode("utf-8", "replace")
        finally:
            lr_guard_end_exclusive(self.guard)

    def reset(self):
        """Forget everything that was taken."""
        self.enter()
        try:
            self.held = b""
            self.taken = bytearray()
        finally:
            lr_guard_end_exclusive(self.guard)

    def clone(self):
        """Another one that has taken the same tokens and goes its own way from here."""
        cdef Detokenizer other
        self.enter()
        try:
            other = Detokenizer(self.vocab, special=self.special)
            other.held = self.held
            other.taken = bytearray(self.taken)
            return other
        finally:
            lr_guard_end_exclusive(self.guard)

    @property
    def pending(self):
        """The bytes that are held back: the beginning of a character, at most 3."""
        self.enter()
        try:
            return self.held
        finally:
            lr_guard_end_exclusive(self.guard)

    @property
    def bytes(self):
        """The bytes of all pieces so far, the pending ones included."""
        self.enter()
        try:
            return as_bytes(self.taken)
        finally:
            lr_guard_end_exclusive(self.guard)


cdef object as_bytes(bytearray data):
    return PyBytes_FromStringAndSize(<char *> data, len(data))
