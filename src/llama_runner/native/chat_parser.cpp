#include "llama_runner.h"

#include "bounds.h"
#include "chat.h"
#include "json.h"
#include "shared.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

struct lr_parser {
    common_chat_parser_params params;

    std::string     text;   // everything that was pushed
    common_chat_msg given;  // what the deltas so far add up to
};

namespace {

// Small enough for most threads, so that a push needs no thread of its own; some hundred levels of JSON.
lr_limits answer_limits(size_t size, int64_t time_us) {
    constexpr size_t MIB = 1024 * 1024;
    lr_limits limits;
    limits.stack   = MIB;
    limits.reserve = MIB / 2;
    limits.memory  = (int64_t) (64 * MIB + 64 * size);
    limits.time_us = time_us;
    return limits;
}

// Where the parser stopped, in characters of `text`.
int64_t stopped_at(const common_chat_parser_params & params, const std::string & text) {
    common_peg_parse_context context(params.generation_prompt + text, COMMON_PEG_PARSE_FLAG_LENIENT);
    const size_t end    = params.parser.parse(context).end;
    const size_t prefix = params.generation_prompt.size();
    const auto   stop   = text.begin() + (ptrdiff_t) (end > prefix ? end - prefix : 0);
    return std::count_if(text.begin(), stop, [](unsigned char c) { return (c & 0xC0) != 0x80; });
}

// The part of `text` that ends with a whole character.
size_t whole_characters(const std::string & text) {
    for (size_t back = 1; back <= 3 && back <= text.size(); back++) {
        const unsigned char c = text[text.size() - back];
        if (c >= 0xC0) {
            const size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            return back < length ? text.size() - back : text.size();
        }
        if (c < 0x80) {
            break;
        }
    }
    return text.size();
}

common_chat_msg parse(const common_chat_parser_params & params, std::string text, bool partial, int64_t * position) {
    const size_t whole = whole_characters(text);
    if (whole < text.size()) {
        text.replace(whole, std::string::npos, partial ? "" : "\xEF\xBF\xBD");  // U+FFFD
    }
    try {
        return common_chat_parse(text, partial, params);
    } catch (const std::exception &) {
        if (!params.parser.empty()) {
            *position = stopped_at(params, text);
        }
        throw;
    }
}

common_json to_json(const common_chat_tool_call & call) {
    return common_json{
        {"name",      call.name     },
        {"arguments", call.arguments},
        {"id",        call.id       },
    };
}

std::string to_json(const common_chat_msg & message) {
    auto calls = common_json::array();
    for (const auto & call : message.tool_calls) {
        calls.push_back(to_json(call));
    }
    const common_json json{
        {"content",           message.content          },
        {"reasoning_content", message.reasoning_content},
        {"tool_calls",        calls                    },
    };
    return json.dump_safe();
}

bool starts_with(const std::string & text, const std::string & start) {
    return text.compare(0, start.size(), start) == 0;
}

// Takes over what is new in `seen`. Text that was given out cannot be taken back: where `seen` is shorter, `given` stays.
void advance(std::string & given, const std::string & seen) {
    if (starts_with(seen, given)) {
        given = seen;
    } else if (!starts_with(given, seen)) {
        throw std::runtime_error("a later part of the answer changes the meaning of what was given out");
    }
}

void advance(common_chat_msg & given, const common_chat_msg & seen) {
    advance(given.content, seen.content);
    advance(given.reasoning_content, seen.reasoning_content);
    const size_t known_calls = given.tool_calls.size();
    for (size_t i = 0; i < seen.tool_calls.size(); i++) {
        const auto & call = seen.tool_calls[i];
        if (i == given.tool_calls.size()) {
            given.tool_calls.push_back(call);
            continue;
        }
        auto & known = given.tool_calls[i];
        if (known == call) {
            continue;
        }
        if (i + 1 < known_calls || known.name != call.name || (!known.id.empty() && known.id != call.id)) {
            throw std::runtime_error("a later part of the answer changes a tool call that was given out");
        }
        known.id = call.id;
        advance(known.arguments, call.arguments);
    }
}

// While the answer goes on, the last call's name may still grow: it waits until its arguments begin.
void hold_back(common_chat_msg & message) {
    auto & calls = message.tool_calls;
    if (!calls.empty() && (calls.back().arguments.empty() || calls.back().arguments == "{")) {
        calls.pop_back();
    }
}

// common gives a name again with the id that follows it, and an id with the name; who appends would have it twice.
void leave_out_known(common_chat_msg_diff & diff, const common_chat_msg & given) {
    if (diff.tool_call_index >= given.tool_calls.size()) {  // a new call, or no call
        return;
    }
    const auto & known = given.tool_calls[diff.tool_call_index];
    auto &       delta = diff.tool_call_delta;
    if (delta.name == known.name) {
        delta.name.clear();
    }
    if (delta.id == known.id) {
        delta.id.clear();
    }
}

std::string to_json(const std::vector<common_chat_msg_diff> & diffs) {
    auto deltas = common_json::array();
    for (const auto & diff : diffs) {
        if (!diff.reasoning_content_delta.empty()) {
            deltas.push_back({{"reasoning_content", diff.reasoning_content_delta}});
        }
        if (!diff.content_delta.empty()) {
            deltas.push_back({{"content", diff.content_delta}});
        }
        if (diff.tool_call_index != std::string::npos) {
            auto delta = to_json(diff.tool_call_delta);
            delta["index"] = diff.tool_call_index;
            deltas.push_back(delta);
        }
    }
    return deltas.dump_safe();
}

int finish(lr_why failure, const std::string & result, const std::string & message, char ** out, char ** error) {
    *out   = failure == LR_WHY_OK ? lr_copy_string(result) : nullptr;
    *error = failure == LR_WHY_OK ? nullptr : lr_copy_string(message);
    return failure;
}

}  // namespace

int lr_parser_new(lr_parser ** parser, const char * description, int64_t time_us, char ** error) {
    *parser = nullptr;
    *error  = nullptr;
    std::string message;
    auto *      made    = new (std::nothrow) lr_parser;
    const auto  failure = lr_run_bounded(answer_limits(strlen(description), time_us), [&] {
        if (!made) {
            throw std::bad_alloc();
        }
        const auto json   = common_json::parse(description);
        const int  format = json.at("format").get<int>();
        if (format < 0 || format >= COMMON_CHAT_FORMAT_COUNT) {
            throw std::runtime_error("there is no chat format " + std::to_string(format));
        }
        auto & params            = made->params;
        params.format            = (common_chat_format) format;
        params.generation_prompt = json.at("generation_prompt").get<std::string>();
        params.is_continuation   = json.at("continues").get<bool>();
        const auto arena         = json.at("arena").get<std::string>();
        if (!arena.empty()) {
            params.parser.load(arena);
        }
        made->given.role = "assistant";
        if (params.is_continuation) {  // the beginning of the answer is in the prompt, and no delta
            made->given = common_chat_parse("", true, params);
        }
    }, message);
    if (failure != LR_WHY_OK) {
        lr_parser_free(made);
        *error = lr_copy_string(message);
        return failure;
    }
    *parser = made;
    return LR_WHY_OK;
}

void lr_parser_free(lr_parser * parser) {
    delete parser;
}

int lr_parser_parse(const lr_parser * parser, const char * text, size_t size, bool partial, int64_t time_us, char ** message,
                    int64_t * position, char ** error) {
    *position = -1;
    std::string result, problem;
    const auto  failure = lr_run_bounded(answer_limits(size, time_us), [&] {
        auto seen = parse(parser->params, std::string(text, size), partial, position);
        if (partial) {
            hold_back(seen);
        }
        result = to_json(seen);
    }, problem);
    return finish(failure, result, problem, message, error);
}

int lr_parser_push(lr_parser * parser, const char * text, size_t size, bool last, int64_t time_us, char ** deltas,
                   int64_t * position, char ** error) {
    *position = -1;
    std::string result, problem;
    const auto  failure = lr_run_bounded(answer_limits(parser->text.size() + size, time_us), [&] {
        parser->text.append(text, size);
        auto seen = parse(parser->params, parser->text, !last, position);
        if (!last) {
            hold_back(seen);
        }
        auto after = parser->given;
        advance(after, seen);
        if (last && after != seen) {
            throw std::runtime_error("the end of the answer takes back what was given out");
        }
        auto diffs    = common_chat_msg_diff::compute_diffs(parser->given, after);
        for (auto & diff : diffs) {
            leave_out_known(diff, parser->given);
        }
        result        = to_json(diffs);
        parser->given = after;
    }, problem);
    return finish(failure, result, problem, deltas, error);
}

char * lr_parser_message(const lr_parser * parser) {
    try {
        return lr_copy_string(to_json(parser->given));
    } catch (...) {
        return nullptr;
    }
}
