// The engine's thread and what it knows. loop.cpp: the thread and the C surface; step.cpp: one step; compose.cpp: what that
// takes in; harvest.cpp: what it leaves.
#pragma once

#include "job.h"

#include <chrono>
#include <map>
#include <thread>

struct lr_engine {
    lr_engine(llama_context * ctx, lr_guard * guard, lr_abort * abort, lr_rwlock * adapters, const lr_engine_config & config);
    ~lr_engine();

    void run();
    void stop();
    // the caller of these two holds `mutex`
    void raise(int events);
    void count_jobs();

    llama_context *        ctx;
    llama_memory_t         memory;
    lr_guard *             guard;
    lr_abort *             abort;
    lr_rwlock *            adapter_lock;
    const lr_engine_config config;
    const int32_t          n_vocab, n_seq_max;
    const bool             stoppable;  // a decode can be stopped while it is under way: only the CPU looks up
    const bool             steps_back;  // and loses no more by it than its own rows: no sequence has a state
    lr_process_fn          process      = nullptr;
    void *                 process_user = nullptr;

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
    std::string             poisoned;  // why nothing can be computed any more
    bool                    stranded = false;

    std::thread thread;
    std::mutex  joining;  // several may stop it at the same time

    // --- the thread's own, or of whoever has paused it
    struct adapter_set {
        std::vector<llama_adapter_lora *> adapters;
        std::vector<float>                scales;
    };
    std::vector<lr_job *>          jobs;  // in the order in which they go first; references held
    std::map<int32_t, adapter_set> adapter_sets;
    int32_t                        active_set = 0;  // -1: unknown
    int32_t                        fail_code = 0, fail_n = 0;

    void end(lr_job * job, lr_job_end how, lr_job_error error, const std::string & why);

private:
    using members = std::vector<lr_job *>;

    uint64_t arrivals   = 0;
    int      set_steps  = 0;  // steps since the active set became that
    bool     stopped = false;  // the last step was, for one of those that it read for
    bool     read_only = false;  // the last step was
    members  waiting;  // of those that could sample, who does not take part in this step
    members  watched;  // whose end stops this step under way
    double   own_us[257] = {};  // measured, by how many sample: a step without reading
    double   row_us[2] = {};    // and a row that is read without those that sample, by whether it is one of a block
    double   mixed_row_us = 0;  // and with them

    // the batch
    std::vector<llama_token>    tokens;
    std::vector<llama_pos>      positions;
    std::vector<int32_t>        n_seq_ids;
    std::vector<llama_seq_id>   seq_ids;
    std::vector<llama_seq_id *> seq_id_rows;
    std::vector<int8_t>         outputs;
    llama_batch                 batch{};
    int32_t                     n_outputs = 0;
    int32_t                     n_forced  = 0;  // of its rows, those of forced tokens

    // what is handed to a call for many rows
    std::vector<lr_processed>  processing;
    std::vector<lr_picker *>   pickers;
    std::vector<const float *> rows;
    std::vector<llama_token>   picked;
    std::vector<int>           codes;

    // loop.cpp
    void admit();
    void end_due(int64_t now);
    void drop_ended();

    // step.cpp
    void step();
    int  prepare(std::string & error);
    int  decode(bool stops, std::string & error);
    int  compute(const members & those, std::string & error);
    void compute_or_split(const members & sampling, const members & feeding);
    void fail(const members & those, int code, const std::string & error);

    // compose.cpp
    bool    choose(members & sampling, members & feeding);
    int32_t choose_set(const members & runnable) const;
    bool    activate(int32_t set, std::string & error);
    bool    keeps_pace(const lr_job * job, const members & feeding) const;
    bool    waits_for(const members & sampling, const members & feeding) const;
    void    hold_back(lr_job * job);
    void    take_turns(members & sampling, members & feeding);
    int32_t slice_rows() const;
    int32_t feed_budget(const members & sampling, const members & feeding) const;
    double  own_time(size_t n_sampling) const;
    double  block_row_us() const;
    void    measure(int32_t n_sampling, int32_t n_fed, int64_t took);
    void    compose(const members & sampling, const members & feeding);
    void    put(lr_job * job, int32_t n_rows);

    // harvest.cpp
    void harvest(const members & those);
    void harvest_fed(lr_job * job, int32_t first_row, int32_t first);
    void lead(lr_job * job, members & due);
    void run_processors(members & due);
    void sample(members & due);
    bool force(lr_job * job, int64_t now);
    void tell_ready();
};

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

inline int64_t lr_now_us() {
    return llama_time_us();
}
