from llama_runner._c.llama cimport llama_model, llama_vocab
from llama_runner._c.native cimport lr_guard, lr_rwlock
from llama_runner.core.model_params cimport ModelParams


cdef class Model:
    cdef llama_model *ptr
    cdef const llama_vocab *vocab_ptr
    # shared while a call is inside without the GIL, exclusive while closing
    cdef lr_guard *guard
    cdef lr_rwlock *adapters  # of llama.cpp's list of this model's adapters, which laying out a graph reads
    cdef readonly str path
    cdef readonly tuple paths
    cdef readonly bint vocab_only
    cdef ModelParams params  # held: llama.cpp keeps pointers into it
    cdef dict facts
    cdef str weights_digest  # of samples of the files: tells models of the same metadata apart
    cdef object _vocab  # weak: a vocabulary holds its model, not the other way round
    cdef object _capabilities  # core.capabilities.Capabilities, once asked for
    cdef object _contexts  # weak set of open contexts; close() closes them first
    cdef object __weakref__

    cdef int _load(self, dict given, progress, bint no_alloc) except -1
    cdef int _call_load(self, _Progress holder) except -1
    cdef int _check_loaded(self) except -1
    cdef void _free(self) noexcept
    cdef object fact(self, str name)
    cdef int check_open(self) except -1
    cdef int enter(self) except -1


cdef tuple check_paths(path)


cdef class _Progress:
    cdef object callback
    cdef object error
    cdef bint cancelled
