// Several sequences in one context: an eviction of one costs what it costs where there is but one, and so does a token.

#include "support/fake_device.h"
#include "support/inside.h"

#include "llama-graph.h"

constexpr int32_t N_LAYER = 4;

// Rows of a stream are 6 MiB in a layer: those of all layers are within the 48 MiB of a stack, those of all streams too are not.
static void test_layers_are_stacked_by_the_rows_of_one_stream() {
    for (const uint32_t n_seq_max : { 1, 4 }) {
        fake_device        dev("Fake");
        ggml_backend_dev_t list[]  = { &dev.dev, nullptr };
        auto               mparams = llama_model_default_params();
        mparams.devices            = list;
        mparams.n_gpu_layers       = 99;
        int64_t n_heads            = 0;  // that are sorted at once
        dev.supports               = [&](const ggml_tensor * t) {
            n_heads = t->op == GGML_OP_ARGSORT ? std::max(n_heads, t->ne[1]) : n_heads;
            return true;
        };
        const auto model   = tiny_model_load({ 6, 2, 32, "llama", N_LAYER }, mparams);
        auto       params  = small_params();
        params.prompt_room = 24 * 1024 - params.capacity;
        auto cparams       = context_params(n_seq_max);
        cparams.n_ctx      = 32 * 1024 * n_seq_max;
        const auto ctx     = create(model.get(), params, cparams);
        CHECK(n_heads == 2 * N_LAYER);
    }
}

static void count_copies(const context_ptr & ctx, const std::vector<llama_seq_id> & seqs, int & n_copies) {
    n_copies = 0;
    CHECK(decode(ctx, { 1 }, seqs) == 0);
}

// Queries of one token for each sequence lie one behind the other as they are.
static void test_a_token_of_each_sequence_copies_no_queries(llama_model * model) {
    static int n_copies = 0;
    auto       cparams  = context_params(3);
    cparams.cb_eval     = [](ggml_tensor * t, bool, void *) {
        n_copies += t->op == GGML_OP_CONT;
        return false;
    };
    const auto ctx = create(model, small_params(), cparams);
    CHECK(decode(ctx, some_tokens(20), { 0, 1, 2 }) == 0);
    count_copies(ctx, { 0 }, n_copies);
    const int n_of_one = n_copies;
    count_copies(ctx, { 0, 1, 2 }, n_copies);
    CHECK(n_copies == n_of_one);
}

// Those of the model's own input are right until a rebase.
static void test_positions_are_written_again_once_they_have_moved(llama_model * model) {
    auto params          = small_params();
    params.rope_limit    = 110;
    const auto       ctx = create(model, params, context_params(2));
    ggml_context_ptr graph(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor *    pos = ggml_new_tensor_1d(graph.get(), GGML_TYPE_I32, 1);

    ggml_backend_ptr        cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(graph.get(), cpu.get()));
    llm_graph_result        res(64);
    cache_of(ctx).build_rotary_positions(&res, pos);
    CHECK(res.inputs.size() == 1);

    // what position 500 of a sequence becomes; -1: it is left alone
    auto position = [&](llama_seq_id seq) {
        llama_batch_allocr balloc(1);
        llama_ubatch       ubatch = balloc.ubatch_reserve(1, 1);
        ubatch.pos[0]             = 500;
        ubatch.n_seq_id[0]        = 1;
        ubatch.seq_id[0]          = &seq;
        int32_t value             = -1;
        ggml_backend_tensor_set(pos, &value, 0, sizeof(value));
        res.inputs[0]->set_input(&ubatch);
        ggml_backend_tensor_get(pos, &value, 0, sizeof(value));
        return value;
    };
    CHECK(position(0) == -1 && position(1) == -1);
    CHECK(decode(ctx, some_tokens(300), { 1 }) == 0);
    CHECK(stats(ctx, 1).rotary_offset > 0);
    CHECK(position(0) == -1 && position(1) == 500 - stats(ctx, 1).rotary_offset);
}

int main() {
    log_errors_only();
    test_layers_are_stacked_by_the_rows_of_one_stream();
    const auto model = tiny_model_load();
    test_a_token_of_each_sequence_copies_no_queries(model.get());
    test_positions_are_written_again_once_they_have_moved(model.get());
    return 0;
}
