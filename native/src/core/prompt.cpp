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

void morphkv_prompt_step(morphkv_prompt & prompt, int32_t n_held, const std::function<morphkv_recalled()> & recall,
                         const std::function<int32_t()> & n_removable) {
    prompt.n_back    = 0;
    prompt.n_recalls = 0;
    if (prompt.stage != MORPHKV_PROMPT_STAGE_LAST && n_held < prompt.n_tokens - 1) {
        prompt.n_end = prompt.n_tokens - 1;
        return;
    }
    // before the recall, which may throw
    const bool is_first = prompt.stage == MORPHKV_PROMPT_STAGE_FIRST;
    const bool is_last  = prompt.stage == MORPHKV_PROMPT_STAGE_LAST;
    prompt.stage        = MORPHKV_PROMPT_STAGE_LAST;
    prompt.n_end        = prompt.n_tokens;
    if (is_last || n_held >= prompt.n_tokens) {
        return;
    }
    prompt.recalled  = recall();
    prompt.n_recalls = 1;
    if (!is_first || prompt.recalled.n_recalled == 0) {
        return;
    }
    const int32_t n_back = std::min({ n_held - prompt.n_past, prompt.n_redo, n_removable() });
    if (n_back > 0) {
        prompt.stage  = MORPHKV_PROMPT_STAGE_AGAIN;
        prompt.n_back = n_back;
        prompt.n_end  = prompt.n_tokens - 1;
    }
}
