"""``Memory``: the KV operations of a context."""

import cython
import numpy as np

from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t, int64_t, uint32_t, uint64_t

from llama_runner._c.llama cimport (
    llama_model_is_hybrid,
    llama_memory_clear,
    llama_memory_seq_add,
    llama_memory_seq_cp,
    llama_memory_seq_keep,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_seq_rm,
)
from llama_runner._c.native cimport (
    LR_MEMORY_FULL,
    LR_MEMORY_STATE,
    LR_MEMORY_WINDOW,
    lr_memory_cells,
    lr_memory_first,
    lr_memory_move_holds,
    lr_memory_rolled_back,
    lr_memory_seq_div,
    lr_memory_shared,
    lr_memory_streams,
    lr_memory_use,
    lr_memory_window,
    lr_memory_window_holds,
)
from llama_runner.core._native cimport native_error
from llama_runner.core.context cimport Context

from llama_runner import errors
from llama_runner._check import check_bool, check_int
from llama_runner.cells import CellTable

cdef tuple PARTS = (
    (<int> LR_MEMORY_FULL, "full"), (<int> LR_MEMORY_WINDOW, "window"), (<int> LR_MEMORY_STATE, "state"),
)


@cython.no_gc_clear
cdef class Memory:
    """The KV memory of a context; get it as ``context.memory``.

    Positions are half-open ranges ``[p0, p1)``; a negative ``p0`` means from the start, a negative ``p1`` to the end.
    What an operation leaves to be done (moved keys, copies between streams) is done before the next decode, save or
    restore. Thread rule of the context: one thread at a time, a second one gets ContextBusyError.
    Every method raises IndexOutOfRangeError for a sequence id outside ``0 … n_seq_max - 1``, and ModelCapabilityError
    for a model that keeps no memory.
    """

    def __init__(self, Context context not None):
        self.context = context
        self.parts = context.memory_parts

    def __repr__(self):
        return f"<Memory of {self.context!r}>"

    cdef int enter(self) except -1:
        self.context.enter()
        if self.context.mem == NULL:
            self.context.leave()
            raise errors.ModelCapabilityError(f"{self.context.model!r} keeps no KV memory")
        return 0

    cdef bint has_states(self) noexcept:
        # hybrids of kinds whose parts are not known here say so themselves
        return self.parts & LR_MEMORY_STATE != 0 or llama_model_is_hybrid(self.context.model.ptr)

    def seq_rm(self, seq_id, p0=-1, p1=-1):
        """Remove positions of a sequence; True when done. Wraps ``llama_memory_seq_rm``.

        False, with nothing removed, when this kind of memory cannot: a recurrent state forgets nothing but a few last
        tokens it has snapshots of (``n_rs_seq``), and not those while it is shared; a sliding window that has moved on
        lacks what a token after the cut would attend to. Removing a whole sequence always works.
        """
        cdef int seq, low, high
        self.enter()
        try:
            seq, low, high = self.context.check_seq(seq_id), position("p0", p0), position("p1", p1)
            if not self.can_cut(seq, low, high):
                return False
            return llama_memory_seq_rm(self.context.mem, seq, low, high)
        finally:
            self.context.leave()

    cdef bint can_cut(self, int seq, int low, int high) noexcept:
        """Whether a token that follows the cut would find all that it attends to; upstream removes without asking."""
        cdef int last = llama_memory_seq_pos_max(self.context.mem, seq)
        cdef bint tail = high < 0 or high > last
        if low <= 0 and tail:
            return True
        if self.has_states():
            # a state cannot forget what lies in its middle: upstream returns True there and does nothing to the state
            return tail and (low > last or lr_memory_shared(self.context.ptr, seq, last, -1) < 0)
        return not tail or low > last or lr_memory_window_holds(self.context.ptr, seq, 0, low)

    def seq_cp(self, seq_id_src, seq_id_dst, p0=-1, p1=-1):
        """Make positions of one sequence belong to another as well. Wraps ``llama_memory_seq_cp``.

        In a unified memory this copies no data. Raises InvalidArgumentError when the destination already holds
        positions in the range, since llama.cpp would count them twice: ``seq_rm`` them first. Raises
        ModelCapabilityError for a part of a sequence where only a whole one can be copied (recurrent and hybrid
        memories, ``kv_unified=False``), for a part whose end a sliding window no longer has, and for a recurrent
        sequence that was rolled back and not yet decoded.
        """
        cdef int src, dst, low, high
        self.enter()
        try:
            src = self.context.check_seq(seq_id_src)
            dst = self.context.check_seq(seq_id_dst)
            low, high = position("p0", p0), position("p1", p1)
            if src == dst:
                return
            self.check_free(dst, low, high)
            if self.check_whole(src, low, high):
                low = high = -1  # upstream asserts ends that it would not need to look at
            try:
                llama_memory_seq_cp(self.context.mem, src, dst, low, high)
            except RuntimeError as error:
                raise native_error(error, "copying a sequence") from None
        finally:
            self.context.leave()

    cdef int check_whole(self, int src, int low, int high) except -1:
        """1 where only a whole sequence can be copied, and this is one; 0 where a part can be."""
        cdef int last = llama_memory_seq_pos_max(self.context.mem, src)
        cdef int first = 0 if self.has_states() else lr_memory_first(self.context.ptr, src)
        cdef bint part = low > max(first, 0) or 0 <= high <= last
        if part and (self.has_states() or not self.context.unified):
            raise errors.ModelCapabilityError(
                f"positions {low} to {high} are a part of sequence {src}, and "
                + ("this model's state" if self.has_states() else "with kv_unified=False a sequence")
                + " is copied whole or not at all"
            )
        if part and not lr_memory_window_holds(self.context.ptr, src, max(low, 0), last + 1 if high < 0 else high):
            raise errors.ModelCapabilityError(
                f"positions {low} to {high} of sequence {src}: its sliding window has moved on and lacks what a token "
                "after them attends to"
            )
        if lr_memory_rolled_back(self.context.ptr, src):
            raise errors.ModelCapabilityError(
                f"sequence {src} was rolled back: decode its next token before copying it"
            )
        return self.has_states() or not self.context.unified

    cdef int check_free(self, int dst, int low, int high) except -1:
        cdef int first = lr_memory_first(self.context.ptr, dst)  # a window's would be later
        cdef int last = llama_memory_seq_pos_max(self.context.mem, dst)
        if last >= 0 and (high < 0 or first < high) and (low < 0 or last >= low):
            raise errors.InvalidArgumentError(
                f"sequence {dst} already holds positions {first} to {last}: seq_rm({dst}, {low}, {high}) first"
            )
        return 0

    def seq_keep(self, seq_id):
        """Remove everything that does not belong to this sequence. Wraps ``llama_memory_seq_keep``."""
        cdef int seq, other
        self.enter()
        try:
            seq = self.context.check_seq(seq_id)
            if self.has_states() or not self.context.unified:
                # upstream looks into the stream of this sequence only, and leaves pending rollbacks behind
                for other in range(self.context.n_seq_max):
                    if other != seq:
                        llama_memory_seq_rm(self.context.mem, other, -1, -1)
            else:
                llama_memory_seq_keep(self.context.mem, seq)
        finally:
            self.context.leave()

    def seq_add(self, seq_id, p0, p1, delta, *, shared=False):
        """Shift positions of a sequence by ``delta``. Wraps ``llama_memory_seq_add``.

        A cell has one position, for all that own it: InvalidArgumentError when another sequence shares one of these,
        unless ``shared``, which moves it for all. Positions that stay are not moved out of the way: a position may then
        be held twice, and a token attends to both. Raises ModelCapabilityError where ``can_shift`` is False, where a
        sliding window lacks what would come into it, and, with a recurrent state, for less than all up to the end.
        """
        cdef int shift = check_int("delta", delta, -INT32_MAX, INT32_MAX)
        cdef bint together = check_bool("shared", shared)
        cdef int seq, low, high
        self.enter()
        try:
            self.need_shift()
            seq, low, high = self.context.check_seq(seq_id), position("p0", p0), position("p1", p1)
            self.check_shift(seq, low, high, shift)
            if shift != 0:
                self.check_move(seq, low, high, shift, 1, together)
                llama_memory_seq_add(self.context.mem, seq, low, high, shift)
        finally:
            self.context.leave()

    def seq_div(self, seq_id, p0, p1, d, *, shared=False):
        """Divide positions of a sequence by ``d`` > 1, rounding down. Takes the place of ``llama_memory_seq_div``.

        Up to ``d`` tokens share a position then. Errors and ``shared`` as for ``seq_add``. Upstream's own turns keys
        the wrong way; this moves each cell as ``llama_memory_seq_add`` would.
        """
        cdef int divisor = check_int("d", d, 2, INT32_MAX)
        cdef bint together = check_bool("shared", shared)
        cdef int seq, low, high
        self.enter()
        try:
            self.need_shift()
            seq, low, high = self.context.check_seq(seq_id), position("p0", p0), position("p1", p1)
            self.check_move(seq, low, high, 0, divisor, together)
            lr_memory_seq_div(self.context.ptr, seq, low, high, divisor)
        finally:
            self.context.leave()

    cdef int check_move(self, int seq, int low, int high, int delta, int divisor, bint together) except -1:
        cdef int first = llama_memory_seq_pos_min(self.context.mem, seq)
        cdef int last = llama_memory_seq_pos_max(self.context.mem, seq)
        if last < 0 or low > last or 0 <= high <= max(low, 0):
            return 0
        if self.has_states() and (0 <= high <= last or low > 0 and delta <= 0):
            # the state has the last position and no other; the cells of a hybrid must not part from it
            raise errors.ModelCapabilityError(
                f"positions {low} to {high} are a part of sequence {seq}: a recurrent state moves whole, or from some "
                "position to the end and up"
            )
        # a state would move for all, and the cells of another sequence's own tail would not
        other = lr_memory_shared(self.context.ptr, seq, low if self.parts & LR_MEMORY_FULL else first, high)
        if other >= 0 and not (together and not self.has_states()):
            raise errors.InvalidArgumentError(
                f"sequence {other} shares cells of sequence {seq} from {low} to {high}, and a cell has one position "
                "for all: give one of them a copy of its own, from state_seq_get"
                + ("" if self.has_states() else ", or move both with shared=True")
            )
        if not lr_memory_move_holds(self.context.ptr, seq, low, high, delta, divisor):
            raise errors.ModelCapabilityError(
                f"positions {low} to {high} of sequence {seq}: its sliding window has moved on and lacks what would "
                "come into it"
            )
        return 0

    cdef int check_shift(self, int seq, int low, int high, int64_t delta) except -1:
        """Upstream drops a cell whose position becomes negative, without a word."""
        # pos_min is that of the state or of the window; where there are no cells, the state stands for all from 0
        cdef int64_t first = max(low, lr_memory_first(self.context.ptr, seq))
        cdef int64_t last = llama_memory_seq_pos_max(self.context.mem, seq)
        if high >= 0:
            last = min(last, <int64_t> high - 1)
        if 0 <= first <= last and (first + delta < 0 or last + delta >= INT32_MAX):
            raise errors.InvalidArgumentError(
                f"delta={delta}: it moves positions {first} to {last} of sequence {seq} out of 0 to {INT32_MAX - 1}"
            )
        return 0

    cdef int need_shift(self) except -1:
        cdef const char *why = self.context.able.no_shift
        if why != NULL:
            raise errors.ModelCapabilityError(
                f"the memory of {self.context.model!r} cannot move positions (can_shift): {why.decode()}"
            )
        return 0

    def seq_pos_min(self, seq_id):
        """The smallest position of a sequence, or -1 when it is empty. Wraps ``llama_memory_seq_pos_min``."""
        self.enter()
        try:
            return llama_memory_seq_pos_min(self.context.mem, self.context.check_seq(seq_id))
        finally:
            self.context.leave()

    def seq_pos_max(self, seq_id):
        """The largest position of a sequence, or -1 when it is empty. Wraps ``llama_memory_seq_pos_max``."""
        self.enter()
        try:
            return llama_memory_seq_pos_max(self.context.mem, self.context.check_seq(seq_id))
        finally:
            self.context.leave()

    def clear(self, data=False):
        """Remove every sequence; with ``data`` zero the buffers too. Wraps ``llama_memory_clear``."""
        cdef bint wipe = check_bool("data", data)
        self.enter()
        try:
            llama_memory_clear(self.context.mem, wipe)
        finally:
            self.context.leave()

    @property
    def can_shift(self):
        """Whether positions can be moved (``seq_add``, ``seq_div``), and the keys are right afterwards.

        Says no where ``llama_memory_can_shift`` does, and where the keys of some layer would be turned otherwise than
        the model turned them, or the model knows positions in another way too; the error of ``seq_add`` says which.
        """
        self.enter()
        try:
            return self.context.able.no_shift == NULL
        finally:
            self.context.leave()

    # --- what is in it

    def cells(self):
        """What every cell holds: a list of ``CellTable``, one for each part of the memory and each stream of it.

        Any memory has one or more of the parts ``"full"``, ``"window"`` and ``"state"``. Arrays are copies. Positions
        that ``seq_add`` changed are the new ones. Empty for a kind of memory whose cells are not known here.
        """
        self.enter()
        try:
            return [
                self.table(part, name, stream)
                for part, name in PARTS if self.parts & part
                for stream in range(lr_memory_streams(self.context.ptr, part))
            ]
        finally:
            self.context.leave()

    cdef object table(self, int part, str name, int stream):
        cdef uint32_t size, used, end
        cdef int words = (self.context.n_seq_max + 63) // 64
        cdef int32_t[::1] pos_view
        cdef uint64_t[:, ::1] seqs_view
        lr_memory_use(self.context.ptr, part, stream, &size, &used, &end)
        pos = np.empty(size, np.int32)
        seqs = np.zeros((size, words), np.uint64)
        pos_view, seqs_view = pos, seqs
        if size:
            with nogil:
                lr_memory_cells(self.context.ptr, part, stream, words, &pos_view[0], &seqs_view[0, 0])
        window = lr_memory_window(self.context.ptr) if part == LR_MEMORY_WINDOW else 0
        return CellTable(name, stream, window, used, end, pos, seqs)

    cdef int use(self, uint32_t *size, uint32_t *used, uint32_t *end) except -1:
        """Over all streams of the part that a context is measured by."""
        cdef int part = LR_MEMORY_FULL if self.parts & LR_MEMORY_FULL else LR_MEMORY_STATE
        cdef uint32_t one_size, one_used, one_end
        cdef int stream
        size[0] = used[0] = end[0] = 0
        self.enter()
        for stream in range(lr_memory_streams(self.context.ptr, part)):
            lr_memory_use(self.context.ptr, part, stream, &one_size, &one_used, &one_end)
            size[0] += one_size
            used[0] += one_used
            end[0] = max(end[0], one_end)
        self.context.leave()
        return 0

    @property
    def n_cells(self):
        """Cells of the memory over all streams, or states of a recurrent one."""
        cdef uint32_t size, used, end
        self.use(&size, &used, &end)
        return size

    @property
    def n_used(self):
        """Cells that hold something, each counted once however many sequences own it; states of a recurrent memory."""
        cdef uint32_t size, used, end
        self.use(&size, &used, &end)
        return used

    @property
    def n_used_end(self):
        """One more than the highest cell in use: attention computes over all cells below it, holes included."""
        cdef uint32_t size, used, end
        self.use(&size, &used, &end)
        return end


cdef int32_t position(str name, value) except? -2:
    return max(-1, check_int(name, value, INT32_MIN, INT32_MAX))
