"""``Vocab``: text to tokens and back."""

import cython
import numpy as np

from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t

from llama_runner._c.llama cimport (
    LLAMA_VOCAB_TYPE_NONE,
    llama_detokenize,
    llama_token,
    llama_token_to_piece,
    llama_tokenize,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_eot,
    llama_vocab_fim_mid,
    llama_vocab_fim_pre,
    llama_vocab_fim_suf,
    llama_vocab_get_add_bos,
    llama_vocab_get_add_eos,
    llama_vocab_get_attr,
    llama_vocab_get_score,
    llama_vocab_get_text,
    llama_vocab_get_type,
    llama_vocab_is_control,
    llama_vocab_is_eog,
    llama_vocab_mask,
    llama_vocab_n_tokens,
    llama_vocab_nl,
    llama_vocab_pad,
    llama_vocab_sep,
)
from llama_runner._c.native cimport lr_guard_end_shared
from llama_runner.core._native cimport enter_shared
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_bool, check_int, check_text

# what Cython makes of the C++ exceptions that come of vocabularies with tokens missing
cdef tuple NATIVE_ERRORS = (RuntimeError, IndexError, ValueError)
cdef list TYPES = ["none", "spm", "bpe", "wpm", "ugm", "rwkv", "plamo2", "test"]


@cython.no_gc_clear
cdef class Vocab:
    """The vocabulary of a model; get it as ``model.vocab``. Any number of threads may use it at once."""

    def __init__(self, Model model not None):
        model.check_open()
        self.model = model
        self.n_tokens = llama_vocab_n_tokens(model.vocab_ptr)

    def __len__(self):
        return self.n_tokens

    def __repr__(self):
        if self.model is None or self.model.ptr == NULL:
            return "<Vocab of a closed Model>"
        return f"<Vocab {self.type} {self.n_tokens} tokens>"

    cdef int check_open(self) except -1:
        self.model.check_open()
        if llama_vocab_get_type(self.model.vocab_ptr) == <int> LLAMA_VOCAB_TYPE_NONE:
            raise errors.ModelCapabilityError(f"{self.model.path} has no vocabulary: it takes token ids, not text")
        return 0

    cdef llama_token check_token(self, token) except? -1:
        try:
            return check_int("token", token, 0, self.n_tokens - 1)
        except errors.InvalidArgumentError:
            raise errors.IndexOutOfRangeError(
                f"token={int(token)}: the vocabulary has ids from 0 to {self.n_tokens - 1}"
            ) from None

    def tokenize(self, text, add_special=True, parse_special=False):
        """``text`` as an int32 array of token ids, shape (n,). Wraps ``llama_tokenize``, without the GIL.

        ``add_special`` adds BOS and EOS where the model wants them; ``parse_special`` reads ``<|im_end|>`` and its like
        as the special tokens they name: switch it on for templates of your own, never for text of a user's.
        ``text`` is a str, or bytes in UTF-8; InvalidArgumentError names a NUL, a lone surrogate or bad UTF-8 in it.
        """
        cdef bytes data = check_text("text", text)
        if len(data) > INT32_MAX - 16:
            raise errors.InvalidArgumentError(f"text of {len(data)} bytes: llama.cpp tokenizes at most 2 GiB at once")
        cdef const char *c_text = data
        cdef int32_t length = <int32_t> len(data), found
        cdef int32_t room = length + 8
        cdef bint special = check_bool("add_special", add_special), parse = check_bool("parse_special", parse_special)
        cdef int32_t[::1] view
        self.check_open()
        while True:
            ids = np.empty(room, dtype=np.int32)
            view = ids
            enter_shared(self.model.guard, "model")
            try:
                with nogil:
                    found = llama_tokenize(self.model.vocab_ptr, c_text, length, &view[0], room, special, parse)
            except NATIVE_ERRORS as error:
                raise errors.LlamaRuntimeError(f"cannot tokenize: {error}") from None
            finally:
                lr_guard_end_shared(self.model.guard)
            if found >= 0:
                return ids[:found].copy()
            if found == INT32_MIN:
                raise errors.InvalidArgumentError(f"text of {length} bytes has more tokens than llama.cpp can count")
            room = -found

    def detokenize_bytes(self, tokens, remove_special=False, unparse_special=False):
        """The bytes that a sequence of token ids stands for. Wraps ``llama_detokenize``, without the GIL.

        ``remove_special`` leaves BOS and EOS out at the ends; ``unparse_special`` writes special tokens as text instead
        of leaving them out. Raises IndexOutOfRangeError for an id outside the vocabulary.
        """
        ids = as_tokens(tokens, self.n_tokens)
        cdef const int32_t[::1] view = ids
        cdef int32_t count = <int32_t> len(ids), found
        cdef int32_t room = count * 8 + 64
        cdef bint remove = check_bool("remove_special", remove_special)
        cdef bint unparse = check_bool("unparse_special", unparse_special)
        cdef char[::1] out
        self.check_open()
        if count == 0:
            return b""
        while True:
            text = bytearray(room)
            out = text
            enter_shared(self.model.guard, "model")
            try:
                with nogil:
                    found = llama_detokenize(self.model.vocab_ptr, &view[0], count, &out[0], room, remove, unparse)
            finally:
                lr_guard_end_shared(self.model.guard)
            if found >= 0:
                return bytes(text[:found])
            room = -found

    def detokenize(self, tokens, remove_special=False, unparse_special=False):
        """``detokenize_bytes`` as a str; bytes that are no UTF-8 become U+FFFD."""
        return self.detokenize_bytes(tokens, remove_special, unparse_special).decode("utf-8", "replace")

    def token_to_piece(self, token, special=False, lstrip=0):
        """The bytes of one token, which may be part of a character. Wraps ``llama_token_to_piece``.

        ``special`` writes special tokens as text instead of nothing; up to ``lstrip`` leading spaces are left out.
        """
        cdef llama_token checked = self.check_token(token)
        cdef int strip = check_int("lstrip", lstrip, 0, INT32_MAX)
        cdef bint with_special = check_bool("special", special)
        self.check_open()
        return self.piece(checked, strip, with_special)

    cdef bytes piece(self, llama_token token, int lstrip, bint special):
        """``token_to_piece`` for a checked id of an open model."""
        cdef char small[128]
        cdef bytearray large
        cdef char[::1] view
        cdef int32_t found = llama_token_to_piece(self.model.vocab_ptr, token, small, sizeof(small), lstrip, special)
        if found >= 0:
            return small[:found]
        large = bytearray(-found)
        view = large
        found = llama_token_to_piece(self.model.vocab_ptr, token, &view[0], -found, lstrip, special)
        return bytes(large[:found])

    @property
    def type(self):
        """``"spm"``, ``"bpe"``, ``"wpm"``, … or ``"none"``. Wraps ``llama_vocab_type``."""
        self.model.check_open()
        kind = llama_vocab_get_type(self.model.vocab_ptr)
        return TYPES[kind] if 0 <= kind < len(TYPES) else str(kind)

    def is_eog(self, token):
        """Whether the token ends a generation (EOS, EOT, …). Wraps ``llama_vocab_is_eog``."""
        cdef llama_token checked = self.check_token(token)
        self.check_open()
        return llama_vocab_is_eog(self.model.vocab_ptr, checked)

    def is_control(self, token):
        """Whether the token is a control token, which has no text. Wraps ``llama_vocab_is_control``."""
        cdef llama_token checked = self.check_token(token)
        self.check_open()
        return llama_vocab_is_control(self.model.vocab_ptr, checked)

    def text(self, token):
        """The token as the file spells it. Wraps ``llama_vocab_get_text``."""
        cdef llama_token checked = self.check_token(token)
        self.check_open()
        return llama_vocab_get_text(self.model.vocab_ptr, checked).decode("utf-8", "replace")

    def score(self, token):
        """The token's score in the file. Wraps ``llama_vocab_get_score``."""
        cdef llama_token checked = self.check_token(token)
        self.check_open()
        return llama_vocab_get_score(self.model.vocab_ptr, checked)

    def attr(self, token):
        """The token's attributes, an int of ``LLAMA_TOKEN_ATTR_*`` bits. Wraps ``llama_vocab_get_attr``."""
        cdef llama_token checked = self.check_token(token)
        self.check_open()
        return <int> llama_vocab_get_attr(self.model.vocab_ptr, checked)

    @property
    def bos(self):
        """Beginning of text, or None. Wraps ``llama_vocab_bos``."""
        self.check_open()
        return optional(llama_vocab_bos(self.model.vocab_ptr))

    @property
    def eos(self):
        """End of text, or None. Wraps ``llama_vocab_eos``."""
        self.check_open()
        return optional(llama_vocab_eos(self.model.vocab_ptr))

    @property
    def eot(self):
        """End of turn, or None. Wraps ``llama_vocab_eot``."""
        self.check_open()
        return optional(llama_vocab_eot(self.model.vocab_ptr))

    @property
    def sep(self):
        """Separator, or None. Wraps ``llama_vocab_sep``."""
        self.check_open()
        return optional(llama_vocab_sep(self.model.vocab_ptr))

    @property
    def nl(self):
        """Newline, or None. Wraps ``llama_vocab_nl``."""
        self.check_open()
        return optional(llama_vocab_nl(self.model.vocab_ptr))

    @property
    def pad(self):
        """Padding, or None. Wraps ``llama_vocab_pad``."""
        self.check_open()
        return optional(llama_vocab_pad(self.model.vocab_ptr))

    @property
    def mask(self):
        """Mask, or None. Wraps ``llama_vocab_mask``."""
        self.check_open()
        return optional(llama_vocab_mask(self.model.vocab_ptr))

    @property
    def fim_pre(self):
        """Start of the text before a gap to fill in, or None. Wraps ``llama_vocab_fim_pre``."""
        self.check_open()
        return optional(llama_vocab_fim_pre(self.model.vocab_ptr))

    @property
    def fim_suf(self):
        """Start of the text after a gap to fill in, or None. Wraps ``llama_vocab_fim_suf``."""
        self.check_open()
        return optional(llama_vocab_fim_suf(self.model.vocab_ptr))

    @property
    def fim_mid(self):
        """Start of the filling of a gap, or None. Wraps ``llama_vocab_fim_mid``."""
        self.check_open()
        return optional(llama_vocab_fim_mid(self.model.vocab_ptr))

    @property
    def eog_tokens(self):
        """All tokens that end a generation, as a list of ids. Wraps ``llama_vocab_is_eog``."""
        cdef llama_token token
        self.check_open()
        return [token for token in range(self.n_tokens) if llama_vocab_is_eog(self.model.vocab_ptr, token)]

    @property
    def add_bos(self):
        """Whether ``tokenize`` begins with BOS. Wraps ``llama_vocab_get_add_bos``."""
        self.check_open()
        return llama_vocab_get_add_bos(self.model.vocab_ptr)

    @property
    def add_eos(self):
        """Whether ``tokenize`` ends with EOS. Wraps ``llama_vocab_get_add_eos``."""
        self.check_open()
        return llama_vocab_get_add_eos(self.model.vocab_ptr)


cdef object optional(llama_token token):
    return None if token < 0 else token


def as_tokens(tokens, n_vocab):
    """``tokens`` as a contiguous int32 array of ids from 0 to ``n_vocab - 1``; an error names the first bad one."""
    try:
        ids = np.asarray(tokens)
    except (TypeError, ValueError):
        raise errors.ArgumentTypeError(f"tokens is a sequence of token ids, not {type(tokens).__name__}") from None
    if ids.size == 0:
        return np.empty(0, dtype=np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise errors.ArgumentTypeError(
            f"tokens is a flat sequence of token ids, not {type(tokens).__name__} of shape {ids.shape}, "
            f"dtype {ids.dtype}"
        )
    bad = (ids < 0) | (ids >= n_vocab)
    if bad.any():
        at = int(bad.argmax())
        raise errors.IndexOutOfRangeError(
            f"tokens[{at}]={int(ids[at])}: the vocabulary has ids from 0 to {n_vocab - 1}"
        )
    return np.ascontiguousarray(ids, dtype=np.int32)
