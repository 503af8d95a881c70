// Recall inside a context: what comes back is what left, and a failure changes nothing.

#include "support/archived_context.h"
#include "support/hybrid_model.h"

#include <cstring>

using step = morphkv_runner::step;

static float largest_difference(const floats & a, const floats & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// In the first layer a token's K and V depend on itself and where it stands alone: the recalled rows are those of a context
// that decodes the same token at that rotary position.
static void test_what_comes_back_is_what_left(bool is_beside, const tiny_shape & shape, ggml_type type,
                                              float tolerance) {
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), alone(is_beside, type));
    const auto text  = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    const auto before = settled(ctx);
    CHECK(before.n_archived == before.logical_pos + 1 - (before.n_used - before.n_distant));
    CHECK(before.archive_bytes > 0 && before.n_archive_lost == 0 && before.archive_ms > 0.0);
    const auto slots_before = retained(ctx, 0, 0);

    const auto got = recall(ctx);
    const auto s   = stats(ctx);
    CHECK(got.n_archived == before.n_archived / 16 * 16 && got.n_recalled > 0 && got.took_ms >= got.ask_ms);
    CHECK(s.n_recalls == 1 && s.n_recalled == got.n_recalled && s.recall_ms > 0.0);
    CHECK(s.n_used == before.n_used && s.kv_bytes == before.kv_bytes && s.logical_pos == before.logical_pos);
    CHECK(s.exact_pos == s.logical_pos + 1);

    const auto & layer     = cache_of(ctx).get_side().layers[0];
    const auto   slots     = retained(ctx, 0, 0);
    const int    n_distant = s.n_distant;
    const int    base  = s.logical_pos + 1 - s.n_used - s.rotary_offset;  // distant ones end where recent ones begin
    int          n_new = 0;
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        const std::vector<int32_t> of_head(slots.begin() + h * n_distant, slots.begin() + (h + 1) * n_distant);
        std::vector<int32_t>       ordered = of_head;
        std::sort(ordered.begin(), ordered.end());
        CHECK(std::adjacent_find(ordered.begin(), ordered.end()) == ordered.end());
        CHECK(ordered.front() == 0 && ordered[1] == 1 && ordered[2] == 2);  // keep
        CHECK(ordered.back() < s.logical_pos - 7);
        for (int32_t i = 0; i < n_distant; ++i) {
            n_new += of_head[i] != slots_before[h * n_distant + i];
            const int32_t rank = std::lower_bound(ordered.begin(), ordered.end(), of_head[i]) - ordered.begin();
            if (i % 9 != 0) {
                continue;
            }
            // the same token where this one stands now
            auto cparams   = context_params();
            auto roomy     = small_params();
            roomy.capacity = 900;
            cparams.type_k = cparams.type_v = type;
            const auto other                = create(model.get(), roomy, cparams);
            tokens     fill(base + rank, 1);
            fill.push_back(text[of_head[i]]);
            CHECK(decode(other, fill) == 0);
            const auto & same = cache_of(other).get_side().layers[0];
            for (const bool is_k : { true, false }) {
                if (!is_k && !layer.v) {
                    continue;  // a part of K
                }
                const floats a = row_of(is_k ? layer.k : layer.v, i, h, layer.n_head_kv);
                const floats b = row_of(is_k ? same.k : same.v, base + rank, h, layer.n_head_kv);
                CHECK(largest_difference(a, b) <= tolerance);
            }
        }
    }
    CHECK(n_new > n_distant / 2);
    // and the chat goes on: evictions, rebases, recalls
    for (int i = 0; i < 5; ++i) {
        decode_singly(ctx, some_tokens(37, i));
        recall(ctx);
        CHECK(all_finite(logits(ctx)));
        CHECK(decode(ctx, some_tokens(150, 10 + i)) == 0 && all_finite(logits(ctx)));
    }
    CHECK(stats(ctx).n_recalls == 6);
    CHECK(stats(ctx).logical_pos - stats(ctx).rotary_offset < 400);
}

static void test_nothing_comes_back_before_the_first_eviction(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, alone(is_beside));
    CHECK(recall(ctx).n_recalled == 0);
    CHECK(decode(ctx, some_tokens(60)) == 0);
    const auto state = save(ctx);
    CHECK(recall(ctx).n_recalled == 0 && stats(ctx).n_recalls == 0);
    CHECK(save(ctx) == state);
}

// One recall of a model whose layers are in part windowed or recurrent.
static void test_other_layers(bool is_beside, const tiny_shape & shape, bool is_recurrent) {
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), alone(is_beside));
    CHECK(decode(ctx, some_tokens(700)) == 0);
    decode_singly(ctx, some_tokens(9, 2));
    const auto before = save(ctx);
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        cache_of(ctx).inject_failure = [&](step s) {
            return s == which;
        };
        morphkv_recalled out{};
        CHECK(is_recurrent || (try_recall(ctx, out) == MORPHKV_STATUS_FAILED && save(ctx) == before));
        cache_of(ctx).inject_failure = nullptr;
    }
    CHECK(recall(ctx).n_recalled > 0);
    const auto s = stats(ctx);
    // recurrent layers cannot go back, so nothing is decoded again
    CHECK(!is_recurrent || s.complete_pos == s.logical_pos);
    const auto state = save(ctx);
    const auto other = create_archived(model.get(), alone(is_beside));
    CHECK(load(other, state));
    for (const llama_token token : some_tokens(40, 3)) {
        decode_singly(ctx, { token });
        decode_singly(other, { token });
        CHECK(all_finite(logits(ctx)) && logits(ctx) == logits(other));
    }
}

static void test_windowed_and_recurrent_layers(bool is_beside) {
    tiny_shape windowed;
    windowed.arch        = "granite_swa";
    windowed.n_layer     = 4;
    windowed.is_windowed = { 1, 0, 1, 0 };
    windowed.sink        = 0.5f;
    test_other_layers(is_beside, windowed, false);

    test_other_layers(is_beside, hybrid_shape(), true);
}

// Its graphs have four layers: the first fails, or the second, when slots have been filled.
static void test_a_recall_that_fails_changes_nothing(bool is_beside, step which) {
    tiny_shape shape;
    shape.n_layer    = 6;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), { nullptr, is_beside });
    CHECK(decode(ctx, some_tokens(500), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1 }) == 0);
    const auto before = save(ctx), other = save(ctx, 1);
    for (int n_good = 0; n_good < 2; ++n_good) {
        int n                        = 0;
        cache_of(ctx).inject_failure = [&](step s) {
            return s == which && n++ == n_good;
        };
        morphkv_recalled out{};
        CHECK(try_recall(ctx, out) == MORPHKV_STATUS_FAILED);
        CHECK(strstr(morphkv_last_error(), "recall failed") && strstr(morphkv_last_error(), "sequence 0 is unchanged"));
        CHECK(save(ctx) == before && save(ctx, 1) == other);
    }
    cache_of(ctx).inject_failure = nullptr;
    CHECK(recall(ctx).n_recalled > 0);
    decode_singly(ctx, some_tokens(30, 4), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// An eviction that fails takes back what it had archived.
static void test_a_cut_that_fails_archives_nothing(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, alone(is_beside));
    CHECK(decode(ctx, some_tokens(300)) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(5));
    const auto before            = save(ctx);
    cache_of(ctx).inject_failure = [](step s) {
        return s == step::ALLOC;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(save(ctx) == before);
    cache_of(ctx).inject_failure = nullptr;
    const int64_t n_archived     = settled(ctx).n_archived;
    decode_singly(ctx, { 1 });
    CHECK(settled(ctx).n_archived == n_archived + 6);
}

static void test_what_is_refused(llama_model * model) {
    auto       params = morphkv_archive_params_default();
    const auto ctx    = create_plain(model, alone(false));

    morphkv_recalled out{};
    CHECK(try_recall(ctx, out) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "needs an archive"));
    params.type_k = GGML_TYPE_Q4_K;
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "type_k must be one of"));
    params.type_k = -1;
    CHECK(decode(ctx, some_tokens(10)) == 0);
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "before anything is decoded"));
    llama_memory_clear(memory(ctx), true);
    params.path = "/no/such/folder/archive";
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_FAILED);
    params.path = nullptr;
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_OK);
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "once"));

    auto refuse = [&](auto change, const char * sentence) {
        auto p = morphkv_recall_params_default();
        change(p);
        out.size = sizeof(out);
        CHECK(morphkv_recall(ctx.get(), 0, &p, &out) == MORPHKV_STATUS_INVALID);
        CHECK(strstr(morphkv_last_error(), sentence));
    };
    refuse([](auto & p) { p.share = 0.0f; }, "share must be in (0, 1]");
    refuse([](auto & p) { p.share = NAN; }, "share must be in (0, 1]");
    refuse([](auto & p) { p.votes = 9; }, "votes must be in 0..8, got 9");
    refuse([](auto & p) { p.distance = 400; }, "distance must be in -1..399, got 400");
    refuse([](auto & p) { p.look = 0; }, "look must be at least 1");
    refuse([](auto & p) { p.size = 1; }, "size must be");
    CHECK(morphkv_recall(ctx.get(), 7, nullptr, &out) == MORPHKV_STATUS_INVALID);

    // positions that are not rebased
    auto never       = small_params();
    never.rope_limit = 0;
    const auto fixed = create(model, never, context_params());
    CHECK(morphkv_archive_start(fixed.get(), &params) == MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "rope_limit"));
}

// The default distance fits any limit.
static void test_a_recall_within_a_short_limit(llama_model * model) {
    auto params       = small_params();
    params.rope_limit = 100;
    const auto ctx    = create(model, params, context_params());
    CHECK(start_archive(ctx, {}));
    CHECK(decode(ctx, some_tokens(300)) == 0);
    CHECK(recall(ctx, 0, morphkv_recall_params_default()).n_recalled > 0);
    CHECK(decode(ctx, some_tokens(100, 2)) == 0 && all_finite(logits(ctx)));
}

// llama.cpp warns of compute buffers that are larger than it reserved them: ours may be.
static void test_a_context_ends_without_a_warning(llama_model * model) {
    g_log.clear();
    keep_the_log();
    {
        const auto ctx = create_archived(model, alone(false));
        CHECK(decode(ctx, some_tokens(900)) == 0);
        recall(ctx);
        decode_singly(ctx, some_tokens(20));
    }
    CHECK(g_log.find("does not match") == std::string::npos);
    log_errors_only();
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    // M-RoPE; compressed keys, of which a part is rotated
    tiny_shape sections, mla;
    sections.arch      = "qwen2vl";
    sections.n_head    = 2;
    sections.n_head_kv = 1;
    mla.arch           = "deepseek2";
    mla.n_embd_head    = 64;
    mla.n_lora_kv      = 96;
    for (const bool is_beside : { false, true }) {
        test_what_comes_back_is_what_left(is_beside, {}, GGML_TYPE_F32, 1e-4f);
        test_what_comes_back_is_what_left(is_beside, {}, GGML_TYPE_F16, 0.01f);
        for (const tiny_shape & shape : { tiny_shape(), sections, mla }) {
            test_what_comes_back_is_what_left(is_beside, shape, GGML_TYPE_Q8_0, 0.1f);
        }
        test_nothing_comes_back_before_the_first_eviction(model.get(), is_beside);
        test_a_recall_that_fails_changes_nothing(is_beside, step::ALLOC);
        test_a_recall_that_fails_changes_nothing(is_beside, step::COMPUTE);
        test_windowed_and_recurrent_layers(is_beside);
        test_a_cut_that_fails_archives_nothing(model.get(), is_beside);
    }
    test_what_is_refused(model.get());
    test_a_recall_within_a_short_limit(model.get());
    test_a_context_ends_without_a_warning(model.get());
    llama_backend_free();
    return 0;
}
