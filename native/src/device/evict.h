// An eviction of all layers of a group and one text, as many layers at once as do not ask for much memory.
#pragma once

#include "device/engine.h"
#include "device/graph-evict.h"
#include "device/layers.h"

#include <cstdint>
#include <string>
#include <vector>

// What the host knows of it.
struct morphkv_eviction {
    morphkv_evict_shape  shape;
    morphkv_evict_policy policy;
    std::vector<int32_t> graduates;  // (n_grad) serials
    std::vector<int32_t> vote_rows;  // (n_votes) rows of the query ring
    // noise of MORPHKV_POLICY_RANDOM is a function of these and of the layer: a restored or copied text goes on the same
    uint32_t             seed;
    uint32_t             i_eviction;
};

// Why it failed, or "".
std::string morphkv_run_eviction(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                                 uint32_t i_stream, const morphkv_eviction & eviction);

// Most tensors that the votes of a layer make.
size_t morphkv_max_vote_tensors(const std::vector<morphkv_side_layer> & layers, int32_t n_votes);
