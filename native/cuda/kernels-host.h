// The kernels on the host's memory. Of tests alone.
#pragma once

#include "plan.h"

// Launch 1 to 5 of so many blocks for each layer.
void morphkv_run_launch(int i_launch, const morphkv_kernels_args * args, unsigned n_blocks, unsigned n_layers);

// The five launches; table and scratch are placed.
void morphkv_run_blocks(const morphkv_kernels_plan & plan);

// As morphkv_kernels_run().
const char * morphkv_run_on_host(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                 int32_t n_layers, int32_t * has_changed);
