// Archives of which every value says whose it is, for plans that bring rows from there.
#pragma once

#include "case.h"

#include "core/moves.h"

#include <cstring>

// Of a head one key and one value.
inline float key_of(int32_t serial, int32_t il, int32_t head) {
    return 100.0f * serial + 10 * il + head + 0.25f;
}

inline float value_of(int32_t serial, int32_t il, int32_t head) {
    return 100.0f * serial + 10 * il + head + 0.75f;
}

inline morphkv_page_layout layout_of(const std::vector<morphkv_moved_layer> & layers) {
    morphkv_page_layout res(GGML_TYPE_F32, GGML_TYPE_F32);
    for (const auto & layer : layers) {
        res.add_layer(layer.n_head_kv, 1, 1);
    }
    return res;
}

inline void append_tokens(morphkv_archive & archive, int32_t first, int32_t n) {
    morphkv_archive::rows rows;
    auto                  bytes_of = [](const std::vector<float> & values) {
        const auto * begin = (const uint8_t *) values.data();
        return std::vector<uint8_t>(begin, begin + values.size() * sizeof(float));
    };
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        std::vector<float> k, v;
        for (int32_t i = 0; i < n; ++i) {
            for (int32_t h = 0; h < archive.layout.layers[il].n_head_kv; ++h) {
                k.push_back(key_of(first + i, il, h));
                v.push_back(value_of(first + i, il, h));
            }
        }
        rows.k.push_back(bytes_of(k));
        rows.v.push_back(bytes_of(v));
    }
    archive.append(first, n, rows);
}

inline std::vector<float> floats_of(const std::vector<uint8_t> & bytes) {
    std::vector<float> res(bytes.size() / sizeof(float));
    if (!res.empty()) {
        memcpy(res.data(), bytes.data(), bytes.size());
    }
    return res;
}
