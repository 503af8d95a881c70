// Drafts that are taken back: by snapshots of the layers that are recurrent, and in the cache of a head that drafts.

#include "support/hybrid_model.h"
#include "support/inside.h"

#include "llama-ext.h"

static llama_context_params draft_params(uint32_t n_seq_max = 1) {
    auto res     = context_params(n_seq_max);
    res.n_rs_seq = 4;  // snapshots
    return res;
}

static bool take_back(const context_ptr & ctx, int32_t n, llama_seq_id seq = 0) {
    return llama_memory_seq_rm(memory(ctx), seq, llama_memory_seq_pos_max(memory(ctx), seq) + 1 - n, -1);
}

static void test_drafts_are_taken_back_as_in_stock(llama_model * model) {
    auto params     = small_params();
    params.capacity = 200;
    const auto  ctx = create(model, params, draft_params());
    context_ptr stock(llama_init_from_model(model, draft_params()));
    CHECK(decode(ctx, some_tokens(30)) == 0 && decode(stock, some_tokens(30)) == 0);
    for (int32_t i = 0; i < 40; ++i) {
        for (const auto & c : { &ctx, (const context_ptr *) &stock }) {
            CHECK(decode(*c, some_tokens(5, i), { 0 }, want::ALL) == 0);
            CHECK(i % 5 == 0 || take_back(*c, i % 5));
        }
        for (int32_t j = 0; j < 5; ++j) {
            CHECK(logits(ctx, j) == logits(stock, j));
        }
    }
    CHECK(stats(ctx).n_evictions == 0);
}

// Drafts that end where a cut falls due, against the tokens that were right, one by one.
static void test_drafts_change_nothing(llama_model * model) {
    const auto params   = small_params();
    const auto drafting = create(model, params, draft_params()), plain = create(model, params, draft_params());
    CHECK(decode(drafting, some_tokens(100)) == 0 && decode(plain, some_tokens(100)) == 0);
    float worst = 0.0f;
    for (int32_t i = 0; i < 150; ++i) {
        const int32_t n_free  = params.capacity + params.interval - stats(drafting).n_used;
        const int32_t n_draft = std::clamp(n_free - 1, 0, 4);
        const int32_t n_wrong = i % (n_draft + 1);
        auto          text    = some_tokens(1 + n_draft, i);
        CHECK(decode(drafting, text, { 0 }, want::ALL) == 0);
        const auto of_last = logits(drafting, n_draft - n_wrong);
        CHECK(n_wrong == 0 || take_back(drafting, n_wrong));

        text.resize(text.size() - n_wrong);
        decode_singly(plain, text);
        const auto expected = logits(plain);
        for (size_t k = 0; k < expected.size(); ++k) {
            worst = std::max(worst, std::abs(of_last[k] - expected[k]));
        }
        const auto a = stats(drafting), b = stats(plain);
        CHECK(a.n_evictions == b.n_evictions && a.n_used == b.n_used && a.logical_pos == b.logical_pos);
    }
    CHECK(stats(plain).n_evictions > 20);
    CHECK(worst < 2e-2f);  // K, V and the ring are F16, and logits are about 8
}

static void test_what_no_snapshot_holds_stays(llama_model * model) {
    const auto ctx = create(model, small_params(), draft_params(2));
    CHECK(decode(ctx, some_tokens(30), { 0, 1 }) == 0);
    CHECK(!take_back(ctx, 5) && take_back(ctx, 4) && !take_back(ctx, 1));  // once, from a state that was computed
    decode_singly(ctx, { 3 });
    CHECK(!take_back(ctx, 1));
    CHECK(decode(ctx, some_tokens(3)) == 0);
    CHECK(!take_back(ctx, 3) && take_back(ctx, 2));

    // what was taken back is not in a copy nor in a state, and they cannot go back
    const auto state = save(ctx);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx, 1) == state);
    const auto other = create(model, small_params(), draft_params(2));
    CHECK(decode(other, some_tokens(8), { 0, 1 }) == 0);
    CHECK(load(other, state, 0) && load(other, state, 1));
    for (const auto & c : { &ctx, &other }) {
        CHECK(!take_back(*c, 1, 0) && !take_back(*c, 1, 1));
    }
    for (const llama_token token : some_tokens(40, 9)) {
        for (const auto & c : { &ctx, &other }) {
            decode_singly(*c, { token }, { 0, 1 });
        }
        CHECK(logits(ctx, 0) == logits(ctx, 1));
        CHECK(logits(ctx, 0) == logits(other, 0) && logits(ctx, 0) == logits(other, 1));
    }
    CHECK(decode(ctx, some_tokens(4), { 1 }) == 0);
    llama_memory_clear(memory(ctx), false);
    CHECK(decode(ctx, some_tokens(2), { 1 }) == 0 && take_back(ctx, 1, 1));
}

static void test_a_draft_longer_than_a_micro_batch_is_refused(llama_model * model) {
    auto cparams           = draft_params();
    cparams.n_ubatch       = 5;
    const auto      params = small_params();
    llama_context * ctx    = nullptr;
    CHECK(morphkv_context_create(model, &cparams, &params, &ctx) == MORPHKV_STATUS_UNSUPPORTED && !ctx);
    CHECK(strstr(morphkv_last_error(), "a micro-batch for a whole draft"));
}

// A draft is one micro-batch also where another sequence has less room.
static void test_sequences_draft_beside_each_other(llama_model * model) {
    const auto params = small_params();
    const auto ctx    = create(model, params, draft_params(2));
    CHECK(decode(ctx, some_tokens(100), { 0 }) == 0 && decode(ctx, some_tokens(83, 2), { 1 }) == 0);
    for (int32_t i = 0; i < 200; ++i) {
        llama_batch batch = llama_batch_init(16, 0, 1);
        int32_t     n_draft[2];
        for (const llama_seq_id s : { 0, 1 }) {
            const int32_t n_free = params.capacity + params.interval - stats(ctx, s).n_used;
            n_draft[s]           = std::clamp(n_free - 1, 0, (i + s) % 5);
            for (int32_t j = 0; j <= n_draft[s]; ++j) {
                batch.token[batch.n_tokens]     = (i * 7 + s * 3 + j) % TINY_N_VOCAB;
                batch.pos[batch.n_tokens]       = llama_memory_seq_pos_max(memory(ctx), s) + 1 + j;
                batch.n_seq_id[batch.n_tokens]  = 1;
                batch.seq_id[batch.n_tokens][0] = s;
                batch.logits[batch.n_tokens]    = true;
                batch.n_tokens++;
            }
        }
        CHECK(llama_decode(ctx.get(), batch) == 0);
        llama_batch_free(batch);
        for (const llama_seq_id s : { 0, 1 }) {
            CHECK(n_draft[s] == 0 || take_back(ctx, n_draft[s], s));
        }
    }
    CHECK(stats(ctx, 0).n_evictions > 10 && stats(ctx, 1).n_evictions > 10);
}

//
// heads
//

static model_ptr head_model(int32_t n_nextn = 1) {
    tiny_shape shape;
    shape.arch       = "qwen35";
    shape.n_head     = 2;
    shape.n_head_kv  = 1;
    shape.n_nextn    = n_nextn;
    auto mparams     = llama_model_default_params();
    mparams.load_mtp = true;
    return tiny_model_load(shape, mparams);
}

static llama_context_params head_params() {
    auto res     = context_params();
    res.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    return res;
}

// Tokens and what the target computed at the token before each: here, any numbers.
static int decode_heads(const context_ptr & ctx, const tokens & t, bool wants_logits, int32_t n_left_out = 0) {
    const int32_t      n_embd = 64;
    llama_batch        batch  = llama_batch_init(t.size(), 0, 1);
    std::vector<float> hidden(t.size() * n_embd, 0.1f);
    batch.embd = hidden.data();
    for (size_t i = 0; i < t.size(); ++i) {
        batch.token[i]     = t[i];
        batch.pos[i]       = llama_memory_seq_pos_max(memory(ctx), 0) + 1 + n_left_out + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = wants_logits;
    }
    batch.n_tokens = t.size();
    const int res  = llama_decode(ctx.get(), batch);
    batch.embd     = nullptr;
    llama_batch_free(batch);
    return res;
}

// As llama.cpp's draft-mtp: heads guess tokens one by one, forget them, and get what the target was given to verify.
static void test_heads_are_cut_between_the_same_tokens_as_the_target(int32_t rope_limit) {
    auto params             = small_params();
    params.prompt_room      = 6;
    params.rope_limit       = rope_limit;
    // any text does, and any model that is its target
    const auto target_model = tiny_model_load(), model = head_model();
    const auto target = create(target_model.get(), params, context_params());
    const auto heads  = create(model.get(), params, head_params());
    CHECK(stats(heads).kv_bytes * 4 == stats(target).kv_bytes);  // one layer of one KV head, and two of two
    CHECK(decode(target, some_tokens(101)) == 0 && decode_heads(heads, some_tokens(101), false) == 0);
    const auto bytes = stats(heads).kv_bytes + stats(heads).extra_bytes;
    for (int32_t i = 0; i < 300; ++i) {
        const auto    now      = stats(target);
        const int32_t n_free   = params.capacity + params.interval - now.n_used;
        const int32_t n_rotary = rope_limit > 0 ? rope_limit - (now.logical_pos + 1 - now.rotary_offset) : n_free;
        const int32_t n_draft  = std::clamp(std::min(n_free, n_rotary) - 1, 0, 4);
        for (int32_t j = 0; j < n_draft; ++j) {
            CHECK(decode_heads(heads, { j }, true) == 0);
        }
        CHECK(stats(heads).n_evictions == now.n_evictions);  // no guess has voted
        CHECK(n_draft == 0 || take_back(heads, n_draft));

        const auto text = some_tokens(1 + n_draft, i);
        CHECK(decode(target, text, { 0 }, want::ALL) == 0 && decode_heads(heads, text, false) == 0);
        if (const int32_t n_wrong = i % (n_draft + 1)) {
            CHECK(take_back(target, n_wrong) && take_back(heads, n_wrong));
        }
        const auto a = stats(target), b = stats(heads);
        CHECK(a.n_evictions == b.n_evictions && a.n_evicted == b.n_evicted && a.n_used == b.n_used);
        CHECK(a.logical_pos == b.logical_pos && a.rotary_offset == b.rotary_offset && a.n_rebases == b.n_rebases);
    }
    CHECK(stats(heads).n_evictions > 50 && (stats(heads).n_rebases > 0) == (rope_limit > 0));
    // a rebase notes where each slot stands
    CHECK(rope_limit > 0 || stats(heads).kv_bytes + stats(heads).extra_bytes == bytes);
    CHECK(decode_heads(heads, { 1 }, true) == 0 && all_finite(logits(heads)));
}

static void test_heads_as_stock_before_the_first_eviction() {
    auto params       = small_params();
    params.capacity   = 200;
    const auto  model = head_model();
    const auto  heads = create(model.get(), params, head_params());
    context_ptr stock(llama_init_from_model(model.get(), head_params()));
    for (const auto & c : { &heads, (const context_ptr *) &stock }) {
        CHECK(decode_heads(*c, some_tokens(100), false) == 0);
    }
    for (const llama_token token : some_tokens(60, 2)) {
        CHECK(decode_heads(heads, { token }, true) == 0 && decode_heads(stock, { token }, true) == 0);
        CHECK(logits(heads) == logits(stock));
    }
}

// An image has no tokens, and llama.cpp gives heads nothing of it.
static void test_heads_begin_anew_behind_a_gap() {
    const auto model = head_model();
    const auto heads = create(model.get(), small_params(), head_params());
    CHECK(decode_heads(heads, some_tokens(100), false) == 0 && stats(heads).n_evictions > 0);
    CHECK(decode_heads(heads, some_tokens(20), false, /*n_left_out =*/30) == 0);
    CHECK(stats(heads).n_used == 20 && stats(heads).logical_pos == 149);
    for (const llama_token token : some_tokens(60, 2)) {
        CHECK(decode_heads(heads, { token }, true) == 0 && all_finite(logits(heads)));
    }
}

static void test_several_heads_are_refused() {
    const auto      model   = head_model(2);
    const auto      cparams = head_params();
    const auto      params  = small_params();
    llama_context * ctx     = nullptr;
    CHECK(morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_UNSUPPORTED && !ctx);
    CHECK(strstr(morphkv_last_error(), "several draft heads"));
}

int main() {
    log_errors_only();
    for (const bool has_window : { false, true }) {
        const auto model = hybrid_model_load(has_window);
        test_drafts_are_taken_back_as_in_stock(model.get());
        test_drafts_change_nothing(model.get());
        test_what_no_snapshot_holds_stays(model.get());
        test_sequences_draft_beside_each_other(model.get());
        test_a_draft_longer_than_a_micro_batch_is_refused(model.get());
    }
    test_heads_are_cut_between_the_same_tokens_as_the_target(0);
    test_heads_are_cut_between_the_same_tokens_as_the_target(120);
    test_heads_as_stock_before_the_first_eviction();
    test_heads_begin_anew_behind_a_gap();
    test_several_heads_are_refused();
    return 0;
}
