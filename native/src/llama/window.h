// The cache of a model's sliding-window layers, beside the one that MorphKV cuts: a llama_kv_cache as llama.cpp has it,
// but for where tokens go and for what llama.cpp cannot do with it: copies at once, exact restoring, turning of keys.
//
// A stream is a ring: each token goes behind the one before it, which is also where llama.cpp puts it. After tokens were
// taken back llama.cpp goes on at the first free cell; here the same tokens get the same cells again, and so the same bits.
#pragma once

#include "core/text.h"
#include "device/layers.h"
#include "llama/cells.h"

#include "llama-kv-cache.h"

class morphkv_window : public llama_kv_cache {
public:
    // filter: which layers. n_cells: see below.
    morphkv_window(const llama_model & model, const llama_hparams & hparams, ggml_type type_k, ggml_type type_v,
                   bool offload, uint32_t n_cells, uint32_t n_seq_max, const layer_filter_cb & filter,
                   const layer_reuse_cb & reuse);

    // As many as llama.cpp has: a window and a micro-batch, or all that the other cache has (is_full). But always so many
    // that a draft can be taken back.
    static uint32_t n_cells(const llama_hparams & hparams, uint32_t n_ubatch, bool is_full, uint32_t n_cells_base);

    // Where micro-batches go; rings: of each sequence.
    slot_info_vec_t assign_cells(std::vector<morphkv_ring_group>   rings,
                                 const std::vector<llama_ubatch> & ubatches) const;

    // Whether a token at pos attends to none that is at lost or before.
    bool can_lose(llama_pos lost, llama_pos pos) const;

    // The tokens that the ring of a text holds, oldest first; and back, where the sequence is empty.
    std::vector<llama_token> get_tokens(llama_seq_id seq_id, const morphkv_ring_group & ring) const;
    void set_tokens(llama_seq_id seq_id, const morphkv_text & text, const std::vector<llama_token> & tokens);

    // Their rows in K and V of each layer, always in the same order.
    std::vector<morphkv_slice> slices(llama_seq_id seq_id, const morphkv_ring_group & ring) const;

    // Learns how a layer rotates its keys: k as its attention gets them.
    void note_rope(const ggml_tensor * k, int32_t il);

    std::vector<morphkv_side_layer> layers;
    const morphkv_k_rot             k_rot;

private:
    const uint32_t       n_swa;
    const llama_swa_type swa_type;
    const uint32_t       n_pos;
};

// Tells a layer's attention, in the decode graph, that its cache is a morphkv_window.
class morphkv_window_context : public llama_kv_cache_context {
public:
    // the full cache, for worst-case graphs
    explicit morphkv_window_context(morphkv_window * window);
    morphkv_window_context(morphkv_window * window, llama_kv_cache::slot_info_vec_t sinfos,
                           std::vector<llama_ubatch> ubatches);

    morphkv_window * get_window() const { return window; }

private:
    morphkv_window * window;
};
