"""What is known of a link of a sampler chain, and the links that call Python."""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from llama_runner._c.llama cimport llama_token, llama_token_data
from llama_runner._c.native cimport lr_picker_accepted

from llama_runner import errors


cdef int on_link(void *user, llama_token_data *data, size_t n) noexcept with gil:
    cdef PythonLink link = <PythonLink> user
    try:
        link.call(data, n)
    except BaseException as error:
        link.raised = error
        return -1
    return 0


cdef class PythonLink:
    """A Python callable between a chain's candidates and a NumPy row."""

    cdef int call(self, llama_token_data *data, size_t n) except -1:
        cdef size_t i, n_accepted
        cdef const llama_token *accepted = lr_picker_accepted(self.picker, &n_accepted)
        row = np.full(self.n_vocab, -INFINITY, np.float32)
        tokens = np.empty(n_accepted, np.int32)
        cdef float[::1] view = row
        cdef int32_t[::1] ids = tokens
        for i in range(n):
            view[data[i].id] = data[i].logit
        if n_accepted > 0:
            memcpy(&ids[0], accepted, n_accepted * sizeof(llama_token))
        changed = self.callable(row, tokens)
        if changed is not None and changed is not row:
            if not isinstance(changed, np.ndarray) or changed.shape != (self.n_vocab,) or changed.dtype.kind != "f":
                raise errors.ArgumentTypeError(
                    f"{self.callable!r} returned {changed!r:.60}: it returns None, or a float array of shape "
                    f"({self.n_vocab},)"
                )
            view = np.array(changed, np.float32)
        for i in range(n):
            if not view[data[i].id] < INFINITY:
                raise errors.SamplingError(f"{self.callable!r} made {view[data[i].id]} of the logit of {data[i].id}")
        for i in range(n):
            data[i].logit = view[data[i].id]
        return 0

    cdef PythonLink copy(self):
        cdef PythonLink made = PythonLink.__new__(PythonLink)
        made.callable = self.callable if self.clone_with is None else self.clone_with(self.callable)
        if not callable(made.callable):
            raise errors.ArgumentTypeError(f"clone made {made.callable!r} of {self.callable!r}: it cannot be called")
        made.clone_with = self.clone_with
        return made


cdef class Link:
    """What we know of a link; the native one is in the chain."""

    def __repr__(self):
        if self.name in ("top_k", "top_p", "min_p", "typical", "top_n_sigma", "xtc", "temp", "temp_ext"):
            return f"{self.name}({self.arguments[0]})"
        return self.name


cdef Link describe(str name, tuple arguments=(), seed=None, int n_vocab=0):
    cdef Link made = Link.__new__(Link)
    made.name = name
    made.arguments = arguments
    made.seed = seed
    made.n_vocab = n_vocab
    return made
