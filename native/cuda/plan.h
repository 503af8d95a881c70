// What one call of the kernels works on: a table that goes to the device in one copy, scratch memory, and how many blocks.
#pragma once

#include "kernels.h"

#include <cstddef>
#include <cstdint>
#include <vector>

constexpr int MORPHKV_N_THREADS = 256;   // of a block, in all five
constexpr int MORPHKV_TILE      = 64;    // queries, and cells, of a product
constexpr int MORPHKV_CELLS     = 512;   // of a part of a row of logits
constexpr int MORPHKV_PAIRS     = 32;    // that a block moves
constexpr int MORPHKV_COLUMNS   = 32;    // words of a window's row that a block moves
constexpr int MORPHKV_N_SHARED  = 4096;  // most keys that are sorted in shared memory

// One layer of one sequence, as the device sees it.
struct morphkv_kernels_args {
    char *          k;
    char *          v;
    const char *    ring;
    int32_t *       serial;
    float *         score;
    const float *   sinks;
    const int32_t * vote_rows;
    const int32_t * graduates;

    // scratch
    float *    part_max;  // (n_head_kv, n_parts, n_votes*n_group), as the next
    float *    part_sum;  // of exp(logit - max)
    float *    votes;     // (n_head_kv, n_old), as the next; not negative
    float *    sums;      // with the last ones; the same as votes where there are none
    int32_t *  src;       // (n_head_kv, n_pairs), as the next: cells
    int32_t *  dst;       // a pair that does not move has src == dst
    uint64_t * keys;      // (n_head_kv, n_keys); null where they fit into shared memory
    float *    ranks;     // (n_head_kv, n_old) of committees, else null

    int64_t k_row_bytes, v_row_bytes, ring_row_bytes, k_head_bytes, v_head_bytes;
    int32_t type_k, k_width, v_width;  // width: bytes of the largest word that rows and heads of them begin at
    int32_t n_head_kv, n_group, n_readers, n_embd_head;
    float   scale, softcap, carried;
    int32_t by_committees, use_max;
    int32_t n_keep, n_distant, n_grad, n_window, n_votes;
    int32_t n_old, n_pairs, n_parts, n_keys;
};

// Blocks of each launch, for the layer that needs most; one row of blocks for each layer.
struct morphkv_kernels_plan {
    std::vector<char> table;  // n_layers times morphkv_kernels_args, then integers
    size_t            scratch_bytes = 0;
    int32_t           n_layers      = 0;
    int32_t           n_blocks[5]   = {};
    int32_t           n_keys        = 0;  // in shared memory

    const morphkv_kernels_args * args() const { return (const morphkv_kernels_args *) table.data(); }
};

// Sizes and blocks. Pointers into table and scratch count from 0.
morphkv_kernels_plan morphkv_plan_kernels(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                          int32_t n_layers);

// Puts where table and scratch will be on the device into the table.
void morphkv_place_kernels(morphkv_kernels_plan & plan, char * table, char * scratch);
