// What is inside of a context.
#pragma once

#include "support/tiny_context.h"

#include "llama/hybrid.h"
#include "llama/memory.h"
#include "llama/state.h"

#include <algorithm>

inline morphkv_cache & cache_of(const context_ptr & ctx) {
    return *morphkv_find_cache((llama_memory_i *) memory(ctx));
}

// A friend of the cache and of its archives.
struct morphkv_inside {
    static morphkv_archives & archives(const context_ptr & ctx) { return *cache_of(ctx).archives; }

    static void append_beside(const context_ptr & ctx, bool is_beside) { archives(ctx).has_thread = is_beside; }

    static morphkv_text_rules text_rules(const context_ptr & ctx) { return cache_of(ctx).text_rules(); }

    // of the first sequence, if that had this text
    static std::vector<morphkv_slice> slices(const context_ptr & ctx, const morphkv_text & text) {
        return cache_of(ctx).slices(0, text);
    }

    static const morphkv_k_rot & k_rot(const context_ptr & ctx) { return cache_of(ctx).get_group(0).k_rot; }

    static morphkv_text & text(const context_ptr & ctx, llama_seq_id seq = 0) {
        return cache_of(ctx).sequences[seq].text;
    }

    static morphkv_context_engine & engine(const context_ptr & ctx) { return cache_of(ctx).engine; }
};

// Once all is appended that is on its way.
inline morphkv_archive & archive_of(const context_ptr & ctx, llama_seq_id seq = 0) {
    return morphkv_inside::archives(ctx).of(seq);
}

// By its number in the model.
inline morphkv_side_layer layer_of(const context_ptr & ctx, int32_t il) {
    const auto all = cache_of(ctx).cut_layers();
    return *std::find_if(all.begin(), all.end(), [il](const auto & layer) { return layer.il == il; });
}

// The bytes of a layer's used keys.
inline bytes keys_of(const context_ptr & ctx, size_t i_layer, llama_seq_id seq = 0) {
    const ggml_tensor * k = cache_of(ctx).get_side().layers[i_layer].k;
    bytes               res(stats(ctx, seq).n_used * k->nb[1]);
    ggml_backend_tensor_get(k, res.data(), seq * k->nb[2], res.size());
    return res;
}

// K or V of a cell, a layer and a head as floats.
inline floats row_of(const ggml_tensor * t, int32_t i_cell, int32_t head, int32_t n_head_kv) {
    const int64_t        n = t->ne[0] / n_head_kv;
    std::vector<uint8_t> data(ggml_row_size(t->type, n));
    ggml_backend_tensor_get(t, data.data(), i_cell * t->nb[1] + head * data.size(), data.size());
    floats res(n);
    morphkv_convert_rows(t->type, data.data(), GGML_TYPE_F32, res.data(), 1, n);
    return res;
}
