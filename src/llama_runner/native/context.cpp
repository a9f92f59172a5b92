#include "llama_runner.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-model.h"

#include <mutex>

namespace {

// What llama.cpp will scale RoPE by: where that is YaRN of the caller's own, it rewrites the model's n_ctx_train.
bool rewrites_model(const llama_hparams & hparams, const llama_context_params & params) {
    const auto type = params.rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED ? hparams.rope_scaling_type_train
                                                                                      : params.rope_scaling_type;
    return type == LLAMA_ROPE_SCALING_TYPE_YARN && params.rope_freq_scale != 0.0f &&
           params.rope_freq_scale != hparams.rope_freq_scale_train;
}

// Reached as outputs.cpp reaches the output buffer: the result of the graph that was computed last.
llm_graph_result * & last_result(llama_context & ctx);

template <llm_graph_result * llama_context::* Member> struct reach_last_result {
    friend llm_graph_result * & last_result(llama_context & ctx) {
        return ctx.*Member;
    }
};
template struct reach_last_result<&llama_context::gf_res_prev_active>;

}  // namespace

llama_context * lr_context_new(llama_model * model, llama_context_params params) {
    if (!rewrites_model(model->hparams, params)) {
        return llama_init_from_model(model, params);
    }
    // a model is shared and must stay what its file says; one at a time, or one would restore what another has written
    static std::mutex            mutex;
    std::lock_guard<std::mutex> lock(mutex);
    const uint32_t n_ctx_train  = model->hparams.n_ctx_train;
    llama_context * ctx         = llama_init_from_model(model, params);
    model->hparams.n_ctx_train  = n_ctx_train;
    return ctx;
}

void lr_context_facts(const llama_context * ctx, lr_facts * facts) {
    const auto & model   = ctx->get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = ctx->get_cparams();

    facts->n_ctx         = (int) cparams.n_ctx;
    facts->n_batch       = (int) cparams.n_batch;
    facts->n_ubatch      = (int) cparams.n_ubatch;
    facts->n_seq_max     = (int) cparams.n_seq_max;
    facts->n_outputs_max = (int) cparams.n_outputs_max;
    facts->n_vocab       = llama_vocab_n_tokens(llama_model_get_vocab(&model));
    facts->pooling       = (int) cparams.pooling_type;
    facts->n_embd_out    = (int) hparams.n_embd_out();
    facts->n_embd        = (int) hparams.n_embd_inp();
    facts->n_embd_enc    = (int) hparams.n_embd_inp_enc();
    facts->n_pos         = (int) hparams.n_pos_per_embd();
    facts->n_pos_max     = model.pos_embd ? (int) model.pos_embd->ne[1] : 0;
    facts->has_encoder   = llama_model_has_encoder(&model);
    facts->has_decoder   = llama_model_has_decoder(&model);
    facts->reads_encoder = model.arch == LLM_ARCH_T5;
    // the one asserts that it gets tokens, the other looks experts up by them
    facts->needs_tokens  = model.arch == LLM_ARCH_GRANITE_SWITCH || model.arch == LLM_ARCH_DEEPSEEK4;
    facts->one_seq_a_row = model.arch == LLM_ARCH_QWEN4EXP;
}

bool lr_gave_logits(llama_context * ctx) {
    const llm_graph_result * result = last_result(*ctx);
    return result && result->get_logits();
}

int lr_rank_width(const llama_model * model) {
    const ggml_tensor * head = model->cls_out ? model->cls_out : model->cls;
    return head ? (int) head->ne[1] : 0;
}

size_t lr_rs_bytes_per_seq(const llama_model * model) {
    const auto & hparams = model->hparams;
    if (!llama_model_is_recurrent(model) && !llama_model_is_hybrid(model)) {
        return 0;
    }
    size_t floats = 0;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.is_recr(il)) {
            floats += hparams.n_embd_r() + hparams.n_embd_s();
        }
    }
    return floats * sizeof(float);
}

int lr_rope_scaling(const llama_model * model) {
    return (int) model->hparams.rope_scaling_type_train;
}
