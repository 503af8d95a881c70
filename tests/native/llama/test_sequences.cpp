// What hosts do to sequences: batches of several, rollback, drafts, copies, removal.

#include "support/tiny_context.h"

#include <cstring>

// Each sequence of a batch of several gets what it would get alone.
static void test_sequences_do_not_meet(llama_model * model) {
    const auto               params = small_params();
    const auto               many   = create(model, params, context_params(3));
    std::vector<context_ptr> alone;
    for (int i = 0; i < 3; ++i) {
        alone.push_back(create(model, params, context_params()));
    }
    // prompts of different lengths, so that the sequences are cut at different times
    for (llama_seq_id s = 0; s < 3; ++s) {
        CHECK(decode(many, some_tokens(30 + 45 * s, s), { s }) == 0);
        CHECK(decode(alone[s], some_tokens(30 + 45 * s, s)) == 0);
    }
    for (const llama_token token : some_tokens(60, 9)) {
        decode_singly(many, { token }, { 0, 1, 2 });
        for (llama_seq_id s = 0; s < 3; ++s) {
            decode_singly(alone[s], { token });
            const floats a = logits(many, s), b = logits(alone[s]);
            for (size_t i = 0; i < a.size(); ++i) {
                CHECK(std::fabs(a[i] - b[i]) < 1e-2f);
            }
        }
    }
    // a batch of long prompts for all at once
    CHECK(decode(many, some_tokens(150, 11), { 0, 1, 2 }) == 0);
    CHECK(decode(many, some_tokens(100, 12), { 0, 2 }) == 0);
    for (llama_seq_id s = 0; s < 3; ++s) {
        CHECK(stats(many, s).n_used <= stats(many, s).n_limit);
        CHECK(stats(many, s).n_evictions > 0);
    }
}

static void test_a_tail_is_removed_and_decoded_again(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    const auto before = stats(ctx);

    llama_memory_t  mem    = memory(ctx);
    const llama_pos newest = before.logical_pos;
    CHECK(llama_memory_seq_pos_max(mem, 0) == newest);
    CHECK(llama_memory_seq_pos_min(mem, 0) == before.complete_pos);

    // refused without a change: the distant region, a hole
    CHECK(!llama_memory_seq_rm(mem, 0, 100, -1));
    CHECK(!llama_memory_seq_rm(mem, 0, before.complete_pos, -1));
    CHECK(!llama_memory_seq_rm(mem, 0, newest - 3, newest - 1));
    CHECK(stats(ctx).n_used == before.n_used && stats(ctx).logical_pos == newest);
    // nothing to remove
    CHECK(llama_memory_seq_rm(mem, 0, newest + 1, -1));
    CHECK(llama_memory_seq_rm(mem, 0, 5, 5));
    CHECK(stats(ctx).n_used == before.n_used);

    const tokens tail = some_tokens(3, 4);
    decode_singly(ctx, tail);
    const floats once = logits(ctx);
    CHECK(llama_memory_seq_rm(mem, 0, newest + 1, -1));
    CHECK(stats(ctx).n_used == before.n_used && stats(ctx).logical_pos == newest);
    decode_singly(ctx, tail);
    CHECK(logits(ctx) == once);

    // all at once can always be removed
    CHECK(llama_memory_seq_rm(mem, -1, -1, -1));
    CHECK(stats(ctx).n_used == 0 && stats(ctx).n_evictions == 0 && stats(ctx).logical_pos == -1);
    CHECK(llama_memory_seq_pos_min(mem, 0) == -1);
    CHECK(retained(ctx, 0, 0)[0] == -1);
}

// Room for long rollbacks between two cuts.
static morphkv_params rare_params() {
    auto res     = small_params();
    res.interval = 60;
    return res;
}

// From exact_pos on, tokens taken back and decoded again give the same bits, and so does all that follows.
static void test_a_replay_is_exact_back_to_the_last_cut(llama_model * model) {
    const auto ctx = create(model, rare_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    const llama_pos exact_pos = stats(ctx).exact_pos;
    CHECK(exact_pos == stats(ctx).logical_pos);

    const auto   state    = save(ctx);
    const tokens next     = some_tokens(200, 7);
    const auto   expected = logits_of(ctx, next);
    const auto   kept     = retained(ctx, 0, 1);
    CHECK(stats(ctx).n_evictions >= 5);

    for (const int32_t n : { 1, 2, 31, 32, 33, 50, 56 }) {
        CHECK(load(ctx, state));
        logits_of(ctx, tokens(next.begin(), next.begin() + 56));
        CHECK(stats(ctx).exact_pos == exact_pos);
        CHECK(llama_memory_seq_rm(memory(ctx), 0, exact_pos + 57 - n, -1));
        CHECK(stats(ctx).exact_pos == exact_pos);
        for (size_t i = 56 - n; i < next.size(); ++i) {
            decode_singly(ctx, { next[i] });
            CHECK(logits(ctx) == expected[i]);
        }
        CHECK(retained(ctx, 0, 1) == kept);
    }
}

// Up to 32 tokens taken back leave no trace at all: other tokens may follow, and the next cuts fall where they would have.
static void test_a_draft_taken_back_leaves_no_trace(llama_model * model) {
    const auto plain    = create(model, rare_params(), context_params());
    const auto drafting = create(model, rare_params(), context_params());
    for (const auto & ctx : { &plain, &drafting }) {
        CHECK(decode(*ctx, some_tokens(200)) == 0);
    }
    int n_cuts = 0;
    for (const llama_token token : some_tokens(300, 3)) {
        const auto    n_evictions = stats(plain).n_evictions;
        // not over the next cut: that one would have to be taken back too
        const int32_t n_free      = std::min(32, 100 - stats(plain).n_used);
        if (n_free > 0) {
            const auto newest = stats(drafting).logical_pos;
            decode_singly(drafting, some_tokens(n_free, token));
            CHECK(llama_memory_seq_rm(memory(drafting), 0, newest + 1, -1));
        }
        decode_singly(plain, { token });
        decode_singly(drafting, { token });
        CHECK(logits(plain) == logits(drafting));
        n_cuts += stats(plain).n_evictions - n_evictions;
    }
    CHECK(n_cuts >= 4 && retained(plain, 0, 1) == retained(drafting, 0, 1));
}

static void test_a_copied_sequence_goes_on_the_same(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    decode_singly(ctx, some_tokens(5, 2), { 0 });
    llama_memory_seq_cp(memory(ctx), 0, 1, 20, 30);  // a part: refused with a log line
    CHECK(stats(ctx, 1).n_used == 0);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(stats(ctx, 1).n_used == stats(ctx, 0).n_used && stats(ctx, 1).n_evicted == stats(ctx, 0).n_evicted);
    for (const llama_token token : some_tokens(30, 5)) {
        decode_singly(ctx, { token }, { 0, 1 });
        CHECK(logits(ctx, 0) == logits(ctx, 1));
    }
    CHECK(retained(ctx, 0, 1) == retained(ctx, 1, 1));
    // the copy may differ from now on
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    decode_singly(ctx, some_tokens(20, 6), { 1 });
    CHECK(stats(ctx, 0).n_used == 0 && stats(ctx, 1).logical_pos == 254);
    llama_memory_seq_add(memory(ctx), 1, 0, -1, 4);  // refused with a log line
    CHECK(stats(ctx, 1).logical_pos == 254);
    CHECK(!llama_memory_can_shift(memory(ctx)));
}

// A copy is there at once: saved, overwritten or copied on before any decode.
static void test_a_copy_does_not_wait(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(3));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(100, 2), { 2 }) == 0);
    const auto first = save(ctx, 0), other = save(ctx, 2);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx, 1) == first);
    CHECK(load(ctx, other, 1));
    CHECK(save(ctx, 1) == other);
    decode_singly(ctx, { 3 }, { 1, 2 });
    CHECK(logits(ctx, 0) == logits(ctx, 1));
    CHECK(stats(ctx, 1).logical_pos == 100);

    // of an empty sequence: the copy is empty
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(stats(ctx, 1).n_used == 0 && stats(ctx, 1).n_evictions == 0);
}

static void test_keeping_one_removes_the_others(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(3));
    CHECK(decode(ctx, some_tokens(150), { 0, 1, 2 }) == 0);
    const auto kept = stats(ctx, 1);
    llama_memory_seq_keep(memory(ctx), 1);
    CHECK(stats(ctx, 0).n_used == 0 && stats(ctx, 2).n_used == 0 && stats(ctx, 0).n_evictions == 0);
    CHECK(stats(ctx, 1).n_used == kept.n_used && stats(ctx, 1).n_evictions == kept.n_evictions);
    decode_singly(ctx, some_tokens(50, 2), { 0, 1, 2 });
}

int main() {
    log_errors_only();
    const auto model = tiny_model_load();
    test_sequences_do_not_meet(model.get());
    test_a_tail_is_removed_and_decoded_again(model.get());
    test_a_replay_is_exact_back_to_the_last_cut(model.get());
    test_a_draft_taken_back_leaves_no_trace(model.get());
    test_a_copied_sequence_goes_on_the_same(model.get());
    test_a_copy_does_not_wait(model.get());
    test_keeping_one_removes_the_others(model.get());
    return 0;
}
