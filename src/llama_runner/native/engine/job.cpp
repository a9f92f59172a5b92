#include "job.h"

#include "../shared.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

lr_job::lr_job(const lr_job_spec & spec, const llama_vocab * vocab)
    : vocab(vocab), seq_id(spec.seq_id), picker(spec.picker), max_tokens(spec.max_tokens), n_logprobs(spec.n_logprobs),
      priority(spec.priority), want(spec.want), want_from(std::max(spec.want_from, 1)), processor(spec.processor),
      adapters(spec.adapters), ignore_eos(spec.ignore_eos),
      notify(spec.notify), deadline_us(spec.deadline_us), tag(spec.tag),
      stop_tokens(spec.stop_tokens, spec.stop_tokens + spec.n_stop_tokens),
      shown_tokens(spec.shown_tokens, spec.shown_tokens + spec.n_shown_tokens),
      tokens(spec.tokens, spec.tokens + spec.n_tokens), n_resident(spec.n_resident), n_fed(spec.n_tokens), piece_(64) {
    std::vector<std::string> strings;
    for (int32_t i = 0; i < spec.n_stops; ++i) {
        strings.emplace_back(spec.stops[i], spec.stop_sizes[i]);
    }
    if (!strings.empty()) {
        stops = lr::stop_matcher(strings);
    }
    if (want & LR_WANT_LOGPROBS) {
        fed_logprobs.assign(std::max(n_fed - want_from, 0), NAN);
    }
    progress.n_tokens   = n_fed;
    progress.n_resident = n_resident;
    progress.tag        = tag;
    lr_live_add(LR_JOB, 1);
}

lr_job::~lr_job() {
    lr_live_add(LR_JOB, -1);
}

void lr_job::drop() {
    if (references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        delete this;
    }
}

// The log-probability of a token, and the best ones; numbers that are none were refused when the token was picked.
void lr_job::score(llama_token token, int32_t n_vocab) {
    const lr_rows row = {logits, 1, n_vocab, n_vocab};
    const size_t n_top = (size_t) std::min(n_logprobs, n_vocab);
    int64_t bad;
    top_ids_.resize(n_top);
    top_logprobs_.resize(n_top);
    lr_logprobs(&row, &token, &logprob_, 1, &bad);
    if (n_top > 0) {
        lr_top_logprobs(&row, (int64_t) n_top, top_ids_.data(), top_logprobs_.data(), 1, &bad);
    }
}

// Leaves the token's text that can be shown in `fresh_`; returns why the generation ends with it.
lr_job_end lr_job::read(llama_token token) {
    fresh_.clear();
    if (!ignore_eos && llama_vocab_is_eog(vocab, token)) {
        return LR_END_EOS;
    }
    if (stop_tokens.count(token)) {
        return LR_END_STOP;
    }
    const bool shown = shown_tokens.count(token) != 0;
    int32_t size = llama_token_to_piece(vocab, token, piece_.data(), (int32_t) piece_.size(), 0, shown);
    if (size < 0) {
        piece_.resize(-size);
        size = llama_token_to_piece(vocab, token, piece_.data(), (int32_t) piece_.size(), 0, shown);
    }
    stops.push(piece_.data(), (size_t) std::max(size, 0), fresh_);
    return stops.stopped() >= 0 ? LR_END_STOP : n_sampled() + 1 >= max_tokens ? LR_END_LENGTH : LR_END_NONE;
}

int64_t lr_job::accept(llama_token token, int32_t n_vocab, int64_t now) {
    if (n_logprobs >= 0) {
        score(token, n_vocab);
    }
    const lr_job_end end = read(token);
    int64_t gap = 0;
    {
        std::lock_guard<std::mutex> lock(mutex);
        tokens.push_back(token);
        new_tokens.push_back(token);
        text += fresh_;
        if (n_logprobs >= 0) {
            new_logprobs.push_back(logprob_);
            new_top_ids.insert(new_top_ids.end(), top_ids_.begin(), top_ids_.end());
            new_top_logprobs.insert(new_top_logprobs.end(), top_logprobs_.begin(), top_logprobs_.end());
        }
        if (progress.first_us == 0) {
            progress.first_us = now;
        } else {
            gap = now - progress.last_us;
            progress.worst_gap_us = std::max(progress.worst_gap_us, gap);
        }
        progress.last_us    = now;
        progress.n_tokens   = (int32_t) tokens.size();
        progress.n_sampled  = n_sampled();
        progress.n_resident = n_resident;
    }
    if (end != LR_END_NONE) {
        finish(end, LR_ERROR_NONE, "");
    } else if (!whole) {
        changed.notify_all();
    }
    return gap;
}

bool lr_job::force(llama_token token, int32_t n_vocab, int64_t now) {
    llama_token picked;  // the sampler's state is then that of a generation in which each token is sampled
    if (lr_picker_pick_only(picker, token, n_vocab, &picked) != LR_PICK_DONE ||
        lr_picker_accept(picker, token) != LR_PICK_DONE) {
        return false;
    }
    accept(token, n_vocab, now);
    ++n_forced;
    std::lock_guard<std::mutex> lock(mutex);
    ++progress.n_forced;
    return true;
}

void lr_job::finish(lr_job_end end, lr_job_error error, const std::string & why) {
    std::string rest;
    stops.flush(rest);
    {
        std::lock_guard<std::mutex> lock(mutex);
        if (progress.end != LR_END_NONE) {
            return;
        }
        text += rest;
        // a stop string that only the end of the text made certain
        progress.end        = stops.stopped() >= 0 && (end == LR_END_EOS || end == LR_END_LENGTH) ? LR_END_STOP : end;
        progress.error      = error;
        progress.n_tokens   = (int32_t) tokens.size();
        progress.n_sampled  = n_sampled();
        progress.n_resident = n_resident;
        error_text          = why;
    }
    changed.notify_all();
}

lr_job * lr_job_new(const lr_job_spec * spec, const llama_vocab * vocab) {
    try {
        return new lr_job(*spec, vocab);
    } catch (const std::exception &) {
        return nullptr;
    }
}

void lr_job_free(lr_job * job) {
    if (job) {
        job->drop();
    }
}

void lr_job_cancel(lr_job * job) {
    job->cancelled.store(true, std::memory_order_relaxed);
}

void lr_job_read_whole(lr_job * job) {
    job->whole.store(true, std::memory_order_relaxed);
}

bool lr_job_wait(lr_job * job, int64_t timeout_us) {
    std::unique_lock<std::mutex> lock(job->mutex);
    const auto there = [job] { return job->has_output(); };
    if (timeout_us < 0) {
        job->changed.wait(lock, there);
        return true;
    }
    return job->changed.wait_for(lock, std::chrono::microseconds(timeout_us), there);
}

void lr_job_look(lr_job * job, lr_job_progress * progress) {
    std::lock_guard<std::mutex> lock(job->mutex);
    *progress = job->progress;
}

namespace {

template <typename T> T * copied(const std::vector<T> & values, bool & failed) {
    auto * copy = static_cast<T *>(malloc(std::max<size_t>(values.size(), 1) * sizeof(T)));
    if (copy == nullptr) {
        failed = true;
    } else if (!values.empty()) {
        memcpy(copy, values.data(), values.size() * sizeof(T));
    }
    return copy;
}

}  // namespace

int lr_job_take(lr_job * job, lr_job_output * output) {
    std::lock_guard<std::mutex> lock(job->mutex);
    const bool ended = job->progress.end != LR_END_NONE;
    const size_t size = job->text.size() - (ended ? 0 : lr::incomplete_tail(job->text));
    bool failed = false;
    memset(output, 0, sizeof(*output));
    output->text         = lr_copy_string(job->text.substr(0, size));
    output->tokens       = copied(job->new_tokens, failed);
    output->logprobs     = copied(job->new_logprobs, failed);
    output->top_ids      = copied(job->new_top_ids, failed);
    output->top_logprobs = copied(job->new_top_logprobs, failed);
    if (failed || output->text == nullptr) {
        free(output->text);
        free(output->tokens);
        free(output->logprobs);
        free(output->top_ids);
        free(output->top_logprobs);
        return -1;
    }
    output->text_size = size;
    output->n_tokens  = (int32_t) job->new_tokens.size();
    output->n_top     = output->n_tokens ? (int32_t) job->new_top_ids.size() / output->n_tokens : 0;
    output->end       = job->progress.end;
    job->text.erase(0, size);
    job->new_tokens.clear();
    job->new_logprobs.clear();
    job->new_top_ids.clear();
    job->new_top_logprobs.clear();
    job->announced = false;
    return 0;
}

void lr_job_end_now(lr_job * job, int32_t end, int32_t error, const char * why) {
    job->finish((lr_job_end) end, (lr_job_error) error, why);
}

void lr_job_mark(lr_job * job, int32_t at, int32_t seq_id) {
    job->mark_at  = at;
    job->mark_seq = seq_id;
    std::lock_guard<std::mutex> lock(job->mutex);
    job->progress.marked = false;  // of an earlier one
}

void lr_job_watch(lr_job * job, int32_t at) {
    if (job->watch_at == 0 || at < job->watch_at) {
        job->watch_at = at;
    }
}

void lr_job_hold(lr_job * job, int32_t at) {
    job->hold_at = at;
}

int32_t lr_job_stop_index(lr_job * job) {
    std::lock_guard<std::mutex> lock(job->mutex);
    return job->progress.end == LR_END_NONE ? -1 : job->stops.stopped();
}

char * lr_job_error_text(lr_job * job) {
    std::lock_guard<std::mutex> lock(job->mutex);
    return lr_copy_string(job->error_text);
}

int32_t lr_job_tokens(lr_job * job, llama_token * out, int32_t room) {
    std::lock_guard<std::mutex> lock(job->mutex);
    const auto n = (int32_t) job->tokens.size();
    std::copy_n(job->tokens.begin(), std::min(n, room), out);
    return n;
}

int64_t lr_job_wanted(lr_job * job, int32_t want, float * out, int64_t room) {
    std::lock_guard<std::mutex> lock(job->mutex);
    const auto & found = want == LR_WANT_LAST ? job->last_logits :
                         want == LR_WANT_LOGPROBS ? job->fed_logprobs : job->embedding;
    const auto n = (int64_t) found.size();
    std::copy_n(found.begin(), std::min(n, room), out);
    return n;
}
