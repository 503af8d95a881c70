// Keys are laid out anew, N_TILE at a time with their dimensions outermost: a vector then holds one dimension of several
// keys, and nothing is summed across a vector. After that a task, a KV head and a few voters, stays in a core's cache.

#include "device/votes-loops.h"

#include <utility>

namespace {

// Logits of Q queries on T tiles.
template <int W, int Q, int T>
INLINE void multiply(const float * queries, const float * tiles, int64_t n_embd, float * out, int64_t out_stride) {
    using v         = vec<W>;
    constexpr int N = N_TILE / W;

    typename v::f32 acc[Q][T * N] = {};
    for (int64_t d = 0; d < n_embd; ++d) {
        typename v::f32 k[T * N];
        for (int j = 0; j < T * N; ++j) {
            k[j] = v::load(tiles + j / N * n_embd * N_TILE + d * N_TILE + j % N * W);
        }
        for (int i = 0; i < Q; ++i) {
            for (int j = 0; j < T * N; ++j) {
                acc[i][j] += k[j] * queries[i * n_embd + d];
            }
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int j = 0; j < T * N; ++j) {
            v::store(out + i * out_stride + j * W, acc[i][j]);
        }
    }
}

template <int W, int Q, int T> INLINE void multiply_all(const task & t, int64_t i_tile) {
    const int64_t n_queries = t.n_votes * t.n_group;
    const int64_t n_cells   = t.n_tiles * N_TILE;
    const float * tiles     = t.tiles + i_tile * t.n_embd * N_TILE;
    float *       out       = t.logits + i_tile * N_TILE;
    int64_t       i         = 0;
    for (; i + Q <= n_queries; i += Q) {
        multiply<W, Q, T>(t.queries + i * t.n_embd, tiles, t.n_embd, out + i * n_cells, n_cells);
    }
    for (; i < n_queries; ++i) {
        multiply<W, 1, T>(t.queries + i * t.n_embd, tiles, t.n_embd, out + i * n_cells, n_cells);
    }
}

template <int W, int Q, int T> INLINE void run(const task & t) {
    int64_t i_tile = 0;
    for (; i_tile + T <= t.n_tiles; i_tile += T) {
        multiply_all<W, Q, T>(t, i_tile);
    }
    for (; i_tile < t.n_tiles; ++i_tile) {
        multiply_all<W, Q, 1>(t, i_tile);
    }
    finish<W>(t);
}

// rows: (N_TILE, n_embd), tile: (n_embd, N_TILE)
INLINE void lay_out(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    for (int64_t j = 0; j < N_TILE; ++j) {
        to_float(type, keys[j], rows + j * n_embd, n_embd);
    }
    for (int64_t d = 0; d < n_embd; ++d) {
        for (int64_t j = 0; j < N_TILE; ++j) {
            tile[d * N_TILE + j] = rows[j * n_embd + d];
        }
    }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE 1
#endif
#endif

#if defined(HAS_SHUFFLE)
// What becomes of two rows of a square of W values that are S rows apart, when the squares of S values in it change places.
template <int W, int S, int... J>
INLINE void swap_squares(typename vec<W>::f32 & a, typename vec<W>::f32 & b, std::integer_sequence<int, J...>) {
    const typename vec<W>::f32 low  = __builtin_shufflevector(a, b, (J & S ? W + J - S : J)...);
    const typename vec<W>::f32 high = __builtin_shufflevector(a, b, (J & S ? W + J : J + S)...);
    a                               = low;
    b                               = high;
}

template <int W, int S> INLINE void transpose(typename vec<W>::f32 * rows) {
    for (int i = 0; i < W; ++i) {
        if (!(i & S)) {
            swap_squares<W, S>(rows[i], rows[i + S], std::make_integer_sequence<int, W>());
        }
    }
    if constexpr (2 * S < W) {
        transpose<W, 2 * S>(rows);
    }
}

// W values from p on.
template <int W, ggml_type Type> INLINE typename vec<W>::f32 load_values(const char * p) {
    if constexpr (Type == GGML_TYPE_F32) {
        return vec<W>::load((const float *) p);
    } else {
#if defined(__x86_64__) && !defined(__clang__)
        if constexpr (W > 4) {
            // an intrinsic cannot be inlined into what is not yet compiled for its kind of CPU
            typedef uint16_t     u16 __attribute__((vector_size(W * sizeof(uint16_t))));
            u16                  halves;
            typename vec<W>::f32 res;
            memcpy(&halves, p, sizeof(halves));
            asm("vcvtph2ps %1, %0" : "=v"(res) : "v"(halves));
            return res;
        }
#endif
        uint16_t halves[W];
        float    values[W];
        memcpy(halves, p, sizeof(halves));
        for (int i = 0; i < W; ++i) {
            values[i] = widen(halves[i]);
        }
        return vec<W>::load(values);
    }
}

template <int W, ggml_type Type> INLINE void lay_out_squares(const char * const * keys, int64_t n_embd, float * tile) {
    constexpr int64_t n_bytes = Type == GGML_TYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    for (int64_t d = 0; d < n_embd; d += W) {
        for (int64_t j = 0; j < N_TILE; j += W) {
            typename vec<W>::f32 rows[W];
            for (int i = 0; i < W; ++i) {
                rows[i] = load_values<W, Type>(keys[j + i] + d * n_bytes);
            }
            transpose<W, 1>(rows);
            for (int i = 0; i < W; ++i) {
                vec<W>::store(tile + (d + i) * N_TILE + j, rows[i]);
            }
        }
    }
}

// The same, by squares of W values.
template <int W>
INLINE void lay_out_by(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    if (n_embd % W != 0) {
        return lay_out(type, keys, n_embd, rows, tile);
    }
    if (type == GGML_TYPE_F16) {
        return lay_out_squares<W, GGML_TYPE_F16>(keys, n_embd, tile);
    }
    const char * floats[N_TILE];
    for (int64_t j = 0; j < N_TILE; ++j) {
        floats[j] = keys[j];
        if (type != GGML_TYPE_F32) {
            to_float(type, keys[j], rows + j * n_embd, n_embd);
            floats[j] = (const char *) (rows + j * n_embd);
        }
    }
    lay_out_squares<W, GGML_TYPE_F32>(floats, n_embd, tile);
}
#else
template <int W>
INLINE void lay_out_by(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    lay_out(type, keys, n_embd, rows, tile);
}
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#if defined(__clang__)
#define AVX512 __attribute__((target("avx512f,avx512dq")))
#else
#define AVX512 __attribute__((target("avx512f,avx512dq,prefer-vector-width=512")))
#endif
#define AVX2 __attribute__((target("avx2,fma,f16c")))

AVX512 void run_avx512(const task & t) {
    run<16, 8, 3>(t);
}
AVX512 void lay_out_avx512(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    lay_out_by<16>(type, keys, n_embd, rows, tile);
}
AVX2 void run_avx2(const task & t) {
    run<8, 6, 1>(t);
}
AVX2 void lay_out_avx2(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    lay_out_by<8>(type, keys, n_embd, rows, tile);
}
#endif

}  // namespace

std::vector<morphkv_votes_kernels> morphkv_votes_all_kernels() {
    std::vector<morphkv_votes_kernels> res;
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        res.push_back({ "avx512", run_avx512, lay_out_avx512 });
    }
    // whatever has AVX2 has F16C
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        res.push_back({ "avx2", run_avx2, lay_out_avx2 });
    }
#endif
#if defined(__GNUC__)
    res.push_back({ "baseline", run<4, 4, 1>, lay_out_by<4> });
#else
    res.push_back({ "baseline", run<1, 1, 1>, lay_out });
#endif
    return res;
}

const morphkv_votes_kernels & morphkv_votes_best_kernels() {
    static const morphkv_votes_kernels res = morphkv_votes_all_kernels()[0];
    return res;
}
