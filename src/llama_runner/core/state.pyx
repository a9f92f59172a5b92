"""The KV state of a sequence, to bytes and back; the public methods are ``Context.state_seq_get`` and ``…_set``."""

import hashlib

from libc.stdint cimport uint8_t
from libc.stddef cimport size_t

from llama_runner._c.llama cimport (
    llama_memory_seq_rm,
    llama_state_seq_get_data,
    llama_state_seq_get_size,
    llama_state_seq_set_data,
)
from llama_runner._c.native cimport lr_memory_flush
from llama_runner.core._native cimport drain_log, native_error, take_string
from llama_runner.core.context cimport Context

from llama_runner import errors
from llama_runner._container import pack, unpack


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


def get(Context ctx not None, int seq):
    """The container with the state of sequence ``seq``; the caller is inside ``ctx``."""
    cdef char *error = NULL
    cdef size_t size, written
    cdef unsigned char[::1] view
    need_memory(ctx)
    # a shift or copy is pending until the next decode; saving now would save the keys from before it
    if lr_memory_flush(ctx.ptr, &error) != 0:
        raise native_error(RuntimeError(take_string(error)), "applying pending changes of the KV memory")
    try:
        with nogil:
            size = llama_state_seq_get_size(ctx.ptr, seq)
        payload = bytearray(size)
        view = payload
        with nogil:
            written = llama_state_seq_get_data(ctx.ptr, <uint8_t *> &view[0], size, seq)
    except (RuntimeError, MemoryError) as problem:
        raise native_error(problem, "saving a sequence") from None
    if written != size:
        raise errors.StateError(f"llama.cpp wrote {written} of {size} bytes of state").with_log(drain_log())
    return pack(fingerprint(ctx), payload)


def set(Context ctx not None, int seq, blob):
    """Restore a container made by ``get`` into sequence ``seq``; the caller is inside ``ctx``."""
    need_memory(ctx)
    payload = unpack(fingerprint(ctx), blob)
    cdef const unsigned char[::1] view = payload
    cdef size_t size = len(payload), used
    if size == 0:
        raise errors.StateError("the state is empty: not even that of an empty sequence is")
    # upstream leaves the sequence as it is when the saved one is empty
    llama_memory_seq_rm(ctx.mem, seq, -1, -1)
    try:
        with nogil:
            used = llama_state_seq_set_data(ctx.ptr, <const uint8_t *> &view[0], size, seq)
    except (RuntimeError, MemoryError, ValueError, IndexError) as problem:
        llama_memory_seq_rm(ctx.mem, seq, -1, -1)
        raise native_error(problem, "restoring a sequence") from None
    if used != size:
        llama_memory_seq_rm(ctx.mem, seq, -1, -1)
        raise errors.StateError(
            f"llama.cpp could not restore the state into sequence {seq}, which is empty now: most likely the KV memory "
            f"(n_ctx={ctx.n_ctx}) has no room for it"
        ).with_log(drain_log())
    # the outputs belong to whatever was decoded before
    ctx.n_outputs = 0


cdef int need_memory(Context ctx) except -1:
    if ctx.mem == NULL:
        raise errors.ModelCapabilityError(f"{ctx.model!r} keeps no KV memory")
    return 0
