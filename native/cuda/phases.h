// The work of one block, as phases between barriers. Threads is how a block runs: on a device each of its threads a phase at
// the same time (kernels.cu), on the host one after the other (kernels-host.cpp). What a thread keeps from phase to phase is
// in an `own`, what a block shares in `shared`.
//
//   Threads::each(f)     f(i_thread) of all, then a barrier
//   Threads::own<T>      own[i_thread]: a T of each thread
#pragma once

#include "move.h"
#include "select.h"
#include "votes.h"

// Launch i of 1 to 5.
template <int Launch, typename Threads>
MORPHKV_DEVICE void morphkv_block(const Threads & threads, const morphkv_kernels_args & a, int i_block, void * shared) {
    if constexpr (Launch <= 2) {
        auto & tiles   = *(morphkv_shared_tiles *) shared;
        auto   of_type = [&](auto type) {
            constexpr int Type = decltype(type)::value;
            if constexpr (Launch == 1) {
                morphkv_phase_rows<Type>(threads, a, i_block, tiles);
            } else {
                morphkv_phase_votes<Type>(threads, a, i_block, tiles);
            }
        };
        switch (a.type_k) {
            case MORPHKV_KERNELS_TYPE_F32:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_F32>{});
            case MORPHKV_KERNELS_TYPE_F16:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_F16>{});
            case MORPHKV_KERNELS_TYPE_BF16:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_BF16>{});
            case MORPHKV_KERNELS_TYPE_Q8_0:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_Q8_0>{});
            case MORPHKV_KERNELS_TYPE_Q5_0:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_Q5_0>{});
            default:
                return of_type(morphkv_type<MORPHKV_KERNELS_TYPE_Q4_0>{});
        }
    }
    if constexpr (Launch == 3) {
        morphkv_phase_select(threads, a, i_block, (uint64_t *) shared);
    } else if constexpr (Launch == 4) {
        morphkv_phase_pairs(threads, a, i_block);
    } else {
        morphkv_phase_window(threads, a, i_block);
    }
}
