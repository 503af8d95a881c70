// The reading of a prompt: which tokens are decoded, taken back and decoded again, and when the archive is asked. Knows
// neither a model nor a cache.
#pragma once

#include "morphkv.h"

#include <cstdint>
#include <functional>

// What a reading asks of a sequence.
struct morphkv_prompt_memory {
    std::function<morphkv_recalled()> recall;  // asks the archive, throws where that fails

    // How many of the newest n tokens can be taken back at once: all, fewer, or none.
    std::function<int32_t(int32_t n)> n_removable;

    // Of a sequence that goes back to a mark alone, else null: marks where it ends now.
    std::function<void()> mark;

    // With it: where there has to be a mark to be gone back to behind n more tokens, in tokens from the text's start, at least.
    std::function<int32_t(int32_t n)> first_mark;
};

void morphkv_prompt_step(morphkv_prompt & prompt, int32_t n_held, const morphkv_prompt_memory & memory);
