#include "morphkv-system.h"

#include "chat.h"
#include "common.h"
#include "log.h"

#include <exception>

static const char * const KEY = "__morphkv_other_question";

void morphkv_system_render(const common_chat_templates * templates, const common_chat_templates_inputs & inputs,
                           common_json & request) {
    common_chat_templates_inputs other = inputs;
    other.add_generation_prompt        = false;
    other.continue_final_message       = COMMON_CHAT_CONTINUATION_NONE;

    other.messages.clear();
    std::string question;
    for (const auto & message : inputs.messages) {
        if (message.role != "system" && message.role != "developer") {
            question = message.content;
            break;
        }
        other.messages.push_back(message);
    }
    if (other.messages.empty() && inputs.tools.empty()) {
        return;
    }
    common_chat_msg user;
    user.role    = "user";
    user.content = question.rfind("a", 0) == 0 ? "b" : "a";
    other.messages.push_back(user);

    try {
        request[KEY] = common_chat_templates_apply(templates, other).prompt;
    } catch (const std::exception & error) {
        LOG_WRN("MorphKV: the system prompt of a chat is not kept, its template refuses another question: %s\n",
                error.what());
    }
}

int32_t morphkv_system_count(const llama_vocab * vocab, const common_json & request,
                             const std::vector<llama_token> & tokens) {
    if (!request.contains(KEY)) {
        return 0;
    }
    const auto other = common_tokenize(vocab, request.at(KEY).get<std::string>(), true, true);

    size_t n = 0;
    while (n < tokens.size() && n < other.size() && tokens[n] == other[n]) {
        n++;
    }
    return n;
}
