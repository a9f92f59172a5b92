// One sequence's work, as the engine's thread and whoever waits for it see it.
#pragma once

#include "engine.h"
#include "text.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

struct lr_job {
    lr_job(const lr_job_spec & spec, const llama_vocab * vocab);
    ~lr_job();

    void keep() { references.fetch_add(1, std::memory_order_relaxed); }
    void drop();

    // --- fixed
    const llama_vocab *             vocab;
    llama_seq_id                    seq_id;
    lr_picker *                     picker;
    int32_t                         max_tokens, n_logprobs, priority, want, want_from;
    int32_t                         processor, adapters;
    bool                            ignore_eos, notify;
    int64_t                         deadline_us;
    const int64_t                   created_us = llama_time_us();
    uint64_t                        tag;
    std::unordered_set<llama_token> stop_tokens, shown_tokens;

    std::atomic<bool> cancelled{false};
    std::atomic<bool> whole{false};  // nobody reads it before its end

    // --- the engine's thread only, while the job is in the engine
    std::vector<llama_token> tokens;      // fed and sampled
    int32_t                  n_resident;  // how many of them are in the memory
    int32_t                  n_fed;       // how many of them were given
    int32_t                  n_forced = 0;   // of those sampled, how many at the end a constraint left no choice about
    int32_t                  n_reached = 0;  // the most of them that have been in the memory
    int32_t                  row = -1;    // of the step under way: its row with output
    int32_t                  step_rows = 0;
    int32_t                  first_row = 0;  // of them, in the batch
    int32_t                  most_rows = INT32_MAX;  // of a slice, after one failed
    const float *            logits = nullptr;  // of that row, once it is computed and perhaps processed
    std::vector<float>       processed;
    bool                     stalled = false;
    uint64_t                 arrival = 0;
    int32_t                  mark_at = 0, mark_seq = 0, watch_at = 0;
    int32_t                  hold_at = 0;  // tokens, with which it is held back; 0: goes on
    lr::stop_matcher         stops;
    std::vector<lr_job *>    followers;  // references held

    int32_t n_sampled() const { return (int32_t) tokens.size() - n_fed; }
    int32_t n_left() const { return (int32_t) tokens.size() - n_resident; }
    bool is_over(int64_t now) const {
        return cancelled.load(std::memory_order_relaxed) || (deadline_us != 0 && now >= deadline_us);
    }
    // what is still to be read before the next token can be sampled, or has to be read again
    bool reading() const { return picker == nullptr || n_left() > 1 + n_forced || n_sampled() == 0; }

    // Takes what was sampled from `logits`. Returns how many µs after the last one, 0 for the first.
    int64_t accept(llama_token token, int32_t n_vocab, int64_t now);
    // Takes what must follow, unasked. False where its chain refuses it.
    bool force(llama_token token, int32_t n_vocab, int64_t now);
    void finish(lr_job_end end, lr_job_error error, const std::string & text);

    // --- shared, under `mutex`
    std::mutex               mutex;
    std::condition_variable  changed;
    std::string              text;         // not taken yet
    std::vector<llama_token> new_tokens;   // not taken yet
    std::vector<float>       new_logprobs, new_top_logprobs;
    std::vector<int32_t>     new_top_ids;
    std::vector<float>       last_logits, fed_logprobs, embedding;
    std::string              error_text;
    lr_job_progress          progress{};
    bool                     announced = false;  // whether the engine has said that there is output

    bool has_output() const { return (!whole && !new_tokens.empty()) || progress.end != LR_END_NONE; }

private:
    std::atomic<int> references{1};
    std::vector<char> piece_;

    // of the token that is being taken
    std::string          fresh_;
    float                logprob_ = 0;
    std::vector<int32_t> top_ids_;
    std::vector<float>   top_logprobs_;

    void       score(llama_token token, int32_t n_vocab);
    lr_job_end read(llama_token token);
};
