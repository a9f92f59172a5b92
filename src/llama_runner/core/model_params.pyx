"""The keywords of ``Model`` as llama.cpp's struct, each checked for what llama.cpp would assert or overlook."""

import re
from collections.abc import Mapping

from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from llama_runner._c.ggml cimport (
    GGML_BACKEND_DEVICE_TYPE_GPU,
    GGML_BACKEND_DEVICE_TYPE_IGPU,
    GGML_BACKEND_DEVICE_TYPE_META,
    ggml_backend_buffer_type_t,
    ggml_backend_buft_name,
    ggml_backend_dev_buffer_type,
    ggml_backend_dev_count,
    ggml_backend_dev_get,
    ggml_backend_dev_get_type,
    ggml_backend_dev_name,
    ggml_backend_dev_t,
)
from llama_runner._c.llama cimport (
    LLAMA_KV_OVERRIDE_TYPE_BOOL,
    LLAMA_KV_OVERRIDE_TYPE_FLOAT,
    LLAMA_KV_OVERRIDE_TYPE_INT,
    LLAMA_KV_OVERRIDE_TYPE_STR,
    LLAMA_LAZY_MODE_AUTO,
    LLAMA_LAZY_MODE_OFF,
    LLAMA_LAZY_MODE_ON,
    LLAMA_LOAD_MODE_AUTO,
    LLAMA_LOAD_MODE_DIRECT_IO,
    LLAMA_LOAD_MODE_MLOCK,
    LLAMA_LOAD_MODE_MMAP,
    LLAMA_LOAD_MODE_MMAP_MLOCK,
    LLAMA_LOAD_MODE_NONE,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
    LLAMA_SPLIT_MODE_TENSOR,
    llama_lazy_mode,
    llama_load_mode,
    llama_max_devices,
    llama_max_tensor_buft_overrides,
    llama_model_default_params,
    llama_model_kv_override,
    llama_model_tensor_buft_override,
    llama_split_mode,
)
from llama_runner._c.native cimport lr_regex_search
from llama_runner.core._native cimport take_string

from llama_runner import errors
from llama_runner._check import check_bool, check_float, check_int, check_name

cdef dict SPLIT_MODES = {
    "none": <int> LLAMA_SPLIT_MODE_NONE,
    "layer": <int> LLAMA_SPLIT_MODE_LAYER,
    "row": <int> LLAMA_SPLIT_MODE_ROW,
    "tensor": <int> LLAMA_SPLIT_MODE_TENSOR,
}
cdef dict LAZY_MODES = {
    "off": <int> LLAMA_LAZY_MODE_OFF,
    "auto": <int> LLAMA_LAZY_MODE_AUTO,
    "on": <int> LLAMA_LAZY_MODE_ON,
}
# std::regex goes one call deeper for each state that it visits; a state is a character, times what braces repeat
cdef int MAX_STATES = 8192
cdef int MAX_PATTERN = 1024


cdef class ModelParams:
    """``llama_model_params`` and the arrays that it points into. A model holds it: llama.cpp keeps pointers."""

    def __cinit__(self):
        self.c = llama_model_default_params()
        self.kv_overrides = {}
        self.patterns = []

    def __dealloc__(self):
        free(self.devices)
        free(self.tensor_split)
        free(self.overrides)
        free(self.placements)

    cdef int set_devices(self, devices, int main_gpu) except -1:
        """The devices to offload to, and that ``main_gpu`` and the split mode have one to work with."""
        cdef size_t n_devices = 0
        usable = offload_devices()
        if devices is not None:
            names = [check_name("a name in devices", name) for name in check_list("devices", devices, str)]
            if len(set(names)) < len(names):
                raise errors.InvalidArgumentError(f"devices={devices!r}: a device can be in it once")
            self.devices = <ggml_backend_dev_t *> calloc(len(names) + 1, sizeof(ggml_backend_dev_t))
            if self.devices == NULL:
                raise MemoryError()
            for name in names:
                if name.decode() not in usable:
                    raise errors.InvalidArgumentError(
                        f"devices={devices!r}: {name.decode()!r} is no device to offload to; "
                        + (f"there are {', '.join(usable)}" if usable else "this machine or build has none")
                    )
                self.devices[n_devices] = find_device(name)
                n_devices += 1
            self.c.devices = self.devices
            usable = [name.decode() for name in names]
        if self.c.split_mode == LLAMA_SPLIT_MODE_TENSOR and not usable:
            raise errors.InvalidArgumentError("split_mode='tensor': it needs at least one device to offload to")
        if usable and self.c.split_mode == LLAMA_SPLIT_MODE_NONE and main_gpu >= len(usable):
            raise errors.InvalidArgumentError(
                f"main_gpu={main_gpu}: with split_mode='none' it is from 0 to {len(usable) - 1} ({', '.join(usable)})"
            )
        self.c.main_gpu = main_gpu
        return 0

    cdef int set_tensor_split(self, values) except -1:
        cdef size_t i = 0
        most = llama_max_devices()
        if values is None:
            return 0
        shares = [check_float("a number in tensor_split", v, 0, 1e30) for v in check_list("tensor_split", values, None)]
        if not 1 <= len(shares) <= most:
            raise errors.InvalidArgumentError(
                f"tensor_split has {len(shares)} numbers: it has one a device, 1 to {most}"
            )
        largest = max(shares)
        if largest == 0:
            raise errors.InvalidArgumentError("tensor_split is all zeros: at least one device gets a share")
        # llama.cpp reads one for each device there is, whatever was given
        self.tensor_split = <float *> calloc(most, sizeof(float))
        if self.tensor_split == NULL:
            raise MemoryError()
        for share in shares:
            self.tensor_split[i] = share / largest  # so that their sum stays finite
            i += 1
        self.c.tensor_split = self.tensor_split
        return 0

    cdef int set_placements(self, placements) except -1:
        cdef size_t i = 0
        cdef bytes pattern
        if placements is None:
            return 0
        if not isinstance(placements, Mapping):
            raise errors.ArgumentTypeError(
                f"tensor_buft_overrides={placements!r}: it is a mapping from pattern to device name"
            )
        if len(placements) >= llama_max_tensor_buft_overrides():
            raise errors.InvalidArgumentError(
                f"tensor_buft_overrides has {len(placements)} patterns: at most {llama_max_tensor_buft_overrides() - 1}"
            )
        self.placements = <llama_model_tensor_buft_override *> calloc(
            len(placements) + 1, sizeof(llama_model_tensor_buft_override)
        )
        if self.placements == NULL:
            raise MemoryError()
        for key, place in placements.items():
            pattern = check_pattern("tensor_buft_overrides", key)
            self.patterns.append(pattern)
            self.placements[i].pattern = pattern
            self.placements[i].buft = find_buffer_type(place)
            i += 1
        self.c.tensor_buft_overrides = self.placements
        return 0


cdef ModelParams model_params(dict given, file):
    """The struct for what the caller gave; raises the typed error for the first value that is out of range."""
    from llama_runner.gguf import check_overrides

    cdef ModelParams params = ModelParams()
    params.c.n_gpu_layers = check_int("n_gpu_layers", given["n_gpu_layers"], -1, 2**31 - 1)
    params.c.vocab_only = check_bool("vocab_only", given["vocab_only"])
    params.c.check_tensors = check_bool("check_tensors", given["check_tensors"])
    params.c.use_extra_bufts = check_bool("use_extra_bufts", given["use_extra_bufts"])
    params.c.no_host = check_bool("no_host", given["no_host"])
    params.c.load_mtp = check_bool("load_mtp", given["load_mtp"])
    params.load_mode = load_mode(given["use_mmap"], given["use_mlock"], given["use_direct_io"])
    params.c.load_mode = params.load_mode
    params.c.lazy_mode = <llama_lazy_mode> one_of("lazy", given["lazy"], LAZY_MODES)
    params.c.split_mode = <llama_split_mode> one_of("split_mode", given["split_mode"], SPLIT_MODES)
    params.set_devices(given["devices"], check_int("main_gpu", given["main_gpu"], 0, llama_max_devices() - 1))
    params.set_tensor_split(given["tensor_split"])
    params.set_placements(given["tensor_buft_overrides"])
    if given["kv_overrides"] is not None:
        params.kv_overrides = check_overrides(file.header, given["kv_overrides"])
        params.overrides = new_overrides(params.kv_overrides)
        params.c.kv_overrides = params.overrides
    return params


cdef llama_load_mode load_mode(use_mmap, use_mlock, use_direct_io) except *:
    cdef bint mlock = check_bool("use_mlock", use_mlock)
    if check_bool("use_direct_io", use_direct_io):
        # a mapping and a lock are of pages in the cache, which direct reads go past
        if use_mmap is True or mlock:
            raise errors.InvalidArgumentError("use_direct_io=True goes with neither use_mmap=True nor use_mlock=True")
        return LLAMA_LOAD_MODE_DIRECT_IO
    if isinstance(use_mmap, str) and use_mmap == "auto":
        return LLAMA_LOAD_MODE_MMAP_MLOCK if mlock else LLAMA_LOAD_MODE_AUTO
    if not isinstance(use_mmap, bool):
        raise errors.ArgumentTypeError(f"use_mmap={use_mmap!r}: it is True, False or 'auto'")
    if use_mmap:
        return LLAMA_LOAD_MODE_MMAP_MLOCK if mlock else LLAMA_LOAD_MODE_MMAP
    return LLAMA_LOAD_MODE_MLOCK if mlock else LLAMA_LOAD_MODE_NONE


cdef int one_of(str name, value, dict choices) except? -1000:
    if not isinstance(value, str) or value not in choices:
        raise errors.InvalidArgumentError(f"{name}={value!r}: it is one of {', '.join(choices)}")
    return choices[value]


cdef list check_list(str name, values, kind):
    """The values of a list, a tuple or an array; a str, which has a length as well, is one value and no list."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise errors.ArgumentTypeError(f"{name}={values!r}: it is a list")
    if len(values) > 65536:
        raise errors.InvalidArgumentError(f"{name} has {len(values)} values: that is too many")
    return list(values)


# --- devices and buffers


cdef list offload_devices():
    """Names of the devices that layers can be offloaded to: GPUs, in ggml's order."""
    cdef size_t i
    cdef int kind
    names = []
    for i in range(ggml_backend_dev_count()):
        kind = ggml_backend_dev_get_type(ggml_backend_dev_get(i))
        if kind == <int> GGML_BACKEND_DEVICE_TYPE_GPU or kind == <int> GGML_BACKEND_DEVICE_TYPE_IGPU:
            names.append(ggml_backend_dev_name(ggml_backend_dev_get(i)).decode())
    return names


cdef ggml_backend_dev_t find_device(bytes name) except? NULL:
    cdef size_t i
    for i in range(ggml_backend_dev_count()):
        if ggml_backend_dev_name(ggml_backend_dev_get(i)) == name:
            return ggml_backend_dev_get(i)
    return NULL


cdef ggml_backend_buffer_type_t find_buffer_type(place) except NULL:
    """The default buffer type of a device, by its own name ("CUDA0") or by the device's."""
    cdef size_t i
    cdef ggml_backend_dev_t device
    cdef ggml_backend_buffer_type_t buft
    cdef bytes name = check_name("a device in tensor_buft_overrides", place)
    known = []
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        if ggml_backend_dev_get_type(device) == <int> GGML_BACKEND_DEVICE_TYPE_META:
            continue
        buft = ggml_backend_dev_buffer_type(device)
        if ggml_backend_dev_name(device) == name or ggml_backend_buft_name(buft) == name:
            return buft
        known.append(ggml_backend_dev_name(device).decode())
    raise errors.InvalidArgumentError(
        f"tensor_buft_overrides: {place!r} is no device; there are {', '.join(known)}"
    )


cdef bytes check_pattern(str name, pattern):
    """A regular expression that ``std::regex`` compiles and that cannot overflow the stack when it is searched for."""
    cdef char *error = NULL
    cdef bytes data = check_name(f"a pattern of {name}", pattern)
    cdef const char *c_data = data
    cdef int found
    states = len(data)
    for number in re.findall(rb"[{,](\d{1,9})", data):
        states *= max(1, int(number))
    if not data or len(data) > MAX_PATTERN or states > MAX_STATES:
        raise errors.InvalidArgumentError(
            f"{name}: the pattern {pattern[:60]!r} is empty, longer than {MAX_PATTERN} bytes, "
            "or repeats too much in braces"
        )
    with nogil:
        found = lr_regex_search(c_data, b"", &error)
    if found < 0:
        raise errors.InvalidArgumentError(f"{name}: {pattern!r} is no regular expression: {take_string(error)}")
    return data


# --- metadata


cdef llama_model_kv_override *new_overrides(dict values) except? NULL:
    """The checked values as C's list, which ends in an empty key; the caller frees it."""
    cdef llama_model_kv_override *items
    cdef bytes key, text
    cdef size_t i = 0
    items = <llama_model_kv_override *> calloc(len(values) + 1, sizeof(llama_model_kv_override))
    if items == NULL:
        raise MemoryError()
    for name, value in values.items():
        key = name.encode()
        memcpy(items[i].key, <const char *> key, len(key))
        if isinstance(value, bool):
            items[i].tag = LLAMA_KV_OVERRIDE_TYPE_BOOL
            items[i].val_bool = value
        elif isinstance(value, int):
            items[i].tag = LLAMA_KV_OVERRIDE_TYPE_INT
            items[i].val_i64 = value
        elif isinstance(value, float):
            items[i].tag = LLAMA_KV_OVERRIDE_TYPE_FLOAT
            items[i].val_f64 = value
        else:
            text = value.encode()
            items[i].tag = LLAMA_KV_OVERRIDE_TYPE_STR
            memcpy(items[i].val_str, <const char *> text, len(text))
        i += 1
    return items
