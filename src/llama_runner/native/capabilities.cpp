#include "llama_runner.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <typeinfo>
#include <vector>

namespace {

constexpr float EXACT = 1e-5f;  // how far the length of a key may be off after a rotation

// What the graph does with the keys of one layer before it stores them: the RoPE they went through last, and where in a row
// the rotated part begins; or no RoPE at all; or something that a later rotation does not commute with.
struct key_rotation {
    const ggml_tensor * rope   = nullptr;
    int64_t             offset = 0;
    bool                known  = true;
};

// Whether a RoPE lies behind `tensor`, short of the weights that made the keys.
bool rotated_before(const ggml_tensor * tensor, int depth = 0) {
    if (!tensor || depth > 32 || tensor->op == GGML_OP_MUL_MAT || tensor->op == GGML_OP_MUL_MAT_ID ||
        tensor->op == GGML_OP_GET_ROWS) {
        return false;
    }
    if (tensor->op == GGML_OP_ROPE) {
        return true;
    }
    for (const auto * source : tensor->src) {
        if (rotated_before(source, depth + 1)) {
            return true;
        }
    }
    return false;
}

key_rotation rotation_of(const ggml_tensor * tensor, bool quantized) {
    int64_t offset = 0;
    while (true) {
        switch (tensor->op) {
            case GGML_OP_ROPE:
                return {tensor, offset, true};
            case GGML_OP_VIEW:
            case GGML_OP_RESHAPE:
            case GGML_OP_PERMUTE:
            case GGML_OP_TRANSPOSE:
            case GGML_OP_CONT:
            case GGML_OP_CPY:
            case GGML_OP_REPEAT:
            case GGML_OP_SCALE:
            case GGML_OP_RMS_NORM:  // these three turn with the key
            case GGML_OP_L2_NORM:
                tensor = tensor->src[0];
                continue;
            case GGML_OP_MUL_MAT:
                if (quantized && (tensor->src[0]->flags & GGML_TENSOR_FLAG_INPUT)) {
                    tensor = tensor->src[1];  // of quantized keys; a shift undoes it first
                    continue;
                }
                return {};
            case GGML_OP_CONCAT:
                {
                    const auto first = rotation_of(tensor->src[0], quantized);
                    const auto second = rotation_of(tensor->src[1], quantized);
                    if (!first.known || !second.known || (first.rope && second.rope) || tensor->op_params[0] != 0) {
                        return {nullptr, 0, false};
                    }
                    return second.rope ? key_rotation{second.rope, offset + tensor->src[0]->ne[0] + second.offset, true}
                                       : key_rotation{first.rope, offset + first.offset, true};
                }
            default:
                return {nullptr, 0, !rotated_before(tensor)};
        }
    }
}

float float_param(const ggml_tensor * tensor, int index) {
    float value;
    memcpy(&value, tensor->op_params + index, sizeof(value));
    return value;
}

// Whether llama_kv_cache's shift turns the keys of a layer the way that the graph does.
bool shift_fits(const llama_context * ctx, uint32_t il, const key_rotation & done) {
    const auto & model   = ctx->get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = ctx->get_cparams();
    const bool   shifts  = hparams.has_rope(il) && hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
    if (!done.known || shifts != (done.rope != nullptr)) {
        return false;
    }
    if (!shifts) {
        return true;
    }
    const auto * params = done.rope->op_params;
    const float  scale  = model.get_rope_freq_scale(cparams, il);
    const float  spread = cparams.yarn_ext_factor;
    const int64_t offset = hparams.n_lora_kv > 0 ? (int64_t) hparams.n_embd_head_k(il) - hparams.n_rot(il) : 0;
    // a rotation that also lengthens keys does so again with each shift
    const float length = cparams.yarn_attn_factor * (spread != 0.0f ? 1.0f + 0.1f * logf(1.0f / scale) : 1.0f);
    const bool same_yarn = spread == 0.0f || (params[4] == (int32_t) cparams.n_ctx_orig_yarn &&
                                              float_param(done.rope, 9) == cparams.yarn_beta_fast &&
                                              float_param(done.rope, 10) == cparams.yarn_beta_slow);
    return params[1] == (int32_t) hparams.n_rot(il) && params[2] == (int32_t) hparams.rope_type && params[15] == 0 &&
           float_param(done.rope, 5) == model.get_rope_freq_base(cparams, il) && float_param(done.rope, 6) == scale &&
           float_param(done.rope, 7) == spread && same_yarn && done.offset == offset &&
           done.rope->src[2] == model.get_rope_factors(cparams, il) && fabsf(length - 1.0f) < EXACT;
}

struct memory_parts {
    const char *                  name = nullptr;  // llama.cpp's class
    int                           kind = LR_MEMORY_KIND_NONE;
    std::vector<llama_kv_cache *> caches;
    bool                          indexed = false;  // a second cache with keys of its own, or compressed ones
};

memory_parts parts_of(llama_memory_i * memory) {
    if (!memory) {
        return {"", LR_MEMORY_KIND_NONE, {}, false};
    }
    // the exact type: what a class of a later llama.cpp does with its cells is not known
    const auto & type = typeid(*memory);
    if (type == typeid(llama_kv_cache)) {
        return {"llama_kv_cache", LR_MEMORY_KIND_ATTENTION, {static_cast<llama_kv_cache *>(memory)}, false};
    }
    if (type == typeid(llama_kv_cache_iswa)) {
        auto * both = static_cast<llama_kv_cache_iswa *>(memory);
        return {"llama_kv_cache_iswa", LR_MEMORY_KIND_SLIDING, {both->get_base(), both->get_swa()}, false};
    }
    if (type == typeid(llama_kv_cache_dsa)) {
        return {"llama_kv_cache_dsa", LR_MEMORY_KIND_ATTENTION, {}, true};
    }
    if (type == typeid(llama_kv_cache_msa)) {
        return {"llama_kv_cache_msa", LR_MEMORY_KIND_ATTENTION, {}, true};
    }
    if (type == typeid(llama_kv_cache_dsa_iswa)) {
        return {"llama_kv_cache_dsa_iswa", LR_MEMORY_KIND_SLIDING, {}, true};
    }
    if (type == typeid(llama_kv_cache_dsv4)) {
        return {"llama_kv_cache_dsv4", LR_MEMORY_KIND_HYBRID, {}, true};
    }
    if (type == typeid(llama_memory_recurrent)) {
        return {"llama_memory_recurrent", LR_MEMORY_KIND_RECURRENT, {}, false};
    }
    if (type == typeid(llama_memory_hybrid)) {
        return {"llama_memory_hybrid", LR_MEMORY_KIND_HYBRID,
                {static_cast<llama_memory_hybrid *>(memory)->get_mem_attn()}, false};
    }
    if (type == typeid(llama_memory_hybrid_idx)) {
        auto * hybrid = static_cast<llama_memory_hybrid_idx *>(memory);
        return {"llama_memory_hybrid_idx", LR_MEMORY_KIND_HYBRID, {hybrid->get_mem_attn()}, hybrid->get_mem_idx() != nullptr};
    }
    if (type == typeid(llama_memory_hybrid_iswa)) {
        auto * both = static_cast<llama_memory_hybrid_iswa *>(memory)->get_mem_attn();
        return {"llama_memory_hybrid_iswa", LR_MEMORY_KIND_HYBRID, {both->get_base(), both->get_swa()}, false};
    }
    return {"", LR_MEMORY_KIND_UNKNOWN, {}, true};
}

bool reads(ggml_cgraph * graph, const ggml_tensor * tensor) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        for (const auto * source : ggml_graph_node(graph, i)->src) {
            if (source && source == tensor) {
                return true;
            }
        }
    }
    return false;
}

// The input of this class that the graph was made with, or NULL.
template <class T> const T * input_of(const llm_graph_result * result) {
    for (const auto & input : result->inputs) {
        if (const auto * found = dynamic_cast<const T *>(input.get())) {
            return found;
        }
    }
    return nullptr;
}

const ggml_tensor * stored_into(ggml_cgraph * graph, const ggml_tensor * storage) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const auto * node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_SET_ROWS && node->view_src == storage) {
            return node->src[0];
        }
    }
    return nullptr;
}

// Why moving positions would not give what computing at the new ones gives; NULL where it does.
const char * why_no_shift(const llama_context * ctx, const memory_parts & parts, const llm_graph_result * result,
                          ggml_cgraph * graph) {
    llama_memory_i * memory = ctx->get_memory();
    if (!memory) {
        return "it keeps no memory";
    }
    if (!memory->get_can_shift()) {
        return "llama.cpp cannot move positions in it";
    }
    if (parts.indexed) {
        return "it has an index of its own, which is not known to move along";
    }
    const auto & model = ctx->get_model();
    if (reads(graph, model.pos_embd)) {
        return "the model adds an embedding of the position to each token";
    }
    if (input_of<llm_graph_input_attn_temp>(result)) {
        return "the model scales attention by the position";
    }
    for (const auto * cache : parts.caches) {
        const auto layers = cache->get_layer_ids();
        for (const uint32_t il : layers) {
            const ggml_tensor * storage = cache->get_k_storage(il);
            const ggml_tensor * keys    = stored_into(graph, storage);
            const bool rotates = model.hparams.has_rope(il) && model.hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
            if (!keys ? rotates : !shift_fits(ctx, il, rotation_of(keys, ggml_is_quantized(storage->type)))) {
                return "llama.cpp would turn the keys of a layer otherwise than the model did";
            }
        }
    }
    return nullptr;
}

}  // namespace

void lr_capabilities_of(const llama_context * ctx, lr_capabilities * out) {
    const auto parts = parts_of(ctx->get_memory());
    auto * result = ctx->get_gf_res_reserve();
    auto * graph  = result->get_gf();
    out->memory_kind  = parts.kind;
    out->memory_class = parts.name;
    out->has_logits   = result->get_logits() != nullptr;
    out->no_shift     = why_no_shift(ctx, parts, result, graph);
    const auto * wanted = input_of<llm_graph_input_out_ids>(result);
    out->every_row = ctx->get_memory() == nullptr || !wanted || !reads(graph, wanted->out_ids);
}
