// Rotary rebase inside a context: one sequence at a time, layers without rotation left alone, and failures that are clean.

#include "support/inside.h"

using step = morphkv_runner::step;

static morphkv_params rebasing_params() {
    auto res       = small_params();
    res.rope_limit = 100;  // cells: 40 + 30
    return res;
}

constexpr int32_t N_NEAR = 15;  // half of what the limit leaves beside the cells

// Decodes until the next token is due for a rebase, and not for a cut.
static void decode_to_the_limit(const context_ptr & ctx, llama_seq_id seq = 0) {
    while (stats(ctx, seq).logical_pos + 1 - stats(ctx, seq).rotary_offset < stats(ctx, seq).rope_limit) {
        decode_singly(ctx, { 5 }, { seq });
    }
    CHECK(stats(ctx, seq).n_used < 46);
}

static void test_sequences_are_rebased_one_by_one(llama_model * model) {
    const auto ctx = create(model, rebasing_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(90), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(50, 2), { 1 }) == 0);
    decode_to_the_limit(ctx);
    const auto one = keys_of(ctx, 0, 1);
    decode_singly(ctx, { 1 }, { 0 });
    const auto s = stats(ctx, 0);
    CHECK(s.n_rebases == 1 && s.logical_pos == 100 && s.logical_pos - s.rotary_offset + 1 == s.n_used + N_NEAR);
    CHECK(s.exact_pos == 100);
    CHECK(stats(ctx, 1).n_rebases == 0 && stats(ctx, 1).rotary_offset == 0 && keys_of(ctx, 0, 1) == one);
    // together from now on, each at its time
    decode_singly(ctx, some_tokens(300, 3), { 0, 1 });
    CHECK(stats(ctx, 0).n_rebases >= 4 && stats(ctx, 1).n_rebases >= 4);
    CHECK(stats(ctx, 0).rotary_offset != stats(ctx, 1).rotary_offset);
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

static void test_layers_without_rotation_are_left_alone() {
    tiny_shape shape;
    shape.arch       = "smollm3";  // every fourth layer
    shape.n_layer    = 4;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create(model.get(), rebasing_params(), context_params());
    CHECK(decode(ctx, some_tokens(90)) == 0);
    decode_to_the_limit(ctx);
    std::vector<bytes> before;
    for (size_t il = 0; il < 4; ++il) {
        before.push_back(keys_of(ctx, il));
        const auto is = cache_of(ctx).get_side().layers[il].rope.is;
        CHECK(is == (il == 3 ? morphkv_rope::kind::NONE : morphkv_rope::kind::ROTATED));
    }
    decode_singly(ctx, { 1 });
    CHECK(stats(ctx).n_rebases == 1);
    for (size_t il = 0; il < 4; ++il) {
        auto after = keys_of(ctx, il);
        after.resize(before[il].size());
        CHECK((after == before[il]) == (il == 3));
    }
}

static void test_a_rebase_that_fails_is_clean(llama_model * model) {
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        const auto ctx = create(model, rebasing_params(), context_params(2));
        CHECK(decode(ctx, some_tokens(20), { 1 }) == 0);
        CHECK(decode(ctx, some_tokens(90), { 0 }) == 0);
        decode_to_the_limit(ctx);
        const auto before = keys_of(ctx, 0), other = keys_of(ctx, 0, 1);

        cache_of(ctx).inject_failure = [=](step s) {
            return s == which;
        };
        CHECK(decode(ctx, { 1 }, { 0, 1 }) == -3);
        const std::string error      = morphkv_last_error();
        cache_of(ctx).inject_failure = nullptr;
        CHECK(keys_of(ctx, 0, 1) == other && error.find("rebase failed") == 0);
        if (which == step::ALLOC) {
            CHECK(keys_of(ctx, 0) == before && stats(ctx).n_rebases == 0 &&
                  error.find("is unchanged") != std::string::npos);
        } else {
            CHECK(stats(ctx).n_used == 0 && error.find("has been cleared") != std::string::npos);
        }
        CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
        CHECK(all_finite(logits(ctx)) && stats(ctx).n_rebases >= 1);
    }
}

// An abort waits for the end of a rebase, too.
static void test_an_abort_at_a_rebase_loses_nothing(llama_model * model) {
    auto due = [&] {
        auto ctx = create(model, rebasing_params(), context_params());
        CHECK(decode(ctx, some_tokens(90)) == 0);
        decode_to_the_limit(ctx);
        return ctx;
    };
    const auto undisturbed = due();
    const auto expected    = logits_of(undisturbed, some_tokens(30, 4));

    const auto ctx = due();
    llama_set_abort_callback(ctx.get(), [](void *) { return true; }, nullptr);
    CHECK(decode(ctx, { some_tokens(30, 4)[0] }) == 2);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    CHECK(stats(ctx).n_rebases == 1 && stats(ctx).logical_pos == 99);
    CHECK(logits_of(ctx, some_tokens(30, 4)) == expected);
}

// A prompt far longer than the limit goes on and on; every type of K.
static void test_positions_go_on_without_end(llama_model * model, ggml_type type) {
    auto cparams   = context_params();
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, rebasing_params(), cparams);
    for (int i = 0; i < 10; ++i) {
        CHECK(decode(ctx, some_tokens(500, i)) == 0);
        decode_singly(ctx, some_tokens(20, i));
        const auto s = stats(ctx);
        CHECK(s.logical_pos - s.rotary_offset < 100 && all_finite(logits(ctx)));
    }
    CHECK(stats(ctx).logical_pos == 5199 && stats(ctx).n_rebases > 50);
}

int main() {
    log_errors_only();
    for (const int32_t n_embd_head : { 32, 64 }) {  // 64: quantized K is stored rotated
        tiny_shape shape;
        shape.n_embd_head = n_embd_head;
        const auto model  = tiny_model_load(shape);
        test_sequences_are_rebased_one_by_one(model.get());
        for (const ggml_type type :
             { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
            test_positions_go_on_without_end(model.get(), type);
        }
    }
    // M-RoPE; compressed keys, of which a part is rotated
    tiny_shape sections, mla;
    sections.arch      = "qwen2vl";
    sections.n_head    = 2;
    sections.n_head_kv = 1;
    mla.arch           = "deepseek2";
    mla.n_embd_head    = 64;
    mla.n_lora_kv      = 96;
    for (const tiny_shape & shape : { sections, mla }) {
        const auto model = tiny_model_load(shape);
        test_sequences_are_rebased_one_by_one(model.get());
        for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
            test_positions_go_on_without_end(model.get(), type);
        }
    }
    test_layers_without_rotation_are_left_alone();

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const auto model = tiny_model_load();
    test_a_rebase_that_fails_is_clean(model.get());
    test_an_abort_at_a_rebase_loses_nothing(model.get());
    return 0;
}
