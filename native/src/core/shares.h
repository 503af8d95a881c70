// How many tokens each layer of a model keeps: all the same, or more where an eviction does more harm (layers by profile).
//
// Bytes are what a user sets: layers share the cells that they would have alike. Attention works on multiples of 256 cells, so
// these are what is shared. About half of the capacity goes to layers that are not large; the large ones have the rest in equal
// parts, and what is left of it goes to the first of them.
#pragma once

#include "morphkv.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// Cells that are allocated where a text uses n.
constexpr int32_t MORPHKV_CELL_STEP = 256;

// cell_bytes: of a cell, by layer of the model; 0 where nothing is cut.
// n_most: cells that a layer has at most, at least those that all have alike; 0 = any number.
// Capacities by layer. All are params.capacity where there is nothing to share: no layer is large, or the room that each layer
// needs leaves too little. Throws morphkv_error for a large layer that is not cut.
std::vector<int32_t> morphkv_share_capacity(const morphkv_params & params, const std::vector<size_t> & cell_bytes,
                                            int32_t n_most);
