"""``Constraint``: which tokens a schema, a regular expression or a grammar allows, by llguidance."""

import ctypes
import re
import threading

import cython
import numpy as np

from libc.stddef cimport size_t
from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from llama_runner._c.llama cimport llama_token
from llama_runner._c.native cimport (
    lr_constraint_accepting,
    lr_constraint_clone,
    lr_constraint_consume,
    lr_constraint_error,
    lr_constraint_forced,
    lr_constraint_free,
    lr_constraint_limits,
    lr_constraint_mask,
    lr_constraint_new,
    lr_constraint_reset,
    lr_constraint_rollback,
    lr_constraint_stopped,
    lr_constraint_taken,
    lr_constraint_vocab,
    lr_constraint_vocab_canonical,
    lr_constraint_vocab_ends,
    lr_constraint_vocab_new,
    lr_constraint_vocab_piece,
    lr_constraint_vocab_tokenize,
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_free,
    lr_guard_new,
    lr_llg_bind,
    lr_llg_symbols,
    lr_llg_version,
)
from llama_runner.core._native cimport enter_exclusive, take_string

from llama_runner import errors
from llama_runner._check import check_int, check_text
from llama_runner._json_schema import guided_schema
from llama_runner._syntax import deepest
from llama_runner.core.vocab import as_tokens

cdef tuple LIMITS = (
    "max_items_in_row", "initial_lexer_fuel", "step_lexer_fuel", "step_max_items", "max_lexer_states",
    "max_grammar_size",
)
cdef str EXTRA = "install llama-runner[structured]"
cdef size_t MAX_TEXT = 4 << 20
cdef int MAX_RULES = 10_000  # of a Lark grammar: the same
cdef int MAX_REFERENCES = 130  # of JSON schemas in a Lark grammar
cdef int MAX_NESTING = 200  # parentheses of a grammar or regular expression: llguidance parses them by recursion
MAX_CHOICES = 100_000
# what a regular expression of llguidance's gives a meaning to
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")

cdef bint bound = False
cdef object binding = threading.Lock()
cdef object building = threading.Lock()


cdef int bind() except -1:
    """Find llguidance's C interface in its Python package, and hold it to what is known here."""
    global bound
    cdef const char *const *names
    cdef char *error = NULL
    cdef size_t n = lr_llg_symbols(&names), i
    cdef void *addresses[64]
    if bound:
        return 0
    with binding:
        try:
            import llguidance
            from llguidance import _lib
        except ImportError as missing:
            raise errors.MissingExtraError(f"this needs llguidance: {EXTRA} ({missing})") from None
        version = getattr(llguidance, "__version__", "of unknown version")
        try:
            library = ctypes.CDLL(_lib.__file__)  # it is loaded already: this is a handle of the same
            for i in range(n):
                address = ctypes.cast(getattr(library, names[i].decode()), ctypes.c_void_p).value
                addresses[i] = <void *> <uintptr_t> address
        except (AttributeError, OSError) as missing:
            raise errors.MissingExtraError(
                f"llguidance {version} has no C interface that is known here: {EXTRA} ({missing})"
            ) from None
        if lr_llg_bind(addresses, &error) != 0:
            raise errors.MissingExtraError(
                f"llguidance {version} is not as it is known here, {take_string(error)}: {EXTRA}"
            )
        bound = True
    return 0


cdef lr_constraint_vocab *vocabulary(Vocab vocab) except NULL:
    """What llguidance knows of a vocabulary, made when it is first asked for; the caller is inside the vocabulary."""
    cdef char *error = NULL
    cdef lr_constraint_vocab *made
    bind()
    with building:
        if vocab.constraints == NULL:
            with nogil:
                made = lr_constraint_vocab_new(vocab.model.vocab_ptr, &error)
            if made == NULL:
                raise errors.ModelCapabilityError(
                    f"{vocab!r} cannot be used with constraints: {take_string(error)}")
            vocab.constraints = made
    return vocab.constraints


def llguidance_version():
    """The version of the llguidance that is used, as it tells it. Raises MissingExtraError where there is none."""
    bind()
    return lr_llg_version().decode()


cdef class ConstraintVocab:
    """A vocabulary as constraints see it: the bytes of each token, and how text is tokenized. Any thread.

    Made once for a ``Vocab`` (a second for 250,000 tokens), and shared. Raises MissingExtraError without llguidance.
    """

    def __init__(self, Vocab vocab not None):
        vocab.enter()
        try:
            vocabulary(vocab)
        finally:
            vocab.leave()
        self.vocab = vocab

    def __repr__(self):
        return f"<ConstraintVocab {self.vocab!r}>"

    @property
    def canonical(self):
        """Whether text is tokenized as the model's tokenizer does it, byte for byte: tokens are forced only then."""
        self.vocab.enter()
        try:
            return lr_constraint_vocab_canonical(self.vocab.constraints)
        finally:
            self.vocab.leave()

    @property
    def end_tokens(self):
        """The tokens that may stand at the end of a text, as a list of ids, the file's own EOS first."""
        cdef size_t n, i
        cdef const llama_token *ends
        self.vocab.enter()
        try:
            ends = lr_constraint_vocab_ends(self.vocab.constraints, &n)
            return [ends[i] for i in range(n)]
        finally:
            self.vocab.leave()

    def piece(self, token):
        """The bytes of a token. A byte 0xff is before those of one that stands for no text, such as an end."""
        cdef llama_token c_token = self.vocab.check_token(token)
        cdef size_t size
        cdef const uint8_t *piece
        self.vocab.enter()
        try:
            piece = lr_constraint_vocab_piece(self.vocab.constraints, c_token, &size)
            return (<const char *> piece)[:size]
        finally:
            self.vocab.leave()

    def tokenize(self, text):
        """The tokens of ``text`` in the middle of a text, int32: their bytes are its bytes.

        Raises ModelCapabilityError where the vocabulary is not ``canonical``.
        """
        cdef bytes data = check_text("text", text)
        cdef const char *c_data = data
        cdef size_t size = len(data)
        cdef int32_t n
        tokens = np.empty(size + 1, dtype=np.int32)
        cdef int32_t[::1] view = tokens
        self.vocab.enter()
        try:
            with nogil:
                n = lr_constraint_vocab_tokenize(
                    self.vocab.constraints, <const uint8_t *> c_data, size, &view[0], size + 1)
        finally:
            self.vocab.leave()
        if n < 0:
            raise errors.ModelCapabilityError(f"{self!r} does not tokenize as its model does")
        return tokens[:n].copy()


@cython.no_gc_clear
cdef class Constraint:
    """A grammar over a vocabulary, and how far a text has got in it. Made by ``json_schema``, ``regex``, ``choices``,
    ``lark`` or ``gbnf``.

        constraint = Constraint.json_schema(model.vocab, {"type": "object", "properties": {"n": {"type": "integer"}}})
        chain = SamplerChain().constraint(constraint).greedy()

    Tokens that end a generation are allowed exactly where the text may end. One thread at a time: a second one gets
    ContextBusyError. What is malformed or cannot be enforced is a ConstraintError; without llguidance everything raises
    MissingExtraError. A grammar is compiled once for a vocabulary; further constraints with it are copies.

    ``limits`` bounds what llguidance may spend, by its names: ``max_items_in_row``, ``initial_lexer_fuel``,
    ``step_lexer_fuel``, ``step_max_items``, ``max_lexer_states``, ``max_grammar_size``.
    """

    def __cinit__(self, *args, **options):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()

    def __init__(self, *args, **options):
        raise errors.ArgumentTypeError("make one with Constraint.json_schema, regex, choices, lark or gbnf")

    def __dealloc__(self):
        if self.ptr != NULL and not lr_forked():
            with nogil:
                lr_constraint_free(self.ptr)
        lr_guard_free(self.guard)

    def __repr__(self):
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"<Constraint {self.kind} {text}>"

    cdef int enter(self) except -1:
        enter_exclusive(self.guard, "constraint")
        try:
            self.vocab.enter()
        except BaseException:
            lr_guard_end_exclusive(self.guard)
            raise
        return 0

    cdef void leave(self) noexcept:
        self.vocab.leave()
        lr_guard_end_exclusive(self.guard)

    cdef object failure(self, str doing):
        return errors.SamplingError(f"{doing}: {lr_constraint_error(self.ptr).decode('utf-8', 'replace')}")

    # --- making one

    @staticmethod
    def json_schema(Vocab vocab not None, schema, *, whitespace="line", limits=None):
        """JSON text that fits a schema: a dict, a bool, or JSON text.

        Keys come in the order of the schema. ``whitespace``: ``"line"`` allows a space after commas and colons,
        ``"compact"`` none, ``"any"`` up to 40 characters wherever JSON does. A keyword that would not be kept is a
        ConstraintError naming it; docs/structured.md lists them.
        """
        return compile(vocab, "json_schema", guided_schema(schema, whitespace), limits)

    @staticmethod
    def regex(Vocab vocab not None, pattern, *, limits=None):
        """Text that a regular expression matches as a whole, in the syntax of Rust's ``regex`` without look-around."""
        check_nesting("the regular expression", check_text("pattern", pattern))
        return compile(vocab, "regex", pattern, limits)

    @staticmethod
    def choices(Vocab vocab not None, choices, *, limits=None):
        """One of several texts."""
        texts = [SPECIAL.sub(r"\\\g<0>", text) for text in check_choices(choices)]
        return compile(vocab, "regex", "|".join(texts), limits)

    @staticmethod
    def lark(Vocab vocab not None, grammar, *, limits=None):
        """Text that fits a grammar in llguidance's variant of Lark, from its rule ``start`` on."""
        check_lark(check_text("grammar", grammar))
        return compile(vocab, "lark", grammar, limits)

    @staticmethod
    def gbnf(Vocab vocab not None, grammar, *, limits=None):
        """Text that fits a GBNF grammar, from its rule ``root`` on, as llguidance's converter translates it.

        Rules without references become lexemes there, which take as much text as they can: a grammar that counts on
        less is narrower than with ``SamplerChain.grammar``, which follows GBNF to the letter and is slower.
        """
        check_nesting("the grammar", check_text("grammar", grammar))
        bind()
        from llguidance.gbnf_to_lark import gbnf_to_lark
        try:
            lark = gbnf_to_lark(grammar if isinstance(grammar, str) else bytes(grammar).decode())
        except Exception as error:  # its own kind, and whatever a parser that was not expecting this text raises
            raise errors.ConstraintError(f"the GBNF grammar cannot be translated: {error}") from None
        check_lark(lark.encode())
        return compile(vocab, "lark", lark, limits)

    def clone(self):
        """A constraint of its own that has got as far."""
        cdef Constraint made = Constraint.__new__(Constraint)
        self.enter()
        try:
            with nogil:
                made.ptr = lr_constraint_clone(self.ptr)
        finally:
            self.leave()
        if made.ptr == NULL:
            raise MemoryError()
        made.vocab, made.kind, made.text, made.limits = self.vocab, self.kind, self.text, self.limits
        return made

    # --- how far it has got

    def compute_mask(self):
        """Which tokens are allowed now: uint32, shape (ceil(n_vocab / 32),).

        Token t is bit ``t % 32`` of word ``t // 32``.
        Raises SamplingError where the grammar takes more to follow than ``limits`` allow.
        """
        cdef size_t words = (self.vocab.n_tokens + 31) // 32
        mask = np.empty(words, dtype=np.uint32)
        cdef uint32_t[::1] view = mask
        cdef const uint32_t *found
        self.enter()
        try:
            with nogil:
                found = lr_constraint_mask(self.ptr)
            if found == NULL:
                raise self.failure("which tokens are allowed cannot be said")
            memcpy(&view[0], found, words * sizeof(uint32_t))
        finally:
            self.leave()
        return mask

    def forced_tokens(self, limit=256):
        """The tokens that must come next, at most ``limit``, int32; none where there is a choice. Nothing is consumed.

        The grammar forces bytes; that these are their tokens is what the model's tokenizer makes of them. Where it is
        not ``ConstraintVocab.canonical`` none are forced but the end.
        """
        cdef int32_t room = check_int("limit", limit, 1, 1 << 20), n
        tokens = np.empty(room, dtype=np.int32)
        cdef int32_t[::1] view = tokens
        self.enter()
        try:
            with nogil:
                n = lr_constraint_forced(self.ptr, &view[0], room)
            if n < 0:
                raise self.failure("which tokens are forced cannot be said")
        finally:
            self.leave()
        return tokens[:n].copy()

    def consume(self, tokens):
        """Go on by a token, or by several: by all of them, or by none where one is not allowed (SamplingError)."""
        cdef int code
        if isinstance(tokens, (int, np.integer)) and not isinstance(tokens, bool):
            tokens = [tokens]
        ids = as_tokens(tokens, self.vocab.n_tokens)
        cdef const int32_t[::1] view = ids
        cdef size_t n = len(ids)
        if n == 0:
            return
        self.enter()
        try:
            with nogil:
                code = lr_constraint_consume(self.ptr, &view[0], n)
            if code != 0:
                raise self.failure("the constraint was left")
        finally:
            self.leave()

    def rollback(self, n):
        """Take back the last ``n`` tokens; InvalidArgumentError when fewer were consumed."""
        cdef size_t count = check_int("n", n, 0, INT32_MAX)
        cdef int code
        self.enter()
        try:
            if count > lr_constraint_taken(self.ptr):
                raise errors.InvalidArgumentError(
                    f"n={count}: only {lr_constraint_taken(self.ptr)} tokens were consumed")
            with nogil:
                code = lr_constraint_rollback(self.ptr, count)
            if code != 0:
                raise self.failure("it cannot be taken back")
        finally:
            self.leave()

    def reset(self):
        """Back to before the first token, after an error as well."""
        self.enter()
        try:
            with nogil:
                lr_constraint_reset(self.ptr)
        finally:
            self.leave()

    @property
    def accepting(self):
        """Whether the text may end here."""
        self.enter()
        try:
            return lr_constraint_accepting(self.ptr)
        finally:
            self.leave()

    @property
    def stopped(self):
        """Whether the text is complete: nothing but a token that ends it may follow."""
        self.enter()
        try:
            return lr_constraint_stopped(self.ptr)
        finally:
            self.leave()

    @property
    def n_consumed(self):
        """How many tokens it has gone on by."""
        self.enter()
        try:
            return lr_constraint_taken(self.ptr)
        finally:
            self.leave()


cdef Constraint compile(Vocab vocab, str kind, source, limits):
    cdef Constraint made = Constraint.__new__(Constraint)
    cdef lr_constraint_vocab *words
    cdef lr_constraint_limits c_limits
    cdef tuple numbers = check_limits(limits)
    cdef bytes data = check_text(kind, source), c_kind = kind.encode()
    cdef const char *text = data
    cdef const char *name = c_kind
    cdef char *error = NULL
    if <size_t> len(data) > MAX_TEXT:
        raise errors.ConstraintError(f"the {kind} has {len(data)} bytes: at most {MAX_TEXT}")
    (c_limits.max_items_in_row, c_limits.initial_lexer_fuel, c_limits.step_lexer_fuel, c_limits.step_max_items,
     c_limits.max_lexer_states, c_limits.max_grammar_size) = numbers
    vocab.enter()
    try:
        words = vocabulary(vocab)
        with nogil:
            made.ptr = lr_constraint_new(words, name, text, &c_limits, &error)
    finally:
        vocab.leave()
    if made.ptr == NULL:
        raise refused(kind, take_string(error))
    made.vocab, made.kind, made.text, made.limits = vocab, kind, data.decode(), numbers
    return made


cdef object refused(str kind, str why):
    """The typed error of what llguidance would not compile, with the keyword where it names one."""
    what = {"json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the grammar"}[kind]
    keyword = re.search(r'Unimplemented keys: \["([^"]+)"', why) or re.search(
        r"\b(oneOf|allOf|anyOf|pattern|format|patternProperties|minProperties|maxProperties|multipleOf|type|required)\b"
        r"|\$ref",
        why)
    return errors.ConstraintError(
        f"{what} is refused: {why}", keyword=(keyword[1] or keyword[0]) if keyword and kind == "json_schema" else None)


cdef tuple check_limits(limits):
    if limits is None:
        return (0,) * len(LIMITS)
    try:
        given = dict(limits)
    except (TypeError, ValueError):
        raise errors.ArgumentTypeError(f"limits maps names to numbers; it is no {type(limits).__name__}") from None
    for name in given:
        if name not in LIMITS:
            raise errors.unknown_name(str(name), LIMITS, "limits")
    return tuple([
        check_int(name, given[name], 1, 2**40) if name in given else 0 for name in LIMITS
    ])


def check_choices(choices):
    """``choices`` as a list of distinct, not empty strings."""
    if isinstance(choices, (str, bytes)):
        raise errors.ArgumentTypeError(f"choices is a sequence of str, not {choices!r:.60}")
    try:
        texts = list(choices)
    except TypeError:
        raise errors.ArgumentTypeError(f"choices is a sequence of str, not {type(choices).__name__}") from None
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise errors.ConstraintError(f"{len(texts)} choices: from 1 to {MAX_CHOICES}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise errors.ArgumentTypeError(f"choices[{i}]={text!r:.60}: it is a str")
        check_text(f"choices[{i}]", text)
        if not text:
            raise errors.ConstraintError(f"choices[{i}] is empty: a choice is text")
    return list(dict.fromkeys(texts))


cdef int check_lark(bytes text) except -1:
    """Refuse a Lark grammar whose rules, or references of schemas in it, can lead too deep, by how many there are."""
    check_nesting("the grammar", text)
    rules, references = text.count(b":"), text.count(b"$ref") + text.count(b"u0024")
    if rules > MAX_RULES or references > MAX_REFERENCES:
        raise errors.ConstraintError(
            f"the grammar has {rules} colons and {references} references of schemas: at most {MAX_RULES} rules, and "
            f"{MAX_REFERENCES} references")
    return 0


cdef int check_nesting(str what, bytes text) except -1:
    """Refuse what nests too deeply: brackets in literals count as well, which is more than there can be of any use."""
    depth = max(deepest(text, b"(", b")"), deepest(text, b"[", b"]"))
    if depth > MAX_NESTING:
        raise errors.ConstraintError(f"{what} nests {depth} levels: at most {MAX_NESTING}")
    return 0
