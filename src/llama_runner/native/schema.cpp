#include "llama_runner.h"

#include "bounds.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "llama-grammar.h"
#include "shared.h"

#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace {

int run(const char * input, int64_t time_us, const std::function<void()> & fn, char ** error) {
    constexpr size_t MIB = 1024 * 1024;
    lr_limits limits;
    limits.stack   = 8 * MIB;
    limits.reserve = 32 * MIB;
    limits.memory  = (int64_t) (64 * MIB + 32 * strlen(input));
    limits.time_us = time_us;
    std::string message;
    const auto failure = lr_run_bounded(limits, fn, message);
    *error = failure == LR_WHY_OK ? nullptr : lr_copy_string(message);
    return failure;
}

}  // namespace

int lr_schema_to_grammar(const char * schema, int64_t time_us, char ** grammar, char ** notes, char ** error) {
    std::string result, left_out;
    const int   failure = run(schema, time_us, [&] {
        result   = json_schema_to_grammar(common_json::parse(schema), /* force_gbnf= */ true);
        left_out = lr_take_notes();
    }, error);
    *grammar = failure == LR_WHY_OK ? lr_copy_string(result) : nullptr;
    *notes   = failure == LR_WHY_OK ? lr_copy_string(left_out) : nullptr;
    return failure;
}

int lr_grammar_check(const char * grammar, int64_t time_us, char ** error) {
    return run(grammar, time_us, [&] {
        llama_grammar_parser parser;
        if (!parser.parse(grammar)) {
            throw std::runtime_error("llama.cpp cannot read it: its repetitions multiply to too many rules, or a name holds a "
                                     "character that is not escaped");
        }
    }, error);
}
