"""``Model``: weights and vocabulary, immutable, shared by any number of contexts and threads."""

import os
import weakref

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libcpp cimport bool

from llama_runner._c.llama cimport (
    LLAMA_LOAD_MODE_MLOCK,
    LLAMA_LOAD_MODE_MMAP,
    LLAMA_LOAD_MODE_MMAP_MLOCK,
    LLAMA_LOAD_MODE_NONE,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
    llama_ftype_name,
    llama_max_devices,
    llama_model_chat_template,
    llama_model_default_params,
    llama_model_desc,
    llama_model_free,
    llama_model_ftype,
    llama_model_get_vocab,
    llama_model_has_decoder,
    llama_model_has_encoder,
    llama_model_is_hybrid,
    llama_model_is_recurrent,
    llama_model_load_from_file,
    llama_model_meta_count,
    llama_model_meta_key_by_index,
    llama_model_meta_val_str,
    llama_model_meta_val_str_by_index,
    llama_model_n_ctx_train,
    llama_model_n_embd,
    llama_model_n_head,
    llama_model_n_head_kv,
    llama_model_n_layer,
    llama_model_n_params,
    llama_model_n_swa,
    llama_model_params,
    llama_model_size,
    llama_split_mode,
)
from llama_runner._c.native cimport (
    lr_guard_end_exclusive,
    lr_guard_free,
    lr_guard_new,
    lr_rwlock_free,
    lr_rwlock_new,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, ensure_runtime

from llama_runner import errors
from llama_runner._check import check_bool, check_int, check_name, check_path

cdef dict SPLIT_MODES = {
    "none": <int> LLAMA_SPLIT_MODE_NONE,
    "layer": <int> LLAMA_SPLIT_MODE_LAYER,
    "row": <int> LLAMA_SPLIT_MODE_ROW,
}


cdef class _Progress:
    """Carries a Python progress callback, and what it raised, through ``llama_model_load_from_file``."""
    cdef object callback
    cdef object error
    cdef bint cancelled

    def __cinit__(self, callback):
        self.callback = callback


cdef bool on_progress(float progress, void *user_data) noexcept with gil:
    cdef _Progress holder = <_Progress> user_data
    try:
        holder.cancelled = holder.callback(progress) is False
    except BaseException as error:  # nothing may unwind through llama.cpp; raised again by the constructor
        holder.error = error
        return False
    return not holder.cancelled


cdef class Model:
    """A GGUF model, loaded. Wraps ``llama_model_load_from_file``.

    Parameters
    ----------
    path : a GGUF file; of a split model the first part.
    n_gpu_layers : layers to offload; -1 for all. Without a GPU backend it has no effect.
    vocab_only : load the vocabulary alone: enough for ``vocab`` and metadata, not for a ``Context``.
    use_mmap, use_mlock : map the file instead of reading it; keep it from being swapped out.
    check_tensors : look for NaN and infinities in the weights while loading.
    split_mode : ``"layer"``, ``"row"`` or ``"none"``; with ``"none"``, ``main_gpu`` holds the model.
    progress : called with a float from 0 to 1 while loading; returning False cancels the load; its errors are raised.

    Raises
    ------
    ModelNotFoundError, ModelFormatError, UnsupportedModelError, OutOfMemoryError; on each of them nothing is loaded.

    Any number of threads may share a model. ``close()`` closes its contexts, then frees it and its adapters.
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        self.adapters = lr_rwlock_new()
        if self.guard == NULL or self.adapters == NULL:
            raise MemoryError()

    def __init__(
        self,
        path,
        *,
        n_gpu_layers=-1,
        vocab_only=False,
        use_mmap=True,
        use_mlock=False,
        check_tensors=False,
        split_mode="layer",
        main_gpu=0,
        progress=None,
    ):
        if self.path is not None:
            raise errors.InvalidArgumentError("this Model is loaded already; make a new one")
        self.path = check_path(path)
        self.vocab_only = check_bool("vocab_only", vocab_only)
        from llama_runner.gguf import read_gguf_header, sample_digest  # not needed to import the package

        header = read_gguf_header(self.path)
        if header.vocab_only and not self.vocab_only:
            raise errors.ModelCapabilityError(
                f"{self.path} holds a vocabulary and no weights: it cannot generate; "
                "pass vocab_only=True to tokenize with it"
            )
        ensure_runtime()
        cdef llama_model_params params = llama_model_default_params()
        params.n_gpu_layers = check_int("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1)
        params.vocab_only = self.vocab_only
        params.check_tensors = check_bool("check_tensors", check_tensors)
        mmap, mlock = check_bool("use_mmap", use_mmap), check_bool("use_mlock", use_mlock)
        if mmap:
            params.load_mode = LLAMA_LOAD_MODE_MMAP_MLOCK if mlock else LLAMA_LOAD_MODE_MMAP
        else:
            params.load_mode = LLAMA_LOAD_MODE_MLOCK if mlock else LLAMA_LOAD_MODE_NONE
        if split_mode not in SPLIT_MODES:
            raise errors.InvalidArgumentError(f"split_mode={split_mode!r}: it is one of {', '.join(SPLIT_MODES)}")
        params.split_mode = <llama_split_mode> <int> SPLIT_MODES[split_mode]
        params.main_gpu = check_int("main_gpu", main_gpu, 0, llama_max_devices() - 1)
        self.weights_digest = sample_digest(self.path)
        self._load(params, progress)
        self._contexts = weakref.WeakSet()

    cdef int _load(self, llama_model_params params, progress) except -1:
        cdef bytes name = os.fsencode(self.path)
        cdef const char *c_name = name
        cdef _Progress holder = _Progress(progress)
        if progress is not None:
            if not callable(progress):
                raise errors.ArgumentTypeError(f"progress={progress!r}: it is a callable that takes a float, or None")
            params.progress_callback = on_progress
            params.progress_callback_user_data = <void *> holder
        drain_log()
        try:
            with nogil:
                self.ptr = llama_model_load_from_file(c_name, params)
        except MemoryError:
            raise errors.OutOfMemoryError(f"out of memory while loading {self.path}").with_log(drain_log()) from None
        except RuntimeError as error:
            raise errors.ModelFormatError(f"cannot load {self.path}: {error}").with_log(drain_log()) from None
        lines = drain_log()
        if holder.error is not None:
            raise holder.error
        if self.ptr == NULL:
            if holder.cancelled:
                raise errors.LlamaRuntimeError(f"loading {self.path} was cancelled by its progress callback")
            raise load_error(self.path, lines)
        self.vocab_ptr = llama_model_get_vocab(self.ptr)
        return 0

    def __dealloc__(self):
        # Every context and vocabulary holds its model, so none is left here. The GIL is released: freeing unmaps
        # gigabytes, and a backend may join threads that log.
        if self.ptr != NULL:
            with nogil:
                llama_model_free(self.ptr)
        lr_rwlock_free(self.adapters)
        lr_guard_free(self.guard)

    cdef int check_open(self) except -1:
        if self.ptr == NULL:
            raise errors.ClosedError("this Model is closed" if self.path else "this Model was never loaded")
        return 0

    def close(self):
        """Close its contexts, then free the weights. Wraps ``llama_model_free``; closing twice is no error.

        Raises ContextBusyError, with nothing freed, while another thread is inside the model or one of its contexts.
        """
        cdef llama_model *ptr
        if self.ptr == NULL:
            return
        enter_exclusive(self.guard, "model")
        reserved = []
        try:
            for context in list(self._contexts):
                context._reserve()
                reserved.append(context)
        except errors.ContextBusyError:
            for context in reserved:
                context._end_reserve(False)
            lr_guard_end_exclusive(self.guard)
            raise
        for context in reserved:
            context._end_reserve(True)
        ptr = self.ptr
        self.ptr = NULL
        self.vocab_ptr = NULL
        with nogil:
            llama_model_free(ptr)
        lr_guard_end_exclusive(self.guard)

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self.ptr == NULL:
            return "<Model closed>"
        return f"<Model {self.desc!r} {os.path.basename(self.path)!r}{' vocab_only' if self.vocab_only else ''}>"

    @property
    def closed(self):
        """Whether ``close()`` has been called."""
        return self.ptr == NULL

    @property
    def vocab(self):
        """The model's ``Vocab``. Wraps ``llama_model_get_vocab``."""
        from llama_runner.core.vocab import Vocab

        self.check_open()
        vocab = self._vocab() if self._vocab is not None else None
        if vocab is None:
            vocab = Vocab(self)
            self._vocab = weakref.ref(vocab)
        return vocab

    @property
    def desc(self):
        """Architecture, size and quantization in a few words. Wraps ``llama_model_desc``."""
        cdef char buffer[256]
        self.check_open()
        llama_model_desc(self.ptr, buffer, sizeof(buffer))
        return (<bytes> buffer).decode("utf-8", "replace")

    @property
    def name(self):
        """``general.name`` of the file, or the file's own name where it has none."""
        return self.meta("general.name") or os.path.splitext(os.path.basename(self.path))[0]

    @property
    def architecture(self):
        """``general.architecture`` of the file."""
        return self.meta("general.architecture") or ""

    @property
    def quantization(self):
        """The file type, such as ``"Q4_1"``. Wraps ``llama_model_ftype`` and ``llama_ftype_name``."""
        self.check_open()
        return llama_ftype_name(llama_model_ftype(self.ptr)).decode()

    @property
    def size(self):
        """Bytes of all tensors. Wraps ``llama_model_size``."""
        self.check_open()
        return llama_model_size(self.ptr)

    @property
    def n_params(self):
        """Number of weights. Wraps ``llama_model_n_params``."""
        self.check_open()
        return llama_model_n_params(self.ptr)

    @property
    def n_ctx_train(self):
        """The context length that the model was trained with. Wraps ``llama_model_n_ctx_train``."""
        self.check_open()
        return llama_model_n_ctx_train(self.ptr)

    @property
    def n_embd(self):
        """Width of an embedding. Wraps ``llama_model_n_embd``."""
        self.check_open()
        return llama_model_n_embd(self.ptr)

    @property
    def n_layer(self):
        """Number of layers. Wraps ``llama_model_n_layer``."""
        self.check_open()
        return llama_model_n_layer(self.ptr)

    @property
    def n_head(self):
        """Number of attention heads. Wraps ``llama_model_n_head``."""
        self.check_open()
        return llama_model_n_head(self.ptr)

    @property
    def n_head_kv(self):
        """Number of key/value heads. Wraps ``llama_model_n_head_kv``."""
        self.check_open()
        return llama_model_n_head_kv(self.ptr)

    @property
    def n_swa(self):
        """Size of the sliding attention window, 0 for full attention. Wraps ``llama_model_n_swa``."""
        self.check_open()
        return llama_model_n_swa(self.ptr)

    @property
    def has_encoder(self):
        """Whether ``Context.encode`` is part of its use. Wraps ``llama_model_has_encoder``."""
        self.check_open()
        return llama_model_has_encoder(self.ptr)

    @property
    def has_decoder(self):
        """Whether it can generate at all. Wraps ``llama_model_has_decoder``."""
        self.check_open()
        return llama_model_has_decoder(self.ptr)

    @property
    def is_recurrent(self):
        """Whether its memory is a state instead of cells (Mamba, RWKV). Wraps ``llama_model_is_recurrent``."""
        self.check_open()
        return llama_model_is_recurrent(self.ptr)

    @property
    def is_hybrid(self):
        """Whether its memory is both states and cells (Jamba, LFM2). Wraps ``llama_model_is_hybrid``."""
        self.check_open()
        return llama_model_is_hybrid(self.ptr)

    @property
    def capabilities(self):
        """What can be done with it: ``Capabilities``, told from the graph and memory that llama.cpp makes for it.

        The first call makes a small context for that and closes it. Raises ModelCapabilityError for a vocabulary,
        OutOfMemoryError.
        """
        self.check_open()
        if self._capabilities is None:
            self._capabilities = look_at(self)
        return self._capabilities

    def meta(self, key):
        """The metadata value under ``key`` as text, or None. Wraps ``llama_model_meta_val_str``; arrays give None."""
        cdef bytes c_key = check_name("key", key)
        self.check_open()
        return read_meta(self, c_key, -1, False)

    @property
    def metadata(self):
        """All scalar metadata as a dict of text. Wraps ``llama_model_meta_key_by_index`` and its sibling."""
        self.check_open()
        return {
            read_meta(self, b"", i, True): read_meta(self, b"", i, False)
            for i in range(llama_model_meta_count(self.ptr))
        }

    def chat_template(self, name=None):
        """The Jinja source of the chat template ``name`` (None: the default one), or None.

        Wraps ``llama_model_chat_template``.
        """
        cdef bytes c_name
        cdef const char *found
        self.check_open()
        if name is None:
            found = llama_model_chat_template(self.ptr, NULL)
        else:
            c_name = check_name("name", name)
            found = llama_model_chat_template(self.ptr, c_name)
        return None if found == NULL else found.decode("utf-8", "replace")


cdef object read_meta(Model model, bytes key, int32_t index, bint want_key):
    """One metadata key or value, whatever its length; None where there is none."""
    cdef int32_t size = 256, length
    cdef char *buffer
    while True:
        buffer = <char *> malloc(size)
        if buffer == NULL:
            raise MemoryError()
        try:
            if index < 0:
                length = llama_model_meta_val_str(model.ptr, key, buffer, size)
            elif want_key:
                length = llama_model_meta_key_by_index(model.ptr, index, buffer, size)
            else:
                length = llama_model_meta_val_str_by_index(model.ptr, index, buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer[:length].decode("utf-8", "replace")
        finally:
            free(buffer)
        size = length + 1


cdef tuple MEMORY_KINDS = ("none", "attention", "sliding-window", "recurrent", "hybrid", "unknown")


cdef object look_at(Model model):
    from llama_runner.core.capabilities import Capabilities
    from llama_runner.core.context import Context

    with Context(model, n_ctx=256, n_batch=32, n_ubatch=32, n_outputs_max=1, n_threads=1) as context:
        able = context._able
        steers = can_steer(model, context)
    memory = MEMORY_KINDS[able.pop("kind")]
    cells = memory in ("attention", "sliding-window")
    return Capabilities(
        memory=memory,
        has_encoder=llama_model_has_encoder(model.ptr),
        has_decoder=llama_model_has_decoder(model.ptr),
        can_fork=memory != "none",
        can_fork_part=cells,
        can_remove_tail=cells,
        can_remove_middle=cells,
        can_shift=able["no_shift"] is None,
        can_save_state=memory != "none",
        can_steer=steers,
        **able,
    )


cdef bint can_steer(Model model, context) except -1:
    import numpy as np

    from llama_runner.core.control_vector import ControlVector

    if model.n_layer < 2:
        return False
    try:
        context.set_control_vector(ControlVector(np.zeros((1, model.n_embd))))
    except errors.ModelCapabilityError:
        return False
    return True


def load_error(path, lines):
    """The typed error for a failed load, told from llama.cpp's own last lines."""
    text = "\n".join(lines)
    if "unknown model architecture" in text:
        return errors.UnsupportedModelError(
            f"{path} is of an architecture that this build of llama.cpp does not know; "
            "a newer release of llama-runner may"
        ).with_log(lines)
    if "failed to allocate" in text or "unable to allocate" in text:
        return errors.OutOfMemoryError(
            f"not enough memory to load {path} ({os.path.getsize(path) / 2**20:.0f} MiB)"
        ).with_log(lines)
    return errors.ModelFormatError(f"llama.cpp cannot load {path}").with_log(lines)
