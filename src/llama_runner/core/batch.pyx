"""``Batch``: the rows of one decode."""

import numpy as np

from libc.stdint cimport INT32_MAX, int8_t, int32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from llama_runner._c.llama cimport llama_batch, llama_pos, llama_seq_id, llama_token
from llama_runner._c.native cimport (
    LR_BATCH,
    lr_first_not_finite,
    lr_guard_end_exclusive,
    lr_guard_free,
    lr_guard_new,
    lr_live_add,
)
from llama_runner.core._native cimport enter_exclusive
from llama_runner.core.arrays cimport Column, bool_column, float_rows, int_column, small_int

from llama_runner import errors
from llama_runner._check import check_bool, check_int
from llama_runner.core.vocab import as_tokens

cdef int MAX_SEQ = 256  # LLAMA_MAX_SEQ


cdef class Batch:
    """Rows of (token, position, sequence ids, wants output) for one ``Context.decode``; reusable.

    Takes the place of ``llama_batch_init``. ``capacity`` is the number of rows it holds. With ``n_embd`` the rows are
    embeddings of that width (``Model.n_embd_inp``) in place of tokens. One thread at a time; while a decode reads it,
    changing it raises ContextBusyError. Token ids and sequence ids are checked against the model and the context by
    ``decode``, before llama.cpp sees them.
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()

    def __init__(self, capacity, *, n_embd=None):
        cdef int rows = check_int("capacity", capacity, 1, 1 << 24)
        cdef int width = 0 if n_embd is None else check_int("n_embd", n_embd, 1, 1 << 20)
        if self.c.pos != NULL:
            raise errors.InvalidArgumentError("this Batch has its capacity already; make a new one")
        self.capacity = rows
        self.n_embd = width
        if width:
            self.c.embd = <float *> malloc(<size_t> rows * width * sizeof(float))
            self.pos_rest = <int32_t *> calloc(<size_t> rows * 3, sizeof(int32_t))
        else:
            self.c.token = <llama_token *> malloc(rows * sizeof(llama_token))
        self.c.pos = <llama_pos *> malloc(rows * sizeof(llama_pos))
        self.c.n_seq_id = <int32_t *> malloc(rows * sizeof(int32_t))
        self.c.logits = <int8_t *> malloc(rows * sizeof(int8_t))
        self.c.seq_id = <llama_seq_id **> malloc(rows * sizeof(llama_seq_id *))
        if not ((self.c.token or (self.c.embd and self.pos_rest)) and self.c.pos and self.c.n_seq_id and self.c.logits
                and self.c.seq_id):
            raise MemoryError()
        self.grow_rows(1)
        lr_live_add(LR_BATCH, 1)

    def __dealloc__(self):
        if self.seq_flat != NULL:
            lr_live_add(LR_BATCH, -1)
        free(self.c.token)
        free(self.c.embd)
        free(self.c.pos)
        free(self.c.n_seq_id)
        free(self.c.logits)
        free(self.c.seq_id)
        free(self.seq_flat)
        free(self.pos_rest)
        free(self.sections)
        lr_guard_free(self.guard)

    @classmethod
    def from_arrays(cls, rows, pos=0, seq_ids=0, logits="last"):
        """A new batch that is just large enough for ``rows``; arguments and errors as for ``add_rows``.

        ``rows`` is an integer array of tokens of shape (n,), or a float array of embeddings of shape (n, n_embd).
        """
        try:
            given = np.asarray(rows)
        except (TypeError, ValueError, OverflowError):
            raise errors.ArgumentTypeError(f"rows is an array, not {type(rows).__name__}") from None
        if given.ndim == 0 or given.size == 0:
            raise errors.InvalidArgumentError("rows is empty: a batch has at least one row")
        batch = cls(len(given), n_embd=given.shape[1] if given.ndim == 2 else None)
        batch.add_rows(given, pos, seq_ids, logits)
        return batch

    cdef int grow_rows(self, int width) except -1:
        """Make room for ``width`` sequence ids a row, keeping those that are there."""
        cdef llama_seq_id *flat = <llama_seq_id *> malloc(<size_t> self.capacity * width * sizeof(llama_seq_id))
        cdef int i
        if flat == NULL:
            raise MemoryError()
        for i in range(self.c.n_tokens):
            memcpy(flat + <size_t> i * width, self.c.seq_id[i], self.c.n_seq_id[i] * sizeof(llama_seq_id))
        for i in range(self.capacity):
            self.c.seq_id[i] = flat + <size_t> i * width
        free(self.seq_flat)
        self.seq_flat = flat
        self.seq_width = width
        return 0

    cdef void put(self, llama_token token, llama_pos pos, llama_seq_id seq_id, bint logits) noexcept:
        """Append one row of checked values; the caller has seen to the room, the kind and the guard."""
        cdef int i = self.c.n_tokens
        self.c.token[i] = token
        self.c.pos[i] = pos
        self.c.n_seq_id[i] = 1
        self.c.seq_id[i][0] = seq_id
        self.c.logits[i] = logits
        self.c.n_tokens = i + 1
        self.n_outputs += logits

    def __len__(self):
        return self.c.n_tokens

    def __repr__(self):
        kind = f"rows of {self.n_embd} embeddings" if self.n_embd else "rows"
        return f"<Batch {self.c.n_tokens} of {self.capacity} {kind}, {self.n_outputs} with output>"

    def clear(self):
        """Take all rows out."""
        enter_exclusive(self.guard, "batch")
        self.c.n_tokens = 0
        self.n_outputs = 0
        self.wide = False
        lr_guard_end_exclusive(self.guard)

    def add(self, token, pos, seq_ids, logits=False):
        """Append one row and return its index, which ``Context.logits`` takes.

        ``seq_ids`` is one sequence id or a sequence of different ones that share the row; ``logits`` asks for the row's
        output. Raises InvalidArgumentError, with nothing added, when the batch is full or a value is out of range.
        """
        cdef int c_token, c_pos, c_seq
        cdef bint plain = small_int(token, &c_token) and small_int(pos, &c_pos) and small_int(seq_ids, &c_seq)
        if plain and c_token >= 0 and 0 <= c_pos < INT32_MAX and c_seq >= 0 and type(logits) is bool:
            enter_exclusive(self.guard, "batch")
            try:
                self._check_kind(False)
                self._check_room(1)
                self.put(c_token, c_pos, c_seq, logits)
                return self.c.n_tokens - 1
            finally:
                lr_guard_end_exclusive(self.guard)
        return self.add_shared(token, pos, seq_ids, logits)

    cdef int add_shared(self, token, pos, seq_ids, logits) except -1:
        """``add`` for values of any type, each checked by name, and rows of several sequences."""
        cdef llama_token c_token = check_int("token", token, 0, INT32_MAX)
        cdef llama_pos c_pos = check_int("pos", pos, 0, INT32_MAX - 1)
        if not hasattr(seq_ids, "__iter__") or isinstance(seq_ids, (str, bytes)):
            seq_ids = (seq_ids,)
        ids = [check_int("seq_id", seq, 0, INT32_MAX) for seq in seq_ids]
        if not 1 <= len(ids) <= MAX_SEQ or len(set(ids)) != len(ids):
            raise errors.InvalidArgumentError(f"seq_ids={ids}: a row belongs to one sequence or several different ones")
        cdef bint wanted = check_bool("logits", logits)
        cdef int i, row
        enter_exclusive(self.guard, "batch")
        try:
            self._check_kind(False)
            self._check_room(1)
            if len(ids) > self.seq_width:
                self.grow_rows(len(ids))
            row = self.c.n_tokens
            self.put(c_token, c_pos, ids[0], wanted)
            for i in range(1, len(ids)):
                self.c.seq_id[row][i] = ids[i]
            self.c.n_seq_id[row] = len(ids)
            return row
        finally:
            lr_guard_end_exclusive(self.guard)

    def add_sequence(self, tokens, pos=0, seq_id=0, logits="last"):
        """Append the rows of a run of tokens at positions ``pos``, ``pos + 1``, … and return the last row's index.

        ``tokens`` is a flat sequence or int array of ids; ``logits`` is ``"last"``, ``"all"`` or ``"none"``.
        Raises InvalidArgumentError, with nothing added, when they do not fit.
        """
        ids = as_tokens(tokens, INT32_MAX)
        cdef const int32_t[::1] view = ids
        cdef int n = <int> len(ids), i
        cdef int start = check_int("pos", pos, 0, INT32_MAX - 1 - n)
        cdef llama_seq_id seq = check_int("seq_id", seq_id, 0, INT32_MAX)
        if not isinstance(logits, str) or logits not in ("last", "all", "none"):
            raise errors.InvalidArgumentError(f"logits={logits!r}: it is 'last', 'all' or 'none'")
        if n == 0:
            raise errors.InvalidArgumentError("tokens is empty: a run has at least one token")
        cdef bint every = logits == "all", last = logits != "none"
        enter_exclusive(self.guard, "batch")
        try:
            self._check_kind(False)
            self._check_room(n)
            for i in range(n):
                self.put(view[i], start + i, seq, every or (last and i == n - 1))
            return self.c.n_tokens - 1
        finally:
            lr_guard_end_exclusive(self.guard)

    def add_rows(self, rows, pos=0, seq_ids=0, logits="last"):
        """Append rows from arrays in one call and return the last one's index.

        Parameters
        ----------
        rows : int array of tokens of shape (n,); in a batch made with ``n_embd``, float array of shape (n, n_embd).
        pos : the first row's position, the others following on, or an int array of shape (n,). Embeddings for a model
            with M-RoPE may have shape (n, 4): time, y, x and one more; a single position counts for the first three.
        seq_ids : one sequence id for all, or an int array of shape (n,), or (n, k) for rows that several sequences
            share, filled up with -1 at the end.
        logits : which rows give output: ``"last"``, ``"all"``, ``"none"``, or a bool array of shape (n,).

        int32, float32 and bool arrays are read without a copy in between. Raises, with nothing added,
        InvalidArgumentError or IndexOutOfRangeError that names the first bad row, ArgumentTypeError for another type.
        Embeddings that are not finite are refused: in a memory that sequences share they would spread to all.
        """
        enter_exclusive(self.guard, "batch")
        try:
            return self.append(rows, pos, seq_ids, logits)
        finally:
            lr_guard_end_exclusive(self.guard)

    def set(self, rows, pos=0, seq_ids=0, logits="last"):
        """Take all rows out and fill the batch anew: ``clear`` and ``add_rows`` in one call.

        After an error the batch is as it was.
        """
        enter_exclusive(self.guard, "batch")
        cdef int n = self.c.n_tokens, n_outputs = self.n_outputs
        cdef bint wide = self.wide
        try:
            self.c.n_tokens = self.n_outputs = 0
            self.wide = False
            try:
                return self.append(rows, pos, seq_ids, logits)
            except BaseException:
                # nothing is written before everything is checked
                self.c.n_tokens = n
                self.n_outputs = n_outputs
                self.wide = wide
                raise
        finally:
            lr_guard_end_exclusive(self.guard)

    cdef int append(self, rows, pos, seq_ids, logits) except -1:
        """Check all rows, then write them; the caller is inside."""
        cdef Column tokens, positions, sequences, flags
        cdef int n, i, k, at = self.c.n_tokens, start = 0, one = 0, width = 1
        cdef bint every = False, last = False, several_pos = False
        cdef int32_t *ids
        if self.n_embd:
            tokens = float_rows("rows", rows, self.n_embd)
        else:
            tokens = int_column("rows", rows, -1, 1)
        n = <int> min(tokens.rows, INT32_MAX)
        if n == 0:
            raise errors.InvalidArgumentError("rows is empty: add at least one")
        self._check_room(n)
        positions = sequences = flags = None
        if is_number(pos):
            start = check_int("pos", pos, 0, INT32_MAX - 1 - n)
        else:
            positions = int_column("pos", pos, n, 4 if self.n_embd else 1)
            several_pos = positions.columns > 1
            if several_pos and positions.columns != 4:
                raise errors.InvalidArgumentError(
                    f"pos has {positions.columns} columns: a row has one position, or four"
                )
        if is_number(seq_ids):
            one = check_int("seq_ids", seq_ids, 0, MAX_SEQ - 1)
        else:
            sequences = int_column("seq_ids", seq_ids, n, MAX_SEQ)
            width = sequences.columns
        if type(logits) is str:
            if logits not in ("last", "all", "none"):
                raise errors.InvalidArgumentError(f"logits={logits!r}: it is 'last', 'all', 'none' or a bool array")
            every, last = logits == "all", logits != "none"
        else:
            flags = bool_column("logits", logits, n)
        if self.n_embd:
            check_finite(tokens)
        else:
            check_at_least_zero("token", tokens, INT32_MAX)
        if positions is not None:
            check_at_least_zero("position", positions, INT32_MAX - 1)
        if sequences is not None:
            check_sequences(sequences)
        if width > self.seq_width:
            self.grow_rows(width)
        if self.n_embd:
            memcpy(self.c.embd + <size_t> at * self.n_embd, tokens.floats, <size_t> n * self.n_embd * sizeof(float))
            self.wide = self.wide or several_pos
        else:
            memcpy(self.c.token + at, tokens.ints, n * sizeof(int32_t))
        for i in range(n):
            self.c.pos[at + i] = start + i if positions is None else positions.ints[i * positions.columns]
        if self.n_embd:
            for i in range(n):
                for k in range(3):
                    # llama.cpp gives a row of text in such a model its position three times, and 0
                    self.pos_rest[3 * (at + i) + k] = positions.ints[4 * i + 1 + k] if several_pos else (
                        self.c.pos[at + i] if k < 2 else 0
                    )
        for i in range(n):
            ids = self.c.seq_id[at + i]
            if sequences is None:
                ids[0] = one
                self.c.n_seq_id[at + i] = 1
                continue
            k = 0
            while k < width and sequences.ints[<size_t> i * width + k] >= 0:
                ids[k] = sequences.ints[<size_t> i * width + k]
                k += 1
            self.c.n_seq_id[at + i] = k
        if flags is None:
            for i in range(n):
                self.c.logits[at + i] = every
            self.c.logits[at + n - 1] = last
            self.n_outputs += n if every else last
        else:
            for i in range(n):
                self.c.logits[at + i] = flags.bytes[i]
                self.n_outputs += flags.bytes[i]
        self.c.n_tokens = at + n
        return at + n - 1

    # --- what is in it

    @property
    def tokens(self):
        """The token of each row: a new int32 array of shape (n,); empty where the rows are embeddings."""
        return self._copy(<size_t> self.c.token, 1, np.int32)

    @property
    def embeddings(self):
        """The embedding of each row: a new float32 array of shape (n, n_embd)."""
        return self._copy(<size_t> self.c.embd, self.n_embd, np.float32)

    @property
    def pos(self):
        """The position of each row, the first of its four where it has four: a new int32 array of shape (n,)."""
        return self._copy(<size_t> self.c.pos, 1, np.int32)

    @property
    def wants_output(self):
        """Which rows give output: a new bool array of shape (n,)."""
        return self._copy(<size_t> self.c.logits, 1, np.bool_)

    @property
    def seq_ids(self):
        """The sequences of each row: a new int32 array of shape (n, k), filled up with -1."""
        cdef int i, k, widest = 1
        cdef int32_t[:, ::1] out
        enter_exclusive(self.guard, "batch")
        try:
            for i in range(self.c.n_tokens):
                widest = max(widest, self.c.n_seq_id[i])
            found = np.full((self.c.n_tokens, widest), -1, dtype=np.int32)
            out = found
            for i in range(self.c.n_tokens):
                for k in range(self.c.n_seq_id[i]):
                    out[i, k] = self.c.seq_id[i][k]
            return found
        finally:
            lr_guard_end_exclusive(self.guard)

    def _copy(self, size_t data, int columns, dtype):
        cdef char[::1] out
        enter_exclusive(self.guard, "batch")
        try:
            found = np.zeros((self.c.n_tokens if data else 0, columns), dtype=dtype)
            if found.size:
                out = found.reshape(-1).view(np.int8)
                memcpy(&out[0], <void *> data, found.nbytes)
            return found if columns != 1 or dtype is np.float32 else found[:, 0]
        finally:
            lr_guard_end_exclusive(self.guard)

    # --- checks

    cdef int _check_room(self, int n) except -1:
        if n > self.capacity - self.c.n_tokens:
            raise errors.InvalidArgumentError(
                f"{n} more rows do not fit: the batch holds {self.c.n_tokens} of {self.capacity}; "
                "decode and clear() it, or make a larger one"
            )
        return 0

    cdef int _check_kind(self, bint embeddings) except -1:
        if self.n_embd and not embeddings:
            raise errors.InvalidArgumentError(
                f"this batch has rows of embeddings (n_embd={self.n_embd}), no tokens: use add_rows()"
            )
        return 0

    cdef int check_ids(self, int n_vocab, int n_seq_max) except -1:
        """Raise for the first token or sequence id that the context does not have."""
        cdef int i, k
        for i in range(self.c.n_tokens):
            if self.c.token != NULL and self.c.token[i] >= n_vocab:
                raise errors.IndexOutOfRangeError(
                    f"row {i} has token {self.c.token[i]}: the vocabulary has ids from 0 to {n_vocab - 1}"
                )
            for k in range(self.c.n_seq_id[i]):
                if self.c.seq_id[i][k] >= n_seq_max:
                    raise errors.IndexOutOfRangeError(
                        f"row {i} has seq_id {self.c.seq_id[i][k]}: this context has sequences 0 to {n_seq_max - 1} "
                        "(n_seq_max)"
                    )
        return 0

    cdef int check_positions(self, const int32_t *before, int n_pos) except -1:
        """Each sequence goes on where it ended ``before``, one position a row; an empty one may start anywhere.

        Upstream refuses gaps and lets a position that comes twice pass, which then counts for two. With M-RoPE
        (``n_pos`` is 4) positions may jump ahead, as after an image, whose rows share theirs.
        """
        cdef int32_t follow[256]
        cdef int i, k, seq
        cdef bint share = n_pos > 1 and self.n_embd > 0
        memcpy(follow, before, sizeof(follow))
        for i in range(self.c.n_tokens):
            for k in range(self.c.n_seq_id[i]):
                seq = self.c.seq_id[i][k]
                if follow[seq] >= 0 and self.c.pos[i] != follow[seq] + 1 and not (
                    n_pos > 1 and self.c.pos[i] > follow[seq]
                    or share and self.c.pos[i] == follow[seq] and follow[seq] != before[seq]
                ):
                    raise errors.InvalidArgumentError(
                        f"row {i} puts sequence {seq} at position {self.c.pos[i]}: positions follow on, next is "
                        f"{follow[seq] + 1}" + (" or more" if n_pos > 1 else "")
                    )
                follow[seq] = self.c.pos[i]
        return 0

    cdef llama_batch as_given(self, int n_pos) except *:
        """What llama.cpp gets; for embeddings with M-RoPE, all first positions, then all second ones, and so on."""
        cdef llama_batch given = self.c
        cdef int i, k, n = self.c.n_tokens
        if self.n_embd == 0 or n_pos == 1:
            return given
        if self.sections == NULL:
            self.sections = <int32_t *> malloc(<size_t> self.capacity * 4 * sizeof(int32_t))
            if self.sections == NULL:
                raise MemoryError()
        memcpy(self.sections, self.c.pos, n * sizeof(int32_t))
        for k in range(3):
            for i in range(n):
                self.sections[<size_t> (k + 1) * n + i] = self.pos_rest[3 * i + k]
        given.pos = self.sections
        return given


cdef bint is_number(value) except -1:
    return type(value) is int or not isinstance(value, np.ndarray) and hasattr(value, "__index__")


cdef int check_at_least_zero(str what, Column column, int32_t highest) except -1:
    cdef Py_ssize_t i, bad = -1
    cdef int32_t value = 0
    with nogil:
        for i in range(column.rows * column.columns):
            value = column.ints[i]
            if value < 0 or value > highest:
                bad = i
                break
    if bad >= 0:
        raise errors.InvalidArgumentError(
            f"row {bad // column.columns} has {what} {value}: it must be from 0 to {highest}"
        )
    return 0


cdef int check_sequences(Column column) except -1:
    """Different ids from 0 to 255 in each row, then -1 to its end."""
    cdef Py_ssize_t i, bad = -1
    cdef int k, width = column.columns
    cdef int32_t last_seen[256]
    cdef int32_t seq = 0
    cdef bint ended
    for k in range(MAX_SEQ):
        last_seen[k] = -1
    with nogil:
        for i in range(column.rows):
            ended = False
            for k in range(width):
                seq = column.ints[i * width + k]
                if seq == -1 and k > 0:
                    ended = True
                elif seq < 0 or seq >= MAX_SEQ or ended or last_seen[seq] == i:
                    bad = i
                    break
                else:
                    last_seen[seq] = <int32_t> i
            if bad >= 0:
                break
    if bad >= 0:
        raise errors.InvalidArgumentError(
            f"row {bad} has seq_ids {[column.ints[bad * width + k] for k in range(width)]}: they are different ids "
            f"from 0 to {MAX_SEQ - 1}, at least one, filled up with -1 at the end"
        )
    return 0


cdef int check_finite(Column column) except -1:
    cdef Py_ssize_t at
    with nogil:
        at = lr_first_not_finite(column.floats, column.rows * column.columns)
    if at >= 0:
        raise errors.InvalidArgumentError(
            f"row {at // column.columns} has the embedding {column.floats[at]} at index {at % column.columns}: it must "
            "be a finite number"
        )
    return 0
