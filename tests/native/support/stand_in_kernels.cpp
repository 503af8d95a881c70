// A library in place of native/cuda's: the kernels' phases on the host, for the CPU's memory. It counts its calls, and fails or
// is wrong when it is told to.

#include "support/stand_in_kernels.h"

#include "cuda/kernels-host.h"

#include <cstring>

namespace {

stand_in_mode mode    = STAND_IN_RIGHT;
int32_t       n_calls = 0, n_layers_cut = 0;

}  // namespace

void stand_in_set(stand_in_mode to) {
    mode    = to;
    n_calls = n_layers_cut = 0;
}

int32_t stand_in_n_calls() {
    return n_calls;
}

int32_t stand_in_n_layers() {
    return n_layers_cut;
}

size_t morphkv_kernels_n_bytes(const void *) {
    return n_layers_cut > 0 ? STAND_IN_BYTES : 0;
}

int32_t morphkv_kernels_version() {
    return MORPHKV_KERNELS_VERSION;
}

const char * morphkv_kernels_registry() {
    return "CPU";
}

const char * morphkv_kernels_run(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                 int32_t n_layers, int32_t * has_changed) {
    n_calls++;
    n_layers_cut += n_layers;
    *has_changed = false;
    if (mode == STAND_IN_WITHOUT_MEMORY) {
        return "out of memory";
    }
    const char * why = morphkv_run_on_host(cuts, layers, n_layers, has_changed);
    if (mode == STAND_IN_WRONG) {
        // the last slot holds the row of another token
        for (int32_t i = 0; i < n_layers; ++i) {
            char * slot = (char *) layers[i].k + (cuts[layers[i].i_cut].n_distant - 1) * layers[i].k_row_bytes;
            memcpy(slot, slot - layers[i].k_row_bytes, layers[i].k_row_bytes);
        }
    }
    return mode == STAND_IN_HALF ? "a launch: an illegal address" : why;
}
