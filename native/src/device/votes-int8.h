// Votes of queries in Q8_0 on quantized keys by products of bytes, where a CPU has them: VNNI, dotprod, i8mm. Sums of 32 products are
// exact, and then scaled, as ggml's own matrix product does.
#pragma once

#include "device/votes-kernels.h"

#include <vector>

constexpr int64_t MORPHKV_INT8_BLOCK = 32;

// Floats of a tile: (n_embd/4, MORPHKV_VOTES_PAGE, 4) bytes, then (n_embd/32, MORPHKV_VOTES_PAGE) F32 scales.
inline int64_t morphkv_int8_tile_size(int64_t n_embd) {
    return n_embd / MORPHKV_INT8_BLOCK * (MORPHKV_INT8_BLOCK + 4) * MORPHKV_VOTES_PAGE / 4;
}

struct morphkv_int8_kernels {
    const char * name;
    void (*run)(const morphkv_votes_task & t);
    void (*lay_out)(ggml_type type, const char * const * keys, int64_t n_embd, void * tile);
};

// Of the CPU at hand, best first.
std::vector<morphkv_int8_kernels> morphkv_int8_all_kernels();
