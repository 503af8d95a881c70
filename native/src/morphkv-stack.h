// Layers that are evicted as one. An eviction is many small operations, and a device takes longer to start most of them
// than to compute them; layers whose tensors are alike and lie at equal distances are one tensor with a dimension more.
#pragma once

#include "morphkv-side.h"

#include <cstddef>
#include <functional>
#include <vector>

// Consecutive layers of one device, the first first.
using morphkv_stack = std::vector<const morphkv_side_layer *>;

// All layers in stacks of up to n_most(first layer). A layer that has no equal neighbour is a stack of one.
std::vector<morphkv_stack> morphkv_make_stacks(const std::vector<morphkv_side_layer> &                         layers,
                                               const std::function<size_t(const morphkv_side_layer & layer)> & n_most);

// A stream of one of the tensors of the layers, in ctx: (n_layers, ne1, ne0), or null.
ggml_tensor * morphkv_stack_stream(ggml_context * ctx, const morphkv_stack & stack,
                                   ggml_tensor * morphkv_side_layer::* tensor, uint32_t i_stream);
