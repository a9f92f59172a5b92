// What the sources of llama.cpp's common call, by way of steps.h; see bounds.cpp.
#pragma once

#include <cstdio>

// One step of work under the bounds, if there are any on this thread. Throws when a limit is reached, and at every step
// from then on, so that no `catch` goes on as if nothing had happened.
void lr_step();

// The same inside of an expression.
inline int lr_step_zero() {
    lr_step();
    return 0;
}

// Keeps a line that upstream would write to `file`, for the function that runs under the bounds to take.
void lr_note(std::FILE * file, const char * format, ...);
