// States, forks and rollbacks carry the archive, whoever appends to it, and within its bound.

#include "support/archived_context.h"

static void test_states_carry_the_archive(llama_model * model, bool is_beside, uint64_t max_bytes) {
    const archived_setup setup = alone(is_beside, GGML_TYPE_F16, max_bytes);
    const auto           ctx   = create_archived(model, setup);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    recall(ctx);
    decode_singly(ctx, some_tokens(20, 2));
    const auto state = save(ctx);
    const auto other = create_archived(model, setup);
    CHECK(decode(other, some_tokens(333, 5)) == 0);
    CHECK(load(other, state));
    CHECK(save(other) == state);
    for (const auto * c : { &ctx, &other }) {
        CHECK(decode(*c, some_tokens(80, 3)) == 0);
        recall(*c);
        decode_singly(*c, some_tokens(40, 4));
    }
    CHECK(logits(ctx) == logits(other) && save(ctx) == save(other));
    CHECK(retained(ctx, 0, 1) == retained(other, 0, 1));
    CHECK((settled(other).n_archive_lost > 0) == (max_bytes > 0));

    // with other settings, with damage, cut short: refused, and the context goes on
    const auto before = save(other);
    auto       bad    = state;
    bad[bad.size() / 2] ^= 1;
    CHECK(!load(create_plain(model, setup), state));
    CHECK(!load(other, state, 0, CHECKPOINT) && save(other) == before);
    for (size_t n : { state.size() - 1, state.size() / 2, state.size() / 3, size_t(50) }) {
        CHECK(!load(other, bytes(state.begin(), state.begin() + n)) && save(other) == before);
    }
    for (int i = 0; i < 3; ++i) {
        CHECK(decode(other, some_tokens(300)) == 0 && all_finite(logits(other)));
        CHECK(recall(other).n_archived > 0);
    }
}

static void test_a_checkpoint_goes_back(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, alone(is_beside));
    CHECK(decode(ctx, some_tokens(600)) == 0);
    const auto state = save(ctx), checkpoint = save(ctx, 0, CHECKPOINT);
    CHECK(checkpoint.size() < state.size() / 2);
    CHECK(decode(ctx, some_tokens(200, 2)) == 0);
    recall(ctx);
    CHECK(load(ctx, checkpoint, 0, CHECKPOINT));
    CHECK(save(ctx) == state);
    // of another text's archive nothing is left
    llama_memory_clear(memory(ctx), true);
    CHECK(decode(ctx, some_tokens(700, 9)) == 0);
    CHECK(load(ctx, checkpoint, 0, CHECKPOINT));
    CHECK(settled(ctx).n_archived == 0 && recall(ctx).n_recalled == 0);
    decode_singly(ctx, some_tokens(60, 3));
    CHECK(settled(ctx).n_archived > 0 && all_finite(logits(ctx)));
}

static void test_forks_and_rollbacks(llama_model * model, bool is_beside) {
    const auto ctx = create_archived(model, { nullptr, is_beside });
    CHECK(decode(ctx, some_tokens(600), { 0 }) == 0);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(settled(ctx, 1).n_archived == settled(ctx, 0).n_archived);
    CHECK(recall(ctx, 0).n_recalled == recall(ctx, 1).n_recalled);
    decode_singly(ctx, some_tokens(70, 2), { 0, 1 });
    CHECK(logits(ctx, 0) == logits(ctx, 1));
    CHECK(decode(ctx, some_tokens(100, 3), { 0 }) == 0);
    CHECK(settled(ctx, 1).n_archived < settled(ctx, 0).n_archived);

    // behind the last eviction: the archive is untouched; everything: it is empty
    decode_to_a_cut(ctx, 0);
    const int64_t n_archived = settled(ctx, 0).n_archived;
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx, 0).logical_pos - 1, -1));
    CHECK(settled(ctx, 0).n_archived == n_archived);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    CHECK(settled(ctx, 0).n_archived == 0 && settled(ctx, 1).n_archived > 0);
}

// The same tokens, whoever appends them, however they come.
static void test_who_appends_makes_no_difference(llama_model * model, uint64_t max_bytes) {
    std::vector<bytes> states;
    for (const bool is_beside : { false, true }) {
        archived_setup setup = { nullptr, is_beside };
        setup.max_bytes      = max_bytes;
        const auto ctx       = create_archived(model, setup);
        CHECK(decode(ctx, some_tokens(400), { 0 }) == 0 && decode(ctx, some_tokens(300, 3), { 1 }) == 0);
        for (int32_t i = 0; i < 60; ++i) {
            decode_singly(ctx, some_tokens(3, i), { 0, 1 });
        }
        CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx, 0).exact_pos, -1));
        llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
        decode_singly(ctx, some_tokens(50, 4), { 0, 1 });
        for (const llama_seq_id seq : { 0, 1 }) {
            recall(ctx, seq);
            states.push_back(save(ctx, seq));
        }
    }
    CHECK(states[0] == states[1] && states[0] == states[2] && states[0] == states[3]);
}

// max_bytes is of all sequences together, each has its share; unless another is given there is one.
static void test_a_bound_of_all_sequences(llama_model * model) {
    CHECK(morphkv_archive_params_default().max_bytes == 2ull << 30);
    int64_t n_alone = 0;
    for (const uint32_t n_seq : { 1, 2, 4 }) {
        archived_setup setup;
        setup.n_seq     = n_seq;
        setup.max_bytes = 400000;
        const auto ctx  = create_archived(model, setup);
        int64_t    n    = 0;
        for (llama_seq_id s = 0; s < (llama_seq_id) n_seq; ++s) {
            CHECK(decode(ctx, some_tokens(900, s), { s }) == 0);
            n = settled(ctx, s).n_archived / 16;
            CHECK(n == settled(ctx, 0).n_archived / 16 && settled(ctx, s).n_archive_lost > 0);
        }
        n_alone = n_seq == 1 ? n : n_alone;
        CHECK(n == n_alone / n_seq);
        CHECK(stats(ctx).archive_bytes <= 400000);
    }
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    for (const bool is_beside : { false, true }) {
        test_states_carry_the_archive(model.get(), is_beside, 0);
        test_states_carry_the_archive(model.get(), is_beside, 100000);
        test_a_checkpoint_goes_back(model.get(), is_beside);
        test_forks_and_rollbacks(model.get(), is_beside);
    }
    test_who_appends_makes_no_difference(model.get(), 0);
    test_who_appends_makes_no_difference(model.get(), 100000);
    test_a_bound_of_all_sequences(model.get());
    llama_backend_free();
    return 0;
}
