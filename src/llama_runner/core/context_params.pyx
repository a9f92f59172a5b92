"""The keywords of ``Context`` as llama.cpp's struct, each checked for what llama.cpp would assert or overlook."""

from libc.stddef cimport size_t

from llama_runner._c.ggml cimport (
    GGML_TYPE_BF16,
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_IQ4_NL,
    GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,
    GGML_TYPE_Q8_0,
    ggml_type,
)
from llama_runner._c.llama cimport (
    LLAMA_ATTENTION_TYPE_CAUSAL,
    LLAMA_ATTENTION_TYPE_NON_CAUSAL,
    LLAMA_ATTENTION_TYPE_UNSPECIFIED,
    LLAMA_FLASH_ATTN_TYPE_AUTO,
    LLAMA_FLASH_ATTN_TYPE_DISABLED,
    LLAMA_FLASH_ATTN_TYPE_ENABLED,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_RANK,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
    LLAMA_ROPE_SCALING_TYPE_LINEAR,
    LLAMA_ROPE_SCALING_TYPE_LONGROPE,
    LLAMA_ROPE_SCALING_TYPE_NONE,
    LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    LLAMA_ROPE_SCALING_TYPE_YARN,
    llama_attention_type,
    llama_context_default_params,
    llama_context_params,
    llama_flash_attn_type,
    llama_max_parallel_sequences,
    llama_model_has_decoder,
    llama_model_has_encoder,
    llama_model_is_recurrent,
    llama_model_n_cls_out,
    llama_pooling_type,
    llama_rope_scaling_type,
)
from llama_runner._c.native cimport (
    lr_kv_bytes_per_cell,
    lr_rank_width,
    lr_rope_scaling,
    lr_rs_bytes_per_seq,
)
from llama_runner.core.model cimport Model

from llama_runner import errors
from llama_runner._check import check_bool, check_float, check_int
from llama_runner.core._native import devices
from llama_runner.system import available_memory, usable_physical_cores

# what upstream's kernels take; another type ends the process
cdef dict KV_TYPES = {
    "f32": <int> GGML_TYPE_F32,
    "f16": <int> GGML_TYPE_F16,
    "bf16": <int> GGML_TYPE_BF16,
    "q8_0": <int> GGML_TYPE_Q8_0,
    "q5_1": <int> GGML_TYPE_Q5_1,
    "q5_0": <int> GGML_TYPE_Q5_0,
    "q4_1": <int> GGML_TYPE_Q4_1,
    "q4_0": <int> GGML_TYPE_Q4_0,
    "iq4_nl": <int> GGML_TYPE_IQ4_NL,
}
cdef dict POOLING_TYPES = {
    None: <int> LLAMA_POOLING_TYPE_UNSPECIFIED,
    "none": <int> LLAMA_POOLING_TYPE_NONE,
    "mean": <int> LLAMA_POOLING_TYPE_MEAN,
    "cls": <int> LLAMA_POOLING_TYPE_CLS,
    "last": <int> LLAMA_POOLING_TYPE_LAST,
    "rank": <int> LLAMA_POOLING_TYPE_RANK,
}
cdef dict ROPE_SCALING_TYPES = {
    None: <int> LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    "none": <int> LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": <int> LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": <int> LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": <int> LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}
cdef dict ATTENTION_TYPES = {
    None: <int> LLAMA_ATTENTION_TYPE_UNSPECIFIED,
    "causal": <int> LLAMA_ATTENTION_TYPE_CAUSAL,
    "non_causal": <int> LLAMA_ATTENTION_TYPE_NON_CAUSAL,
}
cdef int MAX_THREADS = 512  # GGML_MAX_N_THREADS; ggml asserts it
cdef int MAX_ROWS = 1 << 24
cdef double MAX_SCALE = 1e3  # YaRN's formula for the attention factor turns negative above 2e4
cdef int MAX_CTX = 0x7fffff00  # 2**31 - 256: llama.cpp rounds up to 256


cdef llama_context_params context_params(Model model, dict given) except *:
    """The struct for what the caller gave; raises the typed error for the first value that is out of range."""
    cdef llama_context_params params = llama_context_default_params()
    set_sizes(&params, model, given)
    set_threads(&params, given)
    set_rope(&params, given)
    params.embeddings = check_bool("embeddings", given["embeddings"])
    params.pooling_type = <llama_pooling_type> one_of("pooling", given["pooling"], POOLING_TYPES)
    params.attention_type = <llama_attention_type> one_of("attention_type", given["attention_type"], ATTENTION_TYPES)
    params.flash_attn_type = flash_attn_type(given["flash_attn"])
    params.type_k = <ggml_type> one_of("type_k", given["type_k"], KV_TYPES)
    params.type_v = <ggml_type> one_of("type_v", given["type_v"], KV_TYPES)
    params.offload_kqv = check_bool("offload_kqv", given["offload_kqv"])
    params.op_offload = check_bool("op_offload", given["op_offload"])
    params.swa_full = check_bool("swa_full", given["swa_full"])
    params.kv_unified = check_bool("kv_unified", given["kv_unified"])
    params.no_perf = not check_bool("perf", given["perf"])
    if params.embeddings or params.pooling_type > LLAMA_POOLING_TYPE_NONE:
        # upstream rounds the rows of its largest graph up to a multiple of the sequences, and mean pooling asserts
        params.n_ubatch = min(params.n_ubatch, (params.n_ctx + 255) // 256 * 256)
        params.n_ubatch = max(params.n_ubatch - params.n_ubatch % params.n_seq_max, params.n_seq_max)
    return params


cdef int check_model(Model model, llama_context_params params) except -1:
    """What this model cannot do, and llama.cpp would do wrongly or end the process over; the caller is inside it."""
    if params.rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_LONGROPE and (
        lr_rope_scaling(model.ptr) != <int> LLAMA_ROPE_SCALING_TYPE_LONGROPE
    ):
        raise errors.ModelCapabilityError("rope_scaling_type='longrope': the model has no factors for it")
    if params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL and llama_model_is_recurrent(model.ptr):
        raise errors.ModelCapabilityError("attention_type='non_causal': this model is recurrent, it has no attention")
    if reads_encoder(model) and not params.kv_unified and params.n_seq_max > 1:
        # asserted at the first decode
        raise errors.ModelCapabilityError("kv_unified=False: a model with encoder and decoder needs a unified memory")
    return 0


cdef int check_pooling(Model model, int pooling) except -1:
    """Refuse what would give numbers that are no scores, once llama.cpp has settled which pooling it is."""
    cdef int head = lr_rank_width(model.ptr), wanted = llama_model_n_cls_out(model.ptr)
    if pooling > 0 and reads_encoder(model):
        raise errors.ModelCapabilityError("pooling: the decoder of this model reads all rows of its encoder")
    if pooling == <int> LLAMA_POOLING_TYPE_RANK and head != wanted:
        raise errors.ModelCapabilityError(
            f"pooling='rank': the model's metadata say {wanted} scores, and its classification head gives {head}"
            if head else "pooling='rank': this model has no classification head, so it gives no scores"
        )
    return 0


cdef bint reads_encoder(Model model) except -1:
    return llama_model_has_encoder(model.ptr) and llama_model_has_decoder(model.ptr)


cdef int set_sizes(llama_context_params *params, Model model, dict given) except -1:
    n_ctx = given["n_ctx"]
    params.n_ctx = model.n_ctx_train if n_ctx is None else check_int("n_ctx", n_ctx, 1, MAX_CTX)
    params.n_batch = check_int("n_batch", given["n_batch"], 1, MAX_ROWS)
    params.n_ubatch = min(check_int("n_ubatch", given["n_ubatch"], 1, MAX_ROWS), params.n_batch)
    params.n_seq_max = check_int("n_seq_max", given["n_seq_max"], 1, <int> llama_max_parallel_sequences())
    if params.n_seq_max > min(params.n_ctx, params.n_batch):
        raise errors.InvalidArgumentError(
            f"n_seq_max={params.n_seq_max}: it is at most n_ctx ({params.n_ctx}) and n_batch ({params.n_batch})"
        )
    n_outputs = given["n_outputs_max"]
    params.n_outputs_max = (
        0 if n_outputs is None else check_int("n_outputs_max", n_outputs, params.n_seq_max, params.n_batch)
    )
    params.n_outputs_max_per_seq = check_int(
        "n_outputs_max_per_seq", given["n_outputs_max_per_seq"], 1, params.n_outputs_max or params.n_batch
    )
    return 0


cdef int set_rope(llama_context_params *params, dict given) except -1:
    params.rope_scaling_type = <llama_rope_scaling_type> one_of(
        "rope_scaling_type", given["rope_scaling_type"], ROPE_SCALING_TYPES
    )
    # 0 is llama.cpp's word for the model's own, and -1 for YaRN's
    params.rope_freq_base = optional_float("rope_freq_base", given["rope_freq_base"], 1e-6, 1e30, 0)
    params.rope_freq_scale = optional_float("rope_freq_scale", given["rope_freq_scale"], 1e-6, MAX_SCALE, 0)
    params.yarn_ext_factor = optional_float("yarn_ext_factor", given["yarn_ext_factor"], 0, 1e3, -1)
    params.yarn_attn_factor = optional_float("yarn_attn_factor", given["yarn_attn_factor"], 1e-6, 1e3, -1)
    params.yarn_beta_fast = optional_float("yarn_beta_fast", given["yarn_beta_fast"], 1e-6, 1e6, -1)
    params.yarn_beta_slow = optional_float("yarn_beta_slow", given["yarn_beta_slow"], 1e-6, 1e6, -1)
    n_orig = given["yarn_orig_ctx"]
    params.yarn_orig_ctx = 0 if n_orig is None else check_int("yarn_orig_ctx", n_orig, 1, MAX_CTX)
    return 0


cdef int set_threads(llama_context_params *params, dict given) except -1:
    one, many = given["n_threads"], given["n_threads_batch"]
    params.n_threads = usable_physical_cores() if one is None else check_int("n_threads", one, 1, MAX_THREADS)
    params.n_threads_batch = (
        params.n_threads if many is None else check_int("n_threads_batch", many, 1, MAX_THREADS)
    )
    return 0


cdef llama_flash_attn_type flash_attn_type(flash_attn) except *:
    if flash_attn is None:
        return LLAMA_FLASH_ATTN_TYPE_AUTO
    return LLAMA_FLASH_ATTN_TYPE_ENABLED if check_bool("flash_attn", flash_attn) else LLAMA_FLASH_ATTN_TYPE_DISABLED


cdef float optional_float(str name, value, double low, double high, float otherwise) except? -1000:
    return otherwise if value is None else check_float(name, value, low, high)


cdef int one_of(str name, value, dict choices) except? -1000:
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise errors.InvalidArgumentError(
            f"{name}={value!r}: it is one of {', '.join(str(choice) for choice in choices)}"
        ) from None


cdef int check_memory(Model model, llama_context_params params) except -1:
    """Refuse a context that cannot fit before the system's out-of-memory killer does."""
    cdef size_t per_cell = lr_kv_bytes_per_cell(model.ptr, params.type_k, params.type_v)
    kv = per_cell * <size_t> params.n_ctx
    if not params.kv_unified:
        kv = max(kv, per_cell * 256 * params.n_seq_max)
    states = lr_rs_bytes_per_seq(model.ptr) * <size_t> params.n_seq_max
    masks = 4 * <size_t> params.n_ctx * min(params.n_ubatch, params.n_ctx) if per_cell else 0
    # what a GPU can hold need not fit the host
    free_bytes = available_memory() + sum(d["memory_free"] for d in devices() if d["type"] == "gpu")
    if states > free_bytes:
        raise errors.OutOfMemoryError(
            f"n_seq_max={params.n_seq_max} needs {states / 2**30:.1f} GiB of recurrent state, and "
            f"{free_bytes / 2**30:.1f} GiB are free"
        )
    free_bytes -= states
    if kv + masks > free_bytes:
        raise errors.OutOfMemoryError(
            f"n_ctx={params.n_ctx} needs about {(kv + masks) / 2**30:.1f} GiB ({kv / 2**30:.1f} GiB of KV memory), and "
            f"{free_bytes / 2**30:.1f} GiB are free: about "
            f"n_ctx={int(params.n_ctx * (free_bytes / (kv + masks)) * 0.8)} would fit, "
            "more with type_k='q8_0', type_v='q8_0'"
        )
    return 0
