#include "morphkv-system.h"

#include "common.h"
#include "log.h"
#include "server-common.h"

#include <algorithm>
#include <exception>
#include <set>
#include <string>

static std::string content_of(const common_json & message) {
    const bool is_text = message.contains("content") && message.at("content").is_string();
    return is_text ? message.at("content").get<std::string>() : "";
}

// The first n of a chat's messages, and another question than `question` behind them.
static common_json with_another_question(const common_json & request, size_t n, const std::string & question) {
    common_json messages = common_json::array();
    for (size_t i = 0; i < n; ++i) {
        messages.push_back(request.at("messages").at(i));
    }
    messages.push_back({ { "role", "user" }, { "content", question.rfind("a", 0) == 0 ? "b" : "a" } });

    // all that may reach the template; a grammar was made from other fields of these, and refuses them beside itself
    static const std::set<std::string> other = { "messages", "prompt",      "grammar", "continue_final_message",
                                                 "logprobs", "top_logprobs" };
    common_json                        res   = common_json::object();
    for (const auto & item : request.items()) {
        if (other.count(item.key()) == 0) {
            res[item.key()] = item.value();
        }
    }
    res["messages"]              = messages;
    res["add_generation_prompt"] = false;
    return res;
}

// First tokens that a chat has in common with the same chat that asks something else behind its first n messages. Throws what
// the template does.
static int32_t n_before_question(const llama_vocab * vocab, const server_chat_params & chat,
                                 const common_json & request, size_t n, const std::string & question,
                                 const std::vector<llama_token> & tokens) {
    common_json                    body = with_another_question(request, n, question);
    std::vector<raw_buffer>        files;
    const auto                     parsed = oaicompat_chat_params_parse(body, chat, files);
    const std::vector<llama_token> other  = common_tokenize(vocab, parsed.at("prompt").get<std::string>(), true, true);
    const size_t                   n_most = std::min(tokens.size(), other.size());
    return std::mismatch(tokens.begin(), tokens.begin() + n_most, other.begin()).first - tokens.begin();
}

// a raw prompt has no format of a chat
static bool is_chat(const common_json & request) {
    return request.contains("chat_format") && request.contains("messages");
}

int32_t morphkv_system_count(const llama_vocab * vocab, const server_chat_params & chat, const common_json & request,
                             const std::vector<llama_token> & tokens) {
    if (!is_chat(request)) {
        return 0;
    }
    size_t      n_system = 0;
    std::string question;
    for (const auto & message : request.at("messages")) {
        const std::string role = json_value(message, "role", std::string());
        if (role != "system" && role != "developer") {
            question = content_of(message);
            break;
        }
        n_system++;
    }
    const auto tools = json_value(request, "tools", common_json());
    if (n_system == 0 && !(tools.is_array() && !tools.empty())) {
        return 0;
    }
    try {
        return n_before_question(vocab, chat, request, n_system, question, tokens);
    } catch (const std::exception & error) {
        LOG_WRN("MorphKV: the system prompt of a chat is not kept, its template refuses another question: %s\n",
                error.what());
        return 0;
    }
}

int32_t morphkv_question_start(const llama_vocab * vocab, const server_chat_params & chat, const common_json & request,
                               const std::vector<llama_token> & tokens) {
    // what is before a question may be one token with its beginning
    static constexpr int32_t N_JOINED = 2;
    if (!is_chat(request) || request.at("messages").empty()) {
        return 0;
    }
    const auto & messages = request.at("messages");
    const size_t i_last   = messages.size() - 1;
    if (json_value(messages.at(i_last), "role", std::string()) != "user") {
        return 0;
    }
    try {
        const std::string question = content_of(messages.at(i_last));
        return std::max(0, n_before_question(vocab, chat, request, i_last, question, tokens) - N_JOINED);
    } catch (const std::exception & error) {
        LOG_DBG("MorphKV: where a question begins is not known: %s\n", error.what());
        return 0;
    }
}
