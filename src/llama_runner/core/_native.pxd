from llama_runner._c.native cimport lr_guard


cdef int ensure_runtime() except -1
cdef int check_process() except -1
cdef list drain_log()
cdef str take_string(char *text)
cdef int raise_for(int why, char *error, str what) except -1
cdef int enter_shared(lr_guard *guard, str what) except -1
cdef int enter_exclusive(lr_guard *guard, str what) except -1
cdef int enter_waiting(lr_guard *guard, str what) except -1
cdef object native_error(object error, str doing)
