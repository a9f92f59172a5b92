"""What a loaded model says about itself, read once."""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc

from llama_runner._c.llama cimport (
    LLAMA_MODEL_META_KEY_SAMPLING_MIN_P,
    LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT,
    LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA,
    LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU,
    LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N,
    LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT,
    LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE,
    LLAMA_MODEL_META_KEY_SAMPLING_TEMP,
    LLAMA_MODEL_META_KEY_SAMPLING_TOP_K,
    LLAMA_MODEL_META_KEY_SAMPLING_TOP_P,
    LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY,
    LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD,
    LLAMA_ROPE_TYPE_IMROPE,
    LLAMA_ROPE_TYPE_MROPE,
    LLAMA_ROPE_TYPE_NEOX,
    LLAMA_ROPE_TYPE_NONE,
    LLAMA_ROPE_TYPE_NORM,
    LLAMA_ROPE_TYPE_VISION,
    LLAMA_TOKEN_NULL,
    llama_ftype_name,
    llama_model,
    llama_model_cls_label,
    llama_model_decoder_start_token,
    llama_model_desc,
    llama_model_ftype,
    llama_model_has_decoder,
    llama_model_has_encoder,
    llama_model_is_diffusion,
    llama_model_is_hybrid,
    llama_model_is_recurrent,
    llama_model_meta_count,
    llama_model_meta_key,
    llama_model_meta_key_by_index,
    llama_model_meta_key_str,
    llama_model_meta_val_str_by_index,
    llama_model_n_cls_out,
    llama_model_n_ctx_train,
    llama_model_n_embd,
    llama_model_n_embd_inp,
    llama_model_n_embd_out,
    llama_model_n_head,
    llama_model_n_head_kv,
    llama_model_n_layer,
    llama_model_n_layer_nextn,
    llama_model_n_params,
    llama_model_n_swa,
    llama_model_rope_freq_scale_train,
    llama_model_rope_type,
    llama_model_size,
)
from llama_runner._c.native cimport lr_rs_bytes_per_seq

cdef dict ROPE_TYPES = {
    <int> LLAMA_ROPE_TYPE_NONE: "none",
    <int> LLAMA_ROPE_TYPE_NORM: "norm",
    <int> LLAMA_ROPE_TYPE_NEOX: "neox",
    <int> LLAMA_ROPE_TYPE_MROPE: "mrope",
    <int> LLAMA_ROPE_TYPE_IMROPE: "imrope",
    <int> LLAMA_ROPE_TYPE_VISION: "vision",
}
cdef list SAMPLING_KEYS = [
    <int> LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_TOP_K,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_TOP_P,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_MIN_P,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_TEMP,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU,
    <int> LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA,
]


cdef dict model_facts(llama_model *model, bint vocab_only):
    """Every scalar getter's value by the getter's name."""
    cdef char buffer[256]
    cdef uint32_t i
    llama_model_desc(model, buffer, sizeof(buffer))
    start = llama_model_decoder_start_token(model)
    labels = []
    for i in range(llama_model_n_cls_out(model)):
        label = llama_model_cls_label(model, i)
        if label != NULL:  # the file names all outputs or none
            labels.append(label.decode("utf-8", "replace"))
    # without weights llama.cpp reads no shapes, and asserts when it is asked for the heads of a layer
    facts = {
        "desc": (<bytes> buffer).decode("utf-8", "replace"),
        "quantization": llama_ftype_name(llama_model_ftype(model)).decode(),
        "size": llama_model_size(model),
        "n_params": llama_model_n_params(model),
        "n_ctx_train": llama_model_n_ctx_train(model),
        "n_embd": llama_model_n_embd(model),
        "n_embd_inp": llama_model_n_embd_inp(model),
        "n_embd_out": llama_model_n_embd_out(model),
        "n_layer": llama_model_n_layer(model),
        "n_layer_nextn": llama_model_n_layer_nextn(model),
        "n_head": 0 if vocab_only else llama_model_n_head(model),
        "n_head_kv": 0 if vocab_only else llama_model_n_head_kv(model),
        "n_swa": llama_model_n_swa(model),
        "rope_type": ROPE_TYPES[<int> llama_model_rope_type(model)],
        "rope_freq_scale_train": llama_model_rope_freq_scale_train(model),
        "has_encoder": llama_model_has_encoder(model),
        "has_decoder": llama_model_has_decoder(model),
        "is_recurrent": llama_model_is_recurrent(model),
        "is_hybrid": llama_model_is_hybrid(model),
        "state_bytes": 0 if vocab_only else lr_rs_bytes_per_seq(model),
        "is_diffusion": llama_model_is_diffusion(model),
        "n_cls_out": llama_model_n_cls_out(model),
        "classifier_labels": tuple(labels),
        "decoder_start_token": None if start == LLAMA_TOKEN_NULL else start,
        "metadata": {
            meta_text(model, i, True): meta_text(model, i, False)
            for i in range(llama_model_meta_count(model))
        },
    }
    return facts


cdef dict sampling_metadata(dict metadata):
    """The recommended sampling settings among ``metadata``, by their names without the prefix."""
    found = {}
    for number in SAMPLING_KEYS:
        key = llama_model_meta_key_str(<llama_model_meta_key> <int> number).decode()
        if key in metadata:
            found[key.removeprefix("general.sampling.")] = metadata[key]
    return found


cdef object meta_text(llama_model *model, int32_t index, bint want_key):
    """One metadata key or value, whatever its length."""
    cdef int32_t size = 256, length
    cdef char *buffer
    while True:
        buffer = <char *> malloc(size)
        if buffer == NULL:
            raise MemoryError()
        try:
            if want_key:
                length = llama_model_meta_key_by_index(model, index, buffer, size)
            else:
                length = llama_model_meta_val_str_by_index(model, index, buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer[:length].decode("utf-8", "replace")
        finally:
            free(buffer)
        size = length + 1
