// The eviction graph of one layer against plain C++: rows that move are byte-identical for every K/V type, they go where
// the positions say, the window follows, and what is kept is what the votes rank highest.

#include "device/graph-evict.h"
#include "device/stack.h"
#include "support/check.h"

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

// Votes, sums of them and the scores that follow: (n_head_kv, n_old) in double
struct plain {
    std::vector<double> votes, sums, scores;
};

// As tests/support/ranking.py has it.
static void plain_committees(const test_case & c, plain & res) {
    const int32_t n_old = c.shape.n_old(), keep = c.shape.n_keep;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        std::vector<double> best(n_old, 0.0);
        for (const auto * measure : { &res.votes, &res.sums }) {
            const auto          first = measure->begin() + h * n_old;
            std::vector<double> sorted(first + keep, first + n_old);
            std::sort(sorted.rbegin(), sorted.rend());
            const double last = sorted[(c.shape.n_distant - keep - 1) / 2] + 1e-20;
            for (int32_t i = keep; i < n_old; ++i) {
                best[i] = std::max(best[i], first[i] / last);
            }
        }
        std::copy(best.begin(), best.end(), res.scores.begin() + h * n_old);
    }
}

static plain plain_scores(const test_case & c, const rows & k, const floats & ring,
                          const std::vector<int32_t> & vote_rows, float scale, const floats & last,
                          const floats & sinks) {
    const int32_t       n_old  = c.shape.n_old();
    const int32_t       n_head = c.n_head_kv * c.n_group;
    plain               all;
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
    }
    all.votes = res;
    for (int32_t i = 0; i < (int32_t) last.size(); ++i) {
        res[i / c.shape.n_distant * n_old + i % c.shape.n_distant] += c.policy.carried * last[i];
    }
    all.sums = all.scores = res;
    if (c.policy.policy == MORPHKV_POLICY_COMMITTEES) {
        plain_committees(c, all);
    }
    return all;
}

// What one layer holds before the eviction.
struct layer_content {
    morphkv_side_layer tensors{};
    floats             ring, last, sinks;

    std::vector<int32_t> pos;
};

static layer_content add_layer(ggml_context * ctx, const test_case & c) {
    const auto &  s       = c.shape;
    const int32_t n_cells = s.n_distant + s.n_grad + s.n_window + 5;
    const int32_t n_head  = c.n_head_kv * c.n_group;
    const int32_t n_embd  = c.n_embd_head * c.n_head_kv;

    layer_content res;
    auto &        t = res.tensors;
    t.n_head        = n_head;
    t.readers       = { 0 };
    t.n_head_kv     = c.n_head_kv;
    t.kq_scale      = 1.0f / std::sqrt((float) c.n_embd_head);
    t.softcap       = c.softcap;
    t.k             = ggml_new_tensor_3d(ctx, c.type_k, n_embd, n_cells, 1);
    t.v             = c.has_v ? ggml_new_tensor_3d(ctx, c.type_v, n_embd, n_cells, 1) : nullptr;
    t.ring          = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, n_head * c.n_embd_head, s.n_votes + 3, 1);
    t.serial        = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, s.n_distant, c.n_head_kv, 1);
    t.score = c.policy.carried > 0 ? ggml_new_tensor_3d(ctx, GGML_TYPE_F32, s.n_distant, c.n_head_kv, 1) : nullptr;
    t.sinks = c.has_sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head) : nullptr;
    return res;
}

// A token's position is its cell, plus 1000 for graduates.
static void fill_layer(layer_content & layer, const test_case & c, std::mt19937 & rng) {
    const auto & t = layer.tensors;
    fill(t.ring, random_floats(rng, ggml_nelements(t.ring), 1.5f));
    layer.ring = rows(t.ring).values;
    fill(t.k, random_floats(rng, ggml_nelements(t.k), 1.5f));
    if (t.v) {
        fill(t.v, random_floats(rng, ggml_nelements(t.v), 1.0f));
    }
    if (t.sinks) {
        layer.sinks = random_floats(rng, ggml_nelements(t.sinks), 3.0f);
        fill(t.sinks, layer.sinks);
    }
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        for (int32_t i = 0; i < c.shape.n_distant; ++i) {
            layer.pos.push_back(i);
        }
    }
    ggml_backend_tensor_set(t.serial, layer.pos.data(), 0, ggml_nbytes(t.serial));
    if (t.score) {
        layer.last = random_floats(rng, ggml_nelements(t.score), 0.05f);
        for (float & x : layer.last) {
            x = std::fabs(x);
        }
        ggml_backend_tensor_set(t.score, layer.last.data(), 0, ggml_nbytes(t.score));
    }
}

static void check_layer(const layer_content & layer, const test_case & c, const rows & k_old, const rows & v_old,
                        const std::vector<int32_t> & vote_rows, float scale, double tolerance) {
    const auto &         s = c.shape;
    const auto &         t = layer.tensors;
    const rows           k_new(t.k), v_new(t.v ? t.v : t.k);
    std::vector<int32_t> pos_new(layer.pos.size());
    ggml_backend_tensor_get(t.serial, pos_new.data(), 0, ggml_nbytes(t.serial));

    const plain all = plain_scores(c, k_old, layer.ring, vote_rows, scale, layer.last, layer.sinks);
    floats      score_new(t.score ? ggml_nelements(t.score) : 0);
    if (t.score) {
        ggml_backend_tensor_get(t.score, score_new.data(), 0, ggml_nbytes(t.score));
    }

    // of a committee's score the threshold is off, too
    const double tie = (c.policy.policy == MORPHKV_POLICY_COMMITTEES ? 4 : 2) * tolerance;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        const double *    score = all.scores.data() + h * s.n_old();
        const double *    sum   = all.sums.data() + h * s.n_old();
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
            if (t.score) {
                CHECK(std::fabs(score_new[h * s.n_distant + i] - sum[cell]) <= tolerance * sum[cell] + 1e-6);
            }
        }
        double worst_kept = INFINITY, best_evicted = 0.0;
        for (int32_t i = s.n_keep; i < s.n_old(); ++i) {
            (is_kept[i] ? worst_kept : best_evicted) =
                is_kept[i] ? std::min(worst_kept, score[i]) : std::max(best_evicted, score[i]);
        }
        CHECK(worst_kept >= best_evicted * (1.0 - tie));

        for (int32_t i = 0; i < s.n_window; ++i) {
            const int32_t src = s.n_distant + s.n_grad + i, dst = s.n_distant + i;
            CHECK(k_new.head(dst, h, c.n_head_kv) == k_old.head(src, h, c.n_head_kv));
            CHECK(v_new.head(dst, h, c.n_head_kv) == v_old.head(src, h, c.n_head_kv));
        }
    }
}

enum class votes { COMPOSED, ON_CPU, IN_PARTS };

static std::vector<int32_t> repeat(const std::vector<int32_t> & data, int32_t n) {
    std::vector<int32_t> res;
    for (int32_t i = 0; i < n; ++i) {
        res.insert(res.end(), data.begin(), data.end());
    }
    return res;
}

// Heads of a group and voters are joined by halves: not more than twice as many operations as it takes to halve them to one.
static void check_folds(ggml_cgraph * gf, const test_case & c) {
    int32_t n_subs = 0, n_halvings = 0;
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        n_subs += ggml_graph_node(gf, i)->op == GGML_OP_SUB;
    }
    for (const int32_t n_most : { c.n_group, c.policy.fusion == MORPHKV_FUSION_MAX ? c.shape.n_votes : 1 }) {
        for (int32_t n = n_most; n > 1; n /= 2) {
            n_halvings++;
        }
    }
    // what the other policies need is there with them alone
    auto n_of = [&](ggml_op op) {
        int32_t res = 0;
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            res += ggml_graph_node(gf, i)->op == op;
        }
        return res;
    };
    const bool is_both = c.policy.policy == MORPHKV_POLICY_COMMITTEES;
    CHECK(n_of(GGML_OP_ARGSORT) == (is_both ? 4 : 2) && n_of(GGML_OP_DIV) == (is_both ? 2 : 0));
    CHECK(n_of(GGML_OP_CONCAT) == 1 + (c.policy.carried > 0.0f) + (is_both && c.shape.n_keep > 0));

    const int32_t n_in_select = is_both ? 3 : 2;
    CHECK(n_subs <= n_in_select + 2 * n_halvings);
}

static void run(const test_case & c, uint32_t seed, votes how, int32_t n_layers, int32_t n_threads = 1) {
    std::mt19937 rng(seed);
    const auto & s = c.shape;

    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);  // more than one spin where the cores are busy

    ggml_context_ptr           ctx_data(ggml_init({ 64 * ggml_tensor_overhead(), nullptr, true }));
    std::vector<layer_content> layers;
    for (int32_t il = 0; il < n_layers; ++il) {
        layers.push_back(add_layer(ctx_data.get(), c));
    }
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx_data.get(), backend.get()));

    std::vector<morphkv_side_layer> all;
    std::vector<rows>               k_old, v_old;
    for (auto & layer : layers) {
        fill_layer(layer, c, rng);
        k_old.emplace_back(layer.tensors.k);
        v_old.emplace_back(layer.tensors.v ? layer.tensors.v : layer.tensors.k);  // without V, K is looked at twice
        all.push_back(layer.tensors);
    }
    const auto stacks = morphkv_make_stacks(all, [](const morphkv_side_layer &) { return (size_t) 8; });
    if (c.has_sinks) {
        CHECK((int32_t) stacks.size() == n_layers);
    } else if (!ggml_is_quantized(c.type_k) && !ggml_is_quantized(c.type_v)) {
        CHECK(stacks.size() == 1);  // else as the padding between tensors has it
    }

    std::vector<int32_t> grad_pos, vote_rows, window_src, window_dst;
    for (int32_t i = 0; i < s.n_grad; ++i) {
        grad_pos.push_back(1000 + s.n_distant + i);
    }
    for (int32_t i = 0; i < s.n_votes; ++i) {
        vote_rows.push_back((i + 2) % (s.n_votes + 3));
    }
    for (int32_t i = 0; i < s.n_window; ++i) {
        window_src.push_back(s.n_distant + s.n_grad + i);
        window_dst.push_back(s.n_distant + i);
    }

    for (const morphkv_stack & stack : stacks) {
        const int32_t    n = stack.size();
        ggml_context_ptr ctx(
            ggml_init({ 1024 * ggml_tensor_overhead() + ggml_graph_overhead_custom(1024, false), nullptr, true }));
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), 1024, false);

        auto input = [&](ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) {
            ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), type, ne0, ne1, ne2);
            ggml_set_input(t);
            return t;
        };
        morphkv_evict_inputs inp{};
        inp.vote_rows   = input(GGML_TYPE_I32, s.n_votes, n, 1);
        inp.grad_serial = input(GGML_TYPE_F32, s.n_grad, c.n_head_kv, n);
        inp.window_src  = input(GGML_TYPE_I32, s.n_window, 1, n);
        inp.window_dst  = input(GGML_TYPE_I32, s.n_window, 1, n);

        const size_t n_before = ggml_used_mem(ctx.get());
        const auto   layer = morphkv_stack_layer(ctx.get(), stack, 0, how == votes::ON_CPU ? backend.get() : nullptr);
        // devices count strides in blocks
        CHECK(n == 1 || layer.k->nb[2] % ggml_type_size(c.type_k) == 0);
        // the first layer, then the others
        std::vector<morphkv_evict_layer> parts;
        if (how == votes::IN_PARTS && n > 1) {
            for (const morphkv_stack & part :
                 { morphkv_stack(stack.begin(), stack.begin() + 1), morphkv_stack(stack.begin() + 1, stack.end()) }) {
                parts.push_back(morphkv_stack_layer(ctx.get(), part, 0, nullptr));
            }
        }
        morphkv_build_evict(ctx.get(), gf, layer, s, c.policy, inp, parts);
        if (parts.empty()) {
            CHECK((ggml_used_mem(ctx.get()) - n_before) / ggml_tensor_overhead() <=
                  morphkv_evict_max_tensors(c.n_group, s.n_votes));
            if (how == votes::ON_CPU) {
                CHECK(ggml_graph_n_nodes(gf) < 16);  // views of the cache included
            } else {
                check_folds(gf, c);
            }
        }

        ggml_gallocr_ptr galloc(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
        CHECK(ggml_gallocr_alloc_graph(galloc.get(), gf));
        auto set = [](ggml_tensor * t, const std::vector<int32_t> & data) {
            if (t->buffer) {
                ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
            }
        };
        set(inp.vote_rows, repeat(vote_rows, n));
        set(inp.grad_serial, repeat(grad_pos, c.n_head_kv * n));
        set(inp.window_src, repeat(window_src, n));
        set(inp.window_dst, repeat(window_dst, n));
        CHECK(ggml_backend_graph_compute(backend.get(), gf) == GGML_STATUS_SUCCESS);
    }

    // Votes are computed with quantized queries where K is quantized.
    const double tolerance = ggml_is_quantized(c.type_k) ? 0.10 : 0.02;
    for (int32_t il = 0; il < n_layers; ++il) {
        check_layer(layers[il], c, k_old[il], v_old[il], vote_rows, all[il].kq_scale, tolerance);
    }
}

static void run(const test_case & c, uint32_t seed) {
    run(c, seed, votes::COMPOSED, 1);
    run(c, seed, votes::COMPOSED, 3);
    run(c, seed, votes::ON_CPU, 1);
    if (c.policy.carried == 0.0f) {
        run(c, seed, votes::IN_PARTS, 3);
    }
}

int main() {
    const ggml_type types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,
                                GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 };

    const morphkv_evict_policy paper = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_SUM, 0.0f };
    const morphkv_evict_policy other = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_MAX, 0.5f };

    const morphkv_evict_policy by_sums  = { MORPHKV_POLICY_H2O, MORPHKV_FUSION_SUM, 1.0f };
    const morphkv_evict_policy by_both  = { MORPHKV_POLICY_COMMITTEES, MORPHKV_FUSION_SUM, 1.0f };
    const morphkv_evict_policy by_other = { MORPHKV_POLICY_COMMITTEES, MORPHKV_FUSION_MAX, 0.5f };

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
                run({ type, type, n_embd_head, 2, 1, shape, by_both, 0.0f }, seed++);
            }
        }
        run({ type, GGML_TYPE_F16, 64, 2, 4, few_graduates, paper, 20.0f }, seed++);
        run({ GGML_TYPE_F16, type, 64, 1, 8, many_graduates, other, 0.0f }, seed++);
        run({ GGML_TYPE_F16, type, 64, 2, 3, many_graduates, by_sums, 0.0f }, seed++);
        run({ GGML_TYPE_F16, type, 64, 2, 3, few_graduates, by_other, 0.0f }, seed++);
        run({ type, type, 576, 1, 5, few_graduates, paper, 0.0f, false, false }, seed++);  // MLA
        run({ type, type, 64, 1, 128, few_graduates, paper, 0.0f, false, false }, seed++);
        run({ type, GGML_TYPE_F16, 64, 2, 4, few_graduates, paper, 0.0f, true }, seed++);
        run({ type, GGML_TYPE_F16, 64, 2, 4, many_graduates, other, 0.0f, true }, seed++);
    }
    // a part of the votes for each thread and more: 3 heads x 5 parts
    run({ GGML_TYPE_F16, GGML_TYPE_F16, 64, 3, 3, { 4, 480, 129, 33, 33 }, paper, 0.0f }, seed++, votes::ON_CPU, 1, 2);
    return 0;
}
