"""``Context``: one compute graph and one KV memory over a model."""

import atexit
import threading
import time
import weakref

import cython

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from llama_runner._c.ggml cimport ggml_type_name
from llama_runner._c.llama cimport (
    LLAMA_ATTENTION_TYPE_CAUSAL,
    llama_batch,
    llama_context,
    llama_context_params,
    llama_decode,
    llama_encode,
    llama_free,
    llama_get_causal_attn,
    llama_get_memory,
    llama_model_is_recurrent,
    llama_n_ctx_seq,
    llama_n_threads,
    llama_n_threads_batch,
    llama_perf_context,
    llama_perf_context_data,
    llama_perf_context_reset,
    llama_set_causal_attn,
    llama_set_embeddings,
    llama_set_n_threads,
    llama_synchronize,
    llama_time_us,
)
from llama_runner._c.native cimport (
    LR_CONTEXT,
    lr_abort_arm,
    lr_abort_attach,
    lr_abort_fail,
    lr_abort_free,
    lr_abort_new,
    lr_abort_request,
    lr_capabilities_of,
    lr_context_facts,
    lr_context_new,
    lr_flash_attn,
    lr_gave_logits,
    lr_forked,
    lr_guard_end_exclusive,
    lr_guard_end_shared,
    lr_guard_try_exclusive,
    lr_live_add,
    LR_MEMORY_LAYOUT_KNOWN,
    LR_MEMORY_WINDOW,
    lr_memory_breakdown,
    lr_memory_flush,
    lr_memory_layout,
    lr_memory_pending,
    lr_memory_tails,
    lr_outputs_swap,
    lr_reserve,
    lr_rwlock_lock_shared,
    lr_rwlock_unlock_shared,
    lr_thread_strand,
    lr_thread_stranded,
)
from llama_runner.core._native cimport drain_log, enter_exclusive, enter_shared, native_error, take_string
from llama_runner.core.batch cimport Batch
from llama_runner.core.context_params cimport MAX_THREADS, check_memory, check_model, check_pooling, context_params
from llama_runner.core.context_state cimport ContextState
from llama_runner.core.decoding cimport check_rows, check_sharing, check_window, decode_error, note_positions, take_back
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_bool, check_float, check_int
from llama_runner.core._native import is_abort
from llama_runner.core.perf import ContextPerf

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef unsigned long main_thread_ident = threading.main_thread().ident
Memory = None  # core.memory.Memory, once it is first asked for
backend_sampler = None  # core.backend_sampler, once a chain is attached


_live = weakref.WeakSet()


def _stop_all():
    """Before the interpreter ends: stop what daemon threads still compute, since the native library goes with it."""
    cdef Context ctx
    if lr_forked():  # the threads that were computing are not in this process
        return
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


cdef dict settings(llama_context_params params, bint flash_attn):
    """What the values of the KV memory depend on, besides the model: part of ``Context.fingerprint``."""
    return {
        "type_k": ggml_type_name(params.type_k).decode(),
        "type_v": ggml_type_name(params.type_v).decode(),
        "flash_attn": flash_attn,
        "attention_type": <int> params.attention_type,
        "rope_scaling_type": <int> params.rope_scaling_type,
        "rope_freq_base": params.rope_freq_base,
        "rope_freq_scale": params.rope_freq_scale,
        "yarn": [params.yarn_ext_factor, params.yarn_attn_factor, params.yarn_beta_fast, params.yarn_beta_slow,
                 params.yarn_orig_ctx],
        "swa_full": params.swa_full,
    }


@cython.no_gc_clear  # a cycle must not take the model away before __dealloc__ has freed the context
cdef class Context(ContextState):
    """One compute graph and one KV memory over a model. Wraps ``llama_init_from_model``.

    Parameters
    ----------
    n_ctx : cells of KV memory, rounded up to 256 by llama.cpp; None for the length the model was trained with.
    n_batch : most rows of one ``decode``; with causal attention at most ``n_ctx``.
    n_ubatch : most rows computed at once; larger reads prompts faster and takes more memory. With ``embeddings`` it is
        lowered to a multiple of ``n_seq_max``.
    n_seq_max : sequences, 1 to 256; ids go from 0 to ``n_seq_max - 1``.
    n_outputs_max : most rows with output in one ``decode``, at least ``n_seq_max``; None for ``n_batch``.
    n_outputs_max_per_seq : most rows with output of one sequence that a backend sampler samples from.
    n_threads, n_threads_batch : for one row and for many; None for the physical cores this process may use.
    embeddings : produce embeddings; ``pooling`` is ``"none"``, ``"mean"``, ``"cls"``, ``"last"``, ``"rank"`` or None
        for the model's own.
    attention_type : ``"causal"``, ``"non_causal"`` or None for the model's own; ``causal_attn`` changes it later.
    flash_attn : True, False, or None to let llama.cpp choose.
    type_k, type_v : element type of the KV memory: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.
    offload_kqv : keep the KV memory on the GPU. ``op_offload`` : send host tensors' operations there.
    swa_full : give sliding-window layers a full-size memory, so that any prefix can be kept.
    kv_unified : one memory that all sequences share, so that a fork copies nothing.
    rope_scaling_type : ``"none"``, ``"linear"``, ``"yarn"``, ``"longrope"`` or None for the model's own.
    rope_freq_base, rope_freq_scale : None for the model's own; the scale is 1 / factor, 0.25 for four times the length.
    yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, yarn_orig_ctx : None for the model's own.
    perf : measure times, for ``perf()``.

    Raises
    ------
    InvalidArgumentError, OutOfMemoryError (with the estimate), ModelCapabilityError, ClosedError.

    One thread at a time: a second one gets ContextBusyError, in getters too. Only ``abort()`` may come from any thread.
    """

    def __cinit__(self):
        self._adapters = ()
        self.abort_state = lr_abort_new(on_poll, <void *> self)
        self.samplers = {}
        if self.abort_state == NULL:
            raise MemoryError()

    def __init__(
        self,
        Model model not None,
        *,
        n_ctx=None,
        n_batch=2048,
        n_ubatch=512,
        n_seq_max=1,
        n_outputs_max=None,
        n_outputs_max_per_seq=1,
        n_threads=None,
        n_threads_batch=None,
        embeddings=False,
        pooling=None,
        attention_type=None,
        flash_attn=None,
        type_k="f16",
        type_v="f16",
        offload_kqv=True,
        op_offload=True,
        swa_full=True,
        kv_unified=True,
        rope_scaling_type=None,
        rope_freq_base=None,
        rope_freq_scale=None,
        yarn_ext_factor=None,
        yarn_attn_factor=None,
        yarn_beta_fast=None,
        yarn_beta_slow=None,
        yarn_orig_ctx=None,
        perf=False,
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
            "n_outputs_max": n_outputs_max, "n_outputs_max_per_seq": n_outputs_max_per_seq, "n_threads": n_threads,
            "n_threads_batch": n_threads_batch, "embeddings": embeddings, "pooling": pooling,
            "attention_type": attention_type, "flash_attn": flash_attn, "type_k": type_k, "type_v": type_v,
            "offload_kqv": offload_kqv, "op_offload": op_offload, "swa_full": swa_full, "kv_unified": kv_unified,
            "rope_scaling_type": rope_scaling_type, "rope_freq_base": rope_freq_base,
            "rope_freq_scale": rope_freq_scale, "yarn_ext_factor": yarn_ext_factor,
            "yarn_attn_factor": yarn_attn_factor, "yarn_beta_fast": yarn_beta_fast, "yarn_beta_slow": yarn_beta_slow,
            "yarn_orig_ctx": yarn_orig_ctx, "perf": perf,
        }))

    cdef int _create(self, Model model, llama_context_params params) except -1:
        drain_log()
        # exclusive and shared: a model that is being closed waits neither for nor behind a half-made context
        enter_exclusive(self.guard, "context")
        try:
            enter_shared(model.guard, "model")
            try:
                model.check_open()
                check_model(model, params)
                check_memory(model, params)
                with nogil:
                    lr_rwlock_lock_shared(model.adapters)
                try:
                    with nogil:
                        self.ptr = lr_context_new(model.ptr, params)
                finally:
                    lr_rwlock_unlock_shared(model.adapters)
                if self.ptr == NULL:
                    lines = drain_log()
                    kind = errors.OutOfMemoryError if "alloc" in "\n".join(lines) else errors.InvalidArgumentError
                    raise kind(
                        f"llama.cpp cannot make a context of n_ctx={params.n_ctx} with {model!r}"
                    ).with_log(lines)
                try:
                    self.note_facts(model, params)
                except BaseException:
                    with nogil:
                        llama_free(self.ptr)
                    self.ptr = NULL
                    raise
                lr_live_add(LR_CONTEXT, 1)
            finally:
                lr_guard_end_shared(model.guard)
        except (RuntimeError, MemoryError) as error:
            raise native_error(error, "making a context") from None
        finally:
            lr_guard_end_exclusive(self.guard)
        drain_log()
        return 0

    cdef int note_facts(self, Model model, llama_context_params params) except -1:
        """What the context is like, so that most getters need not ask llama.cpp; refuses what it cannot compute."""
        lr_context_facts(self.ptr, &self.facts)
        lr_capabilities_of(self.ptr, &self.able)
        self.mem = llama_get_memory(self.ptr)
        self.memory_parts = lr_memory_layout(self.ptr)
        check_pooling(model, self.facts.pooling)
        # without a memory a model is an encoder, and those never mask what comes later
        self.causal = self.mem != NULL and llama_get_causal_attn(self.ptr)
        if self.mem == NULL and params.attention_type == LLAMA_ATTENTION_TYPE_CAUSAL:
            raise errors.ModelCapabilityError("attention_type='causal': this model is an encoder, it sees all rows")
        self.wants_output = <int8_t *> malloc(self.facts.n_batch)
        if self.wants_output == NULL:
            raise MemoryError()
        self.n_ctx = self.facts.n_ctx
        self.n_batch = self.facts.n_batch
        self.n_ubatch = self.facts.n_ubatch
        self.n_seq_max = self.facts.n_seq_max
        self.n_vocab = self.facts.n_vocab
        self.embeds = params.embeddings
        self.unified = self.kv_unified = params.kv_unified
        self.swa_full = params.swa_full
        self.timed = not params.no_perf
        self._settings = settings(params, lr_flash_attn(self.ptr))
        lr_abort_attach(self.abort_state, self.ptr)
        self.model = model
        model._contexts.add(self)
        _live.add(self)
        return 0

    def __dealloc__(self):
        # A view that is still alive keeps the buffer it looks at, not the context. The GIL is released while freeing:
        # backends join their threads, and those may be waiting to log.
        if self.ptr != NULL and not lr_forked() and not self.stranded:
            if self.outputs is not None and not self.outputs.unused():
                self.outputs.taken = lr_outputs_swap(self.ptr, NULL)
            with nogil:
                llama_free(self.ptr)
            lr_live_add(LR_CONTEXT, -1)
        lr_abort_free(self.abort_state)

    def close(self):
        """Free the KV memory and the compute buffers. Wraps ``llama_free``; closing twice is no error.

        Arrays that ``logits`` returned stay valid. Raises ContextBusyError while another thread is inside.
        """
        if lr_forked():  # it is the parent's
            self.ptr = NULL
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
            if not self.stranded:
                with nogil:
                    llama_free(ptr)
                lr_live_add(LR_CONTEXT, -1)
                if self.samplers:
                    backend_sampler.release(self)
                self._adapters = ()
                self._control_vector = self._control_digest = None
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

    # --- computing

    def decode(self, Batch batch not None, *, timeout=None):
        """Compute the rows of ``batch`` and keep them in the KV memory. Wraps ``llama_decode``, without the GIL.

        Raises, with the KV memory as it was before the call:
        InvalidArgumentError (empty or too large a batch, ids out of range, positions that do not follow on),
        NoSlotError (no room in the KV memory), DecodeAbortedError (``abort()``, or ``timeout`` seconds are over),
        DecodeError (anything else). A signal handler's exception, such as KeyboardInterrupt, is raised the same way.
        What cannot be brought back is empty then, never wrong: sequences with a recurrent state that the computation
        had reached, or a sliding window that had moved on. The message and ``DecodeError.emptied`` say which.
        With a sliding window, InvalidArgumentError for more than ``n_ubatch`` rows that cannot be computed one part
        after another. A row of several sequences is computed once, for sequences that hold the same cells:
        InvalidArgumentError for others, ModelCapabilityError with ``kv_unified=False`` or a recurrent model.
        A model with encoder and decoder attends to what ``encode`` read last, of the same sequence.
        """
        self.enter()
        try:
            self.run(batch, False, timeout)
        finally:
            self.leave()

    def encode(self, Batch batch not None, *, timeout=None):
        """Run the encoder over ``batch``. Wraps ``llama_encode``, without the GIL; errors as for ``decode``.

        Every row gives output, and belongs to one sequence. Where a decoder follows, what was encoded earlier is
        forgotten; a sequence that the decoder has rows of must be removed first. Raises ModelCapabilityError for a
        model without an encoder.
        """
        self.enter()
        try:
            if self.mem != NULL and not self.facts.has_encoder:
                raise errors.ModelCapabilityError(f"{self.model!r} has no encoder: use decode()")
            self.run(batch, True, timeout)
        finally:
            self.leave()

    cdef int run(self, Batch batch, bint encode, object timeout) except -1:
        cdef int32_t before[256]
        cdef int64_t deadline = 0
        if timeout is not None:
            deadline = llama_time_us() + <int64_t> (check_float("timeout", timeout, 0, 1e9) * 1e6)
        encode = encode or self.mem == NULL  # which is what llama_decode does then
        entered = None
        enter_exclusive(batch.guard, "batch")
        try:
            self.check_batch(batch, encode)
            if self.samplers:
                entered = backend_sampler.enter(self, batch)
            note_positions(self.mem, batch, before)
            batch.check_positions(before, self.facts.n_pos)
            self.sampled_rows = None
            self.compute(batch, encode, before, deadline)
            self.note_output(batch, encode)
            if self.samplers and not encode:
                backend_sampler.note_rows(self, batch)
        finally:
            lr_guard_end_exclusive(batch.guard)
            if entered is not None:
                backend_sampler.leave(entered)
        return 0

    cdef void poison(self, Batch batch, str why) noexcept:
        """After an assertion: nothing but ``close`` from now on."""
        self.poisoned = why
        if (llama_n_threads(self.ptr) if batch.c.n_tokens == 1 else llama_n_threads_batch(self.ptr)) > 1:
            self.stranded = True
            lr_thread_strand()

    cdef int reserve_graph(self) except -1:
        """Lay the graph out again where something changed that calls for it; the caller is inside."""
        cdef char *error = NULL
        cdef int code
        with nogil:
            code = lr_reserve(self.ptr, self.model.adapters, &error)
        if code == 0:
            return 0
        text = take_string(error)
        if is_abort(text):
            self.poisoned = text
        kind = MemoryError if "alloc" in text else RuntimeError
        raise native_error(kind(text), "laying out the graph")

    cdef int check_batch(self, Batch batch, bint encode) except -1:
        """Everything that llama.cpp asserts, or silently gets wrong, about a batch, but for its positions."""
        cdef bint every = self.embeds or encode
        if lr_thread_stranded():
            raise errors.LlamaRuntimeError(
                "llama.cpp failed an assertion in a computation of this thread, and its helpers still wait for it: "
                "use another thread, or another process"
            )
        check_rows(
            batch, &self.facts, encode, encode or not self.causal or (self.embeds and self.facts.pooling > 0),
            batch.c.n_tokens if every else batch.n_outputs,
        )
        cdef int i, k
        if encode:
            return 0
        if self.able.every_row and self.able.has_logits and not every and 0 < batch.n_outputs < batch.c.n_tokens:
            raise errors.ModelCapabilityError(
                f"llama.cpp's graph of {self.model.architecture} gives output for every row and mixes up fewer: ask "
                "for that of every row, logits='all'"
            )
        if not self.facts.has_decoder:
            raise errors.ModelCapabilityError(f"{self.model!r} has no decoder: use encode()")
        if self.facts.reads_encoder:
            for i in range(batch.c.n_tokens):
                for k in range(batch.c.n_seq_id[i]):
                    if not self.encoded[batch.c.seq_id[i][k]]:
                        raise errors.InvalidArgumentError(
                            f"row {i} is of sequence {batch.c.seq_id[i][k]}: encode() something for it first"
                        )
        if batch.seq_width > 1 and self.mem != NULL:
            check_sharing(self.ptr, batch, self.unified, self.memory_parts)
        return 0

    cdef int settle(self) except -1:
        """Move keys to their new positions now, and copy what is to be copied; the caller is inside."""
        cdef char *error = NULL
        cdef int result
        with nogil:
            result = lr_memory_flush(self.ptr, self.abort_state, &error)
        if result != 0:
            text = take_string(error)
            if is_abort(text):
                self.poisoned = text
            raise native_error(RuntimeError(text), "applying pending changes of the KV memory")
        return 0

    cdef int compute(self, Batch batch, bint encode, int32_t *before, int64_t deadline) except -1:
        """The native call; when it fails, the memory is as it was before."""
        cdef llama_batch given = batch.as_given(self.facts.n_pos)
        cdef int32_t tails[256]
        cdef int code
        self.reserve_graph()
        self.keep_views()
        self.n_outputs = 0
        if self.mem != NULL:
            if lr_memory_pending(self.ptr):
                self.settle()
            if self.memory_parts & LR_MEMORY_WINDOW and given.n_tokens > self.n_ubatch:
                check_window(self.ptr, &given, self.n_ubatch)
            lr_memory_tails(self.ptr, tails)
        lr_abort_arm(self.abort_state, PyThread_get_thread_ident() == main_thread_ident, deadline)
        try:
            with nogil:
                code = llama_encode(self.ptr, given) if encode else llama_decode(self.ptr, given)
                if self.timed:
                    llama_synchronize(self.ptr)  # or upstream takes several single rows for a prompt
        except (RuntimeError, MemoryError, ValueError, IndexError) as error:
            self.interrupt = None
            typed = native_error(error, "decoding")
            if is_abort(str(error)):
                self.poison(batch, str(error))
            else:
                typed.emptied = take_back(self.ptr, self.mem, before, tails, True)
            raise typed from None
        if code != 0:
            emptied = take_back(self.ptr, self.mem, before, tails, code != 1 and code != -1)
            interrupt, self.interrupt = self.interrupt, None
            failed = decode_error(code, batch.c.n_tokens, self.n_ctx, emptied)
            raise interrupt if interrupt is not None else failed
        return 0

    cdef void note_output(self, Batch batch, bint encode) noexcept:
        """Which rows have output, and of what kind."""
        cdef int i, n = batch.c.n_tokens
        self.n_rows = n
        if self.embeds or encode:
            memset(self.wants_output, 1, n)
            self.n_outputs = n
        else:
            memcpy(self.wants_output, batch.c.logits, n)
            self.n_outputs = batch.n_outputs
        self.gave_logits = lr_gave_logits(self.ptr)
        self.gave_embeddings = self.embeds
        if encode:
            memset(self.encoded, 0, sizeof(self.encoded))
            for i in range(n):
                self.encoded[batch.c.seq_id[i][0]] = 1

    def abort(self):
        """Stop the decode that another thread is in; it raises DecodeAbortedError. Any thread.

        Takes the place of ``llama_set_abort_callback``. Felt between two operations of the graph on a CPU; a GPU first
        finishes what it was given. Without a decode in progress it has no effect.
        """
        lr_abort_request(self.abort_state)

    def _fail_next(self):
        """For tests: make the next decode fail an assertion inside llama.cpp, on the thread that calls it."""
        lr_abort_fail(self.abort_state)

    def set_n_threads(self, n_threads, n_threads_batch=None):
        """Change the number of threads, 1 to 512. Wraps ``llama_set_n_threads``."""
        one = check_int("n_threads", n_threads, 1, MAX_THREADS)
        many = one if n_threads_batch is None else check_int("n_threads_batch", n_threads_batch, 1, MAX_THREADS)
        self.enter()
        llama_set_n_threads(self.ptr, one, many)
        self.leave()

    def synchronize(self):
        """Wait for what is being computed, as the getters do. Wraps ``llama_synchronize``, without the GIL."""
        self.enter()
        try:
            with nogil:
                llama_synchronize(self.ptr)
        finally:
            self.leave()

    @property
    def causal_attn(self):
        """Whether a row attends to earlier rows only; may be set. Wraps ``llama_get_causal_attn`` and ``llama_set_…``.

        Without it a decode computes all rows at once, so that a batch has at most ``n_ubatch`` of them. What is in the
        KV memory stays as it was computed. Raises ModelCapabilityError for an encoder, which always sees all rows, and
        for a recurrent model, which never does.
        """
        self.enter()
        causal = self.causal
        self.leave()
        return causal

    @causal_attn.setter
    def causal_attn(self, value):
        cdef bint causal = check_bool("causal_attn", value)
        self.enter()
        try:
            if causal == self.causal:
                return
            if self.mem == NULL or llama_model_is_recurrent(self.model.ptr):
                raise errors.ModelCapabilityError(
                    f"causal_attn={value}: {self.model!r} " + ("is an encoder" if self.mem == NULL else "is recurrent")
                )
            llama_set_causal_attn(self.ptr, causal)
            self.causal = causal
        finally:
            self.leave()

    @property
    def produces_embeddings(self):
        """Whether a decode gives embeddings; ``set_embeddings`` changes it. Any thread."""
        return self.embeds

    def set_embeddings(self, embeddings):
        """Give embeddings from the next decode on, or no longer. Wraps ``llama_set_embeddings``.

        What the last decode gave stays readable. Raises ModelCapabilityError where sequences are pooled and
        ``n_ubatch`` is no multiple of ``n_seq_max``: make such a context with ``embeddings=True``.
        """
        cdef bint on = check_bool("embeddings", embeddings)
        self.enter()
        try:
            if on and self.facts.pooling > 0 and self.n_ubatch % self.n_seq_max:
                raise errors.ModelCapabilityError(
                    f"pooling needs an n_ubatch ({self.n_ubatch}) that is a multiple of n_seq_max ({self.n_seq_max}): "
                    "make the context with embeddings=True"
                )
            llama_set_embeddings(self.ptr, on)
            self.embeds = on
        finally:
            self.leave()

    def perf(self):
        """Times and counts since the context was made, or since ``perf_reset``: a ``ContextPerf``.

        Wraps ``llama_perf_context``. A decode of one row counts as generation, one of several as prompt. Raises
        ModelCapabilityError unless the context was made with ``perf=True``.
        """
        cdef llama_perf_context_data data
        self.enter()
        try:
            if not self.timed:
                raise errors.ModelCapabilityError("nothing was measured: make the context with perf=True")
            data = llama_perf_context(self.ptr)
        finally:
            self.leave()
        # upstream says 1 where there was none
        return ContextPerf(
            data.t_start_ms, data.t_load_ms, data.t_p_eval_ms, data.t_eval_ms,
            data.n_p_eval if data.t_p_eval_ms > 0 else 0, data.n_eval if data.t_eval_ms > 0 else 0, data.n_reused,
        )

    def perf_reset(self):
        """Start counting anew. Wraps ``llama_perf_context_reset``."""
        self.enter()
        llama_perf_context_reset(self.ptr)
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

    # --- adapters and control vectors

    def set_adapters(self, adapters=None):
        """Make these LoRA adapters the active ones, from the next decode on. Wraps ``llama_set_adapters_lora``.

        ``adapters`` maps each ``LoraAdapter`` to its scale, or is an iterable of (adapter, scale); None or empty takes
        all off. A scale is any finite number; 0 is the same as leaving the adapter out. Keys and values already in
        the KV memory stay as the adapters of their time computed them: clear the memory for an exact result.
        Raises, with the active ones unchanged: InvalidArgumentError (an adapter of another model, or given twice),
        ClosedError, ModelCapabilityError (an adapter that this model's graph does not use), OutOfMemoryError.
        """
        from llama_runner.core import adapter

        wanted = adapter.parse(self, adapters)
        self.enter()
        try:
            adapter.activate(self, wanted)
        finally:
            self.leave()

    @property
    def adapters(self):
        """The active LoRA adapters and their scales, a new dict."""
        self.enter()
        try:
            return {use.adapter: use.scale for use in self._adapters}
        finally:
            self.leave()

    def set_control_vector(self, vector=None, *, il_start=1, il_end=None):
        """Add a ``ControlVector`` to the output of layers ``il_start`` to ``il_end``, from the next decode on.

        Wraps ``llama_set_adapter_cvec``. Both ends are included and go from 1 to ``n_layer - 1``, which None stands
        for. A vector of fewer layers leaves the others alone; ``vector=None`` takes it off. The KV memory stays as it
        is, see ``set_adapters``. Raises, with the vector that was there still in place: InvalidArgumentError (width or
        layers do not fit the model), ModelCapabilityError (the model's graph has no place for one), OutOfMemoryError
        (after which the context is to be closed).
        """
        from llama_runner.core import adapter

        self.enter()
        try:
            adapter.steer(self, vector, il_start, il_end)
        finally:
            self.leave()

    @property
    def control_vector(self):
        """The active ``ControlVector``, or None."""
        self.enter()
        try:
            return self._control_vector
        finally:
            self.leave()

    @property
    def _able(self):
        """What the graph and the memory are like, for ``Model.capabilities``."""
        cdef const char *why
        self.enter()
        try:
            why = self.able.no_shift
            return {
                "kind": self.able.memory_kind,
                "memory_class": self.able.memory_class.decode(),
                "known": self.memory_parts & LR_MEMORY_LAYOUT_KNOWN != 0,
                "has_logits": self.able.has_logits,
                "every_row": self.able.every_row and self.able.has_logits,
                "causal": self.mem != NULL and llama_get_causal_attn(self.ptr),
                "no_shift": None if why == NULL else why.decode(),
            }
        finally:
            self.leave()

    # --- state of a sequence

    @property
    def fingerprint(self):
        """What a saved state depends on, a dict: metadata and shape of the model, KV types, rope settings, adapters."""
        from llama_runner.core import state

        self.enter()
        try:
            return state.fingerprint(self)
        finally:
            self.leave()

    # --- sampling inside the graph

    def set_sampler(self, seq_id, chain):
        """Sample sequence ``seq_id`` with ``chain`` inside ``decode``; None ends that. Wraps ``llama_set_sampler``.

        The links up to the first that the device cannot compute (``chain.names`` marks what it can with ``+``) run in
        the graph, on a GPU without its logits leaving it; ``chain.sample(ctx, i)`` runs the rest and accepts. The chain
        is the context's from then on: it takes no more links, and afterwards it can only be cloned. A sequence with a
        chain has one row of output a decode, and that row no ``logits``.

        Draws differ from those of the same chain outside a graph: sums run in another order, and min_keep does not
        count. Raises ModelCapabilityError where there is nothing to sample or the device cannot, InvalidArgumentError
        for a chain that llama.cpp would compute wrongly in a graph: ``greedy`` or ``logit_bias`` after ``top_k`` or
        ``top_p``, a ``top_k`` of more than there are candidates.
        """
        global backend_sampler
        if backend_sampler is None:
            from llama_runner.core import backend_sampler
        self.enter()
        try:
            backend_sampler.attach(self, self.check_seq(seq_id), chain)
        finally:
            self.leave()

    def sampled_token(self, i=-1):
        """The token that the graph drew for row ``i``, or None. Wraps ``llama_get_sampled_token_ith``.

        None for a row without a chain, or where the selecting link is not in the graph. Indices as for ``logits``.
        """
        return self._sampled("token", i)

    def sampled_logits(self, i=-1):
        """Logits of the candidates that the graph left of row ``i``: float32, copied, or None.

        Wraps ``llama_get_sampled_logits_ith``; ``sampled_candidates`` has their ids.
        """
        return self._sampled("logits", i)

    def sampled_probs(self, i=-1):
        """Probabilities of the candidates that the graph left of row ``i``: float32, copied, or None without ``dist``.

        Wraps ``llama_get_sampled_probs_ith``.
        """
        return self._sampled("probs", i)

    def sampled_candidates(self, i=-1):
        """Token ids of the candidates that the graph left of row ``i``: int32, copied, or None.

        Wraps ``llama_get_sampled_candidates_ith``.
        """
        return self._sampled("candidates", i)

    cdef int check_sampled(self, int i) except -1:
        if self.sampled_rows and backend_sampler.sampled_seq(self, i) is not None:
            raise errors.ModelCapabilityError(
                f"i={i}: the graph sampled from it, and its logits stayed there; set_sampler(seq_id, None) first"
            )
        return 0

    def _sampled(self, what, i):
        cdef int index = check_int("i", i, -(2**31), 2**31 - 1)
        self.enter()
        try:
            self.output_index(index)
            return getattr(backend_sampler, what)(self, index) if self.samplers else None
        finally:
            self.leave()
