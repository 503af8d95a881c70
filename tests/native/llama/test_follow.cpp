// Recall while a text is written, inside a context: when it comes, what it leaves, and that a state goes on alike.

#include "support/archived_context.h"

#include <cstring>

using step = morphkv_runner::step;

// Random models attend to nothing much: to these all pages with votes are in use.
static morphkv_recall_params any_use() {
    auto res = morphkv_recall_params_default();
    res.need = 0.0f;
    return res;
}

static morphkv_status try_write_next(const context_ptr & ctx, morphkv_writing & out,
                                     const morphkv_recall_params & params = any_use()) {
    out.size = sizeof(out);
    return morphkv_write_next(ctx.get(), 0, &params, &out);
}

static morphkv_writing write_next(const context_ptr & ctx, const morphkv_recall_params & params = any_use()) {
    morphkv_writing out{};
    CHECK(try_write_next(ctx, out, params) == MORPHKV_STATUS_OK);
    return out;
}

// Writes text token by token; at which lengths something was recalled.
static std::vector<int32_t> write(const context_ptr & ctx, const tokens & text) {
    std::vector<int32_t> res;
    for (const llama_token token : text) {
        if (write_next(ctx).n_recalls > 0) {
            res.push_back(stats(ctx).logical_pos + 1);
        }
        decode_singly(ctx, { token });
        CHECK(all_finite(logits(ctx)));
    }
    return res;
}

static void test_it_comes_at_multiples_of_16(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, alone(is_beside));
    CHECK(decode(ctx, some_tokens(403)) == 0);
    const auto at = write(ctx, some_tokens(100, 2));
    CHECK(at.size() >= 2 && stats(ctx).n_recalls == (int64_t) at.size() && stats(ctx).n_recalled > 0);
    CHECK(std::all_of(at.begin(), at.end(), [](int32_t n) { return n % MORPHKV_WRITE_STEP == 0; }));
    CHECK(std::adjacent_find(at.begin(), at.end()) == at.end());
}

static void test_it_recalls_once_at_a_place(llama_model * model) {
    const auto ctx = create_archived(model, alone(false));
    CHECK(decode(ctx, some_tokens(383)) == 0);
    decode_singly(ctx, some_tokens(1, 2));
    const auto first = write_next(ctx);
    CHECK(first.n_recalls == 1 && first.recalled.n_recalled > 0 && first.recalled.n_archived > 0);
    CHECK(first.recalled.took_ms >= first.recalled.ask_ms && stats(ctx).n_recalls == 1);
    const auto state = save(ctx);
    CHECK(write_next(ctx).n_recalls == 0 && save(ctx) == state);
}

static void test_nothing_is_recalled_elsewhere(llama_model * model) {
    const auto ctx = create_archived(model, alone(false));
    CHECK(decode(ctx, some_tokens(80)) == 0);
    CHECK(write_next(ctx).n_recalls == 0);  // nothing is evicted
    CHECK(decode(ctx, some_tokens(303, 1)) == 0);
    const auto before = save(ctx);
    CHECK(write_next(ctx).n_recalls == 0 && save(ctx) == before);
    decode_singly(ctx, some_tokens(1, 2));
    // nor where no page gets as much as this
    auto params         = any_use();
    params.need         = 1e9f;
    const auto of_place = save(ctx);
    CHECK(write_next(ctx, params).n_recalls == 0 && save(ctx) == of_place);
    CHECK(write_next(ctx).n_recalls == 1);
}

// The serials of a tail that was taken back are given anew: none of its tokens asks, and none comes back.
static void test_a_draft_that_is_taken_back_asks_nothing(llama_model * model) {
    const auto plain = create_archived(model, alone(false)), drafted = create_archived(model, alone(false));
    const auto prompt = some_tokens(390), text = some_tokens(90, 5);
    CHECK(decode(plain, prompt) == 0 && decode(drafted, prompt) == 0);
    const auto at = write(plain, text);

    std::vector<int32_t> at_drafted;
    for (size_t i = 0; i < text.size(); ++i) {
        if (write_next(drafted).n_recalls > 0) {
            at_drafted.push_back(stats(drafted).logical_pos + 1);
        }
        const int32_t n      = stats(drafted).logical_pos + 1;
        const auto    now    = stats(drafted);
        const int32_t n_free = std::min(MORPHKV_WRITE_STEP - n % MORPHKV_WRITE_STEP,
                                        small_params().capacity + small_params().interval - now.n_used) -
                               1;
        decode_singly(drafted, { text[i] });
        if (n_free > 0) {
            decode_singly(drafted, some_tokens(n_free, 7 + i));
            CHECK(llama_memory_seq_rm(memory(drafted), 0, n + 1, -1));
        }
        CHECK(i + 1 < text.size() || all_finite(logits(plain)));
    }
    CHECK(at_drafted == at && !at.empty());
    CHECK(retained(plain, 0, 0) == retained(drafted, 0, 0) && retained(plain, 0, 1) == retained(drafted, 0, 1));
}

static void test_a_state_goes_on_alike(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, alone(is_beside)), other = create_archived(model, alone(is_beside));
    CHECK(decode(ctx, some_tokens(395)) == 0);
    write(ctx, some_tokens(41, 3));
    CHECK(load(other, save(ctx)));
    const auto rest = some_tokens(200, 4);
    const auto at   = write(ctx, rest);
    CHECK(at == write(other, rest) && !at.empty());
    CHECK(logits(ctx) == logits(other));
    CHECK(save(ctx) == save(other));
}

static void test_a_failure_changes_nothing(llama_model * model, step which) {
    const auto ctx = create_archived(model, alone(false));
    CHECK(decode(ctx, some_tokens(383)) == 0);
    decode_singly(ctx, some_tokens(1, 2));
    const auto before            = save(ctx);
    cache_of(ctx).inject_failure = [&](step s) {
        return s == which;
    };
    morphkv_writing out{};
    CHECK(try_write_next(ctx, out) == MORPHKV_STATUS_FAILED && strstr(morphkv_last_error(), "recall failed"));
    cache_of(ctx).inject_failure = nullptr;
    CHECK(out.n_recalls == 0 && save(ctx) == before);
    CHECK(write_next(ctx).n_recalls == 1);
}

static void test_what_is_refused(llama_model * model) {
    const auto      plain = create_plain(model, alone(false)), ctx = create_archived(model, alone(false));
    morphkv_writing out{};
    CHECK(try_write_next(plain, out) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "needs an archive"));
    auto params = any_use();
    params.need = -1.0f;
    CHECK(try_write_next(ctx, out, params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "need must not be negative"));
    params.need = NAN;
    CHECK(try_write_next(ctx, out, params) == MORPHKV_STATUS_INVALID);
    params = any_use();
    CHECK(morphkv_write_next(ctx.get(), 7, &params, &out) == MORPHKV_STATUS_INVALID);
    out.size = 1;
    CHECK(morphkv_write_next(ctx.get(), 0, &params, &out) == MORPHKV_STATUS_INVALID);
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    for (const bool is_beside : { false, true }) {
        test_it_comes_at_multiples_of_16(model.get(), is_beside);
        test_a_state_goes_on_alike(model.get(), is_beside);
    }
    test_it_recalls_once_at_a_place(model.get());
    test_nothing_is_recalled_elsewhere(model.get());
    test_a_draft_that_is_taken_back_asks_nothing(model.get());
    test_a_failure_changes_nothing(model.get(), step::ALLOC);
    test_a_failure_changes_nothing(model.get(), step::COMPUTE);
    test_what_is_refused(model.get());
    llama_backend_free();
    return 0;
}
