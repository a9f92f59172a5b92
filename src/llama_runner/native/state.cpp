#include "llama_runner.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"
#include "memory_parts.h"
#include "shared.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// How a cache lays its values out is decided before flash attention is known to work; only the private member tells.
bool transposed_values(const llama_kv_cache & kv);

template <bool llama_kv_cache::* Member> struct reach_v_trans {
    friend bool transposed_values(const llama_kv_cache & kv) {
        return kv.*Member;
    }
};
template struct reach_v_trans<&llama_kv_cache::v_trans>;

constexpr uint32_t SEQ_MAGIC = 0xaf143cd8;  // upstream's io_magic
constexpr int      MAX_SEQ   = LLAMA_MAX_SEQ;

[[noreturn]] void refuse(const std::string & what) {
    throw std::runtime_error(what);
}

std::string plural(uint64_t n, const char * what) {
    return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

// Bytes of a saved state, read in its order. What it says about sizes is never trusted further than the bytes reach.
struct cursor {
    const uint8_t * data;
    size_t          left;

    void skip(uint64_t count, uint64_t size) {
        if (size != 0 && count > left / size) {
            refuse("it ends early");
        }
        data += count * size;
        left -= count * size;
    }

    template <typename T> T read() {
        T value;
        const uint8_t * at = data;
        skip(1, sizeof(T));
        memcpy(&value, at, sizeof(T));
        return value;
    }

    template <typename T> void expect(T value, const char * what) {
        const T found = read<T>();
        if (found != value) {
            refuse(std::string(what) + " is " + std::to_string(found) + ", here it is " + std::to_string(value));
        }
    }
};

// The positions of each sequence in one part; a state of one sequence uses number 0.
struct span {
    std::array<std::vector<int32_t>, MAX_SEQ> held;

    void add(int seq, int32_t pos) { held[seq].push_back(pos); }

    void sort() {
        for (auto & positions : held) {
            std::sort(positions.begin(), positions.end());
        }
    }

    int32_t first(int seq) const { return held[seq].empty() ? -1 : held[seq].front(); }
    int32_t last(int seq) const { return held[seq].empty() ? -1 : held[seq].back(); }
};

struct checker {
    const llama_context * ctx;
    const llama_hparams & hparams;
    cursor                in;
    bool                  whole;

    int32_t position() {
        const auto pos = in.read<int32_t>();
        if (pos < 0 || pos == std::numeric_limits<int32_t>::max()) {
            refuse("a cell has position " + std::to_string(pos));
        }
        return pos;
    }

    uint32_t cell_count(uint64_t most) {
        const auto count = in.read<uint32_t>();
        if (count > most) {
            refuse("it has " + plural(count, "cell") + ", and there is room for " + std::to_string(most));
        }
        return count;
    }

    // The owners of a cell of a whole state: in order, each once, and in a stream of its own only the one it is for.
    void owners(uint32_t n, int stream, int32_t pos, span & out) {
        if (n < 1 || n > ctx->n_seq_max()) {
            refuse("a cell belongs to " + plural(n, "sequence") + " of " + std::to_string(ctx->n_seq_max()));
        }
        int64_t before = -1;
        for (uint32_t i = 0; i < n; ++i) {
            const auto seq = in.read<int32_t>();
            if (seq <= before || (uint32_t) seq >= ctx->n_seq_max() || (stream >= 0 && seq != stream)) {
                refuse("a cell belongs to sequence " + std::to_string(seq));
            }
            out.add(seq, pos);
            before = seq;
        }
    }

    span cache(const llama_kv_cache & kv) {
        span out;
        const uint32_t n_stream = kv.get_n_stream();
        in.expect<uint32_t>(n_stream, "its number of streams (kv_unified, n_seq_max)");
        bool held = false;
        for (uint32_t stream = 0; stream < n_stream; ++stream) {
            const uint32_t count = cell_count(kv.get_size());
            if (count == 0) {
                continue;
            }
            if (held && !whole) {
                refuse("one sequence is in two streams");
            }
            held = true;
            cache_cells(kv, count, n_stream > 1 ? (int) stream : -1, out);
            cache_data(kv, count);
        }
        out.sort();
        return out;
    }

    void cache_cells(const llama_kv_cache & kv, uint32_t count, int stream, span & out) {
        for (uint32_t i = 0; i < count; ++i) {
            const int32_t pos = position();
            const auto n_seq  = in.read<uint32_t>();
            if (kv.has_cell_ext()) {
                const auto ext = in.read<llama_kv_cell_ext>();
                if (ext.tok < LLAMA_TOKEN_NULL || ext.tok >= (int64_t) ctx->get_model().vocab.n_tokens()) {
                    refuse("a cell has token " + std::to_string(ext.tok));
                }
            }
            if (whole) {
                owners(n_seq, stream, pos, out);
            } else {
                if (n_seq != 1) {
                    refuse("a cell of one sequence belongs to " + std::to_string(n_seq));
                }
                in.read<int32_t>();  // upstream reads the sequence it was saved from, and passes it over
                out.add(0, pos);
            }
        }
    }

    void cache_data(const llama_kv_cache & kv, uint32_t count) {
        const bool transposed = transposed_values(kv);
        const auto layers     = kv.get_layer_ids();
        in.expect<uint32_t>(transposed, "its layout of values");
        in.expect<uint32_t>(layers.size(), "its number of layers");
        for (const uint32_t il : layers) {
            const auto type    = kv.get_k_storage(il)->type;
            const uint64_t row = ggml_row_size(type, hparams.n_embd_k_gqa(il));
            in.expect<int32_t>(type, "its type of keys");
            in.expect<uint64_t>(row, "its row of keys");
            in.skip(count, row);
        }
        if (hparams.is_mla()) {
            return;  // no values apart from the keys
        }
        for (const uint32_t il : layers) {
            const auto type       = kv.type_v();
            const uint32_t n_embd = hparams.n_embd_v_gqa(il);
            in.expect<int32_t>(type, "its type of values");
            if (transposed) {
                in.expect<uint32_t>(ggml_type_size(type), "its size of a value");
                in.expect<uint32_t>(n_embd, "its number of values");
                in.skip((uint64_t) count * n_embd, ggml_type_size(type));
            } else {
                const uint64_t row = ggml_row_size(type, n_embd);
                in.expect<uint64_t>(row, "its row of values");
                in.skip(count, row);
            }
        }
    }

    span states(const llama_memory_recurrent & recurrent) {
        span out;
        const uint32_t count = cell_count(whole ? recurrent.size : 1);
        for (uint32_t i = 0; i < count; ++i) {
            const int32_t pos = position();
            const auto n_seq  = in.read<uint32_t>();
            if (whole) {
                owners(n_seq, -1, pos, out);
            } else {
                if (n_seq != 0) {
                    refuse("a state of one sequence belongs to " + std::to_string(n_seq));
                }
                out.add(0, pos);
            }
        }
        for (int seq = 0; seq < MAX_SEQ; ++seq) {
            if (out.held[seq].size() > 1) {
                refuse("sequence " + std::to_string(seq) + " has two states");
            }
        }
        in.expect<uint32_t>(0, "its layout of states");
        in.expect<uint32_t>(hparams.n_layer(), "its number of layers");
        for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
            rows(recurrent.r_l[il], hparams.n_embd_r(), count, true);
            rows(recurrent.p_l[il], hparams.ple_conv_state(), count, false);
        }
        for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
            rows(recurrent.s_l[il], hparams.n_embd_s(), count, true);
        }
        return out;
    }

    void rows(const ggml_tensor * tensor, uint64_t width, uint32_t count, bool typed) {
        if (!tensor) {
            return;
        }
        const uint64_t row = ggml_row_size(tensor->type, width);
        if (typed) {
            in.expect<int32_t>(tensor->type, "its type of states");
        }
        in.expect<uint64_t>(row, "its row of states");
        in.skip(count, row);
    }

    void head() {
        if (!whole) {
            in.expect<uint32_t>(SEQ_MAGIC, "its first word");
            in.read<int32_t>();
            return;
        }
        const std::string arch = llm_arch_name(ctx->get_model().arch);
        const auto length = in.read<uint32_t>();
        const auto * text = in.data;
        in.skip(length, 1);
        if (std::string(reinterpret_cast<const char *>(text), length) != arch) {
            refuse("it is of another architecture than " + arch);
        }
    }

    void same_ends(const span & one, const span & other) {
        for (int seq = 0; seq < MAX_SEQ; ++seq) {
            if (one.last(seq) != other.last(seq)) {
                refuse("its parts end at different positions");
            }
        }
    }

    // The windowed part has nothing but positions of the full one, and all of those that the next token attends to.
    void within(const span & window, const span & full) {
        for (int seq = 0; seq < MAX_SEQ; ++seq) {
            const auto & wide = full.held[seq];
            const auto & some = window.held[seq];
            const auto visible = std::find_if(wide.begin(), wide.end(), [&](int32_t pos) {
                return !llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, pos, wide.back() + 1);
            });
            if (!std::includes(wide.begin(), wide.end(), some.begin(), some.end()) ||
                !std::includes(some.begin(), some.end(), visible, wide.end())) {
                refuse("its window has other positions than the rest");
            }
        }
    }

    void run(bool partial, int32_t * first, int32_t * last) {
        const auto parts = lr_parts_of(ctx);
        head();
        span full, window, state;
        if (parts.full && !partial) {
            full = cache(*parts.full);
        }
        if (parts.window) {
            window = cache(*parts.window);
            if (!partial) {
                within(window, full);
            }
        }
        if (parts.state) {
            state = states(*parts.state);
            if (parts.window) {
                same_ends(window, state);
            } else if (parts.full && !partial) {
                same_ends(full, state);
            }
        }
        if (in.left != 0) {
            refuse(plural(in.left, "byte") + " too many");
        }
        const span & seen = parts.window ? window : parts.state ? state : full;
        *first = seen.first(0);
        *last  = seen.last(0);
    }
};

}  // namespace

int lr_state_check(const llama_context * ctx, const uint8_t * data, size_t size, bool whole, bool partial, int32_t * first,
                   int32_t * last, char ** error) {
    try {
        checker{ctx, ctx->get_model().hparams, {data, size}, whole}.run(partial, first, last);
        return 0;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return -1;
    }
}

bool lr_state_covers(const llama_context * ctx, int seq, int32_t first, int32_t last) {
    const auto * full = lr_parts_of(ctx).full;
    if (!full) {
        return true;
    }
    const auto & held = full->get_cells(seq).seq_pos_get(seq);
    for (int64_t pos = first; pos <= last; ++pos) {
        const auto it = held.lower_bound({(llama_pos) pos, 0});
        if (it == held.end() || it->first != pos) {
            return false;
        }
    }
    return true;
}
