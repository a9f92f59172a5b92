cdef class ContextState:
    cdef dict device_saves  # for each sequence saved on its device, what tells the last one from those before
