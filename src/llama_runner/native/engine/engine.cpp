#include "job.h"

#include "../shared.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <system_error>
#include <thread>

namespace {

constexpr int32_t MIN_SLICE = 8;     // rows; reading goes on however slow the machine is
constexpr auto    STALLED_LOOK = std::chrono::milliseconds(50);
constexpr double  SMOOTHING = 0.25;  // weight of the newest measurement

int64_t now_us() {
    return llama_time_us();
}

}  // namespace

struct lr_engine {
    lr_engine(llama_context * ctx, lr_guard * guard, lr_abort * abort, const lr_engine_config & config);
    ~lr_engine();

    void run();
    void stop();
    void raise(int events);

    llama_context *        ctx;
    llama_memory_t         memory;
    lr_guard *             guard;
    lr_abort *             abort;
    const lr_engine_config config;
    const int32_t          n_vocab;

    std::mutex              mutex;
    std::condition_variable work;    // the thread waits here
    std::condition_variable halted;  // whoever paused waits here
    std::condition_variable events_changed;
    int                     pauses   = 0;
    bool                    stepping = false;
    bool                    stopping = false;
    bool                    running  = false;
    std::vector<lr_job *>   inbox;  // references held
    int                     events = 0;
    std::vector<uint64_t>   ended_tags, ready_tags;
    lr_engine_counters      counters{};

    std::thread thread;

private:
    friend void lr_engine_fail(lr_engine *, lr_job *, int32_t, const char *);
    friend bool lr_engine_take_out(lr_engine *, lr_job *);
    friend void lr_engine_follow(lr_engine *, lr_job *, lr_job *);
    friend void lr_engine_unstall(lr_engine *);

    // --- the thread's own, or of whoever has paused it
    std::vector<lr_job *> jobs;  // in the order in which they go first; references held
    uint64_t              arrivals = 0;
    std::string           poisoned;
    double                step_us = 0, row_us = 0;

    // the batch
    std::vector<llama_token>    tokens;
    std::vector<llama_pos>      positions;
    std::vector<int32_t>        n_seq_ids;
    std::vector<llama_seq_id>   seq_ids;
    std::vector<llama_seq_id *> seq_id_rows;
    std::vector<int8_t>         outputs;
    llama_batch                 batch{};
    std::vector<llama_token_data> candidates;

    void step();
    void admit();
    void end_due(int64_t now);
    void end(lr_job * job, lr_job_end how, lr_job_error error, const std::string & why);
    void drop_ended();
    int32_t feed_budget(int32_t n_sampling) const;
    void compose(const std::vector<lr_job *> & sampling, const std::vector<lr_job *> & feeding);
    void put(lr_job * job, int32_t n_rows);
    int  compute(std::string & error);
    void compute_or_split(const std::vector<lr_job *> & sampling, const std::vector<lr_job *> & feeding);
    void fail(std::vector<lr_job *> members, int code, const std::string & error);
    void take_back(lr_job * job);
    void harvest(const std::vector<lr_job *> & members);
    void harvest_fed(lr_job * job, int32_t first_row, int32_t first);
    void sample(lr_job * job, const float * logits);
    void lead(lr_job * job, const float * logits);
    llama_token pick(lr_job * job, const float * logits, std::string & error);
    void measure(int32_t n_sampling, int32_t n_fed, int64_t took);
};

lr_engine::lr_engine(llama_context * ctx, lr_guard * guard, lr_abort * abort, const lr_engine_config & config)
    : ctx(ctx), memory(llama_get_memory(ctx)), guard(guard), abort(abort), config(config),
      n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))), tokens(config.n_batch),
      positions(config.n_batch), n_seq_ids(config.n_batch, 1), seq_ids(config.n_batch), seq_id_rows(config.n_batch),
      outputs(config.n_batch), candidates(n_vocab) {
    for (int32_t i = 0; i < config.n_batch; ++i) {
        seq_id_rows[i] = &seq_ids[i];
    }
    batch.token    = tokens.data();
    batch.pos      = positions.data();
    batch.n_seq_id = n_seq_ids.data();
    batch.seq_id   = seq_id_rows.data();
    batch.logits   = outputs.data();
}

lr_engine::~lr_engine() {
    stop();
}

void lr_engine::raise(int what) {
    events |= what;
    events_changed.notify_all();
}

// --- the thread

void lr_engine::run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
        const int64_t idle_from = now_us();
        const auto due = [this] {
            return stopping || (pauses == 0 && (!inbox.empty() || counters.n_jobs > counters.n_stalled));
        };
        if (counters.n_jobs > 0) {
            work.wait_for(lock, STALLED_LOOK, due);  // those held back can still be cancelled, or run out of time
        } else {
            work.wait(lock, due);
        }
        counters.idle_us += now_us() - idle_from;
        if (stopping) {
            break;
        }
        if (pauses > 0) {
            continue;
        }
        admit();
        stepping = true;
        lock.unlock();
        step();
        lock.lock();
        stepping = false;
        counters.n_jobs = (int32_t) jobs.size();
        counters.n_stalled = (int32_t) std::count_if(jobs.begin(), jobs.end(), [](lr_job * job) { return job->stalled; });
        if (pauses > 0) {
            halted.notify_all();
        }
    }
    admit();
    lock.unlock();
    for (lr_job * job : jobs) {
        end(job, LR_END_ERROR, poisoned.empty() ? LR_ERROR_CLOSED : LR_ERROR_POISONED, poisoned);
    }
    drop_ended();
    lock.lock();
    running = false;
    counters.n_jobs = counters.n_stalled = 0;
    raise(LR_EVENT_STOPPED);
    halted.notify_all();
}

// The larger priority first, then the earlier arrival. The caller holds the mutex.
void lr_engine::admit() {
    for (lr_job * job : inbox) {
        job->arrival = arrivals++;
        job->stalled = false;
        jobs.push_back(job);
    }
    inbox.clear();
    std::stable_sort(jobs.begin(), jobs.end(), [](const lr_job * a, const lr_job * b) {
        return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
    });
}

void lr_engine::step() {
    const int64_t began = now_us();
    end_due(began);
    std::vector<lr_job *> sampling, feeding;
    for (lr_job * job : jobs) {
        if (job->progress.end == LR_END_NONE && !job->stalled) {
            (job->reading() ? feeding : sampling).push_back(job);
        }
    }
    if (sampling.empty() && feeding.empty()) {
        drop_ended();
        return;
    }
    // Python may be looking at what the last step left, for the moment in which a pause ends
    while (!lr_guard_try_exclusive(guard)) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    compute_or_split(sampling, feeding);
    lr_guard_end_exclusive(guard);
    drop_ended();
}

void lr_engine::end_due(int64_t now) {
    for (lr_job * job : jobs) {
        if (job->cancelled.load(std::memory_order_relaxed)) {
            end(job, LR_END_CANCELLED, LR_ERROR_NONE, "");
        } else if (job->deadline_us != 0 && now >= job->deadline_us) {
            end(job, LR_END_TIMEOUT, LR_ERROR_NONE, "");
        } else if (job->chain == nullptr && job->n_left() == 0) {
            end(job, LR_END_FED, LR_ERROR_NONE, "");
        }
    }
}

void lr_engine::end(lr_job * job, lr_job_end how, lr_job_error error, const std::string & why) {
    job->finish(how, error, why);
}

// Lets go of jobs that have ended, and says so. Followers of a leader that never got there go on by themselves.
void lr_engine::drop_ended() {
    std::vector<lr_job *> left, orphans;
    std::vector<uint64_t> tags;
    for (lr_job * job : jobs) {
        if (job->progress.end == LR_END_NONE) {
            left.push_back(job);
            continue;
        }
        orphans.insert(orphans.end(), job->followers.begin(), job->followers.end());
        job->followers.clear();
        tags.push_back(job->tag);
        job->drop();
    }
    jobs.swap(left);
    if (tags.empty()) {
        return;
    }
    std::lock_guard<std::mutex> lock(mutex);
    if (!orphans.empty()) {
        orphans.front()->followers.assign(orphans.begin() + 1, orphans.end());
        inbox.push_back(orphans.front());
    }
    ended_tags.insert(ended_tags.end(), tags.begin(), tags.end());
    raise(LR_EVENT_ENDED);
}

// --- a step

// How many rows may be read in a step next to `n_sampling` rows that sample.
int32_t lr_engine::feed_budget(int32_t n_sampling) const {
    const int32_t room = config.n_batch - n_sampling;
    if (row_us <= 0) {
        return std::min(room, 64);  // nothing is measured yet
    }
    double time = config.slice_us;
    if (n_sampling > 0 && step_us > 0) {
        time = std::min(time, config.pace * step_us) - step_us;
    }
    return std::max(std::min(room, (int32_t) (time / row_us)), std::min(room, MIN_SLICE));
}

void lr_engine::put(lr_job * job, int32_t n_rows) {
    const bool all  = (job->want & LR_WANT_LOGPROBS) && job->n_resident < job->n_fed;
    const bool last = job->chain != nullptr || (job->want & (LR_WANT_LAST | LR_WANT_EMBEDDINGS));
    job->step_rows = n_rows;
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
        }
    }
}

void lr_engine::compose(const std::vector<lr_job *> & sampling, const std::vector<lr_job *> & feeding) {
    batch.n_tokens = 0;
    for (lr_job * job : sampling) {
        put(job, 1);
    }
    int32_t budget = feeding.empty() ? 0 : feed_budget((int32_t) sampling.size());
    for (lr_job * job : feeding) {
        const int32_t n = std::min({job->n_left(), budget, config.n_batch - batch.n_tokens});
        put(job, std::max(n, 0));
        budget -= job->step_rows;
    }
}

int lr_engine::compute(std::string & error) {
    const int64_t began = now_us();
    int code;
    lr_abort_arm(abort, false, 0);
    try {
        code = llama_decode(ctx, batch);
        llama_synchronize(ctx);
    } catch (const std::bad_alloc &) {
        code  = -2;
        error = "out of memory";
    } catch (const std::exception & e) {
        code  = -100;
        error = e.what();
        if (lr_is_abort(e.what())) {
            poisoned = error;
        }
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.decode_us += now_us() - began;
    counters.steps += 1;
    counters.failed_decodes += code != 0;
    if (code == 0) {
        counters.rows += batch.n_tokens;
    }
    return code;
}

// Decodes; what fails is taken apart until the failure is one job's own.
void lr_engine::compute_or_split(const std::vector<lr_job *> & sampling, const std::vector<lr_job *> & feeding) {
    const int64_t began = now_us();
    compose(sampling, feeding);
    std::vector<lr_job *> members(sampling);
    for (lr_job * job : feeding) {
        if (job->step_rows > 0) {
            members.push_back(job);
        }
    }
    std::string error;
    const int code = compute(error);
    if (code == 0) {
        const int32_t n_fed = batch.n_tokens - (int32_t) sampling.size();
        measure((int32_t) sampling.size(), n_fed, now_us() - began);
        harvest(members);
        return;
    }
    for (lr_job * job : members) {
        take_back(job);
    }
    if (stopping || !poisoned.empty()) {
        if (!poisoned.empty()) {
            for (lr_job * job : jobs) {
                end(job, LR_END_ERROR, LR_ERROR_POISONED, poisoned);
            }
        }
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex);
        counters.retried_rows += batch.n_tokens;
    }
    if (!sampling.empty() && members.size() > sampling.size()) {
        compute_or_split(sampling, {});  // those that read wait for the next step
        return;
    }
    if (members.size() > 1) {
        // halves: what goes first in the order gets its chance first
        const auto middle = members.begin() + (long) members.size() / 2;
        const std::vector<lr_job *> first(members.begin(), middle), second(middle, members.end());
        const bool reads = sampling.empty();
        compute_or_split(reads ? std::vector<lr_job *>{} : first, reads ? first : std::vector<lr_job *>{});
        if (poisoned.empty()) {
            compute_or_split(reads ? std::vector<lr_job *>{} : second, reads ? second : std::vector<lr_job *>{});
        }
        return;
    }
    fail(members, code, error);
}

// A job that failed alone.
void lr_engine::fail(std::vector<lr_job *> members, int code, const std::string & error) {
    for (lr_job * job : members) {
        if (code == 1) {
            // Python decides: evict, preempt, or give up on it
            job->stalled = true;
            std::lock_guard<std::mutex> lock(mutex);
            raise(LR_EVENT_ROOM);
        } else if (code == 2) {
            // stopped by an abort() from outside: the next step tries again
        } else {
            end(job, LR_END_ERROR, code == -2 && !error.empty() ? LR_ERROR_MEMORY : LR_ERROR_DECODE,
                error.empty() ? "llama_decode returned " + std::to_string(code) : error);
        }
    }
}

// Back to what was resident before the step. Upstream rolls back by itself in some cases, and not in others.
void lr_engine::take_back(lr_job * job) {
    if (job->step_rows == 0) {
        return;
    }
    if (!llama_memory_seq_rm(memory, job->seq_id, job->n_resident, -1)) {
        // a recurrent memory cannot step back: read it again from the start
        llama_memory_seq_rm(memory, job->seq_id, -1, -1);
        job->n_resident = 0;
    }
    job->step_rows = 0;
}

void lr_engine::measure(int32_t n_sampling, int32_t n_fed, int64_t took) {
    const auto blend = [](double old, double fresh) {
        return old <= 0 ? fresh : old + SMOOTHING * (fresh - old);
    };
    if (n_fed == 0) {
        step_us = blend(step_us, (double) took);
    } else if (n_fed >= MIN_SLICE) {
        row_us = blend(row_us, std::max(1.0, (double) took - (n_sampling > 0 ? step_us : 0)) / n_fed);
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.rows_fed += n_fed;
    counters.rows_sampled += n_sampling;
    counters.step_us = step_us;
    counters.row_us  = row_us;
}

// --- after a decode

void lr_engine::harvest(const std::vector<lr_job *> & members) {
    const int64_t began = now_us();
    int32_t row = 0, sampled = 0;
    std::vector<uint64_t> ready;
    for (lr_job * job : members) {
        const int32_t first = job->n_resident;
        job->n_resident += job->step_rows;
        if (first < job->n_fed) {
            harvest_fed(job, row, first);
        }
        row += job->step_rows;
        job->step_rows = 0;
        if (job->row >= 0 && job->chain != nullptr && job->n_left() == 0) {
            const float * logits = llama_get_logits_ith(ctx, job->row);
            lead(job, logits);
            sample(job, logits);
            ++sampled;
        }
        if (job->notify && !job->announced) {
            std::lock_guard<std::mutex> lock(job->mutex);
            if (job->has_output()) {
                job->announced = true;
                ready.push_back(job->tag);
            }
        }
    }
    std::lock_guard<std::mutex> lock(mutex);
    counters.sample_us += now_us() - began;
    counters.tokens_sampled += sampled;
    if (!ready.empty()) {
        ready_tags.insert(ready_tags.end(), ready.begin(), ready.end());
        raise(LR_EVENT_OUTPUT);
    }
}

// What the tokens that were given leave behind: copies, since the next step overwrites the context's own.
void lr_engine::harvest_fed(lr_job * job, int32_t first_row, int32_t first) {
    const bool complete = job->n_resident >= job->n_fed;
    if (job->want & LR_WANT_LOGPROBS) {
        for (int32_t i = first; i < std::min(job->n_resident, job->n_fed - 1); ++i) {
            if (i + 1 >= job->want_from) {
                const float * logits = llama_get_logits_ith(ctx, first_row + i - first);
                job->fed_logprobs[i + 1 - job->want_from] = lr::score(logits, n_vocab, job->tokens[i + 1], 0).logprob;
            }
        }
    }
    std::lock_guard<std::mutex> lock(job->mutex);
    job->progress.n_computed += std::min(job->n_resident, job->n_fed) - first;
    job->progress.n_resident = job->n_resident;
    if (!complete) {
        return;
    }
    job->progress.fed_us = now_us();
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
void lr_engine::lead(lr_job * job, const float * logits) {
    std::vector<lr_job *> followers;
    followers.swap(job->followers);
    for (lr_job * follower : followers) {
        llama_memory_seq_rm(memory, follower->seq_id, -1, -1);
        llama_memory_seq_cp(memory, job->seq_id, follower->seq_id, -1, -1);
        follower->n_resident = job->n_resident;
        {
            std::lock_guard<std::mutex> lock(follower->mutex);
            follower->progress.fed_us = now_us();
        }
        follower->arrival = arrivals++;
        jobs.push_back(follower);
        if (!follower->cancelled.load(std::memory_order_relaxed)) {
            sample(follower, logits);
        }
    }
}

void lr_engine::sample(lr_job * job, const float * logits) {
    std::string error;
    const llama_token token = pick(job, logits, error);
    if (token < 0) {
        end(job, LR_END_ERROR, LR_ERROR_SAMPLING, error);
        return;
    }
    try {
        job->accept(token, logits, n_vocab, now_us());
    } catch (const std::bad_alloc &) {
        end(job, LR_END_ERROR, LR_ERROR_MEMORY, "out of memory");
    } catch (const std::exception & e) {
        end(job, LR_END_ERROR, LR_ERROR_SAMPLING, e.what());
    }
}

llama_token lr_engine::pick(lr_job * job, const float * logits, std::string & error) {
    bool nan = false;
    for (int32_t i = 0; i < n_vocab; ++i) {
        candidates[i] = {i, logits[i], 0.0f};
        nan |= std::isnan(logits[i]);
    }
    if (nan) {
        error = "the logits have NaN among them: no token is more likely than another";
        return -1;
    }
    llama_token_data_array array{candidates.data(), (size_t) n_vocab, -1, false};
    try {
        llama_sampler_apply(job->chain, &array);
        if (array.selected < 0 || array.selected >= (int64_t) array.size ||
            !(array.data[array.selected].logit > -std::numeric_limits<float>::infinity())) {
            error = "every token is ruled out: the logits, biases or grammar leave no candidate";
            return -1;
        }
        const llama_token token = array.data[array.selected].id;
        llama_sampler_accept(job->chain, token);
        return token;
    } catch (const std::exception & e) {
        error = e.what();
        return -1;
    }
}

// --- the C surface

void lr_engine::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stopping = true;
        work.notify_all();
    }
    if (!thread.joinable()) {
        return;
    }
    // a decode under way forgets an earlier request when it begins: ask until the thread is through
    std::unique_lock<std::mutex> lock(mutex);
    while (running) {
        lr_abort_request(abort);
        halted.wait_for(lock, std::chrono::milliseconds(1));
    }
    lock.unlock();
    thread.join();
}

lr_engine * lr_engine_new(llama_context * ctx, lr_guard * guard, lr_abort * abort, const lr_engine_config * config) {
    try {
        return new lr_engine(ctx, guard, abort, *config);
    } catch (const std::exception &) {
        return nullptr;
    }
}

int lr_engine_start(lr_engine * engine) {
    try {
        engine->running = true;
        engine->thread  = std::thread([engine] { engine->run(); });
        return 0;
    } catch (const std::system_error &) {
        engine->running = false;
        return -1;
    }
}

void lr_engine_stop(lr_engine * engine) {
    engine->stop();
}

void lr_engine_free(lr_engine * engine) {
    delete engine;
}

void lr_engine_pause(lr_engine * engine) {
    std::unique_lock<std::mutex> lock(engine->mutex);
    ++engine->pauses;
    engine->halted.wait(lock, [engine] { return !engine->stepping; });
}

void lr_engine_resume(lr_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    if (--engine->pauses == 0) {
        engine->work.notify_all();
    }
}

void lr_engine_add(lr_engine * engine, lr_job * job) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    job->keep();
    {
        std::lock_guard<std::mutex> own(job->mutex);
        if (job->progress.added_us == 0) {
            job->progress.added_us = now_us();
        }
    }
    engine->inbox.push_back(job);
    engine->work.notify_all();
}

void lr_engine_follow(lr_engine * engine, lr_job * leader, lr_job * job) {
    (void) engine;
    job->keep();
    job->progress.added_us = now_us();
    leader->followers.push_back(job);
}

bool lr_engine_take_out(lr_engine * engine, lr_job * job) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    for (auto * list : {&engine->jobs, &engine->inbox}) {
        const auto found = std::find(list->begin(), list->end(), job);
        if (found != list->end()) {
            list->erase(found);
            engine->counters.n_jobs = (int32_t) engine->jobs.size();
            job->drop();
            return true;
        }
    }
    return false;
}

void lr_job_place(lr_job * job, int32_t seq_id, int32_t n_resident) {
    job->seq_id     = seq_id;
    job->n_resident = n_resident;
    std::lock_guard<std::mutex> lock(job->mutex);
    job->progress.n_resident = n_resident;
}

void lr_engine_fail(lr_engine * engine, lr_job * job, int32_t error, const char * why) {
    engine->end(job, LR_END_ERROR, (lr_job_error) error, why);
    std::lock_guard<std::mutex> lock(engine->mutex);
    job->stalled = false;  // so that the next step lets go of it
    engine->counters.n_stalled = 0;
    engine->work.notify_all();
}

void lr_engine_unstall(lr_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    for (lr_job * job : engine->jobs) {
        job->stalled = false;
    }
    engine->counters.n_stalled = 0;
    engine->work.notify_all();
}

int lr_engine_wait(lr_engine * engine, int64_t timeout_us) {
    std::unique_lock<std::mutex> lock(engine->mutex);
    const auto there = [engine] { return engine->events != 0; };
    if (timeout_us < 0) {
        engine->events_changed.wait(lock, there);
    } else {
        engine->events_changed.wait_for(lock, std::chrono::microseconds(timeout_us), there);
    }
    const int events = engine->events;
    engine->events   = 0;
    return events;
}

void lr_engine_wake(lr_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->raise(LR_EVENT_WAKE);
}

namespace {

int32_t take_tags(std::vector<uint64_t> & from, uint64_t * tags, int32_t room) {
    const auto n = std::min<size_t>(from.size(), (size_t) room);
    std::copy_n(from.begin(), n, tags);
    from.erase(from.begin(), from.begin() + (long) n);
    return (int32_t) n;
}

}  // namespace

int32_t lr_engine_ended(lr_engine * engine, uint64_t * tags, int32_t room) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return take_tags(engine->ended_tags, tags, room);
}

int32_t lr_engine_ready(lr_engine * engine, uint64_t * tags, int32_t room) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return take_tags(engine->ready_tags, tags, room);
}

void lr_engine_count(lr_engine * engine, lr_engine_counters * counters) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    *counters = engine->counters;
}
