// Keys are laid out anew, N_TILE at a time with their dimensions outermost: a vector then holds one dimension of several
// keys, and nothing is summed across a vector. After that a task, a KV head and a few voters, stays in a core's cache.

#include "device/votes-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace {

constexpr int64_t N_TILE = MORPHKV_VOTES_PAGE;  // keys

// Voters of a task: some 24 queries.
int64_t n_part_votes(int64_t n_group) {
    return std::max<int64_t>(1, 24 / n_group);
}

// Behind what ggml_custom_4d() puts into a tensor's op_params.
constexpr size_t PARAMS_OFFSET = 32;
static_assert(PARAMS_OFFSET + sizeof(morphkv_votes_params) <= GGML_MAX_OP_PARAMS);

const morphkv_votes_params & params_of(const ggml_tensor * t) {
    return *(const morphkv_votes_params *) ((const char *) t->op_params + PARAMS_OFFSET);
}

ggml_tensor * build_op(ggml_context * ctx, int64_t ne0, int64_t ne1, int64_t ne2, std::vector<ggml_tensor *> args,
                       ggml_custom_op_t op, const morphkv_votes_params & params) {
    ggml_tensor * res =
        ggml_custom_4d(ctx, GGML_TYPE_F32, ne0, ne1, ne2, 1, args.data(), args.size(), op, GGML_N_TASKS_MAX, nullptr);
    memcpy((char *) res->op_params + PARAMS_OFFSET, &params, sizeof(params));
    return res;
}

INLINE float widen(uint16_t f16) {
    uint32_t bits = (uint32_t) (f16 & 0x7fff) << 13;
    float    res;
    memcpy(&res, &bits, sizeof(res));
    res *= 0x1p112f;                                // exact, of subnormals too
    memcpy(&bits, &res, sizeof(bits));
    bits |= bits >= 0x47800000u ? 0x7f800000u : 0;  // infinities and NaN
    bits |= (uint32_t) (f16 & 0x8000) << 16;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

INLINE void to_float(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F16) {
        const auto * f16 = (const uint16_t *) src;
        for (int64_t i = 0; i < n; ++i) {
            dst[i] = widen(f16[i]);
        }
    } else if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

// W floats at once.
template <int W> struct vec {
#if defined(__GNUC__)
    typedef float    f32 __attribute__((vector_size(W * sizeof(float))));
    typedef uint32_t u32 __attribute__((vector_size(W * sizeof(uint32_t))));
#else
    static_assert(W == 1);
    typedef float    f32;
    typedef uint32_t u32;
#endif
    static INLINE f32 load(const float * p) {
        f32 res;
        memcpy(&res, p, sizeof(res));
        return res;
    }
    static INLINE void store(float * p, f32 x) { memcpy(p, &x, sizeof(x)); }
    static INLINE f32  max(f32 a, f32 b) { return a > b ? a : b; }

    // exp(x) of x <= 0, to 2 ulp; below -87, where it is next to nothing, exp(-87)
    static INLINE f32 exp(f32 x) {
        const f32 low   = f32{} - 87.0f;
        const f32 magic = f32{} + 0x1.8p23f;  // what is added to it becomes an integer
        x               = x < low ? low : x;
        const f32 n_up  = x * 1.44269504f + magic;
        const f32 n     = n_up - magic;
        const f32 r     = (x - n * 0.693145752f) - n * 1.42860677e-6f;
        f32       res   = r * 1.3888889e-3f + 8.3333333e-3f;
        res             = res * r + 4.16666667e-2f;
        res             = res * r + 1.66666667e-1f;
        res             = res * r + 0.5f;
        res             = res * r + 1.0f;
        res             = res * r + 1.0f;
        u32 bits, exponent;
        memcpy(&bits, &res, sizeof(bits));
        memcpy(&exponent, &n_up, sizeof(exponent));
        bits += exponent << 23;
        memcpy(&res, &bits, sizeof(res));
        return res;
    }
};

// A part of the votes of a KV head.
struct task {
    const float * tiles;    // (n_tiles, n_embd, N_TILE)
    const float * queries;  // (n_votes*n_group, n_embd)
    const float * sinks;    // (n_group) or null
    float *       logits;   // (n_votes*n_group, n_tiles*N_TILE) scratch
    float *       inv_sum;  // (n_votes*n_group) scratch
    float *       out;      // (n_old), or (n_pages)
    int64_t       n_tiles, n_embd, n_votes, n_group;

    const morphkv_votes_params & params;
};

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

// exp(x*scale - highest), in place; returns 1 over the sum.
template <int W> INLINE float exponentiate(float * x, int64_t n, float scale, const float * sink) {
    using v                 = vec<W>;
    typename v::f32 highest = v::load(x) * scale;
    for (int64_t c = W; c < n; c += W) {
        highest = v::max(highest, v::load(x + c) * scale);
    }
    float lanes[W];
    v::store(lanes, highest);
    float max = *std::max_element(lanes, lanes + W);
    if (sink) {
        max = std::max(max, *sink);
    }
    typename v::f32 sums{};
    for (int64_t c = 0; c < n; c += W) {
        const typename v::f32 e = v::exp(v::load(x + c) * scale - max);
        v::store(x + c, e);
        sums += e;
    }
    v::store(lanes, sums);
    float sum = sink ? expf(*sink - max) : 0.0f;
    for (int j = 0; j < W; ++j) {
        sum += lanes[j];
    }
    return 1.0f / sum;
}

// A voter's vote on W cells from c: max over the query heads of a group. i: its first query.
template <int W> INLINE typename vec<W>::f32 vote_of(const task & t, int64_t i, int64_t c) {
    using v = vec<W>;
    typename v::f32 res{};
    for (int64_t g = i; g < i + t.n_group; ++g) {
        res = v::max(res, v::load(t.logits + g * t.n_tiles * N_TILE + c) * t.inv_sum[g]);
    }
    return res;
}

template <int W> INLINE void join(const task & t) {
    using v = vec<W>;
    for (int64_t c = 0; c < t.n_tiles * N_TILE; c += W) {
        typename v::f32 joined{};
        for (int64_t i = 0; i < t.n_votes * t.n_group; i += t.n_group) {
            const typename v::f32 vote = vote_of<W>(t, i, c);
            joined                     = t.params.use_max ? v::max(joined, vote) : joined + vote;
        }
        float lanes[W];
        v::store(lanes, joined);
        std::copy(lanes, lanes + std::max<int64_t>(0, std::min<int64_t>(W, t.params.n_old - c)), t.out + c);
    }
}

template <int W> INLINE void score_pages(const task & t) {
    const int64_t n_pages = t.params.n_old / t.params.n_page;
    std::fill(t.out, t.out + n_pages, 0.0f);
    for (int64_t i_tile = 0; i_tile < t.n_tiles; ++i_tile) {
        for (int64_t i = 0; i < t.n_votes * t.n_group; i += t.n_group) {
            float votes[N_TILE];
            for (int64_t j = 0; j < N_TILE; j += W) {
                vec<W>::store(votes + j, vote_of<W>(t, i, i_tile * N_TILE + j));
            }
            if (i_tile == 0) {
                std::fill(votes, votes + t.params.n_skip, 0.0f);
            }
            for (int64_t j = 0; j < N_TILE; j += t.params.n_page) {
                float share = 0.0f;
                for (int64_t l = j; l < j + t.params.n_page; ++l) {
                    share += votes[l];
                }
                const int64_t page = (i_tile * N_TILE + j) / t.params.n_page;
                if (page < n_pages) {
                    t.out[page] += share * share * share;
                }
            }
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
    for (int64_t i = 0; i < n_queries; ++i) {
        float * x     = t.logits + i * n_cells;
        float   scale = t.params.scale;
        if (t.params.softcap != 0.0f) {
            for (int64_t c = 0; c < t.params.n_old; ++c) {
                x[c] = tanhf(x[c] * (scale / t.params.softcap));
            }
            scale = t.params.softcap;
        }
        std::fill(x + t.params.n_old, x + n_cells, -INFINITY);
        t.inv_sum[i] = exponentiate<W>(x, n_cells, scale, t.sinks ? &t.sinks[i % t.n_group] : nullptr);
    }
    if (t.params.n_page > 0) {
        score_pages<W>(t);
    } else {
        join<W>(t);
    }
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

// What is compiled for each kind of CPU.
struct kernels {
    void (*run)(const task & t);
    void (*lay_out)(ggml_type type, const char * const * keys, int64_t n_embd, float * rows, float * tile);
};

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

kernels best_kernels() {
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        return { run_avx512, lay_out_avx512 };
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return { run_avx2, lay_out_avx2 };
    }
#endif
#if defined(__GNUC__)
    return { run<4, 4>, lay_out };
#else
    return { run<1, 1>, lay_out };
#endif
}

const kernels & get_kernels() {
    static const kernels res = best_kernels();
    return res;
}

// dst: (n_head_kv, n_tiles, n_embd, N_TILE), keys beyond n_old repeat the last
void lay_out_keys(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    const ggml_tensor *          k      = dst->src[0];
    const morphkv_votes_params & params = params_of(dst);

    const int64_t n_embd  = dst->ne[0] / N_TILE;
    const int64_t n_tiles = dst->ne[1];
    const size_t  k_bytes = ggml_row_size(k->type, n_embd);

    // heads innermost: their keys lie side by side
    std::vector<float> rows(N_TILE * n_embd);
    const int64_t      n_heads = dst->ne[2];
    for (int64_t i = ith; i < n_tiles * n_heads; i += nth) {
        const int64_t i_tile = i / n_heads, h = i % n_heads;
        const char *  keys[N_TILE];
        for (int64_t j = 0; j < N_TILE; ++j) {
            const int64_t cell = std::min<int64_t>(i_tile * N_TILE + j, params.n_old - 1);
            keys[j]            = (const char *) k->data + cell * k->nb[1] + h * k_bytes;
        }
        get_kernels().lay_out(k->type, keys, n_embd, rows.data(),
                              (float *) ((char *) dst->data + h * dst->nb[2] + i_tile * dst->nb[1]));
    }
}

// dst: (n_head_kv, n_parts, n_old or n_pages)
void compute_votes(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    const ggml_tensor * tiles = dst->src[0];
    const ggml_tensor * q     = dst->src[1];
    const ggml_tensor * sinks = dst->src[2];

    const int64_t n_embd  = tiles->ne[0] / N_TILE;
    const int64_t n_tiles = tiles->ne[1];
    const int64_t n_group = q->ne[0] / n_embd / dst->ne[2];
    const int64_t n_votes = q->ne[1];
    const int64_t n_parts = dst->ne[1];
    const size_t  q_bytes = ggml_row_size(q->type, n_embd);
    const int64_t n_part  = n_part_votes(n_group);
    const int64_t n_most  = n_part * n_group;

    std::vector<float> queries(n_most * n_embd), logits(n_most * n_tiles * N_TILE), inv_sum(n_most);
    for (int64_t i = ith; i < n_parts * dst->ne[2]; i += nth) {
        const int64_t h     = i / n_parts;
        const int64_t first = i % n_parts * n_part;

        const task t{ (const float *) tiles->data + h * tiles->ne[0] * n_tiles,
                      queries.data(),
                      sinks ? (const float *) sinks->data + h * n_group : nullptr,
                      logits.data(),
                      inv_sum.data(),
                      (float *) dst->data + i * dst->ne[0],
                      n_tiles,
                      n_embd,
                      std::min(n_part, n_votes - first),
                      n_group,
                      params_of(dst) };
        for (int64_t j = 0; j < t.n_votes; ++j) {
            to_float(q->type, (const char *) q->data + (first + j) * q->nb[1] + h * n_group * q_bytes,
                     queries.data() + j * n_group * n_embd, n_group * n_embd);
        }
        get_kernels().run(t);
    }
}

}  // namespace

bool morphkv_votes_on_cpu(ggml_backend_t backend, ggml_type type_k, int64_t n_embd_head) {
    ggml_backend_dev_t dev = backend ? ggml_backend_get_device(backend) : nullptr;
    return dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU &&
           ggml_backend_buft_is_host(ggml_backend_get_default_buffer_type(backend)) &&
           n_embd_head % ggml_blck_size(type_k) == 0 &&
           (type_k == GGML_TYPE_F32 || ggml_get_type_traits(type_k)->to_float);
}

static ggml_tensor * build_votes(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * sinks,
                                 const morphkv_votes_params & params) {
    const int64_t n_embd  = k->ne[0] / params.n_head_kv;
    const int64_t n_tiles = (params.n_old + N_TILE - 1) / N_TILE;
    const int64_t n_part  = n_part_votes(q->ne[0] / k->ne[0]);
    const int64_t n_parts = (q->ne[1] + n_part - 1) / n_part;
    ggml_tensor * tiles   = build_op(ctx, N_TILE * n_embd, n_tiles, params.n_head_kv, { k }, lay_out_keys, params);

    std::vector<ggml_tensor *> args = { tiles, q };
    if (sinks) {
        args.push_back(sinks);
    }
    const int64_t n_out = params.n_page > 0 ? params.n_old / params.n_page : params.n_old;
    return build_op(ctx, n_out, n_parts, params.n_head_kv, args, compute_votes, params);
}

ggml_tensor * morphkv_build_votes_on_cpu(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * sinks,
                                         const morphkv_votes_params & params) {
    // as the CPU's matrix product takes them
    if (ggml_is_quantized(k->type)) {
        q = ggml_cast(ctx, q, GGML_TYPE_Q8_0);
    } else if (k->type == GGML_TYPE_BF16) {
        q = ggml_cast(ctx, q, GGML_TYPE_BF16);
    }
    return build_votes(ctx, k, q, sinks, params);
}

ggml_tensor * morphkv_build_page_scores(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q,
                                        const morphkv_votes_params & params) {
    return build_votes(ctx, k, q, nullptr, params);
}
