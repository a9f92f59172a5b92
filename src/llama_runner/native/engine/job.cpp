#include "job.h"

#include "../shared.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>

lr_job::lr_job(const lr_job_spec & spec, const llama_vocab * vocab)
    : vocab(vocab), seq_id(spec.seq_id), chain(spec.chain), max_tokens(spec.max_tokens), n_logprobs(spec.n_logprobs),
      priority(spec.priority), want(spec.want), want_from(std::max(spec.want_from, 1)), ignore_eos(spec.ignore_eos),
      notify(spec.notify), deadline_us(spec.deadline_us), tag(spec.tag),
      stop_tokens(spec.stop_tokens, spec.stop_tokens + spec.n_stop_tokens),
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
}

void lr_job::drop() {
    if (references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        delete this;
    }
}

lr::scored lr::score(const float * logits, int32_t n_vocab, llama_token token, int32_t n_top) {
    scored found;
    const float best = *std::max_element(logits, logits + n_vocab);
    double sum = 0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        sum += std::exp((double) (logits[i] - best));
    }
    const double norm = (double) best + std::log(sum);
    found.logprob = (float) (logits[token] - norm);
    n_top = std::min(n_top, n_vocab);
    if (n_top > 0) {
        found.top_ids.resize(n_vocab);
        std::iota(found.top_ids.begin(), found.top_ids.end(), 0);
        std::partial_sort(found.top_ids.begin(), found.top_ids.begin() + n_top, found.top_ids.end(),
                          [logits](int32_t a, int32_t b) {
                              return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                          });
        found.top_ids.resize(n_top);
        for (int32_t id : found.top_ids) {
            found.top_logprobs.push_back((float) (logits[id] - norm));
        }
    }
    return found;
}

bool lr_job::accept(llama_token token, const float * logits, int32_t n_vocab, int64_t now) {
    lr::scored scored;
    if (n_logprobs >= 0) {
        scored = lr::score(logits, n_vocab, token, n_logprobs);
    }
    {
        std::lock_guard<std::mutex> lock(mutex);
        tokens.push_back(token);
    }
    lr_job_end end = LR_END_NONE;
    std::string out;
    const bool ends = (!ignore_eos && llama_vocab_is_eog(vocab, token));
    if (ends) {
        end = LR_END_EOS;
    } else if (stop_tokens.count(token)) {
        end = LR_END_STOP;
    } else {
        int32_t size = llama_token_to_piece(vocab, token, piece_.data(), (int32_t) piece_.size(), 0, false);
        if (size < 0) {
            piece_.resize(-size);
            size = llama_token_to_piece(vocab, token, piece_.data(), (int32_t) piece_.size(), 0, false);
        }
        stops.push(piece_.data(), (size_t) std::max(size, 0), out);
        if (stops.stopped() >= 0) {
            end = LR_END_STOP;
        } else if (n_sampled() >= max_tokens) {
            end = LR_END_LENGTH;
        }
    }
    {
        std::lock_guard<std::mutex> lock(mutex);
        text += out;
        new_tokens.push_back(token);
        if (n_logprobs >= 0) {
            new_logprobs.push_back(scored.logprob);
            new_top_ids.insert(new_top_ids.end(), scored.top_ids.begin(), scored.top_ids.end());
            new_top_logprobs.insert(new_top_logprobs.end(), scored.top_logprobs.begin(), scored.top_logprobs.end());
        }
        if (progress.first_us == 0) {
            progress.first_us = now;
        } else {
            progress.worst_gap_us = std::max(progress.worst_gap_us, now - progress.last_us);
        }
        progress.last_us    = now;
        progress.n_tokens   = (int32_t) tokens.size();
        progress.n_sampled  = n_sampled();
        progress.n_resident = n_resident;
    }
    if (end != LR_END_NONE) {
        finish(end, LR_ERROR_NONE, "");
        return true;
    }
    changed.notify_all();
    return false;
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
