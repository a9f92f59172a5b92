#include "chat_prompt.h"

#include "chat-auto-parser.h"
#include "chat.h"

#include <algorithm>

namespace {

thread_local bool        only = false;
thread_local std::string last;  // the prompt that was rendered last: the generator asks for its end next

}  // namespace

void lr_want_prompt_only(bool value) {
    only = value;
    last.clear();
}

std::string lr_template_prompt(const common_chat_template & tmpl, const autoparser::generation_params & inputs) {
    std::string prompt = common_chat_template_direct_apply(tmpl, inputs);
    if (only) {
        throw lr_prompt_found{std::move(prompt)};
    }
    last = prompt;
    return prompt;
}

std::string lr_template_generation_prompt(const common_chat_template & tmpl, const autoparser::generation_params & inputs) {
    auto other = inputs;
    other.add_generation_prompt = !inputs.add_generation_prompt;
    const std::string rendered = common_chat_template_direct_apply(tmpl, other);
    const std::string & with    = inputs.add_generation_prompt ? last : rendered;
    const std::string & without = inputs.add_generation_prompt ? rendered : last;
    const auto end = std::mismatch(with.begin(), with.begin() + (long) std::min(with.size(), without.size()), without.begin());
    return {end.first, with.end()};
}
