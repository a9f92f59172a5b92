#include "loop.h"

#include "../shared.h"
#include "llama-ext.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <system_error>

namespace {

constexpr auto STALLED_LOOK = std::chrono::milliseconds(50);

}  // namespace

lr_engine::lr_engine(llama_context * ctx, lr_guard * guard, lr_abort * abort, lr_rwlock * adapters,
                     const lr_engine_config & config)
    : ctx(ctx), memory(llama_get_memory(ctx)), guard(guard), abort(abort), adapter_lock(adapters), config(config),
      n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))), n_seq_max((int32_t) llama_n_seq_max(ctx)),
      stoppable(llama_model_n_devices(llama_get_model(ctx)) == 0),
      steps_back(!llama_model_is_recurrent(llama_get_model(ctx)) && !llama_model_is_hybrid(llama_get_model(ctx))),
      tokens(config.n_batch), positions(config.n_batch), n_seq_ids(config.n_batch, 1), seq_ids(config.n_batch),
      seq_id_rows(config.n_batch), outputs(config.n_batch) {
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
    for (auto * list : {&jobs, &inbox}) {
        for (lr_job * job : *list) {
            job->drop();
        }
    }
}

void lr_engine::raise(int what) {
    events |= what;
    events_changed.notify_all();
}

void lr_engine::count_jobs() {
    counters.n_jobs    = (int32_t) jobs.size();
    counters.n_stalled = (int32_t) std::count_if(jobs.begin(), jobs.end(), [](lr_job * job) { return job->stalled; });
}

// --- the thread

void lr_engine::run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
        const int64_t idle_from = lr_now_us();
        const auto due = [this] {
            return stopping || (pauses == 0 && (!inbox.empty() || counters.n_jobs > counters.n_stalled));
        };
        if (counters.n_jobs > 0) {
            work.wait_for(lock, STALLED_LOOK, due);  // those held back can still be cancelled, or run out of time
        } else {
            work.wait(lock, due);
        }
        counters.idle_us += lr_now_us() - idle_from;
        if (stopping) {
            break;
        }
        if (pauses > 0) {
            continue;
        }
        stepping = true;
        try {
            admit();
            lock.unlock();
            step();
        } catch (const std::exception & e) {  // of host memory there is none left
            for (lr_job * job : jobs) {
                end(job, LR_END_ERROR, LR_ERROR_MEMORY, e.what());
            }
        }
        if (!lock.owns_lock()) {
            lock.lock();
        }
        stepping = false;
        count_jobs();
        if (pauses > 0) {
            halted.notify_all();
        }
    }
    while (!inbox.empty() || !jobs.empty()) {  // followers of a leader that ends come in by themselves
        admit();
        lock.unlock();
        for (lr_job * job : jobs) {
            end(job, LR_END_ERROR, poisoned.empty() ? LR_ERROR_CLOSED : LR_ERROR_POISONED, poisoned);
        }
        drop_ended();
        lock.lock();
    }
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

void lr_engine::end_due(int64_t now) {
    const auto due = [now](const lr_job * job) { return job->is_over(now); };
    std::vector<lr_job *> left;  // without a leader, so that they end by themselves
    for (lr_job * job : jobs) {
        auto & followers = job->followers;
        const auto staying = std::stable_partition(followers.begin(), followers.end(), [&](auto * f) { return !due(f); });
        left.insert(left.end(), staying, followers.end());
        followers.erase(staying, followers.end());
    }
    jobs.insert(jobs.end(), left.begin(), left.end());
    for (lr_job * job : jobs) {
        if (job->cancelled.load(std::memory_order_relaxed)) {
            end(job, LR_END_CANCELLED, LR_ERROR_NONE, "");
        } else if (job->deadline_us != 0 && now >= job->deadline_us) {
            end(job, LR_END_TIMEOUT, LR_ERROR_NONE, "");
        } else if (job->picker == nullptr && job->n_left() == 0) {
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
        if (!job->followers.empty()) {  // the first of them leads the others; those of another leader have other tokens
            lr_job * heir = job->followers.front();
            heir->followers.assign(job->followers.begin() + 1, job->followers.end());
            orphans.push_back(heir);
            job->followers.clear();
        }
        tags.push_back(job->tag);
        job->drop();
    }
    jobs.swap(left);
    if (tags.empty()) {
        return;
    }
    std::lock_guard<std::mutex> lock(mutex);
    inbox.insert(inbox.end(), orphans.begin(), orphans.end());
    ended_tags.insert(ended_tags.end(), tags.begin(), tags.end());
    raise(LR_EVENT_ENDED);
}

// --- the C surface

void lr_engine::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stopping = true;
        work.notify_all();
    }
    std::lock_guard<std::mutex> one(joining);
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

lr_engine * lr_engine_new(llama_context * ctx, lr_guard * guard, lr_abort * abort, lr_rwlock * adapters,
                          const lr_engine_config * config) {
    try {
        return new lr_engine(ctx, guard, abort, adapters, *config);
    } catch (const std::exception &) {
        return nullptr;
    }
}

void lr_engine_set_processor(lr_engine * engine, lr_process_fn process, void * user) {
    engine->process      = process;
    engine->process_user = user;
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
            job->progress.added_us = lr_now_us();
        }
    }
    engine->inbox.push_back(job);
    engine->work.notify_all();
}

void lr_engine_follow(lr_engine * engine, lr_job * leader, lr_job * job) {
    (void) engine;
    job->keep();
    job->progress.added_us = lr_now_us();
    leader->followers.push_back(job);
}

int32_t lr_engine_take_out(lr_engine * engine, lr_job * job, uint64_t * tags) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    const auto taken = [&](std::vector<lr_job *> & list) {
        const auto found = std::find(list.begin(), list.end(), job);
        if (found == list.end()) {
            return 0;
        }
        {
            std::lock_guard<std::mutex> own(job->mutex);
            if (job->progress.end != LR_END_NONE) {
                return 0;
            }
        }
        list.erase(found);
        int32_t n = 0;
        tags[n++] = job->tag;
        for (lr_job * follower : job->followers) {
            tags[n++] = follower->tag;
            follower->drop();
        }
        job->followers.clear();
        job->mark_at = job->watch_at = job->hold_at = 0;
        job->drop();
        return n;
    };
    for (auto * list : {&engine->jobs, &engine->inbox}) {
        if (const int32_t n = taken(*list)) {
            engine->count_jobs();
            return n;
        }
        for (lr_job * leader : *list) {
            if (const int32_t n = taken(leader->followers)) {
                return n;
            }
        }
    }
    return 0;
}

void lr_job_place(lr_job * job, int32_t seq_id, int32_t n_resident) {
    job->seq_id     = seq_id;
    job->n_resident = n_resident;
    job->n_reached  = std::max(job->n_reached, n_resident);
    std::lock_guard<std::mutex> lock(job->mutex);
    job->progress.n_resident = n_resident;
    job->progress.n_reached  = job->n_reached;
}

void lr_engine_end(lr_engine * engine, lr_job * job, int32_t how, int32_t error, const char * why) {
    engine->end(job, (lr_job_end) how, (lr_job_error) error, why);
    std::lock_guard<std::mutex> lock(engine->mutex);
    job->stalled = false;  // so that the next step lets go of it
    engine->count_jobs();
    engine->work.notify_all();
}

void lr_engine_unstall(lr_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    for (lr_job * job : engine->jobs) {
        job->stalled = false;
    }
    engine->count_jobs();
    engine->work.notify_all();
}

int lr_engine_adapters(lr_engine * engine, int32_t set, llama_adapter_lora ** adapters, const float * scales, int32_t n) {
    try {
        if (n > 0) {
            auto & named = engine->adapter_sets[set];
            named.adapters.assign(adapters, adapters + n);
            named.scales.assign(scales, scales + n);
            return 0;
        }
        engine->adapter_sets.erase(set);
        if (engine->active_set == set) {
            // they may be freed now: nothing of the context may point to them
            llama_set_adapters_lora(engine->ctx, nullptr, 0, nullptr);
            engine->active_set = 0;
        }
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}

void lr_engine_adapters_changed(lr_engine * engine) {
    engine->active_set = -1;
}

void lr_engine_fail_next(lr_engine * engine, int32_t code, int32_t n) {
    lr_engine_pause(engine);
    engine->fail_code = code;
    engine->fail_n    = n;
    lr_engine_resume(engine);
}

char * lr_engine_poisoned(lr_engine * engine, bool * stranded) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    *stranded = engine->stranded;
    return engine->poisoned.empty() ? nullptr : lr_copy_string(engine->poisoned);
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
