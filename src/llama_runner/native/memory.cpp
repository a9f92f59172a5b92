#include "llama_runner.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"
#include "memory_parts.h"
#include "shared.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <set>
#include <typeinfo>
#include <utility>
#include <vector>

lr_memory_parts lr_parts_of(const llama_context * ctx) {
    lr_memory_parts parts;
    llama_memory_i * memory = ctx->get_memory();
    if (!memory) {
        return parts;
    }
    // the exact type: a subclass may lay its state out differently
    const auto & type = typeid(*memory);
    parts.layout_known = true;
    if (type == typeid(llama_kv_cache)) {
        parts.full = static_cast<llama_kv_cache *>(memory);
    } else if (type == typeid(llama_kv_cache_iswa)) {
        parts.full   = static_cast<llama_kv_cache_iswa *>(memory)->get_base();
        parts.window = static_cast<llama_kv_cache_iswa *>(memory)->get_swa();
    } else if (type == typeid(llama_memory_recurrent)) {
        parts.state = static_cast<llama_memory_recurrent *>(memory);
    } else if (type == typeid(llama_memory_hybrid)) {
        parts.full  = static_cast<llama_memory_hybrid *>(memory)->get_mem_attn();
        parts.state = static_cast<llama_memory_hybrid *>(memory)->get_mem_recr();
    } else if (type == typeid(llama_memory_hybrid_iswa)) {
        auto * hybrid = static_cast<llama_memory_hybrid_iswa *>(memory);
        parts.full   = hybrid->get_mem_attn()->get_base();
        parts.window = hybrid->get_mem_attn()->get_swa();
        parts.state  = hybrid->get_mem_recr();
    } else {
        parts.layout_known = false;
        if (type == typeid(llama_kv_cache_dsa)) {
            parts.full = static_cast<llama_kv_cache_dsa *>(memory)->get_mla();
        } else if (type == typeid(llama_kv_cache_msa)) {
            parts.full = static_cast<llama_kv_cache_msa *>(memory)->get_base();
        }
    }
    return parts;
}

namespace {

// Where the search for free cells goes on, in each stream. A rehearsal of it must leave no trace, and upstream puts these
// back in the wrong streams; only the private member is to be had, and this is the way that the language allows.
std::vector<uint32_t> & heads_of(llama_kv_cache & cache);

template <std::vector<uint32_t> llama_kv_cache::* Member> struct reach_heads {
    friend std::vector<uint32_t> & heads_of(llama_kv_cache & cache) {
        return cache.*Member;
    }
};
template struct reach_heads<&llama_kv_cache::v_heads>;

constexpr llama_pos END = std::numeric_limits<llama_pos>::max();

llama_kv_cache * cache_of(const lr_memory_parts & parts, int part) {
    return part == LR_MEMORY_FULL ? parts.full : part == LR_MEMORY_WINDOW ? parts.window : nullptr;
}

// The cells are llama.cpp's own, not constant: only the getter hands them out as such.
llama_kv_cells & cells_of(llama_kv_cache & cache, llama_seq_id seq) {
    return const_cast<llama_kv_cells &>(cache.get_cells(seq));
}

bool masked(const llama_context * ctx, llama_pos pos, llama_pos query) {
    const auto & hparams = ctx->get_model().hparams;
    return llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, pos, query);
}

bool rotates(const llama_context * ctx, const llama_kv_cache & cache) {
    const auto layers = cache.get_layer_ids();
    const auto & hparams = ctx->get_model().hparams;
    return std::any_of(layers.begin(), layers.end(), [&](uint32_t il) { return hparams.has_rope(il); });
}

using lr_held = std::pair<llama_pos, uint32_t>;  // a position, and the cell that it is in

bool holds(const std::set<lr_held> & cells, llama_pos pos) {
    const auto it = cells.lower_bound({pos, 0});
    return it != cells.end() && it->first == pos;
}

// Where each position of [p0, p1) goes.
struct lr_move {
    llama_pos p0, p1, delta, divisor;

    llama_pos operator()(llama_pos pos) const {
        return pos < p0 || pos >= p1 ? pos : divisor > 1 ? pos / divisor : pos + delta;
    }
};

int owner_besides(const llama_kv_cells & cells, uint32_t cell, llama_seq_id seq) {
    for (int other = 0; other < LLAMA_MAX_SEQ; ++other) {
        if (other != seq && cells.seq_has(cell, other)) {
            return other;
        }
    }
    return -1;
}

}  // namespace

int lr_memory_layout(const llama_context * ctx) {
    const auto parts = lr_parts_of(ctx);
    return (parts.full ? LR_MEMORY_FULL : 0) | (parts.window ? LR_MEMORY_WINDOW : 0) |
           (parts.state ? LR_MEMORY_STATE : 0) | (parts.layout_known ? LR_MEMORY_LAYOUT_KNOWN : 0);
}

int lr_memory_streams(const llama_context * ctx, int part) {
    const auto * cache = cache_of(lr_parts_of(ctx), part);
    return cache ? (int) cache->get_n_stream() : 1;
}

uint32_t lr_memory_window(const llama_context * ctx) {
    return ctx->get_model().hparams.n_swa;
}

void lr_memory_use(const llama_context * ctx, int part, int stream, uint32_t * size, uint32_t * used, uint32_t * end) {
    const auto parts = lr_parts_of(ctx);
    *size = *used = *end = 0;
    if (const auto * cache = cache_of(parts, part)) {
        // a stream has the number of the one sequence that it holds
        const auto & cells = cache->get_cells(stream);
        *size = cells.size();
        *used = cells.get_used();
        *end  = cells.used_max_p1();
    } else if (part == LR_MEMORY_STATE && parts.state) {
        *size = parts.state->size;
        for (uint32_t i = 0; i < parts.state->size; ++i) {
            if (!parts.state->cells[i].is_empty()) {
                *used += 1;
                *end = i + 1;
            }
        }
    }
}

void lr_memory_cells(const llama_context * ctx, int part, int stream, int words, int32_t * pos, uint64_t * seqs) {
    const auto parts = lr_parts_of(ctx);
    if (const auto * cache = cache_of(parts, part)) {
        const auto & cells = cache->get_cells(stream);
        const llama_kv_cells::seq_set_t low(~0ull);
        for (uint32_t i = 0; i < cells.size(); ++i) {
            pos[i] = cells.is_empty(i) ? -1 : cells.pos_get(i);
            for (int word = 0; word < words; ++word) {
                seqs[i * words + word] = pos[i] < 0 ? 0 : ((cells.seq_get_all(i) >> (64 * word)) & low).to_ullong();
            }
        }
    } else if (part == LR_MEMORY_STATE && parts.state) {
        for (uint32_t i = 0; i < parts.state->size; ++i) {
            const auto & cell = parts.state->cells[i];
            pos[i] = cell.is_empty() ? -1 : cell.pos;
            for (const llama_seq_id seq : cell.seq_id) {
                seqs[i * words + seq / 64] |= 1ull << (seq % 64);
            }
        }
    }
}

bool lr_memory_pending(const llama_context * ctx) {
    const auto parts = lr_parts_of(ctx);
    return (parts.full && parts.full->get_has_shift()) || (parts.window && parts.window->get_has_shift());
}

int lr_memory_flush(llama_context * ctx, lr_abort * abort, char ** error) {
    // The shift rotates keys in place: one that is stopped half-way, and done again later, would rotate some twice.
    llama_set_abort_callback(ctx, nullptr, nullptr);
    int result = -1;
    try {
        const auto parts = lr_parts_of(ctx);
        for (auto * cache : {parts.full, parts.window}) {
            // where no layer has positions in its keys, upstream builds a graph without them and fails an assertion
            if (cache && cache->get_has_shift() && !rotates(ctx, *cache)) {
                for (uint32_t stream = 0; stream < cache->get_n_stream(); ++stream) {
                    cells_of(*cache, stream).reset_shift();
                }
            }
        }
        ctx->memory_update(false);
        ctx->synchronize();
        result = lr_memory_pending(ctx) ? -1 : 0;
        if (result != 0) {
            *error = lr_copy_string("the keys could not be moved to their new positions");
        }
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
    } catch (...) {
        *error = lr_copy_string("unknown C++ exception");
    }
    lr_abort_attach(abort, ctx);
    return result;
}

int lr_memory_shared(const llama_context * ctx, int seq, int32_t p0, int32_t p1) {
    const auto parts = lr_parts_of(ctx);
    const llama_pos end = p1 < 0 ? END : p1;
    for (const auto * cache : {parts.full, parts.window}) {
        if (!cache) {
            continue;
        }
        const auto & cells = cache->get_cells(seq);
        const auto & held  = cells.seq_pos_get(seq);
        for (auto it = held.lower_bound({p0, 0}); it != held.end() && it->first < end; ++it) {
            if (cells.seq_count(it->second) > 1) {
                return owner_besides(cells, it->second, seq);
            }
        }
    }
    if (parts.state) {
        for (const auto & cell : parts.state->cells) {
            if (cell.seq_id.size() > 1 && cell.has_seq_id(seq) && cell.pos >= p0 && cell.pos < end) {
                return *cell.seq_id.begin() == seq ? *std::next(cell.seq_id.begin()) : *cell.seq_id.begin();
            }
        }
    }
    return -1;
}

int32_t lr_memory_first(const llama_context * ctx, int seq) {
    const auto * full = lr_parts_of(ctx).full;
    return full ? full->seq_pos_min(seq) : 0;
}

bool lr_memory_same(const llama_context * ctx, int a, int b) {
    const auto parts = lr_parts_of(ctx);
    for (const auto * cache : {parts.full, parts.window}) {
        if (cache && (cache->get_stream(a) != cache->get_stream(b) ||
                      cache->get_cells(a).seq_pos_get(a) != cache->get_cells(b).seq_pos_get(b))) {
            return false;
        }
    }
    return !parts.state || parts.state->cells[a].tail == parts.state->cells[b].tail;
}

bool lr_memory_window_holds(const llama_context * ctx, int seq, int32_t p0, int32_t end) {
    const auto parts = lr_parts_of(ctx);
    if (!parts.full || !parts.window) {
        return true;
    }
    const auto & full   = parts.full->get_cells(seq).seq_pos_get(seq);
    const auto & window = parts.window->get_cells(seq).seq_pos_get(seq);
    for (auto it = full.lower_bound({end, 0}); it != full.begin();) {
        --it;
        if (it->first < p0 || masked(ctx, it->first, end)) {
            break;
        }
        if (!holds(window, it->first)) {
            return false;
        }
    }
    return true;
}

bool lr_memory_move_holds(const llama_context * ctx, int seq, int32_t p0, int32_t p1, int32_t delta, int32_t divisor) {
    const auto parts = lr_parts_of(ctx);
    if (!parts.full || !parts.window) {
        return true;
    }
    const lr_move move{p0, p1 < 0 ? END : p1, delta, divisor};
    const auto moved = [&](const llama_kv_cells & cells, const lr_held & held) {
        return cells.seq_has(held.second, seq) ? move(held.first) : held.first;
    };
    // whoever shares a cell goes with it; streams share none
    for (int owner = 0; owner < (int) ctx->n_seq_max(); ++owner) {
        if (parts.full->get_stream(owner) != parts.full->get_stream(seq)) {
            continue;
        }
        const auto & full_cells   = parts.full->get_cells(owner);
        const auto & window_cells = parts.window->get_cells(owner);
        const auto & full         = full_cells.seq_pos_get(owner);
        const auto & window       = window_cells.seq_pos_get(owner);
        llama_pos end = 0, kept = END;
        for (const auto & held : full) {
            end = std::max(end, moved(full_cells, held) + 1);
        }
        for (const auto & held : window) {
            kept = std::min(kept, moved(window_cells, held));
        }
        // what the window lacks stays before what it has, and out of sight
        for (const auto & held : full) {
            const llama_pos pos = moved(full_cells, held);
            if (!holds(window, held.first) && (pos >= kept || !masked(ctx, pos, end))) {
                return false;
            }
        }
    }
    return true;
}

void lr_memory_seq_div(llama_context * ctx, int seq, int32_t p0, int32_t p1, int32_t divisor) {
    const auto parts = lr_parts_of(ctx);
    if (!parts.full && !parts.state) {
        ctx->get_memory()->seq_div(seq, p0, p1, divisor);
        return;
    }
    const lr_move move{p0, p1 < 0 ? END : p1, 0, divisor};
    for (auto * cache : {parts.full, parts.window}) {
        if (!cache) {
            continue;
        }
        // not upstream's seq_div: it notes the distance with the wrong sign, and the keys turn away from their positions
        auto & cells = cells_of(*cache, seq);
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (!cells.is_empty(i) && cells.seq_has(i, seq) && move(cells.pos_get(i)) != cells.pos_get(i)) {
                cells.pos_add(i, move(cells.pos_get(i)) - cells.pos_get(i));
            }
        }
    }
    if (parts.state) {
        parts.state->seq_div(seq, p0, p1, divisor);
    }
}

bool lr_memory_rolled_back(const llama_context * ctx, int seq) {
    const auto parts = lr_parts_of(ctx);
    return parts.state && (size_t) seq < parts.state->rs_idx.size() && parts.state->rs_idx[seq] != 0;
}

namespace {

// What llama.cpp purged to find room, and put back in part when it found none, need not be the end of a sequence any more.
void keep_end_of_window(const lr_memory_parts & parts, int seq) {
    if (!parts.full || !parts.window) {
        return;
    }
    const auto & full   = parts.full->get_cells(seq).seq_pos_get(seq);
    const auto & window = parts.window->get_cells(seq).seq_pos_get(seq);
    const auto lost = std::find_if(full.rbegin(), full.rend(), [&](const lr_held & held) { return !holds(window, held.first); });
    if (lost != full.rend()) {
        parts.window->seq_rm(seq, -1, lost->first);
    }
}

}  // namespace

void lr_memory_tails(const llama_context * ctx, int32_t * tails) {
    const auto parts = lr_parts_of(ctx);
    for (int seq = 0; seq < LLAMA_MAX_SEQ; ++seq) {
        tails[seq] = parts.state && (uint32_t) seq < parts.state->size ? parts.state->cells[seq].tail : -1;
    }
}

void lr_memory_take_back(llama_context * ctx, const int32_t * before, const int32_t * tails, bool computed,
                         uint8_t * emptied) {
    auto * memory = ctx->get_memory();
    const auto parts = lr_parts_of(ctx);
    const bool snapshots = parts.state && parts.state->n_rs_seq > 0;
    for (int seq = 0; seq < (int) ctx->n_seq_max(); ++seq) {
        bool sound = true;
        if (before[seq] != -2) {
            // with snapshots, upstream has gone back to one of a computation that did not finish
            sound = !(computed && snapshots) && memory->seq_rm(seq, before[seq] + 1, -1) &&
                    lr_memory_window_holds(ctx, seq, 0, before[seq] + 1);
        }
        keep_end_of_window(parts, seq);
        if (computed && parts.state && tails[seq] >= 0) {
            // a cell that was moved aside for the batch: nobody knows whether its state had followed
            sound = sound && parts.state->cells[seq].tail == tails[seq];
        }
        if (!sound) {
            memory->seq_rm(seq, -1, -1);
            emptied[seq] = before[seq] != -1;
        }
    }
    if (parts.state) {
        // an empty cell that the computation was to clear counts as cleared: the next sequence would begin with what is in it
        for (auto & cell : parts.state->cells) {
            cell.src = cell.is_empty() ? -1 : cell.src;
        }
    }
}

int lr_memory_batch_loses(llama_context * ctx, const llama_batch * batch, char ** error) {
    const auto parts = lr_parts_of(ctx);
    if (!parts.full || !parts.window) {
        return -1;
    }
    int loser = -1;
    try {
        std::vector<llama_pos> next(ctx->n_seq_max());
        std::vector<std::set<lr_held>> held;
        for (int seq = 0; seq < (int) next.size(); ++seq) {
            next[seq] = parts.full->seq_pos_max(seq) + 1;
            held.push_back(parts.window->get_cells(seq).seq_pos_get(seq));
        }
        const auto full_heads = heads_of(*parts.full), window_heads = heads_of(*parts.window);
        std::vector<llama_kv_cells> saved;
        for (uint32_t stream = 0; stream < parts.window->get_n_stream(); ++stream) {
            auto & cells = cells_of(*parts.window, stream);
            saved.push_back(cells.cp(0, cells.size()));
        }
        {
            llama_batch_compat compat(ctx, *batch);
            llama_batch_allocr balloc(ctx->get_model().hparams.n_pos_per_embd());
            if (balloc.init(*compat.batch_ext, ctx->get_model().vocab, ctx->get_cparams().embeddings)) {
                ctx->get_memory()->init_batch(balloc, ctx->n_ubatch(), ctx->get_cparams().embeddings);
            }
        }
        for (int seq = 0; seq < (int) next.size() && loser < 0; ++seq) {
            const auto & left = parts.window->get_cells(seq).seq_pos_get(seq);
            for (const auto & entry : held[seq]) {
                if (!left.count(entry) && !masked(ctx, entry.first, next[seq])) {
                    loser = seq;
                }
            }
        }
        for (uint32_t stream = 0; stream < saved.size(); ++stream) {
            cells_of(*parts.window, stream).set(0, saved[stream]);
        }
        heads_of(*parts.full)   = full_heads;
        heads_of(*parts.window) = window_heads;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
    }
    return loser;
}
