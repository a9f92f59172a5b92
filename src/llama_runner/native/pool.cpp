#include "llama_runner.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#    include <unistd.h>
#endif

namespace {

constexpr int MAX_HELPERS = 63;

struct pool {
    std::mutex              busy;  // one piece of work at a time
    std::mutex              mutex;
    std::condition_variable wake, left;
    int                     n_threads  = 0;
    uint64_t                generation = 0;
    int                     places     = 0;  // helpers that may still join the work
    int                     inside     = 0;  // helpers that have joined and not left

    lr_job_fn        fn   = nullptr;
    void *           data = nullptr;
    int              n    = 0;
    std::atomic<int> next{0};

    void work() {
        for (int i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
            fn(data, i);
        }
    }

    void serve() {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        while (true) {
            wake.wait(lock, [&] { return generation != seen && places > 0; });
            seen = generation;
            --places;
            ++inside;
            lock.unlock();
            work();
            lock.lock();
            if (--inside == 0) {
                left.notify_one();
            }
        }
    }

    // As many helpers as the machine gives; fewer than asked for is no error.
    int grow(int wanted) {
        while (n_threads < wanted) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error &) {
                break;
            }
            ++n_threads;
        }
        return std::min(n_threads, wanted);
    }

    void run(int count, int helpers, lr_job_fn job, void * user) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            fn   = job;
            data = user;
            n    = count;
            next = 0;
            ++generation;
            places = grow(helpers);
        }
        wake.notify_all();
        work();
        // whoever wakes up only now finds nothing to do: do not wait for them
        std::unique_lock<std::mutex> lock(mutex);
        places = 0;
        left.wait(lock, [&] { return inside == 0; });
    }
};

long process() {
#ifdef _WIN32
    return 0;
#else
    return getpid();
#endif
}

// Never destroyed: its threads wait in it while the process exits. A forked child has none of the threads: it starts anew.
pool & current() {
    static std::mutex mutex;
    static pool *     made  = nullptr;
    static long       owner = -1;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != process()) {
        made  = new pool;
        owner = process();
    }
    return *made;
}

}  // namespace

void lr_pool_run(int n, int n_threads, lr_job_fn fn, void * data) {
    const int helpers = std::min({n - 1, n_threads - 1, MAX_HELPERS});
    if (helpers > 0) {
        pool & shared = current();
        std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
        if (lock.owns_lock()) {
            shared.run(n, helpers, fn, data);
            return;
        }
    }
    for (int i = 0; i < n; ++i) {
        fn(data, i);
    }
}
