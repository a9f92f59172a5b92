// Bounds on what a template, a schema or a model's answer may use of the machine: stack, processor time, memory.
// llama.cpp's common runs all three by recursion, without a bound of its own; see bounds.cpp and steps.h.
#pragma once

#include "llama_runner.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct lr_limits {
    size_t  stack;    // bytes of stack that recursion may take
    size_t  reserve;  // bytes below them, for what takes stack and cannot be stopped: destructors, a deep syntax tree
    int64_t memory;   // bytes of heap at one time
    int64_t time_us;  // processor time of the thread
};

// Runs `fn` under `limits`: here where the stack has room, else on a thread of its own while this one waits. No exception
// leaves it: on failure `error` says why. What `fn` was doing is unwound then, as by any C++ exception.
lr_why lr_run_bounded(const lr_limits & limits, const std::function<void()> & fn, std::string & error);

// Takes the lines of lr_note(), inside of `fn`.
std::string lr_take_notes();
