from llama_runner._c.llama cimport (
    llama_load_mode,
    llama_model_kv_override,
    llama_model_params,
    llama_model_tensor_buft_override,
)
from llama_runner._c.ggml cimport ggml_backend_dev_t


cdef class ModelParams:
    cdef llama_model_params c
    cdef readonly dict kv_overrides
    cdef llama_load_mode load_mode  # as asked for; a model that is only measured maps nothing
    # what `c` points into
    cdef ggml_backend_dev_t *devices
    cdef float *tensor_split
    cdef llama_model_kv_override *overrides
    cdef llama_model_tensor_buft_override *placements
    cdef list patterns

    cdef int set_devices(self, devices, int main_gpu) except -1
    cdef int set_tensor_split(self, values) except -1
    cdef int set_placements(self, placements) except -1


cdef ModelParams model_params(dict given, file)
cdef llama_model_kv_override *new_overrides(dict values) except? NULL
cdef bytes check_pattern(str name, pattern)
