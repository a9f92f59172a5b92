// What a decode leaves: tokens that are sampled, logits, embeddings, and who is to be told.
#include "../shared.h"
#include "loop.h"

#include <algorithm>

namespace {

constexpr int32_t MOST_FORCED = 16;  // tokens that come with a sampled one: more rows would keep other jobs waiting

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

void lr_engine::harvest(const members & those) {
    const int64_t began = lr_now_us();
    members due;
    for (lr_job * job : those) {
        const int32_t first = job->n_resident;
        job->n_resident += job->step_rows;
        // what was given, or sampled and lost again
        const int32_t known = std::max(job->n_fed, job->n_reached);
        job->n_reached = std::max(job->n_reached, job->n_resident);
        {
            std::lock_guard<std::mutex> lock(job->mutex);
            job->progress.n_resident = job->n_resident;
            if (first < known) {
                job->progress.n_computed += std::min(job->n_resident, known) - first;
                job->progress.n_reached = job->n_reached;
            }
        }
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
