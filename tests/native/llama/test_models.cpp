// Models whose layers are not those of a plain llama: without heads, or with compressed keys.

#include "support/inside.h"

#include <cstring>

// Attention in the first and the last of three layers.
static model_ptr headless_model() {
    tiny_shape shape;
    shape.arch        = "deci";
    shape.n_head      = 4;
    shape.n_head_kv   = 4;
    shape.n_layer     = 3;
    shape.is_headless = { 0, 1, 0 };
    return tiny_model_load(shape);
}

static void test_a_layer_without_heads_is_left_out() {
    const auto  model   = headless_model();
    const auto  cparams = context_params(2);
    auto        params  = small_params();
    const auto  ctx     = create(model.get(), params, cparams);
    context_ptr stock(llama_init_from_model(model.get(), cparams));

    CHECK(cache_of(ctx).get_side().layers.size() == 2);
    int32_t n_equal = 0;
    for (const llama_token token : some_tokens(200)) {
        decode_singly(ctx, { token }, { 0, 1 });
        decode_singly(stock, { token }, { 0, 1 });
        if (stats(ctx).n_evictions == 0) {
            CHECK(logits(ctx, 0) == logits(stock, 0) && logits(ctx, 1) == logits(stock, 1));
            n_equal++;
        }
    }
    CHECK(n_equal == params.capacity + params.interval && stats(ctx).n_evictions > 20 && all_finite(logits(ctx)));

    const int32_t n_distant = params.capacity - params.window;
    for (const int32_t il : { 0, 2 }) {
        auto kept = retained(ctx, 0, il);
        CHECK((int32_t) kept.size() == 4 * n_distant);
        for (int32_t h = 0; h < 4; ++h) {
            const auto first = kept.begin() + h * n_distant;
            CHECK(first[0] == 0 && first[1] == 1 && first[2] == 2);  // keep
            std::sort(first, first + n_distant);
            CHECK(std::adjacent_find(first, first + n_distant) == first + n_distant && first[n_distant - 1] < 200);
        }
    }
    int32_t n_head_kv, n;
    CHECK(morphkv_retained_shape(ctx.get(), 1, &n_head_kv, &n) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "layer must be one that has a KV cache, got 1"));
}

// llama.cpp makes a matrix for quantized keys whose rows fit it, and multiplies them with it but for compressed ones.
static void test_whether_keys_are_multiplied_is_read_from_the_graph() {
    tiny_shape plain, mla;
    plain.n_embd_head = mla.n_embd_head = 64;
    mla.arch                            = "deepseek2";
    mla.n_lora_kv                       = 96;
    for (const tiny_shape & shape : { plain, mla }) {
        const auto model = tiny_model_load(shape);
        for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
            auto cparams   = context_params();
            cparams.type_k = type;
            cparams.type_v = type;
            const auto ctx = create(model.get(), small_params(), cparams);

            ggml_context_ptr graph(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, true }));
            const bool       has_matrix = cache_of(ctx).build_input_k_rot(graph.get()) != nullptr;
            CHECK(has_matrix == (type == GGML_TYPE_Q8_0));
            for (const auto & layer : cache_of(ctx).get_side().layers) {
                CHECK(layer.rope.is_multiplied == (has_matrix && shape.n_lora_kv == 0));
            }
            CHECK(decode(ctx, some_tokens(120)) == 0);
            decode_to_a_cut(ctx);
            CHECK(all_finite(logits(ctx)));
        }
    }
}

// With M-RoPE a cell knows a row and a column besides, by which images are masked. Of words they are the position.
static void test_cells_that_move_keep_their_row_and_column() {
    tiny_shape shape;
    shape.arch       = "qwen2vl";
    shape.n_head     = 2;  // as wide as the embedding
    shape.n_head_kv  = 1;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create(model.get(), small_params(), context_params(2));
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    decode_to_a_cut(ctx);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    bytes state(llama_state_seq_get_size(ctx.get(), 1));
    CHECK(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 1) == state.size());
    CHECK(morphkv_state_load(ctx.get(), 0, state.data(), state.size(), 0) == MORPHKV_STATUS_OK);
    for (const llama_seq_id seq : { 0, 1 }) {
        const auto & cells = cache_of(ctx).get_cells(seq);
        CHECK((int32_t) cells.get_used() == stats(ctx, seq).n_used && stats(ctx, seq).n_evictions > 0);
        for (int32_t i = 0; i < stats(ctx, seq).n_used; ++i) {
            CHECK(cells.ext_get(i).x == cells.pos_get(i) && cells.ext_get(i).y == cells.pos_get(i));
        }
    }
}

int main() {
    log_errors_only();
    test_a_layer_without_heads_is_left_out();
    test_whether_keys_are_multiplied_is_read_from_the_graph();
    test_cells_that_move_keep_their_row_and_column();
    return 0;
}
