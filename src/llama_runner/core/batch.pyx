"""``Batch``: the rows of one decode."""

from libc.stdint cimport INT32_MAX, int8_t, int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from llama_runner._c.llama cimport llama_pos, llama_seq_id, llama_token
from llama_runner._c.native cimport LR_BATCH, lr_guard_end_exclusive, lr_guard_free, lr_guard_new, lr_live_add
from llama_runner.core._native cimport enter_exclusive

from llama_runner import errors
from llama_runner._check import check_bool, check_int
from llama_runner.core.vocab import as_tokens

cdef int MAX_SEQ = 256  # LLAMA_MAX_SEQ


cdef class Batch:
    """Rows of (token, position, sequence ids, wants logits) for one ``Context.decode``; reusable after ``clear()``.

    Takes the place of ``llama_batch_init``. ``capacity`` is the number of rows it holds. One thread at a time; while a
    decode reads it, changing it raises ContextBusyError. Token ids, positions and sequence ids are checked against the
    model and the context by ``decode``, before llama.cpp sees them.
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()

    def __init__(self, capacity):
        cdef int rows = check_int("capacity", capacity, 1, 1 << 24)
        if self.c.token != NULL:
            raise errors.InvalidArgumentError("this Batch has its capacity already; make a new one")
        self.capacity = rows
        self.c.token = <llama_token *> malloc(rows * sizeof(llama_token))
        self.c.pos = <llama_pos *> malloc(rows * sizeof(llama_pos))
        self.c.n_seq_id = <int32_t *> malloc(rows * sizeof(int32_t))
        self.c.logits = <int8_t *> malloc(rows * sizeof(int8_t))
        self.c.seq_id = <llama_seq_id **> malloc(rows * sizeof(llama_seq_id *))
        if not (self.c.token and self.c.pos and self.c.n_seq_id and self.c.logits and self.c.seq_id):
            raise MemoryError()
        self.grow_rows(1)
        lr_live_add(LR_BATCH, 1)

    def __dealloc__(self):
        if self.seq_flat != NULL:
            lr_live_add(LR_BATCH, -1)
        free(self.c.token)
        free(self.c.pos)
        free(self.c.n_seq_id)
        free(self.c.logits)
        free(self.c.seq_id)
        free(self.seq_flat)
        lr_guard_free(self.guard)

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
        """Append one row of checked values; the caller has seen to the room and the guard."""
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
        return f"<Batch {self.c.n_tokens} of {self.capacity} rows, {self.n_outputs} with logits>"

    def clear(self):
        """Take all rows out."""
        enter_exclusive(self.guard, "batch")
        self.c.n_tokens = 0
        self.n_outputs = 0
        lr_guard_end_exclusive(self.guard)

    def add(self, token, pos, seq_ids, logits=False):
        """Append one row and return its index, which ``Context.logits`` takes.

        ``seq_ids`` is one sequence id or a sequence of different ones that share the row; ``logits`` asks for the row's
        output. Raises InvalidArgumentError, with nothing added, when the batch is full or a value is out of range.
        """
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
            self._check_room(n)
            for i in range(n):
                self.put(view[i], start + i, seq, every or (last and i == n - 1))
            return self.c.n_tokens - 1
        finally:
            lr_guard_end_exclusive(self.guard)

    cdef int _check_room(self, int n) except -1:
        if self.c.n_tokens + n > self.capacity:
            raise errors.InvalidArgumentError(
                f"{n} more rows do not fit: the batch holds {self.c.n_tokens} of {self.capacity}; "
                "decode and clear() it, or make a larger one"
            )
        return 0

    cdef int check_ids(self, int n_vocab, int n_seq_max) except -1:
        """Raise for the first token or sequence id that the context does not have."""
        cdef int i, k
        for i in range(self.c.n_tokens):
            if self.c.token[i] >= n_vocab:
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

    cdef int check_positions(self, const int32_t *before) except -1:
        """Each sequence goes on where it ended ``before``, one position a row; an empty one may start anywhere.

        Upstream refuses gaps and lets a position that comes twice pass, which then counts for two.
        """
        cdef int32_t follow[256]
        cdef int i, k, seq
        memcpy(follow, before, sizeof(follow))
        for i in range(self.c.n_tokens):
            for k in range(self.c.n_seq_id[i]):
                seq = self.c.seq_id[i][k]
                if follow[seq] >= 0 and self.c.pos[i] != follow[seq] + 1:
                    raise errors.InvalidArgumentError(
                        f"row {i} puts sequence {seq} at position {self.c.pos[i]}: positions follow on, next is "
                        f"{follow[seq] + 1}"
                    )
                follow[seq] = self.c.pos[i]
        return 0
