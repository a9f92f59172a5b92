from llama_runner.core.outputs cimport ContextOutputs


cdef class ContextState(ContextOutputs):
    cdef dict device_saves  # for each sequence saved on its device, what tells the last one from those before
