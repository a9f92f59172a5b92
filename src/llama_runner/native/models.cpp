#include "llama_runner.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"
#include "shared.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

// Listens to what the calling thread logs for as long as it lives.
struct tapped {
    tapped(lr_tap_fn tap, void * user_data) {
        lr_tap_log(tap, user_data);
    }
    ~tapped() {
        lr_tap_log(nullptr, nullptr);
    }
    tapped(const tapped &)             = delete;
    tapped & operator=(const tapped &) = delete;
};

struct cancelled : std::exception {
    const char * what() const noexcept override {
        return "cancelled";
    }
};

}  // namespace

int lr_regex_search(const char * pattern, const char * text, char ** error) {
    try {
        return std::regex_search(std::string(text), std::regex(pattern));
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return -1;
    }
}

// --- loading

static void note_override(ggml_log_level, const char * text, void * user_data) {
    // "validate_override: Using metadata override (  int) 'llama.context_length' = "
    if (strstr(text, "Using metadata override (") == nullptr) {
        return;
    }
    const char * start = strchr(text, '\'');
    const char * end   = strrchr(text, '\'');
    if (start && end > start) {
        static_cast<std::set<std::string> *>(user_data)->insert(std::string(start + 1, end));
    }
}

llama_model * lr_model_load(const char ** paths, size_t n_paths, llama_model_params params, char ** used) {
    std::set<std::string> keys;
    llama_model * model = nullptr;
    {
        tapped tap(note_override, &keys);
        model = n_paths == 1 ? llama_model_load_from_file(paths[0], params)
                             : llama_model_load_from_splits(paths, n_paths, params);
    }
    std::string lines;
    for (const auto & key : keys) {
        lines += key + "\n";
    }
    *used = lr_copy_string(lines);
    return model;
}

// --- quantizing

namespace {

struct quantizing {
    lr_tensor_fn on_tensor;
    void *       user_data;
    int          begun   = 0;
    bool         stopped = false;
    std::string  report;

    // "[   3/  21]                     blk.0.attn_k.weight - [   64,    32,     1,     1], type =    f32, "
    bool begin(const char * text) {
        int index = 0, count = 0, consumed = 0;
        if (sscanf(text, "[%d/%d] %n", &index, &count, &consumed) != 2 || index != begun + 1) {
            return false;
        }
        const char * end = strstr(text + consumed, " - [");
        std::string name(text + consumed, end ? end : text + strlen(text));
        name.erase(name.find_last_not_of(' ') + 1);
        report += (begun ? "\n" : "") + name + "\t";
        ++begun;
        return true;
    }

    // "converting to q4_0 .. ", or of a dry run "size =     0.06 MiB ->     0.01 MiB (q4_0)"
    void note_type(const char * text) {
        static const char * const converting = "converting to ";
        const char * start = nullptr;
        const char * end   = nullptr;
        if (strncmp(text, converting, strlen(converting)) == 0) {
            start = text + strlen(converting);
            end   = strchr(start, ' ');
        } else if (strncmp(text, "size = ", 7) == 0 && (start = strchr(text, '(')) != nullptr) {
            end = strchr(++start, ')');
        }
        if (start && end) {
            report.append(start, end);
        }
    }
};

void follow_quantizing(ggml_log_level level, const char * text, void * user_data) {
    auto & state = *static_cast<quantizing *>(user_data);
    if (level != GGML_LOG_LEVEL_INFO || state.stopped) {
        return;
    }
    if (!state.begin(text)) {
        state.note_type(text);
    } else if (state.on_tensor && state.on_tensor(state.begun - 1, state.user_data) != 0) {
        // the only way out: llama.cpp has no worker running between two tensors, and catches what is a std::exception
        state.stopped = true;
        throw cancelled();
    }
}

}  // namespace

int lr_quantize(const char * input, const char * output, const llama_model_quantize_params * params,
        lr_tensor_fn on_tensor, void * user_data, char ** report) {
    quantizing state{on_tensor, user_data};
    int code = 1;
    try {
        tapped tap(follow_quantizing, &state);
        code = (int) llama_model_quantize(input, output, params);
    } catch (const std::exception & e) {
        lr_log_line(GGML_LOG_LEVEL_ERROR, e.what());
    }
    *report = lr_copy_string(state.report);
    return state.stopped ? -1 : code;
}

// --- measuring

namespace {

struct placed {
    size_t part, begin, end;
};

// Where the bytes of each tensor lie: the file's number and the range in it.
std::map<std::string, placed> place_tensors(const char ** paths, size_t n_paths) {
    std::map<std::string, placed> places;
    for (size_t part = 0; part < n_paths; ++part) {
        gguf_context_ptr file(gguf_init_from_file(paths[part], {/*.no_alloc =*/ true, /*.ctx =*/ nullptr}));
        if (!file) {
            throw std::runtime_error(std::string("cannot read ") + paths[part]);
        }
        for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); ++i) {
            const size_t begin = gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), i);
            places[gguf_get_tensor_name(file.get(), i)] = {part, begin, begin + gguf_get_tensor_size(file.get(), i)};
        }
    }
    return places;
}

ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft) {
    auto * dev = ggml_backend_buft_get_device(buft);
    return dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// The buffer type that the loader takes for a mapped file in place of `buft`; NULL where it reads the weights into memory.
ggml_backend_buffer_type_t mapped_as(ggml_backend_buffer_type_t buft) {
    auto * dev = device_of(buft);
    if (buft == ggml_backend_dev_host_buffer_type(dev) && ggml_backend_buft_get_device(buft)) {
        return ggml_backend_dev_buffer_type(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    return props.caps.buffer_from_host_ptr && buft == ggml_backend_dev_buffer_type(dev) ? buft : nullptr;
}

// Sizes of the ranges of the files that the loader maps into each buffer type, in place of what it would allocate.
void count_mapped(const llama_model & model, llama_memory_breakdown & sizes, const char ** paths, size_t n_paths) {
    const auto places = place_tensors(paths, n_paths);
    std::map<std::pair<ggml_backend_buffer_type_t, size_t>, std::pair<size_t, size_t>> ranges;
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(&model)) {
        auto * own  = ggml_backend_buffer_get_type(tensor->buffer);
        auto * buft = mapped_as(own);
        auto   at   = places.find(name);
        if (buft == nullptr || at == places.end()) {
            continue;
        }
        sizes[own].model = 0;
        const auto [it, fresh] = ranges.insert({{buft, at->second.part}, {at->second.begin, at->second.end}});
        if (!fresh) {
            it->second.first  = std::min(it->second.first, at->second.begin);
            it->second.second = std::max(it->second.second, at->second.end);
        }
    }
    for (const auto & [key, range] : ranges) {
        sizes[key.first].model += range.second - range.first;
    }
}

bool maps_files(const llama_model & model, llama_load_mode load_mode) {
    if (load_mode == LLAMA_LOAD_MODE_AUTO) {
        for (const auto & device : model.devices) {
            ggml_backend_dev_props props;
            ggml_backend_dev_get_props(device.dev, &props);
            if (!props.caps.mmap_support) {
                return false;
            }
        }
    } else if (load_mode != LLAMA_LOAD_MODE_MMAP && load_mode != LLAMA_LOAD_MODE_MMAP_MLOCK) {
        return false;
    }
    return llama_supports_mmap();
}

std::string json_of(const llama_model & model, const llama_memory_breakdown & sizes) {
    auto * cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    std::vector<ggml_backend_dev_t> devices;
    for (const auto & device : model.devices) {
        devices.push_back(device.dev);
    }
    devices.push_back(cpu);
    std::map<ggml_backend_dev_t, llama_memory_breakdown_data> by_device;
    for (const auto & [buft, size] : sizes) {
        auto * dev = device_of(buft);
        // what no device of the model holds, the host does: mapped and pinned memory, repacked weights, accelerators'
        auto & sum = by_device[ggml_backend_buft_is_host(buft)
            || std::find(devices.begin(), devices.end(), dev) == devices.end() ? cpu : dev];
        sum.model   += size.model;
        sum.context += size.context;
        sum.compute += size.compute;
    }
    std::string json = "[";
    for (auto * dev : devices) {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(dev, &free, &total);
        const auto & sum = by_device[dev];
        json += std::string(json.size() > 1 ? ", " : "") + "{\"device\": \"" + ggml_backend_dev_name(dev) + "\""
            + ", \"host\": " + (dev == cpu ? "true" : "false")
            + ", \"model\": " + std::to_string(sum.model) + ", \"context\": " + std::to_string(sum.context)
            + ", \"compute\": " + std::to_string(sum.compute)
            + ", \"free\": " + std::to_string(free) + ", \"total\": " + std::to_string(total) + "}";
    }
    return json + "]";
}

}  // namespace

char * lr_measure(llama_model * model, llama_context_params params, const char ** paths, size_t n_paths,
        llama_load_mode load_mode, char ** error) {
    try {
        std::unique_ptr<llama_context, void (*)(llama_context *)> ctx(llama_init_from_model(model, params), llama_free);
        if (!ctx) {
            return nullptr;
        }
        auto sizes = ctx->memory_breakdown();
        if (maps_files(*model, load_mode)) {
            count_mapped(*model, sizes, paths, n_paths);
        }
        return lr_copy_string(json_of(*model, sizes));
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return nullptr;
    }
}
