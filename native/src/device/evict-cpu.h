// An eviction on the CPU behind its votes: one operation, where the graph for devices has some forty.
#pragma once

#include "device/graph-evict.h"

// Of one layer, whose votes votes-cpu.h makes.
bool morphkv_evict_on_cpu(const morphkv_evict_layer & layer, const morphkv_evict_policy & policy,
                          const morphkv_evict_inputs & inp);

// As morphkv_build_evict(), and the same choice but for equal scores.
void morphkv_build_evict_on_cpu(ggml_context * ctx, ggml_cgraph * gf, const morphkv_evict_layer & layer,
                                const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                const morphkv_evict_inputs & inp);
