// The eviction graph of one layer against plain C++: rows that move are byte-identical for every K/V type, they go where
// the positions say, the window follows, and what is kept is what the votes rank highest.

#include "check.h"
#include "morphkv-graph.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

struct test_case {
    ggml_type            type_k;
    ggml_type            type_v;
    int32_t              n_embd_head;
    int32_t              n_head_kv;
    int32_t              n_group;
    morphkv_evict_shape  shape;
    morphkv_evict_policy policy;
    float                softcap;
    bool                 has_sinks = false;
    bool                 has_v     = true;
};

using floats = std::vector<float>;

static floats random_floats(std::mt19937 & rng, size_t n, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    floats                          res(n);
    for (float & x : res) {
        x = normal(rng);
    }
    return res;
}

// All that is in a tensor of the cache, as bytes and as the floats that they stand for.
struct rows {
    std::vector<char> bytes;
    floats            values;
    size_t            row_bytes;

    explicit rows(const ggml_tensor * t) : bytes(ggml_nbytes(t)), values(ggml_nelements(t)), row_bytes(t->nb[1]) {
        ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
        const auto * traits = ggml_get_type_traits(t->type);
        if (t->type == GGML_TYPE_F32) {
            memcpy(values.data(), bytes.data(), bytes.size());
        } else {
            traits->to_float(bytes.data(), values.data(), values.size());
        }
    }

    // bytes of a head's part of a row
    std::string head(int32_t cell, int32_t i_head, int32_t n_head) const {
        const size_t n = row_bytes / n_head;
        return std::string(bytes.data() + cell * row_bytes + i_head * n, n);
    }
};

static void fill(ggml_tensor * t, const floats & data) {
    std::vector<char> bytes(ggml_nbytes(t));
    ggml_quantize_chunk(t->type, data.data(), bytes.data(), 0, t->ne[1], t->ne[0], nullptr);
    if (t->type == GGML_TYPE_F32) {
        memcpy(bytes.data(), data.data(), bytes.size());
    }
    ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
}

// (n_head_kv, n_old) in double
static std::vector<double> plain_scores(const test_case & c, const rows & k, const floats & ring,
                                        const std::vector<int32_t> & vote_rows, float scale, const floats & last,
                                        const floats & sinks) {
    const int32_t       n_old  = c.shape.n_old();
    const int32_t       n_head = c.n_head_kv * c.n_group;
    std::vector<double> res(c.n_head_kv * n_old, 0.0);
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        for (const int32_t row : vote_rows) {
            std::vector<double> vote(n_old, 0.0);
            for (int32_t g = 0; g < c.n_group; ++g) {
                std::vector<double> a(n_old);
                double              sum = sinks.empty() ? 0.0 : std::exp((double) sinks[h * c.n_group + g]);
                for (int32_t i = 0; i < n_old; ++i) {
                    double dot = 0.0;
                    for (int32_t e = 0; e < c.n_embd_head; ++e) {
                        dot += (double) ring[(row * n_head + h * c.n_group + g) * c.n_embd_head + e] *
                               k.values[(i * c.n_head_kv + h) * c.n_embd_head + e];
                    }
                    dot *= scale;
                    a[i] = std::exp(c.softcap != 0.0f ? c.softcap * std::tanh(dot / c.softcap) : dot);
                    sum += a[i];
                }
                for (int32_t i = 0; i < n_old; ++i) {
                    vote[i] = std::max(vote[i], a[i] / sum);
                }
            }
            for (int32_t i = 0; i < n_old; ++i) {
                double & s = res[h * n_old + i];
                s          = c.policy.fusion == MORPHKV_FUSION_MAX ? std::max(s, vote[i]) : s + vote[i];
            }
        }
        for (int32_t i = 0; i < c.shape.n_distant && !last.empty(); ++i) {
            res[h * n_old + i] += c.policy.decay * last[h * c.shape.n_distant + i];
        }
    }
    return res;
}

static void run(const test_case & c, uint32_t seed) {
    std::mt19937 rng(seed);

    const auto &  s       = c.shape;
    const int32_t n_cells = s.n_distant + s.n_grad + s.n_window + 5;
    const int32_t n_head  = c.n_head_kv * c.n_group;
    const int32_t n_ring  = s.n_votes + 3;
    const int32_t n_embd  = c.n_embd_head * c.n_head_kv;

    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), 1);  // more of them spin where the cores are busy

    ggml_context_ptr    ctx_data(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, true }));
    morphkv_evict_layer layer{};
    layer.k    = ggml_new_tensor_2d(ctx_data.get(), c.type_k, n_embd, n_cells);
    layer.v    = c.has_v ? ggml_new_tensor_2d(ctx_data.get(), c.type_v, n_embd, n_cells) : nullptr;
    layer.ring = ggml_new_tensor_2d(ctx_data.get(), GGML_TYPE_F16, n_head * c.n_embd_head, n_ring);
    layer.pos  = ggml_new_tensor_2d(ctx_data.get(), GGML_TYPE_F32, s.n_distant, c.n_head_kv);
    layer.score =
        c.policy.decay > 0 ? ggml_new_tensor_2d(ctx_data.get(), GGML_TYPE_F32, s.n_distant, c.n_head_kv) : nullptr;
    layer.sinks     = c.has_sinks ? ggml_new_tensor_1d(ctx_data.get(), GGML_TYPE_F32, n_head) : nullptr;
    layer.n_head    = n_head;
    layer.n_head_kv = c.n_head_kv;
    layer.kq_scale  = 1.0f / std::sqrt((float) c.n_embd_head);
    layer.softcap   = c.softcap;
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx_data.get(), backend.get()));

    fill(layer.ring, random_floats(rng, ggml_nelements(layer.ring), 1.5f));
    const floats ring = rows(layer.ring).values;
    fill(layer.k, random_floats(rng, ggml_nelements(layer.k), 1.5f));
    if (layer.v) {
        fill(layer.v, random_floats(rng, ggml_nelements(layer.v), 1.0f));
    }

    floats sinks;
    if (layer.sinks) {
        sinks = random_floats(rng, n_head, 3.0f);
        fill(layer.sinks, sinks);
    }

    // a token's position is its cell, plus 1000 for graduates
    std::vector<int32_t> pos, grad_pos;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        for (int32_t i = 0; i < s.n_distant; ++i) {
            pos.push_back(i);
        }
        for (int32_t i = 0; i < s.n_grad; ++i) {
            grad_pos.push_back(1000 + s.n_distant + i);
        }
    }
    ggml_backend_tensor_set(layer.pos, pos.data(), 0, ggml_nbytes(layer.pos));
    floats last;
    if (layer.score) {
        last = random_floats(rng, ggml_nelements(layer.score), 0.05f);
        for (float & x : last) {
            x = std::fabs(x);
        }
        ggml_backend_tensor_set(layer.score, last.data(), 0, ggml_nbytes(layer.score));
    }

    std::vector<int32_t> vote_rows, window_src, window_dst;
    for (int32_t i = 0; i < s.n_votes; ++i) {
        vote_rows.push_back((i + 2) % n_ring);
    }
    for (int32_t i = 0; i < s.n_window; ++i) {
        window_src.push_back(s.n_distant + s.n_grad + i);
        window_dst.push_back(s.n_distant + i);
    }

    // without V, the cells of K are looked at twice
    const rows k_old(layer.k), v_old(layer.v ? layer.v : layer.k);

    ggml_context_ptr ctx(
        ggml_init({ 1024 * ggml_tensor_overhead() + ggml_graph_overhead_custom(1024, false), nullptr, true }));
    ggml_cgraph *        gf = ggml_new_graph_custom(ctx.get(), 1024, false);
    morphkv_evict_inputs inp{};
    inp.vote_rows  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, s.n_votes);
    inp.grad_pos   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.n_grad, c.n_head_kv);
    inp.window_src = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, s.n_window);
    inp.window_dst = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, s.n_window);
    for (auto * t : { inp.vote_rows, inp.grad_pos, inp.window_src, inp.window_dst }) {
        ggml_set_input(t);
    }
    const size_t n_before = ggml_used_mem(ctx.get());
    morphkv_build_evict(ctx.get(), gf, layer, s, c.policy, inp);
    CHECK((ggml_used_mem(ctx.get()) - n_before) / ggml_tensor_overhead() <=
          morphkv_evict_max_tensors(c.n_group, s.n_votes));

    ggml_gallocr_ptr galloc(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
    CHECK(ggml_gallocr_alloc_graph(galloc.get(), gf));
    auto set = [](ggml_tensor * t, const std::vector<int32_t> & data) {
        if (t->buffer) {
            ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
        }
    };
    set(inp.vote_rows, vote_rows);
    set(inp.grad_pos, grad_pos);
    set(inp.window_src, window_src);
    set(inp.window_dst, window_dst);
    CHECK(ggml_backend_graph_compute(backend.get(), gf) == GGML_STATUS_SUCCESS);

    const rows           k_new(layer.k), v_new(layer.v ? layer.v : layer.k);
    std::vector<int32_t> pos_new(pos.size());
    ggml_backend_tensor_get(layer.pos, pos_new.data(), 0, ggml_nbytes(layer.pos));

    const auto scores = plain_scores(c, k_old, ring, vote_rows, layer.kq_scale, last, sinks);
    floats     score_new(layer.score ? ggml_nelements(layer.score) : 0);
    if (layer.score) {
        ggml_backend_tensor_get(layer.score, score_new.data(), 0, ggml_nbytes(layer.score));
    }

    // Votes are computed with quantized queries where K is quantized.
    const double tolerance = ggml_is_quantized(c.type_k) ? 0.10 : 0.02;

    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        const double *    score = scores.data() + h * s.n_old();
        std::vector<bool> is_kept(s.n_old(), false);
        for (int32_t i = 0; i < s.n_distant; ++i) {
            const int32_t p    = pos_new[h * s.n_distant + i];
            const int32_t cell = p >= 1000 ? p - 1000 : p;
            CHECK(cell == i || p >= 1000);  // what stays does not move
            CHECK(cell == i || i >= s.n_keep);
            CHECK(!is_kept[cell]);
            is_kept[cell] = true;
            CHECK(k_new.head(i, h, c.n_head_kv) == k_old.head(cell, h, c.n_head_kv));
            CHECK(v_new.head(i, h, c.n_head_kv) == v_old.head(cell, h, c.n_head_kv));
            if (layer.score) {
                CHECK(std::fabs(score_new[h * s.n_distant + i] - score[cell]) <= tolerance * score[cell] + 1e-6);
            }
        }
        double worst_kept = INFINITY, best_evicted = 0.0;
        for (int32_t i = s.n_keep; i < s.n_old(); ++i) {
            (is_kept[i] ? worst_kept : best_evicted) =
                is_kept[i] ? std::min(worst_kept, score[i]) : std::max(best_evicted, score[i]);
        }
        CHECK(worst_kept >= best_evicted * (1.0 - 2 * tolerance));

        for (int32_t i = 0; i < s.n_window; ++i) {
            CHECK(k_new.head(window_dst[i], h, c.n_head_kv) == k_old.head(window_src[i], h, c.n_head_kv));
            CHECK(v_new.head(window_dst[i], h, c.n_head_kv) == v_old.head(window_src[i], h, c.n_head_kv));
        }
    }
}

int main() {
    const ggml_type types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,
                                GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 };

    const morphkv_evict_policy paper = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_SUM, 0.0f };
    const morphkv_evict_policy other = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_MAX, 0.5f };

    // keep, distant, graduates, window, votes
    const morphkv_evict_shape few_graduates = {
        2, 40, 7, 5, 5,
    };
    const morphkv_evict_shape many_graduates = { 0, 24, 61, 9, 3 };
    const morphkv_evict_shape one_of_each    = { 4, 5, 1, 1, 1 };

    uint32_t seed = 1;
    for (const ggml_type type : types) {
        // 96: rows of a head that are no whole number of 4-byte words for q8_0, q5_0 and q4_0
        for (const int32_t n_embd_head : { 32, 64, 96 }) {
            for (const auto & shape : { few_graduates, many_graduates, one_of_each }) {
                run({ type, type, n_embd_head, 2, 3, shape, paper, 0.0f }, seed++);
                run({ type, type, n_embd_head, 3, 1, shape, other, 0.0f }, seed++);
            }
        }
        run({ type, GGML_TYPE_F16, 64, 2, 4, few_graduates, paper, 20.0f }, seed++);
        run({ GGML_TYPE_F16, type, 64, 1, 8, many_graduates, other, 0.0f }, seed++);
        run({ type, type, 576, 1, 5, few_graduates, paper, 0.0f, false, false }, seed++);  // MLA
        run({ type, GGML_TYPE_F16, 64, 2, 4, few_graduates, paper, 0.0f, true }, seed++);
        run({ type, GGML_TYPE_F16, 64, 2, 4, many_graduates, other, 0.0f, true }, seed++);
    }
    return 0;
}
