#include "llama_runner.h"

#include "ggml-backend.h"
#include "shared.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "build_facts.inc"

namespace {

constexpr size_t LOG_CAPACITY = 4096;  // lines; the oldest go when nobody reads them
constexpr size_t MINE_CAPACITY = 8;    // warnings and errors that a thread caused itself
constexpr const char * ABORT_MARK = "llama.cpp aborted: ";

struct log_line {
    int             level;
    std::string     text;
    std::thread::id thread;
};

struct log_store {
    std::mutex           mutex;
    std::deque<log_line> lines;
    std::atomic<int>     level{GGML_LOG_LEVEL_INFO};
};

// Never destroyed: worker threads may still log while the process exits.
log_store & logs() {
    static log_store * store = new log_store;
    return *store;
}

struct log_tap {
    lr_tap_fn call      = nullptr;
    void *    user_data = nullptr;
};
thread_local log_tap tap;

// What a thread caused, for its exception: another thread may have passed the line on to Python by then.
struct author_lines {
    std::thread::id         thread = std::this_thread::get_id();
    std::deque<std::string> lines;
    bool                    goes_on = false;

    void keep(ggml_log_level level, const char * text) {
        if (level == GGML_LOG_LEVEL_CONT) {
            if (goes_on && !lines.empty()) {
                lines.back() += text;
            }
            return;
        }
        goes_on = level >= GGML_LOG_LEVEL_WARN;
        if (goes_on) {
            lines.push_back(text);
            if (lines.size() > MINE_CAPACITY) {
                lines.pop_front();
            }
        }
    }
};
thread_local author_lines   own;
thread_local author_lines * author = &own;

char * copy_line(std::string & text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    return lr_copy_string(text);
}

// A last net, never instead of a check: an assertion that fails on the calling thread becomes a C++ exception, which the
// Cython layer turns into a Python one. On a worker thread it still ends the process, as upstream means it to.
void on_abort(const char * message) {
    throw std::runtime_error(std::string(ABORT_MARK) + message);
}

}  // namespace

void lr_tap_log(lr_tap_fn call, void * user_data) {
    tap = {call, user_data};
}

void * lr_log_author() {
    return author;
}

void lr_log_write_as(void * other) {
    author = static_cast<author_lines *>(other);
}

void lr_log_line(ggml_log_level level, const char * text) {
    if (tap.call) {
        tap.call(level, text, tap.user_data);
    }
    auto & store = logs();
    if (level != GGML_LOG_LEVEL_CONT && level < store.level.load(std::memory_order_relaxed)) {
        return;
    }
    if (lr_forked()) {  // the lock may have been held as the process forked
        return;
    }
    author->keep(level, text);
    std::lock_guard<std::mutex> lock(store.mutex);
    const auto self = author->thread;
    if (level == GGML_LOG_LEVEL_CONT) {
        // the continuation of a line that was dropped is dropped with it
        if (!store.lines.empty() && store.lines.back().thread == self) {
            store.lines.back().text += text;
        }
        return;
    }
    store.lines.push_back({(int) level, text, self});
    if (store.lines.size() > LOG_CAPACITY) {
        store.lines.pop_front();
    }
}

char * lr_copy_string(const std::string & text) {
    char * copy = static_cast<char *>(malloc(text.size() + 1));
    if (copy) {
        memcpy(copy, text.data(), text.size());
        copy[text.size()] = '\0';
    }
    return copy;
}

void lr_free(void * ptr) {
    free(ptr);
}

void lr_runtime_init(const char * lib_dir) {
    static std::once_flag once;
    std::call_once(once, [lib_dir] {
        lr_note_start();
        llama_log_set([](ggml_log_level level, const char * text, void *) { lr_log_line(level, text); }, nullptr);
        ggml_set_abort_callback(on_abort);
#ifdef GGML_BACKEND_DL
        // an explicit folder: the default search looks into the current directory as well
        ggml_backend_load_all_from_path(lib_dir);
#else
        (void) lib_dir;
#endif
        llama_backend_init();
    });
}

int lr_log_pop(char ** text) {
    auto & store = logs();
    if (lr_forked()) {
        return -1;
    }
    std::lock_guard<std::mutex> lock(store.mutex);
    if (store.lines.empty()) {
        return -1;
    }
    log_line line = std::move(store.lines.front());
    store.lines.pop_front();
    *text = copy_line(line.text);
    return line.level;
}

char * lr_log_pop_mine(void) {
    if (own.lines.empty()) {
        return nullptr;
    }
    std::string line = std::move(own.lines.front());
    own.lines.pop_front();
    return copy_line(line);
}

void lr_log_set_level(int level) {
    logs().level.store(level, std::memory_order_relaxed);
}

const char * lr_build_facts(void) {
    return LR_BUILD_FACTS;
}

bool lr_is_abort(const char * what) {
    return strncmp(what, ABORT_MARK, strlen(ABORT_MARK)) == 0;
}

struct lr_guard {
    std::atomic<int> state{0};
};

lr_guard * lr_guard_new(void) {
    auto * guard = new (std::nothrow) lr_guard;
    if (guard) {
        lr_live_add(LR_GUARD, 1);
    }
    return guard;
}

void lr_guard_free(lr_guard * guard) {
    if (guard) {
        lr_live_add(LR_GUARD, -1);
    }
    delete guard;
}

bool lr_guard_try_shared(lr_guard * guard) {
    int seen = guard->state.load(std::memory_order_relaxed);
    while (seen >= 0) {
        if (guard->state.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) {
            return true;
        }
    }
    return false;
}

void lr_guard_end_shared(lr_guard * guard) {
    guard->state.fetch_sub(1, std::memory_order_release);
}

bool lr_guard_try_exclusive(lr_guard * guard) {
    int idle = 0;
    return guard->state.compare_exchange_strong(idle, -1, std::memory_order_acquire);
}

bool lr_guard_wait_exclusive(lr_guard * guard, int64_t us) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
    while (!lr_guard_try_exclusive(guard)) {
        if (std::chrono::steady_clock::now() > give_up) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    return true;
}

void lr_guard_end_exclusive(lr_guard * guard) {
    guard->state.store(0, std::memory_order_release);
}

struct lr_abort {
    static constexpr int     STRIDE  = 16;     // graph nodes between two looks at the clock
    static constexpr int64_t POLL_US = 20000;  // how promptly Ctrl-C is felt

    lr_poll_fn        poll;
    void *            user_data;
    std::atomic<bool> requested{false};
    std::atomic<bool> fail{false};
    bool              with_poll = false;
    int               countdown = 0;
    int64_t           deadline  = 0;
    int64_t           last_poll = 0;
    lr_watch_fn       watch     = nullptr;
    void *            watched   = nullptr;

    bool check() {
        if (fail.exchange(false, std::memory_order_relaxed)) {
            GGML_ABORT("asked for by a test of the last net");
        }
        if (requested.load(std::memory_order_relaxed)) {
            return true;
        }
        if (--countdown > 0) {
            return false;
        }
        countdown = STRIDE;
        const int64_t now = ggml_time_us();
        bool stop = (deadline != 0 && now >= deadline) || (watch != nullptr && watch(watched));
        if (!stop && with_poll && now - last_poll >= POLL_US) {
            last_poll = now;
            stop = poll(user_data) != 0;
        }
        if (stop) {
            requested.store(true, std::memory_order_relaxed);
        }
        return stop;
    }
};

lr_abort * lr_abort_new(lr_poll_fn poll, void * user_data) {
    auto * abort = new (std::nothrow) lr_abort;
    if (abort) {
        abort->poll      = poll;
        abort->user_data = user_data;
    }
    return abort;
}

void lr_abort_free(lr_abort * abort) {
    delete abort;
}

void lr_abort_attach(lr_abort * abort, llama_context * ctx) {
    llama_set_abort_callback(ctx, [](void * data) { return static_cast<lr_abort *>(data)->check(); }, abort);
}

void lr_abort_arm(lr_abort * abort, bool with_poll, int64_t deadline_us) {
    abort->requested.store(false, std::memory_order_relaxed);
    abort->with_poll = with_poll;
    abort->deadline  = deadline_us;
    abort->countdown = lr_abort::STRIDE;
    abort->last_poll = ggml_time_us();
    abort->watch     = nullptr;
}

void lr_abort_watch(lr_abort * abort, lr_watch_fn watch, void * user_data) {
    abort->watch   = watch;
    abort->watched = user_data;
}

void lr_abort_request(lr_abort * abort) {
    abort->requested.store(true, std::memory_order_relaxed);
}

static thread_local bool stranded = false;

void lr_thread_strand(void) {
    stranded = true;
}

bool lr_thread_stranded(void) {
    return stranded;
}

void lr_abort_fail(lr_abort * abort) {
    abort->fail.store(true, std::memory_order_relaxed);
}
