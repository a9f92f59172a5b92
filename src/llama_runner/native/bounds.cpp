#include "bounds.h"

#include "shared.h"
#include "step.h"

#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>

#ifdef _WIN32
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#    include <malloc.h>
#    include <process.h>
#else
#    include <pthread.h>
#    include <time.h>
#    ifdef __APPLE__
#        include <malloc/malloc.h>
#    else
#        include <malloc.h>
#    endif
#endif

namespace {

constexpr int    STEPS_PER_LOOK = 1024;     // steps between two looks at the clock
constexpr size_t LARGE          = 1 << 20;  // an allocation from here on is refused at once, a smaller one at the next step

enum class limit { none, stack, time, memory };

struct bound_scope {
    lr_limits limits;
    uintptr_t floor;  // the stack grows down to here
    int64_t   started_us;
    int64_t   memory    = 0;
    int       countdown = STEPS_PER_LOOK;
    limit     reached   = limit::none;

    std::string notes;
};

thread_local bound_scope * current = nullptr;

int64_t thread_time_us() {
#ifdef _WIN32
    FILETIME created, ended, kernel, user;
    GetThreadTimes(GetCurrentThread(), &created, &ended, &kernel, &user);
    const auto ticks = [](const FILETIME & t) { return ((int64_t) t.dwHighDateTime << 32) | t.dwLowDateTime; };
    return (ticks(kernel) + ticks(user)) / 10;
#else
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
#endif
}

std::string describe(const bound_scope & scope) {
    const auto mib = [](size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
    switch (scope.reached) {
        case limit::stack:  return "it nests or recurses without end: " + mib(scope.limits.stack) + " of stack are used up";
        case limit::time:   return "it takes more than " + std::to_string(scope.limits.time_us / 1000) + " ms";
        case limit::memory: return "it takes more than " + mib((size_t) scope.limits.memory) + " of memory";
        case limit::none:   break;
    }
    return "";
}

uintptr_t stack_position() {
    volatile char here = 0;
    return (uintptr_t) &here;
}

// The lowest address of the calling thread's stack; 0 where it cannot be told.
uintptr_t stack_bottom() {
#if defined(_WIN32)
    ULONG_PTR low, high;
    GetCurrentThreadStackLimits(&low, &high);
    return (uintptr_t) low;
#elif defined(__APPLE__)
    return (uintptr_t) pthread_get_stackaddr_np(pthread_self()) - pthread_get_stacksize_np(pthread_self());
#elif defined(__GLIBC__)
    static thread_local uintptr_t bottom = [] {  // glibc reads a file for the main thread
        pthread_attr_t attributes;
        void *         address = nullptr;
        size_t         size    = 0;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            pthread_attr_getstack(&attributes, &address, &size);
            pthread_attr_destroy(&attributes);
        }
        return (uintptr_t) address;
    }();
    return bottom;
#else
    return 0;
#endif
}

// Runs `fn` on a thread with a stack of `size` bytes and waits for it. The pages are touched only as they are needed.
bool run_on_stack(size_t size, std::function<void()> & fn, std::string & error) {
#ifdef _WIN32
    const auto body = [](void * data) -> unsigned {
        (*static_cast<std::function<void()> *>(data))();
        return 0;
    };
    const auto handle = (HANDLE) _beginthreadex(nullptr, (unsigned) size, body, &fn, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!handle) {
        error = strerror(errno);
        return false;
    }
    WaitForSingleObject(handle, INFINITE);
    CloseHandle(handle);
#else
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int status = pthread_attr_setstacksize(&attributes, size);
    pthread_t thread;
    if (status == 0) {
        status = pthread_create(&thread, &attributes, [](void * data) -> void * {
            (*static_cast<std::function<void()> *>(data))();
            return nullptr;
        }, &fn);
    }
    pthread_attr_destroy(&attributes);
    if (status != 0) {
        error = strerror(status);
        return false;
    }
    pthread_join(thread, nullptr);
#endif
    return true;
}

lr_why run_here(const lr_limits & limits, const std::function<void()> & fn, std::string & error) {
    bound_scope scope{limits, stack_position() - limits.stack, thread_time_us()};
    auto * outer = current;
    current = &scope;
    lr_why failure = LR_WHY_OK;
    try {
        fn();
    } catch (const std::exception & e) {
        error   = e.what();
        failure = LR_WHY_REFUSED;
    } catch (...) {
        error   = "unknown C++ exception";
        failure = LR_WHY_REFUSED;
    }
    current = outer;
    // common catches exceptions itself here and there, and goes on with half of the work done
    if (scope.reached != limit::none) {
        error   = describe(scope);
        failure = LR_WHY_EXCEEDED;
    }
    return failure;
}

size_t allocated_size(void * ptr) {
#if defined(_WIN32)
    return _msize(ptr);
#elif defined(__APPLE__)
    return malloc_size(ptr);
#else
    return malloc_usable_size(ptr);
#endif
}

// Called before an allocation. Mostly it leaves the refusal to the next step: destructors may allocate, too, and must not
// throw. What is large, or goes on without a step, is refused here.
void charge(bound_scope & scope, size_t size) {
    const int64_t after = scope.memory + (int64_t) size;
    if (after <= scope.limits.memory) {
        return;
    }
    if (scope.reached == limit::none) {
        scope.reached = limit::memory;
    }
    if ((size >= LARGE || after > 2 * scope.limits.memory) && std::uncaught_exceptions() == 0) {
        throw std::bad_alloc();
    }
}

void * allocate(size_t size) {
    bound_scope * scope = current;
    if (scope) {
        charge(*scope, size);
    }
    for (;;) {
        if (void * ptr = malloc(size ? size : 1)) {
            if (scope) {
                scope->memory += (int64_t) allocated_size(ptr);
            }
            return ptr;
        }
        const auto handler = std::get_new_handler();
        if (!handler) {
            throw std::bad_alloc();
        }
        handler();
    }
}

void * allocate_or_null(size_t size) noexcept {
    try {
        return allocate(size);
    } catch (...) {
        return nullptr;
    }
}

void release(void * ptr) noexcept {
    if (current && ptr) {
        current->memory -= (int64_t) allocated_size(ptr);
    }
    free(ptr);
}

}  // namespace

void lr_step() {
    bound_scope * scope = current;
    if (!scope) {
        return;
    }
    if (scope->reached == limit::none) {
        if (stack_position() < scope->floor) {
            scope->reached = limit::stack;
        } else if (--scope->countdown <= 0) {
            scope->countdown = STEPS_PER_LOOK;
            if (thread_time_us() - scope->started_us > scope->limits.time_us) {
                scope->reached = limit::time;
            }
        }
        if (scope->reached == limit::none) {
            return;
        }
    }
    throw std::runtime_error(describe(*scope));
}

void lr_note(std::FILE *, const char * format, ...) {
    if (!current) {
        return;
    }
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    current->notes += line;
}

std::string lr_take_notes() {
    return current ? std::exchange(current->notes, {}) : "";
}

lr_why lr_run_bounded(const lr_limits & limits, const std::function<void()> & fn, std::string & error) {
    constexpr size_t SLACK = 256 * 1024;  // what the thread itself, an exception and its message need
    const size_t     need   = limits.stack + limits.reserve + SLACK;
    const auto       bottom = stack_bottom();
    if (bottom != 0 && stack_position() - bottom > need) {
        return run_here(limits, fn, error);
    }
    lr_why failure = LR_WHY_NO_STACK;
    const auto caller  = lr_log_author();
    std::function<void()> body = [&] {
        lr_log_write_as(caller);
        failure = run_here(limits, fn, error);
    };
    std::string reason;
    if (!run_on_stack(need, body, reason)) {
        error = "cannot start a thread with a stack of " + std::to_string(need >> 20) + " MiB: " + reason;
    }
    return failure;
}

// Every allocation of this library passes here, and of this library only: the linker binds them inside of it. They are
// malloc and free, so that it does not matter which library releases what another allocated.
#if !defined(__SANITIZE_ADDRESS__) && !defined(LR_NO_MEMORY_BOUND)

// clang-format off
void * operator new(std::size_t size)                                      { return allocate(size); }
void * operator new[](std::size_t size)                                    { return allocate(size); }
void * operator new(std::size_t size, const std::nothrow_t &) noexcept     { return allocate_or_null(size); }
void * operator new[](std::size_t size, const std::nothrow_t &) noexcept   { return allocate_or_null(size); }
void operator delete(void * ptr) noexcept                                  { release(ptr); }
void operator delete[](void * ptr) noexcept                                { release(ptr); }
void operator delete(void * ptr, std::size_t) noexcept                     { release(ptr); }
void operator delete[](void * ptr, std::size_t) noexcept                   { release(ptr); }
void operator delete(void * ptr, const std::nothrow_t &) noexcept          { release(ptr); }
void operator delete[](void * ptr, const std::nothrow_t &) noexcept        { release(ptr); }
// clang-format on

#endif
