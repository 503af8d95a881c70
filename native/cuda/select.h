// Launch 3: which graduate takes which slot. Source: pair and move, device/graph-evict.h.
#pragma once

#include "plan.h"
#include "values.h"

// What a block sorts by: not negative scores, so their bits are in their order. Ascending; equal ones by what is below.
MORPHKV_DEVICE uint64_t morphkv_key(uint32_t high, uint32_t low) {
    return (uint64_t) high << 32 | low;
}

// Bitonic; n_keys is a power of 2.
template <typename Threads> MORPHKV_DEVICE void morphkv_sort(const Threads & threads, uint64_t * keys, int n_keys) {
    for (int size = 2; size <= n_keys; size *= 2) {
        for (int step = size / 2; step > 0; step /= 2) {
            threads.each([&](int t) {
                for (int i = t; i < n_keys / 2; i += MORPHKV_N_THREADS) {
                    const int      a = 2 * i - (i & (step - 1)), b = a + step;
                    const uint64_t x = keys[a], y = keys[b];
                    if ((x > y) == ((a & size) == 0)) {
                        keys[a] = y;
                        keys[b] = x;
                    }
                }
            });
        }
    }
}

MORPHKV_DEVICE int morphkv_power_of_2(int n) {
    int res = 1;
    while (res < n) {
        res *= 2;
    }
    return res;
}

// Writes scores by two committees into ranks, as morphkv_build_committees().
template <typename Threads>
MORPHKV_DEVICE void morphkv_rank(const Threads & threads, const morphkv_kernels_args & a, int h, uint64_t * keys) {
    const int     n = a.n_old - a.n_keep, n_keys = morphkv_power_of_2(n);
    const int     i_last = (a.n_distant - a.n_keep - 1) / 2;
    float *       ranks  = a.ranks + (int64_t) h * a.n_old;
    const float * sums   = a.sums + (int64_t) h * a.n_old;
    threads.each([&](int t) {
        for (int i = t; i < a.n_old; i += MORPHKV_N_THREADS) {
            ranks[i] = i < a.n_keep ? sums[i] : 0.0f;
        }
    });
    for (int i_measure = 0; i_measure < 2; ++i_measure) {
        const float * measure = i_measure == 0 ? a.votes + (int64_t) h * a.n_old : sums;
        threads.each([&](int t) {
            for (int i = t; i < n_keys; i += MORPHKV_N_THREADS) {
                keys[i] = i < n ? morphkv_key(~morphkv_bits_of_float(measure[a.n_keep + i]), i) : UINT64_MAX;
            }
        });
        morphkv_sort(threads, keys, n_keys);
        const float last = morphkv_float_of_bits(~(uint32_t) (keys[i_last] >> 32)) + 1e-20f;
        threads.each([&](int t) {
            for (int i = a.n_keep + t; i < a.n_old; i += MORPHKV_N_THREADS) {
                ranks[i] = morphkv_larger(ranks[i], measure[i] / last);
            }
        });
    }
}

// Launch 3: the i-th best graduate takes the i-th worst slot where its score is higher. Then tokens and sums move; on a tie
// the older cell stays, and of equal slots the last one goes first.
template <typename Threads>
MORPHKV_DEVICE void morphkv_phase_select(const Threads & threads, const morphkv_kernels_args & a, int h,
                                         uint64_t * shared) {
    if (h >= a.n_head_kv) {
        return;
    }
    uint64_t * keys = a.keys ? a.keys + (int64_t) h * a.n_keys : shared;
    if (a.by_committees) {
        morphkv_rank(threads, a, h, keys);
    }
    const float * scores = (a.by_committees ? a.ranks : a.sums) + (int64_t) h * a.n_old;
    int32_t *     src    = a.src + (int64_t) h * a.n_pairs;
    int32_t *     dst    = a.dst + (int64_t) h * a.n_pairs;

    const int n_slots = a.n_distant - a.n_keep, n_slot_keys = morphkv_power_of_2(n_slots);
    threads.each([&](int t) {
        for (int i = t; i < n_slot_keys; i += MORPHKV_N_THREADS) {
            keys[i] =
                i < n_slots ? morphkv_key(morphkv_bits_of_float(scores[a.n_keep + i]), ~(uint32_t) i) : UINT64_MAX;
        }
    });
    morphkv_sort(threads, keys, n_slot_keys);
    threads.each([&](int t) {
        for (int i = t; i < a.n_pairs; i += MORPHKV_N_THREADS) {
            dst[i] = a.n_keep + (int32_t) ~(uint32_t) keys[i];
        }
    });

    const int n_grad_keys = morphkv_power_of_2(a.n_grad);
    threads.each([&](int t) {
        for (int i = t; i < n_grad_keys; i += MORPHKV_N_THREADS) {
            keys[i] = i < a.n_grad ? morphkv_key(~morphkv_bits_of_float(scores[a.n_distant + i]), i) : UINT64_MAX;
        }
    });
    morphkv_sort(threads, keys, n_grad_keys);

    int32_t * serial = a.serial + (int64_t) h * a.n_distant;
    float *   score  = a.score ? a.score + (int64_t) h * a.n_distant : nullptr;
    threads.each([&](int t) {
        for (int i = t; score && i < a.n_distant; i += MORPHKV_N_THREADS) {
            score[i] = a.sums[(int64_t) h * a.n_old + i];
        }
    });
    threads.each([&](int t) {
        for (int i = t; i < a.n_pairs; i += MORPHKV_N_THREADS) {
            const int32_t grad = (int32_t) (uint32_t) keys[i], slot = dst[i];
            const bool    wins = scores[a.n_distant + grad] > scores[slot];
            src[i]             = wins ? a.n_distant + grad : slot;
            if (wins) {
                serial[slot] = a.graduates[grad];
            }
            if (wins && score) {
                score[slot] = a.sums[(int64_t) h * a.n_old + a.n_distant + grad];
            }
        }
    });
}
