"""``LoraAdapter``, and how adapters and control vectors get into a context and out of it."""

import os

import cython
import numpy as np

from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

from llama_runner._c.ggml cimport ggml_type, ggml_type_name
from llama_runner._c.llama cimport (
    llama_adapter_get_alora_invocation_tokens,
    llama_adapter_get_alora_n_invocation_tokens,
    llama_adapter_lora,
    llama_adapter_lora_free,
    llama_adapter_lora_init,
    llama_adapter_meta_count,
    llama_adapter_meta_key_by_index,
    llama_adapter_meta_val_str_by_index,
    llama_model_n_embd,
    llama_model_n_layer,
    llama_set_adapter_cvec,
    llama_set_adapters_lora,
    llama_synchronize,
    llama_token,
)
from llama_runner._c.native cimport (
    lr_adapter_used,
    lr_control_vector_used,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_guard_try_exclusive,
    lr_guard_try_shared,
    lr_model_output_name,
    lr_model_tensor,
    lr_rwlock_lock,
    lr_rwlock_unlock,
)
from llama_runner.core._native cimport drain_log, enter_shared, native_error
from llama_runner.core.context cimport Context
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_float, check_int, check_name, check_path
from llama_runner.core._native import logger
from llama_runner.core.control_vector import ControlVector


@cython.no_gc_clear  # __dealloc__ still needs the model
cdef class LoraAdapter:
    """A LoRA adapter, loaded for one model. Wraps ``llama_adapter_lora_init``.

    ``path`` is a GGUF file as llama.cpp's ``convert_lora_to_gguf.py`` writes it. The file is checked against the model
    before llama.cpp reads it. Activate it with ``Context.set_adapters``, on any number of contexts of the model.

    Raises ModelNotFoundError, ModelFormatError, ModelMismatchError (made for another model), ModelCapabilityError,
    OutOfMemoryError, ClosedError; on each of them nothing is loaded.

    Any thread; loading and freeing wait for a context of the model that is being made or laid out, not for decodes.
    Closing the model frees its adapters.

    Attributes
    ----------
    model, path : what it was made of. ``digest`` : BLAKE2b of the file, in hexadecimal.
    n_pairs : weights of the model that it changes.
    ignored : names of its tensors that llama.cpp does not read (norms).
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        if self.guard == NULL:
            raise MemoryError()

    def __init__(self, Model model not None, path):
        if self.model is not None:
            raise errors.InvalidArgumentError("this LoraAdapter is loaded already; make a new one")
        path = check_path(path)
        model.check_open()
        if model.vocab_only:
            raise errors.ModelCapabilityError(f"{model!r} has no weights to adapt")
        from llama_runner.gguf import file_digest

        digest = file_digest(path)
        enter_shared(model.guard, "model")
        try:
            model.check_open()
            check_file(self, model, path)
            self.path = path
            self.digest = digest
            self.model = model
            self._load()
        finally:
            lr_guard_end_shared(model.guard)

    cdef int _load(self) except -1:
        cdef bytes name = os.fsencode(self.path)
        cdef const char *c_name = name
        drain_log()
        with nogil:
            lr_rwlock_lock(self.model.adapters)
        try:
            with nogil:
                self.ptr = llama_adapter_lora_init(self.model.ptr, c_name)
        except (RuntimeError, MemoryError) as error:
            raise native_error(error, f"loading {self.path}") from None
        finally:
            lr_rwlock_unlock(self.model.adapters)
        lines = drain_log()
        if self.ptr == NULL:
            kind = errors.OutOfMemoryError if "alloc" in "\n".join(lines) else errors.ModelFormatError
            raise kind(f"llama.cpp cannot load the adapter {self.path}").with_log(lines)
        self.note_facts()
        return 0

    cdef int note_facts(self) except -1:
        """All that llama.cpp knows of the adapter, so that no getter has to ask one that is being closed."""
        cdef size_t count = llama_adapter_get_alora_n_invocation_tokens(self.ptr)
        cdef const llama_token *tokens
        cdef size_t i
        self._metadata = self.read_metadata()
        ids = np.empty(count, np.int32)
        if count:
            tokens = llama_adapter_get_alora_invocation_tokens(self.ptr)
            for i in range(count):
                ids[i] = tokens[i]
        ids.flags.writeable = False
        self._tokens = ids
        return 0

    cdef dict read_metadata(self):
        cdef int i
        return {
            read_text(self.ptr, i, True): read_text(self.ptr, i, False)
            for i in range(llama_adapter_meta_count(self.ptr))
        }

    def __dealloc__(self):
        # Whoever is closing the model frees its adapters as well, and so does the model's own end.
        if self.ptr != NULL and lr_guard_try_shared(self.model.guard):
            if self.model.ptr != NULL:
                with nogil:
                    free_adapter(self.model, self.ptr)
            lr_guard_end_shared(self.model.guard)
        lr_guard_free(self.guard)

    def close(self):
        """Free the adapter's weights. Wraps ``llama_adapter_lora_free``; closing twice is no error.

        Raises ContextBusyError, with nothing freed, while a context has it active: take it off first.
        """
        if self.ptr == NULL:
            return
        enter_shared(self.model.guard, "model")
        try:
            if not lr_guard_try_exclusive(self.guard):
                raise errors.ContextBusyError(
                    f"{self!r} is active on a context, or being closed: take it off with set_adapters() first"
                )
            if self.ptr != NULL and self.model.ptr != NULL:
                with nogil:
                    free_adapter(self.model, self.ptr)
            self.ptr = NULL
            lr_guard_end_exclusive(self.guard)
        finally:
            lr_guard_end_shared(self.model.guard)

    def __enter__(self):
        check_adapter(self)
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self.closed:
            return "<LoraAdapter closed>"
        return f"<LoraAdapter {os.path.basename(self.path)!r} of {self.model!r}>"

    @property
    def closed(self):
        """Whether it, or its model, has been closed. Any thread."""
        return self.ptr == NULL or self.model.ptr == NULL

    @property
    def metadata(self):
        """All scalar metadata as a dict of text. Wraps ``llama_adapter_meta_key_by_index`` and its sibling."""
        return dict(self._metadata or {})

    def meta(self, key):
        """The metadata value under ``key`` as text, or None, as ``llama_adapter_meta_val_str`` has it."""
        return (self._metadata or {}).get(check_name("key", key).decode())

    @property
    def invocation_tokens(self):
        """Tokens that have to come before an activated LoRA is to be switched on: int32, empty for a plain one.

        Wraps ``llama_adapter_get_alora_invocation_tokens``. llama.cpp does not look for them: the caller does.
        """
        return self._tokens


@cython.no_gc_clear
cdef class AdapterUse:
    """An adapter that a context has active, and how strongly; keeps the adapter from being closed."""

    def __cinit__(self, LoraAdapter adapter not None, scale):
        if not lr_guard_try_shared(adapter.guard):
            raise errors.ContextBusyError(f"{adapter!r} is being closed by another thread")
        self.adapter = adapter
        self.scale = scale

    def __dealloc__(self):
        if self.adapter is not None:
            lr_guard_end_shared(self.adapter.guard)


cdef void free_adapter(Model model, llama_adapter_lora *ptr) noexcept nogil:
    lr_rwlock_lock(model.adapters)
    llama_adapter_lora_free(ptr)
    lr_rwlock_unlock(model.adapters)


cdef int check_adapter(LoraAdapter adapter) except -1:
    if adapter.ptr == NULL or adapter.model.ptr == NULL:
        raise errors.ClosedError("this LoraAdapter is closed" if adapter.path else "this LoraAdapter was never loaded")
    return 0


cdef int check_file(LoraAdapter adapter, Model model, str path) except -1:
    """Everything that llama.cpp asserts, or lets pass and then asserts while decoding, about an adapter's file."""
    from llama_runner.gguf import check_lora, read_gguf_header

    cdef const char *output = lr_model_output_name(model.ptr)
    pairs, ignored = check_lora(
        read_gguf_header(path),
        model.architecture,
        lambda name: model_tensor(model, name),
        None if output == NULL else output.decode("utf-8", "replace"),
    )
    adapter.n_pairs = len(pairs)
    adapter.ignored = tuple(ignored)
    return 0


cdef object model_tensor(Model model, str name):
    """Shape in ggml's order, four dimensions, and type of a weight, or None."""
    cdef bytes c_name = name.encode("utf-8", "replace")
    cdef int64_t shape[4]
    cdef int kind = 0
    if not lr_model_tensor(model.ptr, c_name, shape, &kind):
        return None
    return (shape[0], shape[1], shape[2], shape[3]), ggml_type_name(<ggml_type> kind).decode()


cdef str read_text(const llama_adapter_lora *ptr, int32_t index, bint want_key):
    """One metadata key or value, whatever its length."""
    cdef int32_t size = 256, length
    cdef char *buffer
    while True:
        buffer = <char *> malloc(size)
        if buffer == NULL:
            raise MemoryError()
        try:
            if want_key:
                length = llama_adapter_meta_key_by_index(ptr, index, buffer, size)
            else:
                length = llama_adapter_meta_val_str_by_index(ptr, index, buffer, size)
            if length < size:
                return buffer[:max(length, 0)].decode("utf-8", "replace")
        finally:
            free(buffer)
        size = length + 1


# --- what a context does with them; the public methods are Context.set_adapters and set_control_vector


def parse(Context ctx not None, adapters):
    """``[(adapter, scale), …]`` without those of scale 0. Runs the caller's Python code, so not inside ``ctx``."""
    if adapters is None:
        return []
    pairs = adapters.items() if hasattr(adapters, "items") else adapters
    wanted = {}
    try:
        for adapter, scale in pairs:
            if not isinstance(adapter, LoraAdapter):
                raise errors.ArgumentTypeError(f"adapters has {adapter!r}: it holds LoraAdapter objects and scales")
            if adapter in wanted:
                raise errors.InvalidArgumentError(f"{adapter!r} is given twice")
            wanted[adapter] = float(np.float32(check_float("scale", scale, -FLT_MAX, FLT_MAX)))
    except (TypeError, ValueError) as error:
        if isinstance(error, errors.LlamaRunnerError):
            raise
        raise errors.ArgumentTypeError(
            f"adapters={adapters!r}: it maps LoraAdapter objects to scales, or has (adapter, scale) pairs"
        ) from None
    for adapter in wanted:
        check_adapter(adapter)
        if adapter.model is not ctx.model:
            raise errors.InvalidArgumentError(
                f"{adapter!r} was loaded for another Model object than this context's: load it for this one"
            )
    return [(adapter, scale) for adapter, scale in wanted.items() if scale != 0]


def activate(Context ctx not None, wanted):
    """Put these (adapter, scale) pairs in place of the active ones; the caller is inside ``ctx``."""
    cdef tuple before = ctx._adapters
    uses = tuple(AdapterUse(adapter, scale) for adapter, scale in wanted)
    for adapter, _ in wanted:  # again: from here on none can be closed
        check_adapter(adapter)
    active = {use.adapter for use in before}
    apply_uses(ctx, uses)
    try:
        ctx.reserve_graph()
        for use in uses:
            # those that were active have been looked at, and where nothing changed there is no new graph to look at
            if use.adapter not in active:
                check_used(ctx, use.adapter)
    except BaseException:
        apply_uses(ctx, before)
        raise
    ctx._adapters = uses  # the last reference to those that were active before goes here


cdef int apply_uses(Context ctx, tuple uses) except -1:
    cdef size_t n = len(uses), i = 0
    cdef AdapterUse use
    cdef llama_adapter_lora **ptrs = <llama_adapter_lora **> malloc((n + 1) * sizeof(llama_adapter_lora *))
    cdef float *scales = <float *> malloc((n + 1) * sizeof(float))
    try:
        if ptrs == NULL or scales == NULL:
            raise MemoryError()
        for use in uses:
            ptrs[i] = use.adapter.ptr
            scales[i] = use.scale
            i += 1
        llama_set_adapters_lora(ctx.ptr, ptrs, n, scales)
    finally:
        free(ptrs)
        free(scales)
    return 0


cdef int check_used(Context ctx, LoraAdapter adapter) except -1:
    """llama.cpp applies a pair where its graph multiplies by that weight through one function, and not elsewhere."""
    cdef int total = 0
    cdef int used = lr_adapter_used(ctx.ptr, adapter.ptr, &total)
    if used == total or (ctx.model.has_encoder and ctx.model.has_decoder):  # two graphs, of which this is one
        return 0
    if used == 0:
        raise errors.ModelCapabilityError(
            f"{adapter!r} would have no effect: llama.cpp's graph of {ctx.model.architecture} applies none of its "
            f"{total} pairs of matrices"
        )
    logger.warning("llama.cpp's graph of %s applies %d of the %d pairs of matrices of %r",
                   ctx.model.architecture, used, total, adapter)
    return 0


def steer(Context ctx not None, vector, il_start, il_end):
    """Put a control vector in place of the active one; the caller is inside ``ctx``."""
    cdef int last = llama_model_n_layer(ctx.model.ptr) - 1
    if vector is None:
        place_vector(ctx, None, 1, last)
        ctx._control_vector = ctx._control_digest = None
        return
    if not isinstance(vector, ControlVector):
        raise errors.ArgumentTypeError(f"vector is a ControlVector or None, not {type(vector).__name__}")
    width = llama_model_n_embd(ctx.model.ptr)
    if vector.n_embd != width:
        raise errors.InvalidArgumentError(f"{vector!r} is {vector.n_embd} wide: this model's n_embd is {width}")
    if vector.n_layers > last:
        raise errors.InvalidArgumentError(
            f"{vector!r} has directions for layers 1 to {vector.n_layers}: this model's go to {last}"
        )
    start = check_int("il_start", il_start, 1, last)
    end = last if il_end is None else check_int("il_end", il_end, start, last)
    before = ctx._control_vector, ctx._control_digest
    try:
        place_vector(ctx, vector, start, end)
        if lr_control_vector_used(ctx.ptr) == 0:
            raise errors.ModelCapabilityError(
                f"{vector!r} would have no effect: llama.cpp's graph of {ctx.model.architecture} has no place for one"
            )
    except BaseException:
        if before[0] is None:
            place_vector(ctx, None, 1, last)
        else:
            place_vector(ctx, before[0], before[1][1], before[1][2])
        raise
    ctx._control_vector, ctx._control_digest = vector, [vector.digest, start, end]


cdef int place_vector(Context ctx, vector, int start, int end) except -1:
    """Hand the directions to llama.cpp, all layers of them: those it is not given keep what an earlier vector had."""
    cdef const float[::1] view
    cdef const float *data = NULL
    cdef size_t size = 0
    cdef int width = llama_model_n_embd(ctx.model.ptr), code
    if vector is not None:
        whole = np.zeros((llama_model_n_layer(ctx.model.ptr) - 1, width), np.float32)
        whole[:vector.n_layers] = vector.directions
        view = whole.reshape(-1)
        data, size = &view[0], len(view)
    try:
        with nogil:
            llama_synchronize(ctx.ptr)  # a GPU may still be reading the vector
            code = llama_set_adapter_cvec(ctx.ptr, data, size, width, start, end)
    except (RuntimeError, MemoryError) as error:
        code = -1
        ctx.poisoned = str(error)
    if code != 0:
        # what llama.cpp had allocated until then is in no state to be used or tried again
        ctx.poisoned = ctx.poisoned or "no memory for a control vector"
        raise errors.OutOfMemoryError("llama.cpp could not set the control vector").with_log(drain_log())
    ctx.reserve_graph()
    return 0
