"""``Memory``: the KV operations of a context."""

import cython

from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t, int64_t

from llama_runner._c.llama cimport (
    llama_memory_clear,
    llama_memory_seq_add,
    llama_memory_seq_cp,
    llama_memory_seq_div,
    llama_memory_seq_keep,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_seq_rm,
    llama_model,
    llama_model_is_hybrid,
    llama_model_is_recurrent,
)
from llama_runner.core._native cimport native_error
from llama_runner.core.context cimport Context

from llama_runner import errors
from llama_runner._check import check_bool, check_int


@cython.no_gc_clear
cdef class Memory:
    """The KV memory of a context; get it as ``context.memory``.

    Positions are half-open ranges ``[p0, p1)``; a negative ``p0`` means from the start, a negative ``p1`` to the end.
    Thread rule of the context: one thread at a time, a second one gets ContextBusyError.
    Every method raises IndexOutOfRangeError for a sequence id outside ``0 … n_seq_max - 1``, and ModelCapabilityError
    for a model that keeps no memory.
    """

    def __init__(self, Context context not None):
        self.context = context

    def __repr__(self):
        return f"<Memory of {self.context!r}>"

    cdef int enter(self) except -1:
        self.context.enter()
        if self.context.mem == NULL:
            self.context.leave()
            raise errors.ModelCapabilityError(f"{self.context.model!r} keeps no KV memory")
        return 0

    def seq_rm(self, seq_id, p0=-1, p1=-1):
        """Remove positions of a sequence; True when done. Wraps ``llama_memory_seq_rm``.

        False, with nothing removed, when this kind of memory cannot remove a part (recurrent and hybrid, or a sliding
        window that has moved on). Removing a whole sequence always works.
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
        """Whether a range with tokens after it may go: a recurrent state cannot forget what lies in its middle.

        Upstream returns True there, does nothing to the state, and on a hybrid takes the cells away all the same.
        """
        cdef const llama_model *model = self.context.model.ptr
        if not (llama_model_is_recurrent(model) or llama_model_is_hybrid(model)):
            return True
        return high < 0 or high > llama_memory_seq_pos_max(self.context.mem, seq)

    def seq_cp(self, seq_id_src, seq_id_dst, p0=-1, p1=-1):
        """Make positions of one sequence belong to another as well. Wraps ``llama_memory_seq_cp``.

        In a unified memory this copies no data. Raises InvalidArgumentError when the destination already holds
        positions in the range, since llama.cpp would count them twice: ``seq_rm`` them first. Raises
        ModelCapabilityError for a part of a sequence where only a whole one can be copied: recurrent and hybrid
        memories, ``kv_unified=False``.
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
        cdef const llama_model *model = self.context.model.ptr
        cdef bint states = llama_model_is_recurrent(model) or llama_model_is_hybrid(model)
        if self.context.unified and not states:
            return 0
        cdef int last = llama_memory_seq_pos_max(self.context.mem, src)
        if low > 0 and (states or low > llama_memory_seq_pos_min(self.context.mem, src)) or 0 <= high <= last:
            raise errors.ModelCapabilityError(
                f"positions {low} to {high} are a part of sequence {src}, and "
                + ("this model's state" if states else "with kv_unified=False a sequence")
                + " is copied whole or not at all"
            )
        return 1

    cdef int check_free(self, int dst, int low, int high) except -1:
        cdef int first = llama_memory_seq_pos_min(self.context.mem, dst)
        cdef int last = llama_memory_seq_pos_max(self.context.mem, dst)
        if last >= 0 and (high < 0 or first < high) and (low < 0 or last >= low):
            raise errors.InvalidArgumentError(
                f"sequence {dst} already holds positions {first} to {last}: seq_rm({dst}, {low}, {high}) first"
            )
        return 0

    def seq_keep(self, seq_id):
        """Remove everything that does not belong to this sequence. Wraps ``llama_memory_seq_keep``."""
        self.enter()
        try:
            llama_memory_seq_keep(self.context.mem, self.context.check_seq(seq_id))
        finally:
            self.context.leave()

    def seq_add(self, seq_id, p0, p1, delta):
        """Shift positions of a sequence by ``delta``, applied at the next decode. Wraps ``llama_memory_seq_add``.

        Raises ModelCapabilityError where ``can_shift`` is False. A cell that other sequences share moves for all.
        """
        cdef int shift = check_int("delta", delta, -INT32_MAX, INT32_MAX)
        cdef int seq, low, high
        self.enter()
        try:
            self.need_shift()
            seq, low, high = self.context.check_seq(seq_id), position("p0", p0), position("p1", p1)
            self.check_shift(seq, low, high, shift)
            llama_memory_seq_add(self.context.mem, seq, low, high, shift)
        finally:
            self.context.leave()

    def seq_div(self, seq_id, p0, p1, d):
        """Divide positions of a sequence by ``d`` > 1, applied at the next decode. Wraps ``llama_memory_seq_div``.

        Raises ModelCapabilityError where ``can_shift`` is False. A cell that other sequences share moves for all.
        """
        cdef int divisor = check_int("d", d, 2, INT32_MAX)
        self.enter()
        try:
            self.need_shift()
            llama_memory_seq_div(
                self.context.mem, self.context.check_seq(seq_id), position("p0", p0), position("p1", p1), divisor
            )
        finally:
            self.context.leave()

    cdef int check_shift(self, int seq, int low, int high, int64_t delta) except -1:
        """Upstream drops a cell whose position becomes negative, without a word."""
        # a recurrent state stands for every position up to its last
        cdef bint states = llama_model_is_recurrent(self.context.model.ptr)
        cdef int64_t first = max(low, 0 if states else llama_memory_seq_pos_min(self.context.mem, seq))
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


cdef int32_t position(str name, value) except? -2:
    return max(-1, check_int(name, value, INT32_MIN, INT32_MAX))
