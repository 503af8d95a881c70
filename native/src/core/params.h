// Parameters: defaults, checks, and the pending parameters of the next context. Errors of the C API.
#pragma once

#include "morphkv.h"

#include <optional>
#include <stdexcept>
#include <string>

// what the C API turns into a status and a sentence
struct morphkv_error : std::runtime_error {
    morphkv_error(morphkv_status status, const std::string & what) : std::runtime_error(what), status(status) {}

    morphkv_status status;
};

// Throws morphkv_error with the rule and the value that broke it. In what it returns votes = 0 is resolved, and protected tokens
// are a part of the window, of which no more vote for that.
morphkv_params morphkv_params_checked(const morphkv_params * params);

// Whether queries vote at an eviction; and whether each cell has a sum of its votes, which is so much of the last one and the
// new vote.
inline bool morphkv_params_votes(const morphkv_params & p) {
    return p.policy != MORPHKV_POLICY_RECENCY && p.policy != MORPHKV_POLICY_RANDOM;
}

inline float morphkv_params_carried(const morphkv_params & p) {
    const bool is_summed = p.policy == MORPHKV_POLICY_COMMITTEES || p.policy == MORPHKV_POLICY_H2O;
    return !morphkv_params_votes(p) ? 0.0f : is_summed && p.decay == 0.0f ? 1.0f : p.decay;
}

// The tokens that a sequence may hold beyond capacity.
inline int32_t morphkv_params_room(const morphkv_params & p) {
    return p.interval > p.prompt_room ? p.interval : p.prompt_room;
}

// The parameters of the next context that this thread creates.
void                          morphkv_pending_set(std::optional<morphkv_params> params);
std::optional<morphkv_params> morphkv_pending_get();
std::optional<morphkv_params> morphkv_pending_take();

// What morphkv_last_status() and morphkv_last_error() return.
void           morphkv_error_clear();
morphkv_status morphkv_error_set(morphkv_status status, const std::string & what);
