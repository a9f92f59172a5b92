#include "llama_runner.h"

#include "llama-arch.h"
#include "llama-model.h"
#include "shared.h"

#include <cmath>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>

namespace {

// What ggml's CPU kernels assert while they compute, on whatever thread that is; nothing catches it there. The loader
// lets a crafted file pass with it, so it is looked at once, after loading.

std::string with_layer_zero(const std::string & name) {
    std::string out;
    for (size_t i = 0; i < name.size(); ++i) {
        if (isdigit((unsigned char) name[i]) && i > 0 && name[i - 1] == '.') {
            out += '0';
            while (i + 1 < name.size() && isdigit((unsigned char) name[i + 1])) {
                ++i;
            }
        } else {
            out += name[i];
        }
    }
    return out;
}

// Names, with layer 0 and no suffix, of the tensors that the architecture uses in anything but products and look-ups;
// true for those whose kernels read plain floats whatever the shape. Two tensors may share a name.
std::map<std::string, bool> element_wise_names(llm_arch arch) {
    std::map<std::string, bool> names;
    for (int i = 0;; ++i) {
        try {
            const auto tensor = (llm_tensor) i;
            switch (llm_tensor_info_for(tensor).op) {
                case GGML_OP_ADD:
                case GGML_OP_DIV:
                case GGML_OP_MUL:
                case GGML_OP_SCALE: names[LLM_TN_IMPL(arch, tensor, nullptr, 0, 0).str()] |= false; break;
                case GGML_OP_ROPE:
                case GGML_OP_SSM_CONV:
                case GGML_OP_SSM_SCAN: names[LLM_TN_IMPL(arch, tensor, nullptr, 0, 0).str()] |= true; break;
                default: break;
            }
        } catch (const std::out_of_range &) {
            if (i > 2000) {  // the enum has holes: some tensors have no entry
                return names;
            }
        }
    }
}

void check_tensors(const llama_model & model) {
    const auto element_wise = element_wise_names(model.arch);
    for (const auto & [name, tensor] : model.tensors_by_name) {
        const std::string type = ggml_type_name(tensor->type);
        switch (tensor->type) {
            case GGML_TYPE_I8:
            case GGML_TYPE_I16:
            case GGML_TYPE_I64:
            case GGML_TYPE_F64:
            case GGML_TYPE_Q8_1:
            case GGML_TYPE_Q8_K:
                throw std::runtime_error("tensor " + name + " is of type " + type + ", which nothing computes with");
            case GGML_TYPE_I32:
                if (name.find("tid2eid") == std::string::npos) {  // a table of ids, the only integers upstream reads
                    throw std::runtime_error("tensor " + name + " is of type i32, and it is no table of ids");
                }
                break;
            default: break;
        }
        const auto dot = name.rfind('.');
        const std::string suffix = dot == std::string::npos ? "" : name.substr(dot + 1);
        const bool added = suffix == "bias";
        const auto known  = element_wise.find(with_layer_zero(name.substr(0, suffix == "weight" ? dot : name.size())));
        const bool found  = known != element_wise.end();
        const bool strict = ggml_n_dims(tensor) == 1 || (found && known->second);
        const bool plain  = tensor->type == GGML_TYPE_F16 || tensor->type == GGML_TYPE_BF16;
        if (tensor->type != GGML_TYPE_F32 && (added || found) && (strict || !plain)) {
            throw std::runtime_error("tensor " + name + " is of type " + type + ": what is added or multiplied is f32");
        }
    }
}

void check_numbers(const llama_model & model) {
    const auto & hparams = model.hparams;
    // those that an architecture does not read are not set
    const struct { const char * key; float value; } epsilons[] = {
        { ".attention.layer_norm_epsilon", hparams.f_norm_eps },
        { ".attention.layer_norm_rms_epsilon", hparams.f_norm_rms_eps },
        { ".attention.group_norm_epsilon", hparams.f_norm_group_eps },
    };
    for (const auto & epsilon : epsilons) {
        const bool given = model.gguf_kv.count(model.arch_name() + epsilon.key) > 0;
        if (given && !(epsilon.value >= 0.0f && std::isfinite(epsilon.value))) {
            throw std::runtime_error(model.arch_name() + epsilon.key + " is " + std::to_string(epsilon.value));
        }
    }
    const auto rope_type = llama_model_rope_type(&model);
    if (rope_type == LLAMA_ROPE_TYPE_NONE) {
        return;
    }
    const auto & sections = hparams.rope_sections;
    if ((rope_type & LLAMA_ROPE_TYPE_MROPE) && sections[0] <= 0 && sections[1] <= 0 && sections[2] <= 0) {
        throw std::runtime_error("its sections of rotated dimensions are all 0");
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.n_head(il) == 0 || hparams.n_head_kv(il) == 0 || hparams.is_recr(il)) {
            continue;
        }
        const uint32_t n_rot = hparams.n_rot(il), width = hparams.n_embd_head_k(il);
        if (n_rot == 0 || n_rot % 2 != 0 || n_rot > width) {
            throw std::runtime_error("layer " + std::to_string(il) + " rotates " + std::to_string(n_rot) +
                                     " of the " + std::to_string(width) + " numbers of a key: an even number is wanted");
        }
    }
}

}  // namespace

int lr_model_check(const llama_model * model, char ** error) {
    *error = nullptr;
    try {
        check_numbers(*model);
        check_tensors(*model);
        return 0;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return -1;
    }
}
