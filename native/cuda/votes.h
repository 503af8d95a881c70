// Launches 1 and 2: votes on the older cells, by products of up to 64 queries and 64 cells, in F32. Logits are made twice and
// kept nowhere: those of an 8B's eviction would take 285 MB.
#pragma once

#include "plan.h"
#include "values.h"

#include <cmath>

template <int Type> struct morphkv_type {
    static constexpr int value = Type;
};

struct alignas(16) morphkv_four {
    float x[4];
};

constexpr int MORPHKV_DEPTH  = 32;                // dimensions at a time
constexpr int MORPHKV_STRIDE = MORPHKV_TILE + 4;  // whole fours, and other banks

struct morphkv_shared_tiles {
    alignas(16) float queries[MORPHKV_DEPTH][MORPHKV_STRIDE];
    alignas(16) float cells[MORPHKV_DEPTH][MORPHKV_STRIDE];
    float        logits[MORPHKV_TILE][MORPHKV_STRIDE];
    float        max[MORPHKV_TILE][4];
    float        sum[MORPHKV_TILE][4];
    const char * rows[MORPHKV_TILE];  // of the queries
};

// Where queries [first, first + n) of KV head h are: all of a voter's group lie one behind the other.
template <typename Threads>
MORPHKV_DEVICE void morphkv_find_queries(const Threads & threads, const morphkv_kernels_args & a, int h, int first,
                                         int n, morphkv_shared_tiles & shared) {
    threads.each([&](int t) {
        if (t < n) {
            const int i_vote = (first + t) / a.n_group, g = (first + t) % a.n_group;
            const int n_each = a.n_group / a.n_readers;  // heads of a reader that attend to h
            const int head   = (g / n_each * a.n_head_kv + h) * n_each + g % n_each;
            shared.rows[t]   = a.ring + a.vote_rows[i_vote] * a.ring_row_bytes +
                               (int64_t) head * a.n_embd_head * (int) sizeof(uint16_t);
        }
    });
}

// logits[i][c]: what attention makes of query i of those found and cell first_cell + c, before its softmax. A thread has 4x4.
template <int Type, typename Threads>
MORPHKV_DEVICE void morphkv_logits(const Threads & threads, const morphkv_kernels_args & a, int h, int n_queries,
                                   int first_cell, int n_cells, morphkv_shared_tiles & shared) {
    typename Threads::template own<float[4][4]> acc;
    threads.each([&](int t) {
        for (int i = 0; i < 16; ++i) {
            acc[t][i / 4][i % 4] = 0.0f;
        }
    });
    for (int first = 0; first < a.n_embd_head; first += MORPHKV_DEPTH) {
        threads.each([&](int t) {
            const int d = t / MORPHKV_TILE * MORPHKV_N_VALUES, i = t % MORPHKV_TILE;
            float     q[MORPHKV_N_VALUES] = {}, k[MORPHKV_N_VALUES] = {};
            if (i < n_queries) {
                morphkv_load_values<MORPHKV_KERNELS_TYPE_F16>(shared.rows[i], first + d, a.n_embd_head, q);
            }
            if (i < n_cells) {
                const char * row = a.k + (first_cell + i) * a.k_row_bytes + h * a.k_head_bytes;
                morphkv_load_values<Type>(row, first + d, a.n_embd_head, k);
            }
            for (int j = 0; j < MORPHKV_N_VALUES; ++j) {
                shared.queries[d + j][i] = q[j];
                shared.cells[d + j][i]   = k[j];
            }
        });
        threads.each([&](int t) {
            const int i = t / 16 * 4, c = t % 16 * 4;
            if (i >= n_queries || c >= n_cells) {
                return;
            }
            const int n = morphkv_min(MORPHKV_DEPTH, a.n_embd_head - first);
            for (int d = 0; d < n; ++d) {
                const morphkv_four q = *(const morphkv_four *) &shared.queries[d][i];
                const morphkv_four k = *(const morphkv_four *) &shared.cells[d][c];
                for (int j = 0; j < 16; ++j) {
                    acc[t][j / 4][j % 4] += q.x[j / 4] * k.x[j % 4];
                }
            }
        });
    }
    threads.each([&](int t) {
        for (int j = 0; j < 16; ++j) {
            float x = acc[t][j / 4][j % 4] * a.scale;
            if (a.softcap != 0.0f) {
                x = a.softcap * tanhf(x / a.softcap);
            }
            shared.logits[t / 16 * 4 + j / 4][t % 16 * 4 + j % 4] = x;
        }
    });
}

// Launch 1: max and sum of a part of a row of logits, for up to 64 queries.
template <int Type, typename Threads>
MORPHKV_DEVICE void morphkv_phase_rows(const Threads & threads, const morphkv_kernels_args & a, int i_block,
                                       morphkv_shared_tiles & shared) {
    const int n_rows  = a.n_votes * a.n_group;
    const int n_tiles = (n_rows + MORPHKV_TILE - 1) / MORPHKV_TILE;
    const int h = i_block / (a.n_parts * n_tiles), i_part = i_block / n_tiles % a.n_parts;
    if (h >= a.n_head_kv) {
        return;
    }
    const int first_query = i_block % n_tiles * MORPHKV_TILE,
              n_queries   = morphkv_min(MORPHKV_TILE, n_rows - first_query);
    const int end         = morphkv_min(a.n_old, (i_part + 1) * MORPHKV_CELLS);

    morphkv_find_queries(threads, a, h, first_query, n_queries, shared);

    // four threads a row
    typename Threads::template own<float> max, sum;
    threads.each([&](int t) {
        max[t] = -INFINITY;
        sum[t] = 0.0f;
    });
    for (int first_cell = i_part * MORPHKV_CELLS; first_cell < end; first_cell += MORPHKV_TILE) {
        const int n_cells = morphkv_min(MORPHKV_TILE, end - first_cell);
        morphkv_logits<Type>(threads, a, h, n_queries, first_cell, n_cells, shared);
        threads.each([&](int t) {
            if (t / 4 >= n_queries) {
                return;
            }
            const float * x     = shared.logits[t / 4];
            float         local = max[t];
            for (int c = t % 4; c < n_cells; c += 4) {
                local = morphkv_larger(local, x[c]);
            }
            if (local == -INFINITY) {
                return;
            }
            sum[t] = max[t] == -INFINITY ? 0.0f : sum[t] * expf(max[t] - local);
            for (int c = t % 4; c < n_cells; c += 4) {
                sum[t] += expf(x[c] - local);
            }
            max[t] = local;
        });
    }
    threads.each([&](int t) {
        shared.max[t / 4][t % 4] = max[t];
        shared.sum[t / 4][t % 4] = sum[t];
    });
    threads.each([&](int t) {
        if (t >= n_queries) {
            return;
        }
        float highest = -INFINITY, all = 0.0f;
        for (int i = 0; i < 4; ++i) {
            highest = morphkv_larger(highest, shared.max[t][i]);
        }
        for (int i = 0; i < 4; ++i) {
            all += shared.max[t][i] == -INFINITY ? 0.0f : shared.sum[t][i] * expf(shared.max[t][i] - highest);
        }
        const int64_t i = ((int64_t) h * a.n_parts + i_part) * n_rows + first_query + t;
        a.part_max[i]   = highest;
        a.part_sum[i]   = all;
    });
}

// Launch 2: the votes on up to 64 cells, and the sums.
template <int Type, typename Threads>
MORPHKV_DEVICE void morphkv_phase_votes(const Threads & threads, const morphkv_kernels_args & a, int i_block,
                                        morphkv_shared_tiles & shared) {
    const int n_tiles = (a.n_old + MORPHKV_TILE - 1) / MORPHKV_TILE;
    const int h = i_block / n_tiles, first_cell = i_block % n_tiles * MORPHKV_TILE;
    if (h >= a.n_head_kv) {
        return;
    }
    const int n_cells = morphkv_min(MORPHKV_TILE, a.n_old - first_cell);
    const int n_rows  = a.n_votes * a.n_group;

    // a thread a cell
    typename Threads::template own<float> vote, of_group;
    threads.each([&](int t) { vote[t] = of_group[t] = 0.0f; });
    for (int first = 0; first < n_rows; first += MORPHKV_TILE) {
        const int n_queries = morphkv_min(MORPHKV_TILE, n_rows - first);
        morphkv_find_queries(threads, a, h, first, n_queries, shared);
        threads.each([&](int t) {
            if (t >= n_queries) {
                return;
            }
            const float * sink    = a.sinks ? &a.sinks[h * a.n_group + (first + t) % a.n_group] : nullptr;
            float         highest = sink ? *sink : -INFINITY;
            for (int i = 0; i < a.n_parts; ++i) {
                highest = morphkv_larger(highest, a.part_max[((int64_t) h * a.n_parts + i) * n_rows + first + t]);
            }
            float sum = sink ? expf(*sink - highest) : 0.0f;
            for (int i = 0; i < a.n_parts; ++i) {
                const int64_t j = ((int64_t) h * a.n_parts + i) * n_rows + first + t;
                sum += a.part_max[j] == -INFINITY ? 0.0f : a.part_sum[j] * expf(a.part_max[j] - highest);
            }
            shared.max[t][0] = highest;
            shared.sum[t][0] = 1.0f / sum;
        });
        morphkv_logits<Type>(threads, a, h, n_queries, first_cell, n_cells, shared);
        threads.each([&](int t) {
            if (t / 4 >= n_queries) {
                return;
            }
            float * x = shared.logits[t / 4];
            for (int c = t % 4; c < n_cells; c += 4) {
                x[c] = expf(x[c] - shared.max[t / 4][0]) * shared.sum[t / 4][0];
            }
        });
        threads.each([&](int t) {
            if (t >= n_cells) {
                return;
            }
            int i_next = (first / a.n_group + 1) * a.n_group - first;  // where the next group begins
            for (int i = 0; i < n_queries; ++i) {
                of_group[t] = morphkv_larger(of_group[t], shared.logits[i][t]);
                if (i + 1 == i_next) {
                    vote[t]     = a.use_max ? morphkv_larger(vote[t], of_group[t]) : vote[t] + of_group[t];
                    of_group[t] = 0.0f;
                    i_next += a.n_group;
                }
            }
        });
    }
    threads.each([&](int t) {
        if (t >= n_cells) {
            return;
        }
        const int     cell = first_cell + t;
        const int64_t i    = (int64_t) h * a.n_old + cell;
        a.votes[i]         = morphkv_not_negative(vote[t]);
        if (a.score) {
            const float last = cell < a.n_distant ? a.score[(int64_t) h * a.n_distant + cell] * a.carried : 0.0f;
            a.sums[i]        = morphkv_not_negative(vote[t] + last);
        }
    });
}
