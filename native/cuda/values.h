// Values of cached rows, eight at a time, of each type that K may have. Layouts of blocks: ggml-common.h.
#pragma once

#include "kernels.h"

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) || defined(__HIPCC__)
#include "runtime.h"
#define MORPHKV_DEVICE __device__ __forceinline__
#else
#define MORPHKV_DEVICE inline
#endif

constexpr int MORPHKV_N_VALUES = 8;
constexpr int MORPHKV_BLOCK    = 32;  // values of a quantized block

MORPHKV_DEVICE int morphkv_min(int a, int b) {
    return a < b ? a : b;
}

// NaN is never the larger one.
MORPHKV_DEVICE float morphkv_larger(float a, float b) {
    return b > a ? b : a;
}

MORPHKV_DEVICE float morphkv_not_negative(float x) {
    return x > 0.0f ? x : 0.0f;
}

MORPHKV_DEVICE float morphkv_float_of_bits(uint32_t bits) {
    float res;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

MORPHKV_DEVICE uint32_t morphkv_bits_of_float(float x) {
    uint32_t res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

// Blocks begin at even addresses.
MORPHKV_DEVICE uint16_t morphkv_load_16(const char * p) {
    return *(const uint16_t *) p;
}

MORPHKV_DEVICE float morphkv_float_of_half(uint16_t half) {
#if defined(MORPHKV_HALF_OF_BITS)
    return __half2float(MORPHKV_HALF_OF_BITS(half));
#else
    const float    x = morphkv_float_of_bits((uint32_t) (half & 0x7fff) << 13) * 0x1p112f;  // exact, of subnormals too
    const uint32_t bits = morphkv_bits_of_float(x);
    return morphkv_float_of_bits((bits >= 0x47800000u ? bits | 0x7f800000u : bits) | (uint32_t) (half & 0x8000) << 16);
#endif
}

struct alignas(16) morphkv_eight_words {
    uint16_t x[8];
};

// Values [first, first + 8) of a head's row, as far as there are n of them, else 0; first is a multiple of 8.
template <int Type> MORPHKV_DEVICE void morphkv_load_values(const char * row, int first, int n, float * out) {
    if constexpr (Type == MORPHKV_KERNELS_TYPE_F32) {
        for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
            out[i] = first + i < n ? ((const float *) row)[first + i] : 0.0f;
        }
        return;
    }
    if constexpr (Type == MORPHKV_KERNELS_TYPE_F16 || Type == MORPHKV_KERNELS_TYPE_BF16) {
        const uint16_t *    p = (const uint16_t *) row + first;
        morphkv_eight_words w{};
        if (first + MORPHKV_N_VALUES <= n && (uintptr_t) p % sizeof(w) == 0) {
            w = *(const morphkv_eight_words *) p;
        } else {
            for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
                w.x[i] = first + i < n ? p[i] : 0;
            }
        }
        for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
            out[i] = Type == MORPHKV_KERNELS_TYPE_F16 ? morphkv_float_of_half(w.x[i])
                                                      : morphkv_float_of_bits((uint32_t) w.x[i] << 16);
        }
        return;
    }
    if (first >= n) {
        for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
            out[i] = 0.0f;
        }
        return;
    }
    constexpr int block_bytes = Type == MORPHKV_KERNELS_TYPE_Q8_0 ? 34 : Type == MORPHKV_KERNELS_TYPE_Q5_0 ? 22 : 18;

    const char * block = row + first / MORPHKV_BLOCK * block_bytes;
    const float  d     = morphkv_float_of_half(morphkv_load_16(block));
    const int    j     = first % MORPHKV_BLOCK;
    if (Type == MORPHKV_KERNELS_TYPE_Q8_0) {
        for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
            out[i] = d * (float) (int8_t) block[2 + j + i];
        }
        return;
    }
    // of four bits: the low halves of 16 bytes, then the high ones; the fifth bits are before them
    const bool     has_fifth = Type == MORPHKV_KERNELS_TYPE_Q5_0;
    const uint32_t fifth =
        has_fifth ? (uint32_t) morphkv_load_16(block + 2) | (uint32_t) morphkv_load_16(block + 4) << 16 : 0;
    const char * bytes = block + (has_fifth ? 6 : 2) + j % 16;
    for (int i = 0; i < MORPHKV_N_VALUES; ++i) {
        const int four = ((uint8_t) bytes[i] >> (j < 16 ? 0 : 4)) & 15;
        out[i]         = d * (float) (has_fifth ? (four | (int) (fifth >> (j + i) & 1) << 4) - 16 : four - 8);
    }
}
