// What the parts of morphkv-model-rows share.
#pragma once

#include "support/archived_context.h"

#include <string>
#include <vector>

inline llama_context_params params_of(ggml_type type) {
    auto res     = context_params();
    res.swa_full = false;
    res.type_k = res.type_v = type;
    return res;
}

// n rows of all heads, as floats.
inline floats heads_of(const ggml_tensor * t, int32_t n, int32_t i_first = 0) {
    std::vector<uint8_t> data(n * t->nb[1]);
    ggml_backend_tensor_get(t, data.data(), i_first * t->nb[1], data.size());
    floats res(n * t->ne[0]);
    morphkv_convert_rows(t->type, data.data(), GGML_TYPE_F32, res.data(), n, t->ne[0]);
    return res;
}

// model_votes.cpp: 20 evictions of layer il, to whose keys readers attend, il the first.
void votes(llama_model * model, int32_t il, const std::vector<int32_t> & readers);
