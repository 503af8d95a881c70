#include "core/params.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

static thread_local std::optional<morphkv_params> g_pending;
static thread_local std::string                   g_error;
static thread_local morphkv_status                g_status = MORPHKV_STATUS_OK;

// Largest count in a parameter: cell ids are computed in F32, which is exact below 2^24.
static constexpr int32_t N_MAX = 1 << 22;

void morphkv_pending_set(std::optional<morphkv_params> params) {
    g_pending = params;
}

std::optional<morphkv_params> morphkv_pending_get() {
    return g_pending;
}

std::optional<morphkv_params> morphkv_pending_take() {
    auto res = g_pending;
    g_pending.reset();
    return res;
}

void morphkv_error_clear() {
    g_error.clear();
    g_status = MORPHKV_STATUS_OK;
}

morphkv_status morphkv_error_set(morphkv_status status, const std::string & what) {
    g_error  = what;
    g_status = status;
    return status;
}

morphkv_status morphkv_last_status(void) {
    return g_status;
}

const char * morphkv_last_error(void) {
    return g_error.c_str();
}

morphkv_params morphkv_params_default(void) {
    morphkv_params p{};
    p.size        = sizeof(p);
    p.capacity    = 1024;
    p.window      = 32;
    p.interval    = 128;
    p.keep        = 4;
    p.prompt_room = 1024;
    p.votes       = 0;
    p.fusion      = MORPHKV_FUSION_SUM;
    p.policy      = MORPHKV_POLICY_MORPHKV;
    p.decay       = 0.0f;
    p.seed        = 0;
    p.rope_limit  = -1;
    p.protect     = -1;
    return p;
}

static void check_count(const char * name, int32_t value, int32_t lo, int32_t hi) {
    if (value < lo || value > hi) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, std::string(name) + " must be in " + std::to_string(lo) + ".." +
                                                        std::to_string(hi) + ", got " + std::to_string(value));
    }
}

static int32_t n_protected(const morphkv_params & p) {
    if (p.protect >= 0) {
        return p.protect;
    }
    const int32_t wanted = p.policy == MORPHKV_POLICY_H2O          ? p.capacity / 2
                           : p.policy == MORPHKV_POLICY_COMMITTEES ? p.capacity / 4
                                                                   : 0;
    return std::max(0, std::min(wanted, p.capacity - p.keep - 1) - p.window);
}

// What the model is not needed for.
static void check_large(const morphkv_params & p) {
    check_count("n_large", p.n_large, 0, MORPHKV_LARGE_MAX);
    for (int32_t i = 0; i < p.n_large; ++i) {
        if (std::count(p.large_layers, p.large_layers + i, p.large_layers[i]) > 0) {
            throw morphkv_error(MORPHKV_STATUS_INVALID,
                                "large_layers must differ, got " + std::to_string(p.large_layers[i]) + " twice");
        }
    }
    if (p.large_capacity == 0 && p.small_capacity == 0) {
        return;
    }
    check_count("small_capacity", p.small_capacity, p.keep + p.window + 1, N_MAX);
    if (p.large_capacity != -1) {
        check_count("large_capacity", p.large_capacity, p.small_capacity, N_MAX);
    }
    if (p.n_large == 0) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "large_capacity and small_capacity need large_layers");
    }
}

morphkv_params morphkv_params_checked(const morphkv_params * params) {
    if (!params) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "params must not be NULL");
    }
    if (params->size != sizeof(morphkv_params)) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "params.size must be " + std::to_string(sizeof(morphkv_params)) +
                                                        ", got " + std::to_string(params->size) +
                                                        " (header and library differ)");
    }

    morphkv_params p = *params;

    check_count("capacity", p.capacity, 2, N_MAX);
    check_count("window", p.window, 1, p.capacity - 1);
    check_count("keep", p.keep, 0, N_MAX);
    if ((int64_t) p.keep + p.window >= p.capacity) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "capacity must exceed keep + window, got capacity=" + std::to_string(p.capacity) +
                                " with keep=" + std::to_string(p.keep) + " and window=" + std::to_string(p.window));
    }
    check_count("interval", p.interval, 1, N_MAX);
    check_count("prompt_room", p.prompt_room, 0, N_MAX);
    check_count("votes", p.votes, 0, p.window);
    check_count("fusion", p.fusion, MORPHKV_FUSION_SUM, MORPHKV_FUSION_MAX);
    check_count("policy", p.policy, MORPHKV_POLICY_MORPHKV, MORPHKV_POLICY_H2O);
    if (!std::isfinite(p.decay) || p.decay < 0.0f || p.decay >= 1.0f) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "decay must be in [0, 1), got " + std::to_string(p.decay));
    }

    check_count("rope_limit", p.rope_limit, -1, std::numeric_limits<int32_t>::max());
    check_count("protect", p.protect, -1, N_MAX);

    if (p.votes == 0) {
        p.votes = p.window;
    }
    p.protect = n_protected(p);
    if ((int64_t) p.keep + p.window + p.protect >= p.capacity) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "capacity must exceed keep + window + protect, got capacity=" + std::to_string(p.capacity) +
                                " with keep=" + std::to_string(p.keep) + ", window=" + std::to_string(p.window) +
                                " and protect=" + std::to_string(p.protect));
    }
    p.window += p.protect;
    p.protect = 0;
    if (p.large_capacity != 0 && p.small_capacity == 0) {
        p.small_capacity = p.capacity;
    }
    check_large(p);
    return p;
}
