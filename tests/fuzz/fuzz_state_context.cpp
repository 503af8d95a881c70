#include "fuzz_state_context.h"

#include <cstring>

void fuzz_load_base(const fuzz_context & c) {
    // tensors too: no input shall depend on an earlier one
    llama_memory_clear(memory(c.ctx), true);
    for (llama_seq_id s = 0; s < FUZZ_N_SEQ; ++s) {
        CHECK(load(c.ctx, c.base[s], s));
    }
}

namespace {

llama_model * get_model(bool has_window) {
    // Never freed: libFuzzer exits by ways on which destructors meet ggml's, already gone.
    static llama_model * models[2];

    auto & res = models[has_window];
    if (!res) {
        tiny_shape shape = { 2, 1, 32, has_window ? "granite_swa" : "llama", 2 };
        shape.n_swa      = 24;
        if (has_window) {
            shape.is_windowed = { 1, 0 };
        }
        res = tiny_model_load(shape).release();
    }
    return res;
}

fuzz_context make_context(int i_context) {
    auto params        = small_params();
    params.capacity    = 12;
    params.window      = 4;
    params.interval    = 4;
    params.keep        = 2;
    params.prompt_room = 6;
    params.rope_limit  = 24;
    auto cparams       = context_params(FUZZ_N_SEQ);
    switch (i_context) {
        case 0:
            params.decay = 0.5f;
            break;
        case 1:
            params.fusion  = MORPHKV_FUSION_MAX;
            cparams.type_k = cparams.type_v = GGML_TYPE_Q8_0;
            break;
        case 2:
            params.policy  = MORPHKV_POLICY_RECENCY;
            cparams.type_k = cparams.type_v = GGML_TYPE_F32;
            break;
        case 3:
            // two pages fit
            params.capacity   = 40;
            params.rope_limit = 60;
            break;
        case 4:
            // with a layer that has a window
            cparams.swa_full = false;
            break;
    }

    fuzz_context res;
    res.ctx     = create(get_model(i_context == 4), params, cparams);
    res.n_limit = stats(res.ctx).n_limit;
    res.i_layer = i_context == 4;
    if (i_context == 3) {
        CHECK(start_archive(res.ctx, {}));
    }
    CHECK(decode(res.ctx, some_tokens(i_context == 4 ? 280 : 2 * params.capacity + 16), { 0 }) == 0);
    decode_to_a_cut(res.ctx, 0);
    decode_singly(res.ctx, some_tokens(2), { 0 });
    CHECK(decode(res.ctx, some_tokens(5, 2), { 1 }) == 0);
    for (llama_seq_id s = 0; s < FUZZ_N_SEQ; ++s) {
        res.base[s] = save(res.ctx, s);
    }

    const bytes    whole  = save_all(res.ctx);
    const uint32_t file[] = { LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION, /*n_tokens =*/0 };
    append(res.prefix_whole, whole.data(), sizeof(uint32_t) + strlen(i_context == 4 ? "granite_swa" : "llama"));
    append(res.prefix_seq, res.base[0].data(), 2 * sizeof(uint32_t));
    append(res.prefix_file, file, sizeof(file));
    memcpy(&res.header[0], res.base[0].data() + res.prefix_seq.size(), sizeof(res.header[0]));
    memcpy(&res.header[1], whole.data() + res.prefix_whole.size(), sizeof(res.header[1]));

    fuzz_load_base(res);
    return res;
}

}  // namespace

const fuzz_context & fuzz_get_context(int i_context) {
    static fuzz_context * const all = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        auto * res = new fuzz_context[FUZZ_N_CONTEXTS];
        for (int i = 0; i < FUZZ_N_CONTEXTS; ++i) {
            res[i] = make_context(i);
        }
        return res;
    }();
    return all[i_context];
}
