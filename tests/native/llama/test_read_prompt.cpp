// A prompt is read as morphkv_prompt_next() says, by a host that decodes in batches of its own.

#include "support/archived_context.h"

#include <cstring>

static void test_a_text_with_an_archive_is_read() {
    tiny_shape shape;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get());
    CHECK(read_prompt(ctx, some_tokens(50), 1000).n_recalls == 1);  // of nothing, which the cache does not count
    CHECK(read_prompt(ctx, some_tokens(600, 2), 64).n_recalls == 2);
    CHECK(read_prompt(ctx, some_tokens(20, 3), 1000).n_recalls == 2);
    CHECK(stats(ctx).n_recalls == 4 && stats(ctx).n_recalled > 0);
}

static void test_arguments_are_checked() {
    tiny_shape shape;
    const auto model  = tiny_model_load(shape);
    const auto ctx    = create_archived(model.get());
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
    const auto ctx    = create_plain(model.get(), {});
    const auto params = morphkv_recall_params_default();
    auto       prompt = morphkv_prompt_begin(0, 8);
    CHECK(decode(ctx, some_tokens(7)) == 0);
    morphkv_recalled recalled{};
    recalled.size      = sizeof(recalled);
    const auto status  = morphkv_recall(ctx.get(), 0, &params, &recalled);
    const auto message = std::string(morphkv_last_error());
    CHECK(status != MORPHKV_STATUS_OK);
    CHECK(morphkv_prompt_next(ctx.get(), 0, &params, &prompt, 7) == status && message == morphkv_last_error());
    CHECK(prompt.n_back == 0 && prompt.n_end == 8 && prompt.n_recalls == 0);
}

int main() {
    test_a_text_with_an_archive_is_read();
    test_arguments_are_checked();
    test_a_refused_recall_has_its_sentence();
    return 0;
}
