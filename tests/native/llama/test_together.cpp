// Sequences that are due at one moment are cut in one graph: each as if it were alone, on the CPU and on devices; and the
// decode's graph stays in use.

#include "support/fake_device.h"
#include "support/inside.h"

#include <cstring>

using step = morphkv_runner::step;
using seqs = std::vector<llama_seq_id>;

static const seqs FOUR = { 0, 1, 2, 3 };

// Slots of all layers, and K of the cells that a cut leaves.
static std::pair<std::vector<std::vector<int32_t>>, std::vector<bytes>> kept(const context_ptr & ctx, llama_seq_id seq,
                                                                             int32_t n_cells) {
    std::pair<std::vector<std::vector<int32_t>>, std::vector<bytes>> res;
    for (size_t i = 0; i < cache_of(ctx).n_groups(); ++i) {
        for (const auto & layer : cache_of(ctx).get_group(i).side.layers) {
            res.first.push_back(retained(ctx, seq, layer.il));
            bytes k(n_cells * layer.k->nb[1]);
            ggml_backend_tensor_get(layer.k, k.data(), seq * layer.k->nb[2], k.size());
            res.second.push_back(k);
        }
    }
    return res;
}

// Random texts, each decoded alone to where its next token is due for a cut.
static context_ptr create_due(llama_model * model, const morphkv_params & params, uint32_t seed) {
    std::mt19937 rng(seed);
    auto         ctx = create(model, params, context_params(4));
    for (const llama_seq_id seq : FOUR) {
        CHECK(morphkv_keep_set(ctx.get(), seq, rng() % 4) == MORPHKV_STATUS_OK);
        CHECK(decode(ctx, some_tokens(10 + rng() % 150, rng()), { seq }) == 0);
        decode_to_a_cut(ctx, seq);
        // one in three with fewer tokens to vote, and more that compete
        if (rng() % 3 == 0) {
            const auto first = stats(ctx, seq);
            CHECK(decode(ctx, some_tokens(20, rng()), { seq }) == 0);
            CHECK(llama_memory_seq_rm(memory(ctx), seq, first.logical_pos + 4, -1));
            decode_singly(ctx, some_tokens(params.window, rng()), { seq });
        }
        while (stats(ctx, seq).n_used < stats(ctx, seq).min_capacity + params.interval) {
            decode_singly(ctx, some_tokens(1, rng()), { seq });
        }
    }
    return ctx;
}

// The same states cut in one graph, and in graphs of their own.
static void same_as_alone(llama_model * model, const morphkv_params & params) {
    int64_t n_rebases = 0;
    for (uint32_t seed = 0; seed < 4; ++seed) {
        const auto together = create_due(model, params, seed);
        const auto alone    = create(model, params, context_params(4));
        for (const llama_seq_id seq : FOUR) {
            CHECK(load(alone, save(together, seq), seq));
        }
        std::vector<int64_t> n_before;
        for (const llama_seq_id seq : FOUR) {
            n_before.push_back(stats(together, seq).n_evictions);
        }
        CHECK(decode(together, { 7 }, FOUR) == 0);
        for (const llama_seq_id seq : FOUR) {
            CHECK(decode(alone, { 7 }, { seq }) == 0);
        }
        for (const llama_seq_id seq : FOUR) {
            const auto a = stats(together, seq), b = stats(alone, seq);
            CHECK(a.n_evictions == n_before[seq] + 1 && b.n_evictions == a.n_evictions && a.n_used == b.n_used);
            CHECK(kept(together, seq, a.n_used - 1) == kept(alone, seq, a.n_used - 1));
            n_rebases += a.n_rebases;
        }
    }
    CHECK((n_rebases > 0) == (params.rope_limit > 0));
}

static void test_each_is_cut_as_if_alone(llama_model * model, bool has_groups) {
    auto params = small_params();
    same_as_alone(model, params);
    params.rope_limit = 130;
    same_as_alone(model, params);
    params.policy = MORPHKV_POLICY_RANDOM;
    same_as_alone(model, params);
    params       = small_params();
    params.decay = 0.5f;
    same_as_alone(model, params);
    if (has_groups) {
        params                 = small_params();
        params.n_large         = 1;
        params.large_layers[0] = 1;
        params.small_capacity  = 30;
        params.large_capacity  = 60;
        same_as_alone(model, params);
    }
}

// A device cuts one that is nearly due with another; the CPU does not, nor a device one that is alone.
static void test_nearly_due_sequences_join_on_devices(llama_model * model, bool is_on_device) {
    auto params     = small_params();
    params.interval = 16;
    const auto ctx  = create(model, params, context_params(2));
    for (const llama_seq_id seq : { 0, 1 }) {
        decode_singly(ctx, some_tokens(40 + 16 - 3 * seq, seq), { seq });
    }
    decode_singly(ctx, { 1 }, { 1 });
    CHECK(stats(ctx, 1).n_used == 54 && stats(ctx, 1).n_evictions == 0);
    decode_singly(ctx, { 1 }, { 0, 1 });
    CHECK(stats(ctx, 0).n_evictions == 1 && stats(ctx, 1).n_evictions == is_on_device);
    decode_singly(ctx, some_tokens(40), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// What cannot be allocated changes none; what fails on the way clears those that it may have changed.
static void test_a_failure_leaves_each_whole(llama_model * model, step which) {
    const auto         ctx = create_due(model, small_params(), 5);
    std::vector<bytes> before;
    for (const llama_seq_id seq : FOUR) {
        before.push_back(save(ctx, seq));
    }
    cache_of(ctx).inject_failure = [&](step s) {
        return s == which;
    };
    CHECK(decode(ctx, { 7 }, { 0, 1, 2 }) == -3);
    for (const llama_seq_id seq : { 0, 1, 2 }) {
        CHECK(which == step::ALLOC ? save(ctx, seq) == before[seq] : stats(ctx, seq).n_used == 0);
    }
    CHECK(save(ctx, 3) == before[3]);
    cache_of(ctx).inject_failure = nullptr;
    for (const llama_seq_id seq : { 0, 1, 2 }) {
        CHECK(which == step::ALLOC || load(ctx, before[seq], seq));
    }
    const auto undisturbed = create_due(model, small_params(), 5);
    CHECK(decode(ctx, { 7 }, FOUR) == 0 && decode(undisturbed, { 7 }, FOUR) == 0);
    for (const llama_seq_id seq : FOUR) {
        CHECK(save(ctx, seq) == save(undisturbed, seq));
    }
}

// More than a graph has nodes for: those of graphs that went well are cut.
static void test_a_failure_in_the_second_graph(llama_model * model, step which) {
    constexpr int32_t N_SEQ = 12;
    const auto        ctx   = create(model, small_params(), context_params(N_SEQ));
    seqs              all;
    for (llama_seq_id seq = 0; seq < N_SEQ; ++seq) {
        CHECK(decode(ctx, some_tokens(30, seq), { seq }) == 0);
        all.push_back(seq);
    }
    while (stats(ctx, 0).n_evictions == 0 || stats(ctx, 0).n_used < 46) {
        decode_singly(ctx, { 5 }, all);
    }
    std::vector<bytes> before;
    for (const llama_seq_id seq : all) {
        before.push_back(save(ctx, seq));
    }
    int n                        = 0;
    cache_of(ctx).inject_failure = [&](step s) {
        return s == which && ++n == 2;
    };
    CHECK(decode(ctx, { 7 }, all) == -3 && n == 2);
    int n_cut = 0, n_same = 0, n_cleared = 0;
    for (const llama_seq_id seq : all) {
        const auto s       = stats(ctx, seq);
        const bool is_same = s.n_used > 0 && save(ctx, seq) == before[seq];
        n_cut += s.n_used == 40 && s.n_evictions == 2;
        n_same += is_same;
        n_cleared += s.n_used == 0;
        // in their order: cut, cleared, as they were
        CHECK(s.n_used == 40 ? n_cleared + n_same == 0 : s.n_used == 0 ? n_same == 0 : is_same);
    }
    CHECK(n_cut > 0 && n_cut + n_same + n_cleared == N_SEQ);
    // at most one lies in both graphs; of a graph that was not begun nothing has changed
    CHECK(which == step::ALLOC ? n_same > 0 && n_cleared <= 1 : n_cleared > 0 && n_same == 0);
}

// Graphs of a decode are built when it attends to more cells, and at no eviction.
static void test_the_decodes_graph_stays_in_use(llama_model * model, const seqs & all, bool with_archive) {
    auto params        = small_params();
    params.capacity    = 256;
    params.window      = 32;
    params.interval    = 128;
    params.prompt_room = 0;
    const auto ctx     = create(model, params, context_params(all.size()));
    if (with_archive) {
        const auto archive = morphkv_archive_params_default();
        CHECK(morphkv_archive_start(ctx.get(), &archive) == MORPHKV_STATUS_OK);
    }
    auto n_evictions = [&] {
        int64_t res = 0;
        for (const llama_seq_id seq : all) {
            res += stats(ctx, seq).n_evictions;
        }
        return res;
    };
    while (n_evictions() < 2 * (int64_t) all.size()) {
        decode_singly(ctx, { 5 }, all);
    }
    decode_singly(ctx, { 5 }, all);
    constexpr int32_t N_TOKENS = 1000;
    const int64_t     n_before = n_evictions();
    const int32_t     n_reused = llama_perf_context(ctx.get()).n_reused;
    decode_singly(ctx, some_tokens(N_TOKENS), all);
    CHECK(llama_perf_context(ctx.get()).n_reused - n_reused == N_TOKENS);
    CHECK(n_evictions() - n_before >= 7 * (int64_t) all.size() && stats(ctx).scratch_bytes > 0);
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const auto model = tiny_model_load();
    test_each_is_cut_as_if_alone(model.get(), true);
    test_nearly_due_sequences_join_on_devices(model.get(), false);
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        test_a_failure_leaves_each_whole(model.get(), which);
        test_a_failure_in_the_second_graph(model.get(), which);
    }
    test_the_decodes_graph_stays_in_use(model.get(), { 0 }, false);
    test_the_decodes_graph_stays_in_use(model.get(), FOUR, false);
    test_the_decodes_graph_stays_in_use(model.get(), FOUR, true);

    tiny_shape windowed;
    windowed.arch             = "granite_swa";
    windowed.n_layer          = 4;
    windowed.is_windowed      = { 1, 0, 1, 0 };
    const auto windowed_model = tiny_model_load(windowed);
    test_each_is_cut_as_if_alone(windowed_model.get(), false);

    // layers in stacks, whose logits are in parts
    fake_device        dev{ "Fake" };
    ggml_backend_dev_t list[]  = { &dev.dev, nullptr };
    auto               mparams = llama_model_default_params();
    mparams.devices            = list;
    mparams.n_gpu_layers       = 99;
    const auto model_there     = tiny_model_load({ 6, 2, 32, "llama", 4 }, mparams);
    test_each_is_cut_as_if_alone(model_there.get(), true);
    test_nearly_due_sequences_join_on_devices(model_there.get(), true);
    test_a_failure_leaves_each_whole(model_there.get(), step::COMPUTE);
    test_the_decodes_graph_stays_in_use(model_there.get(), FOUR, true);
    return 0;
}
