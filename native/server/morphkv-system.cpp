#include "morphkv-system.h"

#include "common.h"
#include "log.h"
#include "server-common.h"

#include <exception>
#include <set>
#include <string>

// The chat with its system prompt and another question alone; null where it has neither system prompt nor tools.
static common_json with_another_question(const common_json & request) {
    common_json system = common_json::array();
    std::string question;
    for (const auto & message : request.at("messages")) {
        const std::string role = json_value(message, "role", std::string());
        if (role != "system" && role != "developer") {
            if (message.contains("content") && message.at("content").is_string()) {
                question = message.at("content").get<std::string>();
            }
            break;
        }
        system.push_back(message);
    }
    const auto tools = json_value(request, "tools", common_json());
    if (system.empty() && !(tools.is_array() && !tools.empty())) {
        return nullptr;
    }
    system.push_back({ { "role", "user" }, { "content", question.rfind("a", 0) == 0 ? "b" : "a" } });

    // all that may reach the template; a grammar was made from other fields of these, and refuses them beside itself
    static const std::set<std::string> other = { "messages", "prompt",      "grammar", "continue_final_message",
                                                 "logprobs", "top_logprobs" };
    common_json                        res   = common_json::object();
    for (const auto & item : request.items()) {
        if (other.count(item.key()) == 0) {
            res[item.key()] = item.value();
        }
    }
    res["messages"]              = system;
    res["add_generation_prompt"] = false;
    return res;
}

int32_t morphkv_system_count(const llama_vocab * vocab, const server_chat_params & chat, const common_json & request,
                             const std::vector<llama_token> & tokens) {
    // a raw prompt has no format of a chat
    if (!request.contains("chat_format") || !request.contains("messages")) {
        return 0;
    }
    std::vector<llama_token> other;
    try {
        common_json body = with_another_question(request);
        if (body.is_null()) {
            return 0;
        }
        std::vector<raw_buffer> files;
        const auto              parsed = oaicompat_chat_params_parse(body, chat, files);
        other                          = common_tokenize(vocab, parsed.at("prompt").get<std::string>(), true, true);
    } catch (const std::exception & error) {
        LOG_WRN("MorphKV: the system prompt of a chat is not kept, its template refuses another question: %s\n",
                error.what());
        return 0;
    }

    size_t n = 0;
    while (n < tokens.size() && n < other.size() && tokens[n] == other[n]) {
        n++;
    }
    return n;
}
