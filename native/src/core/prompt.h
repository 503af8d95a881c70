// The reading of a prompt: which tokens are decoded, taken back and decoded again, and when the archive is asked. Knows
// neither a model nor a cache.
#pragma once

#include "morphkv.h"

#include <cstdint>
#include <functional>

// recall: asks the archive, throws where that fails. n_removable: how many of the newest tokens can be taken back.
void morphkv_prompt_step(morphkv_prompt & prompt, int32_t n_held, const std::function<morphkv_recalled()> & recall,
                         const std::function<int32_t()> & n_removable);
