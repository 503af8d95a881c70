// The inner loops of votes on the CPU, compiled for several kinds of it.
#pragma once

#include "device/votes-cpu.h"

#include <cstdint>
#include <vector>

// A part of the votes of a KV head. Keys come in tiles of N_TILE = MORPHKV_VOTES_PAGE.
struct morphkv_votes_task {
    const float * tiles;    // (n_tiles, n_embd, N_TILE), or as votes-int8.h has them
    const float * queries;  // (n_votes*n_group, n_embd), or rows in Q8_0
    const float * sinks;    // (n_group) or null
    float *       logits;   // (n_votes*n_group, n_tiles*N_TILE) scratch
    float *       inv_sum;  // (n_votes*n_group) scratch
    float *       out;      // (n_old), or (n_pages)
    int64_t       n_tiles, n_embd, n_votes, n_group;

    const morphkv_votes_params & params;
};

struct morphkv_votes_kernels {
    const char * name;
    void (*run)(const morphkv_votes_task & t);
    // keys: N_TILE rows of n_embd, rows: scratch (N_TILE, n_embd), tile: (n_embd, N_TILE)
    void (*lay_out)(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile);
};

// Of the CPU at hand, best first: AVX-512, AVX2, what the compiler's baseline has (SSE2, NEON).
std::vector<morphkv_votes_kernels> morphkv_votes_all_kernels();

const morphkv_votes_kernels & morphkv_votes_best_kernels();
