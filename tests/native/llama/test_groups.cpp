// Layers with capacities of their own: cut at the same moments, each down to what it keeps, and all else as with one capacity.

#include "support/archived_context.h"

#include <set>

using step = morphkv_runner::step;

constexpr int32_t SMALL = 30, LARGE = 60;

// Layer 1 keeps more.
static morphkv_params group_params(int32_t large = LARGE) {
    auto res            = small_params();
    res.n_large         = 1;
    res.large_layers[0] = 1;
    res.small_capacity  = SMALL;
    res.large_capacity  = large;
    return res;
}

static int32_t n_distant_of(const context_ptr & ctx, int32_t layer) {
    int32_t n_head_kv = 0, n_distant = 0;
    CHECK(morphkv_retained_shape(ctx.get(), layer, &n_head_kv, &n_distant) == MORPHKV_STATUS_OK);
    return n_distant;
}

static void test_each_group_keeps_its_number(llama_model * model, ggml_type type, float decay,
                                             int32_t policy = MORPHKV_POLICY_MORPHKV) {
    auto cparams   = context_params();
    cparams.type_k = cparams.type_v = type;
    auto params                     = group_params();
    params.decay                    = decay;
    params.policy                   = policy;
    params.protect                  = 0;
    const auto ctx                  = create(model, params, cparams);
    const auto first                = stats(ctx);
    CHECK(first.n_groups == 2 && first.min_capacity == SMALL && first.max_capacity == LARGE && first.capacity == 40);
    CHECK(n_distant_of(ctx, 0) == SMALL - 8 && n_distant_of(ctx, 1) == LARGE - 8);

    decode_singly(ctx, some_tokens(50));
    // the small one has evicted, the other holds all
    CHECK(stats(ctx).n_evictions > 0 && retained(ctx, 0, 0)[0] == 0 && retained(ctx, 0, 1)[0] == -1);
    CHECK(decode(ctx, some_tokens(200, 3)) == 0);
    decode_singly(ctx, some_tokens(60, 2));

    const auto last = stats(ctx);
    CHECK(last.kv_bytes == first.kv_bytes && last.extra_bytes == first.extra_bytes);
    CHECK(last.n_used <= last.n_limit && last.n_limit == SMALL + 30);
    for (const int32_t layer : { 0, 1 }) {
        const auto    pos       = retained(ctx, 0, layer);
        const int32_t n_distant = n_distant_of(ctx, layer);
        for (int32_t h = 0; h < 2; ++h) {
            const auto              begin = pos.begin() + h * n_distant;
            const std::set<int32_t> distinct(begin, begin + n_distant);
            CHECK((int32_t) distinct.size() == n_distant && *distinct.rbegin() < last.complete_pos);
            CHECK(begin[0] == 0 && begin[1] == 1 && begin[2] == 2);
        }
    }
    CHECK(all_finite(logits(ctx)));
}

static void test_until_an_eviction_it_is_stock(llama_model * model) {
    const auto        ctx = create(model, group_params(), context_params());
    const context_ptr stock(llama_init_from_model(model, context_params()));
    CHECK(decode(ctx, some_tokens(28)) == 0 && decode(stock, some_tokens(28)) == 0);
    CHECK(logits(ctx) == logits(stock));
    CHECK(logits_of(ctx, some_tokens(7, 2)) == logits_of(stock, some_tokens(7, 2)));
    CHECK(decode(ctx, some_tokens(20, 3)) == 0 && decode(stock, some_tokens(20, 3)) == 0);
    CHECK(logits(ctx) == logits(stock) && stats(ctx).n_evictions == 0);
}

static void test_equal_capacities_are_no_groups(llama_model * model) {
    auto params           = group_params(40);
    params.small_capacity = 40;
    const auto ctx        = create(model, params, context_params());
    const auto alike      = create(model, small_params(), context_params());
    CHECK(stats(ctx).n_groups == 1);
    CHECK(logits_of(ctx, some_tokens(150)) == logits_of(alike, some_tokens(150)));
}

// A layer that never evicts attends as in a full cache; so where all but one are large, that one alone is cut.
static void test_a_large_layer_may_hold_all(llama_model * model) {
    const auto ctx = create(model, group_params(1000), context_params());
    CHECK(decode(ctx, some_tokens(300)) == 0);
    decode_singly(ctx, some_tokens(50, 2));
    CHECK(stats(ctx).n_evictions > 0 && retained(ctx, 0, 1)[0] == -1);
    // layer 0's keys are of the token alone, so what layer 1 holds is what it would hold without any eviction in layer 0
    CHECK(cache_of(ctx).text_of(0).n_used(1) == 350);
}

static void test_a_layer_keeps_all_up_to_the_last_position(llama_model * model) {
    auto params           = group_params(-1);
    params.small_capacity = 0;
    params.rope_limit     = 400;
    const auto ctx        = create(model, params, context_params());
    CHECK(stats(ctx).min_capacity == 40 && stats(ctx).max_capacity == 370 && stats(ctx).rope_limit == 400);
    CHECK(decode(ctx, some_tokens(340)) == 0);
    decode_singly(ctx, some_tokens(30, 2));
    CHECK(stats(ctx).n_evictions > 0 && retained(ctx, 0, 1)[0] == -1 && stats(ctx).n_rebases == 0);
    // a longer text is cut there, too, and rebased
    CHECK(decode(ctx, some_tokens(300, 3)) == 0);
    decode_singly(ctx, some_tokens(40, 4));
    const auto s = stats(ctx);
    CHECK(retained(ctx, 0, 1)[0] == 0 && s.n_rebases > 0 && s.logical_pos - s.rotary_offset < 400);
    CHECK(all_finite(logits(ctx)));

    params.rope_limit    = 0;
    auto            more = context_params();
    llama_context * none = nullptr;
    CHECK(morphkv_context_create(model, &more, &params, &none) == MORPHKV_STATUS_INVALID && !none);
    CHECK(strstr(morphkv_last_error(), "rope_limit must not be 0"));
}

static void test_cells_are_shared_by_bytes(llama_model * model) {
    auto params            = small_params();
    params.capacity        = 500;
    params.interval        = 12;
    params.prompt_room     = 0;
    const auto alike       = create(model, params, context_params());
    params.n_large         = 1;
    params.large_layers[0] = 1;
    const auto ctx         = create(model, params, context_params());
    const auto s           = stats(ctx);
    CHECK(s.n_groups == 2 && s.min_capacity == 244 && s.max_capacity == 756);
    CHECK(s.kv_bytes == stats(alike).kv_bytes);
    CHECK(morphkv_kv_bytes(ctx.get()) == morphkv_kv_bytes(alike.get()));

    params.prompt_room = 480;  // 980 + 2*256 cells would be needed, and there are 1,024
    params.capacity    = 30;
    CHECK(stats(create(model, params, context_params())).n_groups == 1);
}

static void test_a_graph_is_used_again(llama_model * model) {
    const auto ctx = create(model, group_params(), context_params());
    CHECK(decode(ctx, some_tokens(100)) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, { 5, 6 });
    const int32_t before = llama_perf_context(ctx.get()).n_reused;
    decode_singly(ctx, { 7, 8 });
    CHECK(llama_perf_context(ctx.get()).n_reused == before + 2);
}

static void test_what_is_taken_back_comes_again(llama_model * model) {
    const auto ctx = create(model, group_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    const auto newest = stats(ctx).logical_pos;
    const auto once   = logits_of(ctx, some_tokens(4, 4));
    CHECK(llama_memory_seq_rm(memory(ctx), 0, newest + 1, -1));
    CHECK(logits_of(ctx, some_tokens(4, 4)) == once);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, stats(ctx).complete_pos, -1));
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1) && stats(ctx).n_used == 0);
    CHECK(retained(ctx, 0, 0)[0] == -1 && retained(ctx, 0, 1)[0] == -1);
    CHECK(decode(ctx, some_tokens(200)) == 0);
}

static void test_sequences_copies_and_states(llama_model * model) {
    const auto ctx = create(model, group_params(), context_params(3));
    for (const int32_t n : { 40, 300 }) {  // the large group has not evicted, and has
        llama_memory_clear(memory(ctx), true);
        CHECK(decode(ctx, some_tokens(20, 9), { 1 }) == 0);
        CHECK(decode(ctx, some_tokens(n), { 0 }) == 0);
        decode_singly(ctx, some_tokens(3, 5), { 0, 1 });

        llama_memory_seq_cp(memory(ctx), 0, 2, -1, -1);
        const auto state = save(ctx);
        CHECK(save(ctx, 2) == state);
        const auto expected = logits_of(ctx, some_tokens(40, 6));
        CHECK(logits_of(ctx, some_tokens(40, 6), 2) == expected);
        CHECK(load(ctx, state, 1) && logits_of(ctx, some_tokens(40, 6), 1) == expected);

        const auto other = create(model, group_params(), context_params(1));
        CHECK(load(other, state) && save(other) == state);
        // of other groups: refused, nothing changes
        for (const auto & params : { small_params(), group_params(LARGE + 1) }) {
            const auto strange = create(model, params, context_params());
            CHECK(!load(strange, state) && stats(strange).n_used == 0);
        }
    }
}

static void test_positions_are_rebased_in_all(llama_model * model, ggml_type type) {
    auto params       = group_params();
    params.rope_limit = 100;  // cells: 60 + 30
    auto cparams      = context_params();
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, params, cparams);
    for (int i = 0; i < 5; ++i) {
        CHECK(decode(ctx, some_tokens(200, i)) == 0);
        decode_singly(ctx, some_tokens(30, i));
        const auto s = stats(ctx);
        CHECK(s.logical_pos - s.rotary_offset < 100 && all_finite(logits(ctx)));
    }
    CHECK(stats(ctx).n_rebases > 5);

    params.rope_limit    = 89;
    llama_context * none = nullptr;
    CHECK(morphkv_context_create(model, &cparams, &params, &none) == MORPHKV_STATUS_INVALID && !none);
    CHECK(strstr(morphkv_last_error(), "at least the largest capacity"));
}

static void test_a_failed_step_is_clean(llama_model * model) {
    // the groups are cut in one graph
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        const auto ctx = create(model, group_params(), context_params());
        CHECK(decode(ctx, some_tokens(200)) == 0);
        decode_to_a_cut(ctx);
        while (stats(ctx).n_used < SMALL + 6) {
            decode_singly(ctx, { 5 });
        }
        const auto before            = save(ctx);
        int32_t    n_seen            = 0;
        cache_of(ctx).inject_failure = [&](step s) {
            n_seen += s == which;
            return s == which;
        };
        CHECK(decode(ctx, { 1 }) == -3 && n_seen == 1);
        const std::string error      = morphkv_last_error();
        cache_of(ctx).inject_failure = nullptr;
        const char * word            = which == step::ALLOC ? "is unchanged" : "has been cleared";
        CHECK(error.find(word) != std::string::npos);
        CHECK(which == step::ALLOC ? save(ctx) == before : stats(ctx).n_used == 0);
        CHECK(decode(ctx, some_tokens(200)) == 0 && all_finite(logits(ctx)));
    }
}

//
// archive
//

static context_ptr create_archived_groups(llama_model * model, bool is_beside, const char * path = nullptr) {
    auto params           = group_params(120);
    params.small_capacity = 100;
    params.rope_limit     = 400;
    auto cparams          = context_params(2);
    cparams.n_batch       = 1024;
    auto           res    = create(model, params, cparams);
    archived_setup setup;
    setup.path      = path;
    setup.is_beside = is_beside;
    CHECK(start_archive(res, setup));
    return res;
}

static void test_what_is_archived_comes_back_into_each_group(llama_model * model, bool is_beside, const char * path) {
    const auto ctx = create_archived_groups(model, is_beside, path);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    decode_to_a_cut(ctx);
    const auto s = settled(ctx);
    CHECK(s.n_archived == s.logical_pos + 1 - (s.n_used - s.n_distant));

    std::set<int32_t> before[2];
    for (const int32_t layer : { 0, 1 }) {
        const auto pos = retained(ctx, 0, layer);
        before[layer]  = { pos.begin(), pos.begin() + n_distant_of(ctx, layer) };
    }
    CHECK(recall(ctx).n_recalled > 0 && stats(ctx).n_recalls == 1);
    for (const int32_t layer : { 0, 1 }) {
        const auto              pos = retained(ctx, 0, layer);
        const std::set<int32_t> after(pos.begin(), pos.begin() + n_distant_of(ctx, layer));
        CHECK((int32_t) after.size() == n_distant_of(ctx, layer) && after != before[layer]);
    }
    decode_singly(ctx, some_tokens(40, 7));
    CHECK(all_finite(logits(ctx)));

    // what is the same for each layer, a key from the archive or never evicted, is the same: layer 0's keys are the token's
    CHECK(recall(ctx).n_recalled >= 0);
    const auto state = save(ctx);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx, 1) == state);
    const auto expected = logits_of(ctx, some_tokens(30, 8));
    CHECK(logits_of(ctx, some_tokens(30, 8), 1) == expected);
    CHECK(load_strictly(ctx, state, 1) && logits_of(ctx, some_tokens(30, 8), 1) == expected);
}

// Archived rows of the large layer are the same whether it has evicted or not: those of a context that never does.
static void test_both_groups_are_archived_alike(llama_model * model) {
    auto archived = [&](int32_t large) {
        auto params       = group_params(large);
        params.rope_limit = 2000;
        auto res          = create(model, params, context_params());
        CHECK(start_archive(res, alone(false)));
        CHECK(decode(res, some_tokens(100)) == 0);
        return res;
    };
    // the large one of the first evicts at 100 tokens, of the second never; layer 0 is the same
    const auto one = archived(60), other = archived(1000);
    const auto a = archive_of(one).find_page(0), b = archive_of(other).find_page(0);
    CHECK(a && b && *a == *b);
}

static void test_a_failed_recall_changes_nothing(llama_model * model) {
    for (const int32_t i_fails : { 1, 2 }) {
        const auto ctx = create_archived_groups(model, false);
        CHECK(decode(ctx, some_tokens(600)) == 0);
        const auto before            = save(ctx);
        int32_t    n_seen            = 0;
        cache_of(ctx).inject_failure = [&](step s) {
            return s == step::COMPUTE && ++n_seen == i_fails;
        };
        morphkv_recalled out{};
        CHECK(try_recall(ctx, out) == MORPHKV_STATUS_FAILED && n_seen == i_fails);
        cache_of(ctx).inject_failure = nullptr;
        CHECK(save(ctx) == before);
        CHECK(recall(ctx).n_recalled > 0);
    }
}

//
// other models
//

static void test_a_model(const tiny_shape & shape, std::vector<uint16_t> large, size_t n_groups = 2) {
    const auto model  = tiny_model_load(shape);
    auto       params = group_params();
    params.n_large    = large.size();
    std::copy(large.begin(), large.end(), params.large_layers);
    const auto        ctx = create(model.get(), params, context_params());
    const context_ptr stock(llama_init_from_model(model.get(), context_params()));
    CHECK(stats(ctx).n_groups == (int32_t) n_groups);
    CHECK(decode(ctx, some_tokens(30)) == 0 && decode(stock, some_tokens(30)) == 0);
    CHECK(logits(ctx) == logits(stock));
    CHECK(decode(ctx, some_tokens(400, 2)) == 0);
    decode_singly(ctx, some_tokens(60, 3));
    CHECK(all_finite(logits(ctx)) && stats(ctx).n_evictions > 0);
    const auto state    = save(ctx);
    const auto expected = logits_of(ctx, some_tokens(20, 4));
    CHECK(load(ctx, state) && logits_of(ctx, some_tokens(20, 4)) == expected);
}

static void test_other_models() {
    tiny_shape windowed;
    windowed.arch        = "granite_swa";
    windowed.n_layer     = 4;
    windowed.is_windowed = { 1, 0, 1, 0 };
    test_a_model(windowed, { 3 });

    tiny_shape hybrid;
    hybrid.arch         = "lfm2";
    hybrid.n_layer      = 4;
    hybrid.n_head       = 2;
    hybrid.n_head_kv    = 1;
    hybrid.is_recurrent = { 1, 0, 1, 0 };
    test_a_model(hybrid, { 1 });

    tiny_shape compressed;
    compressed.arch        = "deepseek2";
    compressed.n_embd_head = 64;
    compressed.n_lora_kv   = 96;
    test_a_model(compressed, { 1 });

    // a layer that is not cut cannot keep more
    const auto model        = tiny_model_load(windowed);
    auto       params       = group_params();
    params.large_layers[0]  = 0;
    llama_context * ctx     = nullptr;
    const auto      cparams = context_params();
    CHECK(morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_INVALID && !ctx);
    CHECK(strstr(morphkv_last_error(), "must be one that is cut, got layer 0 of 4"));
}

int main() {
    log_errors_only();

    const auto model = tiny_model_load();
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        test_each_group_keeps_its_number(model.get(), type, 0.0f);
        test_positions_are_rebased_in_all(model.get(), type);
    }
    test_each_group_keeps_its_number(model.get(), GGML_TYPE_F16, 0.5f);
    test_each_group_keeps_its_number(model.get(), GGML_TYPE_F16, 0.0f, MORPHKV_POLICY_COMMITTEES);
    test_until_an_eviction_it_is_stock(model.get());
    test_equal_capacities_are_no_groups(model.get());
    test_a_large_layer_may_hold_all(model.get());
    test_a_layer_keeps_all_up_to_the_last_position(model.get());
    test_cells_are_shared_by_bytes(model.get());
    test_a_graph_is_used_again(model.get());
    test_what_is_taken_back_comes_again(model.get());
    test_sequences_copies_and_states(model.get());
    test_a_failed_step_is_clean(model.get());
    for (const bool is_beside : { false, true }) {
        test_what_is_archived_comes_back_into_each_group(model.get(), is_beside, nullptr);
    }
    test_what_is_archived_comes_back_into_each_group(model.get(), false, "test_groups.archive");
    std::remove("test_groups.archive");
    std::remove("test_groups.archive.1");
    test_both_groups_are_archived_alike(model.get());
    test_a_failed_recall_changes_nothing(model.get());
    test_other_models();
    return 0;
}
