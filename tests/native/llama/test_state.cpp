// Save and load: what is restored goes on the same, and whatever else is handed in is refused and harms nothing.

#include "support/state_parts.h"

#include <cstddef>
#include <cstdio>
#include <cstring>

// of the header, and of the fixed part of a text with one run of positions; behind what llama.cpp writes first
constexpr size_t N_LLAMA  = 8;
constexpr size_t N_HEADER = sizeof(morphkv_state_header);
constexpr size_t N_TEXT   = sizeof(morphkv_text_header) + sizeof(morphkv_group_header) + sizeof(morphkv_run);

// What a saved sequence does next, to compare with what the restored one does.
class future {
public:
    // decodes on behind the saved state
    future(const context_ptr & ctx, llama_seq_id seq = 0) : next(some_tokens(60, 3)) {
        expected = logits_of(ctx, next, seq);
        kept     = retained(ctx, seq, 1);
    }

    void check(const context_ptr & ctx, llama_seq_id seq = 0) const {
        for (size_t i = 0; i < next.size(); ++i) {
            decode_singly(ctx, { next[i] }, { seq });
            CHECK(logits(ctx) == expected[i]);
        }
        CHECK(retained(ctx, seq, 1) == kept);
    }

private:
    tokens               next;
    std::vector<floats>  expected;
    std::vector<int32_t> kept;
};

static void test_a_restored_state_goes_on_the_same(llama_model * model, ggml_type type, float decay,
                                                   int32_t policy = MORPHKV_POLICY_MORPHKV) {
    auto params    = small_params();
    params.decay   = decay;
    params.policy  = policy;
    auto cparams   = context_params(2);
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, params, cparams);
    CHECK(decode(ctx, some_tokens(200), { 1 }) == 0);
    decode_singly(ctx, some_tokens(53, 2), { 1 });

    const bytes  state = save(ctx, 1), checkpoint = save(ctx, 1, CHECKPOINT), whole = save_all(ctx);
    const tokens noted = some_tokens(4);
    CHECK(llama_state_save_file(ctx.get(), "whole.state", noted.data(), noted.size()));
    CHECK(llama_state_seq_save_file(ctx.get(), "seq.state", 1, noted.data(), noted.size()) > 0);
    const future expected(ctx, 1);

    // into other contexts, in other sequences, in place of other content, by every way that llama.cpp has
    const auto other = create(model, params, cparams);
    CHECK(decode(other, some_tokens(90, 6), { 0 }) == 0);
    CHECK(load(other, state, 0));
    expected.check(other, 0);
    CHECK(load(other, checkpoint, 1, CHECKPOINT));
    expected.check(other, 1);
    CHECK(load(ctx, state, 1));
    expected.check(ctx, 1);

    const auto third = create(model, params, cparams);
    CHECK(load_all(third, whole));
    CHECK(stats(third, 0).n_used == 0);
    expected.check(third, 1);

    tokens read(8);
    size_t n_read = 0;
    CHECK(llama_state_load_file(third.get(), "whole.state", read.data(), read.size(), &n_read) && n_read == 4);
    expected.check(third, 1);
    CHECK(llama_state_seq_load_file(third.get(), "seq.state", 0, read.data(), read.size(), &n_read) > 0 && n_read == 4);
    expected.check(third, 0);
    read.resize(4);
    CHECK(read == noted);
    std::remove("whole.state");
    std::remove("seq.state");
}

// As llama-server: a checkpoint, more tokens and evictions, back to the checkpoint, its tail removed.
static void test_a_checkpoint_undoes_evictions(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(4, 2));
    const llama_pos newest     = stats(ctx).logical_pos;
    const bytes     checkpoint = save(ctx, 0, CHECKPOINT);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, newest - 1, -1));
    const future expected(ctx);

    CHECK(decode(ctx, some_tokens(150, 8)) == 0);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, newest - 1, -1));
    CHECK(load(ctx, checkpoint, 0, CHECKPOINT));
    CHECK(llama_memory_seq_pos_max(memory(ctx), 0) == newest);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, newest - 1, -1));
    expected.check(ctx);
}

static void test_its_size_is_constant(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(60)) == 0);
    decode_to_a_cut(ctx);
    const size_t early = save(ctx).size();
    for (int i = 0; i < 10; ++i) {
        CHECK(decode(ctx, some_tokens(100, i)) == 0);
    }
    decode_to_a_cut(ctx);
    CHECK(stats(ctx).logical_pos > 1000);
    CHECK(save(ctx).size() == early);
}

static void refuse_and_change_nothing(const context_ptr & ctx, const bytes & state, llama_seq_id seq = 0) {
    const bytes before = save(ctx, seq);
    CHECK(!load(ctx, state, seq));
    CHECK(save(ctx, seq) == before);
}

static void test_what_does_not_fit_is_refused(llama_model * model) {
    const auto params = small_params();
    const auto ctx    = create(model, params, context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    decode_to_a_cut(ctx, 0);
    const bytes state = save(ctx);

    // other parameters
    using change = void (*)(morphkv_params &);
    for (const change f :
         { +[](morphkv_params & p) { p.capacity++; }, +[](morphkv_params & p) { p.window++; },
           +[](morphkv_params & p) { p.interval++; }, +[](morphkv_params & p) { p.keep++; },
           +[](morphkv_params & p) { p.prompt_room++; }, +[](morphkv_params & p) { p.votes = 3; },
           +[](morphkv_params & p) { p.fusion = MORPHKV_FUSION_MAX; },
           +[](morphkv_params & p) { p.policy = MORPHKV_POLICY_RECENCY; }, +[](morphkv_params & p) { p.protect = 1; },
           +[](morphkv_params & p) { p.decay = 0.5f; }, +[](morphkv_params & p) { p.seed++; } }) {
        auto other = params;
        f(other);
        const auto strange = create(model, other, context_params());
        CHECK(decode(strange, some_tokens(100)) == 0);
        refuse_and_change_nothing(strange, state);
    }
    // other K/V types
    for (const bool is_k : { true, false }) {
        auto cparams                             = context_params();
        (is_k ? cparams.type_k : cparams.type_v) = GGML_TYPE_Q8_0;
        const auto strange                       = create(model, params, cparams);
        CHECK(decode(strange, some_tokens(100)) == 0);
        refuse_and_change_nothing(strange, state);
    }
    // other models
    for (const tiny_shape & shape : { tiny_shape{ 6, 3, 32, "llama", 2 }, tiny_shape{ 6, 2, 64, "llama", 2 } }) {
        const auto other_model = tiny_model_load(shape);
        const auto strange     = create(other_model.get(), params, context_params());
        CHECK(decode(strange, some_tokens(100)) == 0);
        refuse_and_change_nothing(strange, state);
    }
    // with and without MorphKV, both ways
    const context_ptr stock(llama_init_from_model(model, context_params()));
    CHECK(!load(stock, state));
    CHECK(decode(stock, some_tokens(100)) == 0);
    refuse_and_change_nothing(ctx, save(stock));
    // another number of sequences
    CHECK(!load_all(create(model, params, context_params(1)), save_all(ctx)));
    // a sequence that the context has not
    CHECK(!load(ctx, state, 2));
    CHECK(llama_state_seq_get_size(ctx.get(), 2) == 0);
}

static void test_a_damaged_state_is_refused(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    decode_to_a_cut(ctx);
    const bytes state  = save(ctx);
    const auto  n_used = stats(ctx).n_used;
    const auto  n_meta = N_LLAMA + N_HEADER + N_TEXT + (8 + 32) * 4 + n_used * 4 + 8;
    const auto  before = future(ctx);
    CHECK(load(ctx, state));

    // a bit of each byte before the tensors (every bit: core/test_state_hostile.cpp); llama.cpp does not look at the id of the
    // saved sequence
    for (size_t i = 0; i < n_meta; ++i) {
        if (i < 4 || i >= N_LLAMA) {
            bytes damaged = state;
            damaged[i] ^= 1 << i % 8;
            CHECK(!load(ctx, damaged));
        }
    }
    // truncated before the tensors
    for (size_t n = 0; n < n_meta; ++n) {
        CHECK(!load(ctx, bytes(state.begin(), state.begin() + n)));
    }
    CHECK(save(ctx) == state);
    before.check(ctx);

    // truncated in the tensors, or a block of them lost
    for (const size_t n : { n_meta, n_meta + 1, state.size() / 2, state.size() - 1, state.size() }) {
        CHECK(load(ctx, state));
        bytes damaged(state.begin(), state.begin() + n);
        if (n == state.size()) {
            std::fill(damaged.begin() + n / 4, damaged.begin() + n / 2, 0xff);
        }
        CHECK(!load(ctx, damaged) && save(ctx) == state);
    }
}

static void test_a_truncated_file_is_refused(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0);
    CHECK(llama_state_seq_save_file(ctx.get(), "cut.state", 0, nullptr, 0) > 0);
    const bytes state = save(ctx);

    // the file's own header is one word longer than the buffer's
    for (const size_t n : { size_t(3), size_t(40), size_t(200), state.size() / 2, state.size(), state.size() + 3 }) {
        FILE * f = fopen("cut.state", "rb");
        bytes  content(n);
        CHECK(f && fread(content.data(), 1, n, f) == n);
        fclose(f);
        f = fopen("short.state", "wb");
        CHECK(f && fwrite(content.data(), 1, n, f) == n);
        fclose(f);
        size_t n_read = 0;
        tokens read(4);
        CHECK(llama_state_seq_load_file(ctx.get(), "short.state", 0, read.data(), read.size(), &n_read) == 0);
        CHECK(decode(ctx, some_tokens(100)) == 0 && all_finite(logits(ctx)));
    }
    CHECK(llama_state_seq_load_file(ctx.get(), "no-such.state", 0, nullptr, 0, nullptr) == 0);
    std::remove("cut.state");
    std::remove("short.state");
}

// Right in all but the tensors, which are full of NaN: evictions sort them, and must survive.
static void test_nan_in_a_state_harms_nobody_else(llama_model * model, ggml_type type, int32_t policy) {
    auto params    = small_params();
    params.policy  = policy;
    params.decay   = 0.5f;
    auto cparams   = context_params(2);
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, params, cparams);
    CHECK(decode(ctx, some_tokens(200), { 0, 1 }) == 0);
    const bytes state = save(ctx);
    auto        parts = take_apart(ctx, state.data() + N_LLAMA, state.size() - N_LLAMA);
    for (auto & part : parts.tensors) {
        std::fill(part.data.begin(), part.data.end(), 0xff);
    }
    const bytes prefix(state.begin(), state.begin() + N_LLAMA);
    CHECK(load(ctx, put_together(prefix, parts.header, texts_as_bytes(parts), parts.tensors)));
    for (int i = 0; i < 5; ++i) {
        CHECK(decode(ctx, some_tokens(100, i), { 0 }) == 0);
        CHECK(decode(ctx, some_tokens(20, i), { 0 }, want::ALL) == 0);
    }
    decode_singly(ctx, some_tokens(60), { 0, 1 });
    CHECK(all_finite(logits(ctx, 1)));

    // and leave nothing behind
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    CHECK(all_finite(logits(ctx)));
}

// morphkv_state_load(): bytes too many are too many, and whatever is refused changes nothing.
static void test_all_or_nothing(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0 && decode(ctx, some_tokens(90, 2), { 1 }) == 0);
    const bytes own = save(ctx), checkpoint = save(ctx, 0, CHECKPOINT), whole = save_all(ctx);
    CHECK(decode(ctx, some_tokens(70, 3), { 0, 1 }) == 0);
    const bytes now[2] = { save(ctx, 0), save(ctx, 1) };

    auto refused = [&](const bytes & state, int32_t seq, uint32_t flags, const char * why) {
        CHECK(morphkv_state_load(ctx.get(), seq, state.data(), state.size(), flags) != MORPHKV_STATUS_OK);
        CHECK(strstr(morphkv_last_error(), why));
        CHECK(save(ctx, 0) == now[0] && save(ctx, 1) == now[1]);
    };
    struct kind {
        const bytes & state;
        int32_t       seq;
        uint32_t      flags;
    };
    for (const auto & k :
         { kind{ own, 0, 0 }, kind{ own, 1, 0 }, kind{ checkpoint, 0, CHECKPOINT }, kind{ whole, -1, 0 } }) {
        bytes longer = k.state;
        longer.push_back(0);
        refused(longer, k.seq, k.flags, "bytes, got");
        longer.resize(2 * k.state.size());
        refused(longer, k.seq, k.flags, "bytes, got");
        for (size_t n = 0; n < k.state.size(); n += 1 + k.state.size() / 97) {
            refused(bytes(k.state.begin(), k.state.begin() + n), k.seq, k.flags, n == 0 ? "not empty" : "");
        }
        refused(bytes(k.state.begin(), k.state.end() - 1), k.seq, k.flags, "truncated");
        refused(bytes(k.state.size(), 0xff), k.seq, k.flags, "");
        CHECK(morphkv_state_load(ctx.get(), k.seq, nullptr, 3, k.flags) == MORPHKV_STATUS_INVALID);
        CHECK(morphkv_state_load(ctx.get(), k.seq, k.state.data(), k.state.size(), k.flags) == MORPHKV_STATUS_OK);
        const bytes loaded = save(ctx, k.seq > 0);
        CHECK(std::equal(loaded.begin() + N_LLAMA, loaded.end(), own.begin() + N_LLAMA, own.end()));
        CHECK(morphkv_state_load(ctx.get(), 0, now[0].data(), now[0].size(), 0) == MORPHKV_STATUS_OK);
        CHECK(morphkv_state_load(ctx.get(), 1, now[1].data(), now[1].size(), 0) == MORPHKV_STATUS_OK);
    }
    refused(own, 2, 0, "seq_id must be in 0..1, got 2");
    refused(own, -2, 0, "seq_id must be at least -1");
    refused(own, 0, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE, "on a device");
    refused(whole, -1, CHECKPOINT, "flags are for a sequence");
    refused(whole, 0, 0, "no state of a sequence");
    refused(own, -1, 0, "architecture");
}

// The state as another version wrote it.
static bytes as_version(const bytes & state, uint32_t version, const context_ptr & ctx) {
    auto parts           = take_apart(ctx, state.data() + N_LLAMA, state.size() - N_LLAMA);
    parts.header.version = version;
    const bytes prefix(state.begin(), state.begin() + N_LLAMA);
    return put_together(prefix, parts.header, texts_as_bytes(parts), parts.tensors);
}

static void test_the_versions_before_are_read(llama_model * model) {
    auto params       = small_params();
    params.rope_limit = 150;
    const auto ctx    = create(model, params, context_params());
    CHECK(decode(ctx, some_tokens(200)) == 0 && stats(ctx).n_rebases > 0);
    const bytes state = save(ctx);
    const bytes four = as_version(state, 4, ctx), five = as_version(state, 5, ctx);
    const bytes others[2] = { as_version(state, 3, ctx), as_version(state, 7, ctx) };
    for (const bytes & old : { four, five }) {
        CHECK(decode(ctx, some_tokens(50)) == 0 && save(ctx) != state);
        CHECK(load(ctx, old) && save(ctx) == state);
    }
    refuse_and_change_nothing(ctx, others[0]);
    refuse_and_change_nothing(ctx, others[1]);

    // a text that began elsewhere: its positions are no serials
    bytes elsewhere                                                                 = five;
    elsewhere[N_LLAMA + N_HEADER + offsetof(morphkv_text_header_v5, first_distant)] = 1;
    CHECK(!load(ctx, elsewhere) && strstr(morphkv_last_error(), "begins at position 0, got 1"));
    refuse_and_change_nothing(ctx, elsewhere);
}

// A model file may say so; positions end before.
static void test_a_trained_context_of_more_than_31_bits() {
    tiny_shape shape;
    for (const uint32_t n : { 0x7fffffffu, 0x80000000u, 0xffffffffu }) {
        shape.n_ctx_train = n;
        const auto model  = tiny_model_load(shape);
        const auto ctx    = create(model.get(), small_params(), context_params());
        CHECK(stats(ctx).rope_limit == 0x7fffffff);
        CHECK(decode(ctx, some_tokens(300)) == 0 && stats(ctx).n_rebases == 0);
        const bytes  state = save(ctx);
        const future expected(ctx);
        CHECK(load(ctx, state));
        expected.check(ctx);
    }
}

int main() {
    log_errors_only();
    const auto model = tiny_model_load();
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        test_a_restored_state_goes_on_the_same(model.get(), type, type == GGML_TYPE_F16 ? 0.5f : 0.0f);
        test_a_restored_state_goes_on_the_same(model.get(), type, 0.0f, MORPHKV_POLICY_COMMITTEES);
    }
    test_a_checkpoint_undoes_evictions(model.get());
    test_its_size_is_constant(model.get());
    test_a_trained_context_of_more_than_31_bits();

    // what follows is refused on purpose, thousands of times
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    test_what_does_not_fit_is_refused(model.get());
    test_a_damaged_state_is_refused(model.get());
    test_all_or_nothing(model.get());
    test_the_versions_before_are_read(model.get());
    test_a_truncated_file_is_refused(model.get());
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        test_nan_in_a_state_harms_nobody_else(model.get(), type, MORPHKV_POLICY_MORPHKV);
        test_nan_in_a_state_harms_nobody_else(model.get(), type, MORPHKV_POLICY_COMMITTEES);
    }
    return 0;
}
