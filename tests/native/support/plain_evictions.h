// Layers of sequences with random rows in plain memory, and what an eviction makes of them in plain C++: votes in double, the
// rest as the rule says, byte by byte.
#pragma once

#include "core/types.h"
#include "cuda/kernels.h"
#include "device/graph-evict.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

struct plain_cut {
    morphkv_evict_shape  shape;
    morphkv_evict_policy policy;
    std::vector<int32_t> vote_rows, graduates;
};

struct plain_layer {
    int32_t   i_cut;
    ggml_type type_k, type_v;  // V: GGML_TYPE_COUNT = there is none
    int32_t   n_embd_head, n_embd_head_v, n_head_kv, n_group, n_readers;
    float     scale, softcap;

    std::vector<char>     k, v;
    std::vector<uint16_t> ring;    // (n_ring, n_head*n_embd_head)
    std::vector<int32_t>  serial;  // (n_head_kv, n_distant)
    std::vector<float>    score, sinks;

    int32_t n_head() const { return n_head_kv * n_group; }
    size_t  k_head_bytes() const { return ggml_row_size(type_k, n_embd_head); }
    size_t  v_head_bytes() const { return v.empty() ? 0 : ggml_row_size(type_v, n_embd_head_v); }
    size_t  k_row_bytes() const { return n_head_kv * k_head_bytes(); }
    size_t  v_row_bytes() const { return n_head_kv * v_head_bytes(); }
};

inline std::vector<float> plain_values(ggml_type type, const char * row, int64_t n) {
    std::vector<float> res(n);
    if (type == GGML_TYPE_F32) {
        memcpy(res.data(), row, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(row, res.data(), n);
    }
    return res;
}

// (n_head_kv, n_old)
inline std::vector<double> plain_votes(const plain_layer & l, const plain_cut & cut) {
    const int32_t       n_old = cut.shape.n_old(), n_each = l.n_group / l.n_readers;
    std::vector<double> res((size_t) l.n_head_kv * n_old, 0.0);
    for (int32_t h = 0; h < l.n_head_kv; ++h) {
        std::vector<std::vector<float>> keys;
        for (int32_t i = 0; i < n_old; ++i) {
            keys.push_back(
                plain_values(l.type_k, l.k.data() + i * l.k_row_bytes() + h * l.k_head_bytes(), l.n_embd_head));
        }
        for (const int32_t row : cut.vote_rows) {
            std::vector<double> vote(n_old, 0.0);
            for (int32_t g = 0; g < l.n_group; ++g) {
                // heads of a reader are together
                const int32_t head = g / n_each * l.n_head_kv * n_each + h * n_each + g % n_each;
                const auto q = plain_values(GGML_TYPE_F16,
                                            (const char *) &l.ring[((size_t) row * l.n_head() + head) * l.n_embd_head],
                                            l.n_embd_head);
                std::vector<double> a(n_old);
                double              highest = l.sinks.empty() ? -INFINITY : l.sinks[h * l.n_group + g];
                for (int32_t i = 0; i < n_old; ++i) {
                    double dot = 0.0;
                    for (int32_t e = 0; e < l.n_embd_head; ++e) {
                        dot += (double) q[e] * keys[i][e];
                    }
                    dot *= l.scale;
                    a[i]    = l.softcap != 0.0f ? l.softcap * std::tanh(dot / l.softcap) : dot;
                    highest = std::max(highest, a[i]);
                }
                double sum = l.sinks.empty() ? 0.0 : std::exp(l.sinks[h * l.n_group + g] - highest);
                for (double & x : a) {
                    x = std::exp(x - highest);
                    sum += x;
                }
                for (int32_t i = 0; i < n_old; ++i) {
                    vote[i] = std::max(vote[i], a[i] / sum);
                }
            }
            for (int32_t i = 0; i < n_old; ++i) {
                double & x = res[(size_t) h * n_old + i];
                x          = cut.policy.fusion == MORPHKV_FUSION_MAX ? std::max(x, vote[i]) : x + vote[i];
            }
        }
    }
    return res;
}

// Scores of a head by two committees, as tests/support/ranking.py has it.
inline std::vector<float> plain_committees(const float * votes, const float * sums, const morphkv_evict_shape & s) {
    std::vector<float> res(s.n_old(), 0.0f);
    std::copy(sums, sums + s.n_keep, res.begin());
    for (const float * measure : { votes, sums }) {
        std::vector<float> sorted(measure + s.n_keep, measure + s.n_old());
        std::sort(sorted.rbegin(), sorted.rend());
        const float last = sorted[(s.n_distant - s.n_keep - 1) / 2] + 1e-20f;
        for (int32_t i = s.n_keep; i < s.n_old(); ++i) {
            res[i] = std::max(res[i], measure[i] / last);
        }
    }
    return res;
}

// Pair and move by the scores of a head, as tests/support/ranking.py has it: (source, slot) of what moves.
inline std::vector<std::pair<int32_t, int32_t>> plain_moves(const float * scores, const morphkv_evict_shape & s) {
    std::vector<int32_t> slots, graduates;
    for (int32_t i = s.n_keep; i < s.n_old(); ++i) {
        (i < s.n_distant ? slots : graduates).push_back(i);
    }
    const auto is_better = [&](int32_t a, int32_t b) {
        return scores[a] > scores[b];
    };
    std::stable_sort(slots.begin(), slots.end(), is_better);
    std::reverse(slots.begin(), slots.end());
    std::stable_sort(graduates.begin(), graduates.end(), is_better);

    std::vector<std::pair<int32_t, int32_t>> res;
    for (int32_t i = 0; i < s.n_pairs(); ++i) {
        if (scores[graduates[i]] > scores[slots[i]]) {
            res.push_back({ graduates[i], slots[i] });
        }
    }
    return res;
}

// The rest of an eviction: tokens, sums, rows, and then the window. scores, sums: (n_head_kv, n_old).
inline void plain_evict(plain_layer & l, const plain_cut & cut, const float * scores, const float * sums) {
    const auto & s   = cut.shape;
    const auto   old = l;
    for (int32_t h = 0; h < l.n_head_kv; ++h) {
        const float * of_head = sums + (size_t) h * s.n_old();
        if (!l.score.empty()) {
            std::copy(of_head, of_head + s.n_distant, l.score.begin() + (size_t) h * s.n_distant);
        }
        for (const auto & [src, dst] : plain_moves(scores + (size_t) h * s.n_old(), s)) {
            l.serial[(size_t) h * s.n_distant + dst] = cut.graduates[src - s.n_distant];
            if (!l.score.empty()) {
                l.score[(size_t) h * s.n_distant + dst] = of_head[src];
            }
            memcpy(l.k.data() + dst * l.k_row_bytes() + h * l.k_head_bytes(),
                   old.k.data() + src * l.k_row_bytes() + h * l.k_head_bytes(), l.k_head_bytes());
            if (!l.v.empty()) {
                memcpy(l.v.data() + dst * l.v_row_bytes() + h * l.v_head_bytes(),
                       old.v.data() + src * l.v_row_bytes() + h * l.v_head_bytes(), l.v_head_bytes());
            }
        }
    }
    memcpy(l.k.data() + s.n_distant * l.k_row_bytes(), old.k.data() + s.n_old() * l.k_row_bytes(),
           s.n_window * l.k_row_bytes());
    if (!l.v.empty()) {
        memcpy(l.v.data() + s.n_distant * l.v_row_bytes(), old.v.data() + s.n_old() * l.v_row_bytes(),
               s.n_window * l.v_row_bytes());
    }
}

// The same memory, as the kernels take it.
inline morphkv_kernels_layer plain_in_place(plain_layer & l) {
    morphkv_kernels_layer res{};
    res.i_cut          = l.i_cut;
    // in the order of morphkv_kernels_type
    res.type_k         = std::find(MORPHKV_ROW_TYPES, std::end(MORPHKV_ROW_TYPES), l.type_k) - MORPHKV_ROW_TYPES;
    res.k              = l.k.data();
    res.v              = l.v.empty() ? nullptr : l.v.data();
    res.ring           = l.ring.data();
    res.serial         = l.serial.data();
    res.score          = l.score.empty() ? nullptr : l.score.data();
    res.sinks          = l.sinks.empty() ? nullptr : l.sinks.data();
    res.k_row_bytes    = l.k_row_bytes();
    res.v_row_bytes    = l.v_row_bytes();
    res.ring_row_bytes = (int64_t) l.n_head() * l.n_embd_head * 2;
    res.k_head_bytes   = l.k_head_bytes();
    res.v_head_bytes   = l.v_head_bytes();
    res.n_head_kv      = l.n_head_kv;
    res.n_group        = l.n_group;
    res.n_readers      = l.n_readers;
    res.n_embd_head    = l.n_embd_head;
    res.scale          = l.scale;
    res.softcap        = l.softcap;
    return res;
}
