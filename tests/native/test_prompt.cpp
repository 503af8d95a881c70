// The reading of a prompt: which tokens are decoded, taken back and decoded again, and when the archive is asked.

#include "archived_context.h"
#include "core/prompt.h"

#include <cstring>
#include <stdexcept>

// A sequence of which n_removable tokens can go, and an archive that gives n_recalled tokens each time.
struct fake_sequence {
    int64_t n_recalled;
    int32_t n_removable;
    int     n_asked = 0;
    bool    fails   = false;

    void next(morphkv_prompt & prompt, int32_t n_held) {
        auto recall = [this] {
            n_asked++;
            if (fails) {
                throw std::runtime_error("fails");
            }
            morphkv_recalled res{};
            res.n_recalled = n_recalled;
            return res;
        };
        morphkv_prompt_step(prompt, n_held, recall, [this] { return n_removable; });
    }
};

static void check_next(const morphkv_prompt & prompt, int32_t n_back, int32_t n_end, int32_t n_recalls) {
    CHECK(prompt.n_back == n_back && prompt.n_end == n_end && prompt.n_recalls == n_recalls);
}

static void test_it_is_read_to_its_last_token_and_its_end_once_more() {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(10, 400);
    seq.next(prompt, 10);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 300);  // a host with smaller batches
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 128, 399, 1);
    CHECK(prompt.stage == MORPHKV_PROMPT_STAGE_AGAIN);
    seq.next(prompt, 271);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
    CHECK(prompt.stage == MORPHKV_PROMPT_STAGE_LAST);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 2);
}

static void test_what_is_decoded_again_is_new_and_can_be_taken_back() {
    for (const int32_t n_removable : { 1000, 50, 0 }) {
        for (const int32_t n_past : { 0, 380, 399 }) {
            for (const int32_t n_redo : { 128, 7, 0 }) {
                fake_sequence seq{ 16, n_removable };
                auto          prompt = morphkv_prompt_begin(n_past, 400);
                prompt.n_redo        = n_redo;
                seq.next(prompt, 399);
                const int32_t n = std::min({ n_removable, 399 - n_past, n_redo });
                check_next(prompt, n, n > 0 ? 399 : 400, 1);
            }
        }
    }
}

static void test_nothing_is_decoded_again_where_nothing_came_back() {
    fake_sequence seq{ 0, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 400);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
}

static void test_a_prompt_of_one_token_asks_once() {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 1);
    seq.next(prompt, 0);
    check_next(prompt, 0, 1, 1);
}

static void test_a_prompt_that_is_whole_asks_nothing() {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 400);
    seq.next(prompt, 400);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 0);
}

static void test_a_recall_that_fails_says_how_to_go_on() {
    fake_sequence seq{ 16, 1000 };
    seq.fails   = true;
    auto prompt = morphkv_prompt_begin(0, 400);
    try {
        seq.next(prompt, 399);
        CHECK(false);
    } catch (const std::runtime_error &) {
        check_next(prompt, 0, 400, 0);
    }
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 1);
}

// Reads text behind what the sequence holds, in batches of n_batch tokens.
static int32_t read(const context_ptr & ctx, const tokens & text, int32_t n_batch) {
    const auto    params = morphkv_recall_params_default();
    const int32_t n_past = stats(ctx).logical_pos + 1;
    const int32_t n_text = text.size();
    auto          prompt = morphkv_prompt_begin(n_past, n_past + n_text);
    int32_t       n      = 0;
    while (prompt.n_end < prompt.n_tokens) {
        const int32_t n_held = stats(ctx).logical_pos + 1;
        CHECK(morphkv_prompt_next(ctx.get(), 0, &params, &prompt, n_held) == MORPHKV_STATUS_OK);
        n += prompt.n_recalls;
        const int32_t first = n_held - prompt.n_back;
        const int32_t end   = std::min(prompt.n_end, first + n_batch);
        CHECK(llama_memory_seq_rm(memory(ctx), 0, first, -1));
        CHECK(decode(ctx, tokens(text.begin() + (first - n_past), text.begin() + (end - n_past))) == 0);
        if (prompt.n_end == prompt.n_tokens) {
            CHECK(end == prompt.n_tokens && end == first + 1);
        }
    }
    CHECK(stats(ctx).logical_pos == n_past + n_text - 1);
    return n;
}

static void test_a_text_with_an_archive_is_read() {
    tiny_shape shape;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), { nullptr });
    CHECK(read(ctx, some_tokens(50), 1000) == 1);  // of nothing, which the cache does not count
    CHECK(read(ctx, some_tokens(600, 2), 64) == 2);
    CHECK(read(ctx, some_tokens(20, 3), 1000) == 2);
    CHECK(stats(ctx).n_recalls == 4 && stats(ctx).n_recalled > 0);
}

static void test_arguments_are_checked() {
    tiny_shape shape;
    const auto model  = tiny_model_load(shape);
    const auto ctx    = create_archived(model.get(), { nullptr });
    const auto params = morphkv_recall_params_default();
    auto       prompt = morphkv_prompt_begin(0, 8);
    auto       next   = [&](int32_t n_held) {
        return morphkv_prompt_next(ctx.get(), 0, &params, &prompt, n_held);
    };
    CHECK(next(9) == MORPHKV_STATUS_INVALID && !strcmp(morphkv_last_error(), "n_held must be in 0..8, got 9"));
    CHECK(next(-1) == MORPHKV_STATUS_INVALID);
    prompt.stage = 3;
    CHECK(next(0) == MORPHKV_STATUS_INVALID && !strcmp(morphkv_last_error(), "prompt.stage must be in 0..2, got 3"));
    prompt.size = 1;
    CHECK(next(0) == MORPHKV_STATUS_INVALID);
}

// A context without an archive: the recall's sentence, and the prompt goes on.
static void test_a_refused_recall_has_its_sentence() {
    tiny_shape shape;
    const auto model  = tiny_model_load(shape);
    const auto ctx    = create_plain(model.get());
    const auto params = morphkv_recall_params_default();
    auto       prompt = morphkv_prompt_begin(0, 8);
    CHECK(decode(ctx, some_tokens(7)) == 0);
    morphkv_recalled recalled{};
    recalled.size      = sizeof(recalled);
    const auto status  = morphkv_recall(ctx.get(), 0, &params, &recalled);
    const auto message = std::string(morphkv_last_error());
    CHECK(status != MORPHKV_STATUS_OK);
    CHECK(morphkv_prompt_next(ctx.get(), 0, &params, &prompt, 7) == status && message == morphkv_last_error());
    check_next(prompt, 0, 8, 0);
}

int main() {
    test_it_is_read_to_its_last_token_and_its_end_once_more();
    test_what_is_decoded_again_is_new_and_can_be_taken_back();
    test_nothing_is_decoded_again_where_nothing_came_back();
    test_a_prompt_of_one_token_asks_once();
    test_a_prompt_that_is_whole_asks_nothing();
    test_a_recall_that_fails_says_how_to_go_on();
    test_a_text_with_an_archive_is_read();
    test_arguments_are_checked();
    test_a_refused_recall_has_its_sentence();
    return 0;
}
