// One step: the decode, and what is done where that fails. compose.cpp: what it takes in; harvest.cpp: what it leaves.
#include "loop.h"

#include <algorithm>
#include <exception>
#include <limits>

namespace {

constexpr int NOT_COMPUTED = -100;

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

// Python decides: let it go on, evict or preempt for it, or give up on it.
void lr_engine::hold_back(lr_job * job) {
    job->stalled = true;
    std::lock_guard<std::mutex> lock(mutex);
    raise(LR_EVENT_ROOM);
}

// A job that failed alone.
void lr_engine::fail(const members & those, int code, const std::string & error) {
    for (lr_job * job : those) {
        if (code == 1) {
            hold_back(job);
        } else if (code != 2) {  // 2: stopped by an abort() from outside; the next step tries again
            end(job, LR_END_ERROR, code == -2 ? LR_ERROR_MEMORY : LR_ERROR_DECODE,
                error.empty() ? "llama_decode returned " + std::to_string(code) : error);
        }
    }
}
