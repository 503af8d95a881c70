// Which first tokens of a slot's text are never evicted: what a request wants, what the server does, and what fits.
#pragma once

#include "morphkv-common.h"

#include <cstdint>
#include <string>

// How many first tokens a request wants never to be evicted.
struct morphkv_keep {
    int32_t n_keep;    // as in the request: 0 = --keep, -1 = the prompt that the slot begins with
    int32_t n_tokens;  // of the prompt
    int32_t n_system;  // of these, tokens of the system prompt; 0 without --morphkv-keep-system
};

class morphkv_keeper {
public:
    // n_bos: tokens that the tokenizer puts before a prompt
    void start(const morphkv_common_params & given, int32_t n_bos);

    bool keeps_system() const { return keep_system; }

    // How many are kept.
    int32_t n_wanted(const morphkv_keep & keep) const;

    // Why that is too many, or an empty string. A system prompt that is too long is no reason.
    std::string why_not(const morphkv_keep & keep) const;

    // Whether what the slot keeps may stay as it is, with a prompt of which it holds a part.
    bool leaves(const morphkv_keep & keep) const { return keep.n_keep < 0 && !keep_system; }

    // What a client should know of a system prompt that is too long to be kept, or an empty string.
    std::string warning(const morphkv_keep & keep) const;

private:
    int32_t n_keep_max() const { return params.capacity - params.window - 1; }

    morphkv_params params{};
    bool           keep_system = false;
    int32_t        n_bos       = 0;
};
