// The cache inside a context: it stays constant, and what cannot be honoured is refused.

#include "support/tiny_context.h"

#include <cstring>
#include <set>

static void test_cells_stay_constant(llama_model * model, ggml_type type, int32_t policy) {
    auto cparams   = context_params();
    cparams.type_k = cparams.type_v = type;
    auto params                     = small_params();
    params.policy                   = policy;
    params.decay                    = policy == MORPHKV_POLICY_MORPHKV ? 0.5f : 0.0f;
    const auto ctx                  = create(model, params, cparams);

    CHECK(decode(ctx, some_tokens(300)) == 0);  // a prompt of four times the cells
    CHECK(stats(ctx).n_used <= stats(ctx).n_limit);
    const auto first = stats(ctx);
    for (const llama_token token : some_tokens(200, 2)) {
        decode_singly(ctx, { token });
        CHECK(stats(ctx).n_used <= first.n_limit);
        CHECK(all_finite(logits(ctx)));
    }
    const auto last = stats(ctx);
    CHECK(last.n_used <= params.capacity + params.interval);
    CHECK(last.kv_bytes == first.kv_bytes && last.extra_bytes == first.extra_bytes && last.kv_bytes > 0);
    CHECK(last.logical_pos == 499 && last.n_evictions > first.n_evictions && last.scratch_bytes > 0);
    CHECK(last.n_evicted == last.logical_pos + 1 - last.n_used);
    CHECK(last.complete_pos == last.logical_pos + 1 - (last.n_used - last.n_distant));

    for (const int32_t layer : { 0, 1 }) {
        const auto pos = retained(ctx, 0, layer);
        for (int32_t h = 0; h < 2; ++h) {
            const auto              begin = pos.begin() + h * last.n_distant;
            const std::set<int32_t> distinct(begin, begin + last.n_distant);
            CHECK((int32_t) distinct.size() == last.n_distant);
            CHECK(*distinct.begin() == 0 && *distinct.rbegin() < last.complete_pos);
            for (int32_t i = 0; i < params.keep; ++i) {
                CHECK(begin[i] == i);
            }
        }
    }
}

static void test_a_sequence_can_keep_more_than_others(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    auto       set = [&](int32_t seq, int32_t n) {
        return morphkv_keep_set(ctx.get(), seq, n);
    };
    CHECK(set(0, 20) == MORPHKV_STATUS_OK && set(2, 20) == MORPHKV_STATUS_INVALID);
    CHECK(set(0, -1) == MORPHKV_STATUS_INVALID && set(0, 32) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "keep must be in 0..31 (below capacity - window), got 32"));
    CHECK(decode(ctx, some_tokens(250), { 0, 1 }) == 0);
    for (const int32_t seq : { 0, 1 }) {
        const auto pos = retained(ctx, seq, 1);
        for (int32_t i = 0; i < 20; ++i) {
            CHECK((seq == 0 || i < 3) == (pos[i] == i && pos[32 + i] == i) || seq == 1);
        }
        CHECK(seq == 0 || pos[19] != 19 || pos[32 + 19] != 19);
        CHECK(stats(ctx, seq).keep == (seq == 0 ? 20 : 3));
    }
    CHECK(set(1, 4) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "after the sequence's first eviction"));
    CHECK(set(0, 10) == MORPHKV_STATUS_OK && stats(ctx, 0).keep == 10);
    // with a copy and a saved state; forgotten when the sequence is emptied
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(stats(ctx, 1).keep == 10);
    const auto state = save(ctx);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1) && stats(ctx, 0).keep == 3);
    CHECK(load(ctx, state));
    CHECK(stats(ctx, 0).keep == 10);
}

static void refuse(llama_model * model, const morphkv_params & params, llama_context_params cparams,
                   morphkv_status status, const char * sentence) {
    llama_context * ctx = nullptr;
    const auto      got = morphkv_context_create(model, &cparams, &params, &ctx);
    if (got != status || ctx || !strstr(morphkv_last_error(), sentence)) {
        fprintf(stderr, "expected '%s', got %d '%s'\n", sentence, got, morphkv_last_error());
        CHECK(false);
    }
}

static void test_what_cannot_be_honoured_is_refused(llama_model * model) {
    auto cparams            = context_params();
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    refuse(model, small_params(), cparams, MORPHKV_STATUS_UNSUPPORTED, "MorphKV needs flash attention");

    cparams        = context_params();
    cparams.type_k = GGML_TYPE_Q4_1;
    refuse(model, small_params(), cparams, MORPHKV_STATUS_UNSUPPORTED, "got q4_1");

    auto params        = small_params();
    params.prompt_room = 4000;
    refuse(model, params, context_params(), MORPHKV_STATUS_INVALID,
           "must not exceed the context of a sequence, got 40 + 4000");

    params        = small_params();
    params.window = 0;
    refuse(model, params, context_params(), MORPHKV_STATUS_INVALID, "window must be in");

    // other sequences than were asked for
    CHECK(decode(create(model, small_params(), context_params()), { 1 }, { 1 }) != 0);

    // a refusal leaves nothing behind
    CHECK(decode(create(model, small_params(), context_params()), some_tokens(100)) == 0);
    const context_ptr stock(llama_init_from_model(model, context_params()));
    morphkv_stats     s{};
    s.size = sizeof(s);
    CHECK(morphkv_stats_get(stock.get(), 0, &s) == MORPHKV_STATUS_NO_MORPHKV);
    CHECK(morphkv_kv_bytes(stock.get()) > 0);
}

static void test_pending_parameters_are_for_one_context(llama_model * model) {
    const auto params = small_params();
    CHECK(morphkv_params_set_next(&params) == MORPHKV_STATUS_OK);
    const context_ptr first(llama_init_from_model(model, context_params()));
    const context_ptr second(llama_init_from_model(model, context_params()));
    CHECK(stats(first).capacity == params.capacity);
    CHECK(morphkv_retained_shape(second.get(), 0, nullptr, nullptr) == MORPHKV_STATUS_NO_MORPHKV);
    CHECK(morphkv_kv_bytes(first.get()) < morphkv_kv_bytes(second.get()));
}

int main() {
    log_errors_only();

    const auto model = tiny_model_load();
    for (const ggml_type type :
         { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
        test_cells_stay_constant(model.get(), type, MORPHKV_POLICY_MORPHKV);
    }
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_RECENCY);
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_RANDOM);
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_COMMITTEES);
    test_cells_stay_constant(model.get(), GGML_TYPE_Q8_0, MORPHKV_POLICY_COMMITTEES);
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_H2O);
    test_a_sequence_can_keep_more_than_others(model.get());
    test_what_cannot_be_honoured_is_refused(model.get());
    test_pending_parameters_are_for_one_context(model.get());
    return 0;
}
