// The inner loops of votes on the CPU against plain C++, of every kind that this CPU has. Needs of ggml its types alone, so it is
// compiled for other processors too (tests/native/test_votes_arm.py). Arguments: names of kernels that have to be among them.

#include "core/types.h"
#include "device/votes-int8.h"
#include "device/votes-kernels.h"
#include "support/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>

using floats = std::vector<float>;

constexpr int64_t N_TILE = MORPHKV_VOTES_PAGE;

struct test_case {
    ggml_type type;
    int64_t   n_embd, n_group, n_votes, n_old;
    float     softcap;
    bool      use_max, has_sinks;
};

// Rows of n values: as the type has them, and what they stand for.
struct rows {
    rows(std::mt19937 & rng, ggml_type type, int64_t n_rows, int64_t n, float scale)
        : row_bytes(ggml_row_size(type, n)),
          bytes(n_rows * row_bytes),
          values(n_rows * n) {
        std::normal_distribution<float> normal(0.0f, scale);
        for (float & x : values) {
            x = normal(rng);
        }
        if (type == GGML_TYPE_F32) {
            memcpy(bytes.data(), values.data(), bytes.size());
        } else {
            ggml_quantize_chunk(type, values.data(), bytes.data(), 0, n_rows, n, nullptr);
            ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), values.size());
        }
    }

    size_t            row_bytes;
    std::vector<char> bytes;
    floats            values;
};

static std::vector<double> plain_votes(const test_case & c, const rows & k, const rows & q, const floats & sinks,
                                       float scale) {
    std::vector<double> res(c.n_old, 0.0);
    for (int64_t i = 0; i < c.n_votes; ++i) {
        std::vector<double> vote(c.n_old, 0.0);
        for (int64_t g = 0; g < c.n_group; ++g) {
            std::vector<double> a(c.n_old);
            double              sum = c.has_sinks ? std::exp((double) sinks[g]) : 0.0;
            for (int64_t j = 0; j < c.n_old; ++j) {
                double dot = 0.0;
                for (int64_t d = 0; d < c.n_embd; ++d) {
                    dot += (double) q.values[(i * c.n_group + g) * c.n_embd + d] * k.values[j * c.n_embd + d];
                }
                dot *= scale;
                a[j] = std::exp(c.softcap != 0.0f ? c.softcap * std::tanh(dot / c.softcap) : dot);
                sum += a[j];
            }
            for (int64_t j = 0; j < c.n_old; ++j) {
                vote[j] = std::max(vote[j], a[j] / sum);
            }
        }
        for (int64_t j = 0; j < c.n_old; ++j) {
            res[j] = c.use_max ? std::max(res[j], vote[j]) : res[j] + vote[j];
        }
    }
    return res;
}

template <typename F>
static void check(const char * name, const test_case & c, const rows & k, const float * queries, const floats & sinks,
                  const std::vector<double> & expected, int64_t tile_size, F && lay_out,
                  void (*run)(const morphkv_votes_task &)) {
    const int64_t n_tiles = (c.n_old + N_TILE - 1) / N_TILE, n_queries = c.n_votes * c.n_group;
    floats        tiles(n_tiles * tile_size), logits(n_queries * n_tiles * N_TILE), inv_sum(n_queries), out(c.n_old);
    for (int64_t i = 0; i < n_tiles; ++i) {
        const char * keys[N_TILE];
        for (int64_t j = 0; j < N_TILE; ++j) {
            keys[j] = k.bytes.data() + std::min(i * N_TILE + j, c.n_old - 1) * k.row_bytes;
        }
        lay_out(keys, tiles.data() + i * tile_size);
    }
    morphkv_votes_params params{};
    params.n_old   = c.n_old;
    params.scale   = 1.0f / std::sqrt((float) c.n_embd);
    params.softcap = c.softcap;
    params.use_max = c.use_max;
    run({ tiles.data(), queries, c.has_sinks ? sinks.data() : nullptr, logits.data(), inv_sum.data(), out.data(),
          n_tiles, c.n_embd, c.n_votes, c.n_group, params });
    for (int64_t i = 0; i < c.n_old; ++i) {
        // F32 against double; exp() is right to 4 ulp
        if (!(std::fabs(out[i] - expected[i]) <= 1e-4 * expected[i] + 1e-9)) {
            fprintf(stderr, "%s, %s, %d dims, group %d, %d votes, cell %d of %d: %g, expected %g\n", name,
                    ggml_type_name(c.type), (int) c.n_embd, (int) c.n_group, (int) c.n_votes, (int) i, (int) c.n_old,
                    out[i], expected[i]);
            CHECK(false);
        }
    }
}

static std::set<std::string> seen;

static void run(const test_case & c, uint32_t seed) {
    std::mt19937 rng(seed);
    const auto   query_type = ggml_is_quantized(c.type) ? GGML_TYPE_Q8_0 : GGML_TYPE_F32;
    const rows   k(rng, c.type, c.n_old, c.n_embd, 1.5f);
    const rows   q(rng, query_type, c.n_votes * c.n_group, c.n_embd, 1.5f);
    const floats sinks    = rows(rng, GGML_TYPE_F32, 1, c.n_group, 2.0f).values;
    const auto   expected = plain_votes(c, k, q, sinks, 1.0f / std::sqrt((float) c.n_embd));
    for (const auto & kernels : morphkv_votes_all_kernels()) {
        floats     scratch(N_TILE * c.n_embd);
        const auto lay_out = [&](const char * const * keys, float * tile) {
            kernels.lay_out(c.type, keys, c.n_embd, scratch.data(), tile);
        };
        check(kernels.name, c, k, q.values.data(), sinks, expected, N_TILE * c.n_embd, lay_out, kernels.run);
        seen.insert(kernels.name);
    }
    if (!ggml_is_quantized(c.type)) {
        return;
    }
    for (const auto & kernels : morphkv_int8_all_kernels()) {
        const auto lay_out = [&](const char * const * keys, float * tile) {
            kernels.lay_out(c.type, keys, c.n_embd, tile);
        };
        check(kernels.name, c, k, (const float *) q.bytes.data(), sinks, expected, morphkv_int8_tile_size(c.n_embd),
              lay_out, kernels.run);
        seen.insert(kernels.name);
    }
}

int main(int argc, char ** argv) {
    uint32_t seed = 1;
    for (const ggml_type type : MORPHKV_ROW_TYPES) {
        for (const int64_t n_embd : { 32, 64, 96, 128, 576 }) {
            run({ type, n_embd, 1, 1, 1, 0.0f, false, false }, seed++);
            run({ type, n_embd, 3, 5, 71, 0.0f, false, false }, seed++);
            run({ type, n_embd, 1, 13, 32, 20.0f, true, false }, seed++);
            run({ type, n_embd, 5, 2, 100, 0.0f, true, true }, seed++);
        }
    }
    for (const std::string & name : seen) {
        printf("%s\n", name.c_str());
    }
    CHECK(seen.count("baseline"));
    for (int i = 1; i < argc; ++i) {
        CHECK(seen.count(argv[i]));
    }
    return 0;
}
