#include "core/prompt.h"

#include <algorithm>

morphkv_prompt morphkv_prompt_begin(int32_t n_past, int32_t n_tokens) {
    morphkv_prompt res{};
    res.size          = sizeof(res);
    res.n_past        = n_past;
    res.n_tokens      = n_tokens;
    res.n_redo        = 128;
    res.recalled.size = sizeof(res.recalled);
    return res;
}

// Before its last token: a mark where its end begins, which is decoded again.
static void read_on(morphkv_prompt & prompt, int32_t n_held, const morphkv_prompt_memory & memory) {
    const int32_t n_last = prompt.n_tokens - 1;
    prompt.n_end         = n_last;
    if (!memory.mark || prompt.stage != MORPHKV_PROMPT_STAGE_FIRST) {
        return;
    }
    const int32_t n_mark = std::max({ prompt.n_past, n_last - prompt.n_redo, memory.first_mark(n_last - n_held) });
    if (n_held == n_mark) {
        memory.mark();
    } else if (n_held < n_mark) {
        prompt.n_end = std::min(n_mark, n_last);
    }
}

// Its last token is all that is left: an answer that is asked for again begins here.
static void read_last(morphkv_prompt & prompt, int32_t n_held, const morphkv_prompt_memory & memory) {
    prompt.stage = MORPHKV_PROMPT_STAGE_LAST;
    prompt.n_end = prompt.n_tokens;
    if (memory.mark && n_held == prompt.n_tokens - 1) {
        memory.mark();
    }
}

void morphkv_prompt_step(morphkv_prompt & prompt, int32_t n_held, const morphkv_prompt_memory & memory) {
    prompt.n_back       = 0;
    prompt.n_recalls    = 0;
    const bool is_first = prompt.stage == MORPHKV_PROMPT_STAGE_FIRST;
    const bool is_last  = prompt.stage == MORPHKV_PROMPT_STAGE_LAST;
    if (n_held < prompt.n_tokens - 1 && (!is_last || memory.mark)) {
        read_on(prompt, n_held, memory);
        return;
    }
    // what was read again together is what the question asked for, and asking once more would only have it read once more
    const bool has_it = prompt.stage == MORPHKV_PROMPT_STAGE_AGAIN && prompt.recalled.n_reread > 0;
    if (is_last || has_it || n_held >= prompt.n_tokens) {
        read_last(prompt, n_held, memory);
        return;
    }
    try {
        prompt.recalled = memory.recall();
    } catch (...) {
        read_last(prompt, n_held, memory);
        throw;
    }
    prompt.n_recalls     = 1;
    const int32_t n_back = is_first && prompt.recalled.n_recalled > 0
                               ? memory.n_removable(std::min(n_held - prompt.n_past, prompt.n_redo))
                               : 0;
    if (n_back <= 0) {
        read_last(prompt, n_held, memory);
        return;
    }
    prompt.stage  = MORPHKV_PROMPT_STAGE_AGAIN;
    prompt.n_back = n_back;
    prompt.n_end  = prompt.n_tokens - 1;
}
