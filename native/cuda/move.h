// Launches 4 and 5: rows of K and V, whatever is in them, in the largest words that they are made of.
#pragma once

#include "plan.h"
#include "values.h"

template <int N> struct alignas(N) morphkv_word {
    unsigned char bytes[N];
};

// Pairs [first, end) of a head's part of the rows, which begins at p. Graduates and slots are other cells.
template <int N, typename Threads>
MORPHKV_DEVICE void morphkv_move_pairs(const Threads & threads, char * p, int64_t row_bytes, int64_t head_bytes,
                                       const int32_t * src, const int32_t * dst, int first, int end) {
    using word        = morphkv_word<N>;
    const int n_words = (int) (head_bytes / N);
    threads.each([&](int t) {
        for (int i = t; i < (end - first) * n_words; i += MORPHKV_N_THREADS) {
            const int pair = first + i / n_words, i_word = i % n_words;
            if (src[pair] != dst[pair]) {
                ((word *) (p + dst[pair] * row_bytes))[i_word] = ((const word *) (p + src[pair] * row_bytes))[i_word];
            }
        }
    });
}

// Rows n_by further on come to stand at [first, first + n_rows), 32 words of each: a thread has four rows of a word, and all
// are read before one of them is written.
template <int N, typename Threads>
MORPHKV_DEVICE void morphkv_move_window(const Threads & threads, char * p, int64_t row_bytes, int n_words, int first,
                                        int n_by, int n_rows) {
    using word           = morphkv_word<N>;
    constexpr int N_EACH = 4, N_LINES = MORPHKV_N_THREADS / MORPHKV_COLUMNS;

    typename Threads::template own<word[N_EACH]> words;
    for (int begin = 0; begin < n_rows; begin += N_EACH * N_LINES) {
        auto each_row = [&](int t, auto && f) {
            for (int j = 0; j < N_EACH; ++j) {
                const int i = begin + j * N_LINES + t / MORPHKV_COLUMNS;
                if (i < n_rows && t % MORPHKV_COLUMNS < n_words) {
                    f(j, p + (first + i) * row_bytes);
                }
            }
        };
        threads.each([&](int t) {
            each_row(t, [&](int j, const char * row) {
                words[t][j] = ((const word *) (row + n_by * row_bytes))[t % MORPHKV_COLUMNS];
            });
        });
        threads.each(
            [&](int t) { each_row(t, [&](int j, char * row) { ((word *) row)[t % MORPHKV_COLUMNS] = words[t][j]; }); });
    }
}

// f of a word of so many bytes
template <typename F> MORPHKV_DEVICE void morphkv_with_width(int width, F && f) {
    switch (width) {
        case 16:
            return f(morphkv_word<16>{});
        case 8:
            return f(morphkv_word<8>{});
        case 4:
            return f(morphkv_word<4>{});
        case 2:
            return f(morphkv_word<2>{});
        default:
            return f(morphkv_word<1>{});
    }
}

// Launch 4: 32 pairs of a head, of K or of V.
template <typename Threads>
MORPHKV_DEVICE void morphkv_phase_pairs(const Threads & threads, const morphkv_kernels_args & a, int i_block) {
    const int n_each = (a.n_pairs + MORPHKV_PAIRS - 1) / MORPHKV_PAIRS;
    if (n_each == 0 || i_block >= 2 * n_each * a.n_head_kv) {
        return;
    }
    const bool is_v  = i_block / n_each % 2;
    const int  h     = i_block / n_each / 2;
    const int  first = i_block % n_each * MORPHKV_PAIRS, end = morphkv_min(a.n_pairs, first + MORPHKV_PAIRS);
    if (is_v && !a.v) {
        return;
    }
    const int64_t head_bytes = is_v ? a.v_head_bytes : a.k_head_bytes;
    char *        p          = (is_v ? a.v : a.k) + h * head_bytes;
    morphkv_with_width(is_v ? a.v_width : a.k_width, [&](auto word) {
        morphkv_move_pairs<sizeof(word)>(threads, p, is_v ? a.v_row_bytes : a.k_row_bytes, head_bytes,
                                         a.src + (int64_t) h * a.n_pairs, a.dst + (int64_t) h * a.n_pairs, first, end);
    });
}

// Launch 5: some columns of the window's rows, of K or of V. The graduates' rows, which it takes, are no longer needed.
template <typename Threads>
MORPHKV_DEVICE void morphkv_phase_window(const Threads & threads, const morphkv_kernels_args & a, int i_block) {
    const int  n_k_words  = (int) (a.n_head_kv * a.k_head_bytes / a.k_width);
    const int  n_k_blocks = (n_k_words + MORPHKV_COLUMNS - 1) / MORPHKV_COLUMNS;
    const bool is_v       = i_block >= n_k_blocks;
    if (is_v && !a.v) {
        return;
    }
    const int width   = is_v ? a.v_width : a.k_width;
    const int n_words = is_v ? (int) (a.n_head_kv * a.v_head_bytes / a.v_width) : n_k_words;
    const int first   = (is_v ? i_block - n_k_blocks : i_block) * MORPHKV_COLUMNS;
    if (first >= n_words) {
        return;
    }
    char * p = (is_v ? a.v : a.k) + (int64_t) first * width;
    morphkv_with_width(width, [&](auto word) {
        morphkv_move_window<sizeof(word)>(threads, p, is_v ? a.v_row_bytes : a.k_row_bytes,
                                          morphkv_min(MORPHKV_COLUMNS, n_words - first), a.n_distant, a.n_grad,
                                          a.n_window);
    });
}
