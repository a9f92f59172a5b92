from llama_runner._c.llama cimport llama_model


cdef dict model_facts(llama_model *model, bint vocab_only)
cdef dict sampling_metadata(dict metadata)
