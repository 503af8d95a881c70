// What all kernels of votes have in common: vectors of W floats, and what becomes of logits. All is inlined, into functions that
// are compiled for a kind of CPU.
#pragma once

#include "device/votes-kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace {

using task = morphkv_votes_task;

constexpr int64_t N_TILE = MORPHKV_VOTES_PAGE;

INLINE float widen(uint16_t f16) {
    uint32_t bits = (uint32_t) (f16 & 0x7fff) << 13;
    float    res;
    memcpy(&res, &bits, sizeof(res));
    res *= 0x1p112f;                                // exact, of subnormals too
    memcpy(&bits, &res, sizeof(bits));
    bits |= bits >= 0x47800000u ? 0x7f800000u : 0;  // infinities and NaN
    bits |= (uint32_t) (f16 & 0x8000) << 16;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

INLINE void to_float(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F16) {
        const auto * f16 = (const uint16_t *) src;
        for (int64_t i = 0; i < n; ++i) {
            dst[i] = widen(f16[i]);
        }
    } else if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

// W floats at once.
template <int W> struct vec {
#if defined(__GNUC__)
    typedef float    f32 __attribute__((vector_size(W * sizeof(float))));
    typedef uint32_t u32 __attribute__((vector_size(W * sizeof(uint32_t))));
#else
    static_assert(W == 1);
    typedef float    f32;
    typedef uint32_t u32;
#endif
    static INLINE f32 load(const float * p) {
        f32 res;
        memcpy(&res, p, sizeof(res));
        return res;
    }
    static INLINE void store(float * p, f32 x) { memcpy(p, &x, sizeof(x)); }
    static INLINE f32  max(f32 a, f32 b) {
#if defined(__GNUC__) && defined(__x86_64__) && !defined(__clang__)
        if constexpr (W > 4) {
            // the same to the bit, but compilers make two instructions of it
            f32 res;
            asm("vmaxps %2, %1, %0" : "=v"(res) : "v"(a), "v"(b));
            return res;
        }
#endif
        return a > b ? a : b;
    }

    // exp(x) of x <= 0, to 4 ulp; below -87, where it is next to nothing, exp(-87)
    static INLINE f32 exp(f32 x) {
        const f32 low   = f32{} - 87.0f;
        const f32 magic = f32{} + 0x1.8p23f;  // what is added to it becomes an integer
        x               = max(low, x);
        const f32 n_up  = x * 1.44269504f + magic;
        const f32 n     = n_up - magic;
        const f32 r     = (x - n * 0.693145752f) - n * 1.42860677e-6f;
        // the polynomial of degree 5 that is off least, in parts of the result: 2.1e-7
        f32       res   = r * 8.297654793e-3f + 4.191538198e-2f;
        res             = res * r + 1.666757473e-1f;
        res             = res * r + 4.999889485e-1f;
        res             = res * r + 9.999996920e-1f;
        res             = res * r + 1.000000072f;
        u32 bits, exponent;
        memcpy(&bits, &res, sizeof(bits));
        memcpy(&exponent, &n_up, sizeof(exponent));
        bits += exponent << 23;
        memcpy(&res, &bits, sizeof(res));
        return res;
    }
};

// exp(x*scale - highest), in place; returns 1 over the sum.
template <int W> INLINE float exponentiate(float * x, int64_t n, float scale, const float * sink) {
    using v                 = vec<W>;
    typename v::f32 highest = v::load(x) * scale;
    for (int64_t c = W; c < n; c += W) {
        highest = v::max(highest, v::load(x + c) * scale);
    }
    float lanes[W];
    v::store(lanes, highest);
    float max = *std::max_element(lanes, lanes + W);
    if (sink) {
        max = std::max(max, *sink);
    }
    typename v::f32 sums{};
    for (int64_t c = 0; c < n; c += W) {
        const typename v::f32 e = v::exp(v::load(x + c) * scale - max);
        v::store(x + c, e);
        sums += e;
    }
    v::store(lanes, sums);
    float sum = sink ? expf(*sink - max) : 0.0f;
    for (int j = 0; j < W; ++j) {
        sum += lanes[j];
    }
    return 1.0f / sum;
}

// A voter's vote on W cells from c: max over the query heads of a group. i: its first query.
template <int W> INLINE typename vec<W>::f32 vote_of(const task & t, int64_t i, int64_t c) {
    using v = vec<W>;
    typename v::f32 res{};
    for (int64_t g = i; g < i + t.n_group; ++g) {
        res = v::max(res, v::load(t.logits + g * t.n_tiles * N_TILE + c) * t.inv_sum[g]);
    }
    return res;
}

template <int W> INLINE void join(const task & t) {
    using v = vec<W>;
    for (int64_t c = 0; c < t.n_tiles * N_TILE; c += W) {
        typename v::f32 joined{};
        for (int64_t i = 0; i < t.n_votes * t.n_group; i += t.n_group) {
            const typename v::f32 vote = vote_of<W>(t, i, c);
            joined                     = t.params.use_max ? v::max(joined, vote) : joined + vote;
        }
        float lanes[W];
        v::store(lanes, joined);
        std::copy(lanes, lanes + std::max<int64_t>(0, std::min<int64_t>(W, t.params.n_old - c)), t.out + c);
    }
}

template <int W> INLINE void score_pages(const task & t) {
    const int64_t n_pages = t.params.n_old / t.params.n_page;
    std::fill(t.out, t.out + n_pages, 0.0f);
    for (int64_t i_tile = 0; i_tile < t.n_tiles; ++i_tile) {
        for (int64_t i = 0; i < t.n_votes * t.n_group; i += t.n_group) {
            float votes[N_TILE];
            for (int64_t j = 0; j < N_TILE; j += W) {
                vec<W>::store(votes + j, vote_of<W>(t, i, i_tile * N_TILE + j));
            }
            if (i_tile == 0) {
                std::fill(votes, votes + t.params.n_skip, 0.0f);
            }
            for (int64_t j = 0; j < N_TILE; j += t.params.n_page) {
                float share = 0.0f;
                for (int64_t l = j; l < j + t.params.n_page; ++l) {
                    share += votes[l];
                }
                const int64_t page = (i_tile * N_TILE + j) / t.params.n_page;
                if (page < n_pages) {
                    t.out[page] += share * share * share;
                }
            }
        }
    }
}

// From logits to votes.
template <int W> INLINE void finish(const task & t) {
    const int64_t n_queries = t.n_votes * t.n_group;
    const int64_t n_cells   = t.n_tiles * N_TILE;
    for (int64_t i = 0; i < n_queries; ++i) {
        float * x     = t.logits + i * n_cells;
        float   scale = t.params.scale;
        if (t.params.softcap != 0.0f) {
            for (int64_t c = 0; c < t.params.n_old; ++c) {
                x[c] = tanhf(x[c] * (scale / t.params.softcap));
            }
            scale = t.params.softcap;
        }
        std::fill(x + t.params.n_old, x + n_cells, -INFINITY);
        t.inv_sum[i] = exponentiate<W>(x, n_cells, scale, t.sinks ? &t.sinks[i % t.n_group] : nullptr);
    }
    if (t.params.n_page > 0) {
        score_pages<W>(t);
    } else {
        join<W>(t);
    }
}

}  // namespace
