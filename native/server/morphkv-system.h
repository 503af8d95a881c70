// Where parts of a chat begin and end, in tokens: templates say it in many ways, some add to it, and tools may be a part of it.
// So a chat is rendered a second time with another question; what both begin with is what was before that.
#pragma once

#include "json.h"
#include "llama.h"

#include <vector>

struct server_chat_params;

// How long the system prompt is.
// request: as oaicompat_chat_params_parse() gives it; tokens: of its prompt. 0 where it is no chat, or has neither system
// prompt nor tools.
int32_t morphkv_system_count(const llama_vocab * vocab, const server_chat_params & chat, const common_json & request,
                             const std::vector<llama_token> & tokens);

// Where its last message is a user's: before it, so that a checkpoint there serves any other text of it. Else 0.
int32_t morphkv_question_start(const llama_vocab * vocab, const server_chat_params & chat, const common_json & request,
                               const std::vector<llama_token> & tokens);
