#include "llama_runner.h"

#include "shared.h"

#include <atomic>

#ifndef _WIN32
#    include <pthread.h>
#endif

namespace {

std::atomic<int64_t> live[LR_KINDS];
std::atomic<bool>    started{false};
std::atomic<bool>    forked{false};

#ifndef _WIN32
void in_the_child() {
    if (started.load(std::memory_order_relaxed)) {
        forked.store(true, std::memory_order_relaxed);
    }
}

[[maybe_unused]] const bool watching = pthread_atfork(nullptr, nullptr, in_the_child) == 0;
#endif

}  // namespace

void lr_note_start() {
    started.store(true, std::memory_order_relaxed);
}

void lr_live_add(int kind, int n) {
    live[kind].fetch_add(n, std::memory_order_relaxed);
}

int64_t lr_live_count(int kind) {
    return live[kind].load(std::memory_order_relaxed);
}

bool lr_forked(void) {
    return forked.load(std::memory_order_relaxed);
}
