#include "constraint.h"
#include "llama_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int   BLOCK    = 32;   // logits that are looked at together
constexpr int   MOST_TOP = 128;  // up to here llama.cpp's top_k is a std::partial_sort of the row
constexpr float INF      = INFINITY;

// What upstream sorts candidates by: the order among equals is that of its algorithm.
bool above(const llama_token_data & a, const llama_token_data & b) {
    return a.logit > b.logit;
}

bool no_number(float x) {
    return !(x < INF);  // NaN, or +inf, which a softmax makes NaN of
}

// The best k of a row, in the order in which upstream's std::partial_sort(data, data + k, data + n) leaves them.
//
// That one makes a heap of the first k and replaces its least by each later element that is greater; elements that are
// not greater are never moved. So the k are the same, ties included, when only the greater ones are shown to the heap.
// libstdc++'s pop_heap is the very step that its partial_sort does; elsewhere a row with ties is left to upstream.
struct best_k {
    std::vector<llama_token_data> & heap;  // one more than k: the element that comes in, or the one that goes out
    const size_t                    k;
    size_t                          size = 0;
    bool                            bad  = false;

    best_k(std::vector<llama_token_data> & heap, size_t k) : heap(heap), k(k) { heap.resize(k + 1); }

    void one(llama_token id, float x) {
        if (size < k) {
            heap[size++] = {id, x, 0.0f};
            if (size == k) {
                std::make_heap(heap.begin(), heap.begin() + k, above);
            }
        } else if (x > heap[0].logit) {
            heap[k] = {id, x, 0.0f};
            std::pop_heap(heap.begin(), heap.begin() + k + 1, above);
        }
    }

    void some(const float * row, int i, int end) {
        for (; i < end; ++i) {
            bad |= no_number(row[i]);
            one(i, row[i]);
        }
    }

    void run(const float * row, int i, int end) {
        const int first = std::min<int64_t>(end, i + (int64_t) (k - size));
        some(row, i, first);
        for (i = first; i + BLOCK <= end; i += BLOCK) {
            const float least = heap[0].logit;
            int         any   = 0;
            for (int j = 0; j < BLOCK; ++j) {
                any |= !(row[i + j] <= least);  // true for NaN as well
            }
            if (any) {
                some(row, i, i + BLOCK);
            }
        }
        some(row, i, end);
    }

    void sort() { std::sort_heap(heap.begin(), heap.begin() + k, above); }
};

// The greatest of a row.
struct greatest {
    float lanes[BLOCK];
    int   bad = 0;

    greatest() { std::fill_n(lanes, BLOCK, -INF); }

    void one(llama_token, float x) { lanes[0] = x > lanes[0] ? x : lanes[0]; }

    void run(const float * row, int i, int end) {
        for (; i + BLOCK <= end; i += BLOCK) {
            for (int j = 0; j < BLOCK; ++j) {
                lanes[j] = row[i + j] > lanes[j] ? row[i + j] : lanes[j];
                bad |= no_number(row[i + j]);
            }
        }
        for (; i < end; ++i) {
            bad |= no_number(row[i]);
            one(i, row[i]);
        }
    }

    float value() const { return *std::max_element(lanes, lanes + BLOCK); }
};

// All of a row that are not less than a bound, in its order; at most `most`.
struct at_least {
    std::vector<llama_token_data> & found;
    const float                     bound;
    const size_t                    most;

    void one(llama_token id, float x) {
        if (x >= bound && found.size() < most) {
            found.push_back({id, x, 0.0f});
        }
    }

    void run(const float * row, int i, int end) {
        for (; i + BLOCK <= end && found.size() < most; i += BLOCK) {
            int any = 0;
            for (int j = 0; j < BLOCK; ++j) {
                any |= row[i + j] >= bound;
            }
            if (any) {
                for (int j = i; j < i + BLOCK; ++j) {
                    one(j, row[j]);
                }
            }
        }
        for (; i < end; ++i) {
            one(i, row[i]);
        }
    }
};

struct link {
    lr_link_fn fn;
    void *     user;
};

const char * link_name(const llama_sampler *) {
    return "python";
}

void link_apply(llama_sampler * smpl, llama_token_data_array * cur) {
    const auto * self = static_cast<link *>(smpl->ctx);
    if (!self->user || self->fn(self->user, cur->data, cur->size) != 0) {
        throw std::runtime_error("a Python link failed");
    }
    cur->sorted = false;
}

llama_sampler * link_clone(const llama_sampler * smpl) {
    return lr_link_new(static_cast<const link *>(smpl->ctx)->fn);
}

void link_free(llama_sampler * smpl) {
    delete static_cast<link *>(smpl->ctx);
}

void link_copy(const llama_sampler *, llama_sampler *) {}  // a callable keeps its own state

llama_sampler_i link_interface = {
    /* .name              = */ link_name,
    /* .accept            = */ nullptr,
    /* .apply             = */ link_apply,
    /* .reset             = */ nullptr,
    /* .clone             = */ link_clone,
    /* .free              = */ link_free,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ link_copy,
};

}  // namespace

struct lr_picker {
    llama_sampler * chain = nullptr;
    lr_plan         plan  = {};

    std::vector<llama_token> biased;    // tokens that logit_bias links name
    std::vector<llama_token> touched;   // those, and every accepted one: sorted
    std::vector<llama_token> accepted;  // in order

    std::vector<llama_token_data> candidates;
    std::vector<llama_token_data> patches;  // the touched tokens as the leading links leave them
    std::vector<float>            masked;   // the row, as a constraint that stands first leaves it
    std::string                   error;

    bool   pending   = false;  // a token was picked and none accepted since
    size_t n_single  = 0;      // picks from one candidate, and from more
    size_t n_several = 0;

    void touch(llama_token token) {
        const auto at = std::lower_bound(touched.begin(), touched.end(), token);
        if (at == touched.end() || *at != token) {
            touched.insert(at, token);
        }
    }

    // Lets the leading links change the few tokens that they can change. False where they are too many, or no numbers.
    bool patch(const float * row, int n) {
        patches.clear();
        if (plan.n_sparse == 0) {
            return true;
        }
        for (const llama_token id : touched) {
            if (id >= n) {
                break;
            }
            if (no_number(row[id])) {
                return false;
            }
            patches.push_back({id, row[id], 0.0f});
        }
        if (patches.empty()) {
            return true;
        }
        if (patches.size() > (size_t) n / 8) {
            return false;
        }
        llama_token_data_array few = {patches.data(), patches.size(), -1, false};
        for (int i = 0; i < plan.n_sparse; ++i) {
            llama_sampler_apply(llama_sampler_chain_get(chain, plan.constrained + i), &few);
        }
        return true;
    }

    template <class Scan> void scan(const float * row, int n, Scan & by) const {
        int from = 0;
        for (const auto & patched : patches) {
            by.run(row, from, patched.id);
            by.one(patched.id, patched.logit);
            from = patched.id + 1;
        }
        by.run(row, from, n);
    }

    bool tied(const float * row, int n, size_t k) {
#ifdef __GLIBCXX__
        (void) row, (void) n, (void) k;
        return false;
#else
        for (size_t i = 1; i < k; ++i) {
            if (candidates[i - 1].logit == candidates[i].logit) {
                return true;
            }
        }
        std::vector<llama_token_data> found;
        at_least equals{found, candidates[k - 1].logit, k + 1};
        scan(row, n, equals);
        return found.size() > k;
#endif
    }

    bool reduce_top_k(const float * row, int n, llama_token_data_array & array) {
        const size_t k = std::min<int64_t>(plan.k, n);
        if (k > MOST_TOP) {
            return false;
        }
        best_k best(candidates, k);
        scan(row, n, best);
        if (best.bad) {
            return false;
        }
        best.sort();
        array = {candidates.data(), k, -1, true};
        return !tied(row, n, k);
    }

    bool reduce_min_p(const float * row, int n, llama_token_data_array & array) {
        greatest top;
        scan(row, n, top);
        if (top.bad) {
            return false;
        }
        candidates.clear();
        const float bound = std::max(-3.402823466e+38f, top.value()) + logf(plan.p);
        at_least kept{candidates, bound, (size_t) n / 4 + 1};
        scan(row, n, kept);
        array = {candidates.data(), candidates.size(), -1, false};
        return !candidates.empty() && candidates.size() >= plan.min_keep && candidates.size() <= (size_t) n / 4;
    }

    bool reduce_greedy(const float * row, int n, llama_token_data_array & array) {
        greatest top;
        scan(row, n, top);
        candidates.clear();
        at_least first{candidates, top.value(), 1};
        if (top.bad) {
            return false;
        }
        scan(row, n, first);
        array = {candidates.data(), 1, 0, false};
        return !candidates.empty();
    }

    // Does what the leading links do without a candidate for each token of the row. False where that cannot be had.
    bool shortcut(const float * row, int n, llama_token_data_array & array) {
        if (plan.first == LR_FIRST_OTHER || !patch(row, n)) {
            return false;
        }
        switch (plan.first) {
            case LR_FIRST_TOP_K:  return reduce_top_k(row, n, array);
            case LR_FIRST_MIN_P:  return reduce_min_p(row, n, array);
            case LR_FIRST_GREEDY: return reduce_greedy(row, n, array);
            default:              return false;
        }
    }

    int pick(const float * row, int n, llama_token * token) {
        if (plan.constrained) {
            masked.resize((size_t) n);
            lr_constraint_mask_row(*constraint(), row, n, masked.data());
            row = masked.data();
        }
        return pick_allowed(row, n, token);
    }

    // What `pick` does where nothing but `only` is allowed, whatever the logits are.
    int pick_only(llama_token only, int n, llama_token * token) {
        masked.assign((size_t) n, -INF);
        masked[(size_t) only] = 0.0f;
        return pick_allowed(masked.data(), n, token);
    }

    int pick_allowed(const float * row, int n, llama_token * token) {
        llama_token_data_array array;
        if (shortcut(row, n, array)) {
            const int links = llama_sampler_chain_n(chain);
            for (int i = plan.constrained + plan.n_sparse + 1; i < links; ++i) {
                llama_sampler_apply(llama_sampler_chain_get(chain, i), &array);
            }
        } else {
            int bad = 0;
            candidates.resize(n);
            for (int i = 0; i < n; ++i) {
                candidates[i] = {i, row[i], 0.0f};
                bad |= no_number(row[i]);
            }
            if (bad) {
                return LR_PICK_NO_NUMBER;
            }
            array = {candidates.data(), (size_t) n, -1, false};
            llama_sampler_apply(chain, &array);
        }
        return settle(array, token);
    }

    lr_constraint * constraint() const {
        return plan.constrained ? lr_constraint_of(llama_sampler_chain_get(chain, 0)) : nullptr;
    }

    int settle(const llama_token_data_array & array, llama_token * token) {
        ++(array.size == 1 ? n_single : n_several);
        pending = true;
        if (array.selected < 0 || array.selected >= (int64_t) array.size) {
            return LR_PICK_NOTHING;
        }
        const auto & chosen = array.data[array.selected];
        // `dist` takes the last candidate when every one is ruled out; that is no choice
        if (!(chosen.logit > -INF)) {
            return LR_PICK_RULED_OUT;
        }
        if (no_number(chosen.logit) || chosen.p != chosen.p) {
            return LR_PICK_OVERFLOW;
        }
        *token = chosen.id;
        return LR_PICK_DONE;
    }

    template <class Call> int guarded(Call call) {
        error.clear();
        try {
            return call();
        } catch (const std::exception & e) {
            error = e.what();
        } catch (...) {
            error = "a C++ exception of an unknown kind";
        }
        return LR_PICK_FAILED;
    }
};

lr_picker * lr_picker_new(void) {
    return new (std::nothrow) lr_picker;
}

void lr_picker_free(lr_picker * picker) {
    delete picker;
}

void lr_picker_plan(lr_picker * picker, llama_sampler * chain, lr_plan plan) {
    picker->chain = chain;
    picker->plan  = plan;
}

int lr_picker_bias(lr_picker * picker, llama_token token) {
    return picker->guarded([&] {
        picker->biased.push_back(token);
        picker->touch(token);
        return LR_PICK_DONE;
    });
}

void lr_picker_reset(lr_picker * picker) {
    picker->pending  = false;
    picker->n_single = picker->n_several = 0;
    picker->accepted.clear();
    picker->touched.clear();
    for (const llama_token token : picker->biased) {
        picker->touch(token);  // no more than there were: no allocation
    }
}

int lr_picker_copy(const lr_picker * from, lr_picker * to) {
    return to->guarded([&] {
        to->biased    = from->biased;
        to->touched   = from->touched;
        to->accepted  = from->accepted;
        to->pending   = from->pending;
        to->n_single  = from->n_single;
        to->n_several = from->n_several;
        return LR_PICK_DONE;
    });
}

const llama_token * lr_picker_accepted(const lr_picker * picker, size_t * n) {
    *n = picker->accepted.size();
    return picker->accepted.data();
}

int lr_picker_pick(lr_picker * picker, const float * row, int n_vocab, llama_token * token) {
    return picker->guarded([&] { return picker->pick(row, n_vocab, token); });
}

int lr_picker_pick_from(
        lr_picker * picker, const llama_token * ids, const float * logits, const float * probs, int n, llama_token * token) {
    return picker->guarded([&]() -> int {
        auto & candidates = picker->candidates;
        candidates.resize(n);
        for (int i = 0; i < n; ++i) {
            candidates[i] = {ids[i], logits[i], probs ? probs[i] : 0.0f};
            if (no_number(logits[i])) {
                return LR_PICK_NO_NUMBER;
            }
        }
        llama_token_data_array array = {candidates.data(), (size_t) n, -1, false};
        llama_sampler_apply(picker->chain, &array);
        return picker->settle(array, token);
    });
}

int lr_picker_accept(lr_picker * picker, llama_token token) {
    return picker->guarded([&] {
        picker->accepted.push_back(token);
        picker->touch(token);
        try {
            llama_sampler_accept(picker->chain, token);
        } catch (...) {
            picker->accepted.pop_back();
            throw;
        }
        picker->pending = false;
        return LR_PICK_DONE;
    });
}

bool lr_picker_pending(const lr_picker * picker) {
    return picker->pending;
}

int lr_picker_pick_only(lr_picker * picker, llama_token only, int n_vocab, llama_token * token) {
    return picker->guarded([&] { return picker->pick_only(only, n_vocab, token); });
}

void lr_picker_fail(lr_picker * picker, const char * why) {
    picker->guarded([&]() -> int { throw std::runtime_error(why); });
}

lr_constraint * lr_picker_constraint(const lr_picker * picker) {
    return picker->constraint();
}

int lr_picker_redraw(lr_picker * picker, llama_sampler * link) {
    return picker->guarded([&] {
        llama_token_data       data[2];
        llama_token_data_array array;
        for (size_t i = 0; i < picker->n_single + picker->n_several; ++i) {
            data[0] = {0, 0.0f, 0.0f};
            data[1] = {1, 0.0f, 0.0f};
            array   = {data, i < picker->n_single ? (size_t) 1 : (size_t) 2, -1, false};
            llama_sampler_apply(link, &array);
        }
        llama_sampler_accept(link, LLAMA_TOKEN_NULL - 1);  // none of these was meant
        return LR_PICK_DONE;
    });
}

const char * lr_picker_error(const lr_picker * picker) {
    return picker->error.c_str();
}

namespace {

struct rows {
    lr_picker **         pickers;
    const float * const * data;
    int                  n_vocab;
    llama_token *        tokens;
    int *                codes;

    void pick(int i) { codes[i] = lr_picker_pick(pickers[i], data[i], n_vocab, &tokens[i]); }
};

}  // namespace

void lr_pick_rows(lr_picker ** pickers, const float * const * data, int n, int n_vocab, int n_threads, llama_token * tokens,
                  int * codes) {
    // Below this many logits, threads take longer to wake up than the work takes. A row without a shortcut has each of
    // its logits written, read and compared several times.
    constexpr int64_t WORTH_A_THREAD = 1 << 18;
    constexpr int64_t NO_SHORTCUT    = 16;

    rows work = {pickers, data, n_vocab, tokens, codes};
    std::vector<int> native;
    int64_t          cost = 0;
    for (int i = 0; i < n; ++i) {
        if (pickers[i]->plan.calls_back) {
            work.pick(i);  // these want the GIL: one after another, on the thread that Python knows
        } else {
            native.push_back(i);
            cost += n_vocab * (pickers[i]->plan.first == LR_FIRST_OTHER ? NO_SHORTCUT : 1);
        }
    }
    struct job {
        rows *      work;
        const int * index;
    } each = {&work, native.data()};
    lr_pool_run((int) native.size(), cost < WORTH_A_THREAD ? 1 : n_threads, [](void * user, int i) {
        const auto * all = static_cast<job *>(user);
        all->work->pick(all->index[i]);
    }, &each);
}

llama_sampler * lr_link_new(lr_link_fn fn) {
    auto * made = new (std::nothrow) link{fn, nullptr};
    return made ? llama_sampler_init(&link_interface, made) : nullptr;
}

void lr_link_bind(llama_sampler * smpl, void * user) {
    static_cast<link *>(smpl->ctx)->user = user;
}
