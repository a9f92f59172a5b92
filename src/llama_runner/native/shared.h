// What the files of the shim share among themselves.
#pragma once

#include "ggml.h"

#include <string>
#include <thread>

// A malloc'ed, NUL-terminated copy; NULL when memory is out.
char * lr_copy_string(const std::string & text);

// Keeps one line of log for Python to fetch; any thread.
void lr_log_line(ggml_log_level level, const char * text);

// From here on a fork leaves a process behind that must not compute.
void lr_note_start();

// While set, each line that the calling thread logs goes to `tap` as well, whatever its level. An exception out of it
// unwinds through llama.cpp to whoever called that. NULL ends it.
using lr_tap_fn = void (*)(ggml_log_level level, const char * text, void * user_data);
void lr_tap_log(lr_tap_fn tap, void * user_data);

// Whose lines those of the calling thread are: its own, until it works for another, which waits for it meanwhile.
void * lr_log_author();
void   lr_log_write_as(void * author);
