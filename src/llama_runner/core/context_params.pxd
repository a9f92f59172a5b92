from llama_runner._c.llama cimport llama_context_params
from llama_runner.core.model cimport Model

cdef int MAX_THREADS


cdef llama_context_params context_params(Model model, dict given) except *
cdef int check_model(Model model, llama_context_params params) except -1
cdef int check_memory(Model model, llama_context_params params) except -1
cdef int check_pooling(Model model, int pooling) except -1
