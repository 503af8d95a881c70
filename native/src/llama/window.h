// The cache of a model's sliding-window layers, beside the one that MorphKV cuts: a llama_kv_cache as llama.cpp has it,
// but for where tokens go and for what llama.cpp cannot do with it: copies at once, exact restoring, turning of keys.
//
// A stream is a ring: each token goes behind the one before it, which is also where llama.cpp puts it. After tokens were
// taken back llama.cpp goes on at the first free cell; here the same tokens get the same cells again, and so the same bits.
#pragma once

#include "device/engine.h"
#include "device/layers.h"

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

    slot_info_vec_t place(const std::vector<llama_ubatch> & ubatches) const;

    // Whether a token at pos attends to none that is at lost or before.
    bool      can_lose(llama_pos lost, llama_pos pos) const;
    // The smallest position all of whose window is there, in a text that begins at first; at most the one behind the newest.
    llama_pos first_possible(llama_seq_id seq_id, llama_pos first) const;
    // The smallest position from which on tokens can be taken back and decoded again with the same bits.
    llama_pos first_exact(llama_seq_id seq_id, llama_pos first) const;

    void copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst);

    // Appends to a graph: the keys of a sequence are turned by delta positions. A layer of this cache.
    void build_rotate(morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer, llama_seq_id seq_id,
                      int32_t delta, ggml_tensor * rot) const;

    // The cells of a sequence: positions up to its newest, in a row and in cells that follow each other around the ring.
    struct cell_run {
        llama_pos                newest   = -1;
        uint32_t                 i_newest = 0;
        std::vector<llama_token> tokens;  // oldest first
    };
    cell_run get_run(llama_seq_id seq_id) const;
    // The sequence must be empty.
    void     set_run(llama_seq_id seq_id, const cell_run & run);

    // f(tensor, offset, size) for the rows of a run in K and V of each layer, always in the same order.
    template <typename F> void for_each_slice(llama_seq_id seq_id, const cell_run & run, F && f) const {
        const uint32_t n       = run.tokens.size();
        const uint32_t n_after = std::min(n, run.i_newest + 1);  // those before lie at the ring's end
        for (const auto & layer : layers) {
            for (ggml_tensor * t : { layer.k, layer.v }) {
                auto rows = [&](uint32_t i_first, uint32_t n_rows) {
                    if (n_rows > 0) {
                        f(t, seq_id * t->nb[2] + i_first * t->nb[1], n_rows * t->nb[1]);
                    }
                };
                rows(get_size() - (n - n_after), n - n_after);
                rows(run.i_newest + 1 - n_after, n_after);
            }
        }
    }

    // Learns how a layer rotates its keys: k as its attention gets them.
    void note_rope(const ggml_tensor * k, int32_t il);

    std::vector<morphkv_side_layer> layers;

private:
    // of a sequence that is not empty
    uint32_t newest_cell(llama_seq_id seq_id) const;

    const uint32_t       n_swa;
    const llama_swa_type swa_type;
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
