// Layers that are evicted as one. An eviction is many small operations, and a device takes longer to start most of them
// than to compute them; layers whose tensors are alike and lie at equal strides are one tensor with a dimension more.
#pragma once

#include "device/graph-evict.h"
#include "device/layers.h"

#include <cstddef>
#include <functional>
#include <vector>

// Consecutive layers of one device, the first first.
using morphkv_stack = std::vector<const morphkv_side_layer *>;

// All layers in stacks of up to n_most(first layer). A layer that has no equal neighbour is a stack of one.
std::vector<morphkv_stack> morphkv_make_stacks(const std::vector<morphkv_side_layer> &                         layers,
                                               const std::function<size_t(const morphkv_side_layer & layer)> & n_most);

// A stream of all that an eviction of the layers works on, as views in ctx.
morphkv_evict_layer morphkv_stack_layer(ggml_context * ctx, const morphkv_stack & stack, uint32_t i_stream,
                                        ggml_backend_t backend);
