// What common's generator of parsers asks a template for, rendered no more often than it has to be. It calls these in place
// of common's own two (see CMakeLists.txt): there the prompt is rendered, and then twice more to find its end.
#pragma once

#include <string>

// Thrown out of common by a thread that wants the prompt alone. No std::exception: common would catch that.
struct lr_prompt_found {
    std::string prompt;
};

// From here on, on this thread: whether the prompt is all that is wanted.
void lr_want_prompt_only(bool only);
