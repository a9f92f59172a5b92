#include "llama_runner.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-hparams.h"
#include "llama-model.h"
#include "shared.h"

#include <utility>

namespace {

// llama_context owns the buffer that its logits live in and frees it at will; a NumPy view must not be left dangling.
// Upstream has no call to take the buffer over, so we reach the private member in the one way that the language allows:
// access checks do not apply to the arguments of an explicit instantiation. A renamed member fails to compile.
ggml_backend_buffer_ptr & output_buffer(llama_context & ctx);

template <ggml_backend_buffer_ptr llama_context::* Member> struct reach_output_buffer {
    friend ggml_backend_buffer_ptr & output_buffer(llama_context & ctx) {
        return ctx.*Member;
    }
};
template struct reach_output_buffer<&llama_context::buf_output>;

}  // namespace

ggml_backend_buffer_t lr_outputs_swap(llama_context * ctx, ggml_backend_buffer_t spare) {
    auto & mine = output_buffer(*ctx);
    ggml_backend_buffer_t taken = mine.release();
    mine.reset(spare);
    lr_live_add(LR_OUTPUTS, (taken ? 1 : 0) - (spare ? 1 : 0));
    return taken;
}

void lr_outputs_free(ggml_backend_buffer_t buffer) {
    lr_live_add(LR_OUTPUTS, buffer ? -1 : 0);
    ggml_backend_buffer_free(buffer);
}

bool lr_flash_attn(const llama_context * ctx) {
    return ctx->get_cparams().flash_attn;
}

void lr_memory_breakdown(const llama_context * ctx, size_t * model, size_t * context, size_t * compute) {
    *model = *context = *compute = 0;
    for (const auto & entry : ctx->memory_breakdown()) {
        *model += entry.second.model;
        *context += entry.second.context;
        *compute += entry.second.compute;
    }
}

size_t lr_kv_bytes_per_cell(const llama_model * model, ggml_type type_k, ggml_type type_v) {
    if (llama_model_is_recurrent(model)) {
        return 0;
    }
    const auto & hparams = model->hparams;
    size_t bytes = 0;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.is_recr(il)) {
            continue;
        }
        bytes += ggml_row_size(type_k, hparams.n_embd_k_gqa(il)) + ggml_row_size(type_v, hparams.n_embd_v_gqa(il));
    }
    return bytes;
}
