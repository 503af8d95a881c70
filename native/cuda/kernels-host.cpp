// The kernels' phases on the host, each thread of a block after the other: what tests compare with plain C++, and let stand in
// for a device.

#include "kernels-host.h"

#include "phases.h"

namespace {

struct host_threads {
    template <typename T> struct own {
        T values[MORPHKV_N_THREADS];

        T & operator[](int t) { return values[t]; }
    };

    template <typename F> void each(F && f) const {
        for (int t = 0; t < MORPHKV_N_THREADS; ++t) {
            f(t);
        }
    }
};

template <int Launch> void launch(const morphkv_kernels_args * args, unsigned n_blocks, unsigned n_layers) {
    std::vector<uint64_t> shared(sizeof(morphkv_shared_tiles) / sizeof(uint64_t) + MORPHKV_N_SHARED + 1);

    void * begin = (void *) (((uintptr_t) shared.data() + 15) / 16 * 16);
    for (unsigned i = 0; i < n_layers; ++i) {
        for (unsigned i_block = 0; i_block < n_blocks; ++i_block) {
            morphkv_block<Launch>(host_threads(), args[i], i_block, begin);
        }
    }
}

}  // namespace

void morphkv_run_launch(int i_launch, const morphkv_kernels_args * args, unsigned n_blocks, unsigned n_layers) {
    switch (i_launch) {
        case 1:
            return launch<1>(args, n_blocks, n_layers);
        case 2:
            return launch<2>(args, n_blocks, n_layers);
        case 3:
            return launch<3>(args, n_blocks, n_layers);
        case 4:
            return launch<4>(args, n_blocks, n_layers);
        default:
            return launch<5>(args, n_blocks, n_layers);
    }
}

void morphkv_run_blocks(const morphkv_kernels_plan & plan) {
    for (int i = 1; i <= 5; ++i) {
        morphkv_run_launch(i, plan.args(), plan.n_blocks[i - 1], plan.n_layers);
    }
}

const char * morphkv_run_on_host(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                 int32_t n_layers, int32_t * has_changed) {
    morphkv_kernels_plan plan = morphkv_plan_kernels(cuts, layers, n_layers);
    std::vector<char>    scratch(plan.scratch_bytes);
    morphkv_place_kernels(plan, plan.table.data(), scratch.data());
    morphkv_run_blocks(plan);
    *has_changed = true;
    return nullptr;
}
