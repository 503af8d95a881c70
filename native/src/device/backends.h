// On which device the nodes of a graph run: on that which holds the layer's cache, and on no other.
//
// A scheduler copies what a node reads to where the node runs. Views carry no device, and a node that its device cannot
// run goes elsewhere, with all that it reads: K and V of a layer would travel at each eviction, in silence.
#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

// Backend of the scheduler that computes where buffers of this type are, or null.
ggml_backend_t morphkv_backend_of(ggml_backend_sched_t sched, ggml_backend_buffer_type_t buft);

// Why nodes [i_first, i_last) cannot run on the backend, as a sentence without a subject; "" if they can.
std::string morphkv_why_not_there(ggml_backend_t backend, ggml_cgraph * gf, int i_first, int i_last);

// "SET_ROWS of f32 [64, 8, 2] and i32 [8, 2]": an op and what it reads, in ggml's order of sizes
std::string morphkv_describe(const ggml_tensor * node);

// After ggml_backend_sched_alloc_graph(): what a node reads though it is in memory that the node's backend does not reach, or
// null. The scheduler copies nothing for a view that it was told to be elsewhere than what it is a view of.
const ggml_tensor * morphkv_find_out_of_reach(ggml_cgraph * gf, const std::vector<ggml_backend_t> & backends);

// What a scheduler copies from device to device, known once it has split the graph: it puts copies in the place of sources.
class morphkv_crossings {
public:
    // before ggml_backend_sched_alloc_graph()
    explicit morphkv_crossings(ggml_cgraph * gf);

    // After it: the tensors that are read through a copy, inputs of the graph and weights of the model apart.
    std::vector<const ggml_tensor *> find() const;

private:
    struct source {
        const ggml_tensor * node;
        int                 i_src;
        const ggml_tensor * tensor;
    };
    std::vector<source> sources;
};
