from llama_runner._c.llama cimport llama_adapter_lora
from llama_runner._c.native cimport lr_guard
from llama_runner.core.model cimport Model


cdef class LoraAdapter:
    cdef llama_adapter_lora *ptr
    # shared while a context has it active, exclusive while closing
    cdef lr_guard *guard
    cdef readonly Model model  # held: freeing the adapter takes it off the model's list
    cdef readonly str path, digest
    cdef readonly int n_pairs
    cdef readonly tuple ignored
    cdef dict _metadata
    cdef object _tokens
    cdef object __weakref__

    cdef int _load(self) except -1
    cdef int note_facts(self) except -1
    cdef dict read_metadata(self)


cdef class AdapterUse:
    cdef readonly LoraAdapter adapter  # held: a context computes with it
    cdef readonly float scale
