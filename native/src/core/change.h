// What of a text a prompt can have again: its beginning, and where the prompt changes that, what is behind the change. Of token
// ids alone.
#pragma once

#include "morphkv.h"

#include <cstdint>

// n_cached: first tokens of the prompt that can be had anyway. All numbers are 0 where the prompt is to be evaluated from there.
morphkv_change morphkv_plan_change(const int32_t * text, int32_t n_text, const int32_t * prompt, int32_t n_prompt,
                                   int32_t n_cached);
