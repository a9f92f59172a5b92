// What a step takes in: who takes part, and how many rows of each.
#include "loop.h"

#include <algorithm>
#include <limits>

namespace {

constexpr int32_t MIN_SLICE  = 8;     // rows; reading goes on however slow the machine is
constexpr int32_t BLOCK      = 64;    // rows that ggml's attention on the CPU computes together; fewer it computes one by one, which is slower
constexpr int32_t FIRST      = BLOCK; // rows that are read while nothing is measured yet
constexpr double  STOPPABLE  = 3.0;   // slices in one, where a cancel stops it: longer ones cost less a row
constexpr int32_t MOST_AHEAD = 128;  // tokens that an answer without an end in sight is taken to have
constexpr int     SET_STEPS  = 4;     // steps with one set of adapters while jobs with another wait
constexpr double  SMOOTHING  = 0.25;  // weight of the newest measurement

}  // namespace

// --- who takes part

bool lr_engine::choose(members & sampling, members & feeding) {
    members runnable;
    for (lr_job * job : jobs) {
        if (job->progress.end != LR_END_NONE || job->stalled) {
            continue;
        }
        if (job->hold_at > 0 && (int32_t) job->tokens.size() >= job->hold_at) {
            hold_back(job);
        } else {
            runnable.push_back(job);
        }
    }
    if (runnable.empty()) {
        return false;
    }
    const int32_t set = choose_set(runnable);
    std::string error;
    if (!activate(set, error)) {
        for (lr_job * job : runnable) {
            if (job->adapters == set) {
                end(job, LR_END_ERROR, LR_ERROR_DECODE, error);
            }
        }
        return false;
    }
    ++set_steps;
    for (lr_job * job : runnable) {
        if (job->adapters == set) {
            (job->reading() ? feeding : sampling).push_back(job);
        }
    }
    take_turns(sampling, feeding);
    return true;
}

// Whoever wants no more than the whole of an answer waits for those that came with it: all are read, in large slices, and then
// sample in the same steps. Not for longer than sampling takes it, nor for what it has overtaken or what came later.
bool lr_engine::waits_for(const members & sampling, const members & feeding) const {
    const double together = own_time(sampling.size() + feeding.size());
    return std::all_of(sampling.begin(), sampling.end(), [&](const lr_job * job) {
        int64_t reading = 0;
        for (const lr_job * other : feeding) {
            const bool with = other->created_us > job->created_us - config.slice_us && other->created_us <= job->progress.first_us;
            if (with && other->picker != nullptr && other->priority >= job->priority) {
                reading += other->n_left();
            }
        }
        const int32_t ahead = std::min(job->max_tokens - job->n_sampled(), MOST_AHEAD);
        return reading > 0 && (double) reading * block_row_us() <= ahead * together;
    });
}

// Whether what is read next to it must not slow it down: somebody streams it, or it goes first.
bool lr_engine::keeps_pace(const lr_job * job, const members & feeding) const {
    return !job->whole || job->priority > feeding.front()->priority;
}

// Where nobody streams, steps read and sample by turns: on a CPU a row costs the same in either, but less in a large slice.
void lr_engine::take_turns(members & sampling, members & feeding) {
    waiting.clear();
    watched.clear();
    const auto paced = [&](const lr_job * job) { return keeps_pace(job, feeding); };
    if (!sampling.empty() && !feeding.empty() && std::none_of(sampling.begin(), sampling.end(), paced)) {
        if (waits_for(sampling, feeding) || (stoppable && !read_only)) {
            waiting.swap(sampling);
        } else if (stoppable) {
            feeding.clear();
        }
    }
    read_only = sampling.empty();
    // what only reads is stopped for one that is over; not twice in a row, or cancels would keep the others from reading
    const bool goes_on = steps_back && !stopped;  // those that are left, without having lost more than a step
    if (stoppable && read_only && (feeding.size() + waiting.size() == 1 || goes_on)) {
        watched = feeding;
        watched.insert(watched.end(), waiting.begin(), waiting.end());
        for (const lr_job * job : goes_on ? feeding : members{}) {
            watched.insert(watched.end(), job->followers.begin(), job->followers.end());
        }
    }
}

// Of those with the highest priority; the active set for a few steps, and then the next.
int32_t lr_engine::choose_set(const members & runnable) const {
    const int32_t priority = runnable.front()->priority;
    int32_t lowest = std::numeric_limits<int32_t>::max(), next = lowest;
    bool    stays  = false;
    for (const lr_job * job : runnable) {
        if (job->priority != priority) {
            break;
        }
        stays  = stays || job->adapters == active_set;
        lowest = std::min(lowest, job->adapters);
        if (job->adapters > active_set) {
            next = std::min(next, job->adapters);
        }
    }
    if (stays && set_steps < SET_STEPS) {
        return active_set;
    }
    return next != std::numeric_limits<int32_t>::max() ? next : lowest;
}

bool lr_engine::activate(int32_t set, std::string & error) {
    if (set == active_set) {
        return true;
    }
    adapter_set none;
    const auto found = adapter_sets.find(set);
    adapter_set & wanted = found == adapter_sets.end() ? none : found->second;
    if (set != 0 && wanted.adapters.empty()) {
        error = "its adapters are not known";
        return false;
    }
    guarded inside(guard);
    llama_synchronize(ctx);
    if (llama_set_adapters_lora(ctx, wanted.adapters.data(), wanted.adapters.size(), wanted.scales.data()) != 0) {
        active_set = -1;
        error = "llama.cpp could not make the adapters active";
        return false;
    }
    active_set = set;
    set_steps  = 0;
    std::lock_guard<std::mutex> lock(mutex);
    ++counters.adapter_switches;
    return true;
}

// --- what rows cost

void lr_engine::measure(int32_t n_sampling, int32_t n_fed, int64_t took) {
    const auto blend = [](double old, double fresh) {
        return old <= 0 ? fresh : old + SMOOTHING * (fresh - old);
    };
    if (n_fed == 0) {
        own_us[n_sampling] = blend(own_us[n_sampling], (double) took);
    } else if (n_sampling > 0) {
        // what reading makes dearer for the others, too, counts as its own; what is known of those may be too much
        const double alone = row_us[n_fed + n_sampling >= BLOCK];
        mixed_row_us = blend(mixed_row_us, std::max({1.0, alone, ((double) took - own_time(n_sampling)) / n_fed}));
    }
    if (n_fed >= MIN_SLICE && (n_sampling == 0 || block_row_us() <= 0)) {
        double & few = row_us[0], & block = row_us[1];
        double & seen = n_fed >= BLOCK ? block : few;
        seen = blend(seen, n_sampling == 0 ? (double) took / n_fed : mixed_row_us);
        // what is known of the other may be from another depth, or of a slow moment; it would not be seen again
        if (n_fed < BLOCK && block > 0) {
            block = std::min(block, few);
        }
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.rows_fed += n_fed - n_forced;
    counters.rows_forced += n_forced;
    counters.rows_sampled += n_sampling;
    counters.step_us = n_fed == 0 ? own_us[n_sampling] : counters.step_us;
    counters.row_us  = block_row_us();
}

// What a row costs that is read in a block, in µs, as far as is known; 0 where nothing is.
double lr_engine::block_row_us() const {
    return row_us[1] > 0 ? row_us[1] : row_us[0];
}

// How long a step takes in which so many sample and nothing is read, in µs; 0 where nothing is known. Of other numbers the
// nearest tells.
double lr_engine::own_time(size_t n_sampling) const {
    const auto n = (int32_t) n_sampling;
    for (int32_t away = 0; away <= 256; ++away) {
        if (n - away > 0 && n - away <= 256 && own_us[n - away] > 0) {
            return own_us[n - away] * n / (n - away);
        }
        if (n + away <= 256 && own_us[n + away] > 0) {
            return own_us[n + away];
        }
    }
    return 0;
}

// How many rows a step has that only reads: whole blocks, and where a cancel stops it the nearest number of them.
int32_t lr_engine::slice_rows() const {
    const bool   stops  = !watched.empty();
    const double slice  = config.slice_us * (stops ? STOPPABLE : 1);
    const double blocks = std::min(slice / block_row_us() / BLOCK, 1e6);
    const auto   whole  = (int32_t) (stops ? blocks + 0.5 : blocks);
    if (whole > 0) {
        return whole * BLOCK;
    }
    const double row = row_us[0] > 0 ? row_us[0] : row_us[1];
    return std::clamp((int32_t) (slice / row), MIN_SLICE, BLOCK - 1);
}

// How many rows may be read in a step next to those that sample.
int32_t lr_engine::feed_budget(const members & sampling, const members & feeding) const {
    const int32_t room = config.n_batch - std::max(batch.n_tokens, (int32_t) sampling.size());
    if (block_row_us() <= 0) {
        return std::min(room, FIRST);
    }
    if (sampling.empty()) {
        return std::min(room, slice_rows());
    }
    const double slice = (double) config.slice_us;
    const double row   = mixed_row_us > 0 ? mixed_row_us : block_row_us();
    // who began to sample after the first of them came has no pace yet that it could keep
    const int64_t came  = feeding.front()->created_us;
    const bool    paced = std::any_of(sampling.begin(), sampling.end(), [&](const lr_job * job) {
        return keeps_pace(job, feeding) && job->progress.first_us != 0 && job->progress.first_us < came;
    });
    const double own  = own_time(sampling.size());
    const double time = paced && own > 0 ? std::min(slice, (config.pace - 1) * own) : slice;
    return std::min(room, std::max((int32_t) (time / row), MIN_SLICE));
}

// --- the batch

void lr_engine::put(lr_job * job, int32_t n_rows) {
    const bool all  = config.every_row || ((job->want & LR_WANT_LOGPROBS) && job->n_resident < job->n_fed);
    const bool last = job->picker != nullptr || (job->want & (LR_WANT_LAST | LR_WANT_EMBEDDINGS));
    n_rows = std::max(0, std::min({n_rows, job->most_rows, config.n_batch - batch.n_tokens}));
    if (job->mark_at > job->n_resident) {
        n_rows = std::min(n_rows, job->mark_at - job->n_resident);
    }
    if (all) {
        n_rows = std::min(n_rows, config.n_outputs - n_outputs);
    }
    job->step_rows = n_rows;
    job->first_row = batch.n_tokens;
    job->row       = -1;
    for (int32_t i = 0; i < n_rows; ++i) {
        const int32_t at  = batch.n_tokens++;
        const int32_t pos = job->n_resident + i;
        const bool reaches = pos + 1 == (int32_t) job->tokens.size();
        tokens[at]    = job->tokens[pos];
        positions[at] = pos;
        seq_ids[at]   = job->seq_id;
        outputs[at]   = all || (last && reaches);
        if (outputs[at]) {
            job->row = at;
            ++n_outputs;
        }
    }
}

// A row for each that samples. Of those that read the first gets half of what there is time for, then those with the
// least left to read, so that a long prompt does not keep short ones waiting, nor they it.
void lr_engine::compose(const members & sampling, const members & feeding) {
    batch.n_tokens = n_outputs = n_forced = 0;
    int32_t spare = (config.every_row ? config.n_outputs : config.n_batch) - (int32_t) sampling.size();
    for (lr_job * job : sampling) {
        put(job, 1 + std::max(0, std::min(job->n_left() - 1, spare)));
        const int32_t more = std::max(0, job->step_rows - 1);
        spare -= more;
        n_forced += more;
    }
    if (feeding.empty()) {
        return;
    }
    int32_t budget = feed_budget(sampling, feeding);
    members order(feeding);
    std::stable_sort(order.begin() + 1, order.end(), [](const lr_job * a, const lr_job * b) {
        return a->priority != b->priority ? a->priority > b->priority : a->n_left() < b->n_left();
    });
    int32_t others = 0;
    for (size_t i = 1; i < order.size() && others < budget; ++i) {
        others += order[i]->n_left();
    }
    int32_t share = std::max(budget - others, (budget + 1) / 2);
    for (lr_job * job : order) {
        put(job, std::min(job->n_left(), share));
        budget -= job->step_rows;
        share   = budget;
    }
}
