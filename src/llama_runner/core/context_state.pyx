"""``Context.state_*``: saving and restoring; ``core.state`` does it."""

import cython

from llama_runner.core.outputs cimport ContextOutputs

from llama_runner import errors


@cython.no_gc_clear  # as its base
cdef class ContextState(ContextOutputs):
    """The part of ``Context`` that saves and restores.

    A state travels in a container of ours: magic, version, lengths, checksums, the fingerprint of model, KV types and
    rope settings, and the tokens if they were given. It is verified, and the structure of what is in it too, before
    llama.cpp reads it: StateError leaves everything as it was, unless it says that something is empty now. Pending
    changes of the memory are made first. Samplers and outputs are no part of a state. ModelCapabilityError for a memory
    whose layout cannot be verified (sparse attention). Thread rule of the context; no GIL while data moves.
    """

    def __cinit__(self):
        self.device_saves = {}

    def __init__(self):
        raise errors.InvalidArgumentError("ContextState is a part of Context; make that")

    def state_seq_size(self, seq_id, *, tokens=None, partial=False):
        """Bytes that ``state_seq_get`` with the same arguments gives. Wraps ``llama_state_seq_get_size_ext``."""
        return state().size(self, check(seq_id), tokens, partial)

    def state_seq_get(self, seq_id, *, tokens=None, partial=False, on_device=False):
        """The state of a sequence, as bytes. Wraps ``llama_state_seq_get_data_ext``.

        ``tokens``, ids as for ``Batch.add_sequence``, come back from ``state_seq_set``. Of a sliding window it has what
        the next token attends to, whatever else is there. ``partial`` leaves out the cells of full attention: a
        checkpoint of windows and recurrent states, to step back to while the sequence still has those cells.
        ``on_device`` copies it inside the device instead, without tokens, and gives a ``DeviceState``.
        """
        if on_device is True:
            if tokens is not None:
                raise errors.InvalidArgumentError("tokens: a state on its device has no place for them; keep them")
            return state().get_device(self, seq_id, partial)
        if on_device is not False:
            raise errors.ArgumentTypeError(f"on_device={on_device!r}: it is True or False")
        return state().get(self, check(seq_id), tokens, partial)

    def state_seq_get_into(self, seq_id, buffer, *, tokens=None, partial=False):
        """Write the same into a writable buffer (bytearray, memoryview, uint8 array); how many bytes it took.

        Raises InvalidArgumentError when it is too small, with nothing written.
        """
        return state().get_into(self, check(seq_id), buffer, tokens, partial)

    def state_seq_set(self, seq_id, blob):
        """Replace a sequence by a saved one; its tokens as an int32 array, or None.

        Wraps ``llama_state_seq_set_data_ext``. ``blob`` is any bytes-like object, or a ``DeviceState``. A partial state
        takes the sequence back to the position that it had: StateError unless the cells up to there are still in it.
        They must be those of the same tokens. When llama.cpp has no room for the state, the sequence is empty, and
        StateError says so.
        """
        return only(state().set(self, check(seq_id), blob))

    def state_seq_save(self, path, seq_id, *, tokens=None, partial=False):
        """Save a sequence to a file, whole or not at all; how many bytes.

        Takes the place of ``llama_state_seq_save_file``. Raises StorageError (disk full, no permission), with no file
        left and one of that name as it was.
        """
        return state().save(self, path, check(seq_id), tokens, partial)

    def state_seq_load(self, path, seq_id):
        """``state_seq_set`` from a file. Takes the place of ``llama_state_seq_load_file``."""
        return only(state().load(self, path, check(seq_id)))

    def state_size(self, *, tokens=None):
        """Bytes that ``state_get`` with the same argument gives. Wraps ``llama_state_get_size``."""
        return state().size(self, None, tokens, False)

    def state_get(self, *, tokens=None):
        """The state of all sequences, as bytes; cells that they share are saved once. Wraps ``llama_state_get_data``.

        ``tokens`` is a dict from sequence id to tokens.
        """
        return state().get(self, None, tokens, False)

    def state_get_into(self, buffer, *, tokens=None):
        """Write the same into a writable buffer; how many bytes it took. Errors as for ``state_seq_get_into``."""
        return state().get_into(self, None, buffer, tokens, False)

    def state_set(self, blob):
        """Replace all sequences by saved ones, which share cells as before; a dict of their tokens.

        Wraps ``llama_state_set_data``. When llama.cpp cannot restore it, the context is empty, and StateError says so.
        """
        return state().set(self, None, blob)

    def state_save(self, path, *, tokens=None):
        """Save all sequences to a file, as ``state_seq_save`` does. Takes the place of ``llama_state_save_file``."""
        return state().save(self, path, None, tokens, False)

    def state_load(self, path):
        """``state_set`` from a file. Takes the place of ``llama_state_load_file``."""
        return state().load(self, path, None)


cdef object state():
    # it needs Context, which needs this module
    from llama_runner.core import state

    return state


cdef object check(seq_id):
    """None is the word for a whole context further down, and no sequence."""
    if seq_id is None:
        raise errors.ArgumentTypeError("seq_id=None: it is an integer, not NoneType")
    return seq_id


cdef object only(dict tokens):
    return next(iter(tokens.values()), None)
