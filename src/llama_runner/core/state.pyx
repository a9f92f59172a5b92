"""States of sequences and of whole contexts, to bytes and back; the public methods are ``Context.state_*``."""

import hashlib

import cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t

from llama_runner._c.llama cimport (
    LLAMA_STATE_SEQ_FLAGS_ON_DEVICE,
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
    llama_memory_clear,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_seq_rm,
    llama_state_get_data,
    llama_state_get_size,
    llama_state_seq_flags,
    llama_state_seq_get_data_ext,
    llama_state_seq_get_size_ext,
    llama_state_seq_set_data_ext,
    llama_state_set_data,
)
from llama_runner._c.native cimport (
    LR_MEMORY_LAYOUT_KNOWN,
    LR_MEMORY_STATE,
    LR_MEMORY_WINDOW,
    lr_memory_breakdown,
    lr_state_check,
    lr_state_covers,
)
from llama_runner.core._native cimport drain_log, native_error, take_string
from llama_runner.core.context cimport Context

from llama_runner import _container, _state_file, errors
from llama_runner._check import check_bool, check_path
from llama_runner.core._native import devices, is_abort
from llama_runner.core.vocab import as_tokens
from llama_runner.system import available_memory

cdef int WHOLE = -1  # in the place of a sequence id


def fingerprint(Context ctx not None):
    """What a saved state depends on: the model's metadata, weights and shape, KV types and layout, rope, adapters.

    The caller is inside ``ctx``. A new dict each time.
    """
    if ctx._fingerprint is None:
        ctx._fingerprint = {**model_fingerprint(ctx), **ctx._settings}
    return {**ctx._fingerprint, **adapter_fingerprint(ctx)}


cdef dict adapter_fingerprint(Context ctx):
    return {
        "adapters": sorted([use.adapter.digest, use.scale] for use in ctx._adapters),
        "control_vector": ctx._control_digest,
    }


cdef dict model_fingerprint(Context ctx):
    meta = hashlib.blake2b(repr(sorted(ctx.model.metadata.items())).encode(), digest_size=16).hexdigest()
    return {
        "metadata": meta, "weights": ctx.model.weights_digest, "n_params": ctx.model.n_params, "size": ctx.model.size,
    }


# --- saving


def size(Context ctx not None, seq_id, tokens, partial):
    """Bytes of the container that ``get`` would make."""
    cdef int seq
    ctx.enter()
    try:
        seq = target(ctx, seq_id)
        return make_plan(ctx, seq, tokens, partial).size
    finally:
        ctx.leave()


def get(Context ctx not None, seq_id, tokens, partial):
    """The container with a sequence, or with the whole context where ``seq_id`` is None, as bytes."""
    cdef int seq
    cdef Py_ssize_t total
    ctx.enter()
    try:
        seq = target(ctx, seq_id)
        plan = make_plan(ctx, seq, tokens, partial)
        total = plan.size
        # filled in place, before anybody else sees it: a state may have gigabytes
        container = PyBytes_FromStringAndSize(NULL, total)
        fill(ctx, seq, plan, <uint8_t *> PyBytes_AS_STRING(container))
    finally:
        ctx.leave()
    return container


def get_into(Context ctx not None, seq_id, buffer, tokens, partial):
    """The same into the caller's buffer; how many bytes it took."""
    cdef int seq
    cdef unsigned char[::1] view = writable(buffer)
    ctx.enter()
    try:
        seq = target(ctx, seq_id)
        plan = make_plan(ctx, seq, tokens, partial)
        if plan.size > view.shape[0]:
            raise errors.InvalidArgumentError(
                f"the buffer has {view.shape[0]} bytes: the state takes {plan.size} (state_size, state_seq_size)"
            )
        fill(ctx, seq, plan, &view[0])
    finally:
        ctx.leave()
    return plan.size


def save(Context ctx not None, path, seq_id, tokens, partial):
    """The same into a file, whole or not at all; the context is free again while the file is written."""
    name = check_path(path)
    return _state_file.write(name, get(ctx, seq_id, tokens, partial))


cdef unsigned char[::1] writable(buffer):
    try:
        return memoryview(buffer).cast("B")
    except (TypeError, ValueError, BufferError):
        raise errors.ArgumentTypeError(
            f"a buffer for a state is writable and contiguous, a bytearray for instance, not {type(buffer).__name__}"
        ) from None


cdef int target(Context ctx, seq_id) except -2:
    need_memory(ctx)
    return WHOLE if seq_id is None else ctx.check_seq(seq_id)


cdef int need_memory(Context ctx) except -1:
    if ctx.mem == NULL:
        raise errors.ModelCapabilityError(f"{ctx.model!r} keeps no KV memory")
    if not ctx.memory_parts & LR_MEMORY_LAYOUT_KNOWN:
        raise errors.ModelCapabilityError(
            f"the memory of {ctx.model!r} is of a kind whose saved state cannot be verified yet"
        )
    return 0


cdef llama_state_seq_flags flags_of(Context ctx, partial) except *:
    if not check_bool("partial", partial):
        return 0
    if not ctx.memory_parts & (LR_MEMORY_WINDOW | LR_MEMORY_STATE):
        raise errors.ModelCapabilityError(
            "partial=True: this memory is made of cells alone, which seq_rm cuts anywhere; there is no part to save"
        )
    return LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


cdef object make_plan(Context ctx, int seq, tokens, partial):
    cdef llama_state_seq_flags flags = flags_of(ctx, partial)
    cdef size_t length
    saved = check_tokens(ctx, seq, tokens)
    # a shift or copy is pending until the next decode; saving now would save the keys from before it
    ctx.settle()
    try:
        with nogil:
            length = llama_state_get_size(ctx.ptr) if seq == WHOLE else (
                llama_state_seq_get_size_ext(ctx.ptr, seq, flags)
            )
    except (RuntimeError, MemoryError) as problem:
        raise native_error(problem, "measuring a state") from None
    if length == 0:
        raise errors.StateError("llama.cpp cannot save this state").with_log(drain_log())
    kind = "context" if seq == WHOLE else "sequence"
    return _container.plan(fingerprint(ctx), kind, bool(flags), saved, length)


cdef dict check_tokens(Context ctx, int seq, tokens):
    if tokens is None:
        return {}
    if seq != WHOLE:
        given = {seq: tokens}
    elif hasattr(tokens, "items"):
        given = {ctx.check_seq(key): value for key, value in tokens.items()}
    else:
        raise errors.ArgumentTypeError(
            f"tokens of a whole context are a dict from sequence id to tokens, not {type(tokens).__name__}"
        )
    saved = {key: as_tokens(value, ctx.n_vocab) for key, value in given.items()}
    n = sum(len(ids) for ids in saved.values())
    if n > _container.MAX_TOKENS:
        raise errors.InvalidArgumentError(f"{n} tokens: a saved state has at most {_container.MAX_TOKENS}")
    return saved


cdef int fill(Context ctx, int seq, plan, uint8_t *data) except -1:
    cdef size_t length = plan.header.length, written
    cdef uint8_t *payload = data + <size_t> plan.payload_at
    cdef llama_state_seq_flags flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if plan.header.partial else 0
    try:
        with nogil:
            written = llama_state_get_data(ctx.ptr, payload, length) if seq == WHOLE else (
                llama_state_seq_get_data_ext(ctx.ptr, payload, length, seq, flags)
            )
    except (RuntimeError, MemoryError) as problem:
        raise native_error(problem, "saving a state") from None
    if written != length:
        raise errors.StateError(f"llama.cpp wrote {written} of {length} bytes of state").with_log(drain_log())
    plan.seal(memoryview(<uint8_t[:plan.size]> data).cast("B"))
    return 0


# --- restoring


def set(Context ctx not None, seq_id, blob):
    """Restore a container made by ``get``; the tokens in it, as a dict."""
    if isinstance(blob, DeviceState):
        if seq_id is None:
            raise errors.ArgumentTypeError("a DeviceState is that of a sequence: state_seq_set takes it")
        set_device(ctx, seq_id, blob)
        return {}
    cdef int seq
    ctx.enter()
    try:
        seq = target(ctx, seq_id)
        kind = "context" if seq == WHOLE else "sequence"
        contents = _container.unpack(fingerprint(ctx), kind, ctx.n_vocab, blob)
        restore(ctx, seq, contents)
        return contents.tokens
    finally:
        ctx.leave()


def load(Context ctx not None, path, seq_id):
    """The same from a file, which is read into memory first."""
    cdef size_t weights, cells, compute
    name = check_path(path)
    ctx.enter()
    try:
        target(ctx, seq_id)
        identity = fingerprint(ctx)
        lr_memory_breakdown(ctx.ptr, &weights, &cells, &compute)
    finally:
        ctx.leave()
    # the data of every cell, and what is noted of each
    most = cells + (16 + 4 * ctx.n_seq_max) * 2 * (ctx.n_ctx + 256) * max(1, ctx.n_seq_max) + (1 << 20)
    return set(ctx, seq_id, _state_file.read(name, identity, "context" if seq_id is None else "sequence", most))


cdef int restore(Context ctx, int seq, contents) except -1:
    cdef const unsigned char[::1] view = contents.payload
    cdef size_t length = len(contents.payload)
    cdef bint partial = contents.header.partial
    cdef llama_state_seq_flags flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
    cdef int32_t first, last
    cdef char *error = NULL
    if partial and (seq == WHOLE or not ctx.memory_parts & (LR_MEMORY_WINDOW | LR_MEMORY_STATE)):
        raise errors.StateError("the state is forged: it says that it is partial, and there is no such of this memory")
    if length == 0:
        raise errors.StateError("the state is empty: not even that of an empty sequence is")
    if lr_state_check(ctx.ptr, &view[0], length, seq == WHOLE, partial, &first, &last, &error) != 0:
        raise errors.StateError(f"the state does not fit this context, or is forged: {take_string(error)}")
    if partial:
        check_covered(ctx, seq, first, last)
    put(ctx, seq, &view[0], length, flags, last)
    return 0


cdef int put(
    Context ctx, int seq, const uint8_t *data, size_t length, llama_state_seq_flags flags, int32_t last
) except -1:
    """Let llama.cpp read a state that has been verified; afterwards it is there, or what it was to replace is empty."""
    cdef bint partial = flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    cdef size_t used = 0
    # a copy between streams that is still to be made would overwrite what is restored
    ctx.settle()
    # the outputs belong to whatever was decoded before
    ctx.n_outputs = 0
    try:
        if not partial:
            # upstream leaves what is there as it is when the saved state is empty
            clear(ctx, seq)
        with nogil:
            used = llama_state_set_data(ctx.ptr, data, length) if seq == WHOLE else (
                llama_state_seq_set_data_ext(ctx.ptr, data, length, seq, flags)
            )
        if partial and used == length:
            llama_memory_seq_rm(ctx.mem, seq, last + 1, -1)
    except (RuntimeError, MemoryError, ValueError, IndexError) as problem:
        if is_abort(str(problem)):
            ctx.poisoned = str(problem)
        else:
            clear(ctx, seq)
        raise native_error(problem, "restoring a state") from None
    if used != length:
        clear(ctx, seq)
        raise errors.StateError(
            "llama.cpp could not restore the state into "
            + ("the context" if seq == WHOLE else f"sequence {seq}")
            + f", which is empty now: most likely the KV memory (n_ctx={ctx.n_ctx}) has no room for it"
        ).with_log(drain_log())
    return 0


cdef int clear(Context ctx, int seq) except -1:
    if seq == WHOLE:
        llama_memory_clear(ctx.mem, False)
    else:
        llama_memory_seq_rm(ctx.mem, seq, -1, -1)
    return 0


cdef int check_covered(Context ctx, int seq, int32_t first, int32_t last) except -1:
    """A partial state is what cells cannot tell: the rest must still be there."""
    if last < 0 or not lr_state_covers(ctx.ptr, seq, first, last):
        raise errors.StateError(
            f"a partial state of positions {first} to {last} goes back to them in a sequence that still has them, and "
            f"sequence {seq} does not"
        )
    return 0


# --- on the device


@cython.no_gc_clear
cdef class DeviceState:
    """A sequence saved in its device's own memory; ``Context.state_seq_get(…, on_device=True)`` makes it.

    llama.cpp keeps one for each sequence id, as long as the context lives: the next one saved of the same sequence
    takes its place, and this one is ``stale``. It can be restored any number of times, in its own context only.
    """

    cdef readonly Context context  # held: the data lives in it
    cdef readonly int seq_id  # that it was saved of
    cdef readonly bint partial
    cdef readonly Py_ssize_t nbytes  # on the device
    cdef int32_t first, last
    cdef object number
    cdef bytes notes  # what llama.cpp keeps on the host

    def __init__(self):
        raise errors.InvalidArgumentError("a DeviceState comes from Context.state_seq_get(seq_id, on_device=True)")

    def __repr__(self):
        state = "stale" if self.stale else f"{self.nbytes} bytes"
        return f"<DeviceState of sequence {self.seq_id}, {state}, in {self.context!r}>"

    @property
    def stale(self):
        """Whether it can no longer be restored: another was saved of the same sequence, or the context is closed."""
        return self.context.closed or self.context.device_saves.get(self.seq_id) is not self.number


def get_device(Context ctx not None, seq_id, partial):
    """Save a sequence in the memory of the device that it is in."""
    cdef int seq
    cdef size_t host, notes, written = 0
    cdef DeviceState made = DeviceState.__new__(DeviceState)
    ctx.enter()
    try:
        need_memory(ctx)
        seq = ctx.check_seq(seq_id)
        check_device(ctx)
        flags = flags_of(ctx, partial)
        made.context, made.seq_id, made.partial, made.number = ctx, seq, bool(flags), object()
        made.first = llama_memory_seq_pos_min(ctx.mem, seq)
        made.last = llama_memory_seq_pos_max(ctx.mem, seq)
        ctx.settle()
        host = llama_state_seq_get_size_ext(ctx.ptr, seq, flags)
        flags |= LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
        notes = llama_state_seq_get_size_ext(ctx.ptr, seq, flags)
        made.nbytes = host - notes
        check_device_room(made.nbytes)
        made.notes = keep(ctx, seq, flags, notes, &written)
        if written != notes:
            raise errors.StateError(f"llama.cpp wrote {written} of {notes} bytes").with_log(drain_log())
        ctx.device_saves[seq] = made.number
        return made
    finally:
        ctx.leave()


cdef bytes keep(Context ctx, int seq, llama_state_seq_flags flags, size_t size, size_t *written):
    notes = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *data = <uint8_t *> PyBytes_AS_STRING(notes)
    # from here on the one before is gone, whatever happens
    ctx.device_saves.pop(seq, None)
    try:
        with nogil:
            written[0] = llama_state_seq_get_data_ext(ctx.ptr, data, size, seq, flags)
    except (RuntimeError, MemoryError) as problem:
        raise native_error(problem, "saving a sequence on its device") from None
    return notes


cdef int check_device(Context ctx) except -1:
    """Upstream sizes its copies by elements, and those of quantized types come in blocks."""
    for name in ("type_k", "type_v"):
        if ctx._settings[name] not in ("f32", "f16", "bf16"):
            raise errors.ModelCapabilityError(
                f"on_device=True: {name}={ctx._settings[name]!r} cannot be copied on its device; f32, f16 and bf16 can"
            )
    return 0


cdef int check_device_room(Py_ssize_t size) except -1:
    """Upstream copies into a buffer without asking whether it got one."""
    room = max([d["memory_free"] for d in devices() if d["type"] == "gpu"], default=0) or available_memory()
    if size > room:
        raise errors.OutOfMemoryError(f"on_device=True: the state takes {size} bytes, and {room} are free")
    return 0


def set_device(Context ctx not None, seq_id, DeviceState saved not None):
    """Restore what ``get_device`` saved."""
    cdef int seq
    cdef llama_state_seq_flags flags = LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    ctx.enter()
    try:
        seq = target(ctx, seq_id)
        if saved.context is not ctx:
            raise errors.StateError(f"{saved!r} cannot be restored in another context")
        if saved.stale:
            raise errors.StateError(f"{saved!r} is gone: another was saved of the same sequence")
        if saved.partial:
            flags |= LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
            check_covered(ctx, seq, saved.first, saved.last)
        put(ctx, seq, <const uint8_t *> PyBytes_AS_STRING(saved.notes), len(saved.notes), flags, saved.last)
    finally:
        ctx.leave()
