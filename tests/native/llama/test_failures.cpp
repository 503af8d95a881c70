// What fails, fails cleanly: the sequence is as before the call, or it is empty and the error says so.

#include "support/inside.h"

#include <cstring>

using step = morphkv_runner::step;

// Two sequences, the first of which is due for a cut at its next token.
static context_ptr create_due(llama_model * model) {
    auto ctx = create(model, small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1 }) == 0);
    decode_to_a_cut(ctx, 0);
    decode_singly(ctx, some_tokens(5, 3), { 0 });
    CHECK(stats(ctx, 0).n_used == 46);
    return ctx;
}

static void test_an_eviction_that_cannot_be_allocated_changes_nothing(llama_model * model) {
    const auto ctx    = create_due(model);
    const auto before = save(ctx, 0);

    cache_of(ctx).inject_failure = [](step s) {
        return s == step::ALLOC;
    };
    CHECK(decode(ctx, { 1 }, { 0, 1 }) == -3);
    CHECK(strstr(morphkv_last_error(), "eviction failed") && strstr(morphkv_last_error(), "sequence 0 is unchanged"));
    CHECK(save(ctx, 0) == before && stats(ctx, 1).n_used == 20);

    // and is done when there is memory again, as if nothing had been
    cache_of(ctx).inject_failure = nullptr;
    const auto undisturbed       = create_due(model);
    for (const llama_token token : some_tokens(30, 4)) {
        decode_singly(ctx, { token }, { 0 });
        decode_singly(undisturbed, { token }, { 0 });
        CHECK(logits(ctx) == logits(undisturbed));
    }
}

static void test_an_eviction_that_fails_half_way_clears_its_sequence_alone(llama_model * model) {
    const auto ctx    = create_due(model);
    const auto before = save(ctx, 1);

    cache_of(ctx).inject_failure = [](step s) {
        return s == step::COMPUTE;
    };
    CHECK(decode(ctx, { 1 }, { 0, 1 }) == -3);
    CHECK(strstr(morphkv_last_error(), "sequence 0 was half changed and has been cleared"));
    CHECK(morphkv_last_status() == MORPHKV_STATUS_FAILED);
    CHECK(stats(ctx, 0).n_used == 0 && stats(ctx, 0).n_evictions == 0 && stats(ctx, 0).logical_pos == -1);
    CHECK(save(ctx, 1) == before);

    cache_of(ctx).inject_failure = nullptr;
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    CHECK(strlen(morphkv_last_error()) == 0);
    decode_singly(ctx, some_tokens(50, 3), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// The same in the middle of a prompt that cuts again and again: what came before the failing cut is there or cleared.
static void test_a_prompt_whose_third_cut_fails(llama_model * model, step which) {
    const auto ctx               = create(model, small_params(), context_params());
    int        n                 = 0;
    cache_of(ctx).inject_failure = [&](step s) {
        return s == which && ++n == 3;
    };
    CHECK(decode(ctx, some_tokens(400)) == -3);
    const auto s = stats(ctx);
    if (which == step::ALLOC) {
        // 70 cells, and two cuts of 30
        CHECK(s.n_used == s.n_limit && s.n_evictions == 2 && s.logical_pos == 129);
    } else {
        CHECK(s.n_used == 0 && s.logical_pos == -1);
    }
    CHECK(decode(ctx, some_tokens(400)) == 0 && all_finite(logits(ctx)));
}

// A host that cancels after some calls of its callback.
struct canceller {
    int n_left;

    static bool call(void * data) { return ((canceller *) data)->n_left-- <= 0; }
};

// An abort comes before the model's graph or in the middle of it, never inside of the eviction before: the token can be
// decoded again, and nothing differs from a run without an abort.
static void test_an_abort_loses_nothing(llama_model * model) {
    const auto undisturbed = create_due(model);
    const auto expected    = logits_of(undisturbed, some_tokens(30, 4));

    int n_aborted = 0;
    for (int n_calls = 0;; n_calls = n_calls < 8 ? n_calls + 1 : n_calls * 2) {
        const auto ctx = create_due(model);
        canceller  host{ n_calls };
        llama_set_abort_callback(ctx.get(), canceller::call, &host);
        const int res = decode(ctx, { some_tokens(30, 4)[0] }, { 0 });
        llama_set_abort_callback(ctx.get(), nullptr, nullptr);
        CHECK(stats(ctx, 0).n_used == (res == 2 ? 40 : 41) && stats(ctx, 1).n_used == 20);
        if (res == 0) {
            break;
        }
        CHECK(res == 2);
        n_aborted++;
        CHECK(logits_of(ctx, some_tokens(30, 4)) == expected);
    }
    CHECK(n_aborted > 3);
}

// A cancelled prompt keeps what has been decoded of it, as with llama.cpp.
static void test_an_aborted_prompt_keeps_its_beginning(llama_model * model) {
    const auto ctx = create(model, small_params(), context_params());
    canceller  host{ 1000 };
    llama_set_abort_callback(ctx.get(), canceller::call, &host);
    CHECK(decode(ctx, some_tokens(500)) == 2);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    const auto s = stats(ctx);
    CHECK(s.logical_pos > 0 && s.logical_pos < 499);
    CHECK(s.n_evicted == s.logical_pos + 1 - s.n_used);
    CHECK(decode(ctx, some_tokens(500)) == 0 && all_finite(logits(ctx)));
}

// ggml would end the process at the graph's end.
static void test_a_layer_with_more_tensors_than_expected_is_refused(llama_model * model) {
    const auto             ctx   = create_due(model);
    const auto &           layer = cache_of(ctx).get_side().layers[1];
    morphkv_context_engine engine;
    engine.set(ctx.get());
    morphkv_runner runner(engine);
    auto           build = [](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        ggml_tensor * t = morphkv_side::stream(inputs.ctx, layer.ring, 0);
        for (int i = 0; i < 9; ++i) {
            t = ggml_dup(inputs.ctx, t);
        }
        ggml_build_forward_expand(gf, t);
    };
    auto begin = [](morphkv_inputs &) {
    };
    CHECK(runner.run({ &layer }, 10, begin, build).empty());
    CHECK(runner.run({ &layer }, 9, begin, build) ==
          "the graph of layer 1 has 10 tensors, and 9 at most were expected");
}

// Finally, as no smaller batch would be taken either (a host that hears 1 tries those), with a sentence that is logged once.
static void refused(const context_ptr & ctx, llama_batch batch, const char * why) {
    std::string log;
    llama_log_set([](ggml_log_level, const char * text, void * data) { *(std::string *) data += text; }, &log);
    CHECK(llama_decode(ctx.get(), batch) < -1);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    CHECK(morphkv_last_status() == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), why));
    const size_t first = log.find(why);
    CHECK(first != std::string::npos && log.find(why, first + 1) == std::string::npos);
}

static void test_a_batch_that_cannot_be_placed_changes_nothing(const context_ptr & ctx) {
    const auto before = save(ctx, 0);

    // one token in two sequences, which llama.cpp lets pass where they are as long
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    llama_batch batch  = llama_batch_init(1, 0, 2);
    batch.n_tokens     = 1;
    batch.token[0]     = 1;
    batch.pos[0]       = stats(ctx, 0).logical_pos + 1;
    batch.n_seq_id[0]  = 2;
    batch.seq_id[0][0] = 0;
    batch.seq_id[0][1] = 1;
    batch.logits[0]    = 1;
    refused(ctx, batch, "a token must belong to one sequence among 0..1, got several");
    llama_batch_free(batch);

    // a position twice, which llama.cpp lets pass, and one left out, which it does not
    for (const llama_pos second : { 0, 2 }) {
        batch          = llama_batch_init(2, 0, 1);
        batch.n_tokens = 2;
        for (int i = 0; i < 2; ++i) {
            batch.token[i]     = 1;
            batch.pos[i]       = stats(ctx, 0).logical_pos + 1 + (i ? second : 0);
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = 1;
        }
        if (second == 0) {
            refused(ctx, batch, "positions must be consecutive, got ");
        } else {
            CHECK(llama_decode(ctx.get(), batch) == -1);
        }
        llama_batch_free(batch);
    }
    CHECK(save(ctx, 0) == before);
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const auto model = tiny_model_load();
    test_an_eviction_that_cannot_be_allocated_changes_nothing(model.get());
    test_an_eviction_that_fails_half_way_clears_its_sequence_alone(model.get());
    test_a_prompt_whose_third_cut_fails(model.get(), step::ALLOC);
    test_a_prompt_whose_third_cut_fails(model.get(), step::COMPUTE);
    test_an_abort_loses_nothing(model.get());
    test_an_aborted_prompt_keeps_its_beginning(model.get());
    test_a_batch_that_cannot_be_placed_changes_nothing(create_due(model.get()));
    tiny_shape hybrid;
    hybrid.arch             = "lfm2";
    hybrid.n_head           = 2;
    hybrid.n_head_kv        = 1;
    hybrid.is_recurrent     = { 1, 0 };
    const auto hybrid_model = tiny_model_load(hybrid);
    test_a_batch_that_cannot_be_placed_changes_nothing(create_due(hybrid_model.get()));
    test_a_layer_with_more_tensors_than_expected_is_refused(model.get());
    return 0;
}
