// Evictions of several texts and groups of layers as one graph, as far as that has nodes for them.
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

// Of a group and a text.
struct morphkv_evict_job {
    const std::vector<morphkv_side_layer> * layers;
    uint32_t                                i_stream;
    morphkv_eviction                        eviction;
};

struct morphkv_evicted {
    std::string why;          // it failed, or ""
    size_t      n_done  = 0;  // the first jobs, which went well
    size_t      n_begun = 0;  // the first jobs: what the others work on is as it was
};

morphkv_evicted morphkv_run_evictions(morphkv_runner & runner, const std::vector<morphkv_evict_job> & jobs);

// Most tensors that the votes of a layer make.
size_t morphkv_max_vote_tensors(const std::vector<morphkv_side_layer> & layers, int32_t n_votes);
