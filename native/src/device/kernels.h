// Evictions by kernels of our own (native/cuda), where a device has them: of all texts and layers in five launches. What they
// cannot do, and devices that they were wrong on, are left to the graph of graph-evict.h, which is what they are compared with.
#pragma once

#include "device/engine.h"
#include "device/evict.h"
#include "device/kernels-library.h"
#include "device/layers.h"

#include <string>
#include <vector>

// Of a text, and of layers that are cut alike.
struct morphkv_kernels_job {
    const std::vector<morphkv_side_layer> * layers;
    uint32_t                                i_stream;
    const morphkv_eviction *                eviction;
};

// Whether kernels can do it: votes by MorphKV, H2O or committees, which somebody gives; K of a type that a cache may have; attention
// sinks where one layer alone attends to K, and on its device. The rest, recency, random choice and all else, is the graph's.
bool morphkv_kernels_support(const morphkv_side_layer & layer, const morphkv_eviction & eviction);

// Cuts what can be cut so, of all jobs at once, and waits for it. left: by job, the layers that are left to the graph. Why it
// failed, or "". A device's first cut, of each kind of layer, is preceded by a check: one layer of random rows is cut both ways, and a
// difference leaves all to the graph from then on, with a warning.
std::string morphkv_run_kernels(morphkv_runner & runner, const std::vector<morphkv_kernels_job> & jobs,
                                std::vector<std::vector<morphkv_side_layer>> & left);

// Memory that kernels hold on the devices of these layers, group by group. Contexts share it.
size_t morphkv_kernels_bytes_beside(const std::vector<const std::vector<morphkv_side_layer> *> & layers);

// The layers of all jobs, on one device and of types that are supported. As morphkv_kernels_run().
std::string morphkv_cut_by_kernels(const morphkv_kernels_library &          library,
                                   const std::vector<morphkv_kernels_job> & jobs, bool * has_changed);
