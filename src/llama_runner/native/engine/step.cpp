// One step: who takes part, the batch, the decode and what becomes of it.
#include "loop.h"

#include "../shared.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <limits>
#include <thread>

namespace {

constexpr int32_t MIN_SLICE  = 8;     // rows; reading goes on however slow the machine is
constexpr int32_t FIRST      = 64;    // rows that are read while nothing is measured yet
constexpr double  STOPPABLE  = 2.5;   // slices in one, where a cancel stops it: longer ones cost less a row
constexpr int32_t MOST_AHEAD = 128;   // tokens that an answer without an end in sight is taken to have
constexpr int32_t MOST_FORCED = 16;   // tokens that come with a sampled one: more rows would keep other jobs waiting
constexpr int     SET_STEPS  = 4;     // steps with one set of adapters while jobs with another wait
constexpr double  SMOOTHING  = 0.25;  // weight of the newest measurement
constexpr int     NOT_COMPUTED = -100;

// Gives the context's guard back, whatever happens.
struct guarded {
    lr_guard * guard;

    // Python may be looking at what the last step left, for the moment in which a pause ends
    explicit guarded(lr_guard * guard) : guard(guard) {
        while (!lr_guard_try_exclusive(guard)) {
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }
    ~guarded() { lr_guard_end_exclusive(guard); }
};

std::string pick_error(const lr_job * job, int code) {
    switch (code) {
        case LR_PICK_NO_NUMBER: return "the logits have NaN or +inf among them: no token is more likely than another";
        case LR_PICK_NOTHING:   return "the samplers left no token to select";
        case LR_PICK_RULED_OUT: return "every token is ruled out: the logits, biases or grammar leave no candidate";
        case LR_PICK_OVERFLOW:  return "the samplers made numbers that no float32 holds: a temperature or penalty is too extreme";
        default:                return std::string("a sampler failed: ") + lr_picker_error(job->picker);
    }
}

}  // namespace

void lr_engine::step() {
    end_due(lr_now_us());
    if (!poisoned.empty()) {
        for (lr_job * job : jobs) {
            end(job, LR_END_ERROR, LR_ERROR_POISONED, poisoned);
        }
    }
    members sampling, feeding;
    if (choose(sampling, feeding)) {
        guarded inside(guard);
        compute_or_split(sampling, feeding);
    }
    drop_ended();
}

// --- who takes part

bool lr_engine::choose(members & sampling, members & feeding) {
    members runnable;
    for (lr_job * job : jobs) {
        if (job->progress.end == LR_END_NONE && !job->stalled) {
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
bool lr_engine::hold_back(const members & sampling, const members & feeding) const {
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
        return reading > 0 && (double) reading * row_us <= ahead * together;
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
        if (hold_back(sampling, feeding) || (stoppable && !read_only)) {
            waiting.swap(sampling);
        } else if (stoppable) {
            feeding.clear();
        }
    }
    read_only = sampling.empty();
    // what only reads is stopped for one that is over; not twice in a row, or cancels would keep the others from reading
    if (stoppable && read_only && (feeding.size() + waiting.size() == 1 || (steps_back && !stopped))) {
        watched = feeding;
        watched.insert(watched.end(), waiting.begin(), waiting.end());
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

// --- the batch

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

// How many rows may be read in a step next to those that sample.
int32_t lr_engine::feed_budget(const members & sampling, const members & feeding) const {
    const int32_t room = config.n_batch - std::max(batch.n_tokens, (int32_t) sampling.size());
    if (row_us <= 0) {
        return std::min(room, FIRST);
    }
    const double slice = config.slice_us * (watched.empty() ? 1 : STOPPABLE);
    const double row   = !sampling.empty() && mixed_row_us > 0 ? mixed_row_us : row_us;
    // who began to sample after the first of them came has no pace yet that it could keep
    const int64_t came  = feeding.front()->created_us;
    const bool    paced = std::any_of(sampling.begin(), sampling.end(), [&](const lr_job * job) {
        return keeps_pace(job, feeding) && job->progress.first_us != 0 && job->progress.first_us < came;
    });
    const double own  = own_time(sampling.size());
    const double time = paced && own > 0 ? std::min(slice, (config.pace - 1) * own) : slice;
    return std::min(room, std::max((int32_t) (time / row), MIN_SLICE));
}

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

// --- the decode

// What llama_decode would do by itself, and what it would fail at later.
int lr_engine::prepare(std::string & error) {
    char * why  = nullptr;
    int    code = lr_reserve(ctx, adapter_lock, &why);
    if (code == 0 && lr_memory_pending(ctx)) {
        code = lr_memory_flush(ctx, abort, &why);
    }
    if (why != nullptr) {
        error = why;
        lr_free(why);
    }
    return code == 0 ? 0 : NOT_COMPUTED;
}

int lr_engine::decode(bool stops, std::string & error) {
    if (fail_n > 0) {
        --fail_n;
        return fail_code;
    }
    int code;
    lr_abort_arm(abort, false, 0);
    if (stops) {
        lr_abort_watch(abort, [](void * jobs) {
            const auto & those = *static_cast<const members *>(jobs);
            const int64_t now = lr_now_us();
            return std::any_of(those.begin(), those.end(), [now](const lr_job * job) { return job->is_over(now); });
        }, &watched);
    }
    try {
        code = prepare(error);
        if (code == 0) {
            code = llama_decode(ctx, batch);
            llama_synchronize(ctx);
        }
    } catch (const std::bad_alloc &) {
        code  = -2;
        error = "out of memory";
    } catch (const std::exception & e) {
        code  = NOT_COMPUTED;
        error = e.what();
    }
    if (lr_is_abort(error.c_str())) {
        const int32_t threads = batch.n_tokens == 1 ? llama_n_threads(ctx) : llama_n_threads_batch(ctx);
        std::lock_guard<std::mutex> lock(mutex);
        poisoned = error;
        stranded = threads > 1;
        if (stranded) {
            lr_thread_strand();
        }
    }
    return code;
}

// Decodes the batch; where that fails, the memory is as it was before.
int lr_engine::compute(const members & those, std::string & error) {
    const int64_t began = lr_now_us();
    int32_t before[256], tails[256];
    uint8_t emptied[256] = {};
    std::fill_n(before, 256, -2);
    for (const lr_job * job : those) {
        before[job->seq_id] = job->n_resident - 1;
    }
    lr_memory_tails(ctx, tails);
    const bool stops = !watched.empty();
    const int  code  = decode(stops, error);
    stopped = stops && code == 2;
    if (code != 0 && poisoned.empty()) {
        lr_memory_take_back(ctx, before, tails, code != 1 && code != -1, emptied);
        for (lr_job * job : jobs) {  // a state of one that took no part may have been moved for the batch, too
            if (emptied[job->seq_id]) {
                job->n_resident = 0;  // a state that cannot step back: all of it is read again
                std::lock_guard<std::mutex> lock(job->mutex);
                job->progress.n_resident = 0;
            }
        }
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.decode_us += lr_now_us() - began;
    counters.steps += 1;
    counters.failed_decodes += code != 0;
    if (code == 0) {
        counters.rows += batch.n_tokens;
    } else {
        counters.retried_rows += batch.n_tokens;
    }
    return code;
}

// Decodes; what fails is taken apart until the failure is one job's own, and its rows are as few as can be.
void lr_engine::compute_or_split(const members & sampling, const members & feeding) {
    const int64_t began = lr_now_us();
    compose(sampling, feeding);
    members those;
    for (const auto * list : {&sampling, &feeding}) {
        for (lr_job * job : *list) {
            if (job->step_rows > 0) {
                those.push_back(job);
            }
        }
    }
    if (those.empty()) {
        return;
    }
    std::string error;
    const int code = compute(those, error);
    if (code == 0) {
        const auto n_sampling = (int32_t) std::count_if(sampling.begin(), sampling.end(), [](const lr_job * job) {
            return job->step_rows > 0;  // a small batch may have no room for all
        });
        measure(n_sampling, batch.n_tokens - n_sampling, lr_now_us() - began);
        harvest(those);
        return;
    }
    if (stopping || !poisoned.empty()) {
        return;  // everything ends in a moment
    }
    if (stopped) {
        return;  // the next step does without the one that is over
    }
    const bool reads = sampling.empty();
    if (!reads && those.size() > sampling.size()) {
        compute_or_split(sampling, {});  // those that read wait for the next step
        return;
    }
    if (those.size() > 1) {
        // halves: what goes first in the order gets its chance first
        const auto middle = those.begin() + (long) those.size() / 2;
        for (const members & half : {members(those.begin(), middle), members(middle, those.end())}) {
            if (poisoned.empty()) {
                compute_or_split(reads ? members{} : half, reads ? half : members{});
            }
        }
        return;
    }
    lr_job * job = those.front();
    const int32_t rows = job->step_rows;
    if (reads && rows > 1 && code != 2) {
        job->most_rows = rows / 2;
        compute_or_split({}, those);
        job->most_rows = std::numeric_limits<int32_t>::max();
        return;
    }
    fail(those, code, error);
}

// A job that failed alone.
void lr_engine::fail(const members & those, int code, const std::string & error) {
    for (lr_job * job : those) {
        if (code == 1) {
            // Python decides: evict, preempt, or give up on it
            job->stalled = true;
            std::lock_guard<std::mutex> lock(mutex);
            raise(LR_EVENT_ROOM);
        } else if (code != 2) {  // 2: stopped by an abort() from outside; the next step tries again
            end(job, LR_END_ERROR, code == -2 ? LR_ERROR_MEMORY : LR_ERROR_DECODE,
                error.empty() ? "llama_decode returned " + std::to_string(code) : error);
        }
    }
}

void lr_engine::measure(int32_t n_sampling, int32_t n_fed, int64_t took) {
    const auto blend = [](double old, double fresh) {
        return old <= 0 ? fresh : old + SMOOTHING * (fresh - old);
    };
    if (n_fed == 0) {
        own_us[n_sampling] = blend(own_us[n_sampling], (double) took);
    } else if (n_sampling > 0) {
        // what reading makes dearer for the others, too, counts as its own; what is known of those may be too much
        mixed_row_us = blend(mixed_row_us, std::max({1.0, row_us, ((double) took - own_time(n_sampling)) / n_fed}));
    }
    if (n_fed >= MIN_SLICE && (n_sampling == 0 || row_us <= 0)) {
        row_us = blend(row_us, n_sampling == 0 ? (double) took / n_fed : mixed_row_us);
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.rows_fed += n_fed - n_forced;
    counters.rows_forced += n_forced;
    counters.rows_sampled += n_sampling;
    counters.step_us = n_fed == 0 ? own_us[n_sampling] : counters.step_us;
    counters.row_us  = row_us;
}

// --- after it

void lr_engine::harvest(const members & those) {
    const int64_t began = lr_now_us();
    members due;
    for (lr_job * job : those) {
        const int32_t first = job->n_resident;
        job->n_resident += job->step_rows;
        // what was given, or sampled and lost again
        const int32_t known = std::max(job->n_fed, job->n_reached);
        if (first < known) {
            std::lock_guard<std::mutex> lock(job->mutex);
            job->progress.n_computed += std::min(job->n_resident, known) - first;
            job->progress.n_resident = job->n_resident;
            job->progress.n_reached  = std::max(job->n_reached, job->n_resident);
        }
        job->n_reached = std::max(job->n_reached, job->n_resident);
        if (first < job->n_fed) {
            harvest_fed(job, job->first_row, first);
        }
        job->step_rows = 0;
        if (job->mark_at > 0 && job->n_resident == job->mark_at) {
            llama_memory_seq_rm(memory, job->mark_seq, -1, -1);
            llama_memory_seq_cp(memory, job->seq_id, job->mark_seq, -1, -1);
            job->mark_at = 0;
            std::lock_guard<std::mutex> lock(job->mutex);
            job->progress.marked = true;
        }
        if (job->watch_at > 0 && job->n_resident >= job->watch_at) {
            job->watch_at = 0;
            std::lock_guard<std::mutex> lock(mutex);
            raise(LR_EVENT_WAKE);
        }
        if (job->row >= 0 && job->picker != nullptr && job->n_left() == 0) {
            job->logits = llama_get_logits_ith(ctx, job->row);
            due.push_back(job);
            lead(job, due);
        }
    }
    run_processors(due);
    sample(due);
    tell_ready();
    std::lock_guard<std::mutex> lock(mutex);
    counters.sample_us += lr_now_us() - began;
}

// What the tokens that were given leave behind: copies, since the next step overwrites the context's own.
void lr_engine::harvest_fed(lr_job * job, int32_t first_row, int32_t first) {
    const bool complete = job->n_resident >= job->n_fed;
    if (job->want & LR_WANT_LOGPROBS) {
        for (int32_t i = std::max(first, job->want_from - 1); i < std::min(job->n_resident, job->n_fed - 1); ++i) {
            const lr_rows scored = {llama_get_logits_ith(ctx, first_row + i - first), 1, n_vocab, n_vocab};
            int64_t bad;
            if (lr_logprobs(&scored, &job->tokens[i + 1], &job->fed_logprobs[i + 1 - job->want_from], 1, &bad) !=
                LR_SCORES_OK) {
                end(job, LR_END_ERROR, LR_ERROR_SAMPLING,
                    "the logits have NaN or infinities among them: tokens have no probability");
            }
        }
    }
    std::lock_guard<std::mutex> lock(job->mutex);
    if (!complete) {
        return;
    }
    job->progress.fed_us = lr_now_us();
    if ((job->want & LR_WANT_LAST) && job->row >= 0) {
        const float * logits = llama_get_logits_ith(ctx, job->row);
        job->last_logits.assign(logits, logits + n_vocab);
    }
    if ((job->want & LR_WANT_EMBEDDINGS) && job->row >= 0) {
        const bool pooled = llama_pooling_type(ctx) > LLAMA_POOLING_TYPE_NONE;
        const float * found = pooled ? llama_get_embeddings_seq(ctx, job->seq_id) : llama_get_embeddings_ith(ctx, job->row);
        if (found != nullptr) {
            job->embedding.assign(found, found + llama_model_n_embd_out(llama_get_model(ctx)));
        }
    }
}

// Followers of a job that has just been fed share its cells and its logits from here on.
void lr_engine::lead(lr_job * job, members & due) {
    members followers;
    followers.swap(job->followers);
    for (lr_job * follower : followers) {
        llama_memory_seq_rm(memory, follower->seq_id, -1, -1);
        llama_memory_seq_cp(memory, job->seq_id, follower->seq_id, -1, -1);
        follower->n_resident = job->n_resident;
        follower->arrival    = arrivals++;
        follower->logits     = job->logits;
        follower->row        = job->row;
        jobs.push_back(follower);
        {
            std::lock_guard<std::mutex> lock(follower->mutex);
            follower->progress.fed_us     = lr_now_us();
            follower->progress.n_resident = job->n_resident;
            follower->progress.n_reached = follower->n_reached = job->n_resident;
        }
        if (!follower->cancelled.load(std::memory_order_relaxed)) {
            due.push_back(follower);
        }
    }
}

// One call of Python for all rows that want it. What it fails at costs those rows alone.
void lr_engine::run_processors(members & due) {
    processing.clear();
    for (lr_job * job : due) {
        if (job->processor >= 0) {
            job->processed.resize(n_vocab);
            processing.push_back({job->tag, job->processor, job->tokens.data(), (int32_t) job->tokens.size(), job->logits,
                                  job->processed.data(), false});
        }
    }
    if (processing.empty()) {
        return;
    }
    process(process_user, processing.data(), (int32_t) processing.size());
    size_t i = 0;
    members left;
    for (lr_job * job : due) {
        if (job->processor < 0) {
            left.push_back(job);
        } else if (processing[i++].failed) {
            end(job, LR_END_ERROR, LR_ERROR_SAMPLING, "the logits processor failed");
        } else {
            job->logits = job->processed.data();
            left.push_back(job);
        }
    }
    due.swap(left);
}

void lr_engine::sample(members & due) {
    const auto n = (int32_t) due.size();
    if (n == 0) {
        return;
    }
    pickers.clear();
    rows.clear();
    for (lr_job * job : due) {
        pickers.push_back(job->picker);
        rows.push_back(job->logits);
    }
    picked.assign(n, -1);
    codes.assign(n, 0);
    lr_pick_rows(pickers.data(), rows.data(), n, n_vocab, 1, picked.data(), codes.data());
    int64_t gaps = 0, gap_us = 0, forced = 0;
    const int64_t now = lr_now_us();
    for (int32_t i = 0; i < n; ++i) {
        lr_job * job = due[i];
        int code = codes[i];
        if (code == LR_PICK_DONE) {
            code = lr_picker_accept(job->picker, picked[i]);
        }
        if (code != LR_PICK_DONE) {
            end(job, LR_END_ERROR, LR_ERROR_SAMPLING, pick_error(job, code));
            continue;
        }
        const int64_t gap = job->accept(picked[i], n_vocab, now);
        gaps += gap > 0;
        gap_us += gap;
        job->n_forced = 0;
        if (!force(job, now)) {
            end(job, LR_END_ERROR, LR_ERROR_SAMPLING, pick_error(job, LR_PICK_FAILED));
        }
        forced += job->n_forced;
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.tokens_sampled += n;
    counters.tokens_forced += forced;
    counters.gaps += gaps;
    counters.gap_us += gap_us;
}

// What a constraint leaves no choice about comes with the token before it, so that its rows are decoded together; not where
// somebody wants to see each row of logits.
bool lr_engine::force(lr_job * job, int64_t now) {
    lr_constraint * constraint = lr_picker_constraint(job->picker);
    if (constraint == nullptr || job->n_logprobs >= 0 || job->processor >= 0) {
        return true;
    }
    llama_token   forced[MOST_FORCED];
    const int32_t n = job->progress.end == LR_END_NONE ? lr_constraint_forced(constraint, forced, MOST_FORCED) : 0;
    if (n < 0) {
        return lr_picker_fail(job->picker, lr_constraint_error(constraint)), false;
    }
    for (int32_t i = 0; i < n && job->progress.end == LR_END_NONE; ++i) {
        if (!job->force(forced[i], n_vocab, now)) {
            return false;
        }
    }
    return true;
}

void lr_engine::tell_ready() {
    std::vector<uint64_t> ready;
    for (lr_job * job : jobs) {
        if (job->notify) {
            std::lock_guard<std::mutex> lock(job->mutex);
            if (!job->announced && job->has_output()) {
                job->announced = true;
                ready.push_back(job->tag);
            }
        }
    }
    if (ready.empty()) {
        return;
    }
    std::lock_guard<std::mutex> lock(mutex);
    ready_tags.insert(ready_tags.end(), ready.begin(), ready.end());
    raise(LR_EVENT_OUTPUT);
}
