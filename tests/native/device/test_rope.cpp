// Turning cached rows on: as if they had been rotated to the new position at once, for every rope that models use.

#include "support/check.h"

#include "device/graph-turn.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

using floats = std::vector<float>;

struct rope_case {
    std::string name;
    int32_t     mode        = GGML_ROPE_TYPE_NORMAL;
    int32_t     n_dims      = 64;  // of 64
    float       freq_scale  = 1.0f;
    float       ext_factor  = 0.0f;
    float       attn_factor = 1.0f;
    bool        has_factors = false;
    int32_t     n_rot       = 0;             // rows are multiplied with a Hadamard matrix of this size
    ggml_type   type        = GGML_TYPE_F32;
    double      tolerance   = 3e-4;          // of a key's length: angles of thousands of radians are in F32
    bool        multiplies  = true;          // else there is a matrix, and the model does not use it

    std::vector<int32_t> sections  = {};     // of M-RoPE
    int32_t              n_before  = 0;      // values of a head that are not rotated, in front of n_dims that are (MLA)
    bool                 is_last   = false;  // no: behind them
    bool                 is_normed = false;  // with weights, behind the rotation

    int32_t n_pos() const { return sections.empty() ? 1 : 4; }
};

constexpr int32_t N_EMBD_HEAD = 64, N_HEADS = 3, N_ROWS = 40, N_CTX_ORIG = 512;

// One graph on the CPU; rows: (N_ROWS, N_HEADS*N_EMBD_HEAD).
class bench {
public:
    explicit bench(const rope_case & c) : c(c), backend(ggml_backend_cpu_init()) {
        ctx.reset(ggml_init({ 64 * ggml_tensor_overhead(), nullptr, true }));
        rows    = ggml_new_tensor_2d(ctx.get(), c.type, N_HEADS * N_EMBD_HEAD, N_ROWS);
        plain   = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, N_EMBD_HEAD, N_HEADS, N_ROWS);
        pos     = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, N_ROWS * c.n_pos());
        deltas  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, N_ROWS * N_HEADS * c.n_pos());
        factors = c.has_factors ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, c.n_dims / 2) : nullptr;
        weights = c.is_normed ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, N_EMBD_HEAD) : nullptr;
        rot     = c.n_rot ? ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, c.n_rot, c.n_rot) : nullptr;
        if (rot) {
            ggml_set_input(rot);
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));

        std::mt19937 rng(3);
        if (factors) {
            floats f(c.n_dims / 2);
            for (float & x : f) {
                x = 1.0f + (rng() % 1000) / 250.0f;
            }
            ggml_backend_tensor_set(factors, f.data(), 0, ggml_nbytes(factors));
        }
        if (weights) {
            floats f(N_EMBD_HEAD);
            for (float & x : f) {
                x = 0.5f + (rng() % 1000) / 500.0f;
            }
            ggml_backend_tensor_set(weights, f.data(), 0, ggml_nbytes(weights));
        }
        if (rot) {
            floats h(c.n_rot * c.n_rot);
            for (int i = 0; i < c.n_rot; ++i) {
                for (int j = 0; j < c.n_rot; ++j) {
                    h[i * c.n_rot + j] = (__builtin_popcount(i & j) % 2 ? -1.0f : 1.0f) / std::sqrt((float) c.n_rot);
                }
            }
            ggml_backend_tensor_set(rot, h.data(), 0, ggml_nbytes(rot));
        }
        floats                          x(ggml_nelements(plain));
        std::normal_distribution<float> normal;
        for (float & v : x) {
            v = normal(rng);
        }
        ggml_backend_tensor_set(plain, x.data(), 0, ggml_nbytes(plain));
    }

    // as a model does it: rope, the cache's rotation, stored. With M-RoPE as an image has it: rows and columns of their own.
    void store(const std::vector<int32_t> & times) {
        std::vector<int32_t> positions = times;
        for (int32_t j = 1; j < c.n_pos(); ++j) {
            for (int32_t i = 0; i < N_ROWS; ++i) {
                positions.push_back(j == 3 ? 0 : times[i] + (j == 1 ? i / 7 : i % 7));
            }
        }
        ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
        compute([&](ggml_context * g) {
            ggml_tensor * k = model_keys(g);
            CHECK(morphkv_find_rope(k).is == morphkv_rope::kind::ROTATED);
            found = morphkv_find_rope(k);
            return ggml_cpy(g, ggml_reshape_2d(g, k, rows->ne[0], N_ROWS), rows);
        });
    }

    void turn(const std::vector<int32_t> & rows_by) {
        const std::vector<int32_t> by = found.turns(rows_by);
        CHECK(by.size() * sizeof(int32_t) == ggml_nbytes(deltas));
        ggml_backend_tensor_set(deltas, by.data(), 0, ggml_nbytes(deltas));
        compute([&](ggml_context * g) { return morphkv_build_rotate(g, rows, N_HEADS, deltas, found, rot); });
    }

    // (N_ROWS*N_HEADS*N_EMBD_HEAD)
    floats read() const {
        floats            res(ggml_nelements(rows));
        std::vector<char> bytes(ggml_nbytes(rows));
        ggml_backend_tensor_get(rows, bytes.data(), 0, bytes.size());
        if (c.type == GGML_TYPE_F32) {
            memcpy(res.data(), bytes.data(), bytes.size());
        } else {
            ggml_get_type_traits(c.type)->to_float(bytes.data(), res.data(), res.size());
        }
        return res;
    }

    ggml_tensor * model_keys(ggml_context * g) const {
        ggml_tensor * k = c.n_before > 0 ? part(g, c.is_last ? c.n_before : 0, c.n_dims) : plain;
        if (c.sections.empty()) {
            k = ggml_rope_ext(g, k, pos, factors, c.n_dims, c.mode, N_CTX_ORIG, 10000.0f, c.freq_scale, c.ext_factor,
                              c.attn_factor, 32.0f, 1.0f);
        } else {
            std::vector<int32_t> sections = c.sections;
            k = ggml_rope_multi(g, k, pos, factors, c.n_dims, sections.data(), c.mode, N_CTX_ORIG, 10000.0f,
                                c.freq_scale, c.ext_factor, c.attn_factor, 32.0f, 1.0f);
        }
        if (c.n_before > 0) {
            ggml_tensor * other = part(g, c.is_last ? 0 : c.n_dims, c.n_before);
            k                   = c.is_last ? ggml_concat(g, other, k, 0) : ggml_concat(g, k, other, 0);
        }
        if (weights) {
            k = ggml_mul(g, ggml_rms_norm(g, k, 1e-5f), weights);
        }
        if (rot && c.multiplies) {
            k = ggml_reshape_2d(g, k, c.n_rot, ggml_nelements(k) / c.n_rot);
            k = ggml_reshape_3d(g, ggml_mul_mat(g, rot, k), N_EMBD_HEAD, N_HEADS, N_ROWS);
        }
        return k;
    }

private:
    // n values of each head from i_first on
    ggml_tensor * part(ggml_context * g, int32_t i_first, int32_t n) const {
        return ggml_cont(
            g, ggml_view_3d(g, plain, n, N_HEADS, N_ROWS, plain->nb[1], plain->nb[2], i_first * sizeof(float)));
    }

    template <typename F> void compute(F && build) const {
        ggml_context_ptr g(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
        ggml_cgraph *    gf = ggml_new_graph(g.get());
        ggml_build_forward_expand(gf, build(g.get()));
        ggml_gallocr_ptr galloc(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
        CHECK(ggml_gallocr_alloc_graph(galloc.get(), gf));
        CHECK(ggml_backend_graph_compute(backend.get(), gf) == GGML_STATUS_SUCCESS);
    }

    const rope_case  c;
    ggml_backend_ptr backend;
    ggml_context_ptr ctx;
    ggml_tensor *    rows;
    ggml_tensor *    plain;
    ggml_tensor *    pos;
    ggml_tensor *    deltas;
    ggml_tensor *    factors;
    ggml_tensor *    weights;
    ggml_tensor *    rot;
    morphkv_rope     found;

    ggml_backend_buffer_ptr buffer;
};

static double largest_error(const floats & a, const floats & b) {
    double res = 0;
    for (size_t i = 0; i < a.size(); i += N_EMBD_HEAD) {
        double d = 0, n = 0;
        for (size_t j = i; j < i + N_EMBD_HEAD; ++j) {
            d += (a[j] - b[j]) * (double) (a[j] - b[j]);
            n += b[j] * (double) b[j];
        }
        res = std::max(res, std::sqrt(d / n));
    }
    return res;
}

// In n_turns steps, to positions below 8192 and last to 0, 1, 2, ...
static void test_turned_rows_are_as_if_rotated_once(const rope_case & c, int n_turns) {
    std::mt19937         rng(5);
    std::vector<int32_t> now(N_ROWS), target(N_ROWS);
    for (int i = 0; i < N_ROWS; ++i) {
        now[i]    = rng() % 8192;
        target[i] = i;
    }
    bench once(c);
    once.store(target);
    bench turned(c);
    turned.store(now);
    for (int step = 1; step <= n_turns; ++step) {
        std::vector<int32_t> by;
        for (int i = 0; i < N_ROWS; ++i) {
            const int32_t next = step == n_turns ? target[i] : (int32_t) (rng() % 8192);
            by.insert(by.end(), N_HEADS, next - now[i]);
            now[i] = next;
        }
        turned.turn(by);
    }
    const double error = largest_error(turned.read(), once.read());
    printf("%-24s turned %2d times: error %.1e of a key's length\n", c.name.c_str(), n_turns, error);
    CHECK(error <= c.tolerance * std::sqrt((double) n_turns));
}

static void test_each_head_turns_by_itself() {
    const rope_case      c{ "heads" };
    bench                turned(c);
    std::vector<int32_t> start(N_ROWS, 100), by;
    for (int i = 0; i < N_ROWS; ++i) {
        for (int h = 0; h < N_HEADS; ++h) {
            by.push_back(h == 1 ? 0 : 7 * h - i);
        }
    }
    turned.store(start);
    const floats before = turned.read();
    turned.turn(by);
    const floats after = turned.read();
    for (int h = 0; h < N_HEADS; ++h) {
        bench                alone(c);
        std::vector<int32_t> pos;
        for (int i = 0; i < N_ROWS; ++i) {
            pos.push_back(100 + by[i * N_HEADS + h]);
        }
        alone.store(pos);
        const floats expected = alone.read();
        for (int i = 0; i < N_ROWS; ++i) {
            for (int e = 0; e < N_EMBD_HEAD; ++e) {
                const int j = (i * N_HEADS + h) * N_EMBD_HEAD + e;
                CHECK(std::fabs(after[j] - expected[j]) < 1e-4f);
                CHECK(h != 1 || after[j] == before[j]);  // turned by 0: the same bits
            }
        }
    }
}

// How keys were made decides whether they can be turned.
static void test_ropes_are_told_apart() {
    using kind = morphkv_rope::kind;
    ggml_context_ptr ctx(ggml_init({ 64 * ggml_tensor_overhead(), nullptr, true }));
    ggml_context *   g    = ctx.get();
    ggml_tensor *    x    = ggml_new_tensor_2d(g, GGML_TYPE_F32, 32, 5);
    ggml_tensor *    w    = ggml_new_tensor_2d(g, GGML_TYPE_F32, 32, 128);
    ggml_tensor *    norm = ggml_new_tensor_1d(g, GGML_TYPE_F32, 64);
    ggml_tensor *    pos  = ggml_new_tensor_1d(g, GGML_TYPE_I32, 5);
    ggml_tensor *    rot  = ggml_new_tensor_2d(g, GGML_TYPE_F32, 64, 64);
    ggml_set_input(rot);

    ggml_tensor * k       = ggml_reshape_3d(g, ggml_mul_mat(g, w, x), 64, 2, 5);
    ggml_tensor * rotated = ggml_rope(g, k, pos, 64, GGML_ROPE_TYPE_NEOX);
    CHECK(morphkv_find_rope(k).is == kind::NONE);
    CHECK(morphkv_find_rope(ggml_mul(g, ggml_rms_norm(g, k, 1e-5f), norm)).is == kind::NONE);
    CHECK(morphkv_find_rope(ggml_add(g, k, norm)).is == kind::NONE);
    CHECK(morphkv_find_rope(rotated).is == kind::ROTATED && morphkv_find_rope(rotated).mode == GGML_ROPE_TYPE_NEOX);
    CHECK(morphkv_find_rope(ggml_mul_mat(g, rot, ggml_reshape_2d(g, rotated, 64, 10))).is == kind::ROTATED);
    CHECK(morphkv_find_rope(ggml_rms_norm(g, rotated, 1e-5f)).is == kind::ROTATED);
    CHECK(morphkv_find_rope(ggml_scale(g, ggml_cont(g, rotated), 0.5f)).is == kind::ROTATED);
    // weights of a norm after the rotation: once, one for each value of a head
    ggml_tensor * normed = ggml_mul(g, ggml_rms_norm(g, rotated, 1e-5f), norm);
    CHECK(morphkv_find_rope(normed).is == kind::ROTATED && morphkv_find_rope(normed).weights == norm);
    CHECK(!morphkv_find_rope(ggml_rope(g, ggml_mul(g, k, norm), pos, 64, GGML_ROPE_TYPE_NEOX)).weights);
    CHECK(morphkv_find_rope(ggml_mul(g, normed, norm)).is == kind::UNKNOWN);
    CHECK(morphkv_find_rope(ggml_mul(g, rotated, ggml_reshape_3d(g, ggml_mul_mat(g, w, x), 64, 2, 5))).is ==
          kind::UNKNOWN);
    CHECK(morphkv_find_rope(ggml_concat(g, k, normed, 0)).is == kind::UNKNOWN);
    // a part without a rotation beside it
    CHECK(morphkv_find_rope(ggml_concat(g, rotated, rotated, 0)).is == kind::UNKNOWN);
    CHECK(morphkv_find_rope(ggml_concat(g, k, rotated, 1)).is == kind::UNKNOWN);
    CHECK(morphkv_find_rope(ggml_concat(g, k, k, 0)).is == kind::NONE);
    // a part without a rotation before it, or behind it
    for (const bool is_last : { true, false }) {
        const auto found = morphkv_find_rope(is_last ? ggml_concat(g, k, rotated, 0) : ggml_concat(g, rotated, k, 0));
        CHECK(found.is == kind::ROTATED && found.n_dims == 64 && found.n_offs == (is_last ? 64 : 0));
    }
    // whether they are multiplied, rotated or not
    ggml_tensor * multiplied = ggml_mul_mat(g, rot, ggml_reshape_2d(g, rotated, 64, 10));
    for (ggml_tensor * t : { k, rotated, ggml_concat(g, k, rotated, 0) }) {
        CHECK(!morphkv_find_rope(t).is_multiplied);
    }
    for (ggml_tensor * t : { multiplied, ggml_mul_mat(g, rot, ggml_reshape_2d(g, k, 64, 10)),
                             ggml_concat(g, ggml_reshape_2d(g, k, 64, 10), multiplied, 0),
                             ggml_mul_mat(g, rot, ggml_reshape_2d(g, ggml_concat(g, k, rotated, 0), 64, 20)) }) {
        CHECK(morphkv_find_rope(t).is_multiplied);
    }
    int           sections[4] = { 8, 8, 8, 8 };
    ggml_tensor * pos4        = ggml_new_tensor_1d(g, GGML_TYPE_I32, 20);
    CHECK(morphkv_find_rope(
              ggml_rope_multi(g, k, pos4, nullptr, 32, sections, GGML_ROPE_TYPE_VISION, 0, 1e4f, 1, 0, 1, 0, 0))
              .is == kind::UNKNOWN);
    const auto found = morphkv_find_rope(
        ggml_rope_multi(g, k, pos4, nullptr, 64, sections, GGML_ROPE_TYPE_MROPE, 0, 1e4f, 1, 0, 1, 0, 0));
    CHECK(found.is == kind::ROTATED && found.n_pos() == 4 && found.sections[3] == 8);
    CHECK((found.turns({ 5, -2 }) == std::vector<int32_t>{ 5, -2, 5, -2, 5, -2, 0, 0 }));
    CHECK((morphkv_find_rope(rotated).turns({ 5, -2 }) == std::vector<int32_t>{ 5, -2 }));
}

int main() {
    const auto normal = GGML_ROPE_TYPE_NORMAL, neox = GGML_ROPE_TYPE_NEOX;

    std::vector<rope_case> cases = {
        { "norm", normal },
        { "neox", neox },
        { "neox, half of the head", neox, 32 },
        { "linear scaling", normal, 64, 0.25f },
        { "yarn", neox, 64, 0.25f, 1.0f },
        { "yarn, attention factor", neox, 64, 0.25f, 1.0f, 0.7f },
        { "factors", normal, 64, 1.0f, 0.0f, 1.0f, true },
        { "factors, hadamard", neox, 64, 1.0f, 0.0f, 1.0f, true, 64 },
        { "hadamard, not used", neox, 64, 1.0f, 0.0f, 1.0f, false, 64, GGML_TYPE_F32, 3e-4, false },
    };
    // of Qwen 2.5 VL and Qwen 3 VL in small; of these the last pairs of values belong to no section, and do not turn
    for (const auto & [name, mode, sections] :
         { std::tuple("m-rope", GGML_ROPE_TYPE_MROPE, std::vector<int32_t>{ 8, 12, 12, 0 }),
           std::tuple("im-rope", GGML_ROPE_TYPE_IMROPE, std::vector<int32_t>{ 12, 10, 10, 0 }) }) {
        rope_case c{ name, mode };
        c.sections = sections;
        cases.push_back(c);
        c.name += ", hadamard";
        c.n_rot = 64;
        cases.push_back(c);
    }
    for (const int32_t n_rot : { 0, 64 }) {
        rope_case c{ n_rot ? "norm behind it, hadamard" : "norm behind it", neox };
        c.n_rot     = n_rot;
        c.is_normed = true;
        cases.push_back(c);
    }
    for (const bool is_last : { true, false }) {
        rope_case c{ is_last ? "last 24 of a head" : "first 24 of a head", normal, 24 };
        c.n_before = N_EMBD_HEAD - 24;
        c.is_last  = is_last;
        cases.push_back(c);
    }
    for (const auto & c : cases) {
        for (const int n : { 1, 20 }) {
            test_turned_rows_are_as_if_rotated_once(c, n);
        }
    }
    // Each turn rounds once more: the error grows with the root of their number, from one rounding's.
    const rope_case types[] = {
        { "f16", neox, 64, 1, 0, 1, false, 0, GGML_TYPE_F16, 7e-4 },
        { "bf16", neox, 64, 1, 0, 1, false, 0, GGML_TYPE_BF16, 6e-3 },
        { "q8_0", neox, 64, 1, 0, 1, false, 64, GGML_TYPE_Q8_0, 1.5e-2 },
        { "q5_0", neox, 64, 1, 0, 1, false, 64, GGML_TYPE_Q5_0, 1e-1 },
        { "q4_0", neox, 64, 1, 0, 1, false, 64, GGML_TYPE_Q4_0, 2e-1 },
    };
    for (const auto & c : types) {
        for (const int n : { 1, 20 }) {
            test_turned_rows_are_as_if_rotated_once(c, n);
        }
    }
    test_each_head_turns_by_itself();
    test_ropes_are_told_apart();
    return 0;
}
