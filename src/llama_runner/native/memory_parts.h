// What a llama.cpp memory is made of, for our own sources that read its cells or its states.
#pragma once

struct llama_context;
class llama_kv_cache;
class llama_memory_recurrent;

struct lr_memory_parts {
    llama_kv_cache *         full   = nullptr;  // layers that attend to everything
    llama_kv_cache *         window = nullptr;  // layers that attend to a sliding window
    llama_memory_recurrent * state  = nullptr;  // recurrent layers
    bool layout_known = false;                  // these are all there is, and a saved state is their states in this order
};

lr_memory_parts lr_parts_of(const llama_context * ctx);
