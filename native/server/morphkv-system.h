// How long the system prompt of a chat is, in tokens: templates say it in many ways, some add to it, and tools may be a part
// of it. So a chat is rendered twice, the second time with another question; what both begin with is the system prompt.
#pragma once

#include "json.h"
#include "llama.h"

#include <vector>

struct common_chat_templates;
struct common_chat_templates_inputs;

// Adds the second rendering to a request that was made from chat messages, if these have a system prompt or tools.
void morphkv_system_render(const common_chat_templates * templates, const common_chat_templates_inputs & inputs,
                           common_json & request);

// tokens: of the request's prompt. 0 where the request is no chat, or has neither system prompt nor tools.
int32_t morphkv_system_count(const llama_vocab * vocab, const common_json & request,
                             const std::vector<llama_token> & tokens);
