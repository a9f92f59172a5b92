# The little of ggml's headers that we use ourselves, in their order, names unchanged.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libcpp cimport bool


cdef extern from "ggml.h" nogil:
    ctypedef struct ggml_tensor:
        pass

    enum ggml_type:
        GGML_TYPE_F32
        GGML_TYPE_F16
        GGML_TYPE_Q4_0
        GGML_TYPE_Q4_1
        GGML_TYPE_Q5_0
        GGML_TYPE_Q5_1
        GGML_TYPE_Q8_0
        GGML_TYPE_Q8_1
        GGML_TYPE_Q2_K
        GGML_TYPE_Q3_K
        GGML_TYPE_Q4_K
        GGML_TYPE_Q5_K
        GGML_TYPE_Q6_K
        GGML_TYPE_Q8_K
        GGML_TYPE_IQ2_XXS
        GGML_TYPE_IQ2_XS
        GGML_TYPE_IQ3_XXS
        GGML_TYPE_IQ1_S
        GGML_TYPE_IQ4_NL
        GGML_TYPE_IQ3_S
        GGML_TYPE_IQ2_S
        GGML_TYPE_IQ4_XS
        GGML_TYPE_I8
        GGML_TYPE_I16
        GGML_TYPE_I32
        GGML_TYPE_I64
        GGML_TYPE_F64
        GGML_TYPE_IQ1_M
        GGML_TYPE_BF16
        GGML_TYPE_TQ1_0
        GGML_TYPE_TQ2_0
        GGML_TYPE_MXFP4
        GGML_TYPE_NVFP4
        GGML_TYPE_Q1_0
        GGML_TYPE_Q2_0
        GGML_TYPE_COUNT

    enum ggml_log_level:
        GGML_LOG_LEVEL_NONE
        GGML_LOG_LEVEL_DEBUG
        GGML_LOG_LEVEL_INFO
        GGML_LOG_LEVEL_WARN
        GGML_LOG_LEVEL_ERROR
        GGML_LOG_LEVEL_CONT

    ctypedef bool (*ggml_abort_callback)(void *data) noexcept

    const char *ggml_type_name(ggml_type type)
    const char *ggml_version()
    const char *ggml_commit()


cdef extern from "ggml-backend.h" nogil:
    ctypedef struct ggml_backend_buffer:
        pass
    ctypedef ggml_backend_buffer *ggml_backend_buffer_t
    ctypedef struct ggml_backend_buffer_type:
        pass
    ctypedef ggml_backend_buffer_type *ggml_backend_buffer_type_t
    ctypedef struct ggml_backend_device:
        pass
    ctypedef ggml_backend_device *ggml_backend_dev_t
    ctypedef struct ggml_backend_reg:
        pass
    ctypedef ggml_backend_reg *ggml_backend_reg_t

    enum ggml_backend_dev_type:
        GGML_BACKEND_DEVICE_TYPE_CPU
        GGML_BACKEND_DEVICE_TYPE_GPU
        GGML_BACKEND_DEVICE_TYPE_IGPU
        GGML_BACKEND_DEVICE_TYPE_ACCEL
        GGML_BACKEND_DEVICE_TYPE_META

    const char *ggml_backend_buft_name(ggml_backend_buffer_type_t buft) except +

    const char *ggml_backend_dev_name(ggml_backend_dev_t device) except +
    const char *ggml_backend_dev_description(ggml_backend_dev_t device) except +
    void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t *free, size_t *total) except +
    int ggml_backend_dev_get_type "ggml_backend_dev_type"(ggml_backend_dev_t device) except +
    ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device) except +
    ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device) except +

    const char *ggml_backend_reg_name(ggml_backend_reg_t reg) except +

    size_t ggml_backend_dev_count() except +
    ggml_backend_dev_t ggml_backend_dev_get(size_t index) except +

    ctypedef bool (*ggml_backend_sched_eval_callback)(ggml_tensor *t, bool ask, void *user_data) noexcept
