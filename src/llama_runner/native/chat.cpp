#include "llama_runner.h"

#include "bounds.h"
#include "chat.h"
#include "chat_prompt.h"
#include "json.h"
#include "shared.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>

struct lr_chat {
    common_chat_templates_ptr templates;
    common_chat_templates_ptr reader;  // of the same text, see make_reader; may be none
    std::string               source;
};

namespace {

constexpr size_t MIB = 1024 * 1024;

// A template of 128 KiB may hold some 60,000 operators in a row, which take up to 2 KiB of stack each.
constexpr size_t TREE_STACK = 128 * MIB;

// The memory, filled with one list in another, is taken apart again by destructors that recurse.
lr_limits template_limits(size_t input_size, int64_t time_us) {
    lr_limits limits;
    limits.stack   = 16 * MIB;
    limits.memory  = (int64_t) (96 * MIB + 32 * input_size);
    limits.reserve = TREE_STACK + 2 * (size_t) limits.memory;
    limits.time_us = time_us;
    return limits;
}

// Upstream's test divides by what the template says, and a division by zero ends the process.
void repair_builtins() {
    static const bool once = [] {
        const_cast<jinja::func_handler &>(jinja::global_builtins().at("test_is_divisibleby")) = [](const jinja::func_args & args) {
            args.ensure_vals<jinja::value_int, jinja::value_int>();
            const int64_t divisor = args.get_pos(1)->as_int();
            if (divisor == 0) {
                throw jinja::raised_exception("divisibleby(0): there is no division by zero");
            }
            const bool divides = divisor == -1 || args.get_pos(0)->as_int() % divisor == 0;
            return jinja::value(jinja::mk_val<jinja::value_bool>(divides));
        };
        return true;
    }();
    (void) once;
}

// common finds the form of the answers by comparing what the template renders, and takes two things for part of them that
// are none: the end token after the last call, which the parser would then demand of the answer (Mistral Small 3.2), and a
// generation prompt that is there because nobody said that there should be none (RWKV, Solar). So it looks at a template
// that has neither. It takes as long again, and most templates know of neither. A model with two templates is left to
// common.
common_chat_templates_ptr make_reader(const common_chat_templates * templates, const std::string & source) {
    static const std::string no_prompt =
        "{% if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif %}";
    static const char * const signs[] = {"eos_token", "add_generation_prompt is", "add_generation_prompt |",
                                         "add_generation_prompt|"};
    const bool needed = std::any_of(std::begin(signs), std::end(signs), [&](const char * sign) {
        return source.find(sign) != std::string::npos;
    });
    if (!needed || !common_chat_templates_source(templates, "tool_use").empty()) {
        return nullptr;
    }
    return common_chat_templates_init(nullptr, no_prompt + source);
}

// Takes the parser and what belongs to it from the reader, where it reads answers to the same prompt.
void read_with(const common_chat_templates * reader, const common_chat_templates_inputs & inputs, common_chat_params & params) {
    const auto found = common_chat_templates_apply(reader, inputs);
    if (found.generation_prompt != params.generation_prompt || found.format != params.format) {
        return;
    }
    params.parser           = found.parser;
    params.grammar          = found.grammar;
    params.grammar_lazy     = found.grammar_lazy;
    params.grammar_triggers = found.grammar_triggers;
    params.preserved_tokens = found.preserved_tokens;
    params.additional_stops = found.additional_stops;
}

int fail(lr_why failure, const std::string & message, char ** error) {
    if (failure != LR_WHY_OK) {
        *error = lr_copy_string(message);
    }
    return failure;
}

}  // namespace

int lr_chat_new(lr_chat ** chat, const llama_model * model, const char * source, int64_t time_us, char ** error) {
    *chat  = nullptr;
    *error = nullptr;
    std::string message;
    repair_builtins();
    const auto failure = lr_run_bounded(template_limits(0, time_us), [&] {
        auto templates = common_chat_templates_init(model, source ? source : "");
        // common falls back to ChatML where a model has no template; a guess is not what was asked for
        if (source || common_chat_templates_was_explicit(templates.get())) {
            auto text   = common_chat_templates_source(templates.get());
            auto reader = make_reader(templates.get(), text);
            *chat       = new lr_chat{std::move(templates), std::move(reader), std::move(text)};
            lr_live_add(LR_CHAT, 1);
        }
    }, message);
    if (failure != LR_WHY_OK) {
        lr_chat_free(*chat);
        *chat = nullptr;
    }
    return fail(failure, message, error);
}

void lr_chat_free(lr_chat * chat) {
    if (!chat) {
        return;
    }
    lr_live_add(LR_CHAT, -1);
    // a syntax tree is as deep as the template has operators in a row, and is taken apart by recursion
    std::string ignored;
    const lr_limits limits{0, TREE_STACK, INT64_MAX / 2, INT64_MAX / 2};
    lr_run_bounded(limits, [&] { delete chat; }, ignored);  // without a stack for it, it stays in memory
}

const char * lr_chat_source(const lr_chat * chat) {
    return chat->source.c_str();
}

namespace {

common_chat_templates_inputs parse_request(const common_json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    inputs.enable_thinking       = request.at("enable_thinking").get<bool>();
    if (request.contains("tools")) {
        inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    }
    if (request.contains("template_kwargs")) {
        for (const auto & item : request.at("template_kwargs").items()) {
            inputs.chat_template_kwargs[item.key()] = item.value().dump();
        }
    }
    if (request.contains("tool_choice")) {
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice").get<std::string>());
    }
    if (request.contains("parallel_tool_calls")) {
        inputs.parallel_tool_calls = request.at("parallel_tool_calls").get<bool>();
    }
    if (request.contains("reasoning_format")) {
        inputs.reasoning_format = common_reasoning_format_from_name(request.at("reasoning_format").get<std::string>());
    }
    if (request.contains("json_schema")) {
        inputs.json_schema = request.at("json_schema").dump();
    }
    if (request.contains("grammar")) {
        inputs.grammar = request.at("grammar").get<std::string>();
    }
    if (request.contains("continue_final_message")) {
        inputs.continue_final_message = common_chat_continuation_parse(request.at("continue_final_message"));
    }
    // common leaves the variable undefined where it is not true, and some templates take that for true
    inputs.chat_template_kwargs.emplace("add_generation_prompt", "false");
    return inputs;
}

const char * trigger_name(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:        return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:         return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:      return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return "pattern_full";
    }
    return "";
}

std::string describe(const common_chat_params & params, bool continues) {
    auto triggers = common_json::array();
    for (const auto & trigger : params.grammar_triggers) {
        triggers.push_back({
            {"type",  trigger_name(trigger.type)},
            {"value", trigger.value             },
            {"token", trigger.token             },
        });
    }
    const common_json parser{
        {"format",            (int) params.format     },
        {"generation_prompt", params.generation_prompt},
        {"continues",         continues               },
        {"arena",             params.parser           },
    };
    const common_json description{
        {"prompt",             params.prompt                          },
        {"grammar",            params.grammar                         },
        {"grammar_lazy",       params.grammar_lazy                    },
        {"grammar_triggers",   triggers                               },
        {"preserved_tokens",   params.preserved_tokens                },
        {"additional_stops",   params.additional_stops                },
        {"format",             common_chat_format_name(params.format) },
        {"generation_prompt",  params.generation_prompt               },
        {"supports_thinking",  params.supports_thinking               },
        {"thinking_start_tag", params.thinking_start_tag              },
        {"thinking_end_tags",  params.thinking_end_tags               },
        {"message_delimiters", params.message_delimiters.to_json()    },
        {"parser",             parser.dump_safe()                     },
        {"notes",              lr_take_notes()                        },
    };
    return description.dump_safe();
}

// Renders and hands the result to `take`, all of it under the bounds.
int render(const lr_chat * chat, const char * request, int64_t time_us, bool prompt_only,
           const std::function<void(common_chat_params &, const common_chat_templates_inputs &)> & take, char ** error) {
    *error = nullptr;
    std::string message;
    const auto failure = lr_run_bounded(template_limits(strlen(request), time_us), [&] {
        const auto inputs = parse_request(common_json::parse(request));
        common_chat_params params;
        lr_want_prompt_only(prompt_only);
        try {
            params = common_chat_templates_apply(chat->templates.get(), inputs);
        } catch (lr_prompt_found & found) {
            params.prompt = std::move(found.prompt);
        }
        take(params, inputs);
    }, message);
    return fail(failure, message, error);
}

}  // namespace

int lr_chat_apply(const lr_chat * chat, const char * request, int64_t time_us, char ** prompt, char ** error) {
    std::string result;
    const int   why = render(chat, request, time_us, true, [&](common_chat_params & params, const auto &) {
        result = params.prompt;
    }, error);
    *prompt = why == LR_WHY_OK ? lr_copy_string(result) : nullptr;
    return why;
}

int lr_chat_render(const lr_chat * chat, const char * request, int64_t time_us, char ** description, char ** error) {
    std::string result;
    const int   why = render(chat, request, time_us, false, [&](common_chat_params & params, const auto & inputs) {
        if (chat->reader) {
            lr_take_notes();  // those of the prompt: the reader makes the same again
            read_with(chat->reader.get(), inputs, params);
        }
        result = describe(params, inputs.continue_final_message != COMMON_CHAT_CONTINUATION_NONE);
    }, error);
    *description = why == LR_WHY_OK ? lr_copy_string(result) : nullptr;
    return why;
}

char * lr_chat_capabilities(const lr_chat * chat) {
    try {
        return lr_copy_string(common_json(common_chat_templates_get_caps(chat->templates.get())).dump());
    } catch (...) {
        return nullptr;
    }
}
