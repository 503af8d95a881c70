// A model whose layers are in part recurrent: those that attend are cut, and all layers hold the same text.

#include "support/hybrid_model.h"
#include "support/inside.h"

#include <cstring>
#include <filesystem>

static morphkv_hybrid & hybrid_of(const context_ptr & ctx) {
    return dynamic_cast<morphkv_hybrid &>(*(llama_memory_i *) memory(ctx));
}

static void test_bit_equal_to_stock_until_the_first_eviction(llama_model * model) {
    auto params         = small_params();
    params.capacity     = 200;
    const auto  cparams = context_params(2);
    const auto  ctx     = create(model, params, cparams);
    context_ptr stock(llama_init_from_model(model, cparams));

    for (const auto & c : { &ctx, (const context_ptr *) &stock }) {
        CHECK(decode(*c, some_tokens(100), { 0 }) == 0);
        CHECK(decode(*c, some_tokens(60, 2), { 0, 1 }) == 0);
    }
    CHECK(logits(ctx, 59) == logits(stock, 59) && logits(ctx, 119) == logits(stock, 119));
    int32_t n_equal = 0;
    for (const llama_token token : some_tokens(80, 3)) {
        decode_singly(ctx, { token }, { 0, 1 });
        decode_singly(stock, { token }, { 0, 1 });
        if (stats(ctx).n_evictions == 0) {
            CHECK(logits(ctx, 0) == logits(stock, 0) && logits(ctx, 1) == logits(stock, 1));
            n_equal++;
        }
    }
    CHECK(n_equal > 40 && stats(ctx).n_evictions > 0 && all_finite(logits(ctx)));
    CHECK(logits(ctx, 0) != logits(stock, 0) && logits(ctx, 1) == logits(stock, 1));

    // K and V of 2 layers and 2 sequences in f16, and of no recurrent state
    const uint64_t n_bytes = 2 * 2 * 32 * 2;  // of a cell of each sequence, a layer
    const auto &   window  = hybrid_of(ctx).get_cache().window;
    const uint64_t n_cells = stats(ctx).n_cells + (window ? window->get_size() : stats(ctx).n_cells);
    CHECK(stats(ctx).kv_bytes == n_bytes * n_cells && morphkv_kv_bytes(ctx.get()) == stats(ctx).kv_bytes);
    CHECK(morphkv_kv_bytes(stock.get()) == n_bytes * 2 * 2048);
    int32_t n_head_kv, n_distant;
    CHECK(morphkv_retained_shape(ctx.get(), 0, &n_head_kv, &n_distant) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "layer must be one that has a KV cache, got 0"));
}

// What a first layer that attends keeps depends on the tokens alone: it is what the same layer keeps in a model without
// recurrent layers.
static void test_a_layer_keeps_what_it_keeps_in_a_plain_model() {
    auto mixed         = hybrid_shape();
    mixed.is_recurrent = { 0, 1, 1, 1 };
    auto all           = mixed;
    all.arch           = "qwen3";
    all.is_recurrent   = {};
    const auto a = tiny_model_load(mixed), b = tiny_model_load(all);
    const auto ctx_a    = create(a.get(), small_params(), context_params());
    const auto ctx_b    = create(b.get(), small_params(), context_params());
    const auto tokens_1 = some_tokens(150), tokens_2 = some_tokens(100, 2);
    CHECK(decode(ctx_a, tokens_1) == 0 && decode(ctx_b, tokens_1) == 0);
    for (const llama_token token : tokens_2) {
        decode_singly(ctx_a, { token });
        decode_singly(ctx_b, { token });
        CHECK(retained(ctx_a, 0, 0) == retained(ctx_b, 0, 0));
    }
    CHECK(stats(ctx_a).n_evictions > 10);
    CHECK(stats(ctx_a).n_evictions == stats(ctx_b).n_evictions && stats(ctx_a).n_used == stats(ctx_b).n_used);
}

static void test_a_tail_cannot_be_taken_back(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(30)) == 0);
    const auto before = save(ctx);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, 29, -1) && !llama_memory_seq_rm(memory(ctx), -1, 3, -1));
    CHECK(save(ctx) == before);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 30, -1));  // nothing
    CHECK(stats(ctx).complete_pos == 29 && stats(ctx).exact_pos == 30);
    CHECK(llama_memory_seq_pos_min(memory(ctx), 0) == 29 && llama_memory_seq_pos_max(memory(ctx), 0) == 29);

    const auto expected = logits_of(ctx, some_tokens(60, 2));
    for (const llama_seq_id seq : { 0, -1 }) {
        CHECK(llama_memory_seq_rm(memory(ctx), seq, -1, -1));
        CHECK(llama_memory_seq_pos_max(memory(ctx), 0) == -1 && stats(ctx).n_used == 0);
        CHECK(decode(ctx, some_tokens(30)) == 0);
        CHECK(logits_of(ctx, some_tokens(60, 2)) == expected);
    }
}

static void test_copies_and_states_go_on_the_same(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(3));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1, 2 }) == 0);
    const auto own = save(ctx, 1);
    llama_memory_seq_cp(memory(ctx), 0, 1, 20, 30);  // a part: refused with a log line
    CHECK(save(ctx, 1) == own);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    const auto state = save(ctx, 0);
    CHECK(save(ctx, 1) == state);
    CHECK(load(ctx, state, 2));

    const auto other = create(model, small_params(), context_params(3));
    CHECK(load(other, state, 2));
    for (const llama_token token : some_tokens(60, 5)) {
        decode_singly(ctx, { token }, { 0, 1, 2 });
        CHECK(logits(ctx, 0) == logits(ctx, 1) && logits(ctx, 0) == logits(ctx, 2));
    }
    // alone in a batch, the matrices are multiplied in another order
    const auto again = create(model, small_params(), context_params(3));
    CHECK(load(again, state, 0));
    for (const llama_token token : some_tokens(60, 5)) {
        decode_singly(other, { token }, { 2 });
        decode_singly(again, { token }, { 0 });
        CHECK(logits(other) == logits(again));
    }
    CHECK(save(other, 2) == save(again, 0));

    CHECK(load_all(again, save_all(ctx)));
    decode_singly(ctx, { 3 }, { 0, 1, 2 });
    decode_singly(again, { 3 }, { 0, 1, 2 });
    CHECK(logits(ctx, 1) == logits(again, 1));

    llama_memory_seq_keep(memory(ctx), 1);
    CHECK(llama_memory_seq_pos_max(memory(ctx), 0) == -1 && llama_memory_seq_pos_max(memory(ctx), 1) > 0);
    decode_singly(ctx, some_tokens(9), { 0, 1 });
    llama_memory_clear(memory(ctx), true);
    CHECK(llama_memory_seq_pos_max(memory(ctx), 1) == -1);
}

// Bytes of the recurrent part of a sequence's state, of 2 layers: cells; position, sequences; transposed, layers; for each R
// type, size of a row, row; the same for S, which this model has not; an end.
static constexpr size_t N_ROW       = 2 * 64 * 4;
static constexpr size_t N_RECURRENT = 4 + 8 + 8 + 2 * (4 + 8 + N_ROW) + 2 * (4 + 8) + 8;

static void test_a_refused_state_changes_nothing(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(100), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(99), { 1 }) == 0);
    const auto state = save(ctx, 0), shorter = save(ctx, 1);
    auto       check_refused = [&](const bytes & damaged) {
        for (const llama_seq_id seq : { 0, 1 }) {
            CHECK(!load(ctx, damaged, seq));
            CHECK(save(ctx, 0) == state && save(ctx, 1) == shorter);
        }
    };
    for (size_t i = 12; i < 400; i += 5) {
        auto damaged = state;
        damaged[i] ^= 0x41;
        check_refused(damaged);
    }
    // each number of the recurrent part: cells, another position, ...
    const size_t at = state.size() - N_RECURRENT;
    for (const size_t i : { 0, 4, 8, 12, 16, 20, 24, 28, 36 + (int) N_ROW, 48 + 2 * (int) N_ROW }) {
        for (const int32_t more : { 1, -1, 1 << 30 }) {
            auto    damaged = state;
            int32_t value;
            memcpy(&value, &damaged[at + i], sizeof(value));
            value = (uint32_t) value + more;
            memcpy(&damaged[at + i], &value, sizeof(value));
            check_refused(damaged);
        }
    }
    // llama.cpp's reader ends the process over two cells of one sequence
    auto twice = state;
    twice[at]  = 2;
    twice.insert(twice.begin() + at + 4, state.begin() + at + 4, state.begin() + at + 12);
    check_refused(twice);
    for (const size_t n : { 1, 7, 8, 9, 100, 1000, 2000 }) {
        check_refused(bytes(state.begin(), state.end() - n));
    }
    // a recurrent part of another text
    auto mixed = state;
    std::copy(shorter.end() - N_RECURRENT, shorter.end(), mixed.end() - N_RECURRENT);
    check_refused(mixed);
    CHECK(load(ctx, state, 1) && save(ctx, 1) == state);
}

static void test_a_refused_state_of_all_sequences_changes_nothing(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(3));
    CHECK(decode(ctx, some_tokens(100), { 0 }) == 0);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(decode(ctx, some_tokens(30), { 2 }) == 0);
    const auto   whole       = save_all(ctx);
    // two cells, one of them of two sequences, whose ids follow the position
    const size_t n_recurrent = N_RECURRENT + 8 + 3 * 4 + 2 * N_ROW;
    const size_t at          = whole.size() - n_recurrent;
    int32_t      head[8];
    memcpy(head, &whole[at], sizeof(head));
    CHECK(head[0] == 2 && head[2] + head[head[2] == 2 ? 6 : 5] == 3);
    for (size_t i = 0; i < std::size(head); ++i) {
        for (const int32_t value : { 0, 1, 2, 3, -1, 1 << 30 }) {
            if (value == head[i]) {
                continue;
            }
            auto damaged = whole;
            memcpy(&damaged[at + 4 * i], &value, sizeof(value));
            CHECK(!load_all(ctx, damaged) && save_all(ctx) == whole);
        }
    }
    CHECK(load_all(ctx, whole) && save_all(ctx) == whole);
}

// llama.cpp's reader of files gives less than was asked for without a word.
static void test_a_file_without_its_end_changes_nothing(llama_model * model) {
    const auto        ctx  = create(model, small_params(), context_params());
    const std::string path = "test_hybrid.state";
    CHECK(decode(ctx, some_tokens(100)) == 0);
    const auto  state = save(ctx);
    llama_token token = 0;
    size_t      n     = 0;
    CHECK(llama_state_seq_save_file(ctx.get(), path.c_str(), 0, &token, 1) > 0);
    const size_t n_file = std::filesystem::file_size(path);
    CHECK(llama_state_seq_load_file(ctx.get(), path.c_str(), 0, &token, 1, &n) == n_file);
    decode_singly(ctx, some_tokens(3));
    const auto before = save(ctx);
    CHECK(before != state);
    for (const size_t n_missing : { 1, 8, 20, 300, 1200 }) {
        std::filesystem::resize_file(path, n_file - n_missing);
        CHECK(llama_state_seq_load_file(ctx.get(), path.c_str(), 0, &token, 1, &n) == 0);
        CHECK(save(ctx) == before);
    }
    std::remove(path.c_str());
}

static void test_a_failed_eviction_leaves_all_in_step(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0, 1 }) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(5, 3));
    const auto before = save(ctx, 0), bystander = save(ctx, 1);
    auto &     cache = hybrid_of(ctx).get_cache();

    cache.inject_failure = [](morphkv_runner::step s) {
        return s == morphkv_runner::step::ALLOC;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(save(ctx) == before);

    cache.inject_failure = [](morphkv_runner::step s) {
        return s == morphkv_runner::step::COMPUTE;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(stats(ctx).n_used == 0 && llama_memory_seq_pos_max(memory(ctx), 0) == -1);
    CHECK(save(ctx, 1) == bystander);

    cache.inject_failure = nullptr;
    CHECK(load(ctx, before));
    decode_singly(ctx, some_tokens(30, 4), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// The recurrent layers have snapshots of the last tokens (n_rs_seq): a draft is decoded, and what was wrong in it taken back.
static void test_drafts(llama_model * model) {
    auto cparams     = context_params(2);
    cparams.n_rs_seq = 4;
    auto params      = small_params();
    params.capacity  = 120;
    const auto  ctx  = create(model, params, cparams);
    context_ptr stock(llama_init_from_model(model, cparams));
    CHECK(decode(ctx, some_tokens(50), { 0, 1 }) == 0 && decode(stock, some_tokens(50), { 0, 1 }) == 0);
    CHECK(stats(ctx).complete_pos == 49 - 4 || stats(ctx).complete_pos == 49);  // as the prompt came in micro-batches

    int32_t      n_equal = 0;
    std::mt19937 rng(1);
    for (int i = 0; i < 60; ++i) {
        const auto    seqs      = i % 3 ? std::vector<llama_seq_id>{ 0, 1 } : std::vector<llama_seq_id>{ 1 };
        const int32_t n_wrong   = rng() % 5;
        const auto    draft     = some_tokens(5, 10 + i);
        const bool    is_before = stats(ctx, 1).n_evictions == 0;
        CHECK(decode(ctx, draft, seqs, want::ALL) == 0);
        if (is_before) {
            CHECK(decode(stock, draft, seqs, want::ALL) == 0);
        }
        for (const llama_seq_id seq : seqs) {
            const auto s = stats(ctx, seq);
            CHECK(s.complete_pos == s.logical_pos - 4 && s.exact_pos >= s.complete_pos + 1);
            CHECK(!llama_memory_seq_rm(memory(ctx), seq, s.complete_pos, -1));
            CHECK(llama_memory_seq_rm(memory(ctx), seq, s.logical_pos + 1 - n_wrong, -1));
            CHECK(n_wrong == 0 || stats(ctx, seq).complete_pos == stats(ctx, seq).logical_pos);
            CHECK(!is_before || llama_memory_seq_rm(memory(stock), seq, s.logical_pos + 1 - n_wrong, -1));
        }
        if (is_before && stats(ctx, 1).n_evictions == 0) {
            for (size_t j = 0; j < 5 * seqs.size(); ++j) {
                CHECK(logits(ctx, j) == logits(stock, j));
            }
            n_equal++;
        }
    }
    CHECK(n_equal > 10 && n_equal < 40 && stats(ctx, 0).n_evictions > 2 && all_finite(logits(ctx)));

    // what is taken back is in no state
    CHECK(decode(ctx, some_tokens(5), { 0 }, want::ALL) == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos - 2, -1));
    const auto other = create(model, params, cparams);
    CHECK(load(other, save(ctx)) && load_all(other, save_all(ctx)));
    CHECK(logits_of(ctx, some_tokens(9)) == logits_of(other, some_tokens(9)));

    // a copy has lost it, too
    CHECK(decode(ctx, some_tokens(5), { 0 }, want::ALL) == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos - 2, -1));
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx, 0) == save(ctx, 1) && !save_all(ctx).empty());
    CHECK(!llama_memory_seq_rm(memory(ctx), 1, stats(ctx, 1).logical_pos, -1));
    CHECK(logits_of(ctx, some_tokens(9), 1) == logits_of(ctx, some_tokens(9), 0));
}

// A draft behind a mark, and one that begins before it.
static void test_drafts_and_marks(llama_model * model) {
    auto cparams     = context_params();
    cparams.n_rs_seq = 4;
    auto params      = small_params();
    params.capacity  = 200;
    const auto ctx   = create(model, params, cparams);
    CHECK(decode(ctx, some_tokens(50)) == 0);
    CHECK(morphkv_mark_set(ctx.get(), 0) == MORPHKV_STATUS_OK);
    const auto first = logits_of(ctx, some_tokens(5, 2));
    CHECK(decode(ctx, some_tokens(5, 3), { 0 }, want::ALL) == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 57, -1) && stats(ctx).mark_pos == 50);
    decode_singly(ctx, some_tokens(2));
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 50, -1));
    CHECK(logits_of(ctx, some_tokens(5, 2)) == first);

    // a mark at its end goes with what is taken back; then there is nothing to mark before the next token
    CHECK(decode(ctx, some_tokens(5, 3), { 0 }, want::ALL) == 0);
    CHECK(morphkv_mark_set(ctx.get(), 0) == MORPHKV_STATUS_OK && stats(ctx).mark_pos == 60);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 58, -1) && stats(ctx).mark_pos == -1);
    CHECK(morphkv_mark_set(ctx.get(), 0) == MORPHKV_STATUS_OK && stats(ctx).mark_pos == -1);
    decode_singly(ctx, { 7 });
    CHECK(morphkv_mark_set(ctx.get(), 0) == MORPHKV_STATUS_OK && stats(ctx).mark_pos == 59);
    const auto next = logits_of(ctx, some_tokens(5, 4));
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 59, -1) && logits_of(ctx, some_tokens(5, 4)) == next);
}

// One kind of layer each: attends to all, to a window, recurrent.
static void test_three_kinds_of_layers(llama_model * model) {
    auto params        = small_params();
    params.capacity    = 100;
    params.rope_limit  = 400;
    const auto ctx     = create(model, params, context_params());
    const auto archive = morphkv_archive_params_default();
    CHECK(morphkv_archive_start(ctx.get(), &archive) == MORPHKV_STATUS_OK);
    CHECK(decode(ctx, some_tokens(300)) == 0);
    decode_singly(ctx, some_tokens(500, 2));
    const auto s = stats(ctx);
    CHECK(s.n_evictions > 30 && s.n_rebases > 0 && s.n_archived > 700 && all_finite(logits(ctx)));
    int32_t n_head_kv, n_distant;
    CHECK(morphkv_retained_shape(ctx.get(), 1, &n_head_kv, &n_distant) == MORPHKV_STATUS_OK);
    CHECK(morphkv_retained_shape(ctx.get(), 3, &n_head_kv, &n_distant) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "layer must be one that has a KV cache, got 3, which has a sliding window"));

    auto all_slots  = morphkv_recall_params_default();
    all_slots.share = 1.0f;
    morphkv_recalled got{};
    got.size = sizeof(got);
    CHECK(morphkv_recall(ctx.get(), 0, &all_slots, &got) == MORPHKV_STATUS_OK && got.n_recalled > 0);
    decode_singly(ctx, some_tokens(50, 3));
    CHECK(all_finite(logits(ctx)));
}

static void test_windows_alone_are_refused() {
    auto shape              = hybrid_shape();
    shape.has_window        = true;
    const auto      model   = tiny_model_load(shape);
    const auto      cparams = context_params();
    const auto      params  = small_params();
    llama_context * ctx     = nullptr;
    CHECK(morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_UNSUPPORTED && !ctx);
    CHECK(strstr(morphkv_last_error(), "window"));
}

int main() {
    log_errors_only();
    const auto plain = hybrid_model_load(), windowed = hybrid_model_load(/*has_window =*/true);
    for (const auto & model : { plain.get(), windowed.get() }) {
        test_bit_equal_to_stock_until_the_first_eviction(model);
        test_a_tail_cannot_be_taken_back(model);
        test_copies_and_states_go_on_the_same(model);
        test_a_refused_state_changes_nothing(model);
        test_a_refused_state_of_all_sequences_changes_nothing(model);
        test_a_file_without_its_end_changes_nothing(model);
        test_a_failed_eviction_leaves_all_in_step(model);
        test_drafts(model);
        test_drafts_and_marks(model);
    }
    test_a_layer_keeps_what_it_keeps_in_a_plain_model();
    test_three_kinds_of_layers(windowed.get());
    test_windows_alone_are_refused();
    return 0;
}
