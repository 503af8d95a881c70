// Sums of votes inside a context: what a recall, a restore, a copy and a state make of them, and what they cost.

#include "support/archived_context.h"

#include <cmath>

using step = morphkv_runner::step;

constexpr int32_t CAPACITY = 100, WINDOW = 8;

static context_ptr create_summed(llama_model * model, int32_t policy, uint32_t n_seq = 1) {
    auto params       = small_params();
    params.capacity   = CAPACITY;
    params.policy     = policy;
    params.protect    = 0;
    params.rope_limit = 400;
    auto cparams      = context_params(n_seq);
    cparams.n_batch   = 1024;
    auto res          = create(model, params, cparams);
    CHECK(start_archive(res, {}));
    return res;
}

// (n_head_kv, n_distant)
static floats sums_of(const context_ptr & ctx, size_t i_layer, llama_seq_id seq = 0) {
    const ggml_tensor * t = cache_of(ctx).get_side().layers[i_layer].score;
    CHECK(t);
    floats res(t->ne[0] * t->ne[1]);
    ggml_backend_tensor_get(t, res.data(), seq * t->nb[2], res.size() * sizeof(float));
    return res;
}

// Of the last tokens' queries on a head's slots: (n_distant) in double
static std::vector<double> votes_of(const context_ptr & ctx, size_t i_layer, int32_t head) {
    const auto &        side  = cache_of(ctx).get_side();
    const auto &        layer = side.layers[i_layer];
    const auto &        text  = cache_of(ctx).text_of(0);
    std::vector<double> res(side.n_distant, 0.0);
    for (const int32_t serial : text.voters()) {
        std::vector<double> best(side.n_distant, 0.0);
        const int32_t       n_group = layer.n_head / layer.n_head_kv;
        for (int32_t g = 0; g < n_group; ++g) {
            const floats        q = row_of(layer.ring, text.query_row(serial), head * n_group + g, layer.n_head);
            std::vector<double> a;
            double              all = 0.0;
            for (int32_t i = 0; i < side.n_distant; ++i) {
                const floats k   = row_of(layer.k, i, head, layer.n_head_kv);
                double       dot = 0.0;
                for (size_t e = 0; e < k.size(); ++e) {
                    dot += (double) q[e] * k[e];
                }
                a.push_back(std::exp(dot * layer.kq_scale));
                all += a.back();
            }
            for (int32_t i = 0; i < side.n_distant; ++i) {
                best[i] = std::max(best[i], a[i] / all);
            }
        }
        for (int32_t i = 0; i < side.n_distant; ++i) {
            res[i] += best[i];
        }
    }
    return res;
}

static void test_recalled_tokens_begin_with_what_asks_gives_them(llama_model * model, int32_t policy) {
    const auto ctx = create_summed(model, policy);
    CHECK(decode(ctx, some_tokens(700)) == 0);
    decode_singly(ctx, some_tokens(60, 2));
    std::vector<std::vector<int32_t>> slots;
    std::vector<floats>               sums;
    for (size_t il = 0; il < 2; ++il) {
        slots.push_back(retained(ctx, 0, il));
        sums.push_back(sums_of(ctx, il));
        CHECK(*std::max_element(sums[il].begin(), sums[il].end()) > WINDOW / 2);
    }
    CHECK(recall(ctx).n_recalled > 0);
    int32_t n_new = 0, n_old = 0;
    for (size_t il = 0; il < 2; ++il) {
        const auto    after     = retained(ctx, 0, il);
        const auto    now       = sums_of(ctx, il);
        const int32_t n_distant = CAPACITY - WINDOW;
        for (size_t h = 0; h < after.size() / n_distant; ++h) {
            const auto votes = votes_of(ctx, il, h);
            for (int32_t i = 0; i < n_distant; ++i) {
                const size_t at = h * n_distant + i;
                if (after[at] == slots[il][at]) {
                    CHECK(now[at] == sums[il][at]);
                    n_old++;
                } else {
                    CHECK(std::fabs(now[at] - votes[i]) <= 0.02 * votes[i] + 1e-5);
                    n_new++;
                }
            }
        }
    }
    CHECK(n_new > 0 && n_old > 0);
    decode_singly(ctx, some_tokens(60, 3));
    CHECK(all_finite(logits(ctx)));
}

// Whichever of its graphs fails.
static void test_a_recall_that_fails_leaves_sums_as_they_were(llama_model * model) {
    const auto ctx = create_summed(model, MORPHKV_POLICY_COMMITTEES);
    CHECK(decode(ctx, some_tokens(700)) == 0);
    const auto before  = save(ctx);
    int        n_tried = 0;
    for (bool fails = true; fails; ++n_tried) {
        int n                        = 0;
        cache_of(ctx).inject_failure = [&](step s) {
            return s == step::COMPUTE && n++ == n_tried;
        };
        morphkv_recalled out{};
        fails = try_recall(ctx, out) != MORPHKV_STATUS_OK;
        CHECK(!fails || save(ctx) == before);
    }
    cache_of(ctx).inject_failure = nullptr;
    CHECK(n_tried > 2 && save(ctx) != before);
}

static void test_a_text_that_is_laid_down_anew_begins_with_nothing(llama_model * model) {
    const auto ctx  = create_summed(model, MORPHKV_POLICY_H2O);
    const auto text = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    CHECK(sums_of(ctx, 1) != floats(sums_of(ctx, 1).size(), 0.0f));
    morphkv_restored out{};
    out.size = sizeof(out);
    CHECK(morphkv_restore(ctx.get(), 0, text.data(), 500, &out) == MORPHKV_STATUS_OK && out.n_restored > 0);
    CHECK(sums_of(ctx, 1) == floats(sums_of(ctx, 1).size(), 0.0f));
    CHECK(decode(ctx, some_tokens(200, 4)) == 0 && all_finite(logits(ctx)));
}

static void test_copies_go_on_with_the_same_sums(llama_model * model) {
    const auto ctx = create_summed(model, MORPHKV_POLICY_COMMITTEES, 2);
    CHECK(decode(ctx, some_tokens(500), { 0 }) == 0);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(sums_of(ctx, 0, 0) == sums_of(ctx, 0, 1));
    decode_singly(ctx, some_tokens(40, 5), { 0, 1 });
    CHECK(sums_of(ctx, 0, 0) == sums_of(ctx, 0, 1) && retained(ctx, 0, 1) == retained(ctx, 1, 1));
    CHECK(logits(ctx, 0) == logits(ctx, 1));
}

// Four bytes for each slot and KV head.
static void test_what_they_cost_is_told(llama_model * model) {
    auto       params    = small_params();
    auto       cparams   = context_params();
    const auto plain     = stats(create(model, params, cparams));
    params.policy        = MORPHKV_POLICY_H2O;
    params.protect       = 0;
    const auto   summed  = stats(create(model, params, cparams));
    const size_t n_slots = 2 * 2 * (40 - 8);                                            // layers, KV heads
    CHECK(summed.kv_bytes == plain.kv_bytes && summed.extra_bytes >= plain.extra_bytes + n_slots * sizeof(float));
    CHECK(summed.extra_bytes <= plain.extra_bytes + n_slots * sizeof(float) + 4 * 64);  // and what aligns them
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    test_recalled_tokens_begin_with_what_asks_gives_them(model.get(), MORPHKV_POLICY_H2O);
    test_recalled_tokens_begin_with_what_asks_gives_them(model.get(), MORPHKV_POLICY_COMMITTEES);
    test_a_recall_that_fails_leaves_sums_as_they_were(model.get());
    test_a_text_that_is_laid_down_anew_begins_with_nothing(model.get());
    test_copies_go_on_with_the_same_sums(model.get());
    test_what_they_cost_is_told(model.get());
    llama_backend_free();
    return 0;
}
