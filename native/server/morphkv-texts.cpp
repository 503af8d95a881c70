// The observer's texts: where they come from, and where they go when an answer has ended.

#include "common.h"
#include "llama.h"
#include "log.h"
#include "morphkv-defaults.h"
#include "morphkv-server.h"
#include "server-task.h"

#include <algorithm>

static constexpr llama_state_seq_flags CHECKPOINT = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

// To read as many tokens again takes no time that anyone notices.
static constexpr int32_t N_UNNOTICED = 256;
// To evaluate a text of so many takes less than to read it from disk.
static constexpr int32_t N_SHORT     = 64;

void morphkv_observer::say_why_anew(int32_t id_slot, const server_task & task, const server_prompt & prompt,
                                    int32_t n_past) const {
    const int32_t n_same = prompt.tokens.get_common_prefix(task.tokens);
    const bool    is_new = n_same <= N_UNNOTICED;  // another chat
    if (task.n_tokens() - n_past <= given.params.capacity || (!is_new && n_same - n_past <= N_UNNOTICED)) {
        return;
    }
    std::string why =
        "the slot's text is another one from token " + std::to_string(n_same) + " on, and no checkpoint is nearer";
    if (!task.params.cache_prompt) {
        why = "the request has cache_prompt false";
    } else if (prompt.n_tokens() == 0) {
        why = "nothing of it is in a slot, in the prompt cache (--cache-ram) or on disk (--morphkv-state-dir)";
    }
    LOG_INF("slot %d: MorphKV: %d of %d tokens are evaluated: %s\n", id_slot, task.n_tokens() - n_past, task.n_tokens(),
            why.c_str());
}

//
// chats on disk
//

int32_t morphkv_observer::find_chat(int32_t id_slot, const server_task & task, server_prompt & prompt,
                                    const loras & lora, llama_context * ctx_dft, int32_t n_past) {
    if (!task.params.cache_prompt || morphkv_name_loras(lora) != lora_of_all) {
        return n_past;
    }
    for (;;) {
        morphkv_chats::found chat = chats.find(id_slot, task.tokens, n_past);
        if (chat.n_past == 0) {
            return n_past;
        }
        if (take_chat(id_slot, chat, prompt, ctx_dft)) {
            LOG_INF("slot %d: MorphKV: %d of %d tokens come from disk\n", id_slot, chat.n_past, task.n_tokens());
            states.at(id_slot).pending.n_loaded   = chat.n_past;
            states.at(id_slot).pending.n_restored = 0;
            states.at(id_slot).moved              = {};
            return chat.n_past;
        }
        chats.refuse(id_slot);
        if (n_past > 0 && !holds(id_slot, prompt.tokens.pos_next())) {
            prompt.clear();
            n_past = 0;
        }
    }
}

// False where it is refused: then nothing has changed, or the slot is empty.
bool morphkv_observer::take_chat(int32_t id_slot, morphkv_chats::found & chat, server_prompt & prompt,
                                 llama_context * ctx_dft) {
    const auto & state = chat.states.at(chat.i_state);
    if (!given.archive.empty()) {
        chats.load_pages(id_slot, ctx);
    }
    if (!chat.tokens->validate(ctx) ||
        morphkv_state_load(ctx, id_slot, state.data.data(), state.data.size(), CHECKPOINT) != MORPHKV_STATUS_OK) {
        LOG_WRN("slot %d: MorphKV: a chat on disk is not gone on with: %s\n", id_slot, morphkv_last_error());
        return false;
    }
    prompt.clear();
    prompt.tokens = std::move(*chat.tokens);
    prompt.tokens.keep_first(state.n_tokens);
    if (ctx_dft) {
        // nothing is on disk for it
        llama_memory_seq_rm(llama_get_memory(ctx_dft), id_slot, -1, -1);
        return true;
    }
    for (auto & one : chat.states) {
        if (one.n_tokens < state.n_tokens) {
            auto & checkpoint = prompt.checkpoints.emplace_back();
            checkpoint.update_pos(one.n_tokens, one.pos_min, one.pos_max);
            checkpoint.data_tgt = std::move(one.data);
        }
    }
    return true;
}

static morphkv_chat_state state_of(llama_context * ctx, int32_t id_slot, int32_t n_tokens) {
    llama_memory_t     memory = llama_get_memory(ctx);
    morphkv_chat_state res    = {
        n_tokens, llama_memory_seq_pos_min(memory, id_slot), llama_memory_seq_pos_max(memory, id_slot), {}
    };
    res.data.resize(llama_state_seq_get_size_ext(ctx, id_slot, CHECKPOINT));
    if (llama_state_seq_get_data_ext(ctx, res.data.data(), res.data.size(), id_slot, CHECKPOINT) != res.data.size()) {
        res.data.clear();
    }
    return res;
}

void morphkv_observer::end_text(int32_t id_slot, const server_prompt & prompt, const loras & lora) {
    state &    now    = states.at(id_slot);
    const bool is_new = now.is_new;
    now.is_new        = false;
    if (!chats.is_on() || !is_new || prompt.n_tokens() <= N_SHORT || morphkv_name_loras(lora) != lora_of_all ||
        !holds(id_slot, prompt.tokens.pos_next())) {
        return;
    }
    std::vector<morphkv_chat_state> saved = { state_of(ctx, id_slot, prompt.n_tokens()) };
    if (saved[0].data.empty()) {
        LOG_WRN("slot %d: MorphKV: its chat is not written to disk: %s\n", id_slot, morphkv_last_error());
        return;
    }
    // An answer that is asked for again, or whose thinking is dropped, begins a few tokens before the prompt's end.
    const int32_t n_prompt = now.prompt.n_tokens;
    const auto    before   = std::find_if(prompt.checkpoints.rbegin(), prompt.checkpoints.rend(),
                                          [&](const auto & one) { return one.n_tokens <= n_prompt - 4; });
    if (before != prompt.checkpoints.rend()) {
        saved.push_back({ (int32_t) before->n_tokens, before->pos_min, before->pos_max, before->data_tgt });
    }
    try {
        chats.save(id_slot, prompt.tokens, n_prompt, std::move(saved), given.archive.empty() ? nullptr : ctx);
    } catch (const std::exception & err) {
        LOG_WRN("slot %d: MorphKV: its chat is not written to disk: %s\n", id_slot, err.what());
    }
}
