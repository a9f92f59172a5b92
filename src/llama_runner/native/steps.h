// Forced before every source of llama.cpp's common that is compiled here (see CMakeLists.txt), so that what it runs by
// recursion or in a loop passes lr_step() of bounds.h, with the vendored source as it is. The steps go in at names of
// upstream's own, each of which stands only in functions that may throw:
//
//   JJ_DEBUG  the debug line that the template interpreter has at each statement and call
//   is_val    its type test, made at each value by everything that walks nested ones
//   npos      the end of the searches in value.cpp, which replace and split text in quadratic time
//   at, find  the look-ups by which the parser of answers and the converter of schemas go on
//   fprintf   the converter's warning that it left something out, kept for the caller instead of written to stderr
//
// And numbers with a fraction, which the template interpreter would write with six digits, so that a coordinate or a price
// in a call becomes another one in the next prompt, go at these names:
//
//   as_float   what `tojson` writes into its stream (elsewhere in value.cpp it stays a double)
//   to_string  what is printed, in value.h
//
// What passes none of these (a syntax tree of operators, the destructors of nested values) is bounded by the size of the
// template or of the memory, and lr_limits::reserve is for it.
#pragma once

#ifdef __cplusplus

// The memory of strings and string streams counts only if their code is compiled here; libstdc++ would bring its own.
#    include <cstddef>
#    ifdef __GLIBCXX__
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 0
#        include <string>
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 1
#        include <istream>
#        include <locale>
#        include <ostream>
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 0
#        include <sstream>
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 1
#    endif

#    include "jinja/string.h"
#    include "number.h"
#    include "step.h"

#    include <algorithm>
#    include <cmath>
#    include <cstdint>
#    include <functional>
#    include <map>
#    include <memory>
#    include <set>
#    include <sstream>
#    include <string>
#    include <unordered_map>
#    include <vector>
#    define to_string(number) string(lr_print(number))
#    include "jinja/value.h"
#    undef to_string

namespace jinja {
template <typename T, typename V> bool is_val_step(const V & val) {
    lr_step();
    return is_val<T>(val);
}
}  // namespace jinja
#    define is_val is_val_step

#    include "jinja/runtime.h"
#    undef JJ_DEBUG
#    define JJ_DEBUG(...) lr_step()

// whatever these sources include comes before the macros, so that only their own text is meant
#    if defined(LR_STEPS_AT_SEARCH_END)
#        include "json.h"
#        include "unicode.h"

#        include <cctype>
#        include <optional>
#        define npos npos + lr_step_zero()
#        define as_float() as_float() * lr_as_json()
#    elif defined(LR_STEPS_AT_LOOK_UP)
#        include "common.h"
#        include "json-schema-to-grammar.h"
#        include "log.h"
#        include "peg-parser.h"
#        include "trie.h"
#        include "unicode.h"

#        include <cstdio>
#        include <initializer_list>
#        include <limits>
#        include <regex>
#        include <stdexcept>
#        include <unordered_set>
#        include <utility>
#        define at(key) at((lr_step(), (key)))
#        define find(key) find((lr_step(), (key)))
#        define fprintf lr_note
#    endif

#endif
