// The cache inside a context: what is refused, what stays exact, and that nothing is lost when something fails.

#include "morphkv.h"
#include "tiny_model.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>

using tokens = std::vector<llama_token>;
using floats = std::vector<float>;

static llama_context_params context_params(uint32_t n_seq_max = 1) {
    auto res            = llama_context_default_params();
    res.n_ctx           = 2048 * n_seq_max;
    res.n_batch         = 512;
    res.n_ubatch        = 16;
    res.n_seq_max       = n_seq_max;
    res.n_threads       = 1;
    res.n_threads_batch = 1;
    res.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return res;
}

static morphkv_params small_params() {
    auto res        = morphkv_params_default();
    res.capacity    = 40;
    res.window      = 8;
    res.interval    = 6;
    res.keep        = 3;
    res.prompt_room = 30;
    return res;
}

static context_ptr create(llama_model * model, const morphkv_params & params, llama_context_params cparams) {
    llama_context * ctx = nullptr;
    if (morphkv_context_create(model, &cparams, &params, &ctx) != MORPHKV_STATUS_OK) {
        fprintf(stderr, "%s\n", morphkv_last_error());
        CHECK(false);
    }
    return context_ptr(ctx);
}

static tokens some_tokens(int32_t n, uint32_t seed = 1) {
    std::mt19937 rng(seed);
    tokens       res(n);
    for (auto & t : res) {
        t = rng() % TINY_N_VOCAB;
    }
    return res;
}

static llama_memory_t memory(const context_ptr & ctx) {
    return llama_get_memory(ctx.get());
}

// Decodes t behind what the sequences hold, the same tokens in each, as one batch; only the last gives logits.
static int decode(const context_ptr & ctx, const tokens & t, const std::vector<llama_seq_id> & seqs = { 0 }) {
    llama_batch batch = llama_batch_init(t.size() * seqs.size(), 0, 1);
    for (const llama_seq_id seq : seqs) {
        const llama_pos first = llama_memory_seq_pos_max(memory(ctx), seq) + 1;
        for (size_t i = 0; i < t.size(); ++i) {
            batch.token[batch.n_tokens]     = t[i];
            batch.pos[batch.n_tokens]       = first + i;
            batch.n_seq_id[batch.n_tokens]  = 1;
            batch.seq_id[batch.n_tokens][0] = seq;
            batch.logits[batch.n_tokens]    = i + 1 == t.size();
            batch.n_tokens++;
        }
    }
    const int res = llama_decode(ctx.get(), batch);
    llama_batch_free(batch);
    return res;
}

static void decode_singly(const context_ptr & ctx, const tokens & t, const std::vector<llama_seq_id> & seqs = { 0 }) {
    for (const llama_token token : t) {
        CHECK(decode(ctx, { token }, seqs) == 0);
    }
}

// Logits of the i-th sequence of the last batch.
static floats logits(const context_ptr & ctx, int32_t i = -1) {
    const float * data = llama_get_logits_ith(ctx.get(), i);
    CHECK(data);
    return floats(data, data + TINY_N_VOCAB);
}

static bool all_finite(const floats & x) {
    return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

static morphkv_stats stats(const context_ptr & ctx, int32_t seq = 0) {
    morphkv_stats res{};
    res.size = sizeof(res);
    CHECK(morphkv_stats_get(ctx.get(), seq, &res) == MORPHKV_STATUS_OK);
    return res;
}

// (n_head_kv*n_distant) of a layer
static std::vector<int32_t> retained(const context_ptr & ctx, int32_t seq, int32_t layer) {
    int32_t n_head_kv, n_distant;
    CHECK(morphkv_retained_shape(ctx.get(), layer, &n_head_kv, &n_distant) == MORPHKV_STATUS_OK);
    std::vector<int32_t> res(n_head_kv * n_distant);
    CHECK(morphkv_retained_get(ctx.get(), seq, layer, res.data(), res.size()) == MORPHKV_STATUS_OK);
    return res;
}

static void test_cells_stay_constant(llama_model * model, ggml_type type, int32_t policy) {
    auto cparams   = context_params();
    cparams.type_k = cparams.type_v = type;
    auto params                     = small_params();
    params.policy                   = policy;
    params.decay                    = policy == MORPHKV_POLICY_MORPHKV ? 0.5f : 0.0f;
    const auto ctx                  = create(model, params, cparams);

    CHECK(decode(ctx, some_tokens(300)) == 0);  // a prompt of four times the cells
    CHECK(stats(ctx).n_used <= stats(ctx).n_limit);
    const auto first = stats(ctx);
    for (const llama_token token : some_tokens(200, 2)) {
        decode_singly(ctx, { token });
        CHECK(stats(ctx).n_used <= first.n_limit);
        CHECK(all_finite(logits(ctx)));
    }
    const auto last = stats(ctx);
    CHECK(last.n_used <= params.capacity + params.interval);
    CHECK(last.kv_bytes == first.kv_bytes && last.extra_bytes == first.extra_bytes && last.kv_bytes > 0);
    CHECK(last.logical_pos == 499 && last.n_evictions > first.n_evictions && last.scratch_bytes > 0);
    CHECK(last.n_evicted == last.logical_pos + 1 - last.n_used);
    CHECK(last.complete_pos == last.logical_pos + 1 - (last.n_used - last.n_distant));

    for (const int32_t layer : { 0, 1 }) {
        const auto pos = retained(ctx, 0, layer);
        for (int32_t h = 0; h < 2; ++h) {
            const auto              begin = pos.begin() + h * last.n_distant;
            const std::set<int32_t> distinct(begin, begin + last.n_distant);
            CHECK((int32_t) distinct.size() == last.n_distant);
            CHECK(*distinct.begin() == 0 && *distinct.rbegin() < last.complete_pos);
            for (int32_t i = 0; i < params.keep; ++i) {
                CHECK(begin[i] == i);
            }
        }
    }
}

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
    // just after a cut: no other one comes between here and the end of the tail
    while (stats(ctx).n_used != 41) {
        decode_singly(ctx, { 5 });
    }
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

// The next cut after a rollback in the prompt room waits until there are voters again.
static void test_a_rollback_of_the_voters_delays_the_cut(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(70)) == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, 60, -1));
    decode_singly(ctx, some_tokens(7, 2));
    CHECK(stats(ctx).n_evictions == 0);
    decode_singly(ctx, some_tokens(2, 3));
    CHECK(stats(ctx).n_evictions == 1 && stats(ctx).n_used == 41);
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

static void test_a_restored_state_goes_on_the_same(llama_model * model) {
    auto params    = small_params();
    params.decay   = 0.5f;
    const auto ctx = create(model, params, context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 1 }) == 0);
    decode_singly(ctx, some_tokens(50, 2), { 1 });

    std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), 1));
    CHECK(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 1) == state.size());
    std::vector<uint8_t> whole(llama_state_get_size(ctx.get()));
    CHECK(llama_state_get_data(ctx.get(), whole.data(), whole.size()) == whole.size());

    std::vector<floats> expected;
    for (const llama_token token : some_tokens(40, 3)) {
        decode_singly(ctx, { token }, { 1 });
        expected.push_back(logits(ctx));
    }
    auto goes_on = [&](const context_ptr & other, llama_seq_id seq) {
        const auto next = some_tokens(40, 3);
        for (size_t i = 0; i < next.size(); ++i) {
            decode_singly(other, { next[i] }, { seq });
            CHECK(logits(other) == expected[i]);
        }
        CHECK(retained(other, seq, 1) == retained(ctx, 1, 1));
    };
    const auto other = create(model, params, context_params(2));
    CHECK(llama_state_seq_set_data(other.get(), state.data(), state.size(), 0) == state.size());
    goes_on(other, 0);
    const auto third = create(model, params, context_params(2));
    CHECK(llama_state_set_data(third.get(), whole.data(), whole.size()) == whole.size());
    goes_on(third, 1);

    // not ours: truncated, of other parameters, of a cache without MorphKV; the context stays usable
    CHECK(llama_state_seq_set_data(other.get(), state.data(), state.size() / 2, 0) == 0);
    CHECK(stats(other, 0).n_used == 0);
    params.window      = 9;
    const auto strange = create(model, params, context_params(2));
    CHECK(llama_state_seq_set_data(strange.get(), state.data(), state.size(), 0) == 0);
    auto                 cparams = context_params(2);
    const context_ptr    stock(llama_init_from_model(model, cparams));
    std::vector<uint8_t> foreign(llama_state_seq_get_size(stock.get(), 0));
    llama_state_seq_get_data(stock.get(), foreign.data(), foreign.size(), 0);
    CHECK(llama_state_seq_set_data(other.get(), foreign.data(), foreign.size(), 0) == 0);
    CHECK(decode(other, some_tokens(100), { 0 }) == 0);
}

// An abort in the middle of an eviction leaves no half moved sequence behind.
static void test_an_aborted_eviction_clears_the_sequence(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(46), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1 }) == 0);
    llama_set_abort_callback(ctx.get(), [](void *) { return true; }, nullptr);
    CHECK(decode(ctx, { 1 }, { 0 }) != 0);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    CHECK(stats(ctx, 0).n_used == 0 && stats(ctx, 1).n_used == 20);
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    decode_singly(ctx, some_tokens(50, 3), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

static void refuse(llama_model * model, const morphkv_params & params, llama_context_params cparams,
                   morphkv_status status, const char * sentence) {
    llama_context * ctx = nullptr;
    const auto      got = morphkv_context_create(model, &cparams, &params, &ctx);
    if (got != status || ctx || !strstr(morphkv_last_error(), sentence)) {
        fprintf(stderr, "expected '%s', got %d '%s'\n", sentence, got, morphkv_last_error());
        CHECK(false);
    }
}

static void test_what_cannot_be_honoured_is_refused(llama_model * model) {
    auto cparams            = context_params();
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    refuse(model, small_params(), cparams, MORPHKV_STATUS_UNSUPPORTED, "MorphKV needs flash attention");

    cparams        = context_params();
    cparams.type_k = GGML_TYPE_Q4_1;
    refuse(model, small_params(), cparams, MORPHKV_STATUS_UNSUPPORTED, "got q4_1");

    auto params        = small_params();
    params.prompt_room = 4000;
    refuse(model, params, context_params(), MORPHKV_STATUS_INVALID,
           "must not exceed the context of a sequence, got 40 + 4000");

    params        = small_params();
    params.window = 0;
    refuse(model, params, context_params(), MORPHKV_STATUS_INVALID, "window must be in");

    // other sequences than were asked for
    CHECK(decode(create(model, small_params(), context_params()), { 1 }, { 1 }) != 0);

    // a refusal leaves nothing behind
    CHECK(decode(create(model, small_params(), context_params()), some_tokens(100)) == 0);
    const context_ptr stock(llama_init_from_model(model, context_params()));
    morphkv_stats     s{};
    s.size = sizeof(s);
    CHECK(morphkv_stats_get(stock.get(), 0, &s) == MORPHKV_STATUS_NO_MORPHKV);
    CHECK(morphkv_kv_bytes(stock.get()) > 0);
}

static void test_pending_parameters_are_for_one_context(llama_model * model) {
    const auto params = small_params();
    CHECK(morphkv_params_set_next(&params) == MORPHKV_STATUS_OK);
    const context_ptr first(llama_init_from_model(model, context_params()));
    const context_ptr second(llama_init_from_model(model, context_params()));
    CHECK(stats(first).capacity == params.capacity);
    CHECK(morphkv_retained_shape(second.get(), 0, nullptr, nullptr) == MORPHKV_STATUS_NO_MORPHKV);
    CHECK(morphkv_kv_bytes(first.get()) < morphkv_kv_bytes(second.get()));
}

int main() {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level >= GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        },
        nullptr);

    const auto model = tiny_model_load();
    for (const ggml_type type :
         { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
        test_cells_stay_constant(model.get(), type, MORPHKV_POLICY_MORPHKV);
    }
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_RECENCY);
    test_cells_stay_constant(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_RANDOM);
    test_sequences_do_not_meet(model.get());
    test_a_tail_is_removed_and_decoded_again(model.get());
    test_a_rollback_of_the_voters_delays_the_cut(model.get());
    test_a_copied_sequence_goes_on_the_same(model.get());
    test_a_restored_state_goes_on_the_same(model.get());
    test_an_aborted_eviction_clears_the_sequence(model.get());
    test_what_cannot_be_honoured_is_refused(model.get());
    test_pending_parameters_are_for_one_context(model.get());
    return 0;
}
