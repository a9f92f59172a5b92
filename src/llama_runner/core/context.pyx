"""``Context``: one compute graph and one KV memory over a model."""

import atexit
import threading
import time
import weakref

import cython
import numpy as np

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from llama_runner._c.ggml cimport ggml_backend_buffer_t, ggml_type_name
from llama_runner._c.llama cimport (
    LLAMA_POOLING_TYPE_RANK,
    llama_context,
    llama_context_params,
    llama_decode,
    llama_encode,
    llama_free,
    llama_get_causal_attn,
    llama_get_embeddings_ith,
    llama_get_embeddings_seq,
    llama_get_logits_ith,
    llama_get_memory,
    llama_get_pooling_type,
    llama_init_from_model,
    llama_memory_seq_pos_max,
    llama_memory_seq_rm,
    llama_model_has_encoder,
    llama_model_n_cls_out,
    llama_model_n_embd_out,
    llama_n_batch,
    llama_n_ctx,
    llama_n_ctx_seq,
    llama_n_seq_max,
    llama_n_threads,
    llama_n_threads_batch,
    llama_n_ubatch,
    llama_set_n_threads,
    llama_time_us,
    llama_vocab_n_tokens,
)
from llama_runner._c.native cimport (
    lr_abort_arm,
    lr_abort_attach,
    lr_abort_free,
    lr_abort_new,
    lr_abort_request,
    lr_flash_attn,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_free,
    lr_guard_new,
    lr_guard_try_exclusive,
    lr_guard_try_shared,
    lr_memory_breakdown,
    lr_outputs_swap,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, enter_shared, native_error
from llama_runner.core.batch cimport Batch
from llama_runner.core.context_params cimport MAX_THREADS, check_memory, context_params
from llama_runner.core.model cimport Model
from llama_runner.core.outputs cimport Outputs, OutputView

from llama_runner import errors
from llama_runner._check import check_float, check_int
from llama_runner.core._native import is_abort

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef int MAX_SEQ = 256  # LLAMA_MAX_SEQ
cdef unsigned long main_thread_ident = threading.main_thread().ident
Memory = None  # core.memory.Memory, once it is first asked for


_live = weakref.WeakSet()


def _stop_all():
    """Before the interpreter ends: stop what daemon threads still compute, since the native library goes with it."""
    cdef Context ctx
    give_up = time.monotonic() + 10
    for ctx in list(_live):
        while not lr_guard_try_exclusive(ctx.guard) and time.monotonic() < give_up:
            lr_abort_request(ctx.abort_state)
            time.sleep(0.001)
        # where even that did not end it, leave it be; closed, so that a close() later on finds nothing to do
        if ctx.ptr != NULL and time.monotonic() < give_up:
            ctx.reserved = True
            ctx._end_reserve(True)


atexit.register(_stop_all)


cdef int on_poll(void *user_data) noexcept with gil:
    """Ctrl-C in the middle of a long decode: run the signal handlers, keep what they raise, and stop."""
    cdef Context ctx = <Context> user_data
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        ctx.interrupt = error
        return 1
    return 0


@cython.no_gc_clear  # a cycle must not take the model away before __dealloc__ has freed the context
cdef class Context:
    """One compute graph and one KV memory over a model. Wraps ``llama_init_from_model``.

    Parameters
    ----------
    n_ctx : cells of KV memory, rounded up to 256 by llama.cpp; None for the length the model was trained with.
    n_batch : most rows of one ``decode``; with causal attention at most ``n_ctx``.
    n_ubatch : most rows computed at once; larger reads prompts faster and takes more memory. With ``embeddings`` it is
        lowered to a multiple of ``n_seq_max``.
    n_seq_max : sequences, 1 to 256; ids go from 0 to ``n_seq_max - 1``.
    n_threads, n_threads_batch : for one row and for many; None for the physical cores this process may use.
    embeddings : produce embeddings; ``pooling`` is ``"none"``, ``"mean"``, ``"cls"``, ``"last"``, ``"rank"`` or None
        for the model's own.
    flash_attn : True, False, or None to let llama.cpp choose.
    type_k, type_v : element type of the KV memory: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.
    offload_kqv : keep the KV memory on the GPU. ``op_offload`` : send host tensors' operations there.
    swa_full : give sliding-window layers a full-size memory, so that any prefix can be kept.
    kv_unified : one memory that all sequences share, so that a fork copies nothing.
    rope_freq_base, rope_freq_scale : None for the model's own.
    n_outputs_max : most rows with output in one ``decode``, at least ``n_seq_max``; None for ``n_batch``.

    Raises
    ------
    InvalidArgumentError, OutOfMemoryError (with the estimate), ModelCapabilityError, ClosedError.

    One thread at a time: a second one gets ContextBusyError, in getters too. Only ``abort()`` may come from any thread.
    """

    def __cinit__(self):
        self.guard = lr_guard_new()
        self.abort_state = lr_abort_new(on_poll, <void *> self)
        if self.guard == NULL or self.abort_state == NULL:
            raise MemoryError()

    def __init__(
        self,
        Model model not None,
        *,
        n_ctx=None,
        n_batch=2048,
        n_ubatch=512,
        n_seq_max=1,
        n_threads=None,
        n_threads_batch=None,
        embeddings=False,
        pooling=None,
        flash_attn=None,
        type_k="f16",
        type_v="f16",
        offload_kqv=True,
        op_offload=True,
        swa_full=True,
        kv_unified=True,
        rope_freq_base=None,
        rope_freq_scale=None,
        n_outputs_max=None,
    ):
        if self.model is not None:
            raise errors.InvalidArgumentError("this Context is made already; make a new one")
        model.check_open()
        if model.vocab_only:
            raise errors.ModelCapabilityError(
                f"{model.path} was loaded with vocab_only=True: it has no weights to compute with"
            )
        self._create(model, context_params(model, {
            "n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_seq_max": n_seq_max,
            "n_outputs_max": n_outputs_max, "n_threads": n_threads, "n_threads_batch": n_threads_batch,
            "embeddings": embeddings, "pooling": pooling, "flash_attn": flash_attn, "type_k": type_k, "type_v": type_v,
            "offload_kqv": offload_kqv, "op_offload": op_offload, "swa_full": swa_full, "kv_unified": kv_unified,
            "rope_freq_base": rope_freq_base, "rope_freq_scale": rope_freq_scale,
        }))

    cdef int _create(self, Model model, llama_context_params params) except -1:
        drain_log()
        # exclusive and shared: a model that is being closed waits neither for nor behind a half-made context
        enter_exclusive(self.guard, "context")
        try:
            enter_shared(model.guard, "model")
            try:
                model.check_open()
                check_memory(model, params)
                with nogil:
                    self.ptr = llama_init_from_model(model.ptr, params)
            finally:
                lr_guard_end_shared(model.guard)
            if self.ptr == NULL:
                lines = drain_log()
                kind = errors.OutOfMemoryError if "alloc" in "\n".join(lines) else errors.InvalidArgumentError
                raise kind(f"llama.cpp cannot make a context of n_ctx={params.n_ctx} with {model!r}").with_log(lines)
            self.note_facts(model, params)
        except (RuntimeError, MemoryError) as error:
            raise native_error(error, "making a context") from None
        finally:
            lr_guard_end_exclusive(self.guard)
        drain_log()
        return 0

    cdef int note_facts(self, Model model, llama_context_params params) except -1:
        """What the context is like, so that most getters need not ask llama.cpp."""
        self.model = model
        model._contexts.add(self)
        _live.add(self)
        self.mem = llama_get_memory(self.ptr)
        self.n_ctx = llama_n_ctx(self.ptr)
        self.n_batch = llama_n_batch(self.ptr)
        self.n_ubatch = llama_n_ubatch(self.ptr)
        self.n_seq_max = llama_n_seq_max(self.ptr)
        self.n_vocab = llama_vocab_n_tokens(model.vocab_ptr)
        self.pooling = llama_get_pooling_type(self.ptr)
        self.embeds = params.embeddings
        self.unified = params.kv_unified
        self.n_outputs_max = params.n_outputs_max or self.n_batch
        self.wants_output = <int8_t *> malloc(self.n_batch)
        if self.wants_output == NULL:
            raise MemoryError()
        self._settings = {
            "type_k": ggml_type_name(params.type_k).decode(),
            "type_v": ggml_type_name(params.type_v).decode(),
            "flash_attn": lr_flash_attn(self.ptr),
            "rope_freq_base": params.rope_freq_base,
            "rope_freq_scale": params.rope_freq_scale,
            "swa_full": params.swa_full,
        }
        lr_abort_attach(self.abort_state, self.ptr)
        return 0

    def __dealloc__(self):
        # A view that is still alive keeps the buffer it looks at, not the context. The GIL is released while freeing:
        # backends join their threads, and those may be waiting to log.
        if self.ptr != NULL:
            if self.outputs is not None and not self.outputs.unused():
                self.outputs.taken = lr_outputs_swap(self.ptr, NULL)
            with nogil:
                llama_free(self.ptr)
        free(self.wants_output)
        lr_abort_free(self.abort_state)
        lr_guard_free(self.guard)

    def close(self):
        """Free the KV memory and the compute buffers. Wraps ``llama_free``; closing twice is no error.

        Arrays that ``logits`` returned stay valid. Raises ContextBusyError while another thread is inside.
        """
        if self.ptr != NULL:
            self._reserve()
            self._end_reserve(True)

    cdef int claim(self, object owner) except -1:
        """A loop owns the context from now on (None: no longer), and is closed before it."""
        if owner is not None and self.owner is not None and self.owner() is not None:
            raise errors.ContextBusyError("this context belongs to a loop already")
        self.owner = None if owner is None else weakref.ref(owner)
        return 0

    def _reserve(self):
        """Keep every other call out until ``_end_reserve``: a model closes all of its contexts or none."""
        if self.owner is not None and self.owner() is not None:
            raise errors.ContextBusyError("a loop runs on this context: close that first")
        enter_exclusive(self.guard, "context")
        self.reserved = True

    def _end_reserve(self, for_good):
        """Let calls in again, and before that free the context where ``for_good`` is true."""
        cdef llama_context *ptr = self.ptr
        if not self.reserved:
            raise errors.InvalidArgumentError("_end_reserve() without _reserve()")
        self.reserved = False
        if for_good and ptr != NULL:
            if self.outputs is not None and not self.outputs.unused():
                self.outputs.taken = lr_outputs_swap(ptr, NULL)
            self.outputs = self.retired = None
            self.ptr = NULL
            self.mem = NULL
            self.n_outputs = 0
            with nogil:
                llama_free(ptr)
        lr_guard_end_exclusive(self.guard)

    def __enter__(self):
        self.enter()
        self.leave()
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self.ptr == NULL:
            return "<Context closed>"
        return f"<Context n_ctx={self.n_ctx} n_seq_max={self.n_seq_max} of {self.model!r}>"

    @property
    def closed(self):
        """Whether ``close()`` has been called. Any thread."""
        return self.ptr == NULL

    cdef int enter(self) except -1:
        enter_exclusive(self.guard, "context")
        if self.ptr == NULL or self.poisoned is not None:
            lr_guard_end_exclusive(self.guard)
            if self.ptr == NULL:
                raise errors.ClosedError("this Context is closed")
            raise errors.LlamaRuntimeError(
                "this Context is unusable since llama.cpp failed an assertion; close it and make another: "
                f"{self.poisoned}"
            )
        return 0

    cdef void leave(self) noexcept:
        lr_guard_end_exclusive(self.guard)

    cdef int check_seq(self, seq_id) except -1:
        try:
            return check_int("seq_id", seq_id, 0, self.n_seq_max - 1)
        except errors.InvalidArgumentError:
            raise errors.IndexOutOfRangeError(
                f"seq_id={int(seq_id)}: this context has sequences 0 to {self.n_seq_max - 1} (n_seq_max)"
            ) from None

    # --- computing

    def decode(self, Batch batch not None, *, timeout=None):
        """Compute the rows of ``batch`` and keep them in the KV memory. Wraps ``llama_decode``, without the GIL.

        Raises, with the KV memory as it was before the call:
        InvalidArgumentError (empty or too large a batch, ids out of range, positions that do not follow on),
        NoSlotError (no room in the KV memory), DecodeAbortedError (``abort()``, or ``timeout`` seconds are over),
        DecodeError (anything else). A signal handler's exception, such as KeyboardInterrupt, is raised the same way.
        A recurrent memory cannot step back: the sequences of the batch are empty then, and the message says so.
        """
        self.enter()
        try:
            self.run(batch, False, timeout)
        finally:
            self.leave()

    def encode(self, Batch batch not None, *, timeout=None):
        """Run the encoder over ``batch``. Wraps ``llama_encode``, without the GIL; errors as for ``decode``.

        Raises ModelCapabilityError for a model without an encoder.
        """
        self.enter()
        try:
            if self.mem != NULL and not llama_model_has_encoder(self.model.ptr):
                raise errors.ModelCapabilityError(f"{self.model!r} has no encoder: use decode()")
            self.run(batch, True, timeout)
        finally:
            self.leave()

    cdef int run(self, Batch batch, bint encode, object timeout) except -1:
        cdef int32_t before[256]
        cdef int code
        cdef int64_t deadline = 0
        if timeout is not None:
            deadline = llama_time_us() + <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        enter_exclusive(batch.guard, "batch")
        try:
            self.check_batch(batch, encode)
            self.note_positions(batch, before)
            batch.check_positions(before)
            self.keep_views()
            self.n_outputs = 0
            lr_abort_arm(self.abort_state, PyThread_get_thread_ident() == main_thread_ident, deadline)
            try:
                if encode:
                    with nogil:
                        code = llama_encode(self.ptr, batch.c)
                else:
                    with nogil:
                        code = llama_decode(self.ptr, batch.c)
            except (RuntimeError, MemoryError, ValueError, IndexError) as error:
                self.interrupt = None
                if is_abort(str(error)):
                    self.poisoned = str(error)
                else:
                    self.take_back(batch, before)
                raise native_error(error, "decoding") from None
            if code != 0:
                self.fail(batch, before, code)
            memcpy(self.wants_output, batch.c.logits, batch.c.n_tokens)
            self.n_rows = batch.c.n_tokens
            self.n_outputs = batch.c.n_tokens if self.embeds else batch.n_outputs
        finally:
            lr_guard_end_exclusive(batch.guard)
        return 0

    cdef int check_batch(self, Batch batch, bint encode) except -1:
        """Everything that llama.cpp asserts, or silently gets wrong, about a batch."""
        cdef int n = batch.c.n_tokens
        if n == 0:
            raise errors.InvalidArgumentError("the batch is empty: add at least one row")
        if n > self.n_batch:
            raise errors.InvalidArgumentError(
                f"the batch has {n} rows: this context takes at most n_batch={self.n_batch}"
            )
        if n > self.n_ubatch and (
            encode or not llama_get_causal_attn(self.ptr) or (self.embeds and self.pooling > 0)
        ):
            raise errors.InvalidArgumentError(
                f"the batch has {n} rows: a model without causal attention, or with pooled embeddings, computes them "
                f"at once, at most n_ubatch={self.n_ubatch}"
            )
        outputs = n if self.embeds else batch.n_outputs
        if outputs > self.n_outputs_max:
            raise errors.InvalidArgumentError(
                f"the batch asks for {outputs} rows of output: this context gives n_outputs_max={self.n_outputs_max}"
            )
        batch.check_ids(self.n_vocab, self.n_seq_max)
        return 0

    cdef void note_positions(self, Batch batch, int32_t *before) noexcept:
        """Where each sequence of the batch ends now; -2 for those that are not in it."""
        cdef int i, k, seq
        for seq in range(MAX_SEQ):
            before[seq] = -2
        if self.mem == NULL:
            return
        for i in range(batch.c.n_tokens):
            for k in range(batch.c.n_seq_id[i]):
                seq = batch.c.seq_id[i][k]
                if before[seq] == -2:
                    before[seq] = llama_memory_seq_pos_max(self.mem, seq)

    cdef int take_back(self, Batch batch, int32_t *before) except -1:
        """Remove what a failed decode left behind; 1 when a sequence had to be emptied for it."""
        cdef int seq, emptied = 0
        for seq in range(MAX_SEQ):
            # upstream rolls back by the first sequence id of each row only
            if before[seq] != -2 and not llama_memory_seq_rm(self.mem, seq, before[seq] + 1, -1):
                llama_memory_seq_rm(self.mem, seq, -1, -1)
                emptied = 1
        return emptied

    cdef int fail(self, Batch batch, int32_t *before, int code) except -1:
        """Raise the typed error for what ``llama_decode`` returned, with the memory as it was."""
        emptied = self.take_back(batch, before)
        note = "; its memory cannot step back, so the sequences of the batch are empty now" if emptied else ""
        lines = drain_log()
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            raise interrupt
        n = batch.c.n_tokens
        if code == 1:
            raise errors.NoSlotError(
                f"no room in the KV memory for {n} more tokens (n_ctx={self.n_ctx}): remove sequences or make n_ctx "
                f"larger{note}", code
            ).with_log(lines)
        if code == 2:
            raise errors.DecodeAbortedError(f"the decode was stopped by abort() or its timeout{note}", code)
        if code == -1:
            raise errors.InvalidArgumentError(
                f"llama.cpp refused the batch of {n} rows{note}; its positions must follow on those of each sequence"
            ).with_log(lines)
        raise errors.DecodeError(
            f"llama.cpp could not compute the batch of {n} rows (code {code}){note}", code
        ).with_log(lines)

    def abort(self):
        """Stop the decode that another thread is in; it raises DecodeAbortedError. Any thread.

        Takes the place of ``llama_set_abort_callback``. Felt between two operations of the graph on a CPU; a GPU first
        finishes what it was given. Without a decode in progress it has no effect.
        """
        lr_abort_request(self.abort_state)

    def set_n_threads(self, n_threads, n_threads_batch=None):
        """Change the number of threads, 1 to 512. Wraps ``llama_set_n_threads``."""
        one = check_int("n_threads", n_threads, 1, MAX_THREADS)
        many = one if n_threads_batch is None else check_int("n_threads_batch", n_threads_batch, 1, MAX_THREADS)
        self.enter()
        llama_set_n_threads(self.ptr, one, many)
        self.leave()

    # --- what was computed

    cdef int keep_views(self) except -1:
        """Before the output buffer is written again: leave it to the views that still look at it."""
        cdef ggml_backend_buffer_t spare = NULL
        if self.outputs is None or self.outputs.unused():
            return 0
        # two buffers take turns in the usual loop, where a row is kept until the next one is there
        if self.retired is not None and self.retired.unused():
            spare = self.retired.taken
            self.retired.taken = NULL
        self.outputs.taken = lr_outputs_swap(self.ptr, spare)
        self.retired = self.outputs
        self.outputs = None
        return 0

    cdef object view(self, float *data, Py_ssize_t rows, Py_ssize_t columns):
        if self.outputs is None:
            self.outputs = Outputs()
        cdef OutputView view = OutputView.__new__(OutputView)
        view.data = data
        view.shape[0] = rows
        view.shape[1] = columns
        view.strides[0] = columns * sizeof(float)
        view.strides[1] = sizeof(float)
        lr_guard_try_shared(self.outputs.views)
        view.outputs = self.outputs
        return np.asarray(view)

    cdef int output_index(self, int i) except -1:
        """Check a row index as ``llama_get_logits_ith`` takes it: a row of the batch, or negative from the end."""
        if self.n_outputs == 0:
            raise errors.IndexOutOfRangeError("there is no output: no decode yet, or the last asked for none or failed")
        if i < 0:
            if -i > self.n_outputs:
                raise errors.IndexOutOfRangeError(f"i={i}: the last decode has {self.n_outputs} rows of output")
        elif i >= self.n_rows or not (self.embeds or self.wants_output[i]):
            raise errors.IndexOutOfRangeError(
                f"i={i}: not a row with output; the last decode had {self.n_rows} rows, {self.n_outputs} with output"
            )
        return 0

    cdef float *logits_row(self, int i) except NULL:
        """The row's logits; the caller is inside."""
        cdef float *row
        if self.mem == NULL and not llama_model_has_encoder(self.model.ptr):
            raise errors.ModelCapabilityError(f"{self.model!r} is an encoder: it has embeddings and no logits")
        self.output_index(i)
        with nogil:
            row = llama_get_logits_ith(self.ptr, i)
        if row == NULL:
            raise errors.IndexOutOfRangeError(f"i={i}: llama.cpp has no logits for it").with_log(drain_log())
        return row

    def logits(self, i=-1):
        """Logits of row ``i`` of the last decode: a float32 array of shape (n_vocab,), a view without a copy.

        ``i`` is what ``Batch.add`` returned, or negative: -1 is the last output. Wraps ``llama_get_logits_ith``.
        The array stays valid and unchanged after later decodes and after ``close()``. Raises IndexOutOfRangeError for a
        row without output.
        """
        cdef int index = check_int("i", i, -(2**31), 2**31 - 1)
        self.enter()
        try:
            return self.view(self.logits_row(index), 1, self.n_vocab)
        finally:
            self.leave()

    def embeddings(self, i=-1):
        """Embedding of row ``i`` of the last decode: a float32 array of shape (n_embd,), a view without a copy.

        Wraps ``llama_get_embeddings_ith``; lifetime and indices as for ``logits``. Raises ModelCapabilityError unless
        the context was made with ``embeddings=True`` and without pooling.
        """
        cdef int index = check_int("i", i, -(2**31), 2**31 - 1)
        cdef float *row
        self.enter()
        try:
            if not self.embeds or self.pooling > 0:
                raise errors.ModelCapabilityError(
                    "no embeddings of single rows: make the context with embeddings=True, pooling='none'"
                )
            self.output_index(index)
            with nogil:
                row = llama_get_embeddings_ith(self.ptr, index)
            if row == NULL:
                raise errors.IndexOutOfRangeError(f"i={i}: llama.cpp has no embedding for it").with_log(drain_log())
            return self.view(row, 1, llama_model_n_embd_out(self.model.ptr))
        finally:
            self.leave()

    def embeddings_seq(self, seq_id=0):
        """Pooled embedding, or rerank scores, of a sequence of the last decode: a float32 array, copied.

        Shape (n_embd,), or (n_cls_out,) with ``pooling="rank"``. Wraps ``llama_get_embeddings_seq``. Raises
        ModelCapabilityError without pooling, IndexOutOfRangeError for a sequence that the last decode did not have.
        """
        cdef float *row
        cdef int seq
        self.enter()
        try:
            seq = self.check_seq(seq_id)
            if not self.embeds or self.pooling <= 0:
                raise errors.ModelCapabilityError(
                    "no pooled embeddings: make the context with embeddings=True and a pooling"
                )
            with nogil:
                row = llama_get_embeddings_seq(self.ptr, seq)
            if row == NULL or self.n_outputs == 0:
                raise errors.IndexOutOfRangeError(f"seq_id={seq}: the last decode had no such sequence")
            n = llama_model_n_cls_out(self.model.ptr) if self.pooling == <int> LLAMA_POOLING_TYPE_RANK else (
                llama_model_n_embd_out(self.model.ptr)
            )
            # a plain copy: upstream keeps these in vectors that the next decode clears
            return np.asarray(<float[:n]> row).copy()
        finally:
            self.leave()

    # --- memory and facts

    @property
    def memory(self):
        """The ``Memory`` of this context: its KV operations. Wraps ``llama_get_memory``."""
        global Memory
        if Memory is None:
            from llama_runner.core.memory import Memory
        memory = self._memory() if self._memory is not None else None
        if memory is None:
            memory = Memory(self)
            self._memory = weakref.ref(memory)
        return memory

    @property
    def n_ctx_seq(self):
        """Cells that one sequence may use. Wraps ``llama_n_ctx_seq``."""
        self.enter()
        try:
            return llama_n_ctx_seq(self.ptr)
        finally:
            self.leave()

    @property
    def n_threads(self):
        """Threads for one row. Wraps ``llama_n_threads``."""
        self.enter()
        try:
            return llama_n_threads(self.ptr)
        finally:
            self.leave()

    @property
    def n_threads_batch(self):
        """Threads for many rows. Wraps ``llama_n_threads_batch``."""
        self.enter()
        try:
            return llama_n_threads_batch(self.ptr)
        finally:
            self.leave()

    @property
    def memory_breakdown(self):
        """Bytes in use over all devices: a dict with ``model``, ``context`` (KV memory) and ``compute``."""
        cdef size_t weights, context, compute
        self.enter()
        try:
            lr_memory_breakdown(self.ptr, &weights, &context, &compute)
        finally:
            self.leave()
        return {"model": weights, "context": context, "compute": compute}

    # --- state of a sequence

    @property
    def fingerprint(self):
        """What a saved state depends on, as a dict: metadata and shape of the model, KV types, rope settings."""
        from llama_runner.core import state

        self.enter()
        try:
            return state.fingerprint(self)
        finally:
            self.leave()

    def state_seq_get(self, seq_id):
        """The KV state of a sequence as bytes, in a container of ours with fingerprint and checksum.

        Wraps ``llama_state_seq_get_data``, without the GIL; pending shifts are applied first.
        """
        from llama_runner.core import state

        self.enter()
        try:
            return state.get(self, self.check_seq(seq_id))
        finally:
            self.leave()

    def state_seq_set(self, seq_id, blob):
        """Replace a sequence by a saved one. Wraps ``llama_state_seq_set_data``, without the GIL.

        Raises StateError for bytes that are damaged, cut off, foreign, or of another model or KV type, before llama.cpp
        reads them: the sequence is as it was. When llama.cpp has no room for the state, the sequence is empty.
        """
        from llama_runner.core import state

        self.enter()
        try:
            state.set(self, self.check_seq(seq_id), blob)
        finally:
            self.leave()
