"""How much memory a model and a context will take, measured by llama.cpp without allocating it."""

import json
import os

from libc.stddef cimport size_t
from libc.stdlib cimport free, malloc

from llama_runner._c.llama cimport (
    llama_context_params,
    llama_load_mode,
)
from llama_runner._c.native cimport lr_measure
from llama_runner.core._native cimport drain_log, take_string
from llama_runner.core.context_params cimport context_params
from llama_runner.core.model cimport Model, check_paths

from llama_runner import errors
from llama_runner.measures import DeviceMemory, MemoryEstimate
from llama_runner.system import available_memory

cdef int CELL_BYTES = 64  # of host memory that llama.cpp keeps for each cell, whatever is allocated


# tests/test_core_estimate.py holds both to the stubs
cdef dict MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "devices": None, "split_mode": "layer", "main_gpu": 0, "tensor_split": None,
    "tensor_buft_overrides": None, "use_mmap": "auto", "use_mlock": False, "use_direct_io": False, "lazy": "auto",
    "kv_overrides": None, "check_tensors": False, "use_extra_bufts": True, "no_host": False, "load_mtp": False,
}
cdef dict CONTEXT_DEFAULTS = {
    "n_ctx": None, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": None, "n_outputs_max_per_seq": 1,
    "n_threads": None, "n_threads_batch": None, "embeddings": False, "pooling": None, "attention_type": None,
    "flash_attn": None, "type_k": "f16", "type_v": "f16", "offload_kqv": True, "op_offload": True, "swa_full": True,
    "kv_unified": True, "rope_scaling_type": None, "rope_freq_base": None, "rope_freq_scale": None,
    "yarn_ext_factor": None, "yarn_attn_factor": None, "yarn_beta_fast": None, "yarn_beta_slow": None,
    "yarn_orig_ctx": None, "perf": False,
}


def estimate_memory(path, **options):
    """The memory that ``Model(path, …)`` and a ``Context`` of it would take, without loading weights: a MemoryEstimate.

    Takes the keywords of ``Model`` (without ``vocab_only`` and ``progress``) and of ``Context``, with their defaults.
    Does what llama.cpp's ``common_get_device_memory_data`` does: the model and the context are made with ``no_alloc``,
    and asked for the sizes that their allocators would need. Reads the header alone, in milliseconds to a second.

    The sums equal ``Context.memory_breakdown`` after a real load, to the byte. Raises what ``Model`` and ``Context``
    raise for the file and the values, except that a size that does not fit is a result and no error. Any thread.
    """
    known = {**MODEL_DEFAULTS, **CONTEXT_DEFAULTS}
    for name in options:
        if name not in known:
            raise errors.unknown_name(name, known, "estimate_memory()")
    cdef Model model = blueprint(path, {name: options.get(name, MODEL_DEFAULTS[name]) for name in MODEL_DEFAULTS})
    cdef llama_context_params params = context_params(
        model, {name: options.get(name, CONTEXT_DEFAULTS[name]) for name in CONTEXT_DEFAULTS}
    )
    cells = <size_t> params.n_ctx * (1 if params.kv_unified else params.n_seq_max) * CELL_BYTES
    if cells > available_memory():
        raise errors.OutOfMemoryError(
            f"n_ctx={params.n_ctx}: the tables of its cells alone need {cells / 2**30:.1f} GiB of host memory"
        )
    places = measure(model, params)
    host = next(place for is_host, place in places if is_host)
    devices = tuple([place for is_host, place in places if not is_host])
    return MemoryEstimate(host=host, devices=devices, n_ctx=params.n_ctx)


cdef Model blueprint(path, dict given):
    """A model without weights. It never leaves this module: to decode with it would be to read nowhere."""
    cdef Model model = Model.__new__(Model)
    model.paths = check_paths(path)
    model._load({**given, "vocab_only": False}, None, True)
    return model


cdef list measure(Model model, llama_context_params params):
    """(whether it is the host, DeviceMemory) of each device and last the host."""
    cdef list names = [os.fsencode(part) for part in model.paths]
    cdef size_t i, n = len(names)
    cdef char *error = NULL
    cdef char *found
    cdef llama_load_mode mode = model.params.load_mode
    cdef const char **c_names = <const char **> malloc(n * sizeof(char *))
    if c_names == NULL:
        raise MemoryError()
    for i in range(n):
        c_names[i] = <bytes> names[i]
    drain_log()
    try:
        with nogil:
            found = lr_measure(model.ptr, params, c_names, n, mode, &error)
    finally:
        free(c_names)
    if found == NULL:
        lines, reason = drain_log(), take_string(error)
        raise errors.InvalidArgumentError(
            f"llama.cpp cannot make a context of n_ctx={params.n_ctx} with {model.path}{reason and ': '}{reason}"
        ).with_log(lines)
    drain_log()
    return [
        (entry["host"], DeviceMemory(
            name="host" if entry["host"] else entry["device"],
            weights=entry["model"],
            kv=entry["context"],
            compute=entry["compute"],
            free=available_memory() if entry["host"] else entry["free"],
            memory_total=entry["total"],
        )) for entry in json.loads(take_string(found))
    ]
