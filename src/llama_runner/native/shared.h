// What the files of the shim share among themselves.
#pragma once

#include "ggml.h"

#include <string>
#include <thread>

// A malloc'ed, NUL-terminated copy; NULL when memory is out.
char * lr_copy_string(const std::string & text);

// Keeps one line of log for Python to fetch; any thread.
void lr_log_line(ggml_log_level level, const char * text);

// Whose lines those of the calling thread are: its own, until it works for another.
std::thread::id lr_log_author();
void            lr_log_write_as(std::thread::id author);
