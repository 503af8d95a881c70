// A llama of random F32 weights without a vocabulary, written to a file and loaded: small enough for sanitizers.
#pragma once

#include "support/check.h"

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

constexpr int32_t TINY_N_VOCAB = 96;

struct tiny_shape {
    int32_t     n_head      = 6;
    int32_t     n_head_kv   = 2;
    int32_t     n_embd_head = 32;
    std::string arch        = "llama";
    int32_t     n_layer     = 2;

    // of "granite_swa": which layers have a sliding window, its tokens, and a logit that takes part in each softmax
    std::vector<uint32_t> is_windowed = {};
    int32_t               n_swa       = 64;
    float                 sink        = 0.0f;

    // of "lfm2": which layers are recurrent, and whether all others have a sliding window
    std::vector<uint32_t> is_recurrent = {};
    bool                  has_window   = false;

    uint32_t n_ctx_train = 4096;

    // of "deci": which layers have no heads at all, and so no attention
    std::vector<uint32_t> is_headless = {};

    // of "qwen35", here without recurrent layers: heads that draft, behind the other layers
    int32_t n_nextn = 1;

    // of "deepseek2": length of compressed keys, beside which n_embd_head/2 dimensions of each are rotated
    int32_t n_lora_kv = 0;
};

inline void tiny_model_write(const std::string & path, const tiny_shape & shape) {
    const bool    has_nextn = shape.arch == "qwen35";
    const int32_t n_embd = 64, n_ff = 96, n_layer = shape.n_layer + (has_nextn ? shape.n_nextn : 0);
    const int32_t n_q = shape.n_head * shape.n_embd_head, n_kv = shape.n_head_kv * shape.n_embd_head;

    gguf_context_ptr  gguf(gguf_init_empty());
    const std::string a = shape.arch;
    gguf_set_val_str(gguf.get(), "general.architecture", a.c_str());
    gguf_set_val_u32(gguf.get(), (a + ".context_length").c_str(), shape.n_ctx_train);
    gguf_set_val_u32(gguf.get(), (a + ".embedding_length").c_str(), n_embd);
    gguf_set_val_u32(gguf.get(), (a + ".block_count").c_str(), n_layer);
    gguf_set_val_u32(gguf.get(), (a + ".feed_forward_length").c_str(), n_ff);
    gguf_set_val_u32(gguf.get(), (a + ".attention.head_count").c_str(), shape.n_head);
    if (!shape.is_headless.empty()) {
        for (const auto & [key, n] : { std::pair(".attention.head_count", shape.n_head),
                                       std::pair(".attention.head_count_kv", shape.n_head_kv) }) {
            std::vector<int32_t> n_heads;
            for (const uint32_t is_headless : shape.is_headless) {
                n_heads.push_back(is_headless ? 0 : n);
            }
            gguf_set_arr_data(gguf.get(), (a + key).c_str(), GGUF_TYPE_INT32, n_heads.data(), n_heads.size());
        }
    } else if (shape.is_recurrent.empty()) {
        gguf_set_val_u32(gguf.get(), (a + ".attention.head_count_kv").c_str(), shape.n_lora_kv ? 1 : shape.n_head_kv);
    } else {
        std::vector<int32_t> n_head_kv;
        for (const uint32_t is_recurrent : shape.is_recurrent) {
            n_head_kv.push_back(is_recurrent ? 0 : shape.n_head_kv);
        }
        gguf_set_arr_data(gguf.get(), (a + ".attention.head_count_kv").c_str(), GGUF_TYPE_INT32, n_head_kv.data(),
                          n_head_kv.size());
        gguf_set_val_u32(gguf.get(), (a + ".shortconv.l_cache").c_str(), 3);
    }
    const int32_t n_embd_rope = shape.n_lora_kv ? shape.n_embd_head / 2 : shape.n_embd_head;
    const int32_t n_embd_k    = shape.n_lora_kv ? shape.n_lora_kv + n_embd_rope : shape.n_embd_head;
    gguf_set_val_u32(gguf.get(), (a + ".attention.key_length").c_str(), n_embd_k);
    gguf_set_val_u32(gguf.get(), (a + ".attention.value_length").c_str(),
                     shape.n_lora_kv ? shape.n_lora_kv : shape.n_embd_head);
    gguf_set_val_u32(gguf.get(), (a + ".rope.dimension_count").c_str(), n_embd_rope);
    if (shape.n_lora_kv) {
        gguf_set_val_u32(gguf.get(), (a + ".attention.q_lora_rank").c_str(), 0);
        gguf_set_val_u32(gguf.get(), (a + ".attention.kv_lora_rank").c_str(), shape.n_lora_kv);
        gguf_set_val_u32(gguf.get(), (a + ".attention.key_length_mla").c_str(), shape.n_embd_head);
        gguf_set_val_u32(gguf.get(), (a + ".attention.value_length_mla").c_str(), shape.n_embd_head);
        gguf_set_val_u32(gguf.get(), (a + ".leading_dense_block_count").c_str(), n_layer);
        gguf_set_val_u32(gguf.get(), (a + ".expert_feed_forward_length").c_str(), n_ff);
        gguf_set_val_u32(gguf.get(), (a + ".expert_shared_count").c_str(), 1);
    }
    gguf_set_val_f32(gguf.get(), (a + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
    gguf_set_val_u32(gguf.get(), (a + ".attention.sliding_window").c_str(),
                     a == "lfm2" && !shape.has_window ? 0 : shape.n_swa);
    if (!shape.is_windowed.empty()) {
        gguf_set_arr_data(gguf.get(), (a + ".attention.sliding_window_pattern").c_str(), GGUF_TYPE_UINT32,
                          shape.is_windowed.data(), shape.is_windowed.size());
    }
    if (has_nextn) {
        gguf_set_val_u32(gguf.get(), (a + ".nextn_predict_layers").c_str(), shape.n_nextn);
        gguf_set_val_u32(gguf.get(), (a + ".full_attention_interval").c_str(), 1);
        for (const auto & [key, value] :
             { std::pair(".ssm.conv_kernel", 4), std::pair(".ssm.inner_size", 64), std::pair(".ssm.state_size", 32),
               std::pair(".ssm.time_step_rank", 2), std::pair(".ssm.group_count", 2) }) {
            gguf_set_val_u32(gguf.get(), (a + key).c_str(), value);
        }
    }
    if (a == "qwen2vl" || has_nextn) {
        const int32_t sections[] = { 6, 5, 5, 0 };  // pairs of dimensions that are rotated by t, h and w
        gguf_set_arr_data(gguf.get(), (a + ".rope.dimension_sections").c_str(), GGUF_TYPE_INT32, sections, 4);
    }
    if (a == "granite" || a == "granite_swa") {
        gguf_set_val_f32(gguf.get(), (a + ".logit_scale").c_str(), 1.0f);
    }
    gguf_set_val_u32(gguf.get(), (a + ".vocab_size").c_str(), TINY_N_VOCAB);
    gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "no_vocab");

    ggml_context_ptr ctx(ggml_init({ (size_t) 32 << 20, nullptr, false }));
    std::mt19937     rng(7);
    auto             add = [&](const std::string & name, int32_t n_in, int32_t n_out, float scale, int32_t n_each = 1) {
        ggml_tensor *                   t = n_out ? ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_in, n_out, n_each)
                                                  : ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n_in);
        std::normal_distribution<float> normal(0.0f, scale / std::sqrt((float) n_in));
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            ((float *) t->data)[i] = n_out ? normal(rng) : 1.0f;
        }
        ggml_set_name(t, name.c_str());
        gguf_add_tensor(gguf.get(), t);
        return t;
    };
    add("token_embd.weight", n_embd, TINY_N_VOCAB, 8.0f);
    for (int32_t il = 0; il < n_layer; ++il) {
        const std::string blk         = "blk." + std::to_string(il) + ".";
        const bool        is_headless = !shape.is_headless.empty() && shape.is_headless[il];
        if (!is_headless) {
            add(blk + "attn_norm.weight", n_embd, 0, 1.0f);
        }
        if (a == "granite_swa") {
            std::fill_n((float *) add(blk + "attn_sinks.weight", shape.n_head, 0, 1.0f)->data, shape.n_head,
                        shape.sink);
        }
        if (!shape.is_recurrent.empty() && shape.is_recurrent[il]) {
            add(blk + "shortconv.conv.weight", 3, n_embd, 1.0f);
            add(blk + "shortconv.in_proj.weight", n_embd, 3 * n_embd, 1.0f);
            add(blk + "shortconv.out_proj.weight", n_embd, n_embd, 1.0f);
        } else if (shape.n_lora_kv) {
            add(blk + "attn_q.weight", n_embd, n_q, 1.5f);
            add(blk + "attn_kv_a_mqa.weight", n_embd, n_embd_k, 1.5f);
            add(blk + "attn_kv_a_norm.weight", shape.n_lora_kv, 0, 1.0f);
            add(blk + "attn_k_b.weight", shape.n_embd_head - n_embd_rope, shape.n_lora_kv, 1.0f, shape.n_head);
            add(blk + "attn_v_b.weight", shape.n_lora_kv, shape.n_embd_head, 1.0f, shape.n_head);
            add(blk + "attn_output.weight", n_q, n_embd, 1.0f);
        } else if (!is_headless) {
            if (a == "lfm2" || a == "qwen3" || has_nextn) {
                add(blk + "attn_q_norm.weight", shape.n_embd_head, 0, 1.0f);
                add(blk + "attn_k_norm.weight", shape.n_embd_head, 0, 1.0f);
            }
            add(blk + "attn_q.weight", n_embd, has_nextn ? 2 * n_q : n_q, 1.5f);  // beside each query its gate
            add(blk + "attn_k.weight", n_embd, n_kv, 1.5f);
            add(blk + "attn_v.weight", n_embd, n_kv, 1.0f);
            add(blk + "attn_output.weight", n_q, n_embd, 1.0f);
        }
        if (has_nextn && il >= shape.n_layer) {
            add(blk + "nextn.eh_proj.weight", 2 * n_embd, n_embd, 1.0f);
            add(blk + "nextn.enorm.weight", n_embd, 0, 1.0f);
            add(blk + "nextn.hnorm.weight", n_embd, 0, 1.0f);
        }
        add(blk + (has_nextn ? "post_attention_norm.weight" : "ffn_norm.weight"), n_embd, 0, 1.0f);
        add(blk + "ffn_gate.weight", n_embd, n_ff, 1.0f);
        add(blk + "ffn_up.weight", n_embd, n_ff, 1.0f);
        add(blk + "ffn_down.weight", n_ff, n_embd, 1.0f);
    }
    add(a == "lfm2" ? "token_embd_norm.weight" : "output_norm.weight", n_embd, 0, 1.0f);
    add("output.weight", n_embd, TINY_N_VOCAB, 1.0f);
    CHECK(gguf_write_to_file(gguf.get(), path.c_str(), false));
}

struct model_deleter {
    void operator()(llama_model * m) const { llama_model_free(m); }
};
struct context_deleter {
    void operator()(llama_context * c) const { llama_free(c); }
};

using model_ptr   = std::unique_ptr<llama_model, model_deleter>;
using context_ptr = std::unique_ptr<llama_context, context_deleter>;

inline model_ptr tiny_model_load(const tiny_shape & shape   = {},
                                 llama_model_params mparams = llama_model_default_params()) {
    // beside the program: the build folder is writable; several tests may run at once
    const std::string path = "tiny-model-" + std::to_string(std::random_device()()) + ".gguf";
    tiny_model_write(path, shape);
    mparams.load_mode = LLAMA_LOAD_MODE_NONE;
    model_ptr model(llama_model_load_from_file(path.c_str(), mparams));
    std::remove(path.c_str());
    CHECK(model);
    return model;
}
