// A host that keeps an archive's pages, and a checkpoint of their text, has all of its state.

#include "support/archived_context.h"

static morphkv_page_range range_of(const context_ptr & ctx) {
    morphkv_page_range res{};
    res.size = sizeof(res);
    CHECK(morphkv_pages_get(ctx.get(), 0, 0, 0, nullptr, &res) == MORPHKV_STATUS_OK);
    return res;
}

static std::vector<char> records_of(const context_ptr & ctx, int64_t first, int64_t n) {
    std::vector<char> res(n * range_of(ctx).record_bytes);
    CHECK(morphkv_pages_get(ctx.get(), 0, first, n, res.data(), nullptr) == MORPHKV_STATUS_OK);
    return res;
}

static bool put(const context_ptr & ctx, const morphkv_page_range & range, const std::vector<char> & records) {
    return morphkv_pages_set(ctx.get(), 0, &range, records.data()) == MORPHKV_STATUS_OK;
}

static void test_pages_and_a_checkpoint_are_the_state(llama_model * model, bool is_beside, uint64_t max_bytes) {
    const archived_setup setup = alone(is_beside, GGML_TYPE_F16, max_bytes);
    const auto           ctx = create_archived(model, setup), other = create_archived(model, setup);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    recall(ctx);
    const auto state = save(ctx), checkpoint = save(ctx, 0, CHECKPOINT);
    auto       range = range_of(ctx);
    CHECK(range.end == (settled(ctx).n_archived + settled(ctx).n_archive_lost) / 16 && range.first_token == 0);
    CHECK((range.first > 0) == (max_bytes > 0));
    auto records = records_of(ctx, range.first, range.end - range.first);

    CHECK(put(other, range, records));
    CHECK(load(other, checkpoint, 0, CHECKPOINT));
    CHECK(save(other) == state);
    for (const auto * c : { &ctx, &other }) {
        CHECK(decode(*c, some_tokens(80, 3)) == 0);
        recall(*c);
        decode_singly(*c, some_tokens(40, 4));
    }
    CHECK(logits(ctx) == logits(other) && save(ctx) == save(other));
    CHECK(!put(other, range, records) && strstr(morphkv_last_error(), "without tokens"));
}

static void test_later_pages_do_no_harm(llama_model * model) {
    const auto setup = alone(false);
    const auto ctx = create_archived(model, setup), other = create_archived(model, setup);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    const auto state = save(ctx), checkpoint = save(ctx, 0, CHECKPOINT);
    CHECK(decode(ctx, some_tokens(300, 2)) == 0);
    const auto range = range_of(ctx);
    CHECK(put(other, range, records_of(ctx, 0, range.end)));
    CHECK(load(other, checkpoint, 0, CHECKPOINT));
    CHECK(save(other) == state);
}

static void test_pages_of_another_text_are_not_recalled(llama_model * model) {
    const auto setup = alone(false);
    const auto ctx = create_archived(model, setup), other = create_archived(model, setup);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    const auto checkpoint = save(ctx, 0, CHECKPOINT);
    llama_memory_clear(memory(ctx), true);
    CHECK(decode(ctx, some_tokens(700, 9)) == 0);
    const auto range = range_of(ctx);
    CHECK(put(other, range, records_of(ctx, 0, range.end)));
    CHECK(load(other, checkpoint, 0, CHECKPOINT));
    CHECK(settled(other).n_archived == 0 && recall(other).n_recalled == 0);
}

static void test_what_is_damaged_or_does_not_fit(llama_model * model) {
    const auto setup = alone(false);
    const auto ctx = create_archived(model, setup), other = create_archived(model, setup);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    const auto checkpoint = save(ctx, 0, CHECKPOINT);
    auto       range      = range_of(ctx);
    auto       records    = records_of(ctx, 0, range.end);
    CHECK(morphkv_pages_get(ctx.get(), 0, 1, range.end, records.data(), nullptr) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_pages_get(ctx.get(), 0, 0, 1, nullptr, nullptr) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_pages_get(create_plain(model, setup).get(), 0, 0, 0, nullptr, &range) == MORPHKV_STATUS_UNSUPPORTED);
    range.record_bytes++;
    CHECK(!put(other, range, records) && strstr(morphkv_last_error(), "record_bytes must be"));
    range.record_bytes--;

    // a page whose bytes have changed is one that cannot be read
    records[3 * range.record_bytes + 100] ^= 1;
    CHECK(put(other, range, records));
    CHECK(load(other, checkpoint, 0, CHECKPOINT));
    CHECK(stats(other).n_archive_damaged == 1 && stats(other).n_archived == stats(ctx).n_archived);
    recall(other);
    CHECK(decode(other, some_tokens(80, 3)) == 0 && all_finite(logits(other)));
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    for (const bool is_beside : { false, true }) {
        test_pages_and_a_checkpoint_are_the_state(model.get(), is_beside, 0);
        test_pages_and_a_checkpoint_are_the_state(model.get(), is_beside, 100000);
    }
    test_later_pages_do_no_harm(model.get());
    test_pages_of_another_text_are_not_recalled(model.get());
    test_what_is_damaged_or_does_not_fit(model.get());
    llama_backend_free();
    return 0;
}
