"""``Vocab``: text to tokens and back."""

import cython
import numpy as np

from libc.stddef cimport size_t
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.string cimport memcpy

from llama_runner._c.llama cimport (
    LLAMA_VOCAB_TYPE_NONE,
    llama_time_us,
    llama_token,
    llama_token_to_piece,
    llama_tokenize,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_eot,
    llama_vocab_fim_mid,
    llama_vocab_fim_pad,
    llama_vocab_fim_pre,
    llama_vocab_fim_rep,
    llama_vocab_fim_sep,
    llama_vocab_fim_suf,
    llama_vocab_get_add_bos,
    llama_vocab_get_add_eos,
    llama_vocab_get_add_sep,
    llama_vocab_get_attr,
    llama_vocab_get_score,
    llama_vocab_get_suppress_tokens,
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
from llama_runner._c.native cimport (
    lr_constraint_vocab_free,
    lr_detokenize_new,
    lr_forked,
    lr_guard_end_shared,
    lr_pieces,
    lr_tokenize_new,
    lr_vocab_attrs,
    lr_vocab_frame_size,
    lr_vocab_free,
    lr_vocab_new,
    lr_vocab_scores,
)
from llama_runner.core._native cimport enter_shared
from llama_runner.core.model cimport Model
from llama_runner.core.text_job cimport TextJob

from llama_runner import errors
from llama_runner._check import check_bool, check_int, check_text
from llama_runner.core.token_attr import TokenAttr

# what Cython makes of the C++ exceptions that come of vocabularies with tokens missing
cdef tuple NATIVE_ERRORS = (RuntimeError, IndexError, ValueError)
cdef list TYPES = ["none", "spm", "bpe", "wpm", "ugm", "rwkv", "plamo2", "test"]
cdef size_t MAX_TEXT = INT32_MAX - 16
cdef tuple SPECIAL = (
    "bos", "eos", "eot", "sep", "nl", "pad", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)


@cython.no_gc_clear
cdef class Vocab:
    """The vocabulary of a model; get it as ``model.vocab``. Any number of threads may use it at once.

    While another thread closes the model, every call raises ContextBusyError, afterwards ClosedError. Where the model
    has no vocabulary, everything but ``type``, ``n_tokens`` and ``model`` raises ModelCapabilityError.
    """

    def __init__(self, Model model not None):
        if self.model is not None:
            raise errors.InvalidArgumentError("this Vocab is made already; get another model's as model.vocab")
        enter_shared(model.guard, "model")
        try:
            model.check_open()
            self.native = lr_vocab_new(model.vocab_ptr)
            if self.native == NULL:
                raise MemoryError()
            self.n_tokens = llama_vocab_n_tokens(model.vocab_ptr)
            self.kind = llama_vocab_get_type(model.vocab_ptr)
        finally:
            lr_guard_end_shared(model.guard)
        self.model = model

    def __dealloc__(self):
        if not lr_forked():
            with nogil:
                lr_constraint_vocab_free(self.constraints)
        lr_vocab_free(self.native)

    def __len__(self):
        return self.n_tokens

    def __repr__(self):
        if self.model is None or self.model.closed:
            return "<Vocab of a closed Model>"
        return f"<Vocab {kind_name(self.kind)} {self.n_tokens} tokens>"

    cdef int enter(self) except -1:
        """Hold the model open, with a vocabulary in it, until ``leave``."""
        if self.model is None:  # a subclass that did not call __init__
            raise errors.InvalidArgumentError("this Vocab was never made: get it as model.vocab")
        enter_shared(self.model.guard, "model")
        try:
            self.check_open()
        except BaseException:
            lr_guard_end_shared(self.model.guard)
            raise
        return 0

    cdef int leave(self) except -1:
        lr_guard_end_shared(self.model.guard)
        return 0

    cdef int check_open(self) except -1:
        self.model.check_open()
        if self.kind == <int> LLAMA_VOCAB_TYPE_NONE:
            raise errors.ModelCapabilityError(f"{self.model.path} has no vocabulary: it takes token ids, not text")
        return 0

    cdef llama_token check_token(self, token) except? -1:
        try:
            return check_int("token", token, 0, self.n_tokens - 1)
        except errors.InvalidArgumentError:
            raise errors.IndexOutOfRangeError(
                f"token={int(token)}: the vocabulary has ids from 0 to {self.n_tokens - 1}"
            ) from None

    # ------------------------------------------------------------------------------------------- text to tokens

    cdef TextJob tokenizing(self, add_special, parse_special):
        cdef bint special = check_bool("add_special", add_special), parse = check_bool("parse_special", parse_special)
        self.enter()
        self.leave()
        return TextJob.of(lr_tokenize_new(self.native, special, parse), self)

    def tokenize(self, text, add_special=True, parse_special=False):
        """``text`` as an int32 array of token ids, shape (n,). Wraps ``llama_tokenize``, without the GIL.

        ``add_special`` adds BOS and EOS where the model wants them; ``parse_special`` reads ``<|im_end|>`` and its like
        as the special tokens they name: switch it on for templates of your own, never for text of a user's.
        ``text`` is a str, or bytes in UTF-8; InvalidArgumentError names a NUL, a lone surrogate or bad UTF-8 in it, or
        a run of characters that is too long for llama.cpp's splitter (about a million). ModelCapabilityError where the
        vocabulary has no token for a character or for BOS. Ctrl-C is felt at once, but the native work on a long text
        goes on in the background, with the model in use until it ends.
        """
        cdef TextJob job = self.tokenizing(add_special, parse_special)
        job.add_text(checked_text("text", text))
        job.run(1, "text")
        return job.tokens(0)

    def tokenize_many(self, texts, add_special=True, parse_special=False, n_threads=None, flat=False):
        """The tokens of each of ``texts``, in order. Wraps ``llama_tokenize``, in native threads without the GIL.

        A list of int32 arrays; with ``flat``, one int32 array of all tokens and an int64 array ``offsets`` of n + 1
        numbers: those of text i are ``tokens[offsets[i]:offsets[i + 1]]``. ``n_threads`` is the most to use, None for
        the physical cores of this process; little work is done in the calling thread. Switches and errors as for
        ``tokenize``; an error names the first bad text as ``texts[i]``, and nothing is returned.
        """
        cdef TextJob job = self.tokenizing(add_special, parse_special)
        cdef bint in_one = check_bool("flat", flat)
        cdef size_t i
        for text in iterate("texts", texts):
            job.add_text(checked_text(f"texts[{job.count}]", text))
        job.run(n_threads, "texts[{}]")
        return job.flat_tokens() if in_one else [job.tokens(i) for i in range(job.count)]

    # ------------------------------------------------------------------------------------------- tokens to text

    cdef TextJob detokenizing(self, lists, remove_special, unparse_special, n_threads):
        """A job that has been run. ``lists`` may be one array, which errors then call ``tokens``."""
        cdef bint remove = check_bool("remove_special", remove_special)
        cdef bint unparse = check_bool("unparse_special", unparse_special)
        self.enter()
        self.leave()
        cdef TextJob job = TextJob.of(lr_detokenize_new(self.native, remove, unparse), self)
        if isinstance(lists, np.ndarray):
            job.add_tokens(lists)
            job.run(1, "tokens")
            return job
        for tokens in lists:
            try:
                job.add_tokens(as_tokens(tokens, self.n_tokens))
            except errors.UsageError as error:
                raise type(error)(f"token_lists[{job.count}]: {error}") from None
        job.run(n_threads, "token_lists[{}]")
        return job

    def detokenize_bytes(self, tokens, remove_special=False, unparse_special=False):
        """The bytes that a sequence of token ids stands for. Wraps ``llama_detokenize``, without the GIL.

        ``remove_special`` leaves BOS and EOS out at the ends; ``unparse_special`` writes special tokens as text instead
        of leaving them out. Raises IndexOutOfRangeError for an id outside the vocabulary.
        """
        ids = as_tokens(tokens, self.n_tokens)
        return self.detokenizing(ids, remove_special, unparse_special, 1).data(0)

    def detokenize(self, tokens, remove_special=False, unparse_special=False):
        """``detokenize_bytes`` as a str; bytes that are no UTF-8 become U+FFFD."""
        ids = as_tokens(tokens, self.n_tokens)
        return self.detokenizing(ids, remove_special, unparse_special, 1).text(0)

    def detokenize_bytes_many(self, token_lists, remove_special=False, unparse_special=False, n_threads=None):
        """``detokenize_bytes`` of each of ``token_lists``, a list in order. In native threads without the GIL.

        ``n_threads`` as for ``tokenize_many``; an error names the first bad list as ``token_lists[i]``.
        """
        cdef size_t i
        lists = iterate("token_lists", token_lists)
        cdef TextJob job = self.detokenizing(lists, remove_special, unparse_special, n_threads)
        return [job.data(i) for i in range(job.count)]

    def detokenize_many(self, token_lists, remove_special=False, unparse_special=False, n_threads=None):
        """``detokenize_bytes_many`` as a list of str; bytes that are no UTF-8 become U+FFFD."""
        cdef size_t i
        lists = iterate("token_lists", token_lists)
        cdef TextJob job = self.detokenizing(lists, remove_special, unparse_special, n_threads)
        return [job.text(i) for i in range(job.count)]

    def token_to_piece(self, token, special=False, lstrip=0):
        """The bytes of one token, which may be part of a character. Wraps ``llama_token_to_piece``.

        ``special`` writes special tokens as text instead of nothing; up to ``lstrip`` leading spaces are left out.
        """
        cdef llama_token checked = self.check_token(token)
        cdef int strip = check_int("lstrip", lstrip, 0, INT32_MAX)
        cdef bint with_special = check_bool("special", special)
        self.enter()
        try:
            return self.piece(checked, strip, with_special)
        finally:
            self.leave()

    cdef bytes piece(self, llama_token token, int lstrip, bint special):
        """``token_to_piece`` for a checked id, while the model is held open."""
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

    # ------------------------------------------------------------------------------------------- one token

    def is_eog(self, token):
        """Whether the token ends a generation (EOS, EOT, …). Wraps ``llama_vocab_is_eog``."""
        cdef llama_token checked = self.check_token(token)
        self.enter()
        try:
            return llama_vocab_is_eog(self.model.vocab_ptr, checked)
        finally:
            self.leave()

    def is_control(self, token):
        """Whether the token is a control token, which has no text. Wraps ``llama_vocab_is_control``."""
        cdef llama_token checked = self.check_token(token)
        self.enter()
        try:
            return llama_vocab_is_control(self.model.vocab_ptr, checked)
        finally:
            self.leave()

    def text(self, token):
        """The token as the file spells it. Wraps ``llama_vocab_get_text``."""
        cdef llama_token checked = self.check_token(token)
        self.enter()
        try:
            return llama_vocab_get_text(self.model.vocab_ptr, checked).decode("utf-8", "replace")
        finally:
            self.leave()

    def score(self, token):
        """The token's score in the file. Wraps ``llama_vocab_get_score``."""
        cdef llama_token checked = self.check_token(token)
        self.enter()
        try:
            return llama_vocab_get_score(self.model.vocab_ptr, checked)
        finally:
            self.leave()

    def attr(self, token):
        """The token's attributes, a ``TokenAttr``. Wraps ``llama_vocab_get_attr``."""
        cdef llama_token checked = self.check_token(token)
        self.enter()
        try:
            return TokenAttr(<int> llama_vocab_get_attr(self.model.vocab_ptr, checked))
        finally:
            self.leave()

    # ------------------------------------------------------------------------------------------- all tokens

    def pieces(self, special=False, flat=False):
        """``token_to_piece`` of every token: a list of bytes by id. Wraps ``llama_token_to_piece``.

        With ``flat``, one uint8 array of all bytes and an int64 array ``offsets`` of n + 1 numbers: those of token i
        are ``data[offsets[i]:offsets[i + 1]]``. Made anew at each call.
        """
        cdef bint with_special = check_bool("special", special), in_one = check_bool("flat", flat)
        cdef size_t total
        cdef unsigned char[::1] data_view
        cdef int i
        offsets = np.empty(self.n_tokens + 1, dtype=np.int64)
        cdef int64_t[::1] starts = offsets
        self.enter()
        try:
            with nogil:
                total = lr_pieces(self.model.vocab_ptr, NULL, self.n_tokens, with_special, NULL, NULL)
            data = np.empty(max(total, 1), dtype=np.uint8)[:total]
            data_view = data
            with nogil:
                lr_pieces(
                    self.model.vocab_ptr, NULL, self.n_tokens, with_special, <char *> &data_view[0], &starts[0])
        finally:
            self.leave()
        if in_one:
            return data, offsets
        whole = data.tobytes()
        return [whole[starts[i]:starts[i + 1]] for i in range(self.n_tokens)]

    @property
    def scores(self):
        """``score`` of every token, float32, shape (n,); made anew each time. Wraps ``llama_vocab_get_score``."""
        values = np.empty(self.n_tokens, dtype=np.float32)
        cdef float[::1] view = values
        self.enter()
        try:
            if self.n_tokens:
                with nogil:
                    lr_vocab_scores(self.model.vocab_ptr, &view[0])
        finally:
            self.leave()
        return values

    @property
    def attrs(self):
        """``attr`` of every token, int32, shape (n,); made anew each time. Wraps ``llama_vocab_get_attr``.

        ``vocab.attrs & TokenAttr.CONTROL`` selects by attribute.
        """
        values = np.empty(self.n_tokens, dtype=np.int32)
        cdef int32_t[::1] view = values
        self.enter()
        try:
            if self.n_tokens:
                with nogil:
                    lr_vocab_attrs(self.model.vocab_ptr, &view[0])
        finally:
            self.leave()
        return values

    @property
    def eog_tokens(self):
        """All tokens that end a generation, as a list of ids. Wraps ``llama_vocab_is_eog``."""
        cdef llama_token token
        self.enter()
        try:
            return [token for token in range(self.n_tokens) if llama_vocab_is_eog(self.model.vocab_ptr, token)]
        finally:
            self.leave()

    @property
    def suppress_tokens(self):
        """Tokens that the model file wants never to be generated, int32. Wraps ``llama_vocab_get_suppress_tokens``."""
        cdef int32_t count = 0
        cdef const llama_token *found
        cdef int32_t[::1] view
        self.enter()
        try:
            found = llama_vocab_get_suppress_tokens(self.model.vocab_ptr, &count)
            values = np.empty(count, dtype=np.int32)
            if count:
                view = values
                memcpy(&view[0], found, count * sizeof(llama_token))
        finally:
            self.leave()
        return values

    # ------------------------------------------------------------------------------------------- facts

    @property
    def type(self):
        """``"spm"``, ``"bpe"``, ``"wpm"``, … or ``"none"``. Wraps ``llama_vocab_type``."""
        if self.model is None:  # a subclass that did not call __init__
            raise errors.InvalidArgumentError("this Vocab was never made: get it as model.vocab")
        self.model.check_open()
        return kind_name(self.kind)

    @property
    def add_bos(self):
        """Whether ``tokenize`` begins with BOS. Wraps ``llama_vocab_get_add_bos``."""
        self.enter()
        try:
            return llama_vocab_get_add_bos(self.model.vocab_ptr)
        finally:
            self.leave()

    @property
    def add_eos(self):
        """Whether ``tokenize`` ends with EOS. Wraps ``llama_vocab_get_add_eos``."""
        self.enter()
        try:
            return llama_vocab_get_add_eos(self.model.vocab_ptr)
        finally:
            self.leave()

    @property
    def add_sep(self):
        """Whether the model wants SEP between two texts. Wraps ``llama_vocab_get_add_sep``."""
        self.enter()
        try:
            return llama_vocab_get_add_sep(self.model.vocab_ptr)
        finally:
            self.leave()

    cdef object special_token(self, token_getter get):
        cdef llama_token token
        self.enter()
        try:
            token = get(self.model.vocab_ptr)
        finally:
            self.leave()
        return token if 0 <= token < self.n_tokens else None

    @property
    def special_tokens(self):
        """The special tokens that there are, a dict from the name of a property of this class to its id."""
        found = {name: getattr(self, name) for name in SPECIAL}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def bos(self):
        """Beginning of text, or None. Wraps ``llama_vocab_bos``."""
        return self.special_token(llama_vocab_bos)

    @property
    def eos(self):
        """End of text, or None. Wraps ``llama_vocab_eos``."""
        return self.special_token(llama_vocab_eos)

    @property
    def eot(self):
        """End of turn, or None. Wraps ``llama_vocab_eot``."""
        return self.special_token(llama_vocab_eot)

    @property
    def sep(self):
        """Separator, or None. Wraps ``llama_vocab_sep``."""
        return self.special_token(llama_vocab_sep)

    @property
    def nl(self):
        """Newline, or None. Wraps ``llama_vocab_nl``."""
        return self.special_token(llama_vocab_nl)

    @property
    def pad(self):
        """Padding, or None. Wraps ``llama_vocab_pad``."""
        return self.special_token(llama_vocab_pad)

    @property
    def mask(self):
        """Mask, or None. Wraps ``llama_vocab_mask``."""
        return self.special_token(llama_vocab_mask)

    @property
    def fim_pre(self):
        """Start of the text before a gap to fill in, or None. Wraps ``llama_vocab_fim_pre``."""
        return self.special_token(llama_vocab_fim_pre)

    @property
    def fim_suf(self):
        """Start of the text after a gap to fill in, or None. Wraps ``llama_vocab_fim_suf``."""
        return self.special_token(llama_vocab_fim_suf)

    @property
    def fim_mid(self):
        """Start of the filling of a gap, or None. Wraps ``llama_vocab_fim_mid``."""
        return self.special_token(llama_vocab_fim_mid)

    @property
    def fim_pad(self):
        """Padding of a text with a gap, or None. Wraps ``llama_vocab_fim_pad``."""
        return self.special_token(llama_vocab_fim_pad)

    @property
    def fim_rep(self):
        """Start of a repository's name, or None. Wraps ``llama_vocab_fim_rep``."""
        return self.special_token(llama_vocab_fim_rep)

    @property
    def fim_sep(self):
        """Start of a file's name, between files, or None. Wraps ``llama_vocab_fim_sep``."""
        return self.special_token(llama_vocab_fim_sep)


cdef str kind_name(int kind):
    return TYPES[kind] if 0 <= kind < len(TYPES) else str(kind)


cdef bytes checked_text(str name, text):
    cdef bytes data = check_text(name, text)
    if <size_t> len(data) > MAX_TEXT:
        raise errors.InvalidArgumentError(f"{name} of {len(data)} bytes: llama.cpp tokenizes at most 2 GiB at once")
    return data


cdef object iterate(str name, values):
    """An iterator over many texts or lists of tokens; one text is a frequent mistake."""
    if not isinstance(values, (str, bytes, bytearray, memoryview)):
        try:
            return iter(values)
        except TypeError:
            pass
    raise errors.ArgumentTypeError(f"{name} is a sequence of several, not one {type(values).__name__}")


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


def native_tokenize_seconds(Vocab vocab not None, bytes text):
    """How long ``llama_tokenize`` itself takes, with a buffer that is large enough: what benchmarks compare with."""
    cdef const char *c_text = text
    cdef int32_t length = len(text), found
    cdef int32_t[::1] room = np.empty(length + 16, dtype=np.int32)
    cdef int64_t start, end
    vocab.enter()
    try:
        with nogil:
            start = llama_time_us()
            found = llama_tokenize(vocab.model.vocab_ptr, c_text, length, &room[0], length + 16, True, False)
            end = llama_time_us()
    finally:
        vocab.leave()
    return found, (end - start) / 1e6


def frame_size(Vocab vocab not None):
    """Bytes of stack for each character of a run that llama.cpp's splitter takes with this vocabulary: for tests."""
    vocab.enter()
    try:
        return lr_vocab_frame_size(vocab.native)
    finally:
        vocab.leave()
