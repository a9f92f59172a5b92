from llama_runner._c.llama cimport llama_model, llama_model_params, llama_vocab
from llama_runner._c.native cimport lr_guard, lr_rwlock


cdef class Model:
    cdef llama_model *ptr
    cdef const llama_vocab *vocab_ptr
    # shared while a call is inside without the GIL, exclusive while closing
    cdef lr_guard *guard
    cdef lr_rwlock *adapters  # of llama.cpp's list of this model's adapters, which laying out a graph reads
    cdef readonly str path
    cdef readonly bint vocab_only
    cdef str weights_digest  # of samples of the file: tells models of the same metadata apart
    cdef object _vocab  # weak: a vocabulary holds its model, not the other way round
    cdef object _capabilities  # core.capabilities.Capabilities, once asked for
    cdef object _contexts  # weak set of open contexts; close() closes them first
    cdef object __weakref__

    cdef int _load(self, llama_model_params params, progress) except -1
    cdef int check_open(self) except -1
