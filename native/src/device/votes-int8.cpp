// Instructions are written as such: an intrinsic cannot be inlined into what is not yet compiled for its kind of CPU.

#include "device/votes-int8.h"

#include "device/votes-loops.h"

#include <vector>

// clang takes no vectors that a function is not compiled for
#if defined(__GNUC__) && ((defined(__x86_64__) && !defined(__clang__)) || defined(__aarch64__))

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace {

constexpr int64_t BLOCK  = MORPHKV_INT8_BLOCK;
constexpr int64_t N_EACH = 4;  // products that an instruction adds up

// W int32 at once.
template <int W> struct ints {
    typedef int32_t i32 __attribute__((vector_size(W * sizeof(int32_t))));

    static INLINE i32 load(const char * p) {
        i32 res;
        memcpy(&res, p, sizeof(res));
        return res;
    }
};

// Queries of a task: (n_queries, n_embd) bytes, and for each block a scale and what the sum of its products begins with.
struct int8_queries {
    std::vector<int8_t>  values;
    std::vector<float>   scales;
    std::vector<int32_t> offsets;
};

struct q8_0_block {
    uint16_t d;
    int8_t   values[BLOCK];
};

static_assert(sizeof(q8_0_block) == 34);

// flip: what is added to keys to make them unsigned. Queries of a group of n_together lie together, 8 values of each in turn.
INLINE int8_queries read_queries(const task & t, int32_t flip, int64_t n_together) {
    const auto *  blocks = (const q8_0_block *) t.queries;
    const int64_t n = t.n_votes * t.n_group, n_padded = (n + n_together - 1) / n_together * n_together;
    const int64_t n_blocks = t.n_embd / BLOCK;

    int8_queries res;
    res.values.resize(n_padded * t.n_embd);
    res.scales.resize(n_padded * n_blocks);
    res.offsets.resize(n_padded * n_blocks);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            const q8_0_block & block = blocks[i * n_blocks + b];
            int32_t            sum   = 0;
            for (int64_t j = 0; j < BLOCK; ++j) {
                const int64_t d  = b * BLOCK + j;
                const int64_t at = n_together == 1 ? i * t.n_embd + d
                                                   : i / n_together * n_together * t.n_embd + d / 8 * 8 * n_together +
                                                         i % n_together * 8 + d % 8;
                res.values[at]   = block.values[j];
                sum += block.values[j];
            }
            res.scales[i * n_blocks + b]  = widen(block.d);
            res.offsets[i * n_blocks + b] = -flip * sum;
        }
    }
    return res;
}

// 32 values of a block as bytes, and its scale.
INLINE float read_block(ggml_type type, const char * block, int8_t * out) {
    uint16_t d;
    memcpy(&d, block, sizeof(d));
    if (type == GGML_TYPE_Q8_0) {
        memcpy(out, block + 2, BLOCK);
        return widen(d);
    }
    // of four bits: the low halves of 16 bytes, then the high ones; the fifth bits are before them
    const bool has_fifth = type == GGML_TYPE_Q5_0;
    uint32_t   fifth     = 0;
    if (has_fifth) {
        memcpy(&fifth, block + 2, sizeof(fifth));
    }
    const auto * bytes = (const uint8_t *) block + (has_fifth ? 6 : 2);
    for (int64_t j = 0; j < BLOCK; ++j) {
        const int four = bytes[j % 16] >> (j < 16 ? 0 : 4) & 15;
        out[j]         = has_fifth ? (four | (int) (fifth >> j & 1) << 4) - 16 : four - 8;
    }
    return widen(d);
}

template <uint8_t FLIP> void lay_out_int8(ggml_type type, const char * const * keys, int64_t n_embd, void * tile) {
    const size_t block_bytes = ggml_type_size(type);
    char *       bytes       = (char *) tile;
    float *      scales      = (float *) (bytes + n_embd * N_TILE);
    for (int64_t i = 0; i < N_TILE; ++i) {
        for (int64_t b = 0; b < n_embd / BLOCK; ++b) {
            int8_t values[BLOCK];
            scales[b * N_TILE + i] = read_block(type, keys[i] + b * block_bytes, values);
            for (int64_t j = 0; j < BLOCK; j += N_EACH) {
                uint32_t word;
                memcpy(&word, values + j, sizeof(word));
                word ^= FLIP * 0x01010101u;
                memcpy(bytes + (b * BLOCK + j) * N_TILE + i * N_EACH, &word, sizeof(word));
            }
        }
    }
}

// Logits of Q queries from the i-th on, on a tile. D: how the CPU multiplies.
template <typename D, int Q>
INLINE void multiply(const int8_queries & q, int64_t i_first, const char * tile, int64_t n_embd, float * out,
                     int64_t out_stride) {
    constexpr int W = D::W, N = N_TILE / W;
    using i32              = typename ints<W>::i32;
    using f32              = typename vec<W>::f32;
    const int64_t n_blocks = n_embd / BLOCK;
    const float * scales   = (const float *) (tile + n_embd * N_TILE);

    f32 sums[Q][N] = {};
    for (int64_t b = 0; b < n_blocks; ++b) {
        i32 acc[Q][N] = {};
        for (int i = 0; i < Q; ++i) {
            for (int j = 0; j < N; ++j) {
                acc[i][j] += q.offsets[(i_first + i) * n_blocks + b];
            }
        }
        for (int64_t d = b * BLOCK; d < (b + 1) * BLOCK; d += N_EACH) {
            i32 k[N];
            for (int j = 0; j < N; ++j) {
                k[j] = ints<W>::load(tile + d * N_TILE + j * W * N_EACH);
            }
            for (int i = 0; i < Q; ++i) {
                int32_t word;
                memcpy(&word, &q.values[(i_first + i) * n_embd + d], sizeof(word));
                const i32 all = i32{} + word;
                for (int j = 0; j < N; ++j) {
                    D::add_products(acc[i][j], k[j], all);
                }
            }
        }
        for (int i = 0; i < Q; ++i) {
            const float scale = q.scales[(i_first + i) * n_blocks + b];
            for (int j = 0; j < N; ++j) {
                sums[i][j] +=
                    __builtin_convertvector(acc[i][j], f32) * (vec<W>::load(scales + b * N_TILE + j * W) * scale);
            }
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int j = 0; j < N; ++j) {
            vec<W>::store(out + i * out_stride + j * W, sums[i][j]);
        }
    }
}

template <typename D, int Q> INLINE void run_int8(const task & t) {
    const int8_queries q         = read_queries(t, D::FLIP, 1);
    const int64_t      n_queries = t.n_votes * t.n_group, n_cells = t.n_tiles * N_TILE;
    for (int64_t i_tile = 0; i_tile < t.n_tiles; ++i_tile) {
        const char * tile = (const char *) (t.tiles + i_tile * morphkv_int8_tile_size(t.n_embd));
        float *      out  = t.logits + i_tile * N_TILE;
        int64_t      i    = 0;
        for (; i + Q <= n_queries; i += Q) {
            multiply<D, Q>(q, i, tile, t.n_embd, out + i * n_cells, n_cells);
        }
        for (; i < n_queries; ++i) {
            multiply<D, 1>(q, i, tile, t.n_embd, out + i * n_cells, n_cells);
        }
    }
    finish<D::W>(t);
}

#if defined(__x86_64__)

// Unsigned bytes with signed ones: keys are 128 more than they are.
template <int LANES> struct vnni {
    static constexpr int     W    = LANES;
    static constexpr int32_t FLIP = 128;

    static INLINE void add_products(typename ints<W>::i32 & acc, typename ints<W>::i32 k, typename ints<W>::i32 q) {
        if constexpr (W == 16) {
            asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(k), "v"(q));
        } else {
            asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(k), "x"(q));
        }
    }
};

__attribute__((target("avx512f,avx512dq,avx512bw,avx512vnni,prefer-vector-width=512"))) void
run_avx512_vnni(const task & t) {
    run_int8<vnni<16>, 12>(t);
}

__attribute__((target("avx2,fma"))) void run_avx_vnni(const task & t) {
    run_int8<vnni<8>, 3>(t);
}

#else

struct dotprod {
    static constexpr int     W    = 4;
    static constexpr int32_t FLIP = 0;

    static INLINE void add_products(ints<4>::i32 & acc, ints<4>::i32 k, ints<4>::i32 q) {
        asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(k), "w"(q));
    }
};

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, i32{ __VA_ARGS__ })
#endif

// Logits of two queries from i on, by products of 2 keys and 2 queries.
INLINE void multiply_i8mm(const int8_queries & q, int64_t i_first, const char * tile, int64_t n_embd, float * out,
                          int64_t out_stride) {
    constexpr int N        = N_TILE / 4;
    using i32              = ints<4>::i32;
    using f32              = vec<4>::f32;
    const int64_t n_blocks = n_embd / BLOCK;
    const float * scales   = (const float *) (tile + n_embd * N_TILE);

    f32 sums[2][N] = {};
    for (int64_t b = 0; b < n_blocks; ++b) {
        i32 low[N] = {}, high[N] = {};  // of keys 0 and 1, 2 and 3 of four
        for (int64_t d = b * BLOCK; d < (b + 1) * BLOCK; d += 2 * N_EACH) {
            const i32 both = ints<4>::load((const char *) &q.values[i_first * n_embd + d * 2]);
            for (int j = 0; j < N; ++j) {
                const i32 k     = ints<4>::load(tile + d * N_TILE + j * 16);
                const i32 l     = ints<4>::load(tile + (d + N_EACH) * N_TILE + j * 16);
                const i32 first = SHUFFLE(k, l, 0, 4, 1, 5), second = SHUFFLE(k, l, 2, 6, 3, 7);
                asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(low[j]) : "w"(first), "w"(both));
                asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(high[j]) : "w"(second), "w"(both));
            }
        }
        for (int j = 0; j < N; ++j) {
            const f32 scale     = vec<4>::load(scales + b * N_TILE + j * 4);
            const i32 of_first  = SHUFFLE(low[j], high[j], 0, 2, 4, 6);
            const i32 of_second = SHUFFLE(low[j], high[j], 1, 3, 5, 7);
            sums[0][j] += __builtin_convertvector(of_first, f32) * (scale * q.scales[i_first * n_blocks + b]);
            sums[1][j] += __builtin_convertvector(of_second, f32) * (scale * q.scales[(i_first + 1) * n_blocks + b]);
        }
    }
    for (int j = 0; j < N; ++j) {
        vec<4>::store(out + j * 4, sums[0][j]);
        if (out_stride > 0) {
            vec<4>::store(out + out_stride + j * 4, sums[1][j]);
        }
    }
}

#if defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#define I8MM    __attribute__((target("dotprod,i8mm")))
#else
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM    __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#endif

DOTPROD void run_dotprod(const task & t) {
    run_int8<dotprod, 4>(t);
}

I8MM void run_i8mm(const task & t) {
    const int8_queries q         = read_queries(t, 0, 2);
    const int64_t      n_queries = t.n_votes * t.n_group, n_cells = t.n_tiles * N_TILE;
    for (int64_t i_tile = 0; i_tile < t.n_tiles; ++i_tile) {
        const char * tile = (const char *) (t.tiles + i_tile * morphkv_int8_tile_size(t.n_embd));
        for (int64_t i = 0; i < n_queries; i += 2) {
            multiply_i8mm(q, i, tile, t.n_embd, t.logits + i_tile * N_TILE + i * n_cells,
                          i + 1 < n_queries ? n_cells : 0);
        }
    }
    finish<4>(t);
}

bool has_feature(const char * apple, unsigned long linux_1, unsigned long linux_2) {
#if defined(__linux__)
    (void) apple;
    return (getauxval(AT_HWCAP) & linux_1) == linux_1 && (getauxval(AT_HWCAP2) & linux_2) == linux_2;
#elif defined(__APPLE__)
    (void) linux_1, (void) linux_2;
    int    res  = 0;
    size_t size = sizeof(res);
    return sysctlbyname(apple, &res, &size, nullptr, 0) == 0 && res;
#else
    (void) apple, (void) linux_1, (void) linux_2;
    return false;
#endif
}

#endif

}  // namespace

std::vector<morphkv_int8_kernels> morphkv_int8_all_kernels() {
    std::vector<morphkv_int8_kernels> res;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vnni")) {
        res.push_back({ "avx512_vnni", run_avx512_vnni, lay_out_int8<128> });
    }
#if __GNUC__ >= 12
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avxvnni")) {
        res.push_back({ "avx_vnni", run_avx_vnni, lay_out_int8<128> });
    }
#endif
#else
    // bits of the kernel's hwcap.h
    constexpr unsigned long ASIMDDP = 1ul << 20, I8MM_2 = 1ul << 13;
    if (has_feature("hw.optional.arm.FEAT_I8MM", ASIMDDP, I8MM_2)) {
        res.push_back({ "i8mm", run_i8mm, lay_out_int8<0> });
    }
    if (has_feature("hw.optional.arm.FEAT_DotProd", ASIMDDP, 0)) {
        res.push_back({ "dotprod", run_dotprod, lay_out_int8<0> });
    }
#endif
    return res;
}

#else

std::vector<morphkv_int8_kernels> morphkv_int8_all_kernels() {
    return {};
}

#endif
