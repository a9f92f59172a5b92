#include "llama_runner.h"

#include "chat.h"
#include "json.h"
#include "shared.h"

#include <exception>
#include <string>

struct lr_chat {
    common_chat_templates_ptr templates;
    std::string               source;
};

lr_chat * lr_chat_new(const llama_model * model, const char * source, char ** error) {
    *error = nullptr;
    try {
        auto templates = common_chat_templates_init(model, source ? source : "");
        // common falls back to ChatML where a model has no template; a guess is not what was asked for
        if (!source && !common_chat_templates_was_explicit(templates.get())) {
            return nullptr;
        }
        auto source_text = common_chat_templates_source(templates.get());
        auto * chat = new lr_chat{std::move(templates), std::move(source_text)};
        lr_live_add(LR_CHAT, 1);
        return chat;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
    } catch (...) {
        *error = lr_copy_string("unknown C++ exception");
    }
    return nullptr;
}

void lr_chat_free(lr_chat * chat) {
    lr_live_add(LR_CHAT, chat ? -1 : 0);
    delete chat;
}

const char * lr_chat_source(const lr_chat * chat) {
    return chat->source.c_str();
}

char * lr_chat_apply(const lr_chat * chat, const char * request, char ** error) {
    *error = nullptr;
    try {
        const auto json = common_json::parse(request);
        common_chat_templates_inputs inputs;
        inputs.messages              = common_chat_msgs_parse_oaicompat(json.at("messages"));
        inputs.add_generation_prompt = json.at("add_generation_prompt").get<bool>();
        inputs.enable_thinking       = json.at("enable_thinking").get<bool>();
        if (json.contains("tools")) {
            inputs.tools = common_chat_tools_parse_oaicompat(json.at("tools"));
        }
        if (json.contains("template_kwargs")) {
            for (const auto & item : json.at("template_kwargs").items()) {
                inputs.chat_template_kwargs[item.key()] = item.value().dump();
            }
        }
        return lr_copy_string(common_chat_templates_apply(chat->templates.get(), inputs).prompt);
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
    } catch (...) {
        *error = lr_copy_string("unknown C++ exception");
    }
    return nullptr;
}
