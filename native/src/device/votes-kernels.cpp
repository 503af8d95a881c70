// Keys are laid out anew, N_TILE at a time with their dimensions outermost: a vector then holds one dimension of several
// keys, and nothing is summed across a vector. After that a task, a KV head and a few voters, stays in a core's cache.

#include "device/votes-loops.h"

namespace {

// Logits of Q queries on a tile.
template <int W, int Q>
INLINE void multiply(const float * queries, const float * tile, int64_t n_embd, float * out, int64_t out_stride) {
    using v         = vec<W>;
    constexpr int N = N_TILE / W;

    typename v::f32 acc[Q][N] = {};
    for (int64_t d = 0; d < n_embd; ++d) {
        typename v::f32 k[N];
        for (int j = 0; j < N; ++j) {
            k[j] = v::load(tile + d * N_TILE + j * W);
        }
        for (int i = 0; i < Q; ++i) {
            for (int j = 0; j < N; ++j) {
                acc[i][j] += k[j] * queries[i * n_embd + d];
            }
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int j = 0; j < N; ++j) {
            v::store(out + i * out_stride + j * W, acc[i][j]);
        }
    }
}

template <int W, int Q> INLINE void run(const task & t) {
    const int64_t n_queries = t.n_votes * t.n_group;
    const int64_t n_cells   = t.n_tiles * N_TILE;
    for (int64_t i_tile = 0; i_tile < t.n_tiles; ++i_tile) {
        const float * tile = t.tiles + i_tile * t.n_embd * N_TILE;
        float *       out  = t.logits + i_tile * N_TILE;
        int64_t       i    = 0;
        for (; i + Q <= n_queries; i += Q) {
            multiply<W, Q>(t.queries + i * t.n_embd, tile, t.n_embd, out + i * n_cells, n_cells);
        }
        for (; i < n_queries; ++i) {
            multiply<W, 1>(t.queries + i * t.n_embd, tile, t.n_embd, out + i * n_cells, n_cells);
        }
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

#if defined(__GNUC__) && defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512dq,prefer-vector-width=512")))
#define AVX2   __attribute__((target("avx2,fma")))

AVX512 void run_avx512(const task & t) {
    run<16, 12>(t);
}
AVX512 void lay_out_avx512(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    lay_out(type, keys, n_embd, rows, tile);
}
AVX2 void run_avx2(const task & t) {
    run<8, 6>(t);
}
AVX2 void lay_out_avx2(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile) {
    lay_out(type, keys, n_embd, rows, tile);
}
#endif

}  // namespace

std::vector<morphkv_votes_kernels> morphkv_votes_all_kernels() {
    std::vector<morphkv_votes_kernels> res;
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        res.push_back({ "avx512", run_avx512, lay_out_avx512 });
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        res.push_back({ "avx2", run_avx2, lay_out_avx2 });
    }
#endif
#if defined(__GNUC__)
    res.push_back({ "baseline", run<4, 4>, lay_out });
#else
    res.push_back({ "baseline", run<1, 1>, lay_out });
#endif
    return res;
}

const morphkv_votes_kernels & morphkv_votes_best_kernels() {
    static const morphkv_votes_kernels res = morphkv_votes_all_kernels()[0];
    return res;
}
