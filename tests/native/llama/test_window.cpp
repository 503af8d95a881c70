// A model whose layers are in part windowed: those that attend to all are cut as in any model, the others stay as
// llama.cpp has them, and both go forth and back together.

#include "support/inside.h"

#include <cstring>

// Every other layer has a window, the first one too.
static tiny_shape mixed_shape() {
    tiny_shape shape;
    shape.arch        = "granite_swa";
    shape.n_layer     = 4;
    shape.is_windowed = { 1, 0, 1, 0 };
    shape.sink        = 0.5f;
    return shape;
}

static llama_context_params window_params(uint32_t n_seq_max = 1) {
    auto res     = context_params(n_seq_max);
    res.swa_full = false;
    return res;
}

// The windowed layers' cells go around once before the first eviction.
static void test_bit_equal_to_stock_until_the_first_eviction(llama_model * model, bool swa_full) {
    auto params        = small_params();
    params.capacity    = 400;
    params.prompt_room = 100;
    auto cparams       = window_params();
    cparams.swa_full   = swa_full;

    const auto        ctx = create(model, params, cparams);
    const context_ptr stock(llama_init_from_model(model, cparams));
    CHECK(decode(ctx, some_tokens(290)) == 0 && decode(stock, some_tokens(290)) == 0);
    CHECK(logits(ctx) == logits(stock));
    int32_t n_equal = 0;
    for (const llama_token token : some_tokens(120, 2)) {
        decode_singly(ctx, { token });
        decode_singly(stock, { token });
        if (stats(ctx).n_evictions == 0) {
            CHECK(logits(ctx) == logits(stock));
            n_equal++;
        }
    }
    CHECK(n_equal > 100 && stats(ctx).n_evictions > 0);
    CHECK(logits(ctx) != logits(stock) && all_finite(logits(ctx)));

    // the windowed layers have their window, or as many cells as the others
    const auto & window = *cache_of(ctx).window;
    CHECK(window.get_size() == (swa_full ? cache_of(ctx).get_size() : 256));
}

// What a first layer that attends to all keeps depends on the tokens alone: it is what the same layer keeps in a model
// without windows. The sink of weight 0 is none.
static void test_a_layer_keeps_what_it_keeps_in_a_plain_model() {
    auto shape        = mixed_shape();
    shape.is_windowed = { 0, 1, 0, 1 };
    shape.sink        = -INFINITY;
    auto plain        = shape;
    plain.arch        = "granite";
    plain.is_windowed = {};

    const auto mixed_model = tiny_model_load(shape), plain_model = tiny_model_load(plain);
    const auto mixed = create(mixed_model.get(), small_params(), window_params());
    const auto all   = create(plain_model.get(), small_params(), window_params());
    CHECK(decode(mixed, some_tokens(150)) == 0 && decode(all, some_tokens(150)) == 0);
    for (const llama_token token : some_tokens(100, 2)) {
        decode_singly(mixed, { token });
        decode_singly(all, { token });
        CHECK(retained(mixed, 0, 0) == retained(all, 0, 0));
    }
    CHECK(stats(mixed).n_evictions > 10 && stats(mixed).n_evictions == stats(all).n_evictions);
    CHECK(stats(mixed).n_used == stats(all).n_used);
}

// A sink takes a part of each head's attention, and so changes how heads and voters compare.
static void test_sinks_take_part_in_the_votes() {
    auto weak        = mixed_shape();
    weak.is_windowed = { 0, 1, 0, 1 };
    auto strong      = weak;
    strong.sink      = 4.0f;
    const auto a = tiny_model_load(weak), b = tiny_model_load(strong);
    const auto ctx_a = create(a.get(), small_params(), window_params());
    const auto ctx_b = create(b.get(), small_params(), window_params());
    CHECK(decode(ctx_a, some_tokens(150)) == 0 && decode(ctx_b, some_tokens(150)) == 0);
    CHECK(retained(ctx_a, 0, 0) != retained(ctx_b, 0, 0));
}

static void test_windowed_layers_have_nothing_retained(llama_model * model) {
    const auto ctx = create(model, small_params(), window_params());
    int32_t    n_head_kv, n_distant;
    CHECK(morphkv_retained_shape(ctx.get(), 1, &n_head_kv, &n_distant) == MORPHKV_STATUS_OK);
    CHECK(morphkv_retained_shape(ctx.get(), 0, &n_head_kv, &n_distant) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "got 0, which has a sliding window"));
    CHECK(morphkv_retained_shape(ctx.get(), 9, &n_head_kv, &n_distant) == MORPHKV_STATUS_INVALID);
    CHECK(!strstr(morphkv_last_error(), "window"));

    // 2 layers of each kind, K and V in f16
    CHECK(stats(ctx).kv_bytes == 2 * 2 * 2 * 64 * (uint64_t) (stats(ctx).n_cells + 256));
    CHECK(morphkv_kv_bytes(ctx.get()) == stats(ctx).kv_bytes);
}

static void test_a_tail_comes_again_with_the_same_bits(llama_model * model) {
    auto params     = small_params();
    params.interval = 60;
    const auto ctx  = create(model, params, window_params());
    CHECK(decode(ctx, some_tokens(500)) == 0);
    decode_to_a_cut(ctx);
    const auto tail   = some_tokens(30, 3);
    const auto before = logits_of(ctx, tail);
    const auto state  = save(ctx);
    for (const int32_t n : { 1, 7, 30 }) {
        CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos + 1 - n, -1));
        CHECK(logits_of(ctx, tokens(tail.end() - n, tail.end())) ==
              std::vector<floats>(before.end() - n, before.end()));
    }
    CHECK(save(ctx) == state);

    // in one batch, as a draft is verified, and back again
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos - 29, -1));
    CHECK(decode(ctx, tail, { 0 }, want::ALL) == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos - 29, -1));
    CHECK(logits_of(ctx, tail) == before);
}

// The base could go back as far as its last cut, the windowed layers no further than 256 - 64 tokens.
static void test_what_one_of_both_cannot_take_back_is_refused(llama_model * model) {
    auto params        = small_params();
    params.prompt_room = 600;
    params.interval    = 600;
    const auto ctx     = create(model, params, window_params());
    CHECK(decode(ctx, some_tokens(497)) == 0);
    CHECK(stats(ctx).n_evictions == 0);

    const llama_pos first = 497 - 256 + 64 - 1;  // the first whose 63 predecessors are there; begins a micro-batch
    CHECK(llama_memory_seq_pos_min(memory(ctx), 0) == first - 1 && stats(ctx).complete_pos == first - 1);
    const auto before = save(ctx);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, first - 1, -1));
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, 100, 200));
    CHECK(save(ctx) == before);

    CHECK(llama_memory_seq_rm(memory(ctx), 0, first, -1));
    CHECK(stats(ctx).logical_pos == first - 1);
    const auto tail = some_tokens(497);
    const auto now  = logits_of(ctx, tokens(tail.begin() + first, tail.begin() + first + 3));

    const auto fresh = create(model, params, window_params());
    CHECK(decode(fresh, tokens(tail.begin(), tail.begin() + first)) == 0);
    const auto expected = logits_of(fresh, tokens(tail.begin() + first, tail.begin() + first + 3));
    CHECK(now == expected);

    CHECK(llama_memory_seq_rm(memory(ctx), 0, 0, -1));
    CHECK(stats(ctx).n_used == 0 && llama_memory_seq_pos_max(memory(ctx), 0) == -1);
    CHECK(cache_of(ctx).window->seq_pos_max(0) == -1);
}

static void test_a_restored_sequence_goes_on_the_same(llama_model * model) {
    const auto ctx = create(model, small_params(), window_params(2));
    CHECK(decode(ctx, some_tokens(450)) == 0);
    decode_singly(ctx, some_tokens(9, 2));
    // with free cells in the ring
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).logical_pos - 1, -1));
    const auto state = save(ctx);

    const auto other = create(model, small_params(), window_params(2));
    CHECK(decode(other, some_tokens(40, 7), { 0, 1 }) == 0);
    CHECK(load(other, state, 1));
    CHECK(save(other, 1) == state);
    for (const llama_token token : some_tokens(300, 3)) {
        decode_singly(ctx, { token });
        decode_singly(other, { token }, { 1 });
        CHECK(logits(ctx) == logits(other));
    }
    CHECK(retained(ctx, 0, 3) == retained(other, 1, 3));
    CHECK(save(ctx) == save(other, 1));
}

static void test_a_copied_sequence_goes_on_the_same(llama_model * model) {
    const auto ctx = create(model, small_params(), window_params(2));
    CHECK(decode(ctx, some_tokens(400)) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1 }) == 0);
    const auto own = save(ctx, 1);
    llama_memory_seq_cp(memory(ctx), 0, 1, 20, 30);  // a part: refused with a log line
    CHECK(save(ctx, 1) == own);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx, 0) == save(ctx, 1));
    for (const llama_token token : some_tokens(30, 5)) {
        decode_singly(ctx, { token }, { 0, 1 });
        CHECK(logits(ctx, 0) == logits(ctx, 1));
    }
    llama_memory_seq_keep(memory(ctx), 1);
    CHECK(stats(ctx, 0).n_used == 0 && cache_of(ctx).window->seq_pos_max(0) == -1);
    CHECK(cache_of(ctx).window->seq_pos_max(1) == stats(ctx, 1).logical_pos);
    llama_memory_clear(memory(ctx), true);
    CHECK(cache_of(ctx).window->seq_pos_max(1) == -1);
}

// Damage anywhere before the tensors, or an end that is cut off, changes nothing in any layer.
static void test_a_damaged_state_is_refused(llama_model * model) {
    const auto ctx = create(model, small_params(), window_params());
    CHECK(decode(ctx, some_tokens(300)) == 0);
    const auto state  = save(ctx);
    size_t     n_kept = 0;
    for (size_t i = 12; i < 1200; i += 3) {
        auto damaged = state;
        damaged[i] ^= 0x41;
        if (!load(ctx, damaged)) {
            CHECK(save(ctx) == state);
            n_kept++;
        }
    }
    CHECK(n_kept > 390);
    CHECK(!load(ctx, bytes(state.begin(), state.end() - 100)));
    CHECK(save(ctx) == state);

    // a state of the same layers without windows, and of another size of window cells
    auto plain        = mixed_shape();
    plain.arch        = "granite";
    plain.is_windowed = {};
    const auto other  = tiny_model_load(plain);
    const auto alien  = create(other.get(), small_params(), window_params());
    CHECK(decode(alien, some_tokens(300)) == 0);
    const auto foreign = save(alien);
    CHECK(!load(ctx, foreign));
    CHECK(!load(alien, state));
    CHECK(save(ctx) == state && save(alien) == foreign);
}

static void test_a_failed_eviction_leaves_both_in_step(llama_model * model) {
    const auto ctx = create(model, small_params(), window_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0, 1 }) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(5, 3));
    const auto before = save(ctx, 0), bystander = save(ctx, 1);

    cache_of(ctx).inject_failure = [](morphkv_runner::step s) {
        return s == morphkv_runner::step::ALLOC;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(save(ctx) == before);

    cache_of(ctx).inject_failure = [](morphkv_runner::step s) {
        return s == morphkv_runner::step::COMPUTE;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(stats(ctx).n_used == 0 && cache_of(ctx).window->seq_pos_max(0) == -1);
    CHECK(save(ctx, 1) == bystander);

    cache_of(ctx).inject_failure = nullptr;
    CHECK(load(ctx, before));
    decode_singly(ctx, some_tokens(30, 4), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// The keys of windowed layers turn with the others'. A text that begins at 900, without an eviction, moves to 0.
static void test_a_rebase_turns_all_layers(llama_model * model, ggml_type type_k) {
    auto params     = small_params();
    params.interval = 1000 - params.capacity;
    auto cparams    = window_params();
    cparams.type_k  = type_k;
    cparams.type_v  = GGML_TYPE_F16;

    std::vector<floats> res;
    for (const int32_t limit : { 0, 1000 }) {
        params.rope_limit = limit;
        const auto ctx    = create(model, params, cparams);
        CHECK(stats(ctx).rope_limit == limit);
        llama_batch batch = llama_batch_init(1, 0, 1);
        for (llama_pos i = 0; i < 140; ++i) {
            batch.n_tokens     = 1;
            batch.token[0]     = some_tokens(140)[i];
            batch.pos[0]       = 900 + i;
            batch.n_seq_id[0]  = 1;
            batch.seq_id[0][0] = 0;
            batch.logits[0]    = true;
            CHECK(llama_decode(ctx.get(), batch) == 0);
        }
        llama_batch_free(batch);
        CHECK(stats(ctx).n_evictions == 0 && stats(ctx).n_rebases == (limit > 0));
        CHECK(stats(ctx).rotary_offset == (limit > 0 ? 900 : 0));
        res.push_back(logits(ctx));
    }
    double diff = 0.0, size = 0.0;
    for (int32_t i = 0; i < TINY_N_VOCAB; ++i) {
        diff += std::pow((double) res[0][i] - res[1][i], 2);
        size += std::pow((double) res[0][i], 2);
    }
    // keys are rounded once more, to type_k; without the windowed layers it is above 0.7
    const double error = std::sqrt(diff / size);
    printf("rebase, K in %s: %.5f of the logits\n", ggml_type_name(type_k), error);
    CHECK(error < (type_k == GGML_TYPE_F16 ? 3e-3 : 3e-2));
}

static void test_a_model_with_windows_alone_is_refused() {
    auto shape              = mixed_shape();
    shape.is_windowed       = { 1, 1, 1, 1 };
    const auto      model   = tiny_model_load(shape);
    const auto      params  = small_params();
    const auto      cparams = window_params();
    llama_context * ctx     = nullptr;
    CHECK(morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "each layer that attends has a sliding window"));
}

int main() {
    log_errors_only();
    const auto model = tiny_model_load(mixed_shape());
    test_bit_equal_to_stock_until_the_first_eviction(model.get(), false);
    test_bit_equal_to_stock_until_the_first_eviction(model.get(), true);
    test_a_layer_keeps_what_it_keeps_in_a_plain_model();
    test_sinks_take_part_in_the_votes();
    test_windowed_layers_have_nothing_retained(model.get());
    test_a_tail_comes_again_with_the_same_bits(model.get());
    test_what_one_of_both_cannot_take_back_is_refused(model.get());
    test_a_restored_sequence_goes_on_the_same(model.get());
    test_a_copied_sequence_goes_on_the_same(model.get());
    test_a_damaged_state_is_refused(model.get());
    test_a_failed_eviction_leaves_both_in_step(model.get());
    auto wide_heads        = mixed_shape();
    wide_heads.n_embd_head = 64;  // quantized K of such heads is rotated by llama.cpp
    const auto wide        = tiny_model_load(wide_heads);
    test_a_rebase_turns_all_layers(wide.get(), GGML_TYPE_F16);
    test_a_rebase_turns_all_layers(wide.get(), GGML_TYPE_Q8_0);
    test_a_model_with_windows_alone_is_refused();
    return 0;
}
