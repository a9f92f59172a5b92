from llama_runner._c.engine cimport lr_engine
from llama_runner.core.context cimport Context


cdef class DecodeLoop:
    cdef lr_engine *ptr
    cdef readonly Context context  # held: the thread decodes with it
    cdef dict jobs  # by tag: those in the loop, whose chains the thread uses
    cdef dict uses  # by number: adapters that must not be closed
    cdef dict functions  # by number: the processors
    cdef int pauses  # held now
    cdef object processors  # held: the thread calls it
    cdef object __weakref__

    cdef int note_poison(self) except -1
    cdef int forget_adapters(self) except -1
