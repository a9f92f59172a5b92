#include "llama_runner.h"

#include "llama-adapter.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"
#include "shared.h"

#include <cstring>
#include <new>
#include <shared_mutex>
#include <unordered_set>

namespace {

// Private members, reached as outputs.cpp does: llama.cpp has no call that lays out a graph and says that it has, and
// none that tells whether a control vector found a place in it.
bool &                   need_reserve(llama_context & ctx);
llama_adapter_cvec_ptr & control_vector(llama_context & ctx);

template <bool llama_context::* Member> struct reach_need_reserve {
    friend bool & need_reserve(llama_context & ctx) {
        return ctx.*Member;
    }
};
template struct reach_need_reserve<&llama_context::sched_need_reserve>;

template <llama_adapter_cvec_ptr llama_context::* Member> struct reach_control_vector {
    friend llama_adapter_cvec_ptr & control_vector(llama_context & ctx) {
        return ctx.*Member;
    }
};
template struct reach_control_vector<&llama_context::cvec>;

// Every tensor that the graph of the last layout reads.
std::unordered_set<const ggml_tensor *> graph_sources(const llama_context & ctx) {
    std::unordered_set<const ggml_tensor *> sources;
    ggml_cgraph * graph = ctx.get_gf_res_reserve()->get_gf();
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        for (const auto * source : ggml_graph_node(graph, i)->src) {
            if (source) {
                sources.insert(source);
            }
        }
    }
    return sources;
}

}  // namespace

struct lr_rwlock {
    std::shared_mutex mutex;
};

lr_rwlock * lr_rwlock_new(void) {
    return new (std::nothrow) lr_rwlock;
}

void lr_rwlock_free(lr_rwlock * lock) {
    delete lock;
}

void lr_rwlock_lock_shared(lr_rwlock * lock) {
    lock->mutex.lock_shared();
}

void lr_rwlock_unlock_shared(lr_rwlock * lock) {
    lock->mutex.unlock_shared();
}

void lr_rwlock_lock(lr_rwlock * lock) {
    lock->mutex.lock();
}

void lr_rwlock_unlock(lr_rwlock * lock) {
    lock->mutex.unlock();
}

int lr_reserve(llama_context * ctx, lr_rwlock * adapters, char ** error) {
    if (!need_reserve(*ctx)) {
        return 0;
    }
    std::shared_lock<std::shared_mutex> lock(adapters->mutex);
    try {
        ctx->sched_reserve();
        return 0;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
    } catch (...) {
        *error = lr_copy_string("unknown C++ exception");
    }
    need_reserve(*ctx) = true;  // upstream takes it for done
    return -1;
}

bool lr_model_tensor(const llama_model * model, const char * name, int64_t * shape, int * type) {
    const ggml_tensor * tensor = model->get_tensor(name);
    if (!tensor) {
        return false;
    }
    memcpy(shape, tensor->ne, sizeof(tensor->ne));
    *type = tensor->type;
    return true;
}

const char * lr_model_output_name(const llama_model * model) {
    return model->output ? model->output->name : nullptr;
}

int lr_adapter_used(const llama_context * ctx, const llama_adapter_lora * adapter, int * total) {
    const auto sources = graph_sources(*ctx);
    int used = 0;
    for (const auto & entry : adapter->ab_map) {
        used += sources.count(entry.second.a) != 0;
    }
    *total = (int) adapter->ab_map.size();
    return used;
}

int lr_control_vector_used(llama_context * ctx) {
    const auto sources = graph_sources(*ctx);
    const auto & vector = control_vector(*ctx);
    int used = 0;
    for (uint32_t il = 0; il < ctx->get_model().hparams.n_layer(); ++il) {
        const ggml_tensor * direction = vector->tensor_for((int) il);
        used += direction && sources.count(direction) != 0;
    }
    return used;
}
