"""``Model``: weights and vocabulary, immutable, shared by any number of contexts and threads."""

import os
import weakref

from libc.stddef cimport size_t
from libc.stdlib cimport free, malloc
from libcpp cimport bool

from llama_runner._c.llama cimport (
    LLAMA_LOAD_MODE_NONE,
    llama_model,
    llama_model_chat_template,
    llama_model_free,
    llama_model_get_vocab,
)
from llama_runner._c.native cimport (
    LR_MODEL,
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_live_add,
    lr_model_check,
    lr_model_load,
    lr_rwlock_free,
    lr_rwlock_new,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, enter_shared, ensure_runtime, take_string
from llama_runner.core.model_facts cimport model_facts, sampling_metadata
from llama_runner.core.model_params cimport model_params

from llama_runner import errors
from llama_runner._check import check_name, check_path

cdef class _Progress:
    """Carries a Python progress callback, and what it raised, through ``llama_model_load_from_file``."""

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
    """A GGUF model, loaded. Wraps ``llama_model_load_from_file`` and ``llama_model_load_from_splits``.

    Parameters
    ----------
    path : a GGUF file; of a split model the first part, or the list of all parts in order, whatever their names.
    n_gpu_layers : layers to offload; -1 for all. Without a GPU backend it has no effect.
    devices : names of the devices to offload to, of ``devices()``; None for all GPUs, [] for none.
    split_mode : how several devices share the model: ``"layer"``, ``"row"``, ``"tensor"``, or ``"none"``: ``main_gpu``,
        an index into ``devices``, holds all of it.
    tensor_split : the share of each device, as numbers in any proportion; None for the share of free memory.
    tensor_buft_overrides : a mapping from a regular expression to the device whose memory gets the tensors with a name
        in which it is found, such as ``{"ffn_.*_exps": "CPU"}``; the first that fits counts.
    vocab_only : load the vocabulary alone: enough for ``vocab`` and metadata, not for a ``Context``.
    use_mmap, use_mlock : map the file instead of reading it ("auto": where each device can); keep it from being swapped
        out. use_direct_io : read past the page cache, in place of both.
    lazy : read the tensors that the architecture marks (large per-layer embeddings) when they are needed: ``"off"``,
        ``"on"``, or ``"auto"``: those above 4 GiB.
    kv_overrides : a mapping from metadata keys to an int, float, bool or str that takes the place of the file's value.
        ``metadata`` goes on telling what the file says.
    check_tensors : look for NaN and infinities in the weights while loading.
    use_extra_bufts : repack weights for the CPU's matrix units where that is faster.
    no_host : keep weights that stay on the host out of pinned memory, so that they can be repacked.
    load_mtp : load the layers for multi-token prediction as well, where the file has them.
    progress : called with a float from 0 to 1 while loading; returning False cancels the load; its errors are raised.

    Raises
    ------
    ModelNotFoundError, ModelFormatError, UnsupportedModelError, ModelCapabilityError, OutOfMemoryError,
    InvalidArgumentError, also for a key of kv_overrides that llama.cpp did not read; on each of them nothing is loaded.

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
        devices=None,
        split_mode="layer",
        main_gpu=0,
        tensor_split=None,
        tensor_buft_overrides=None,
        vocab_only=False,
        use_mmap="auto",
        use_mlock=False,
        use_direct_io=False,
        lazy="auto",
        kv_overrides=None,
        check_tensors=False,
        use_extra_bufts=True,
        no_host=False,
        load_mtp=False,
        progress=None,
    ):
        if self.paths is not None:
            raise errors.InvalidArgumentError("this Model is loaded already; make a new one")
        self.paths = check_paths(path)
        self._load({
            "n_gpu_layers": n_gpu_layers, "devices": devices, "split_mode": split_mode, "main_gpu": main_gpu,
            "tensor_split": tensor_split, "tensor_buft_overrides": tensor_buft_overrides, "vocab_only": vocab_only,
            "use_mmap": use_mmap, "use_mlock": use_mlock, "use_direct_io": use_direct_io, "lazy": lazy,
            "kv_overrides": kv_overrides, "check_tensors": check_tensors, "use_extra_bufts": use_extra_bufts,
            "no_host": no_host, "load_mtp": load_mtp,
        }, progress, False)
        self._contexts = weakref.WeakSet()

    cdef int _load(self, dict given, progress, bint no_alloc) except -1:
        """Check the files and the keywords, then load; with ``no_alloc`` no weights, only what tells their sizes."""
        from llama_runner.gguf import check_metadata, read_model_file

        file = read_model_file(self.paths)
        check_metadata(file.header)
        self.path = file.paths[0]
        self.paths = file.paths
        ensure_runtime()
        self.params = model_params(given, file)
        self.vocab_only = self.params.c.vocab_only
        if no_alloc:
            self.params.c.no_alloc = True
            self.params.c.load_mode = LLAMA_LOAD_MODE_NONE
        if file.header.vocab_only and not self.vocab_only:
            raise errors.ModelCapabilityError(
                f"{self.path} holds a vocabulary and no weights: it cannot generate; "
                "pass vocab_only=True to tokenize with it"
            )
        if not no_alloc:
            self.weights_digest = file.digest()
            if self.params.kv_overrides:  # with other hyperparameters the same weights compute another state
                self.weights_digest += repr(sorted(self.params.kv_overrides.items()))
        cdef _Progress holder = _Progress(progress)
        if progress is not None:
            if not callable(progress):
                raise errors.ArgumentTypeError(f"progress={progress!r}: it is a callable that takes a float, or None")
            self.params.c.progress_callback = on_progress
            self.params.c.progress_callback_user_data = <void *> holder
        try:
            self._call_load(holder)
        finally:
            self.params.c.progress_callback = NULL
            self.params.c.progress_callback_user_data = NULL
        self._check_loaded()
        self.vocab_ptr = llama_model_get_vocab(self.ptr)
        # once: getters need no call, so that a close in another thread cannot pull the model away
        self.facts = model_facts(self.ptr, self.vocab_only)
        return 0

    cdef int _call_load(self, _Progress holder) except -1:
        cdef list names = [os.fsencode(path) for path in self.paths]
        cdef size_t i, n = len(names)
        cdef char *used = NULL
        cdef const char **c_names = <const char **> malloc(n * sizeof(char *))
        if c_names == NULL:
            raise MemoryError()
        for i in range(n):
            c_names[i] = <bytes> names[i]
        drain_log()
        try:
            with nogil:
                self.ptr = lr_model_load(c_names, n, self.params.c, &used)
        except MemoryError:
            raise errors.OutOfMemoryError(f"out of memory while loading {self.path}").with_log(drain_log()) from None
        except RuntimeError as error:
            raise errors.ModelFormatError(f"cannot load {self.path}: {error}").with_log(drain_log()) from None
        finally:
            free(c_names)
            taken = take_string(used).split("\n")
        lines = drain_log()
        if self.ptr == NULL:
            if holder.error is not None:
                raise holder.error
            if holder.cancelled:
                raise errors.LlamaRuntimeError(f"loading {self.path} was cancelled by its progress callback")
            raise load_error(self.paths, lines)
        lr_live_add(LR_MODEL, 1)
        unread = [key for key in self.params.kv_overrides if key not in taken]
        if unread or holder.error is not None:
            self._free()
            if holder.error is not None:
                raise holder.error
            raise errors.InvalidArgumentError(
                f"kv_overrides: llama.cpp did not read {', '.join(unread)} of this model: a misspelt key, one that it "
                "takes from the file alone, or one of another type"
            ).with_log(lines)
        return 0

    cdef int _check_loaded(self) except -1:
        """Refuse, and free, a model that llama.cpp loads and would die of."""
        cdef char *problem = NULL
        if self.vocab_only or lr_model_check(self.ptr, &problem) == 0:
            return 0
        self._free()
        raise errors.ModelFormatError(f"{self.path} cannot be computed with: {take_string(problem)}")

    cdef void _free(self) noexcept:
        cdef llama_model *ptr = self.ptr
        self.ptr = NULL
        self.vocab_ptr = NULL
        with nogil:
            llama_model_free(ptr)
        lr_live_add(LR_MODEL, -1)

    cdef object fact(self, str name):
        self.check_open()
        return self.facts[name]

    def __dealloc__(self):
        # Every context and vocabulary holds its model, so none is left here. The GIL is released: freeing unmaps
        # gigabytes, and a backend may join threads that log.
        if self.ptr != NULL and not lr_forked():
            with nogil:
                llama_model_free(self.ptr)
            lr_live_add(LR_MODEL, -1)
        lr_rwlock_free(self.adapters)
        lr_guard_free(self.guard)

    cdef int check_open(self) except -1:
        if self.ptr == NULL:
            raise errors.ClosedError("this Model is closed" if self.path else "this Model was never loaded")
        return 0

    cdef int enter(self) except -1:
        """Keep ``close()`` out until ``lr_guard_end_shared(self.guard)``."""
        enter_shared(self.guard, "model")
        if self.ptr == NULL:
            lr_guard_end_shared(self.guard)
            self.check_open()
        return 0

    def close(self):
        """Close its contexts, then free the weights. Wraps ``llama_model_free``; closing twice is no error.

        Raises ContextBusyError, with nothing freed, while another thread is inside the model or one of its contexts.
        """
        if self.ptr == NULL:
            return
        if lr_forked():  # it is the parent's
            self.ptr = NULL
            return
        enter_exclusive(self.guard, "model")
        if self.ptr == NULL:  # another thread was first
            lr_guard_end_exclusive(self.guard)
            return
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
        self._free()
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
        return self.fact("desc")

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
        return self.fact("quantization")

    @property
    def size(self):
        """Bytes of all tensors. Wraps ``llama_model_size``."""
        return self.fact("size")

    @property
    def n_params(self):
        """Number of weights. Wraps ``llama_model_n_params``."""
        return self.fact("n_params")

    @property
    def n_ctx_train(self):
        """The context length that the model was trained with. Wraps ``llama_model_n_ctx_train``."""
        return self.fact("n_ctx_train")

    @property
    def n_embd(self):
        """Width of an embedding. Wraps ``llama_model_n_embd``."""
        return self.fact("n_embd")

    @property
    def n_embd_inp(self):
        """Width of an input embedding in a batch. Wraps ``llama_model_n_embd_inp``."""
        return self.fact("n_embd_inp")

    @property
    def n_embd_out(self):
        """Width of an embedding that a context returns. Wraps ``llama_model_n_embd_out``."""
        return self.fact("n_embd_out")

    @property
    def n_layer(self):
        """Number of layers. Wraps ``llama_model_n_layer``."""
        return self.fact("n_layer")

    @property
    def n_layer_nextn(self):
        """Number of layers for multi-token prediction. Wraps ``llama_model_n_layer_nextn``."""
        return self.fact("n_layer_nextn")

    @property
    def n_head(self):
        """Number of attention heads. Wraps ``llama_model_n_head``."""
        return self.fact("n_head")

    @property
    def n_head_kv(self):
        """Number of key/value heads. Wraps ``llama_model_n_head_kv``."""
        return self.fact("n_head_kv")

    @property
    def n_swa(self):
        """Size of the sliding attention window, 0 for full attention. Wraps ``llama_model_n_swa``."""
        return self.fact("n_swa")

    @property
    def rope_type(self):
        """How positions are rotated in: none, norm, neox, mrope, imrope or vision. Wraps ``llama_model_rope_type``."""
        return self.fact("rope_type")

    @property
    def rope_freq_scale_train(self):
        """The factor on RoPE frequencies of the training. Wraps ``llama_model_rope_freq_scale_train``."""
        return self.fact("rope_freq_scale_train")

    @property
    def has_encoder(self):
        """Whether ``Context.encode`` is part of its use. Wraps ``llama_model_has_encoder``."""
        return self.fact("has_encoder")

    @property
    def has_decoder(self):
        """Whether it can generate at all. Wraps ``llama_model_has_decoder``."""
        return self.fact("has_decoder")

    @property
    def is_recurrent(self):
        """Whether its memory is a state instead of cells (Mamba, RWKV). Wraps ``llama_model_is_recurrent``."""
        return self.fact("is_recurrent")

    @property
    def is_hybrid(self):
        """Whether its memory is both states and cells (Jamba, LFM2). Wraps ``llama_model_is_hybrid``."""
        return self.fact("is_hybrid")

    @property
    def state_bytes(self):
        """Bytes of recurrent state that a context keeps for each of its sequences; 0 where the memory is cells."""
        return self.fact("state_bytes")

    @property
    def is_diffusion(self):
        """Whether it denoises a whole text instead of continuing it. Wraps ``llama_model_is_diffusion``."""
        return self.fact("is_diffusion")

    @property
    def classifier_labels(self):
        """What the outputs of a classifier stand for, a tuple of text; empty where the file does not say.

        Wraps ``llama_model_cls_label``.
        """
        return self.fact("classifier_labels")

    @property
    def decoder_start_token(self):
        """The token that a decoder starts with after encoding, or None.

        Wraps ``llama_model_decoder_start_token``.
        """
        return self.fact("decoder_start_token")

    @property
    def n_cls_out(self):
        """Number of scores that ``pooling="rank"`` gives. Wraps ``llama_model_n_cls_out``."""
        return self.fact("n_cls_out")

    @property
    def capabilities(self):
        """What can be done with it: ``Capabilities``, told from the graph and memory that llama.cpp makes for it.

        The first call makes a small context for that and closes it. Raises ModelCapabilityError for a vocabulary,
        OutOfMemoryError.
        """
        self.check_open()
        if self._capabilities is None:
            from llama_runner.core.capabilities import look_at

            self._capabilities = look_at(self)
        return self._capabilities

    def meta(self, key):
        """The metadata value under ``key`` as text, or None. Wraps ``llama_model_meta_val_str``; arrays give None."""
        check_name("key", key)
        return self.fact("metadata").get(key)

    @property
    def metadata(self):
        """All scalar metadata as a dict of text. Wraps ``llama_model_meta_key_by_index`` and its sibling."""
        return dict(self.fact("metadata"))

    @property
    def sampling_metadata(self):
        """The sampling settings that the file recommends, as a dict of text, such as ``{"top_k": "20"}``.

        Wraps ``llama_model_meta_key_str``; keys are those of ``general.sampling``, absent where the file has none.
        """
        return sampling_metadata(self.fact("metadata"))

    def chat_template(self, name=None):
        """The Jinja source of the chat template ``name`` (None: the default one), or None.

        Wraps ``llama_model_chat_template``.
        """
        cdef bytes held
        cdef const char *c_name = NULL
        cdef const char *found
        if name is not None:
            held = check_name("name", name)
            c_name = held
        self.enter()
        try:
            found = llama_model_chat_template(self.ptr, c_name)
            return None if found == NULL else found.decode("utf-8", "replace")
        finally:
            lr_guard_end_shared(self.guard)

    def save(self, path, *, overwrite=False):
        """Write the model's files to one GGUF file at ``path``, all metadata and tensors as they are; returns its path.

        Takes the place of ``llama_model_save_to_file``, which leaves out the chat template and more, and reads repacked
        weights wrongly: this copies from the files, by ``quantize(only_copy=True)``, whose errors it raises.
        """
        from llama_runner.core.quantize import quantize

        self.check_open()
        return quantize(self.path, path, only_copy=True, overwrite=overwrite).paths[0]


cdef tuple check_paths(path):
    """One path, or a list of the parts of a split model, as absolute paths."""
    if not isinstance(path, (list, tuple)):
        return (check_path(path),)
    if not path:
        raise errors.ArgumentTypeError("path=[]: it is a file, or a list of at least one")
    if len(path) > 65535:
        raise errors.InvalidArgumentError(f"path is a list of {len(path)} files: a model has at most 65535")
    return tuple([check_path(part) for part in path])


def load_error(paths, lines):
    """The typed error for a failed load, told from llama.cpp's own last lines."""
    text, path = "\n".join(lines), paths[0]
    if "unknown model architecture" in text:
        return errors.UnsupportedModelError(
            f"{path} is of an architecture that this build of llama.cpp does not know; "
            "a newer release of llama-runner may"
        ).with_log(lines)
    if "failed to allocate" in text or "unable to allocate" in text:
        size = sum(os.path.getsize(part) for part in paths)
        return errors.OutOfMemoryError(
            f"not enough memory to load {path} ({size / 2**20:.0f} MiB)"
        ).with_log(lines)
    if "not implemented for architecture" in text or "does not support split buffers" in text:
        return errors.ModelCapabilityError(
            f"{path} cannot be split that way: choose another split_mode"
        ).with_log(lines)
    return errors.ModelFormatError(f"llama.cpp cannot load {path}").with_log(lines)
