// Marks: a text with recurrent layers goes back to where it was marked, and nowhere else.

#include "support/archived_context.h"
#include "support/hybrid_model.h"

// No eviction in the tests below.
static morphkv_params large_params() {
    auto res     = small_params();
    res.capacity = 1500;
    return res;
}

static void mark(const context_ptr & ctx, llama_seq_id seq = 0) {
    CHECK(morphkv_mark_set(ctx.get(), seq) == MORPHKV_STATUS_OK);
}

static bool go_back(const context_ptr & ctx, llama_seq_id seq = 0) {
    const auto mark_pos = stats(ctx, seq).mark_pos;
    const bool res      = mark_pos > 0 && llama_memory_seq_rm(memory(ctx), seq, mark_pos, -1);
    CHECK(!res || stats(ctx, seq).logical_pos == mark_pos - 1);
    return res;
}

static void test_tokens_are_decoded_again_with_the_same_bits(llama_model * model) {
    const auto ctx      = create(model, large_params(), context_params());
    const auto straight = create(model, large_params(), context_params());
    CHECK(decode(ctx, some_tokens(60)) == 0 && decode(straight, some_tokens(60)) == 0);
    const auto expected = logits_of(straight, some_tokens(40, 2));

    mark(ctx);
    CHECK(stats(ctx).mark_pos == 60 && stats(ctx).complete_pos == 59);
    CHECK(logits_of(ctx, some_tokens(40, 2)) == expected);
    for (const uint32_t seed : { 3, 4, 5 }) {
        CHECK(go_back(ctx));
        CHECK(decode(ctx, some_tokens(seed * 10, seed)) == 0);  // another text meanwhile
        CHECK(go_back(ctx) && logits_of(ctx, some_tokens(40, 2)) == expected);
    }
    CHECK(logits_of(ctx, some_tokens(20, 8)) == logits_of(straight, some_tokens(20, 8)));

    // a batch, and one after it
    CHECK(go_back(ctx));
    const auto again = create(model, large_params(), context_params());
    CHECK(decode(again, some_tokens(60)) == 0);
    for (const auto & c : { &ctx, &again }) {
        CHECK(decode(*c, some_tokens(50, 6)) == 0);
        decode_singly(*c, some_tokens(5, 7));
    }
    CHECK(logits(ctx) == logits(again));
}

static void test_behind_evictions_too(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    mark(ctx);
    const auto before = stats(ctx);
    const auto first  = logits_of(ctx, some_tokens(5, 2));
    CHECK(stats(ctx).n_evictions == before.n_evictions);
    CHECK(go_back(ctx) && logits_of(ctx, some_tokens(5, 2)) == first);

    // an eviction that leaves what is behind the mark, and one that does not
    CHECK(go_back(ctx));
    decode_to_a_cut(ctx);
    CHECK(stats(ctx).mark_pos == before.logical_pos + 1 && go_back(ctx));
    decode_to_a_cut(ctx);
    decode_to_a_cut(ctx);
    decode_to_a_cut(ctx);
    const auto state = save(ctx);
    CHECK(stats(ctx).mark_pos == -1);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, before.logical_pos + 1, -1) && save(ctx) == state);
    mark(ctx);
    CHECK(stats(ctx).mark_pos == stats(ctx).logical_pos + 1);
    decode_singly(ctx, some_tokens(3));
    CHECK(go_back(ctx));
}

static void test_no_other_tail_can_be_taken_back(llama_model * model) {
    const auto ctx = create(model, large_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(30), { 0, 1 }) == 0);
    mark(ctx);
    decode_singly(ctx, some_tokens(5), { 0, 1 });
    const auto state = save(ctx);
    for (const llama_pos p0 : { 1, 29, 31, 34 }) {
        CHECK(!llama_memory_seq_rm(memory(ctx), 0, p0, -1));
    }
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, 30, 34));  // a hole
    // of all sequences, of which one has no mark: none
    CHECK(!llama_memory_seq_rm(memory(ctx), -1, 30, -1) && save(ctx) == state);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 35, -1) && save(ctx) == state);  // nothing is there

    mark(ctx, 1);
    CHECK(stats(ctx, 0).mark_pos == 30 && stats(ctx, 1).mark_pos == 35);
    CHECK(llama_memory_seq_rm(memory(ctx), 1, -1, -1) && stats(ctx, 1).mark_pos == -1);
    CHECK(llama_memory_seq_rm(memory(ctx), -1, 30, -1) && stats(ctx).logical_pos == 29);
}

static void test_marks_end_with_their_text(llama_model * model) {
    const auto ctx = create(model, large_params(), context_params(2));
    mark(ctx);
    CHECK(stats(ctx).mark_pos == -1);  // nothing to mark
    CHECK(decode(ctx, some_tokens(30)) == 0);
    const auto state = save(ctx);

    auto check_none = [&] {
        CHECK(stats(ctx).mark_pos == -1 && !llama_memory_seq_rm(memory(ctx), 0, 30, -1));
    };
    mark(ctx);
    CHECK(load(ctx, state));
    decode_singly(ctx, { 1 });
    check_none();

    CHECK(load(ctx, state));
    mark(ctx);
    const auto whole = save_all(ctx);
    CHECK(load_all(ctx, whole));
    decode_singly(ctx, { 1 });
    check_none();

    CHECK(load(ctx, state));
    mark(ctx);
    llama_memory_clear(memory(ctx), true);
    CHECK(decode(ctx, some_tokens(31)) == 0);
    check_none();

    mark(ctx);
    llama_memory_seq_keep(memory(ctx), 1);
    CHECK(decode(ctx, some_tokens(32)) == 0);
    CHECK(stats(ctx).mark_pos == -1);
}

// They hold no marks, and are the same with one.
static void test_states(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(100), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(30, 2), { 1 }) == 0);
    const auto state = save(ctx), whole = save_all(ctx);
    mark(ctx, 0);
    mark(ctx, 1);
    CHECK(save(ctx) == state && save_all(ctx) == whole && save_all(ctx).size() == whole.size());

    // apart from their marks now
    decode_singly(ctx, some_tokens(3, 3), { 0, 1 });
    const auto later = save(ctx), later_whole = save_all(ctx);
    CHECK(load_all(ctx, later_whole) && save_all(ctx) == later_whole);
    const auto other = create(model, small_params(), context_params(2));
    CHECK(load_all(other, later_whole) && save(other) == later);
    for (const auto & c : { &ctx, &other }) {
        decode_singly(*c, some_tokens(40, 4), { 0, 1 });
    }
    CHECK(logits(ctx, 0) == logits(other, 0) && logits(ctx, 1) == logits(other, 1));
}

static void test_a_copy_has_the_mark_too(llama_model * model) {
    const auto ctx = create(model, large_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(30)) == 0);
    mark(ctx);
    decode_singly(ctx, some_tokens(6, 2));
    CHECK(decode(ctx, some_tokens(20), { 1 }) == 0);
    mark(ctx, 1);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(stats(ctx, 1).mark_pos == 30);
    CHECK(go_back(ctx, 1) && stats(ctx, 0).logical_pos == 35);
    const auto first = logits_of(ctx, some_tokens(9, 3), 1);
    CHECK(go_back(ctx, 0) && logits_of(ctx, some_tokens(9, 3), 0) == first);
    CHECK(save(ctx, 0) == save(ctx, 1));
}

// Three texts that are marked, go back and are copied as it comes, always decoded in one batch. A context that takes states
// instead says what comes out.
static void test_texts_do_not_disturb_each_other(llama_model * model) {
    constexpr llama_seq_id N_SEQ = 3;
    const auto             ctx   = create(model, large_params(), context_params(N_SEQ));
    const auto             other = create(model, large_params(), context_params(N_SEQ));
    bytes                  marked[N_SEQ];
    std::mt19937           rng(1);
    int                    n_back = 0;
    for (int i = 0; i < 400; ++i) {
        const llama_seq_id seq = rng() % N_SEQ, from = rng() % N_SEQ;
        switch (rng() % 6) {
            case 0: {
                if (stats(ctx, seq).logical_pos >= 0) {
                    mark(ctx, seq);
                    marked[seq] = save(other, seq);
                }
            } break;
            case 1: {
                const bool goes = !marked[seq].empty();
                CHECK(go_back(ctx, seq) == goes);
                CHECK(!goes || load(other, marked[seq], seq));
                n_back += goes;
            } break;
            case 2: {
                if (seq != from && stats(ctx, from).logical_pos >= 0 && rng() % 2) {
                    llama_memory_seq_cp(memory(ctx), from, seq, -1, -1);
                    llama_memory_seq_cp(memory(other), from, seq, -1, -1);
                    marked[seq] = marked[from];
                }
            } break;
            default: {
                const auto                                   token = some_tokens(1, rng());
                // neighbours, or all
                const std::vector<std::vector<llama_seq_id>> some  = { { 0 },    { 1 },    { 2 },
                                                                       { 0, 1 }, { 1, 2 }, { 0, 1, 2 } };
                const auto &                                 seqs  = some[rng() % some.size()];
                decode_singly(ctx, token, seqs);
                decode_singly(other, token, seqs);
                for (size_t j = 0; j < seqs.size(); ++j) {
                    CHECK(logits(ctx, j) == logits(other, j));
                }
            }
        }
    }
    CHECK(n_back > 30);
}

static void test_what_they_cost(llama_model * model) {
    const auto     ctx    = create(model, small_params(), context_params(3));
    auto &         hybrid = dynamic_cast<morphkv_hybrid &>(*(llama_memory_i *) memory(ctx));
    const uint64_t n_row  = 2 * 2 * 64 * 4;  // of two layers
    morphkv_stats  without{};
    hybrid.get_cache().get_stats(0, without);
    CHECK(stats(ctx).extra_bytes == without.extra_bytes + 3 * n_row);
}

static void test_a_plain_model_needs_none() {
    const auto model = tiny_model_load(tiny_shape{});
    const auto ctx   = create(model.get(), small_params(), context_params());
    CHECK(decode(ctx, some_tokens(30)) == 0);
    mark(ctx);
    CHECK(stats(ctx).mark_pos == -1 && llama_memory_seq_rm(memory(ctx), 0, 20, -1));
    CHECK(morphkv_mark_set(ctx.get(), 1) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "seq_id must be in 0..0, got 1"));
}

//
// prompts
//

// Its answer begins at the mark: asked for again it is the same, bit by bit where no eviction has come since. Whether none has.
static bool check_asked_again(const context_ptr & ctx, llama_token last, const prompt_reading & reading, bool recalls) {
    CHECK(stats(ctx).mark_pos == stats(ctx).logical_pos);
    const auto first    = logits(ctx);
    const auto answer   = logits_of(ctx, some_tokens(4, 2));
    const bool is_exact = stats(ctx).n_evictions == reading.n_evictions;
    CHECK(go_back(ctx) && read_prompt(ctx, { last }, 50, recalls).n_decoded == 1);
    if (is_exact) {
        CHECK(logits(ctx) == first && logits_of(ctx, some_tokens(4, 2)) == answer);
    }
    return is_exact;
}

// Its end is decoded twice, whenever evictions come.
static void test_prompts_are_read_twice(llama_model * model) {
    auto params        = small_params();
    params.capacity    = 100;
    params.interval    = 30;
    params.prompt_room = 60;
    const auto ctx     = create(model, params, context_params());
    CHECK(start_archive(ctx, alone(false)));
    read_prompt(ctx, some_tokens(300), 64);
    int n_twice = 0, n_prompts = 0, n_exact = 0;
    for (int32_t n = 9; n < 160; n += 7) {
        const auto text    = some_tokens(n, n);
        const auto reading = read_prompt(ctx, text, 50);
        CHECK(reading.n_recalls == 1 ? reading.n_decoded == n : reading.n_recalls == 2 && reading.n_decoded > n);
        n_twice += reading.n_recalls == 2;
        n_prompts++;
        n_exact += check_asked_again(ctx, text.back(), reading, /*recalls =*/true);
        decode_singly(ctx, some_tokens(n % 5, 3));
    }
    // where nothing comes back, once is enough
    CHECK(n_twice > 3 * n_prompts / 4 && n_exact > 3);
    CHECK(stats(ctx).n_evictions > 20);
}

// What a reading decodes again is what straight decoding gives after the same recall.
static void test_a_second_reading_is_a_first_one_behind_a_recall(llama_model * model) {
    const auto text = some_tokens(25, 2);
    const auto ctx = create_archived(model, alone(false)), straight = create_archived(model, alone(false));
    for (const auto & c : { &ctx, &straight }) {
        read_prompt(*c, some_tokens(400), 64);
        decode_to_a_cut(*c);
    }
    const auto n_past = stats(ctx).logical_pos + 1;
    const auto params = morphkv_recall_params_default();

    // by hand, and without a mark: a state brings the text back to where the prompt began
    auto recurrent_of = [](const context_ptr & c) {
        const auto state = save(c);
        return bytes(state.end() - 2 * (2 * 64 * 4) - 60, state.end());
    };
    const auto before = recurrent_of(straight);
    CHECK(recurrent_of(ctx) == before);
    mark(ctx);
    CHECK(decode(ctx, tokens(text.begin(), text.end() - 1)) == 0 && recurrent_of(ctx) != before);
    CHECK(stats(ctx).n_evictions == stats(straight).n_evictions);
    CHECK(go_back(ctx) && stats(ctx).logical_pos == n_past - 1 && recurrent_of(ctx) == before);
    for (const auto & c : { &ctx, &straight }) {
        recall(*c, 0, params);
        CHECK(decode(*c, tokens(text.begin(), text.end() - 1)) == 0);
        recall(*c, 0, params);
        decode_singly(*c, { text.back() });
    }
    CHECK(logits(ctx) == logits(straight) && recurrent_of(ctx) == recurrent_of(straight));
}

static void test_without_an_archive_answers_can_be_asked_for_again(llama_model * model) {
    const auto ctx     = create(model, small_params(), context_params());
    int        n_exact = 0;
    for (int32_t n = 50; n < 100; n += 3) {
        const auto text    = some_tokens(n, n);
        const auto reading = read_prompt(ctx, text, 40, /*recalls =*/false);
        CHECK(reading.n_decoded == n);
        n_exact += check_asked_again(ctx, text.back(), reading, /*recalls =*/false);
    }
    CHECK(n_exact > 1);
}

int main() {
    log_errors_only();
    const auto plain = hybrid_model_load(), windowed = hybrid_model_load(/*has_window =*/true);
    for (const auto & model : { plain.get(), windowed.get() }) {
        test_tokens_are_decoded_again_with_the_same_bits(model);
        test_behind_evictions_too(model);
        test_no_other_tail_can_be_taken_back(model);
        test_marks_end_with_their_text(model);
        test_states(model);
        test_a_copy_has_the_mark_too(model);
        test_texts_do_not_disturb_each_other(model);
        test_what_they_cost(model);
        test_prompts_are_read_twice(model);
        test_without_an_archive_answers_can_be_asked_for_again(model);
    }
    test_a_second_reading_is_a_first_one_behind_a_recall(plain.get());
    test_a_plain_model_needs_none();
    return 0;
}
